"""What two sets of embeddings look like: who finds whom, how far apart they lie, how much room they fill.

Every function normalises rows to length one and computes in float64. The numbers are read, not trained on, and
rounding must not decide between candidates that are equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TIE = 1e-12  # cosines closer than this are equal: far above float64's rounding, far below what float32 can tell apart


def retrieval(
    images: Tensor,
    texts: Tensor,
    image_of_text: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 4096,
) -> dict[str, float]:
    """Recall, its chance level and the median rank, from images to texts and from texts to images.

    Keys: ``image_to_text/`` and ``text_to_image/``, each with ``recall@k`` and ``chance@k`` (fractions, not percent)
    and ``median_rank`` (1 is best; the middle two are averaged). A k beyond a direction's number of candidates is
    left out of that direction, so the keys say which were measured. ``chance@k`` is what a random order of
    the candidates scores on average, exactly.

    An image is found if any one of its texts is. Ties count as lost: a wrong candidate with the right one's score
    is taken to come first. Otherwise a model that maps all inputs to one point would find everything.

    Args:
        images: (n, dim).
        texts: (m, dim).
        image_of_text: (m,), int64: the row of the image that each text describes. Every image has a text.
        ks: the lengths of the list that is searched.
        chunk: rows and columns of the largest block of scores that is held at once.

    Source: Karpathy & Fei-Fei 2015, arXiv:1412.2306, section 4.1, for the protocol with several texts per image.
    Differs: ties, which implementations commonly break by position in the file; the chance level.
    """
    _check_pairs(images, texts, image_of_text)
    if any(k < 1 for k in ks):
        raise ValueError(f"retrieval: ks={tuple(ks)}, wanted numbers from 1 up; leave out the others")
    images, texts = _unit(images, "images"), _unit(texts, "texts")
    image_of_text = image_of_text.to(texts.device)
    captions = torch.bincount(image_of_text, minlength=len(images))  # (n,)

    right = torch.cat([(texts[i] * images[image_of_text[i]]).sum(-1) for i in _slices(len(texts), chunk)])  # (m,)
    best = right.new_full((len(images),), -math.inf).scatter_reduce(0, image_of_text, right, "amax")  # (n,)
    text_ranks, image_ranks = torch.ones_like(image_of_text), torch.ones_like(captions)
    for i in _slices(len(texts), chunk):
        for j in _slices(len(images), chunk):
            scores = texts[i] @ images[j].T
            wrong = image_of_text[i, None] != torch.arange(len(images), device=texts.device)[j]
            text_ranks[i] += (wrong & (scores >= right[i, None] - TIE)).sum(1)
            image_ranks[j] += (wrong & (scores >= best[j] - TIE)).sum(0)

    n, m = len(images), len(texts)
    results = {}
    for direction, ranks, candidates in (("image_to_text", image_ranks, m), ("text_to_image", text_ranks, n)):
        results[f"{direction}/median_rank"] = _median(ranks)
        for k in ks:
            if k <= candidates:
                results[f"{direction}/recall@{k}"] = (ranks <= k).double().mean().item()
                found = captions.tolist() if direction == "image_to_text" else [1]
                results[f"{direction}/chance@{k}"] = _chance(found, candidates, k)
    return results


def modality_gap(a: Tensor, b: Tensor) -> float:
    """Distance between the centroids of a (n, dim) and b (m, dim): 0 where the two clouds share a centre, at most 2.

    Source: Liang et al. 2022, arXiv:2203.02053.
    Differs: the length of their gap vector, not the vector.
    """
    _check_widths("modality_gap", a, b)
    return float((_unit(a, "a").mean(0) - _unit(b, "b").mean(0)).norm())


def centred_gap(a: Tensor, b: Tensor) -> float:
    """Mean distance of row i of a from row i of b, both (pairs, dim), once each cloud's centroid is taken off it.

    0 where one cloud is the other one moved as a whole. ``modality_gap`` is what such a move can close, this is what is
    left after it.

    Source: Liang et al. 2022, arXiv:2203.02053, for the centroids.
    Differs: theirs is the distance between the centroids; this is the rest.
    """
    _check_paired("centred_gap", a, b)
    a, b = _unit(a, "a"), _unit(b, "b")
    return float(((a - a.mean(0)) - (b - b.mean(0))).norm(dim=-1).mean())


def alignment(a: Tensor, b: Tensor) -> float:
    """Mean squared distance of row i of a from row i of b, both (pairs, dim): 0 where pairs coincide, at most 4.

    Source: Wang & Isola 2020, arXiv:2005.10242, section 4.1.1, with their alpha = 2.
    Differs: nothing.
    """
    _check_paired("alignment", a, b)
    return float((_unit(a, "a") - _unit(b, "b")).square().sum(-1).mean())


def uniformity(a: Tensor, t: float = 2.0, *, chunk: int = 4096) -> float:
    """Log of the mean of exp(-t * squared distance) over all pairs of different rows of a (n, dim).

    From -4 t upwards; 0 where all rows are one point. ``chunk`` bounds the block of distances held at once.

    Source: Wang & Isola 2020, arXiv:2005.10242, section 4.1.2.
    Differs: nothing.
    """
    if len(a) < 2:
        raise ValueError(f"uniformity: a has {len(a)} rows, wanted at least two; pass a larger sample")
    a = _unit(a, "a")
    squares, places = a.square().sum(-1), torch.arange(len(a), device=a.device)
    blocks = []
    for i in _slices(len(a), chunk):
        for j in _slices(len(a), chunk):
            if j.stop <= i.start:
                continue  # each pair once: the distance is symmetric
            distances = squares[i, None] + squares[j] - 2 * a[i] @ a[j].T
            pairs = places[i, None] < places[j]
            blocks.append((-t * distances).masked_fill(~pairs, -math.inf).flatten().logsumexp(0))
    return float(torch.stack(blocks).logsumexp(0)) - math.log(math.comb(len(a), 2))


def effective_rank(a: Tensor) -> float:
    """How many directions the rows of a (n, dim) fill: 1 for a single line, dim for all evenly, 0 if a is zero.

    The exponential of the entropy of the singular values divided by their sum.

    Source: Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    Differs: rows have length one. They are not centred, so a common offset, which cosines do see, counts as a
    direction.
    """
    values = torch.linalg.svdvals(_unit(a, "a"))
    if not values.any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


def summary(images: Tensor, texts: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """All of this file's numbers: ``retrieval``'s keys, ``modality_gap``, ``centred_gap``, ``alignment``, and for each
    of ``image/`` and ``text/`` its ``uniformity`` and ``effective_rank``.

    Args: images (n, dim), texts (m, dim) and image_of_text (m,), int64, as in ``retrieval``. The pairs of
    ``centred_gap`` and ``alignment`` are each text with its image, so an image with many texts weighs more there.

    Source: as in each function.
    Differs: nothing.
    """
    paired = images[image_of_text.to(images.device)]
    return {
        **retrieval(images, texts, image_of_text),
        "modality_gap": modality_gap(images, texts),
        "centred_gap": centred_gap(paired, texts),
        "alignment": alignment(paired, texts),
        "image/uniformity": uniformity(images),
        "text/uniformity": uniformity(texts),
        "image/effective_rank": effective_rank(images),
        "text/effective_rank": effective_rank(texts),
    }


def _unit(rows: Tensor, name: str) -> Tensor:
    """(n, dim) in float64 with rows of length one; a row of zeros stays zero."""
    if rows.dim() != 2 or 0 in rows.shape:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}, wanted (rows, dim), none of them 0; pool tokens first")
    # MPS has no float64.
    rows = rows.detach().to("cpu" if rows.device.type == "mps" else rows.device).double()
    bad = int((~rows.isfinite()).any(-1).sum())
    if bad:
        raise ValueError(
            f"{name} has NaN or infinity in {bad} of {len(rows)} rows, wanted finite numbers; has it diverged?"
        )
    return F.normalize(rows, dim=-1)


def _check_widths(function: str, a: Tensor, b: Tensor, names: tuple[str, str] = ("a", "b")) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{function}: {names[0]} {tuple(a.shape)} and {names[1]} {tuple(b.shape)} do not fit; wanted two sets of "
            "rows of one width: use the embeddings after projection"
        )


def _check_paired(function: str, a: Tensor, b: Tensor) -> None:
    _check_widths(function, a, b)
    if len(a) != len(b):
        raise ValueError(f"{function}: a has {len(a)} rows and b {len(b)}, wanted pairs; index one by the other first")


def _check_pairs(images: Tensor, texts: Tensor, image_of_text: Tensor) -> None:
    _check_widths("retrieval", images, texts, ("images", "texts"))
    if image_of_text.dtype != torch.int64 or image_of_text.shape != texts.shape[:1]:
        raise ValueError(
            f"retrieval: image_of_text is {image_of_text.dtype} {tuple(image_of_text.shape)}, wanted torch.int64 "
            f"({len(texts)},); give one image row for each text"
        )
    named = set(image_of_text.tolist())
    outside = sorted(named - set(range(len(images))))
    if outside:
        raise ValueError(
            f"retrieval: image_of_text names image {outside[0]}, wanted 0 to {len(images) - 1}; "
            "count rows of images, not dataset ids"
        )
    if len(named) < len(images):
        lonely = min(set(range(len(images))) - named)
        raise ValueError(
            f"retrieval: image_of_text names {len(named)} of {len(images)} images (not {lonely}), wanted a text for "
            "each; drop images that have none"
        )


def _slices(length: int, chunk: int) -> Iterator[slice]:
    """Slices that cover ``range(length)`` in steps of ``chunk``."""
    if chunk < 1:
        raise ValueError(f"chunk={chunk}, wanted 1 or more; leave it out for the default")
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def _median(ranks: Tensor) -> float:
    """The median, with the middle two averaged, which ``Tensor.median`` does not do."""
    ordered = ranks.sort().values
    return float(ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2


def _chance(found: Sequence[int], candidates: int, k: int) -> float:
    """Mean over ``found`` of the chance that k of the candidates, drawn at random, hold one of c right ones."""
    total = math.comb(candidates, k)
    missed = sum(times * (math.comb(candidates - c, k) / total) for c, times in Counter(found).items())
    return 1 - missed / len(found)
