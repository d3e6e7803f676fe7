"""Softmax losses that pull matching rows of two sets of embeddings together and push the others apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import check_choice, full_precision
from .scores import (
    check_embeddings,
    check_equal,
    check_mask,
    check_negatives,
    check_offset,
    check_positives,
    check_reduction,
    check_sides,
    check_some,
    multiplier,
    own_columns,
    reduced,
    scaled,
    unit,
    wide,
)


def info_nce(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    offset: int = 0,
    negatives: Tensor | None = None,
    queue: Tensor | None = None,
    positives: Tensor | None = None,
    same: Tensor | None = None,
    label_smoothing: float = 0.0,
    decoupled: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of each query against all keys, where row i's positive is key i + offset.

    Returns (): the mean or the sum over the rows; or (rows,) for ``reduction="none"``. One direction only:
    CLIP's loss is ``symmetric_info_nce``, half of this plus half of it with queries and keys swapped.

    >>> queries, keys = torch.eye(3), torch.eye(3)
    >>> round(info_nce(queries, keys, temperature=1.0).item(), 4)  # log(e + 2) - 1
    0.5514
    >>> photo = torch.tensor([7, 7, 8])  # two captions of one photo: both are positives
    >>> round(info_nce(queries, keys, temperature=1.0, positives=photo[:, None] == photo[None, :]).item(), 4)
    0.5193

    Args:
        queries: (rows, dim), of any length: rows are normalised here, as are all that follow.
        keys: (columns, dim). Keys gathered from other processes come in as they are; columns without a query
            are further negatives.
        temperature: divides the cosines; a float or a tensor of one element, which gets a gradient. A tensor's
            sign is not checked, because reading it would wait for the device. 0.07 if there is no logit_scale.
        logit_scale: multiplies the cosines, instead: 1 / temperature (CLIP's parameter of this name is the log).
        offset: our first row's place among the keys: rank * local batch size after a gather.
        negatives: further keys that are no row's positive: (n, dim) for the whole batch, or (rows, n, dim) with
            each row's own.
        queue: (n, dim), as ``negatives``, without a gradient: keys of earlier batches.
        positives: (rows, columns) bool, instead of key i + offset (offset is not read then): several keys can be
            right. Each is scored against itself and the negatives, not against the row's other positives; a row's
            loss is the mean over its positives. Checking that every row has one waits for the device.
        same: (rows, columns) bool, True where a key shows the query's own item (an image that is twice in the
            batch). Such a key is no negative: it leaves the denominator, unless it is the row's positive.
        label_smoothing: this share of the target is spread evenly over all that is in the denominator.
        decoupled: the positive is not in the denominator, as formulas print it that sum over negatives only:
            -log(exp(s_positive) / sum over negatives of exp(s)). Such a loss has no lower bound of zero.
        reduction: "mean", "sum" or "none". Under a sharded batch, the sums of all ranks add up to the whole.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4; ``decoupled``: Yeh et al. 2021, arXiv:2110.06848,
    sec. 3; ``positives``: the sum outside the log, as in Khosla et al. 2020, arXiv:2004.11362, eq. 2; ``queue``: He et
    al. 2019, arXiv:1911.05722, sec. 3.
    Differs: the score is a cosine over a temperature (as in CLIP, arXiv:2103.00020), not a bilinear form;
    ``same`` is ours; Khosla et al. keep a row's other positives in the denominator; there is no momentum encoder.
    """
    check_embeddings("info_nce", {"queries": queries, "keys": keys, "queue": queue})
    check_negatives("info_nce", "negatives", negatives, queries)
    choice = _Choice(offset, positives, same, label_smoothing, decoupled)
    choice.check("info_nce", ("queries", queries), ("keys", keys))
    check_reduction("info_nce", "queries", queries, reduction)
    scale = multiplier("info_nce", temperature, logit_scale)
    with full_precision(queries):
        dtype = wide(queries, keys, negatives, queue)
        lines = scaled(unit(queries, dtype), scale)
        scores = _beside(lines @ unit(keys, dtype).T, lines, negatives, queue)
        return reduced(_losses("info_nce", scores, choice), reduction)


def symmetric_info_nce(
    images: Tensor,
    texts: Tensor,
    *,
    all_images: Tensor | None = None,
    all_texts: Tensor | None = None,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    offset: int = 0,
    image_negatives: Tensor | None = None,
    text_negatives: Tensor | None = None,
    image_queue: Tensor | None = None,
    text_queue: Tensor | None = None,
    positives: Tensor | None = None,
    same: Tensor | None = None,
    label_smoothing: float = 0.0,
    decoupled: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Half of ``info_nce`` from images to texts plus half of it from texts to images: CLIP's loss.

    Returns (): the mean or the sum over the pairs; or (rows,) for ``reduction="none"``. Without gathered rows both
    directions are read off one product.

    >>> images, texts = torch.eye(3), torch.eye(3)
    >>> round(symmetric_info_nce(images, texts, logit_scale=2.0).item(), 4)  # log(e**2 + 2) - 2
    0.2395

    Args:
        images: (rows, dim).
        texts: (rows, dim): row i belongs to image i.
        all_images: (columns, dim), the images of every rank, ``images`` among them; without it, ``images``.
        all_texts: the same of the texts; both or neither.
        temperature: as in ``info_nce``, and so are logit_scale, label_smoothing, decoupled and reduction.
        offset: our first row's place among all rows.
        image_negatives: (n, dim) or (rows, n, dim): further images that no text belongs to.
        text_negatives: the same of texts that belong to no image.
        image_queue: (n, dim), images of earlier batches; they get no gradient.
        text_queue: the same of texts.
        positives: (rows, columns) bool over the pairs, for both directions: row i's item against all items'.
        same: as ``positives``: pairs whose item is one, which are no negatives of each other.

    Source: Radford et al. 2021, arXiv:2103.00020, fig. 3; open_clip, src/open_clip/loss.py, ClipLoss.
    Differs: rows are normalised here; under gathered rows each rank returns its own rows' loss, and gradients of the
    ranks add up to those of the whole batch.
    """
    scale = multiplier("symmetric_info_nce", temperature, logit_scale)
    choice = _Choice(offset, positives, same, label_smoothing, decoupled)
    one = _Side("images", images, all_images, image_negatives, image_queue)
    other = _Side("texts", texts, all_texts, text_negatives, text_queue)
    return _both_ways("symmetric_info_nce", one, other, scale, choice, reduction)


def hacl(
    images: Tensor,
    captions: Tensor,
    hallucinated: Tensor | None = None,
    *,
    form: str = "paper",
    all_images: Tensor | None = None,
    all_captions: Tensor | None = None,
    all_hallucinated: Tensor | None = None,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    offset: int = 0,
    image_queue: Tensor | None = None,
    caption_queue: Tensor | None = None,
    same: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``symmetric_info_nce`` in which hallucinated captions are further negatives of the images.

    Returns (): the mean or the sum over the pairs; or (rows,) for ``reduction="none"``. From captions to images
    nothing is added: a hallucinated caption is never a query.

    >>> images, captions, hallucinated = torch.eye(3), torch.eye(3), torch.eye(3).roll(1, 0)
    >>> round(hacl(images, captions, hallucinated, temperature=1.0).item(), 4)  # (log(e + 3) + log(e + 2)) / 2 - 1
    0.6476
    >>> round(hacl(images, captions, hallucinated, temperature=1.0, form="released").item(), 4)
    0.898

    Args:
        images: (rows, dim).
        captions: (rows, dim): row i describes image i.
        hallucinated: (rows, dim): row i describes image i, and not truly. Without it nothing is added at all.
        form: "paper": an image meets its own hallucinated caption alone; "released": those of the whole batch.
        all_images: (columns, dim), the images of every rank, ``images`` among them; without it, ``images``.
        all_captions: the same of the captions; both or neither.
        all_hallucinated: the same of the hallucinated captions, which "released" alone looks at.
        temperature: as in ``info_nce``, and so are logit_scale and reduction.
        offset: our first row's place among all rows.
        image_queue: (n, dim), images of earlier batches; they get no gradient.
        caption_queue: the same of captions.
        same: (rows, columns) bool over the pairs: pairs whose item is one, which are no negatives of each other.

    Source: Jiang et al. 2024, arXiv:2312.06968, sec. 3.3; X-PLUG/mPLUG-HalOwl@63863fc,
    hacl/llava/model/language_model/llava_llama.py.
    Differs: the paper names neither similarity nor temperature: both are the released code's. There, hallucinated
    captions count only without queue and gather, and gathered rows have their positives in the first rank's columns
    on every rank; here all three go together and the positive is column i + offset.
    """
    named = {"hallucinated": hallucinated, "all_hallucinated": all_hallucinated}
    check_embeddings("hacl", {"images": images, "captions": captions, **named})
    check_choice("hacl", "form", form, ("paper", "released"))
    negatives = None
    if hallucinated is not None:
        check_equal("hacl", "hallucinated", hallucinated, "images", images)
        every = hallucinated if all_hallucinated is None else all_hallucinated
        negatives = hallucinated[:, None] if form == "paper" else every
    elif all_hallucinated is not None:
        raise ValueError("hacl: all_hallucinated is given without hallucinated, wanted both; pass this rank's own too")
    scale = multiplier("hacl", temperature, logit_scale)
    one = _Side("images", images, all_images, None, image_queue)
    other = _Side("captions", captions, all_captions, negatives, caption_queue)
    return _both_ways("hacl", one, other, scale, _Choice(offset, None, same, 0.0, False), reduction)


@dataclass(frozen=True)
class _Choice:
    """Which columns are right, which count, and how: what ``info_nce`` says of it, checked."""

    offset: int
    positives: Tensor | None
    same: Tensor | None
    label_smoothing: float
    decoupled: bool

    def check(self, loss: str, rows: tuple[str, Tensor], columns: tuple[str, Tensor]) -> None:
        """``ValueError`` if it does not fit these rows and columns."""
        shape = (len(rows[1]), len(columns[1]))
        check_mask(loss, "positives", self.positives, shape)
        check_mask(loss, "same", self.same, shape)
        if self.positives is None:
            check_offset(loss, rows, columns, self.offset)
        else:
            check_positives(loss, self.positives)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"{loss}: label_smoothing={self.label_smoothing}, wanted 0 <= it < 1; CLIP's is 0")
        if self.decoupled and self.label_smoothing:
            raise ValueError(
                f"{loss}: label_smoothing={self.label_smoothing} with decoupled, wanted one of them: the decoupled "
                "form is no distribution over the keys whose target could be smoothed; leave one out"
            )


@dataclass(frozen=True)
class _Side:
    """One of the two kinds of embeddings, and what the other kind's rows meet beside it."""

    name: str
    rows: Tensor  # (rows, dim)
    gathered: Tensor | None  # (columns, dim)
    negatives: Tensor | None  # (n, dim) or (rows, n, dim)
    queue: Tensor | None  # (n, dim)

    @property
    def every(self) -> Tensor:
        """The rows of all ranks."""
        return self.rows if self.gathered is None else self.gathered

    @property
    def named(self) -> dict[str, Tensor | None]:
        """All that is (some, dim), by the name that the caller knows it by."""
        return {self.name: self.rows, f"all_{self.name}": self.gathered, f"{self.name[:-1]}_queue": self.queue}

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All embeddings."""
        return self.rows, self.gathered, self.negatives, self.queue


def _check_sides(loss: str, one: _Side, other: _Side) -> None:
    check_embeddings(loss, one.named | other.named)
    check_sides(loss, (one.name, one.rows, one.gathered), (other.name, other.rows, other.gathered))
    for side, partner in ((one, other), (other, one)):
        check_negatives(loss, f"{side.name[:-1]}_negatives", side.negatives, partner.rows)


def _both_ways(loss: str, one: _Side, other: _Side, scale: float | Tensor, choice: _Choice, reduction: str) -> Tensor:
    _check_sides(loss, one, other)
    columns = other.name if other.gathered is None else f"all_{other.name}"
    choice.check(loss, (one.name, one.rows), (columns, other.every))
    check_reduction(loss, one.name, one.rows, reduction)
    with full_precision(one.rows):
        dtype = wide(*one.tensors, *other.tensors)
        first, second = unit(one.rows, dtype), unit(other.rows, dtype)
        lines, other_lines = scaled(first, scale), scaled(second, scale)
        if one.every is one.rows and other.every is other.rows:
            scores = lines @ second.T  # (rows, rows), which serves both directions
            back = scores.T
        else:
            scores, back = lines @ unit(other.every, dtype).T, other_lines @ unit(one.every, dtype).T
        losses = _losses(loss, _beside(scores, lines, other.negatives, other.queue), choice)
        other_losses = _losses(loss, _beside(back, other_lines, one.negatives, one.queue), choice)
        return reduced((losses + other_losses) / 2, reduction)


def _beside(scores: Tensor, lines: Tensor, negatives: Tensor | None, queue: Tensor | None) -> Tensor:
    """The scores with those of further negatives to their right; ``lines`` are the queries, scaled."""
    parts = [scores]
    if negatives is not None:
        further = unit(negatives, scores.dtype)
        each = (further @ lines.unsqueeze(2)).squeeze(2) if further.dim() == 3 else lines @ further.T
        parts.append(each)
    if queue is not None:
        parts.append(lines @ unit(queue.detach(), scores.dtype).T)
    return torch.cat(parts, dim=1) if len(parts) > 1 else scores


def _losses(loss: str, scores: Tensor, choice: _Choice) -> Tensor:
    """(rows,): each row's loss from its scores; columns behind those of the masks are negatives."""
    rows, columns = scores.shape
    if choice.positives is not None or choice.decoupled or (choice.same is not None and choice.label_smoothing):
        return _losses_of_pairs(loss, scores, choice)
    own = torch.arange(rows, device=scores.device) + choice.offset
    if choice.same is not None:
        same = F.pad(choice.same, (0, columns - choice.same.shape[1]))
        scores = scores.masked_fill(same.scatter(1, own[:, None], False), float("-inf"))
    return F.cross_entropy(scores, own, reduction="none", label_smoothing=choice.label_smoothing)


def _losses_of_pairs(loss: str, scores: Tensor, choice: _Choice) -> Tensor:
    """As ``_losses``, one positive at a time: its score against the log of the sum over what is no positive."""
    rows, columns = scores.shape
    if choice.positives is None:
        row = torch.arange(rows, device=scores.device)
        column = row + choice.offset
        own = own_columns(rows, columns, choice.offset, scores.device)
    else:
        row, column = choice.positives.nonzero(as_tuple=True)
        own = F.pad(choice.positives, (0, columns - choice.positives.shape[1]))
    hidden = own if choice.same is None else own | F.pad(choice.same, (0, columns - choice.same.shape[1]))
    negatives = (~hidden).sum(dim=1)
    if choice.decoupled and (columns < 2 or choice.same is not None or choice.positives is not None):
        check_some(loss, negatives)
    # the smallest number, since sums of minus infinity alone have no gradient
    rest = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).logsumexp(dim=1)[row]
    score = scores[row, column]  # (positives,)
    each = rest - score if choice.decoupled else -F.logsigmoid(score - rest)
    if choice.label_smoothing:
        others = scores.masked_fill(hidden, 0.0).sum(dim=1)[row]
        each = each + choice.label_smoothing * (score - (score + others) / (1 + negatives[row]))
    return torch.zeros_like(scores[:, 0]).index_add(0, row, each / own.sum(dim=1)[row])
