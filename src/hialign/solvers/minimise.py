"""A solver on any two losses of some parameters, without models, data or configs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hialign.solvers.guards import complaints
from hialign.solvers.oracle import Gradients, Group, Level, Solver, aligned_rate, assign_groups, local_dot

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
    floor: float | None = None,
    inner_depends_on_outer: Collection[str] = (),
) -> Minimum:
    """Moves ``parameters`` in place towards the smallest ``outer()`` among the minimisers of ``inner()``.

    ``optimizer`` owns these parameters and no others; ``schedule`` maps progress in [0, 1] to a factor of its learning
    rates. ``floor`` is a proved lower bound of the inner loss, which some solvers need. ``inner_depends_on_outer``
    names the parameters that the inner loss reads and the outer level alone may choose. Where a solver asks for the
    same batch ``again``, a closure is called once more: one that draws must draw by a counter of its own.

    Returns the last loss of each level. Raises ``ValueError`` if the two losses share no parameter, if none reaches
    one of ``parameters``, or if ``optimizer`` owns others. Warns (``UserWarning``) of what makes the solver go astray:
    weight decay on shared parameters, a constant learning rate, one that is no plain step's, a sum that may have no
    minimum.

    >>> from hialign.solvers import DynamicBarrier, minimise
    >>> x = torch.zeros(2, requires_grad=True)
    >>> end = minimise(
    ...     DynamicBarrier(),
    ...     {"x": x},
    ...     inner=lambda: (x[0] - 1) ** 2,                # any x[1] is optimal here
    ...     outer=lambda: x[0] ** 2 + (x[1] - 2) ** 2,    # and 2 is the best of them
    ...     steps=1000,
    ...     optimizer=torch.optim.Adam([x], lr=0.05),
    ...     schedule=lambda progress: 1 - progress,
    ... )
    >>> [round(value, 2) for value in x.tolist()]
    [1.0, 2.0]
    """
    oracle = ClosureOracle(
        parameters,
        {"inner": inner, "outer": outer},
        steps,
        optimizer,
        schedule,
        floor=floor,
        outer_parts=inner_depends_on_outer,
    )
    for warning in complaints(
        solver,
        floor=floor,
        shared_decay=oracle.shared_decay(),
        constant_rate="falling rate" in solver.requires and schedule(0.5) == schedule(1 - 0.5 / steps),
        inner_depends_on_outer=oracle.inner_depends_on_outer,
        adaptive=not isinstance(optimizer, torch.optim.SGD),
        precision="bf16" if any(p.dtype.itemsize < 4 for p in parameters.values()) else "fp32",
    ):
        warnings.warn(warning, stacklevel=2)
    for oracle.step in range(steps):
        solver.step(oracle)
    oracle.set_rates(1.0)
    return Minimum(oracle.last["inner"], oracle.last["outer"])


class ClosureOracle:
    """The ``Oracle`` of two closures; for a loop of one's own, which sets ``step`` and calls ``solver.step``."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        closures: Mapping[Level, Closure],
        steps: int,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[float], float],
        *,
        floor: float | None,
        outer_parts: Collection[str],
    ) -> None:
        _check_owner(parameters, optimizer)
        self.parameters, self.closures, self.optimizer, self.schedule = parameters, closures, optimizer, schedule
        self.step, self.total_steps, self.floor = 0, steps, floor
        self.inner_depends_on_outer = bool(outer_parts)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.last: dict[Level, float] = {}
        reached = {level: set(self.grads(level)) for level in closures}
        self.groups = assign_groups(parameters, reached, outer_parts=outer_parts)
        if unreached := [name for name in parameters if name not in self.groups]:
            raise ValueError(f"parameters: no loss reaches {', '.join(unreached)}; leave them out")
        self.last = {"inner": float("nan"), "outer": float("nan")}

    @property
    def rate(self) -> float:
        owned = (group["params"] for group in self.optimizer.param_groups)
        largest = aligned_rate(self.parameters, self.groups, zip(owned, self.rates, strict=True))
        return float(largest * self.schedule((self.step + 0.5) / self.total_steps))

    def shared_decay(self) -> float:
        shared = {id(self.parameters[name]) for name, group in self.groups.items() if group != "outer"}
        groups = [group for group in self.optimizer.param_groups if shared & {id(p) for p in group["params"]}]
        return float(max((group.get("weight_decay", 0.0) for group in groups), default=0.0))

    def grads(self, level: Level, *, at: Gradients | None = None, again: bool = False) -> Gradients:
        del again  # a closure has no batches that we know of
        with put(self.parameters, at or {}):
            loss = self.closures[level]()
            if at is None:
                self.last[level] = float(loss.detach())
            self.optimizer.zero_grad(set_to_none=True)  # what the caller left there
            # backward() and not grad(), whose tensors may be shared or seen through a stride of 0: a solver overwrites
            # them. Only these parameters collect.
            loss.backward(inputs=list(self.parameters.values()))
        found = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def loss(self, level: Level) -> float:
        return self.last[level]

    def values(self, *groups: Group) -> Gradients:
        return {name: p.detach().clone() for name, p in self.parameters.items() if self.groups[name] in groups}

    def dots(self, *pairs: tuple[Gradients, Gradients]) -> list[float]:
        return [local_dot(x, y).item() for x, y in pairs]

    def apply(self, direction: Gradients, *, progress: float | None = None, scale: float = 1.0) -> None:
        at = (self.step + 0.5) / self.total_steps if progress is None else progress
        self.set_rates(self.schedule(at) * scale)
        for name, parameter in self.parameters.items():
            parameter.grad = direction.get(name)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def move(self, direction: Gradients) -> None:
        with torch.no_grad():
            for name, tensor in direction.items():
                self.parameters[name].add_(tensor)

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


@contextmanager
def put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, these parameters have these values; they get their own back, whatever happens."""
    own = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value
        torch.clear_autocast_cache()  # its casts know a parameter, not which value it had
        yield
    finally:
        for name, value in own.items():
            parameters[name].data = value
        torch.clear_autocast_cache()


def _check_owner(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One optimiser for both levels, and it moves what the solver moves."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer: got {type(optimizer).__name__}, wanted one torch.optim.Optimizer over all parameters; two "
            "sets of moments on shared parameters converge to a point that is aligned and not the best of those"
        )
    if fixed := [name for name, p in parameters.items() if not p.requires_grad]:
        raise ValueError(f"parameters: {', '.join(fixed)} require no gradient; leave them out, or let them train")
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    lacking = [name for name, p in parameters.items() if not any(p is other for other in owned)]
    if lacking:
        raise ValueError(f"optimizer: it does not own {', '.join(lacking)}; make it of parameters.values()")
    if len(owned) > len(parameters):
        raise ValueError(f"optimizer: it owns {len(owned)} tensors and parameters has {len(parameters)}; name them all")
