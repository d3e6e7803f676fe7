"""How far a score may be off because only so many were asked, and whether two systems differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hialign.benchmarks.scores import Statistic, shares

Interval = tuple[float, float]
Units = Mapping[str, Mapping[str, float]]
PARTS = ("hits", "of")  # the counts that make a share
Z95 = 1.959964  # of the normal distribution, 2.5 % lie beyond
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t


def wilson(share: float, number: int) -> Interval:
    """The 95 % interval of a share of ``number`` independent trials; all of [0, 1] where there was none.

    Source: Wilson 1927, Journal of the American Statistical Association 22, 209-212.
    Differs: nothing.
    """
    if not 0 <= share <= 1 or number < 0:
        raise ValueError(f"wilson: got a share of {share} of {number} trials, wanted one in [0, 1] of 0 or more")
    if not number:
        return 0.0, 1.0
    square = Z95**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    half = Z95 / (1 + square / number) * (share * (1 - share) / number + square / (4 * number**2)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def mean95(values: Sequence[float]) -> dict[str, Any]:
    """``mean``, ``half`` of its 95 % interval by Student's t (None of one value), and ``each``: of up to ten seeds.

    Source: Student 1908, Biometrika 6, 1-25.
    Differs: nothing.
    """
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "half": half, "each": list(values)}


def by_scene(
    counts: Sequence[Mapping[str, tuple[int, int]]], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """The 95 % intervals of shares that are sums over scenes, what one scene holds being drawn together.

    ``counts`` are a scene's (how many, of how many) by the share's name. Scenes are drawn anew with replacement, and
    the interval lies between the 2.5th and the 97.5th percentile of the shares. Where no draw differs, as with a share
    of 0 or of 1, it is Wilson's, a scene with something to count being one trial.
    """
    if not counts:
        raise ValueError("by_scene: no scene; wanted at least one")
    units = {
        str(i): {f"{name}/{part}": value for name, pair in one.items() for part, value in zip(PARTS, pair, strict=True)}
        for i, one in enumerate(counts)
    }
    found = {}
    for name, (low, high) in bootstrap(units, shares, resamples=resamples, seed=seed).items():
        trials = sum(one[name][1] > 0 for one in counts)
        whole = sum(one[name][0] for one in counts) / max(1, sum(one[name][1] for one in counts))
        found[name] = (low, high) if low < high else wilson(whole, trials)
    return found


def bootstrap(units: Units, statistic: Statistic, *, resamples: int = 2000, seed: int = 0) -> dict[str, Interval]:
    """The 95 % interval of each number of ``statistic``, units being drawn anew with replacement.

    It lies between the 2.5th and the 97.5th percentile of the draws in which the number is defined. A number that no
    draw changes, as a share of 0 or 1, has an interval without width: ``wilson`` is for shares of independent trials.

    Source: Efron 1979, Annals of Statistics 7, 1-26.
    Differs: nothing.
    """
    _refuse_few(len(units), resamples, seed)
    found = statistic(_sums(_table(units, _names(units)), _names(units), resamples, seed))
    return {name: _percentiles(values) for name, values in found.items()}


@dataclass(frozen=True)
class Difference:
    """``a``, ``b`` and ``a`` minus ``b`` with its 95 % interval, and the two-sided p of no difference."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float


def paired(
    a: Units, b: Units, statistic: Statistic, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Difference]:
    """How far A is above B in each number of ``statistic``, the same units being drawn of both.

    ``p`` is twice the share of draws on the far side of zero, with one added to both counts; it is at least
    2 / (resamples + 1). A ValueError when A and B do not have the same units.

    Source: Koehn 2004, "Statistical significance tests for machine translation evaluation"; Davison and Hinkley 1997,
    section 4.4, for the added one.
    Differs: nothing.
    """
    if a.keys() != b.keys():
        apart = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"paired: {len(apart)} units are in one of the two alone, such as {apart[0]}; wanted answers to the same "
            "questions"
        )
    _refuse_few(len(a), resamples, seed)
    names = list(dict.fromkeys([*_names(a), *_names(b)]))
    order = list(a)
    tables = [_table({name: units[name] for name in order}, names) for units in (a, b)]
    drawn = [statistic(_sums(table, names, resamples, seed)) for table in tables]
    whole = [statistic(dict(zip(names, table.sum(axis=0), strict=True))) for table in tables]
    found = {}
    for name in drawn[0].keys() & drawn[1].keys():
        differences = np.asarray(drawn[0][name] - drawn[1][name])
        differences = differences[np.isfinite(differences)]
        if not len(differences):
            continue  # defined in no draw
        low, high = _percentiles(differences)
        beyond = min((differences <= 0).sum(), (differences >= 0).sum())
        p = min(1.0, 2 * (float(beyond) + 1) / (len(differences) + 1))
        first, second = (float(one[name]) for one in whole)
        found[name] = Difference(first, second, first - second, low, high, p)
    return {name: found[name] for name in drawn[0] if name in found}


@dataclass(frozen=True)
class McNemar:
    """How many questions A alone and B alone answered rightly, and the exact two-sided p of their being even."""

    a_alone: int
    b_alone: int
    p: float


def mcnemar(a: Mapping[str, bool], b: Mapping[str, bool]) -> McNemar:
    """The exact test on the questions that one of the two answered rightly. A ValueError for different questions.

    It takes questions for independent of each other, also those to one image; ``paired`` does not.

    Source: McNemar 1947, Psychometrika 12, 153-157, with the binomial distribution in place of chi-square.
    Differs: nothing.
    """
    if a.keys() != b.keys():
        apart = sorted(a.keys() ^ b.keys())
        raise ValueError(f"mcnemar: {len(apart)} questions are of one of the two alone, such as {apart[0]}")
    first, second = (sum(x[name] and not y[name] for name in a) for x, y in ((a, b), (b, a)))
    number, least = first + second, min(first, second)
    logs = (_log_choose(number, k) - number * math.log(2) for k in range(least + 1))
    return McNemar(first, second, min(1.0, 2 * math.fsum(map(math.exp, logs))))


def _log_choose(number: int, k: int) -> float:
    return math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1)


def _names(units: Units) -> list[str]:
    return list(dict.fromkeys(name for unit in units.values() for name in unit))


def _table(units: Units, names: Sequence[str]) -> np.ndarray:
    """(units, names); a count that a unit lacks is 0."""
    return np.array([[unit.get(name, 0.0) for name in names] for unit in units.values()], dtype=float)


def _sums(table: np.ndarray, names: Sequence[str], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """By name its sum in each of ``resamples`` draws of as many rows."""
    sums = np.stack([times @ table for times in _draws(len(table), resamples, seed)])
    return dict(zip(names, sums.T, strict=True))


def _draws(number: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of ``number`` rows is drawn, once for each resample."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(number, size=number), minlength=number)


def _percentiles(values: np.ndarray) -> Interval:
    defined = np.atleast_1d(values)[np.isfinite(np.atleast_1d(values))]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high)


def _refuse_few(units: int, resamples: int, seed: int) -> None:
    if not units:
        raise ValueError("got no units to draw from, wanted at least one")
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, wanted 1 or more")
    if seed < 0:
        raise ValueError(f"seed: got {seed}, wanted 0 or more")
