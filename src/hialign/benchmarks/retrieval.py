"""Who finds whom among images and texts, by the rules of the public CLIP benchmarks; numpy in, numbers out.

``hialign.evaluation.geometry`` measures the same of a model's held-out embeddings, in torch and in blocks, with the
level of chance beside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KS = (1, 5, 10)


def multi_caption(
    similarities: np.ndarray, image_of_text: Sequence[int], *, ks: Sequence[int] = KS
) -> dict[str, float]:
    """``image_retrieval_recall@k`` over the texts and ``text_retrieval_recall@k`` over the images; fractions.

    An image is found if one of its texts is among the first k; that is a rate of hits, not recall in the strict sense.
    A k beyond the number of candidates is left out. A wrong candidate as similar as the right one comes before it.

    Args:
        similarities: (images, texts).
        image_of_text: the row of the image that each text describes. Every image has a text.

    Source: Karpathy and Fei-Fei 2015, arXiv:1412.2306, section 4.1; code LAION-AI/CLIP_benchmark@48de38c,
    zeroshot_retrieval.py.
    Differs: ties, which theirs leaves to topk.
    """
    scores = _finite(similarities, 2)
    owner = np.asarray(image_of_text)
    images, texts = scores.shape
    if owner.shape != (texts,) or not np.array_equal(np.unique(owner), np.arange(images)):
        raise ValueError(
            f"multi_caption: image_of_text has {owner.size} entries on {np.unique(owner).size} images, wanted one for "
            f"each of {texts} texts, from 0 to {images - 1} and each of these at least once"
        )
    right = owner[None] == np.arange(images)[:, None]  # (images, texts)
    best = np.where(right, scores, -np.inf).max(axis=1)
    text_before = (~right & (scores >= best[:, None])).sum(axis=1)  # wrong texts before an image's first right one
    image_before = (~right & (scores >= scores[owner, np.arange(texts)])).sum(axis=0)
    found = {}
    for k in ks:
        for name, before, candidates in (("image", image_before, images), ("text", text_before, texts)):
            if k <= candidates:
                found[f"{name}_retrieval_recall@{k}"] = float((before < k).mean())
    return found


def paired(similarities: np.ndarray, *, ks: Sequence[int] = KS) -> dict[str, float]:
    """What open_clip logs of n images with one text each: mean and median ranks and ``R@k``, both ways.

    A rank is 1 and one more for each candidate that is more similar, or as similar and earlier. The median is rounded
    down.

    Args:
        similarities: (n, n), text i being that of image i.

    Source: code mlfoundations/open_clip, open_clip_train/metrics.py, get_clip_metrics.
    Differs: nothing.
    """
    scores = _finite(similarities, 2)
    if scores.shape[0] != scores.shape[1]:
        raise ValueError(f"paired: similarities have shape {scores.shape}, wanted as many texts as images")
    places = np.arange(len(scores))
    found = {}
    for name, rows in (("image_to_text", scores), ("text_to_image", scores.T)):
        own = rows[places, places][:, None]
        ranks = ((rows > own) | ((rows == own) & (places[None] < places[:, None]))).sum(axis=1)
        found[f"{name}_mean_rank"] = float(ranks.mean() + 1)
        found[f"{name}_median_rank"] = float(np.floor(np.median(ranks)) + 1)
        found |= {f"{name}_R@{k}": float((ranks < k).mean()) for k in ks}
    return found


def selection(similarities: np.ndarray) -> dict[str, float]:
    """``text_acc``, ``image_acc`` and ``acc`` of sets of images and captions that are easily confused; fractions.

    The share of sets in which every image is most similar to its own caption, every caption to its own image, and both.
    Equal similarities are no choice. With one image a set (SugarCrepe) there is ``text_acc`` alone.

    Args:
        similarities: (sets, images, captions), caption i being that of image i; captions beyond the images are wrong.

    Source: Thrush et al. 2022, arXiv:2204.03162 (Winoground), section 4; code LAION-AI/CLIP_benchmark@48de38c,
    image_caption_selection.py.
    Differs: ties, which theirs gives to the first.
    """
    scores = _finite(similarities, 3)
    _, images, captions = scores.shape
    if images > captions or captions < 2:
        raise ValueError(f"selection: {images} images and {captions} captions a set, wanted no fewer captions, and 2")
    own = np.diagonal(scores, axis1=1, axis2=2)  # (sets, images)
    others = ~np.eye(images, captions, dtype=bool)
    text = np.all((own[:, :, None] > scores) | ~others, axis=(1, 2))
    if images == 1:
        return {"text_acc": float(text.mean())}
    image = np.all(((own[:, None, :] > scores[:, :, :images]) | ~others[:, :images]), axis=(1, 2))
    return {"text_acc": float(text.mean()), "image_acc": float(image.mean()), "acc": float((text & image).mean())}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., n, m) cosines of the rows of ``a`` (..., n, dim) and ``b`` (..., m, dim), in float64."""
    found: np.ndarray = unit(a) @ np.swapaxes(unit(b), -1, -2)
    return found


def unit(rows: np.ndarray) -> np.ndarray:
    """(..., dim) in float64 with length one; zeros stay zero. A ValueError for NaN and infinity."""
    rows = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(f"embeddings of shape {rows.shape} hold NaN or infinity, wanted finite numbers")
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    found: np.ndarray = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return found


def _finite(similarities: np.ndarray, dimensions: int) -> np.ndarray:
    scores = np.asarray(similarities, dtype=np.float64)
    if scores.ndim != dimensions or not scores.size or not np.isfinite(scores).all():
        raise ValueError(
            f"similarities: got shape {scores.shape}{'' if np.isfinite(scores).all() else ' with NaN or infinity'}, "
            f"wanted {dimensions} dimensions, none of them 0, of finite numbers"
        )
    return scores
