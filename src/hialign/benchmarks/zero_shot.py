"""Zero-shot classification: a picture's class is the one whose prompts lie nearest to it.

``ZeroShot`` scores the nearest classes' names; ``accuracies`` and ``average_precisions`` are to be imported where whole
tables of similarities are at hand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from hialign.benchmarks.answers import check_ids, join, read_entries, read_json
from hialign.benchmarks.retrieval import cosines, unit
from hialign.benchmarks.scores import Answers, Columns, Scores, numbers, share

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
TOP = 5
LISTS = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}  # open_clip's
LAYOUT = "a folder for each class with its images, as ImageNet's validation set sorted by torchvision: <class>/<image>"


def class_weights(texts: np.ndarray) -> np.ndarray:
    """(classes, dim): each class's prompts at length one, their mean at length one.

    Args:
        texts: (classes, templates, dim), the prompts' embeddings.

    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.4; code LAION-AI/CLIP_benchmark@48de38c,
    zeroshot_classification.py.
    Differs: nothing.
    """
    return unit(unit(texts).mean(axis=1))


def ranked(images: np.ndarray, texts: np.ndarray, classes: Sequence[str], *, top: int = TOP) -> list[str]:
    """Of each image the names of its nearest classes, the nearest first, one a line: what ``ZeroShot`` reads.

    Args:
        images: (n, dim), embeddings.
        texts: (classes, templates, dim), as ``class_weights`` takes them.
        classes: their names.
    """
    if len(classes) != len(texts):
        raise ValueError(f"ranked: {len(classes)} names to {len(texts)} classes' prompts; wanted as many")
    order = np.argsort(-cosines(images, class_weights(texts)), axis=1, kind="stable")[:, :top]
    return ["\n".join(classes[place] for place in row) for row in order]


def accuracies(scores: np.ndarray, labels: Sequence[int]) -> dict[str, float]:
    """``acc1``, ``acc5`` and ``mean_per_class_recall`` of scores (n, classes); fractions.

    The latter is over the classes that have an image. Of equal scores the earlier class comes first. With fewer than
    five classes there is no ``acc5``.

    Source: code LAION-AI/CLIP_benchmark@48de38c, zeroshot_classification.py.
    Differs: ``acc5`` of fewer than five classes is not a number there.
    """
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"accuracies: scores {scores.shape}, labels {truth.shape}; wanted finite (n, classes), (n,)")
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise ValueError(f"accuracies: labels from {truth.min()} to {truth.max()}, wanted 0 to {scores.shape[1] - 1}")
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = _hits(order, truth, scores.shape[1])
    return {name: float(one.mean()) for name, one in hits.items()} | _per_class(hits["acc1"], truth)


def _hits(order: np.ndarray, truth: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Whether the true class is the first of an image's nearest ones, or with enough classes among the first five.

    Args:
        order: (n, at least one), the nearest classes' places, the nearest first.
        truth: (n,).
    """
    right = order[:, :TOP] == truth[:, None]
    return {"acc1": right[:, 0]} | ({"acc5": right.any(axis=1)} if classes >= TOP else {})


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(classes,): the mean precision at each image that holds a class, images being sorted by its score.

    0 for a class that no image holds. The mean over the classes is CLIP_benchmark's ``mean_average_precision``.

    Args:
        scores: (n, classes).
        targets: (n, classes), 1 where an image holds the class and 0 elsewhere.

    Source: Everingham et al. 2010, "The PASCAL visual object classes challenge", without interpolation; code as above.
    Differs: nothing.
    """
    scores, held = np.asarray(scores, dtype=np.float64), np.asarray(targets).astype(bool)
    if scores.shape != held.shape or scores.ndim != 2:
        raise ValueError(f"average_precisions: scores {scores.shape} and targets {held.shape}, wanted one (n, classes)")
    order = np.argsort(-scores, axis=0, kind="stable")
    sorted_ = np.take_along_axis(held, order, axis=0)
    precision = np.cumsum(sorted_, axis=0) / np.arange(1, len(scores) + 1)[:, None]
    return share((precision * sorted_).sum(axis=0), sorted_.sum(axis=0))


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """``acc1`` and ``acc5``, fractions."""
    return {name: share(sums[name], sums["images"]) for name in ("acc1", "acc5") if name in sums}


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Images in folders by class, and the prompts that stand for the classes.

    Nothing is asked: an answer holds the names of the nearest classes' folders, the nearest first, one a line;
    ``ranked`` makes it of embeddings.

    Args:
        root: the folder with a folder for each class.
        names: how a class is called in prompts: ``folders``, ``imagenet`` (open_clip's names, for 1,000 folders sorted
            by name) or a json file of {folder: name}.
        templates: prompts with ``{}`` for the name, or ``openai`` or ``simple``, open_clip's 80 or 7 for ImageNet.

    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1; code LAION-AI/CLIP_benchmark@48de38c.
    Differs: as ``accuracies``.
    """

    root: str
    names: str = "folders"
    templates: str | Sequence[str] = ("a photo of a {}.",)

    def __post_init__(self) -> None:
        if isinstance(self.templates, str):
            if self.templates not in LISTS:
                raise ValueError(f"templates: got {self.templates!r}; wanted {', '.join(LISTS)} or a list of prompts")
        elif not self.templates or any("{}" not in template for template in self.templates):
            raise ValueError(f"templates: got {list(self.templates)}; wanted prompts with {{}} where the name goes")

    @cached_property
    def entries(self) -> dict[str, str]:
        """Image, ``<class>/<file>``, -> its class."""
        root = Path(self.root)
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; wanted {LAYOUT}")
        files = (file for folder in sorted(root.iterdir()) if folder.is_dir() for file in sorted(folder.iterdir()))
        found = {
            f"{file.parent.name}/{file.name}": file.parent.name for file in files if file.suffix.lower() in ENDINGS
        }
        if not found:
            raise ValueError(f"{root}: no image in a folder of it; wanted {LAYOUT}")
        return found

    @cached_property
    def classes(self) -> list[str]:
        """The folders' names, sorted; folders without an image are none."""
        return sorted(set(self.entries.values()))

    def prompts(self) -> list[list[str]]:
        """Of each of ``classes`` its prompts, one a template."""
        filled = self._templates()
        names = self._names()
        return [[fill(names[folder]) for fill in filled] for folder in self.classes]

    def read(self, answers: str) -> dict[str, str]:
        """Answers as ``ranked`` makes them: a json list or a jsonl of id and answer."""
        entries = read_entries(answers, "nearest classes: a json list or a jsonl of id and answer")
        return join(entries, dict.fromkeys(self.entries, ""), file=answers)

    def score(self, answers: Answers) -> Scores:
        """``acc1``, with five classes or more ``acc5``, and ``mean_per_class_recall``; an image is a unit."""
        check_ids(answers, self.entries, "zero_shot")
        places = {folder: place for place, folder in enumerate(self.classes)}
        order = np.array([self._nearest(name, answers[name], places) for name in self.entries])
        truth = np.array([places[folder] for folder in self.entries.values()])
        hits = _hits(order, truth, len(places))
        columns = {"images": np.ones(len(truth))} | hits
        units = {
            image: {name: float(column[n]) for name, column in columns.items()} for n, image in enumerate(self.entries)
        }
        rows = [
            {"id": name, "answer": answers[name].split("\n"), "label": label} for name, label in self.entries.items()
        ]
        return Scores(
            numbers=numbers(units, statistic) | _per_class(hits["acc1"], truth),
            units=units,
            statistic=statistic,
            correct={name: bool(unit["acc1"]) for name, unit in units.items()},
            flags=[] if "acc5" in hits else [f"{len(places)} classes, fewer than {TOP}: there is no acc5"],
            rows=rows,
        )

    def _nearest(self, name: str, answer: str, places: Mapping[str, int]) -> list[int]:
        """The places of the classes that an answer names, as many as are looked at; -1 behind where it names fewer."""
        guesses = answer.split("\n")
        few = len(places) >= TOP > len(guesses)
        if few or len(set(guesses)) < len(guesses) or not all(guess in places for guess in guesses):
            raise ValueError(
                f"zero_shot: the answer to {name} is {answer!r}; wanted the {TOP} nearest classes' folders, one a line"
            )
        return [places[guess] for guess in guesses[:TOP]] + [-1] * (TOP - len(guesses))

    def _templates(self) -> list[Callable[[str], str]]:
        if isinstance(self.templates, str):
            return list(_open_clip(LISTS[self.templates]))
        return [partial(template.replace, "{}") for template in self.templates]

    def _names(self) -> Mapping[str, str]:
        if self.names == "folders":
            return {folder: folder.replace("_", " ") for folder in self.classes}
        if self.names == "imagenet":
            names = _open_clip("IMAGENET_CLASSNAMES")
            if len(self.classes) != len(names):
                raise ValueError(f"names: {len(self.classes)} folders have images, wanted ImageNet's {len(names)}")
            return dict(zip(self.classes, names, strict=True))
        found = read_json(self.names, "a json object of {folder: name}")
        lacking = [folder for folder in self.classes if not isinstance(found, dict) or folder not in found]
        if lacking:
            raise ValueError(f"{self.names}: no name for {lacking[0]}, and {len(lacking) - 1} more; wanted one each")
        return {folder: str(found[folder]) for folder in self.classes}


def _per_class(hits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    recalls = [hits[truth == one].mean() for one in np.unique(truth)]
    return {"mean_per_class_recall": float(np.mean(recalls))}


def _open_clip(name: str) -> Sequence[Any]:
    """A list of open_clip's, which brings torch and is therefore not imported for scoring."""
    found: Sequence[Any] = getattr(importlib.import_module("open_clip"), name)
    return found
