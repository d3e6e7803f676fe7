"""Intervals are those of the textbook, and scenes are drawn whole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hialign.benchmarks.intervals import bootstrap, by_scene, mcnemar, paired, wilson
from hialign.benchmarks.scores import Columns, numbers, share_or_nan, shares


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


def test_the_bootstrap_of_single_trials_is_about_wilson_s() -> None:
    units = {str(i): {"x/hits": float(i < 60), "x/of": 1.0} for i in range(200)}
    assert bootstrap(units, shares)["x"] == pytest.approx(wilson(0.3, 200), abs=0.012)


def test_a_count_that_a_unit_lacks_is_none() -> None:
    """Of ten units one alone has anything to count: every draw that has it finds one of two."""
    units: dict[str, dict[str, float]] = {str(i): {} for i in range(9)} | {"9": {"x/hits": 1.0, "x/of": 2.0}}
    assert numbers(units, shares) == {"x": 0.5}
    assert bootstrap(units, shares)["x"][1] == 0.5


def test_answers_that_hang_together_are_not_told_apart_better_by_being_many() -> None:
    alone = {str(i): {"x/hits": float(i < 60), "x/of": 1.0} for i in range(200)}
    tenfold = {name: {key: 10 * value for key, value in unit.items()} for name, unit in alone.items()}
    assert bootstrap(tenfold, shares) == bootstrap(alone, shares)


def test_a_difference_of_pairs_is_seen_where_the_intervals_of_both_overlap() -> None:
    """B fails where A does and on 8 more of 200: each interval is .06 wide to both sides, that of A - B less."""
    a = {str(i): {"x/hits": float(i < 110), "x/of": 1.0} for i in range(200)}
    b = {str(i): {"x/hits": float(i < 102), "x/of": 1.0} for i in range(200)}
    assert bootstrap(a, shares)["x"][0] < 0.51 < 0.55 < bootstrap(b, shares)["x"][1]
    found = paired(a, b, shares, resamples=2000)["x"]
    assert (found.a, found.b, found.difference) == pytest.approx((0.55, 0.51, 0.04))
    assert 0 < found.low < 0.04 < found.high
    assert found.p < 0.01
    back = paired(b, a, shares, resamples=2000)["x"]
    assert (back.low, back.high, back.p) == (-found.high, -found.low, found.p)


def test_the_order_of_units_does_not_matter_to_a_pair() -> None:
    a = {str(i): {"x/hits": float(i % 3 == 0), "x/of": 1.0} for i in range(60)}
    b = {str(i): {"x/hits": float(i % 4 == 0), "x/of": 1.0} for i in range(60)}
    assert paired(a, dict(reversed(b.items())), shares, resamples=200) == paired(a, b, shares, resamples=200)


def test_equals_do_not_differ() -> None:
    a = {str(i): {"x/hits": float(i % 3 == 0), "x/of": 1.0} for i in range(60)}
    found = paired(a, a, shares, resamples=200)["x"]
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(("first", "second", "p"), [(0, 5, 2 / 32), (1, 4, 12 / 32), (3, 3, 1.0), (0, 0, 1.0)])
def test_mcnemar_by_hand(first: int, second: int, p: float) -> None:
    """The binomial tail of the questions that one alone answered: of 5, 2 * (1/32), and 2 * (1 + 5)/32."""
    outcomes = [(True, False)] * first + [(False, True)] * second + [(True, True)] * 7
    a, b = ({str(i): pair[side] for i, pair in enumerate(outcomes)} for side in (0, 1))
    found = mcnemar(a, b)
    assert (found.a_alone, found.b_alone) == (first, second)
    assert found.p == pytest.approx(p)


def test_mcnemar_of_many_stays_a_probability() -> None:
    """500 against 600 of 20,000: the normal distribution with continuity gives 2 Phi(-(100 - 1) / sqrt(1100))."""
    a = {str(i): i < 500 or i >= 1100 for i in range(20_000)}
    b = {str(i): i >= 500 for i in range(20_000)}
    normal = math.erfc(99 / math.sqrt(1100) / math.sqrt(2))
    assert mcnemar(a, b).p == pytest.approx(normal, rel=0.03)


def test_different_questions_are_not_compared() -> None:
    a, b = {"1": {"x/of": 1.0}}, {"2": {"x/of": 1.0}}
    with pytest.raises(ValueError, match="paired: 2 units are in one of the two alone, such as 1"):
        paired(a, b, shares)
    with pytest.raises(ValueError, match="mcnemar: 2 questions are of one of the two alone, such as 1"):
        mcnemar({"1": True}, {"2": True})


def test_nothing_is_not_drawn_from() -> None:
    with pytest.raises(ValueError, match="got no units to draw from"):
        bootstrap({}, shares)


@pytest.mark.parametrize(("setting", "value", "least"), [("resamples", -1, 1), ("resamples", 0, 1), ("seed", -1, 0)])
def test_a_setting_that_makes_no_sense_is_named(setting: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"{setting}: got {value}, wanted {least} or more"):
        bootstrap({"1": {"x/of": 1.0}}, shares, **{setting: value})


def undefined(sums: Columns) -> dict[str, np.ndarray]:
    return {"x": share_or_nan(sums["x/hits"], sums["x/of"]), "never": share_or_nan(sums["x/hits"], 0 * sums["x/of"])}


def test_draws_in_which_a_number_is_not_defined_are_left_out() -> None:
    """Of twenty units one has something to count: over a third of the draws have nothing."""
    units: dict[str, dict[str, float]] = {str(i): {} for i in range(19)} | {"19": {"x/hits": 1.0, "x/of": 2.0}}
    found = bootstrap(units, undefined)
    assert found["x"] == (0.5, 0.5)
    assert np.isnan(found["never"]).all()
    pair = paired(units, units, undefined, resamples=200)
    assert list(pair) == ["x"]
    assert (pair["x"].difference, pair["x"].p) == (0, 1)
