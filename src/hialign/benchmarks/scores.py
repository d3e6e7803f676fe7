"""What every benchmark speaks of: questions, answers by the questions' ids, and scores with what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

Answers = Mapping[str, str]  # question id -> what the model said
Columns = Mapping[str, np.ndarray]  # sums of units' counts by name; scalars, or one entry a resample
Statistic = Callable[[Columns], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question to a model. ``image`` is a file, relative to the benchmark's ``images``; None where there is none."""

    id: str
    image: str | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A benchmark's numbers, and what their intervals are drawn from.

    Args:
        numbers: by the official rule and in its unit, the most important one first. Where a second, saner rule reads
            the answers, its numbers stand beside them under the same name with ``_strict`` behind it.
        units: what is resampled as a whole (an image with all of its questions) -> its counts by name. A count that is
            missing is 0.
        statistic: the headline numbers, some of ``numbers`` under the same names, from sums of the units' counts. It
            must work on arrays of sums, be defined at 0 of 0, and be a function of a module: a comparison of two runs
            finds it by its name.
        correct: question -> whether it was answered rightly, where answers are right or wrong.
        flags: what a reader has to know: where the official script would have divided by zero, a tagger that was not
            there. Each is a sentence.
        rows: what is written down of each question or image, for people to read.
        settings: what else decides the numbers, besides the benchmark's own settings.
    """

    numbers: Mapping[str, float | None]
    units: Mapping[str, Mapping[str, float]]
    statistic: Statistic
    correct: Mapping[str, bool] = field(default_factory=dict)
    flags: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Benchmark(Protocol):
    """A benchmark with its annotations: a small class whose settings a yaml gives by name."""

    IMAGES: ClassVar[str]  # which images are asked about, and where they are to be had
    max_new_tokens: int  # of an answer, where a model is asked

    def questions(self) -> Sequence[Question]:
        """What a model is asked, in the official order; ids are unique."""
        ...

    def read(self, answers: str) -> dict[str, str]:
        """The answers that a file or folder holds, by the questions' ids."""
        ...

    def score(self, answers: Answers) -> Scores:
        """The scores; a ValueError names answers that are missing or that answer no question. Pure."""
        ...


@runtime_checkable
class Judged(Protocol):
    """A benchmark whose answers a judge has to reply to before they can be scored."""

    @property
    def needs_replies(self) -> bool:
        """Whether its settings want a judge's replies and name no file of them."""
        ...

    def requests(self, answers: Answers) -> dict[str, str]:
        """What to ask the judge, by the id that its reply is to carry."""
        ...


def share(part: Any, whole: Any) -> np.ndarray:
    """``part`` of ``whole``, elementwise; 0 of nothing is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    part, whole = np.broadcast_arrays(part, whole)
    found: np.ndarray = np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)
    return found


def share_or_nan(part: Any, whole: Any) -> np.ndarray:
    """As ``share``, but of nothing it is NaN: where 0 would be taken for a score. It is written as null."""
    whole = np.asarray(whole, dtype=float)
    found: np.ndarray = np.where(whole == 0, np.nan, share(part, whole))
    return found


def shares(sums: Columns) -> dict[str, np.ndarray]:
    """For each pair of counts ``name/hits`` and ``name/of`` their share, under the name."""
    names = dict.fromkeys(name.rsplit("/", 1)[0] for name in sums)
    return {name: share(sums.get(f"{name}/hits", 0.0), sums[f"{name}/of"]) for name in names}


def column(sums: Columns, name: str) -> np.ndarray:
    """The sums of one count, in the shape of the others; zeros where no unit has it."""
    return sums[name] if name in sums else np.zeros(np.shape(next(iter(sums.values()), 0.0)))


def total(units: Mapping[str, Mapping[str, float]]) -> dict[str, np.ndarray]:
    """The sums of the units' counts."""
    sums: dict[str, float] = {}
    for unit in units.values():
        for name, count in unit.items():
            sums[name] = sums.get(name, 0) + count
    return {name: np.asarray(value, dtype=float) for name, value in sums.items()}


def numbers(units: Mapping[str, Mapping[str, float]], statistic: Statistic) -> dict[str, float]:
    """The statistic of all units as plain numbers."""
    return {name: float(value) for name, value in statistic(total(units)).items()}
