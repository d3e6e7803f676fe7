"""A solver on any two losses of some parameters, without models, data or configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hialign.solvers.oracle import Gradients, Group, Level, Solver, assign_groups

Closure = Callable[[], Tensor]


@dataclass(frozen=True)
class Minimum:
    """Where ``minimise`` ended: the last losses seen on the way, nan for a level that was never asked."""

    inner: float
    outer: float


def minimise(
    solver: Solver,
    parameters: Mapping[str, Tensor],
    *,
    inner: Closure,
    outer: Closure,
    steps: int,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[float], float] = lambda progress: 1.0,
) -> Minimum:
    """Moves ``parameters`` in place towards the smallest ``outer()`` among the minimisers of ``inner()``.

    ``optimizer`` owns these parameters; ``schedule`` maps progress in [0, 1] to a factor of its learning rates.
    Returns the last loss of each level. Raises ``ValueError`` if the two losses share no parameter.

    >>> from hialign.solvers import Alternating, minimise
    >>> x = torch.zeros(2, requires_grad=True)
    >>> end = minimise(
    ...     Alternating(inner_steps=1, power=1.0, half_life=10),
    ...     {"x": x},
    ...     inner=lambda: (x[0] - 1) ** 2,            # any x[1] is optimal here
    ...     outer=lambda: (x[0] ** 2 + (x[1] - 2) ** 2),  # and 2 is the best of them
    ...     steps=3000,
    ...     optimizer=torch.optim.SGD([x], lr=0.1),
    ... )
    >>> [round(value, 2) for value in x.tolist()]
    [1.0, 2.0]
    """
    oracle = _ClosureOracle(parameters, {"inner": inner, "outer": outer}, steps, optimizer, schedule)
    for oracle.step in range(steps):
        solver.step(oracle)
    oracle.set_rates(1.0)
    return Minimum(oracle.last["inner"], oracle.last["outer"])


class _ClosureOracle:
    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        closures: Mapping[Level, Closure],
        steps: int,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[float], float],
    ) -> None:
        self.parameters, self.closures, self.optimizer, self.schedule = parameters, closures, optimizer, schedule
        self.step, self.total_steps = 0, steps
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.last: dict[Level, float] = {}
        self.groups = assign_groups(parameters, {level: set(self.grads(level)) for level in closures})
        self.last = {"inner": float("nan"), "outer": float("nan")}

    def grads(self, level: Level) -> Gradients:
        loss = self.closures[level]()
        self.last[level] = float(loss.detach())
        # not backward(): a gradient that the caller left in .grad would be added, and other leaves would collect theirs
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        return {name: g for name, g in zip(self.parameters, found, strict=True) if g is not None}

    def apply(self, direction: Gradients, *, progress: float | None = None) -> None:
        at = (self.step + 0.5) / self.total_steps if progress is None else progress
        self.set_rates(self.schedule(at))
        for name, parameter in self.parameters.items():
            parameter.grad = direction.get(name)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def set_rates(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def group_of(self, name: str) -> Group:
        return self.groups[name]

    def forget(self, group: Group) -> None:
        for name, parameter in self.parameters.items():
            if self.groups.get(name) == group:
                self.optimizer.state.pop(parameter, None)

    def log(self, **numbers: float) -> None:
        pass  # nobody reads a closure's log
