"""The optima that the solvers' tests rest on, checked by a second way: aligned, and no slope along the aligned set."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hialign.losses import info_nce, info_nce_floor


def on_circle(x: Tensor) -> Tensor:
    return x.square().sum() - 1


def on_hyperbola(x: Tensor) -> Tensor:
    return x.prod() - 1


@pytest.mark.parametrize(
    ("problem", "point", "constraint"),
    [
        ("factorisation", [math.sqrt(2), math.sqrt(0.5)], on_hyperbola),
        ("circle", [2 / math.sqrt(5), 1 / math.sqrt(5)], on_circle),
        ("flat", [0.0, 1.0], lambda x: x[0]),
    ],
    indirect=["problem"],
)
def test_the_optimum_is_aligned_and_the_task_falls_only_across_the_aligned_set(problem, point, constraint):
    x = torch.tensor(point, dtype=torch.float64)
    assert problem.error({"x": x}) < 1e-15
    assert problem.inner({"x": x}).item() == pytest.approx(problem.best_inner, abs=1e-15)
    assert problem.outer({"x": x}).item() == pytest.approx(problem.best_outer, abs=1e-15)
    assert constraint(x).item() == pytest.approx(0, abs=1e-15)
    pull, normal = torch.func.grad(lambda v: problem.outer({"x": v}))(x), torch.func.grad(constraint)(x)
    assert pull.norm() > 0.5  # the task pulls away, which is why no finite weight will do
    across = normal * (pull @ normal) / normal.square().sum()
    torch.testing.assert_close(pull, across, rtol=0, atol=1e-14)


@pytest.mark.parametrize("problem", ["affine_with_phi"], indirect=True)
def test_the_optimum_of_p1b_solves_its_kkt_system(problem, affine):
    columns, size = len(affine.c), len(affine.c) + 3

    def outer(v: Tensor) -> Tensor:
        return problem.outer({"x": v[:columns], "phi": v[columns:]})

    zero = torch.zeros(size, dtype=torch.float64)
    hessian, slope = torch.func.hessian(outer)(zero), torch.func.grad(outer)(zero)
    rows = torch.nn.functional.pad(affine.matrix, (0, 3))
    corner = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    kkt = torch.cat([torch.cat([hessian, rows.T], 1), torch.cat([rows, corner], 1)])
    v = torch.linalg.solve(kkt, torch.cat([-slope, affine.b]))[:size]
    assert problem.error({"x": v[:columns], "phi": v[columns:]}) < 1e-12
    assert outer(v).item() == pytest.approx(problem.best_outer, rel=1e-12)
    assert v[columns:].norm() > 0.1  # else it would be P1


@pytest.mark.parametrize("problem", ["procrustes"], indirect=True)
def test_no_rotation_of_the_simplex_serves_the_task_better_than_the_optimum(problem, simplex):
    corners = simplex(4, 4)
    torch.testing.assert_close(corners @ corners.T, (4 * torch.eye(4, dtype=torch.float64) - 1) / 3)
    generator = torch.Generator().manual_seed(0)
    best = math.inf
    for _ in range(300):
        turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
        rows = {"z": corners @ turn, "w": corners @ turn}
        assert problem.inner(rows).item() == pytest.approx(problem.best_inner, abs=1e-12)
        best = min(best, problem.outer(rows).item())
    assert problem.best_outer <= best < problem.best_outer + 0.2


@pytest.mark.parametrize("problem", ["procrustes"], indirect=True)
def test_descent_over_rotations_alone_ends_at_the_optimum_of_p4(problem, simplex):
    # a rotation is exp(K - K^T): no constraint is left, so that plain descent is a second way to the same point
    corners = simplex(4, 4)
    free = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=0
    )

    def rotated() -> dict[str, Tensor]:
        rows = corners @ torch.linalg.matrix_exp(free - free.T)
        return {"z": rows, "w": rows}

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.outer(rotated())
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        assert problem.error(rotated()) < 1e-5
        assert problem.outer(rotated()).item() == pytest.approx(problem.best_outer, abs=1e-10)


def test_the_constants_of_a_larger_p4_are_the_published_ones(simplex):
    # N = 6, dim 8, temperature .5: L_CL* = .374036
    rows = simplex(6, 8)
    assert info_nce_floor(6, 0.5).item() == pytest.approx(0.374036, abs=5e-7)
    assert info_nce(rows, rows, temperature=0.5).item() == pytest.approx(0.374036, abs=5e-7)
