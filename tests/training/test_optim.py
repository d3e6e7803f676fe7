"""The optimiser's groups and the schedule's numbers."""

from __future__ import annotations

import math

import pytest
import torch

from hialign.training import Optimisation
from hialign.training.optim import adamw, schedule


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.05, 0.25),  # a quarter of the warm-up
        (0.1, 0.5),
        (0.2, 1.0),
        (0.4, (1 + math.sqrt(0.5)) / 2),  # a quarter of the way down
        (0.6, 0.5),
        (0.8, (1 - math.sqrt(0.5)) / 2),
        (1.0, 0.0),
    ],
)
def test_cosine_rises_linearly_for_the_warmup_and_falls_to_zero(progress, expected):
    factor = schedule(Optimisation(steps=10, warmup=0.2, schedule="cosine"))
    assert factor(progress) == pytest.approx(expected, abs=1e-12)


def test_constant_stays_at_1_after_the_warmup():
    factor = schedule(Optimisation(steps=10, warmup=0.2, schedule="constant"))
    assert [factor(progress) for progress in (0.05, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.25, 0.5, 1, 1, 1])


def test_without_warmup_the_first_step_is_not_zero():
    factor = schedule(Optimisation(steps=10, warmup=0.0))
    assert factor(0.0) == 1.0
    assert factor(0.05) == pytest.approx((1 + math.cos(0.05 * math.pi)) / 2)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule: got 'linear', wanted one of cosine, constant"):
        schedule(Optimisation(steps=10, schedule="linear"))


def zeros(*shape):
    return torch.zeros(shape, requires_grad=True)


def test_only_matrices_are_decayed():
    parameters = {name: torch.ones(shape, requires_grad=True) for name, shape in (("w", (2, 2)), ("b", (2,)))}
    optimizer = adamw(parameters, dict.fromkeys(parameters, 0.1), Optimisation(steps=1, weight_decay=0.5))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert parameters["b"].tolist() == [1.0, 1.0]
    torch.testing.assert_close(parameters["w"], torch.full((2, 2), 1 - 0.1 * 0.5))


def test_each_part_moves_at_its_own_rate():
    parameters = {"llm": zeros(2, 2), "vision": zeros(2, 2), "bias": zeros(2)}
    rates = {"llm": 0.1, "vision": 0.002, "bias": 0.1}
    optimizer = adamw(parameters, rates, Optimisation(steps=1))
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, -7.0)
    optimizer.step()
    for name, parameter in parameters.items():  # Adam's first step is the rate, whatever the gradient's size
        torch.testing.assert_close(parameter, torch.full_like(parameter, rates[name]))


def test_groups_keep_the_rate_that_the_schedule_scales_and_the_betas():
    parameters = {"llm": zeros(2, 2), "vision": zeros(2, 2)}
    optimizer = adamw(parameters, {"llm": 0.1, "vision": 0.2}, Optimisation(steps=1, betas=(0.8, 0.95)))
    assert sorted(group["base_lr"] for group in optimizer.param_groups) == [0.1, 0.2]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
