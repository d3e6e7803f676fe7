"""Images and texts as the CLIP towers place them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hialign.batch import PairBatch
from hialign.data import CaptionedImage
from hialign.data.collate import PairItem
from hialign.evaluation.subject import Subject
from hialign.objectives import Parts


def embedded_images(subject: Subject, records: Iterable[CaptionedImage]) -> Tensor:
    """(records, dim): the image tower's embeddings, at length one."""
    shown = (subject.pairs.row(record, "one", subject.language.pixels(record)[0]) for record in records)
    return _read(subject, _images, shown)


def embedded_texts(subject: Subject, texts: Sequence[str], record: CaptionedImage) -> Tensor:
    """(texts, dim): the text tower's embeddings, at length one. Of ``record``, any one, nothing is looked at."""
    unseen = subject.language.pixels(record)[0][:, :0, :0]
    return _read(subject, _texts, (subject.pairs.row(record, text, unseen) for text in texts))


def _read(subject: Subject, reader: Callable[[Any, Any], Tensor], items: Iterable[PairItem]) -> Tensor:
    """What ``reader`` makes of all items, some at a time."""
    batches = _some(items, subject.batch_size)
    return torch.cat([subject.read(reader, subject.pairs.collate(batch)) for batch in batches])


def _some(items: Iterable[PairItem], number: int) -> Iterator[list[PairItem]]:
    left = iter(items)
    while batch := list(islice(left, number)):
        yield batch


def _texts(parts: Parts, batch: PairBatch) -> Tensor:
    embeddings = parts.text_embeddings(batch.caption, batch.clip_caption, ("clip",))["clip"]
    return F.normalize(embeddings.float(), dim=-1)


def _images(parts: Parts, batch: PairBatch) -> Tensor:
    embeddings = parts.image_embeddings(batch.pixel_values, ("clip",))["clip"]
    return F.normalize(embeddings.float(), dim=-1)
