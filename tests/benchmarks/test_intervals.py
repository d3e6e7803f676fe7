"""Intervals are those of the textbook, and scenes are drawn whole."""

from __future__ import annotations

import numpy as np
import pytest

from hialign.benchmarks.intervals import by_scene, wilson


def test_wilson_by_hand() -> None:
    """Half of 4 trials with z^2 = 3.8415: the middle is 1/2, the half width z / (2 sqrt(4 + z^2))."""
    half = 1.959964 / (2 * (4 + 1.959964**2) ** 0.5)
    assert wilson(0.5, 4) == pytest.approx((0.5 - half, 0.5 + half))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_wilson_s_interval_of_none_or_all_is_not_empty_and_stays_among_shares(share: float) -> None:
    low, high = wilson(share, 100)
    assert (low, high) == pytest.approx((0.0, 0.0370) if share == 0 else (0.9630, 1.0), abs=1e-4)


def test_nothing_is_known_of_no_trial() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)
    assert by_scene([{"partner": (0, 0)}] * 3) == {"partner": (0.0, 1.0)}


@pytest.mark.parametrize(("share", "number"), [(1.5, 3), (-0.1, 3), (0.5, -1), (float("nan"), 3)])
def test_what_is_no_share_of_trials_is_refused(share: float, number: int) -> None:
    with pytest.raises(ValueError, match=f"wilson: got a share of {share} of {number} trials"):
        wilson(share, number)


def test_scenes_of_one_trial_each_have_about_wilson_s_interval() -> None:
    counts = [{"s": (int(i < 60), 1)} for i in range(200)]
    assert by_scene(counts)["s"] == pytest.approx(wilson(0.3, 200), abs=0.012)


def test_what_a_scene_holds_is_drawn_together() -> None:
    """Ten mentions a scene that are all right or all wrong are no more than one trial a scene."""
    alone = by_scene([{"i": (int(i < 60), 1)} for i in range(200)])["i"]
    together = by_scene([{"i": (10 * int(i < 60), 10)} for i in range(200)])["i"]
    assert together == pytest.approx(alone)


def test_the_interval_holds_the_truth_of_uneven_scenes_about_as_often_as_it_says() -> None:
    """Scenes of 1 to 5 mentions, each scene with its own chance of being wrong; the whole ratio is 0.3."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        sizes, chances = rng.integers(1, 6, size=80), rng.beta(0.6, 1.4, size=80)
        counts = [{"i": (int(rng.binomial(n, p)), int(n))} for n, p in zip(sizes, chances, strict=True)]
        low, high = by_scene(counts, resamples=200)["i"]
        held += low <= 0.3 <= high
    assert 178 <= held <= 198


def test_a_share_that_no_scene_moves_has_wilson_s_interval_a_scene_a_trial() -> None:
    counts = [{"i": (0, 5), "partner": (1, 1) if i < 4 else (0, 0)} for i in range(50)]
    found = by_scene(counts)
    assert found["i"] == wilson(0.0, 50)
    assert found["partner"] == wilson(1.0, 4)


def test_the_seed_decides_the_draws_and_no_scene_is_an_error() -> None:
    counts = [{"i": (i % 3, 3)} for i in range(20)]
    assert by_scene(counts, resamples=50) == by_scene(counts, resamples=50)
    assert by_scene(counts, resamples=50, seed=1) != by_scene(counts, resamples=50)
    with pytest.raises(ValueError, match="by_scene: no scene"):
        by_scene([])
