"""ImplicitTangent: its linear algebra against exact solves, and where it ends."""

from __future__ import annotations

import math

import pytest
import torch

from hialign.solvers import ImplicitTangent
from hialign.solvers.minimise import ClosureOracle

SGD = torch.optim.SGD


def curved(seed: int = 0, size: int = 6):
    """A loss with a Hessian that is neither constant nor singular, of two tensors; an oracle of it as inner loss."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64)
    start = torch.randn(size, generator=generator, dtype=torch.float64)

    def loss(v):
        return v @ matrix @ v / 2 + (v**4).sum() / 20

    x, y = start[:4].clone().requires_grad_(), start[4:].clone().requires_grad_()
    closures = {"inner": lambda: loss(torch.cat([x, y])), "outer": lambda: (torch.cat([x, y]) - 1).square().sum() / 2}
    parameters = {"x": x, "y": y}
    oracle = ClosureOracle(parameters, closures, 10, SGD([x, y], lr=0.1), lambda p: 1.0, floor=None, outer_parts=())
    return oracle, torch.func.hessian(loss)(start), start


def flatten(parts) -> torch.Tensor:
    return torch.cat([parts["x"], parts["y"]])


def parts(v: torch.Tensor):
    return {"x": v[:4].clone(), "y": v[4:].clone()}


def test_the_curvature_product_is_the_exact_hessians():
    oracle, hessian, start = curved()
    product = ImplicitTangent(difference=1e-4)._curvature(oracle, damping=0.25)
    for seed in range(5):
        v = 10**seed * torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(flatten(product(parts(v))), hessian @ v + 0.25 * v, rtol=1e-7, atol=1e-7)
    assert torch.equal(torch.cat([oracle.parameters["x"], oracle.parameters["y"]]).detach(), start)


def test_conjugate_gradients_solve_the_damped_system_in_as_many_steps_as_it_has_dimensions():
    oracle, hessian, _ = curved()
    solver = ImplicitTangent(steps=6, difference=1e-4)
    target = torch.randn(6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = solver._solve(oracle, solver._curvature(oracle, 0.1), parts(target), 0.1)
    exact = torch.linalg.solve(hessian + 0.1 * torch.eye(6, dtype=torch.float64), target)
    torch.testing.assert_close(flatten(found), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("curvature", "factor"), [(-2.0, 0.4), (-0.5, 1.0), (-0.6, 1 / 1.1)])
def test_against_negative_curvature_the_target_is_divided_by_its_absolute_value_and_the_damping(
    curvature: float, factor: float
):
    """1 / (|curvature| + damping): 1 / 2.5, and no more than 1 / (2 damping) where the damped curvature vanishes."""
    oracle, _, _ = curved()
    target = parts(torch.arange(1.0, 7.0, dtype=torch.float64))

    def damped(v):
        return {name: (curvature + 0.5) * tensor for name, tensor in v.items()}

    found = ImplicitTangent(steps=6)._solve(oracle, damped, target, 0.5)
    torch.testing.assert_close(flatten(found), factor * flatten(target))


def test_conjugate_gradients_end_at_a_direction_of_no_curvature_with_what_they_have():
    oracle, _, _ = curved()
    target = parts(torch.arange(1.0, 7.0, dtype=torch.float64))
    diagonal = torch.tensor([3.0, 3, 3, 3, 3, -3], dtype=torch.float64)  # along the target: 3 * (55 - 36) / 91 > 0

    def product(v):
        return parts(diagonal * flatten(v))

    found = ImplicitTangent(steps=6)._solve(oracle, product, target, 0.5)
    torch.testing.assert_close(flatten(found), 91 / (3 * 19) * flatten(target))  # the first step alone


def test_a_step_is_the_exact_damped_newton_step():
    oracle, hessian, start = curved()
    inner = flatten(oracle.grads("inner"))
    outer = flatten(oracle.grads("outer"))
    solver = ImplicitTangent(pull=3.0, damping_start=0.2, damping_end=0.2, steps=12, trust=1e9, difference=1e-4)
    solver.step(oracle)
    moved = flatten({name: p.detach() for name, p in oracle.parameters.items()}) - start
    damped = hessian + 0.2 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(moved, -torch.linalg.solve(damped, inner + 0.2 * 3.0 * outer), rtol=1e-6, atol=1e-6)


def test_a_step_is_no_longer_than_the_trust_region():
    oracle, _, start = curved()
    ImplicitTangent(pull=100.0, trust=0.01).step(oracle)
    moved = flatten({name: p.detach() for name, p in oracle.parameters.items()}) - start
    assert moved.norm().item() == pytest.approx(0.01 * start.norm().item())


@pytest.mark.parametrize(
    ("problem", "error"),
    [("affine", 5e-3), ("factorisation", 5e-3), ("circle", 5e-3), ("affine_with_phi", 5e-3)],
    indirect=["problem"],
)
def test_the_tangent_reaches_the_optimum(problem, error: float):
    solver = ImplicitTangent(pull=0.5, damping_end=1e-4, difference=1e-5)
    end = problem.solve(solver, steps=300, lr=0.2, optimizer=SGD, schedule=lambda p: 1.0)
    assert end.error < error
    assert end.gap < 1e-6


@pytest.mark.parametrize("problem", ["affine"], indirect=True)
def test_its_fixed_point_is_the_weighted_sums_with_the_weight_of_its_last_damping(problem, affine):
    solver = ImplicitTangent(pull=0.5, damping_start=0.05, damping_end=0.05, difference=1e-5)
    x = problem.solve(solver, steps=300, lr=0.5, optimizer=SGD, schedule=lambda p: 1.0).x["x"]
    torch.testing.assert_close(x, affine.joint(1 / (0.05 * 0.5)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("problem", ["affine_with_phi"], indirect=True)
def test_what_only_the_outer_loss_reads_moves_by_the_optimiser(problem):
    moved = problem.solve(ImplicitTangent(), steps=1, lr=0.5, optimizer=SGD, schedule=lambda p: 1.0).x["phi"]
    phi = problem.start["phi"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.outer({**problem.start, "phi": phi}), phi)
    torch.testing.assert_close(moved, problem.start["phi"] - 0.5 * slope)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pull": 0.0}, "pull: got 0.0, wanted a finite number above 0"),
        ({"damping_start": -1.0}, "damping_start: got -1.0"),
        ({"damping_end": 0.0}, "damping_end: got 0.0"),
        ({"ramp": 2.0}, "ramp: got 2.0"),
        ({"steps": 0}, "steps: got 0, wanted at least 1"),
        ({"trust": math.inf}, "trust: got inf"),
        ({"difference": 0.0}, "difference: got 0.0"),
    ],
)
def test_the_tangent_refuses_settings_that_mean_nothing(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ImplicitTangent(**wrong)
