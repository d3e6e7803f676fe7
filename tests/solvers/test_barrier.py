"""DynamicBarrier: what each of its settings does."""

from __future__ import annotations

import math

import pytest
import torch

from hialign.solvers import DynamicBarrier, minimise
from hialign.solvers.minimise import ClosureOracle

SGD = torch.optim.SGD


def constant(progress: float) -> float:
    return 1.0


def joint_weight_of_gap(affine, gap: float) -> float:
    """The weight whose closed-form weighted sum is as badly aligned, by bisection on the logarithm."""
    low, high = 1e-3, 1e9
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if affine.inner(affine.joint(middle)) > gap else (low, middle)
    return low


def one_step(solver, outer: list[float], inner: list[float], *, rate: float = 0.5, floor=None, loss: float = 0.0):
    """The direction of a first step whose gradients are these."""
    x = torch.zeros(len(outer), dtype=torch.float64, requires_grad=True)
    slopes = [torch.tensor(slope, dtype=torch.float64) for slope in (outer, inner)]
    closures = {"outer": lambda: slopes[0] @ x, "inner": lambda: slopes[1] @ x + loss}
    oracle = ClosureOracle({"x": x}, closures, 10, SGD([x], lr=rate), constant, floor=floor, outer_parts=())
    solver.step(oracle)
    return (-x.detach() / rate).tolist()


@pytest.mark.parametrize("lr", [0.3, 0.1, 0.03])
@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_at_a_constant_rate_the_weight_ends_at_the_edge_of_stability(problem, affine, lr: float):
    # the largest singular value is 1, so that the inner loss's smoothness is 1
    end = problem.solve(DynamicBarrier(1, 1, relative=False), steps=4000, lr=lr, optimizer=SGD, schedule=constant)
    # measured: 1.61 1.88 1.97
    assert 1.5 <= joint_weight_of_gap(affine, end.gap) * lr <= 2.1


@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_at_a_constant_rate_the_gap_has_a_floor_that_falls_with_the_rate(problem):
    solver = {"steps": 3000, "optimizer": SGD, "schedule": constant}
    gaps = [problem.solve(DynamicBarrier(1, 1, relative=False), lr=lr, **solver).gap for lr in (0.3, 0.1, 0.03)]
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] > 0.01  # measured: .29 .040 .0039


@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_without_repair_alignment_is_lost(problem):
    end = problem.solve(DynamicBarrier(phi="zero"), optimizer=SGD, lr=0.1, schedule=constant)
    assert end.gap > 1  # measured: 3.13
    assert end.error > 3


@pytest.mark.parametrize("above", [0.02, 0.1])
@pytest.mark.parametrize(("problem", "steps"), [("affine", 2000), ("procrustes", 3000)], indirect=["problem"])
def test_phi_value_stays_above_the_minimum_by_as_much_as_its_best_is_too_high(problem, steps, above: float):
    end = problem.solve(DynamicBarrier(phi="value", best=problem.best_inner + above), steps=steps)
    assert end.gap == pytest.approx(above, rel=0.1)


@pytest.mark.parametrize("problem", ["procrustes"], indirect=True)
def test_phi_value_with_a_best_too_low_starves_the_task_and_min_does_not(problem):
    best = problem.best_inner - 0.02
    starved = problem.solve(DynamicBarrier(phi="value", best=best), steps=3000)
    served = problem.solve(DynamicBarrier(phi="min", best=best), steps=3000)
    assert starved.excess > 0.2  # measured: .369, an error of 3.5
    assert abs(served.excess) < 1e-3  # 2.3e-6, an error of .012
    assert served.error < 5e-2


@pytest.mark.parametrize("phi", ["value", "min", "half"])
def test_without_a_best_the_oracles_floor_is_taken_and_without_both_there_is_an_error(phi: str):
    assert "floor" in DynamicBarrier(phi=phi).requires
    assert "floor" not in DynamicBarrier(phi=phi, best=0.1).requires
    given = one_step(DynamicBarrier(phi=phi, best=0.25), [1, 0], [0, 2], loss=1.0)
    known = one_step(DynamicBarrier(phi=phi), [1, 0], [0, 2], floor=0.25, loss=1.0)
    assert given == known
    with pytest.raises(ValueError, match=f"phi={phi}: no floor of the inner loss is known; set best="):
        one_step(DynamicBarrier(phi=phi), [1, 0], [0, 2])


@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_phi_half_reaches_the_optimum(problem):
    end = problem.solve(DynamicBarrier(phi="half", best=0.0))
    assert end.error < 2e-3  # measured: 6.9e-4
    assert end.gap < 1e-8


# outer (3, -4), inner (2, 2): <outer, inner> = -2, |inner|^2 = 8
@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        ({"start": 1.0}, (1 * 8 + 2) / 8),
        ({"start": 0.5}, (0.5 * 8 + 2) / 8),
        ({"phi": "zero"}, 2 / 8),
        ({"phi": "value", "best": 0.4, "value_rate": 3.0}, (3 * (1.0 - 0.4) + 2) / 8),
        ({"phi": "value", "best": 3.0}, 0.0),  # -2 + 2
        ({"phi": "half", "best": 0.4}, ((1.0 - 0.4) / 0.5 + 2) / 8),  # the rate is .5
        ({"phi": "half", "best": 3.0}, 2 / 8),
        ({"phi": "min", "best": 0.4, "start": 1.0}, (0.6 + 2) / 8),
        ({"phi": "min", "best": -99.0, "start": 1.0}, (8 + 2) / 8),
        ({"start": 1.0, "max_weight": 0.75}, 0.75),
    ],
)
def test_the_weight_by_hand(settings: dict, weight: float):
    direction = one_step(DynamicBarrier(relative=False, **settings), [3, -4], [2, 2], loss=1.0)
    assert direction == pytest.approx([3 + 2 * weight, -4 + 2 * weight], abs=1e-12)


def test_a_negative_weight_is_clamped_unless_asked_otherwise():
    # outer (4, 0), inner (2, 0): (.5 * 4 - 8) / 4 = -1.5
    assert one_step(DynamicBarrier(0.5, relative=False), [4, 0], [2, 0]) == pytest.approx([4, 0])
    assert one_step(DynamicBarrier(0.5, relative=False, clamp=False), [4, 0], [2, 0]) == pytest.approx([1, 0])


def test_a_vanished_inner_gradient_leaves_the_outer_one_as_it_is():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    minimise(
        DynamicBarrier(),
        {"x": x},
        inner=lambda: 0 * x.sum(),
        outer=lambda: x.sum(),
        steps=2,
        optimizer=SGD([x], lr=0.25),
        schedule=lambda progress: 2 * (1 - progress),
    )
    torch.testing.assert_close(x.detach(), torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("phi", ["grad", "zero"])
def test_to_first_order_no_step_makes_alignment_worse(phi: str):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        outer, inner = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        direction = one_step(DynamicBarrier(phi=phi), outer.tolist(), inner.tolist())
        assert torch.tensor(direction, dtype=torch.float64) @ inner > -1e-9


def test_the_running_mean_has_no_bias_towards_zero():
    """The first step equals one without a mean; step by step the weights are those of a mean with weights ema^age."""
    first = one_step(DynamicBarrier(relative=False, ema=0.9), [3, -4], [2, 2])
    assert first == one_step(DynamicBarrier(relative=False), [3, -4], [2, 2])
    gradients = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = DynamicBarrier(ema=0.8, relative=False)
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    count = iter(range(99))
    outer = {"outer": lambda: x.sum(), "inner": lambda: gradients[max(0, next(count) - 1)] @ x}
    oracle = ClosureOracle({"x": x}, outer, 6, SGD([x], lr=0.1), constant, floor=None, outer_parts=())
    for oracle.step in range(6):
        solver.step(oracle)
        ages = torch.tensor([0.8 ** (oracle.step - i) for i in range(oracle.step + 1)], dtype=torch.float64)
        slow = (ages[:, None] * gradients[: oracle.step + 1]).sum(0) / ages.sum()
        torch.testing.assert_close(solver.means["inner"]["x"], slow)
        torch.testing.assert_close(solver.means["outer"]["x"], torch.ones(3, dtype=torch.float64))


def aligned_block(inner_only: str, **settings):
    """P1 with a block that only the inner loss reads: how far the block is from its optimum of 1, at start 3."""

    def run(problem) -> float:
        x = problem.start["x"].clone().requires_grad_()
        block = torch.full((4,), 3.0, dtype=torch.float64, requires_grad=True)
        minimise(
            DynamicBarrier(inner_only=inner_only, **settings),
            {"x": x, "block": block},
            inner=lambda: problem.inner({"x": x}) + (block - 1).square().sum() / 2,
            outer=lambda: problem.outer({"x": x}),
            steps=1000,
            optimizer=torch.optim.Adam([x, block], lr=0.05, betas=(0.9, 0.99), foreach=False),
            schedule=lambda progress: 1 - progress,
        )
        return (block.detach() - 1).abs().max().item()

    return run


@pytest.mark.parametrize("inner_only", ["plain", "weighted"])
@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_what_only_the_inner_loss_reads_reaches_its_optimum_either_way(problem, inner_only: str):
    assert aligned_block(inner_only)(problem) < 1e-6


def test_a_weight_of_zero_freezes_what_only_the_inner_loss_reads_if_it_is_weighted():
    ends = {}
    for inner_only in ("plain", "weighted"):
        x, block = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
        minimise(
            DynamicBarrier(phi="zero", inner_only=inner_only),
            {"x": x, "block": block},
            inner=lambda x=x, block=block: (x**2 + block**2).sum() / 2,
            outer=lambda x=x: (x**2).sum() / 2,  # agrees with the inner loss: the weight is 0
            steps=20,
            optimizer=SGD([x, block], lr=0.1),
            schedule=lambda progress: 1 - progress / 2,
        )
        ends[inner_only] = block.item()
    assert ends["weighted"] == 1.0
    assert ends["plain"] < 0.5


@pytest.mark.parametrize("problem", ["procrustes"], indirect=True)
def test_a_second_moment_that_does_not_forget_stops_the_way_along_the_aligned_set(problem):
    """Aligned all the same: an alignment gap says nothing about the task. See ``forgetful_adam``."""
    stuck = problem.solve(DynamicBarrier(), steps=3000, optimizer=torch.optim.Adam)
    there = problem.solve(DynamicBarrier(), steps=3000)
    # measured: 2.75 with betas of (.9, .999) and .014 with (.9, .99); gaps 4.6e-11 and 5.9e-11
    assert stuck.gap < 1e-9
    assert stuck.error > 1
    assert there.error < 0.05


def test_beta_rises_by_equal_factors_and_then_stays():
    from_to = DynamicBarrier(1, 100, ramp=0.5, relative=False)
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    betas = []
    oracle = ClosureOracle(
        {"x": x},
        {"inner": lambda: x.square().sum(), "outer": lambda: x.sum()},
        8,
        SGD([x], lr=0.01),
        constant,
        floor=None,
        outer_parts=(),
    )
    oracle.log = lambda **numbers: betas.append(numbers["beta"]) if "beta" in numbers else None
    for oracle.step in range(8):
        from_to.step(oracle)
    assert betas == pytest.approx([1, 100**0.25, 10, 100**0.75, 100, 100, 100, 100])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"phi": "slope"}, "phi: got 'slope', wanted one of grad, value, min, half, zero"),
        ({"start": 0.0}, "start: got 0.0, wanted a finite number above 0"),
        ({"end": math.inf}, "end: got inf"),
        ({"ramp": 0.0}, "ramp: got 0.0, wanted a share of the steps"),
        ({"ramp": 1.5}, "ramp: got 1.5"),
        ({"warmup": 0.0}, "warmup: got 0.0"),
        ({"ema": 1.0}, r"ema: got 1.0, wanted a number in \[0, 1\)"),
        ({"max_weight": -1.0}, "max_weight: got -1.0"),
        ({"value_rate": 0.0}, "value_rate: got 0.0"),
        ({"inner_only": "both"}, "inner_only: got 'both', wanted one of plain, weighted"),
        ({"inner_steps": 0}, "inner_steps: got 0, wanted at least 1"),
    ],
)
def test_the_barrier_refuses_settings_that_mean_nothing(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DynamicBarrier(**wrong)
