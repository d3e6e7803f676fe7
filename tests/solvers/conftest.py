"""Problems whose hierarchical optimum is known (spec/hierarchical.md, section 6), and an oracle that takes notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hialign.solvers import Gradients, Minimum, Solver, local_dot, minimise


@dataclass(frozen=True)
class Affine:
    """P1: inner ``.5 |A x - b|^2`` with fewer rows than columns, outer ``.5 |x - c|^2``."""

    matrix: Tensor
    b: Tensor
    c: Tensor
    start: Tensor

    def inner(self, x: Tensor) -> Tensor:
        return (self.matrix @ x - self.b).square().sum() / 2

    def outer(self, x: Tensor) -> Tensor:
        return (x - self.c).square().sum() / 2

    @property
    def optimum(self) -> Tensor:
        return self.c - torch.linalg.pinv(self.matrix) @ (self.matrix @ self.c - self.b)

    def joint(self, weight: float) -> Tensor:
        """Where ``outer + weight * inner`` is smallest."""
        unit = torch.eye(len(self.c), dtype=self.c.dtype)
        gram = self.matrix.T @ self.matrix
        return torch.linalg.solve(unit + weight * gram, self.c + weight * self.matrix.T @ self.b)

    def minimise(
        self,
        solver: Solver,
        *,
        steps: int,
        lr: float,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        schedule: Callable[[float], float] = lambda progress: 1.0,
    ) -> tuple[Tensor, Minimum]:
        x = self.start.clone().requires_grad_()
        end = minimise(
            solver,
            {"x": x},
            inner=lambda: self.inner(x),
            outer=lambda: self.outer(x),
            steps=steps,
            optimizer=optimizer([x], lr=lr),
            schedule=schedule,
        )
        return x.detach(), end


def make_affine(*, rows: int = 5, columns: int = 12, smallest: float = 0.5, seed: int = 0) -> Affine:
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, rows)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, rows)))[0]
    c, b, start = rng.standard_normal(columns), rng.standard_normal(rows), 2 * rng.standard_normal(columns)
    matrix = left @ np.diag(np.linspace(1, smallest, rows)) @ right.T
    return Affine(*(torch.from_numpy(array) for array in (matrix, b, c, start)))


@pytest.fixture(scope="session")
def affine() -> Affine:
    return make_affine()


@dataclass
class NotingOracle:
    """Answers every ``grads`` with ones, and writes down what it is asked; one parameter is in each group."""

    total_steps: int = 10
    step: int = 0
    notes: list[tuple[Any, ...]] = field(default_factory=list)
    logged: dict[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=lambda: {"head": "inner", "tower": "shared", "llm": "outer"})
    inner_depends_on_outer: bool = False

    def grads(self, level: str) -> Gradients:
        self.notes.append(("grads", level))
        return {name: torch.ones(2) for name, group in self.groups.items() if group in (level, "shared")}

    def apply(self, direction: Gradients, *, progress: float | None = None) -> None:
        self.notes.append(("apply", {name: float(tensor[0]) for name, tensor in direction.items()}, progress))

    def dots(self, *pairs: tuple[Gradients, Gradients]) -> list[float]:
        return [local_dot(x, y).item() for x, y in pairs]

    def group_of(self, name: str) -> str:
        return self.groups[name]

    def forget(self, group: str) -> None:
        self.notes.append(("forget", group))

    def log(self, **numbers: float) -> None:
        self.logged |= numbers

    def run(self, solver: Solver, steps: range) -> list[tuple[Any, ...]]:
        """What the solver asks in these steps."""
        before = len(self.notes)
        for self.step in steps:
            solver.step(self)
        return self.notes[before:]


@pytest.fixture
def oracle() -> NotingOracle:
    return NotingOracle()


@pytest.fixture
def another_oracle() -> NotingOracle:
    return NotingOracle()
