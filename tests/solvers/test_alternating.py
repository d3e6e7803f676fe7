"""Alternating: an outer step, then inner ones."""

from __future__ import annotations

import pytest
import torch

from hialign.solvers import Alternating, minimise


def test_a_fading_pull_comes_much_closer_to_the_hierarchical_optimum_than_a_constant_one(affine):
    constant, _ = affine.minimise(Alternating(inner_steps=1, power=0.0, half_life=10), steps=1000, lr=0.3)
    fading, _ = affine.minimise(Alternating(inner_steps=1, power=1.0, half_life=10), steps=1000, lr=0.3)
    # measured: 2.60 and .081; gaps 1.40 and 1.3e-3
    assert (constant - affine.optimum).norm() > 2
    assert (fading - affine.optimum).norm() < 0.1
    assert affine.inner(fading) < 2e-3


def test_more_inner_steps_come_closer(affine):
    errors = {}
    for inner_steps in (1, 5):
        x, _ = affine.minimise(Alternating(inner_steps, power=1.0, half_life=10), steps=300, lr=0.3)
        errors[inner_steps] = (x - affine.optimum).norm().item()
    # measured: .255 and .041
    assert errors[5] < errors[1] / 4


def test_what_only_the_outer_loss_sees_gets_its_whole_gradient_and_the_shared_a_fading_part(oracle):
    solver = Alternating(inner_steps=1, power=1.0, half_life=2.0)
    steps = [note[1] for note in oracle.run(solver, range(5)) if note[0] == "apply"]
    for step, direction in enumerate(steps[::2]):
        assert direction == {"tower": pytest.approx(1 / (1 + step / 2)), "llm": 1.0}
    assert steps[1::2] == [{"head": 1.0, "tower": 1.0}] * 5
    assert oracle.logged == {"outer_pull": pytest.approx(1 / 3)}


def test_an_outer_only_parameter_follows_plain_gradient_descent():
    x, y = (torch.tensor([1.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    minimise(
        Alternating(inner_steps=2, power=1.0, half_life=1.0),
        {"x": x, "y": y},
        inner=lambda: (x**2).sum() / 2,
        outer=lambda: (x**2 + y**2).sum() / 2,
        steps=7,
        optimizer=torch.optim.SGD([x, y], lr=0.1),
    )
    assert y.item() == pytest.approx(0.9**7, rel=1e-12)


@pytest.mark.parametrize("inner_steps", [1, 4])
def test_an_outer_step_is_followed_by_inner_steps(oracle, inner_steps: int):
    asked = [note[1] for note in oracle.run(Alternating(inner_steps), range(3)) if note[0] == "grads"]
    assert asked == (["outer"] + ["inner"] * inner_steps) * 3


def test_every_inner_gradient_is_taken_at_the_point_that_the_last_step_reached():
    seen = []
    x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)

    def inner():
        seen.append(x.item())
        return (x**2).sum() / 2

    minimise(
        Alternating(inner_steps=3, power=0.0),
        {"x": x},
        inner=inner,
        outer=lambda: x.sum(),
        steps=1,
        optimizer=torch.optim.SGD([x], lr=0.5),
    )
    assert seen[1:] == [0.5, 0.25, 0.125]  # the first is the probe's


def test_alternating_has_no_state_besides_the_step(oracle, another_oracle):
    whole = oracle.run(Alternating(2), range(6))
    first, second = Alternating(2), Alternating(2)
    notes = another_oracle.run(first, range(3))
    second.load_state_dict(first.state_dict())
    assert notes + another_oracle.run(second, range(3, 6)) == whole


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_steps": 0}, "inner_steps: got 0, wanted at least 1"),
        ({"power": 1.5}, r"power: got 1.5, wanted a number in \[0, 1\]"),
        ({"power": -0.1}, "power: got -0.1"),
        ({"power": float("nan")}, "power: got nan"),
        ({"half_life": 0}, "half_life: got 0, wanted a number of steps above 0"),
        ({"half_life": float("nan")}, "half_life: got nan"),
    ],
)
def test_alternating_refuses_settings_that_cannot_converge(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Alternating(**wrong)
