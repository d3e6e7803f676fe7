"""Inner losses that read outer parameters: two published problems, and what goes wrong without the value function."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from hialign.solvers import ConstrainedDual, DynamicBarrier, ImplicitTangent, Joint, Solver, ValuePenalty, minimise

SGD = torch.optim.SGD


def zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64, requires_grad=True)


@dataclass
class Ridge:
    """P5: inner ``.5 x0^2 - w x0``, outer ``.5 (w - x1)^2 + .5 (x0 - 1)^2``; the best is w = x0 = x1 = 1.

    For every w the inner level is solved by x0 = w and any x1, so that only the outer loss can choose x1.

    Source: Liu et al. 2020, arXiv:2006.04045 (BDA); Liu et al. 2022, arXiv:2209.08709 (BOME).
    """

    w: Tensor = field(default_factory=lambda: zeros(1))
    x: Tensor = field(default_factory=lambda: zeros(2))

    def solve(self, solver: Solver, *, steps: int = 200, lr: float = 0.5, depends: tuple[str, ...] = ("w",)) -> float:
        minimise(
            solver,
            {"w": self.w, "x": self.x},
            inner=lambda: (self.x[0].square() / 2 - self.w * self.x[0]).sum(),
            outer=lambda: ((self.w - self.x[1]).square() / 2 + (self.x[0] - 1).square() / 2).sum(),
            steps=steps,
            optimizer=SGD([self.w, self.x], lr=lr),
            inner_depends_on_outer=depends,
        )
        return self.w.item()


@pytest.mark.filterwarnings("ignore:DynamicBarrier at a constant learning rate")  # as published
@pytest.mark.parametrize("eta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("inner_steps", [1, 10, pytest.param(100, marks=pytest.mark.slow)])
def test_the_barrier_solves_the_published_problem_in_its_published_settings(inner_steps: int, eta: float):
    ridge = Ridge()
    bome = DynamicBarrier(eta, eta, relative=False, inner_only="weighted", inner_steps=inner_steps)
    ridge.solve(bome, steps=120 if inner_steps == 100 else 200)
    for value in (ridge.w.item(), *ridge.x.tolist()):
        assert value == pytest.approx(1, abs=1e-3)


def test_the_penalty_with_its_shadow_solves_the_published_problem():
    ridge = Ridge()
    ridge.solve(ValuePenalty(1, 1e3, relative=False, scale_step=True), steps=1000)
    for value in (ridge.w.item(), *ridge.x.tolist()):
        assert value == pytest.approx(1, abs=1e-3)


def test_the_tangent_with_its_hypergradient_solves_the_published_problem():
    ridge = Ridge()
    ridge.solve(ImplicitTangent(difference=1e-5), steps=500)
    for value in (ridge.w.item(), *ridge.x.tolist()):
        assert value == pytest.approx(1, abs=1e-3)


def test_the_hypergradient_passes_through_parameters_that_only_the_inner_loss_reads():
    # inner .5 (s - t)^2 + .5 (t - w)^2, so that s = t = w; the outer loss is s, and d s / d w = 1
    s, t, w = zeros(1), zeros(1), zeros(1)
    minimise(
        ImplicitTangent(damping_start=1e-8, damping_end=1e-8, difference=1e-3),
        {"s": s, "t": t, "w": w},
        inner=lambda: ((s - t).square() / 2 + (t - w).square() / 2).sum(),
        outer=lambda: (s + 0 * w).sum(),
        steps=1,
        optimizer=SGD([s, t, w], lr=0.1),
        inner_depends_on_outer=("w",),
    )
    assert w.item() == pytest.approx(-0.1, rel=1e-6)


def test_the_hypergradient_alone_never_selects_among_the_inner_minima():
    # with hardly any pull of the outer loss on x, x1 stays at its start of 0, and w at (0 + 1) / 2
    ridge = Ridge()
    assert 0.49 <= ridge.solve(ImplicitTangent(pull=1e-6, difference=1e-5), steps=500) <= 0.51
    assert abs(ridge.x[1].item()) < 1e-3


@pytest.mark.parametrize("depends", [(), ("w",)])
@pytest.mark.filterwarnings("ignore:Joint with an inner loss that depends")
def test_a_weighted_sum_diverges_where_the_inner_loss_has_no_minimum_in_the_outer_parameters(depends):
    assert Ridge().solve(Joint(10), lr=0.05, steps=500, depends=depends) > 1e3


def test_a_budget_for_the_inner_loss_is_met_by_making_it_easy():
    with pytest.warns(UserWarning, match="ConstrainedDual with an inner loss that depends on outer parameters"):
        assert Ridge().solve(ConstrainedDual(best=0.0), lr=0.05, steps=500) > 10  # measured: 182


def follow(y: Tensor, x: Tensor) -> Tensor:
    return ((x + y).square() + x * torch.sin(x + y).square()).sum()


def landscape(y: Tensor, x: Tensor) -> Tensor:
    return torch.cos(4 * y + 2) / (1 + torch.exp(2 - 4 * x)) + torch.log((4 * x - 2).square() + 1) / 2


MINIMA = [0.3824, 1.2152, 2.8296]


def test_the_published_minima_are_those_of_a_grid():
    # the inner minimum is y = -x for x in [0, 3]
    x = torch.linspace(0, 3, 300_001, dtype=torch.float64)
    value = landscape(-x, x)
    lowest = x[1:-1][(value[1:-1] < value[:-2]) & (value[1:-1] < value[2:])]
    assert lowest.tolist() == pytest.approx(MINIMA, abs=1e-4)
    assert landscape(-lowest, lowest).tolist() == pytest.approx([0.4427, 0.1999, 1.2435], abs=1e-4)
    y = torch.linspace(-4, 1, 5001, dtype=torch.float64)
    for place in (0.0, 1.5, 3.0):
        values = torch.stack([follow(v, torch.tensor(place, dtype=torch.float64)) for v in y])
        assert y[values.argmin()].item() == pytest.approx(-place, abs=2e-3)


@pytest.mark.parametrize(
    ("gamma", "steps", "minima", "off"),
    # Shen and Chen's problem; the penalty's own minima are a little to the left of the problem's
    [(10.0, 1500, [0.37, 1.19, 2.82], 0.034), (100.0, 3000, [0.38, 1.21, 2.83], 0.003)],
)
def test_the_penalty_ends_at_the_local_minima_of_the_published_nonconvex_problem(gamma, steps, minima, off):
    """P6, forty starts side by side, which do not see each other under gradient descent.

    Source: Shen and Chen 2023, arXiv:2302.05185, sec. 6.1.
    """
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.rand(40, generator=generator, dtype=torch.float64)).requires_grad_()
    y = (6 * torch.rand(40, generator=generator, dtype=torch.float64) - 3).requires_grad_()
    minimise(
        ValuePenalty(gamma, gamma, relative=False, scale_step=True, inner_rate=0.1),
        {"x": x, "y": y},
        inner=lambda: follow(y, x),
        outer=lambda: landscape(y, x).sum(),
        steps=steps,
        optimizer=SGD([x, y], lr=0.1),
        inner_depends_on_outer=("x",),
    )
    nearest = (x.detach()[:, None] - torch.tensor(minima, dtype=torch.float64)).abs().min(1)
    assert nearest.values.max() < 0.01
    assert set(nearest.indices.tolist()) == {0, 1, 2}  # every minimum is somebody's
    assert (x + y).abs().max() < off


def test_where_no_parameter_is_shared_the_rate_is_the_inner_ones():
    # the levels meet only in what the inner loss reads of w
    w, x = zeros(1), zeros(1)
    minimise(
        ValuePenalty(1, 1, relative=False),
        {"w": w, "x": x},
        inner=lambda: (x - w).square().sum() / 2,
        outer=lambda: (w - 1).square().sum() / 2,
        steps=200,
        optimizer=SGD([{"params": [w], "lr": 0.1}, {"params": [x], "lr": 0.2}]),
        inner_depends_on_outer=("w",),
    )
    assert (w.item(), x.item()) == pytest.approx((1, 1), abs=1e-3)
