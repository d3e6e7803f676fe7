"""How far a score may be off because only so many scenes were shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Interval = tuple[float, float]
Z95 = 1.959964  # of the normal distribution, 2.5 % lie beyond


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
    names = list(counts[0])
    table = np.array([[one[name] for name in names] for one in counts], dtype=float)  # (scenes, shares, 2)
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(len(table), size=len(table)), minlength=len(table)) for _ in range(resamples))
    sums = np.stack([np.tensordot(times, table, axes=1) for times in drawn])  # (resamples, shares, 2)
    low, high = np.quantile(_shares(sums), (0.025, 0.975), axis=0)
    whole, scenes = _shares(table.sum(axis=0)), (table[..., 1] > 0).sum(axis=0)
    return {
        name: (float(low[i]), float(high[i])) if low[i] < high[i] else wilson(float(whole[i]), int(scenes[i]))
        for i, name in enumerate(names)
    }


def _shares(counts: np.ndarray) -> np.ndarray:
    """How many of all, in the last dimension; 0 of nothing."""
    hits, number = counts[..., 0], counts[..., 1]
    shares: np.ndarray = np.divide(hits, number, out=np.zeros_like(hits), where=number > 0)
    return shares
