"""The alignment level: an image's embedding against its caption's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hialign.batch import Batch, HallucinatedBatch, PairBatch
from hialign.distributed import gather
from hialign.losses import hacl, info_nce_floor, symmetric_info_nce
from hialign.objectives.result import Parts, Result

PAIRS = ("clip", "projector", "llm")


def check_pairs(pairs: Sequence[str]) -> tuple[str, ...]:
    """``pairs`` as they are; ``ValueError`` for a name that is none of ``PAIRS``, for none at all, or one twice."""
    if isinstance(pairs, str) or not pairs or not set(pairs) <= set(PAIRS) or len(set(pairs)) < len(pairs):
        raise ValueError(f"pairs: got {pairs!r}, wanted a list of one or more, each once, of {', '.join(PAIRS)}")
    return tuple(pairs)


class Contrastive:
    """InfoNCE in both directions, summed over pairs of embeddings of the same batch.

    ``clip``: the image tower against the CLIP text tower. ``projector``: the projected image tokens' mean against the
    mean of the caption's embeddings in the language model's input space. ``llm``: the language model's last hidden
    state of the image tokens against that of the caption, as HACL has it.

    The batch is one whole: its rows are each other's negatives, over all ranks too. What does not fit in memory is
    embedded in micro-batches, twice (``training.cached``). ``temperature`` is the model's, unless a fixed one is given.

    Source: Radford et al. 2021, arXiv:2103.00020, sec. 2.3 (``clip``); Jiang et al. 2024, arXiv:2312.06968 (``llm``).
    Differs: gradients are those of the full batch over all ranks.
    """

    batch_type: type[Batch] | Mapping[str, type[Batch]] = PairBatch
    whole_batch = True
    bounded = True

    def __init__(self, pairs: Sequence[str] = ("clip", "projector"), *, temperature: float | None = None) -> None:
        self.pairs = check_pairs(pairs)
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, wanted a number above 0, or null for the model's")
        self.temperature = temperature

    def __call__(self, parts: Parts, batch: Batch) -> Result:
        """The loss summed over this rank's rows, and their number."""
        return self.loss(parts, self.embed(parts, batch), batch.records)

    def embed(self, parts: Parts, batch: Batch) -> dict[str, Tensor]:
        """Both sides' embeddings (rows, dim) of every pair, as ``image/<pair>`` and ``text/<pair>``."""
        assert isinstance(batch, PairBatch)
        images = parts.image_embeddings(batch.pixel_values, self.pairs)
        texts = parts.text_embeddings(batch.caption, batch.clip_caption, self.pairs)
        return {
            **{f"image/{pair}": rows for pair, rows in images.items()},
            **{f"text/{pair}": rows for pair, rows in texts.items()},
        }

    def loss(self, parts: Parts, embeddings: Mapping[str, Tensor], records: Sequence[str]) -> Result:
        """The loss of what ``embed`` gives, of this rank's whole batch; ``records`` names its rows.

        Its numbers hold the ``floor``: no embeddings of this batch have a smaller loss. Where a record comes twice and
        is no negative of itself, the bound does not hold and 0 takes its place.
        """
        own = parts.temperature
        device, temperature = own.device, own if self.temperature is None else torch.full_like(own, self.temperature)
        same, alone = _same_image(records, device)
        losses = {pair: self._pair_loss(pair, embeddings, temperature, same) for pair in self.pairs}
        rows = torch.tensor(float(len(records)), device=device)
        numbers: dict[str, float | Tensor] = {}
        if same.shape[1] > 1:
            numbers["floor"] = len(self.pairs) * info_nce_floor(same.shape[1], temperature) * alone
        if len(losses) > 1:
            numbers |= {f"{pair}_loss": loss.detach() for pair, loss in losses.items()}
        return Result(torch.stack(list(losses.values())).sum() * rows, rows, numbers)

    def _pair_loss(self, pair: str, embeddings: Mapping[str, Tensor], temperature: Tensor, same: Tensor) -> Tensor:
        return _both_ways(embeddings[f"image/{pair}"], embeddings[f"text/{pair}"], temperature, same)


class Hacl(Contrastive):
    """``Contrastive`` in which each image's hallucinated caption is one negative more.

    ``form="paper"``: its own alone; ``"released"``: those of the whole batch over all ranks. The published pair is
    ``llm``.

    Source: Jiang et al. 2024, arXiv:2312.06968, sec. 3.3; code X-PLUG/mPLUG-HalOwl@63863fc, llava_llama.py.
    Differs: see ``losses.hacl``. The temperature is the released code's start, 0.07, which is constant there too. There
    is no queue of earlier batches, of which the paper has 16,384; the batch over all ranks stands for it. Heads are as
    wide as the model's other ones, there a quarter of the language model's width.
    """

    batch_type: type[Batch] | Mapping[str, type[Batch]] = HallucinatedBatch

    def __init__(
        self, pairs: Sequence[str] = ("llm",), *, form: str = "paper", temperature: float | None = 0.07
    ) -> None:
        super().__init__(pairs, temperature=temperature)
        if form not in ("paper", "released"):
            raise ValueError(f"form: got {form!r}, wanted 'paper' or 'released'")
        self.form = form

    def embed(self, parts: Parts, batch: Batch) -> dict[str, Tensor]:
        """As there, and ``hallucinated/<pair>``."""
        assert isinstance(batch, HallucinatedBatch)
        wrong = parts.text_embeddings(batch.hallucinated, batch.clip_hallucinated, self.pairs)
        return super().embed(parts, batch) | {f"hallucinated/{pair}": rows for pair, rows in wrong.items()}

    def _pair_loss(self, pair: str, embeddings: Mapping[str, Tensor], temperature: Tensor, same: Tensor) -> Tensor:
        images, texts, wrong = (_wide(embeddings[f"{side}/{pair}"]) for side in ("image", "text", "hallucinated"))
        all_images, offset = gather(images)
        return hacl(
            images,
            texts,
            wrong,
            form=self.form,
            all_images=all_images,
            all_captions=gather(texts)[0],
            all_hallucinated=gather(wrong)[0] if self.form == "released" else None,
            offset=offset,
            temperature=temperature,
            same=same,
        )


def _both_ways(images: Tensor, texts: Tensor, temperature: Tensor, same: Tensor) -> Tensor:
    images, texts = _wide(images), _wide(texts)
    all_images, offset = gather(images)
    all_texts, _ = gather(texts)
    return symmetric_info_nce(
        images, texts, all_images=all_images, all_texts=all_texts, offset=offset, temperature=temperature, same=same
    )


def _wide(rows: Tensor) -> Tensor:
    """In full precision, or ranks would add up their gradients in bfloat16."""
    return rows if rows.dtype == torch.float64 else rows.float()


def _same_image(records: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, all ranks' rows): whether both show the same record, as where a batch runs into the next epoch.

    Also, as 1 or 0, whether every record of all ranks is there once.
    """
    digests = [hashlib.blake2b(record.encode(), digest_size=8).digest() for record in records]
    keys = torch.tensor([int.from_bytes(d, signed=True) for d in digests], device=device)
    all_keys, _ = gather(keys)
    ordered = all_keys.sort().values
    return keys.unsqueeze(1) == all_keys, (ordered[1:] != ordered[:-1]).all().double()
