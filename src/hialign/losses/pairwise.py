"""Losses that judge pairs one by one: by a sigmoid, by a margin, or by what is equal on both sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import check_choice, full_precision
from .scores import (
    check_embeddings,
    check_equal,
    check_mask,
    check_offset,
    check_positives,
    check_reduction,
    check_sides,
    check_some,
    multiplier,
    one_number,
    own_columns,
    reduced,
    scaled,
    unit,
    wide,
)


def siglip(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    bias: float | Tensor = -10.0,
    offset: int = 0,
    positives: Tensor | None = None,
    same: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of every pair, summed over the keys: yes for key i + offset of row i, no for all others.

    Returns (): the mean or the sum over the rows; or (rows,) for ``reduction="none"``. Both directions are the same
    pairs, so images against texts is all of it.

    >>> images, texts = torch.eye(2), torch.eye(2)
    >>> round(siglip(images, texts, logit_scale=1.0, bias=0.0).item(), 4)  # log(1 + 1/e) + log(2)
    1.0064

    Args:
        queries: (rows, dim), of any length: rows are normalised here, as are the keys.
        keys: (columns, dim). Keys gathered from other processes come in as they are.
        temperature: divides the cosines; a float or a tensor of one element, which gets a gradient. 0.1 if there is
            no logit_scale.
        logit_scale: multiplies the cosines, instead: 1 / temperature.
        bias: is added to them, a float or a tensor of one element: at the start nearly all pairs are negatives.
        offset: our first row's place among the keys: rank * local batch size after a gather.
        positives: (rows, columns) bool, instead of key i + offset: all keys that are right.
        same: (rows, columns) bool, True where a key shows the query's own item: no pair, unless it is a positive.
        reduction: "mean", "sum" or "none". Under a sharded batch, the sums of all ranks add up to the whole.

    Source: Zhai et al. 2023, arXiv:2303.15343, sec. 3.2; open_clip, src/open_clip/loss.py, SigLipLoss.
    Differs: rows are normalised here; ``positives`` and ``same`` are ours.
    """
    right, wrong = _pairs("siglip", queries, keys, offset, positives, same)
    check_reduction("siglip", "queries", queries, reduction)
    scale = multiplier("siglip", temperature, logit_scale, default=0.1)
    with full_precision(queries):
        dtype = wide(queries, keys)
        scores = scaled(unit(queries, dtype), scale) @ unit(keys, dtype).T
        logits = scores + _checked_bias(bias, dtype)
        losses = -F.logsigmoid(torch.where(right, logits, -logits))
        if same is not None:
            losses = losses.masked_fill(~(right | wrong), 0.0)
        return reduced(losses.sum(dim=1), reduction)


def triplet(
    queries: Tensor,
    keys: Tensor,
    *,
    margin: float = 0.2,
    mining: str = "hard",
    offset: int = 0,
    positives: Tensor | None = None,
    same: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """How far a row's negatives come nearer than ``margin`` behind its positives, in cosines.

    Returns (): the mean or the sum over the rows; or (rows,) for ``reduction="none"``. One direction only: for both,
    add half of this and half of it with queries and keys swapped.

    >>> queries, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0], [4.0, 3.0], [1.0, 0.0]])
    >>> round(triplet(queries, keys, offset=1).item(), 4)  # .2 - .8 + max(.6, 1)
    0.4
    >>> round(triplet(queries, keys, offset=1, mining="all").item(), 4)  # (0 + .4) / 2
    0.2

    Args:
        queries: (rows, dim), of any length: rows are normalised here, as are the keys.
        keys: (columns, dim). Keys gathered from other processes come in as they are.
        margin: how much nearer a positive shall be than a negative.
        mining: "hard": the farthest positive against the nearest negative; "all": the mean over the row's positives
            of the mean over its negatives, those at rest included.
        offset: our first row's place among the keys: rank * local batch size after a gather.
        positives: (rows, columns) bool, instead of key i + offset: all keys that are right.
        same: (rows, columns) bool, True where a key shows the query's own item: no negative.
        reduction: "mean", "sum" or "none". Under a sharded batch, the sums of all ranks add up to the whole.

    Source: Hermans et al. 2017, arXiv:1703.07737, eq. 5 ("hard") and 6 ("all"); the cosine and the margin: Faghri et
    al. 2018, arXiv:1707.05612, sec. 3.
    Differs: a cosine, where Hermans et al. have a Euclidean distance; "all" is a mean, row by row, not a sum.
    """
    right, wrong = _pairs("triplet", queries, keys, offset, positives, same)
    if len(keys) < 2 or positives is not None or same is not None:
        check_some("triplet", wrong.sum(dim=1))
    one_number("triplet", "margin", margin, "Faghri et al. take 0.2")
    check_choice("triplet", "mining", mining, ("hard", "all"))
    check_reduction("triplet", "queries", queries, reduction)
    with full_precision(queries):
        dtype = wide(queries, keys)
        scores = unit(queries, dtype) @ unit(keys, dtype).T
        if mining == "all":
            losses = _all_triplets(scores, right, wrong, margin)
        else:
            farthest = scores.masked_fill(~right, float("inf")).amin(dim=1)
            nearest = scores.masked_fill(~wrong, float("-inf")).amax(dim=1)
            losses = F.relu(margin + nearest - farthest)
        return reduced(losses, reduction)


def contrastive_margin(
    first: Tensor, second: Tensor, similar: Tensor, *, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Half the squared distance of similar pairs, and half the square of what dissimilar ones lack to ``margin``.

    Returns (): the mean or the sum over the pairs; or (rows,) for ``reduction="none"``. Rows are taken as they are,
    at their length: normalise them first for a distance between directions.

    >>> first, second = torch.zeros(3, 2), torch.tensor([[0.3, 0.4], [0.3, 0.4], [3.0, 4.0]])
    >>> losses = contrastive_margin(first, second, torch.tensor([True, False, False]), reduction="none")
    >>> [round(loss, 4) for loss in losses.tolist()]  # .5**2 / 2, (1 - .5)**2 / 2, far enough
    [0.125, 0.125, 0.0]

    Args:
        first: (rows, dim).
        second: (rows, dim): row i is compared with row i.
        similar: (rows,) bool: which pairs belong together.
        margin: the distance at which a dissimilar pair is far enough.
        reduction: "mean", "sum" or "none".

    Source: Hadsell, Chopra and LeCun 2006, "Dimensionality Reduction by Learning an Invariant Mapping", eq. 4.
    Differs: a dissimilar pair of equal rows gets no gradient, since it has no direction to part in.
    """
    check_embeddings("contrastive_margin", {"first": first, "second": second})
    check_equal("contrastive_margin", "second", second, "first", first)
    if similar.dtype != torch.bool or similar.shape != (len(first),):
        raise ValueError(
            f"contrastive_margin: similar is {similar.dtype} {tuple(similar.shape)}, wanted torch.bool "
            f"{(len(first),)}; compare the pairs' ids, as in ids == other_ids"
        )
    one_number("contrastive_margin", "margin", margin, "it is a distance")
    check_reduction("contrastive_margin", "first", first, reduction)
    with full_precision(first):
        apart = first.to(wide(first, second)) - second.to(wide(first, second))
        lacking = F.relu(margin - torch.linalg.vector_norm(apart, dim=1))
        return reduced(torch.where(similar, apart.square().sum(dim=1), lacking.square()) / 2, reduction)


def cyclip(
    images: Tensor,
    texts: Tensor,
    *,
    all_images: Tensor | None = None,
    all_texts: Tensor | None = None,
    cross_weight: float = 0.25,
    within_weight: float = 0.25,
    reduction: str = "mean",
) -> Tensor:
    """What CyCLIP adds to ``symmetric_info_nce``: squared differences of cosines that should be equal.

    Returns (): the mean or the sum over the pairs; or (rows,) for ``reduction="none"``. Across: image i with text k
    against image k with text i. Within: image i with image k against text i with text k.

    >>> images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> cyclip(images, texts).item()  # across, image 1 with text 2 is 1, image 2 with text 1 is 0; within the same
    0.5

    Args:
        images: (rows, dim), of any length: rows are normalised here, as are the texts.
        texts: (rows, dim): row i belongs to image i.
        all_images: (columns, dim), the images of every rank, ``images`` among them; without it, ``images``.
        all_texts: the same of the texts; both or neither.
        cross_weight: multiplies the first, and
        within_weight: the second.
        reduction: "mean", "sum" or "none". Under a sharded batch, the sums of all ranks add up to the whole.

    Source: Goel et al. 2022, arXiv:2205.14459, sec. 2; goel-shashank/CyCLIP, src/train.py, get_loss.
    Differs: the code at f904c4f divides the sum over pairs by the cube of the rows, here it is divided by the rows.
    """
    check_embeddings("cyclip", {"images": images, "texts": texts, "all_images": all_images, "all_texts": all_texts})
    check_sides("cyclip", ("images", images, all_images), ("texts", texts, all_texts))
    every_image, every_text = images if all_images is None else all_images, texts if all_texts is None else all_texts
    check_reduction("cyclip", "images", images, reduction)
    with full_precision(images):
        dtype = wide(images, texts, all_images, all_texts)
        one, other, ones, others = (unit(rows, dtype) for rows in (images, texts, every_image, every_text))
        across = (one @ others.T - other @ ones.T).square().sum(dim=1)
        within = (one @ ones.T - other @ others.T).square().sum(dim=1)
        return reduced(cross_weight * across + within_weight * within, reduction)


def _pairs(
    loss: str, queries: Tensor, keys: Tensor, offset: int, positives: Tensor | None, same: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which pairs are right and which are wrong, each (rows, columns) bool."""
    check_embeddings(loss, {"queries": queries, "keys": keys})
    shape = (len(queries), len(keys))
    check_mask(loss, "positives", positives, shape)
    check_mask(loss, "same", same, shape)
    if positives is None:
        check_offset(loss, ("queries", queries), ("keys", keys), offset)
        positives = own_columns(*shape, offset, queries.device)
    else:
        check_positives(loss, positives)
    return positives, ~positives if same is None else ~(positives | same)


def _all_triplets(scores: Tensor, right: Tensor, wrong: Tensor, margin: float) -> Tensor:
    row, column = right.nonzero(as_tuple=True)  # one for each positive
    lacking = F.relu(margin + scores[row] - scores[row, column].unsqueeze(1)).masked_fill(~wrong[row], 0.0)
    each = lacking.sum(dim=1) / wrong.sum(dim=1)[row]
    return torch.zeros_like(scores[:, 0]).index_add(0, row, each / right.sum(dim=1)[row])


def _checked_bias(bias: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    if isinstance(bias, Tensor):
        if bias.shape not in ((), (1,)):
            raise ValueError(f"siglip: bias has shape {tuple(bias.shape)}, wanted () or (1,); pass one for all pairs")
        return bias.to(dtype)
    if not float("-inf") < bias < float("inf"):
        raise ValueError(f"siglip: bias={bias}, wanted a finite number; SigLIP begins with -10")
    return bias
