"""A run that is stopped, saved, loaded and continued ends at the same bits as one that was not."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from hialign.solvers import (
    MGDA,
    Alternating,
    CAGrad,
    ConstrainedDual,
    DynamicBarrier,
    ImplicitTangent,
    Joint,
    PCGrad,
    Sequential,
    Single,
    ValuePenalty,
)
from hialign.solvers.minimise import ClosureOracle

STEPS = 24
SOLVERS = {
    "single": lambda: (Single(), ()),
    "joint": lambda: (Joint(), ()),
    "sequential": lambda: (Sequential(), ()),
    "alternating": lambda: (Alternating(2), ()),
    "pcgrad": lambda: (PCGrad(), ()),
    "mgda": lambda: (MGDA(), ()),
    "cagrad": lambda: (CAGrad(), ()),
    "barrier": lambda: (DynamicBarrier(warmup=0.5), ()),
    "barrier_ema": lambda: (DynamicBarrier(ema=0.9), ()),
    "barrier_ema_dependent": lambda: (DynamicBarrier(ema=0.9, inner_steps=2), ("phi",)),
    "penalty": lambda: (ValuePenalty(warmup=0.5), ()),
    "penalty_dependent": lambda: (ValuePenalty(), ("phi",)),
    "dual": lambda: (ConstrainedDual(rate=0.1, warmup=0.25), ()),
    "tangent": lambda: (ImplicitTangent(steps=3), ()),
    "tangent_dependent": lambda: (ImplicitTangent(steps=3), ("phi",)),
}


class Run:
    """A nonlinear problem in float32 with a parameter in every group, under Adam and a falling rate."""

    def __init__(self, name: str) -> None:
        self.solver, depends = SOLVERS[name]()
        generator = torch.Generator().manual_seed(0)
        draws = [torch.randn(size, generator=generator) for size in (6, 3, 4)]
        self.parameters = {key: draw.requires_grad_() for key, draw in zip(("x", "head", "phi"), draws, strict=True)}
        self.mix = torch.randn(6, 4, generator=generator)
        self.depends = bool(depends)
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=0.05)
        self.oracle = ClosureOracle(
            self.parameters,
            {"inner": self.inner, "outer": self.outer},
            STEPS,
            self.optimizer,
            lambda progress: 1 - progress,
            floor=0.0,
            outer_parts=depends,
        )

    def inner(self) -> Tensor:
        x, head, phi = self.parameters.values()
        moved = x[:4] - phi / 2 if self.depends else x[:4]
        return (moved.square().sum() - 1).square() + (head - x[:3].tanh()).square().sum()

    def outer(self) -> Tensor:
        x, _, phi = self.parameters.values()
        return (x - self.mix @ phi.tanh() - 1).square().sum() / 2 + phi.square().sum() / 2

    def go(self, first: int, last: int) -> None:
        for self.oracle.step in range(first, last):
            self.solver.step(self.oracle)

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        weights = {name: p.detach() for name, p in self.parameters.items()}
        torch.save({"solver": self.solver.state_dict(), "adam": self.optimizer.state_dict(), "weights": weights}, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        state = torch.load(file, weights_only=True)
        self.solver.load_state_dict(state["solver"])
        self.optimizer.load_state_dict(state["adam"])
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.parameters[name].copy_(value)


def bits(run: Run) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in run.parameters.values()]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("stop", [1, 7, 12, 20])
def test_a_resumed_run_ends_at_the_same_bits(name: str, stop: int):
    whole, first, second = Run(name), Run(name), Run(name)
    start = bits(whole)
    whole.go(0, STEPS)
    first.go(0, stop)
    file = first.save()
    first.go(stop, STEPS)  # what was saved must not be what goes on
    second.load(file)
    second.go(stop, STEPS)
    assert bits(second) == bits(whole) == bits(first)
    assert bits(whole)[0] != start[0]


@pytest.mark.parametrize("name", ["barrier", "barrier_ema", "barrier_ema_dependent", "penalty_dependent", "dual"])
def test_the_state_is_needed(name: str):
    """Else the test above could not fail."""
    whole, first, second = Run(name), Run(name), Run(name)
    whole.go(0, STEPS)
    first.go(0, 7)
    second.load(first.save())
    second.solver = Run(name).solver
    second.go(7, STEPS)
    assert bits(second) != bits(whole)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_state_comes_back_from_a_file_as_it_was(name: str):
    run, other = Run(name), Run(name)
    run.go(0, 9)
    other.load(run.save())
    torch.testing.assert_close(other.solver.state_dict(), run.solver.state_dict(), rtol=0, atol=0)
