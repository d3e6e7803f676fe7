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
from hialign.benchmarks.scores import Answers, Judged, Scores, Statistic, total
from hialign.evaluation.report import HIGH, LOW
from hialign.files import write_json

DETAILS = "details"
SCORES = "scores.json"
PLACES = ("root", "images", "replies", "questions_file", "question_file", "llava_questions")  # they decide no number


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


def write_requests(file: Path, benchmark: Judged, answers: Answers) -> None:
    """Writes what to ask a judge of the answers, a json line each with ``id`` and ``prompt``."""
    requests = benchmark.requests(answers).items()
    file.write_text("".join(json.dumps({"id": key, "prompt": prompt}) + "\n" for key, prompt in requests))


def notes(scores: Scores, numbers: Mapping[str, float | None]) -> list[str]:
    """What a reader of ``numbers``, those of ``with_intervals``, has to know, a line each."""
    drawn = scores.statistic(total(scores.units))
    steady = [name for name in scores.numbers if name in drawn and f"{name}{LOW}" not in numbers]
    told = list(scores.flags)
    if steady:
        some = ", ".join(steady[:3]) + (f" and {len(steady) - 3} more" if len(steady) > 3 else "")
        told.append(f"no interval: every draw has the same {some}")
    return [f"note: {one}" for one in told]


def write_scores(
    folder: Path,
    name: str,
    numbers: Mapping[str, float | str | None],
    *,
    scores: Scores | None,
    system: str,
    settings: Mapping[str, Any],
) -> None:
    """Adds a benchmark to the folder's ``scores.json``, and writes its units, answers and flags to ``details``.

    ``settings`` are the benchmark's. A number that is not finite is written as null.
    """
    if scores is not None:
        _write_details(folder, name, scores, {**settings, **scores.settings})
    file = folder / SCORES
    before = _read(file) if file.is_file() else {}
    flags = {"flags": list(scores.flags)} if scores is not None and scores.flags else {}
    finite = {key: _finite(value) for key, value in numbers.items()}
    write_json(file, {**before, name: {"model": system, **finite, **flags}})


def _finite(score: float | str | None) -> float | str | None:
    """The score as json has it: words as they are, no NaN and no infinity."""
    return score if score is None or isinstance(score, str) or math.isfinite(score) else None


def _write_details(folder: Path, name: str, scores: Scores, settings: Mapping[str, Any]) -> None:
    (folder / DETAILS).mkdir(parents=True, exist_ok=True)
    content = {
        "statistic": f"{scores.statistic.__module__}:{scores.statistic.__qualname__}",
        "settings": settings,
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
    settings: Mapping[str, Any]
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
        content = _read(file)
        if lacking := [key for key in ("statistic", "settings", "units", "correct") if key not in content]:
            raise ValueError(f"{file}: no {', '.join(lacking)} in it; score the answers anew")
        statistic = _statistic(content["statistic"], file, allow)
        found[file.stem] = Details(statistic, content["settings"], content["units"], content["correct"])
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not json ({error}); delete it and score the answers anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds no object; delete it and score the answers anew")
    return content


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


def differences(a: Details, b: Details) -> list[str]:
    """The settings that decide scores and are not the same, as ``name: A / B``; where things lie decides none."""
    names = [name for name in {**a.settings, **b.settings} if name not in PLACES]
    pairs = [(name, a.settings.get(name), b.settings.get(name)) for name in names]
    return [f"{name}: {one} / {other}" for name, one, other in pairs if one != other]


def compare(a: Details, b: Details, *, resamples: int, seed: int) -> Comparison:
    """A minus B on the same units. A ValueError when they were not asked the same, or scored differently."""
    if a.statistic is not b.statistic:
        raise ValueError("the two were scored by different statistics; score both with one version and one rule")
    answers = mcnemar(a.correct, b.correct) if a.correct and b.correct else None
    return Comparison(paired(a.units, b.units, a.statistic, resamples=resamples, seed=seed), answers)
