"""Problems whose hierarchical optimum is known in closed form, and an oracle that takes notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hialign.losses import info_nce, info_nce_floor
from hialign.solvers import Gradients, Minimum, Solver, local_dot, minimise
from hialign.solvers.minimise import ClosureOracle


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


Point = dict[str, Tensor]
Loss = Callable[[Point], Tensor]


def forgetful_adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Adam whose second moment forgets as fast as weights rise: at .999 the large gradients of the first steps, or of
    a rising weight, still divide the steps within the aligned set when nothing else moves any more."""
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), foreach=False)


def cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class End:
    """Where a solver ended. A negative ``excess`` beside a gap is no merit: alignment was sold for it."""

    x: Point
    error: float  # distance to the hierarchical optimum
    gap: float  # inner loss above its minimum
    excess: float  # outer loss above the hierarchical optimum's
    rows: list[dict[str, float]]  # what the solver logged, a step a row


@dataclass(frozen=True)
class Problem:
    """Two losses of named parameters, where to start, and what is known of the answer."""

    start: Point
    inner: Loss
    outer: Loss
    error: Callable[[Point], float]
    best_inner: float
    best_outer: float

    def solve(
        self,
        solver: Solver,
        *,
        steps: int = 2000,
        lr: float = 0.02,
        optimizer: Callable[..., torch.optim.Optimizer] = forgetful_adam,
        schedule: Callable[[float], float] = cosine,
        floor: float | None = None,
        depends: tuple[str, ...] = (),
    ) -> End:
        """As ``minimise``, keeping what is logged; its warnings are tested elsewhere."""
        x = {name: value.clone().requires_grad_() for name, value in self.start.items()}
        closures = {"inner": lambda: self.inner(x), "outer": lambda: self.outer(x)}
        built = optimizer(x.values(), lr=lr)
        oracle = LoggedOracle(x, closures, steps, built, schedule, floor=floor, outer_parts=depends)
        for oracle.step in range(steps):
            oracle.rows.append({})
            solver.step(oracle)
        return self.end(x, oracle.rows)

    def end(self, x: Point, rows: list[dict[str, float]] | None = None) -> End:
        with torch.no_grad():
            gap, excess = self.inner(x).item() - self.best_inner, self.outer(x).item() - self.best_outer
            return End({name: p.detach() for name, p in x.items()}, self.error(x), gap, excess, rows or [])


class LoggedOracle(ClosureOracle):
    """A ``ClosureOracle`` that keeps what is logged."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.rows: list[dict[str, float]] = []
        super().__init__(*args, **settings)

    def log(self, **numbers: float) -> None:
        self.rows[-1].update(numbers)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def distance(optimum: Point) -> Callable[[Point], float]:
    return lambda x: math.sqrt(sum((x[name] - value).square().sum().item() for name, value in optimum.items()))


def affine_problem(affine: Affine) -> Problem:
    """P1."""
    return Problem(
        {"x": affine.start},
        lambda x: affine.inner(x["x"]),
        lambda x: affine.outer(x["x"]),
        distance({"x": affine.optimum}),
        0.0,
        affine.outer(affine.optimum).item(),
    )


def affine_with_phi(affine: Affine, *, rho: float = 0.5) -> Problem:
    """P1b: P1 whose outer loss ``.5 |x - c - B phi|^2 + .5 rho |phi|^2`` also reads phi, which the inner does not."""
    mix = torch.from_numpy(np.random.default_rng(1).standard_normal((len(affine.c), 3))) / 3
    inverse = torch.linalg.inv(mix.T @ mix + rho * torch.eye(3, dtype=torch.float64)) @ mix.T  # x - c -> the best phi
    metric = torch.linalg.inv(torch.eye(len(affine.c), dtype=torch.float64) - mix @ inverse)
    a = affine.matrix
    best = affine.c - metric @ a.T @ torch.linalg.solve(a @ metric @ a.T, a @ affine.c - affine.b)

    def outer(x: Point) -> Tensor:
        rest = x["x"] - affine.c - mix @ x["phi"]
        return rest.square().sum() / 2 + rho * x["phi"].square().sum() / 2

    optimum = {"x": best, "phi": inverse @ (best - affine.c)}
    start = {"x": affine.start, "phi": torch.zeros(3, dtype=torch.float64)}
    return Problem(start, lambda x: affine.inner(x["x"]), outer, distance(optimum), 0.0, outer(optimum).item())


def factorisation(kappa: float = 2.0) -> Problem:
    """P2: inner ``.5 (a b - 1)^2``, outer ``.5 (a^2 + kappa^2 b^2)``; the best are both points with a = kappa b."""
    best = tensor(math.sqrt(kappa), 1 / math.sqrt(kappa))
    return Problem(
        {"x": tensor(0.5, 3.0)},
        lambda x: (x["x"].prod() - 1).square() / 2,
        lambda x: (x["x"][0].square() + kappa**2 * x["x"][1].square()) / 2,
        lambda x: min((x["x"] - sign * best).norm().item() for sign in (1, -1)),
        0.0,
        kappa,
    )


def circle() -> Problem:
    """P2c: inner ``.25 (|x|^2 - 1)^2``, outer ``.5 |x - c|^2``, c = (2, 1)."""
    c = tensor(2.0, 1.0)
    return Problem(
        {"x": tensor(-0.6, 0.9)},
        lambda x: (x["x"].square().sum() - 1).square() / 4,
        lambda x: (x["x"] - c).square().sum() / 2,
        distance({"x": c / c.norm()}),
        0.0,
        (c.norm().item() - 1) ** 2 / 2,
    )


def flat() -> Problem:
    """P3: inner ``.25 x0^4``, outer ``-x0 + .5 (x1 - 1)^2``: growth so slow that a weight of 1000 leaves x0 at .1."""
    return Problem(
        {"x": tensor(1.0, -1.0)},
        lambda x: x["x"][0] ** 4 / 4,
        lambda x: -x["x"][0] + (x["x"][1] - 1).square() / 2,
        distance({"x": tensor(0.0, 1.0)}),
        0.0,
        0.0,
    )


def simplex(items: int, dim: int) -> Tensor:
    """``items`` unit vectors with cosine ``-1 / (items - 1)`` between any two."""
    centred = torch.eye(items, dtype=torch.float64) - 1 / items
    vectors, values, _ = torch.linalg.svd(centred)
    corners = vectors[:, : items - 1] * values[: items - 1]
    padded = torch.nn.functional.pad(corners, (0, dim - items + 1))
    return padded / padded.norm(dim=1, keepdim=True)


def procrustes(*, items: int = 4, dim: int = 4, temperature: float = 0.5, seed: int = 3) -> Problem:
    """P4: inner InfoNCE of free pairs (z_i, w_i), outer the mean ``.5 |z_i - y_i|^2`` to unit targets.

    The inner minimisers are the rotations of the simplex; the best of them is the solution of a Procrustes problem,
    from the singular vectors of ``simplex^T targets``.
    """
    rng = np.random.default_rng(seed)
    targets, z, w = (torch.from_numpy(rng.standard_normal((items, dim))) for _ in range(3))
    z, w = 0.3 * z, 0.3 * w  # the shorter a row, the larger an angle one step turns it by
    targets = targets / targets.norm(dim=1, keepdim=True)
    corners = simplex(items, dim)
    left, sizes, right = torch.linalg.svd(corners.T @ targets)
    best = corners @ left @ right

    def unit(rows: Tensor) -> Tensor:
        return rows / rows.norm(dim=1, keepdim=True)

    return Problem(
        {"z": z, "w": w},
        lambda x: info_nce(x["z"], x["w"], temperature=temperature),
        lambda x: (unit(x["z"]) - targets).square().sum() / (2 * items),
        lambda x: distance({"z": best, "w": best})({name: unit(value) for name, value in x.items()}),
        info_nce_floor(items, temperature).item(),
        1 - sizes.sum().item() / items,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "affine": lambda: affine_problem(make_affine()),
    "affine_with_phi": lambda: affine_with_phi(make_affine()),
    "factorisation": factorisation,
    "circle": circle,
    "flat": flat,
    "procrustes": procrustes,
}


@pytest.fixture(name="cosine")
def _cosine() -> Callable[[float], float]:
    return cosine


@pytest.fixture(name="simplex")
def _simplex() -> Callable[[int, int], Tensor]:
    return simplex


@pytest.fixture(name="procrustes")
def _procrustes() -> Callable[..., Problem]:
    return procrustes


@pytest.fixture
def problem_class() -> type[Problem]:
    return Problem


@pytest.fixture
def problem(request: pytest.FixtureRequest) -> Problem:
    """The problem of a test's indirect parameter."""
    return PROBLEMS[request.param]()


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
