"""Who finds whom among held-out images and captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hialign.batch import PairBatch
from hialign.evaluation.geometry import summary
from hialign.evaluation.subject import Subject
from hialign.objectives import Parts, check_pairs


class Retrieval:
    """Recall@1/5/10 in both directions with its chance level, and the geometry of the embeddings, for each pair.

    All captions of all held-out images are candidates; ``geometry.summary`` says what each number is.
    """

    def __init__(self, pairs: Sequence[str] = ("clip", "projector")) -> None:
        self.pairs = check_pairs(pairs)

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The scores as ``pair/number``."""
        images: dict[str, list[Tensor]] = {pair: [] for pair in self.pairs}
        texts: dict[str, list[Tensor]] = {pair: [] for pair in self.pairs}
        image_of_text: list[int] = []
        seen = 0
        for records, pixel_values in subject.images("retrieval"):
            # one row a caption; the image tower reads each image once, by its first row
            rows = [(i, caption) for i, record in enumerate(records) for caption in record.captions]
            items = [subject.pairs.row(records[i], caption, pixel_values[i]) for i, caption in rows]
            batch = subject.pairs.collate(items)
            first = [rows.index((i, record.captions[0])) for i, record in enumerate(records)]
            image_part, text_part = subject.read(_Embed(self.pairs, first), batch)
            for pair in self.pairs:
                images[pair].append(image_part[pair].float().cpu())
                texts[pair].append(text_part[pair].float().cpu())
            image_of_text += [seen + i for i, _ in rows]
            seen += len(records)
        if seen < 2:
            raise ValueError(f"retrieval: {seen} held-out image, wanted at least two to tell apart; hold out more")
        places = torch.tensor(image_of_text)
        scores: dict[str, float] = {"images": float(seen), "captions": float(len(places))}
        for pair in self.pairs:
            numbers = summary(torch.cat(images[pair]), torch.cat(texts[pair]), places)
            scores |= {f"{pair}/{name}": value for name, value in numbers.items()}
        return scores


class _Embed:
    def __init__(self, pairs: tuple[str, ...], image_rows: list[int]) -> None:
        self.pairs, self.image_rows = pairs, image_rows

    def __call__(self, parts: Parts, batch: PairBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        images = parts.image_embeddings(batch.pixel_values[self.image_rows], self.pairs)
        return images, parts.text_embeddings(batch.caption, batch.clip_caption, self.pairs)
