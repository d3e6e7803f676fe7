"""minimise: two closures, any solver, any optimiser."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import subprocess
import sys

import pytest
import torch

from hialign.solvers import Alternating, Joint, Sequential, Single, minimise


def test_the_example_in_the_docstring_runs():
    module = importlib.import_module("hialign.solvers.minimise")
    (example,) = doctest.DocTestFinder().find(minimise, "minimise", globs=dict(vars(module)))
    assert len(example.examples) >= 3
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.failed == 0, "".join(report)


def test_single_minimises_the_outer_loss_and_never_asks_the_inner_one_again(affine):
    x = affine.start.clone().requires_grad_()
    calls = []
    end = minimise(
        Single(),
        {"x": x},
        inner=lambda: calls.append(1) or affine.inner(x),
        outer=lambda: affine.outer(x),
        steps=60,
        optimizer=torch.optim.SGD([x], lr=0.5),
    )
    torch.testing.assert_close(x.detach(), affine.c)
    assert len(calls) == 1  # the probe that finds the groups
    assert math.isnan(end.inner)
    assert end.outer == pytest.approx(0, abs=1e-12)


def test_single_asks_an_oracle_for_the_outer_level_only(oracle):
    assert oracle.run(Single(), range(2)) == [("grads", "outer"), ("apply", {"tower": 1.0, "llm": 1.0}, None)] * 2


@pytest.mark.parametrize("solver", [Single(), Joint(), Alternating()])
def test_a_solver_without_state_loads_an_empty_one(solver):
    assert solver.state_dict() == {}
    solver.load_state_dict({})


def test_only_single_does_without_an_inner_level():
    assert not Single.two_level
    assert all(solver.two_level for solver in (Alternating, Joint, Sequential))


def test_levels_that_share_no_parameter_are_an_error_before_anything_moves():
    x, y = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match="the inner loss reaches x, the outer loss y; train a part that both"):
        minimise(
            Joint(),
            {"x": x, "y": y},
            inner=lambda: (x - 1).square().sum(),
            outer=lambda: (y - 1).square().sum(),
            steps=1,
            optimizer=torch.optim.SGD([x, y], lr=1.0),
        )
    assert (x.item(), y.item()) == (0, 0)


def test_the_schedule_is_asked_for_the_middle_of_each_step_and_scales_every_groups_rate():
    x, y = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    asked = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 1 - progress

    minimise(
        Single(),
        {"x": x, "y": y},
        inner=lambda: (x + y).sum(),
        outer=lambda: (x + y).sum(),
        steps=2,
        optimizer=torch.optim.SGD([{"params": [x], "lr": 1.0}, {"params": [y], "lr": 10.0}], lr=0.0),
        schedule=schedule,
    )
    assert set(asked) == {0.25, 0.75}
    assert x.item() == pytest.approx(-1.0)  # .75 + .25
    assert y.item() == pytest.approx(-10.0)


def test_parameters_without_an_entry_stay_where_they_are_even_under_weight_decay():
    x, y = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    minimise(
        Single(),
        {"x": x, "y": y},
        inner=lambda: (x + y).sum(),
        outer=lambda: x.sum(),
        steps=3,
        optimizer=torch.optim.AdamW([x, y], lr=0.1, weight_decay=0.5),
    )
    assert y.item() == 1.0
    assert x.item() < 0.8


def test_no_gradient_is_left_behind(affine):
    x = affine.start.clone().requires_grad_()
    minimise(
        Joint(),
        {"x": x},
        inner=lambda: affine.inner(x),
        outer=lambda: affine.outer(x),
        steps=1,
        optimizer=torch.optim.SGD([x], lr=0.1),
    )
    assert x.grad is None


def test_gradients_that_autograd_hands_out_twice_or_expanded_are_copied_before_a_solver_overwrites_them():
    # the gradient of a sum is one number seen through a stride of 0, and both terms of x + y get the same tensor
    x, y = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    minimise(
        Joint(weight=3.0),
        {"x": x, "y": y},
        inner=lambda: (x + y).sum(),
        outer=lambda: ((x + y) * 2).sum(),
        steps=1,
        optimizer=torch.optim.SGD([x, y], lr=1.0),
    )
    assert x.tolist() == y.tolist() == [-5.0, -5.0]


def test_solvers_import_torch_and_nothing_else():
    code = """
import json, sys, torch
before = set(sys.modules)
import hialign.solvers
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    new = json.loads(done.stdout.splitlines()[-1])
    outside = {name for name in new if name.partition(".")[0] not in {*sys.stdlib_module_names, "torch", "hialign"}}
    assert not outside
    ours = {name for name in new if name.startswith("hialign.")}
    assert ours
    assert not {name for name in ours if not name.startswith("hialign.solvers")}
