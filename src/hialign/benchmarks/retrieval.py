"""Who finds whom among images and texts, by the rules of the public CLIP benchmarks; numpy in, numbers out.

``Retrieval`` scores a file of embeddings or similarities, of any system; ``multi_caption``, ``paired`` and
``selection`` are to be imported where such arrays are at hand.

``hialign.evaluation.geometry`` measures the same of a model's held-out embeddings, in torch and in blocks, with the
level of chance beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np

from hialign.benchmarks.scores import Scores, numbers, shares

Kind = Literal["multi_caption", "paired", "selection"]
Arrays = Mapping[str, np.ndarray]
Found = dict[str, tuple[np.ndarray, np.ndarray]]  # a number -> what it is the mean of, and the unit that each is of
KS = (1, 5, 10)
SHAPES = {  # of images, of texts, of similarities
    "multi_caption": ("(images, dim)", "(texts, dim)", "(images, texts)"),
    "paired": ("(pairs, dim)", "(pairs, dim)", "(pairs, pairs)"),
    "selection": ("(sets, images, dim)", "(sets, captions, dim)", "(sets, images, captions)"),
}


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
    return _means(_multi_caption(_finite(similarities, 2), np.asarray(image_of_text), ks))


def _multi_caption(scores: np.ndarray, owner: np.ndarray, ks: Sequence[int]) -> Found:
    """Of each text, and of each image, whether it finds what it should among the first k."""
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
    searched = (("image", image_before, images, owner), ("text", text_before, texts, np.arange(images)))
    return {
        f"{name}_retrieval_recall@{k}": (before < k, units)
        for k in ks
        for name, before, candidates, units in searched
        if k <= candidates
    }


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
    ranks = _ranks(scores)
    return _means(_paired(ranks, ks)) | _medians(ranks)


def _ranks(scores: np.ndarray) -> dict[str, np.ndarray]:
    """The rank of each image's own text, and of each text's own image, 1 being the best."""
    if scores.shape[0] != scores.shape[1]:
        raise ValueError(f"paired: similarities have shape {scores.shape}, wanted as many texts as images")
    places = np.arange(len(scores))
    own = np.diagonal(scores)[:, None]
    before = places[None] < places[:, None]
    return {
        name: ((rows > own) | ((rows == own) & before)).sum(axis=1) + 1
        for name, rows in (("image_to_text", scores), ("text_to_image", scores.T))
    }


def _medians(ranks: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {f"{name}_median_rank": float(np.floor(np.median(one - 1)) + 1) for name, one in ranks.items()}


def _paired(ranks: Mapping[str, np.ndarray], ks: Sequence[int]) -> Found:
    """The ranks, and whether they are among the first k."""
    found: Found = {}
    for name, one in ranks.items():
        units = np.arange(len(one))
        found[f"{name}_mean_rank"] = one, units
        found |= {f"{name}_R@{k}": (one <= k, units) for k in ks}
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
    return _means(_selection(_finite(similarities, 3)))


def _selection(scores: np.ndarray) -> Found:
    """Of each set whether all choices are right."""
    sets, images, captions = scores.shape
    if images > captions or captions < 2:
        raise ValueError(f"selection: {images} images and {captions} captions a set, wanted no fewer captions, and 2")
    own = np.diagonal(scores, axis1=1, axis2=2)  # (sets, images)
    others = ~np.eye(images, captions, dtype=bool)
    text = np.all((own[:, :, None] > scores) | ~others, axis=(1, 2))
    if images == 1:
        return {"text_acc": (text, np.arange(sets))}
    image = np.all(((own[:, None, :] > scores[:, :, :images]) | ~others[:, :images]), axis=(1, 2))
    parts = {"text_acc": text, "image_acc": image, "acc": text & image}
    return {name: (part, np.arange(sets)) for name, part in parts.items()}


def _means(found: Found) -> dict[str, float]:
    return {name: float(values.mean()) for name, (values, _) in found.items()}


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


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Images and texts as embeddings or similarities in a numpy archive (.npz), of any system.

    The archive has the arrays ``images`` and ``texts``, whose cosines are taken, or ``similarities``; ``SHAPES`` tells
    theirs. For ``multi_caption`` it also has ``image_of_text``, (texts,): the row of the image that each describes.

    Args:
        kind: ``multi_caption``: several texts an image, as Flickr30k and COCO. ``paired``: one text each, the ranks as
            open_clip logs them. ``selection``: sets of images and captions, as Winoground and SugarCrepe. Each is
            described at the function of its name.
        ks: the lengths of the list that is searched.

    Source: as the function of the kind.
    Differs: as that.
    """

    kind: Kind = "multi_caption"
    ks: Sequence[int] = KS

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise ValueError(f"kind: got {self.kind!r}; wanted one of {', '.join(SHAPES)}")
        if not self.ks or any(k < 1 for k in self.ks):
            raise ValueError(f"ks: got {list(self.ks)}; wanted numbers from 1 up")

    @property
    def layout(self) -> str:
        """What the archive has to hold."""
        images, texts, similarities = SHAPES[self.kind]
        also = ", and image_of_text (texts,), whole numbers" if self.kind == "multi_caption" else ""
        return f"an .npz of images {images} and texts {texts}, or of similarities {similarities}{also}"

    def read(self, answers: str) -> dict[str, np.ndarray]:
        """The archive's arrays."""
        if not Path(answers).is_file():
            raise ValueError(f"{answers}: no such file; wanted {self.layout}")
        try:
            with np.load(answers, allow_pickle=False) as content:
                return {name: content[name] for name in content.files}
        except (AttributeError, BadZipFile, EOFError, TypeError, ValueError) as error:
            raise ValueError(f"{answers}: no archive of numbers ({error}); wanted {self.layout}") from error

    def score(self, answers: Arrays) -> Scores:
        """The numbers of ``kind``; an image with its texts, a pair or a set is a unit.

        Of ``paired`` the median ranks have no interval: they are no sums over units.
        """
        scores = self._similarities(answers)
        if self.kind == "paired":
            ranks = _ranks(scores)
            return _scored(_paired(ranks, self.ks), _medians(ranks))
        if self.kind == "selection":
            return _scored(_selection(scores), {})
        return _scored(_multi_caption(scores, self._array(answers, "image_of_text", "iu"), self.ks), {})

    def _similarities(self, answers: Arrays) -> np.ndarray:
        dimensions = SHAPES[self.kind][2].count(",") + 1
        if "similarities" in answers:
            return _finite(self._array(answers, "similarities"), dimensions)
        images, texts = (self._array(answers, name) for name in ("images", "texts"))
        if images.ndim != dimensions or texts.ndim != dimensions or images.shape[-1] != texts.shape[-1]:
            raise ValueError(f"images: shape {images.shape}, texts: shape {texts.shape}; wanted {self.layout}")
        return _finite(cosines(images, texts), dimensions)

    def _array(self, answers: Arrays, name: str, kinds: str = "iuf") -> np.ndarray:
        if name not in answers:
            raise ValueError(f"{name}: not among {', '.join(answers) or 'no arrays'}; wanted {self.layout}")
        if answers[name].dtype.kind not in kinds:
            raise ValueError(f"{name}: of type {answers[name].dtype}; wanted {self.layout}")
        return answers[name]


def _scored(found: Found, more: Mapping[str, float]) -> Scores:
    """The means of what was found, made of the units' sums, and ``more`` numbers behind them."""
    units: dict[str, dict[str, float]] = {}
    for name, (values, owner) in found.items():
        hits, of = np.bincount(owner, weights=values), np.bincount(owner)
        for unit, (part, whole) in enumerate(zip(hits.tolist(), of.tolist(), strict=True)):
            units.setdefault(str(unit), {}).update({f"{name}/hits": part, f"{name}/of": float(whole)})
    return Scores(numbers={**numbers(units, shares), **more}, units=units, statistic=shares)
