"""Units of weight, how gradients meet, and what the other solvers' weights do by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from hialign.solvers import ConstrainedDual, DynamicBarrier, ValuePenalty, minimise
from hialign.solvers.weighing import Meeting, Unit, combine, meet, ramp


def at(oracle, step: int):
    oracle.step = step
    return oracle


def test_the_unit_is_the_mean_ratio_of_the_norms_and_stays_after_warm_up(oracle):
    oracle.total_steps = 10
    unit = Unit(relative=True, warmup=0.2)
    assert unit(at(oracle, 0), Meeting(0, inner=4.0, outer=100.0)) == pytest.approx(5)  # 10 / 2
    assert unit(at(oracle, 1), Meeting(0, inner=1.0, outer=400.0)) == pytest.approx(10)  # sqrt(5 * 20)
    for step in range(2, 10):
        assert unit(at(oracle, step), Meeting(0, inner=1e-9, outer=1e9)) == pytest.approx(10)


def test_a_vanished_gradient_has_no_ratio_and_does_not_end_the_measuring(oracle):
    unit = Unit(relative=True, warmup=0.1)
    assert unit(at(oracle, 0), Meeting(0, inner=0.0, outer=1.0)) == 1
    assert unit(at(oracle, 5), Meeting(0, inner=1.0, outer=0.0)) == 1
    assert unit(at(oracle, 6), Meeting(0, inner=1.0, outer=9.0)) == pytest.approx(3)
    assert unit(at(oracle, 7), Meeting(0, inner=1.0, outer=1.0)) == pytest.approx(3)


def test_an_absolute_unit_is_one(oracle):
    assert Unit(relative=False, warmup=0.1)(oracle, Meeting(0, inner=4.0, outer=100.0)) == 1


@pytest.mark.parametrize("solver", [DynamicBarrier, ValuePenalty])
@pytest.mark.parametrize("problem", ["affine_with_phi"], indirect=True)
def test_in_relative_units_the_outer_losss_scale_leaves_the_path_the_same(problem, solver):
    scaled = dataclasses.replace(problem, outer=lambda x: 1000 * problem.outer(x))

    def adam(parameters, lr):  # without an epsilon that its step would be compared with
        return torch.optim.Adam(parameters, lr=lr, eps=0.0, foreach=False)

    ends = [p.solve(solver(), steps=150, optimizer=adam) for p in (problem, scaled)]
    torch.testing.assert_close(ends[0].x["x"], ends[1].x["x"], rtol=1e-6, atol=1e-6)
    weights = [[row["weight"] for row in end.rows] for end in ends]
    assert weights[1] == pytest.approx([1000 * weight for weight in weights[0]], rel=1e-4)
    absolute = [p.solve(solver(relative=False), steps=150, optimizer=adam) for p in (problem, scaled)]
    assert (absolute[0].x["x"] - absolute[1].x["x"]).norm() > 0.1


def test_how_two_gradients_meet_by_hand(oracle):
    outer = {"tower": torch.tensor([3.0, 4.0]), "llm": torch.tensor([9.0, 9.0])}
    inner = {"tower": torch.tensor([1.0, 0.0]), "head": torch.tensor([0.0, 2.0])}
    met = meet(oracle, outer, inner)
    assert (met.dot, met.inner, met.outer) == (3.0, 1.0, 25.0)
    assert oracle.logged == {
        "cosine": pytest.approx(3 / 5),
        "shared_of_inner": pytest.approx(1 / math.sqrt(5)),
    }


def test_gradients_of_zero_meet_at_a_cosine_of_zero(oracle):
    nothing = {"tower": torch.zeros(2)}
    met = meet(oracle, nothing, {"tower": torch.zeros(2)})
    assert (met.cosine, oracle.logged["shared_of_inner"]) == (0, 0)


@pytest.mark.parametrize(("inner_only", "head"), [("plain", 1.0), ("weighted", 3.0)])
def test_combine_weighs_what_the_outer_level_does_not_read_only_if_asked(oracle, inner_only: str, head: float):
    ones = {name: torch.ones(1) for name in ("head", "tower")}
    total = combine(oracle, {"tower": torch.ones(1), "llm": torch.ones(1)}, ones, 3.0, inner_only=inner_only)
    assert {name: tensor.item() for name, tensor in total.items()} == {"tower": 4.0, "llm": 1.0, "head": head}


def test_ramp_goes_by_equal_factors_up_and_down():
    assert [ramp(1, 100, share) for share in (0, 0.5, 1, 2)] == pytest.approx([1, 10, 100, 100])
    assert [ramp(0.1, 0.001, share) for share in (0, 0.5, 1, 2)] == pytest.approx([0.1, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_the_duals_weight_grows_while_over_budget_falls_while_under_and_rests_in_warm_up(problem):
    far = problem.solve(ConstrainedDual(1e-9, best=0.0, rate=0.1, warmup=0.5, relative=False), steps=10, lr=1e-9)
    grown = [row["weight"] for row in far.rows]
    assert grown == pytest.approx([1.0] * 5 + [math.exp(0.1 * n) for n in range(1, 6)])
    near = problem.solve(ConstrainedDual(1e9, best=0.0, rate=0.1, warmup=0.5, relative=False), steps=10, lr=1e-9)
    # over = (loss - budget) / budget is close to -1
    assert [row["weight"] for row in near.rows] == pytest.approx([1.0] * 5 + [math.exp(-0.1 * n) for n in range(1, 6)])


@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_the_duals_weight_keeps_to_its_bounds(problem):
    settings = {"best": 0.0, "rate": 5.0, "relative": False, "min_weight": 0.5, "max_weight": 2.0}
    for budget, bound in ((1e-9, 2.0), (1e9, 0.5)):
        rows = problem.solve(ConstrainedDual(budget, **settings), steps=4, lr=1e-9).rows
        assert [row["weight"] for row in rows] == [1.0, *[bound] * 3]  # the first step is warm-up


@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_the_dual_passes_an_error_of_its_best_on(problem):
    end = problem.solve(ConstrainedDual(0.02, best=0.05))
    assert end.gap == pytest.approx(0.07, abs=4e-3)


def test_the_dual_needs_a_floor_or_a_best():
    assert ConstrainedDual().requires == {"floor"}
    assert ConstrainedDual(best=0.1).requires == frozenset()


@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_the_dual_without_floor_and_best_says_what_to_set(problem):
    with pytest.raises(ValueError, match="best: no floor of the inner loss is known; set best="):
        problem.solve(ConstrainedDual(), steps=1)


def test_scale_step_divides_the_rate_by_a_weight_above_one():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for weight, moved in ((4.0, (1 + 4 * 2) / 4), (0.5, 1 + 0.5 * 2)):
        with torch.no_grad():
            x.zero_()
        minimise(
            ValuePenalty(weight, weight, relative=False, scale_step=True),
            {"x": x},
            inner=lambda: 2 * x.sum(),
            outer=lambda: x.sum(),
            steps=1,
            optimizer=torch.optim.SGD([x], lr=0.1),
        )
        assert x.item() == pytest.approx(-0.1 * moved)


@pytest.mark.parametrize(
    ("solver", "wrong", "message"),
    [
        (ConstrainedDual, {"budget": 0.0}, "budget: got 0.0, wanted a finite number above 0"),
        (ConstrainedDual, {"rate": -1.0}, "rate: got -1.0"),
        (ConstrainedDual, {"window": 1.0}, r"window: got 1.0, wanted a number in \[0, 1\)"),
        (ConstrainedDual, {"start": 1e3}, "start: got min_weight=0.001, start=1000.0, max_weight=100.0"),
        (ConstrainedDual, {"min_weight": 0.0}, "wanted 0 < min_weight <= start <= max_weight"),
        (ConstrainedDual, {"max_weight": math.inf}, "max_weight=inf"),
        (ConstrainedDual, {"warmup": 2.0}, "warmup: got 2.0"),
        (ConstrainedDual, {"inner_only": "no"}, "inner_only: got 'no'"),
        (ValuePenalty, {"start": -1.0}, "start: got -1.0"),
        (ValuePenalty, {"end": math.nan}, "end: got nan"),
        (ValuePenalty, {"ramp": 0.0}, "ramp: got 0.0"),
        (ValuePenalty, {"inner_steps": 0}, "inner_steps: got 0, wanted at least 1"),
        (ValuePenalty, {"warmup": -0.1}, "warmup: got -0.1"),
        (ValuePenalty, {"inner_only": ""}, "inner_only: got ''"),
    ],
)
def test_settings_that_mean_nothing_are_refused(solver, wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        solver(**wrong)
