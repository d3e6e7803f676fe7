"""PCGrad, MGDA and CAGrad: their weights by hand and by brute force, and what they cannot do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hialign.solvers import MGDA, CAGrad, PCGrad, minimise
from hialign.solvers.weighing import Meeting


def pairs(count: int = 20) -> list[tuple[Tensor, Tensor]]:
    """Gradients of quite different lengths, at every angle."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        outer, inner = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        found.append((outer * 10 ** torch.randn(1, generator=generator).item(), inner))
    return found


def met(outer: Tensor, inner: Tensor) -> Meeting:
    return Meeting((outer @ inner).item(), (inner @ inner).item(), (outer @ outer).item())


def direction(solver, outer: Tensor, inner: Tensor) -> Tensor:
    a, b = solver.weights(met(outer, inner))
    return a * outer + b * inner


def test_pcgrad_by_hand():
    # (3, -4) and (2, 2): the product is -2, the squares 25 and 8
    assert PCGrad().weights(Meeting(-2, inner=8, outer=25)) == (1 + 2 / 25, 1 + 2 / 8)
    assert PCGrad().weights(Meeting(2, inner=8, outer=25)) == (1, 1)


def test_pcgrad_is_the_sum_of_each_gradient_less_its_projection_on_the_other():
    for outer, inner in pairs():
        first, second = outer.clone(), inner.clone()
        if outer @ inner < 0:
            first -= (outer @ inner) / (inner @ inner) * inner
            second -= (outer @ inner) / (outer @ outer) * outer
        torch.testing.assert_close(direction(PCGrad(), outer, inner), first + second)


def test_mgda_by_hand():
    # perpendicular lengths 2 and 1: the shortest point of the segment is 1/5 and 4/5 of the way
    assert MGDA().weights(Meeting(0, inner=1, outer=4)) == pytest.approx((0.2, 0.8))
    assert MGDA().weights(Meeting(2, inner=1, outer=4)) == (0, 1)  # parallel: the shorter one
    assert MGDA().weights(Meeting(1, inner=1, outer=1)) == (0.5, 0.5)  # equal


def test_mgda_is_the_shortest_convex_combination_of_a_grid():
    share = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    for outer, inner in pairs():
        lengths = (share * outer + (1 - share) * inner).norm(dim=1)
        assert direction(MGDA(), outer, inner).norm() <= lengths.min() + 1e-12
        a, b = MGDA().weights(met(outer, inner))
        assert a + b == pytest.approx(1)
        assert a == pytest.approx(share[lengths.argmin()].item(), abs=1e-4)


def test_cagrad_by_hand():
    # equal lengths: by symmetry the dual is solved half way, g_w is the mean, and the direction the mean times 1 + c
    a, b = CAGrad(0.4).weights(Meeting(0, inner=1, outer=1))
    assert (a, b) == pytest.approx((0.7, 0.7), abs=1e-6)
    assert CAGrad(0.0).weights(Meeting(-0.3, inner=2, outer=1)) == (0.5, 0.5)


@pytest.mark.parametrize("conflict", [0.2, 0.5, 0.9])
def test_cagrad_gains_as_much_for_the_worse_task_as_any_direction_of_a_grid(conflict: float):
    # the primal: the best worst gain within |d - mean| <= c |mean|; the best d lies in the plane of both gradients
    angles = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    for outer, inner in pairs():
        found = direction(CAGrad(conflict), outer, inner)
        mean = (outer + inner) / 2
        radius = conflict * mean.norm()
        assert (found - mean).norm() <= radius * (1 + 1e-9)
        axes = torch.linalg.qr(torch.stack([outer, inner], 1))[0]
        around = mean + radius * (torch.stack([angles.cos(), angles.sin()], 1) @ axes.T)
        best = torch.minimum(around @ outer, around @ inner).max()
        worse = torch.minimum(found @ outer, found @ inner)
        assert worse >= best - 1e-6 * outer.norm() * inner.norm()


def test_cagrads_dual_is_as_low_as_on_a_grid():
    share = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
    for outer, inner in pairs():
        mean = (outer + inner) / 2
        radius = 0.4 * mean.norm()
        combined = share * outer + (1 - share) * inner
        dual = combined @ mean + radius * combined.norm(dim=1)
        best = share[dual.argmin()]
        g = best * outer + (1 - best) * inner
        slow = mean + radius * g / g.norm()
        torch.testing.assert_close(direction(CAGrad(0.4), outer, inner), slow, rtol=1e-3, atol=1e-3 * slow.norm())


def test_cagrad_without_a_bound_points_where_mgda_does():
    unbounded = CAGrad()
    unbounded.conflict = 1e6  # more than it takes
    for outer, inner in pairs():
        far, mgda = direction(unbounded, outer, inner), direction(MGDA(), outer, inner)
        assert torch.cosine_similarity(far, mgda, dim=0) > 1 - 1e-6


@pytest.mark.parametrize("solver", [PCGrad(), MGDA(), CAGrad()])
def test_gradients_that_vanish_divide_by_nothing(solver):
    for inner, outer in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        assert all(math.isfinite(weight) for weight in solver.weights(Meeting(0.0, inner, outer)))


def test_mgda_never_moves_from_an_aligned_point(affine):
    aligned = affine.start - torch.linalg.pinv(affine.matrix) @ (affine.matrix @ affine.start - affine.b)
    # rounding leaves an inner gradient of 1e-16, and MGDA does what that says
    x = aligned.clone().requires_grad_()
    minimise(
        MGDA(),
        {"x": x},
        inner=lambda: affine.inner(x),
        outer=lambda: affine.outer(x),
        steps=200,
        optimizer=torch.optim.SGD([x], lr=0.5),
    )
    assert (x.detach() - aligned).norm() < 1e-12
    assert affine.outer(aligned) > affine.outer(affine.optimum) + 5  # measured: 9.3 above


@pytest.mark.parametrize("solver", [PCGrad, CAGrad])
@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_a_compromise_gives_alignment_up(problem, solver):
    # measured: gaps of 1.9 and 1.5
    assert problem.solve(solver(), steps=500, lr=0.05).gap > 1


@pytest.mark.parametrize("solver", [PCGrad(), MGDA(), CAGrad()])
def test_a_parameter_that_one_level_reaches_follows_its_gradient(oracle, solver):
    (_, applied, _) = oracle.run(solver, range(1))[-1]
    assert (applied["head"], applied["llm"]) == (1.0, 1.0)


@pytest.mark.parametrize("conflict", [-0.1, 1.0, math.nan])
def test_cagrad_refuses_a_conflict_outside_its_range(conflict: float):
    with pytest.raises(ValueError, match="conflict: got"):
        CAGrad(conflict)
