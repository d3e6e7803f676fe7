"""Scores written down with what they were made of, and two systems compared by it; needs no torch."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hialign.benchmarks.intervals import Difference, McNemar, Units, bootstrap, mcnemar, paired
from hialign.benchmarks.scores import Scores, Statistic
from hialign.evaluation.report import HIGH, LOW
from hialign.files import write_json

DETAILS = "details"
SCORES = "scores.json"


def with_intervals(scores: Scores, *, resamples: int, seed: int) -> dict[str, float | None]:
    """The numbers, and behind those that are drawn anew the ends of their 95 % intervals.

    A number that every draw leaves as it is has none.
    """
    ends = bootstrap(scores.units, scores.statistic, resamples=resamples, seed=seed)
    found: dict[str, float | None] = {}
    for name, value in scores.numbers.items():
        found[name] = value
        if name in ends and ends[name][0] < ends[name][1]:
            found[f"{name}{LOW}"], found[f"{name}{HIGH}"] = ends[name]
    return found


def write_scores(
    folder: Path, name: str, numbers: Mapping[str, float | str | None], *, scores: Scores | None, system: str
) -> None:
    """Adds a benchmark to the folder's ``scores.json``, and writes its units, answers and flags to ``details``.

    A number that is not finite is written as null.
    """
    if scores is not None:
        _write_details(folder, name, scores)
    file = folder / SCORES
    before = json.loads(file.read_text()) if file.is_file() else {}
    flags = {"flags": list(scores.flags)} if scores is not None and scores.flags else {}
    finite = {key: _finite(value) for key, value in numbers.items()}
    write_json(file, {**before, name: {"model": system, **finite, **flags}})


def _finite(score: float | str | None) -> float | str | None:
    """The score as json has it: words as they are, no NaN and no infinity."""
    return score if score is None or isinstance(score, str) or math.isfinite(score) else None


def _write_details(folder: Path, name: str, scores: Scores) -> None:
    (folder / DETAILS).mkdir(parents=True, exist_ok=True)
    content = {
        "statistic": f"{scores.statistic.__module__}:{scores.statistic.__qualname__}",
        "flags": list(scores.flags),
        "units": scores.units,
        "correct": scores.correct,
    }
    write_json(folder / DETAILS / f"{name}.json", content)
    if scores.rows:
        lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in scores.rows)
        (folder / DETAILS / f"{name}.rows.jsonl").write_text(lines)


@dataclass(frozen=True)
class Details:
    """What ``write_scores`` kept of a benchmark."""

    statistic: Statistic
    units: Units
    correct: Mapping[str, bool]


def read_details(folder: Path, *, allow: Sequence[str] = ()) -> dict[str, Details]:
    """By benchmark what lies in the folder's ``details``; a ValueError when nothing does.

    Statistics are found by name, in this package or in those that ``allow`` names.
    """
    files = sorted(file for file in (folder / DETAILS).glob("*.json"))
    if not files:
        raise ValueError(
            f"{folder}: no {DETAILS}/*.json; wanted a run that `hialign evaluate` scored, or the folder that "
            "`hialign score` wrote"
        )
    found = {}
    for file in files:
        content: dict[str, Any] = json.loads(file.read_text())
        statistic = _statistic(content["statistic"], file, allow)
        found[file.stem] = Details(statistic, content["units"], content["correct"])
    return found


def _statistic(name: str, file: Path, allow: Sequence[str]) -> Statistic:
    module, _, function = name.partition(":")
    if module.split(".")[0] not in ("hialign", *allow):
        raise ValueError(f"{file}: its statistic is {name}; allow={module.split('.')[0]} admits a package of yours")
    try:
        statistic: Statistic = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{file}: there is no {name} here ({error}); score the answers anew") from error
    return statistic


@dataclass(frozen=True)
class Comparison:
    """Of one benchmark the differences A minus B by number, and the test on single answers where these are right."""

    differences: dict[str, Difference]
    answers: McNemar | None


def compare(a: Details, b: Details, *, resamples: int, seed: int) -> Comparison:
    """A minus B on the same units. A ValueError when they were not asked the same, or scored differently."""
    if a.statistic is not b.statistic:
        raise ValueError("the two were scored by different statistics; score both with one version")
    answers = mcnemar(a.correct, b.correct) if a.correct and b.correct else None
    return Comparison(paired(a.units, b.units, a.statistic, resamples=resamples, seed=seed), answers)
