"""Joint ends at the optimum of its weighted sum, which is not the hierarchical one."""

from __future__ import annotations

import pytest
import torch

from hialign.solvers import Joint, minimise


def test_the_optimum_of_p1_solves_its_kkt_system(affine):
    # the tests below rest on this formula, so it is checked by a second way: x + A^T m = c, A x = b
    rows, columns = affine.matrix.shape
    kkt = torch.zeros(columns + rows, columns + rows, dtype=torch.float64)
    kkt[:columns, :columns] = torch.eye(columns)
    kkt[:columns, columns:], kkt[columns:, :columns] = affine.matrix.T, affine.matrix
    solution = torch.linalg.solve(kkt, torch.cat([affine.c, affine.b]))[:columns]
    torch.testing.assert_close(affine.optimum, solution)


@pytest.mark.parametrize("weight", [0.0, 1.0, 10.0, 30.0])
def test_joint_ends_at_the_closed_form_of_its_weight(affine, weight: float):
    steps = 40 + int(15 * weight)  # the null space of A contracts by weight / (1 + weight) a step
    x, _ = affine.minimise(Joint(weight), steps=steps, lr=1 / (1 + weight))
    assert (x - affine.joint(weight)).norm() < 1e-3


# the distance is |row i of V^T c - b_i / s_i| / (1 + weight * s_i^2) in each singular direction: 2.711, .753, .290
@pytest.mark.parametrize(("weight", "distance"), [(1.0, 2.7), (10.0, 0.74), (30.0, 0.28)])
def test_joint_does_not_reach_the_hierarchical_optimum(affine, weight: float, distance: float):
    x, end = affine.minimise(Joint(weight), steps=40 + int(15 * weight), lr=1 / (1 + weight))
    assert (x - affine.optimum).norm() > distance
    assert affine.outer(x) < affine.outer(affine.optimum)  # it bought task loss with alignment
    assert end.inner == pytest.approx(affine.inner(x).item(), rel=1e-3)
    assert end.inner > 0.01


def test_joint_with_adam_and_a_cosine_ends_at_the_closed_form_too(affine):
    x, _ = affine.minimise(
        Joint(1.0),
        steps=1000,
        lr=0.1,
        optimizer=torch.optim.Adam,
        schedule=lambda progress: (1 + torch.cos(torch.tensor(torch.pi * progress)).item()) / 2,
    )
    assert (x - affine.joint(1.0)).norm() < 1e-3


def factorise(weight: float, *, kappa: float = 2.0) -> tuple[float, float]:
    """P2: inner .5 (a b - 1)^2, outer .5 (a^2 + kappa^2 b^2), from (.5, 3)."""
    a, b = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.5, 3.0))
    minimise(
        Joint(weight),
        {"a": a, "b": b},
        inner=lambda: ((a * b - 1) ** 2 / 2).sum(),
        outer=lambda: ((a**2 + kappa**2 * b**2) / 2).sum(),
        steps=600,
        optimizer=torch.optim.SGD([a, b], lr=0.1 if weight <= 2 else 0.02),
    )
    return a.item(), b.item()


@pytest.mark.parametrize("weight", [0.5, 1.0, 1.9, 2.0])
def test_joint_collapses_on_p2_for_a_weight_of_at_most_kappa(weight: float):
    a, b = factorise(weight, kappa=2.0)
    assert (a * b - 1) ** 2 / 2 > 0.49  # alignment is destroyed: the loss of (0, 0) is .5
    if weight < 1.9:
        assert abs(a) + abs(b) < 1e-6


@pytest.mark.parametrize("weight", [4.0, 10.0])
def test_joint_ends_at_one_minus_kappa_over_weight_on_p2_above_kappa(weight: float):
    a, b = factorise(weight, kappa=2.0)
    assert a * b == pytest.approx(1 - 2.0 / weight, abs=1e-4)
    assert a / b == pytest.approx(2.0, abs=1e-3)


def test_joint_applies_the_weighted_sum_over_the_union_once_a_step(oracle):
    assert oracle.run(Joint(weight=3.0), range(1)) == [
        ("grads", "outer"),
        ("grads", "inner"),
        ("apply", {"head": 3.0, "tower": 4.0, "llm": 1.0}, None),
    ]


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_joint_refuses_a_weight_that_is_no_weight(weight: float):
    with pytest.raises(ValueError, match="weight: got"):
        Joint(weight)
