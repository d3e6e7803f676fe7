"""What a solver may ask of training, and what training asks of a solver."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Level = Literal["inner", "outer"]
Group = Literal["inner", "shared", "outer"]
Gradients = dict[str, Tensor]
Requirement = Literal["floor", "falling rate", "own step", "outer parameters"]


class Oracle(Protocol):
    """Gradients of either level, and one optimiser; hides batches, accumulation, precision, ranks and clipping.

    Every trainable parameter is in one group: ``inner`` or ``outer`` if only that level reaches it, else ``shared``.
    Where ``inner_depends_on_outer``, the inner loss also reads parameters that the outer level alone may choose: they
    are in ``outer``, and both levels' gradients have entries for them.
    """

    step: int  # from 0
    total_steps: int
    inner_depends_on_outer: bool
    floor: float | None  # a proved lower bound of the inner loss on a batch; None where none is known

    @property
    def rate(self) -> float:
        """The largest learning rate of a shared parameter at this step."""
        ...

    def grads(self, level: Level, *, at: Gradients | None = None, again: bool = False) -> Gradients:
        """The level's gradient by parameter name; the caller owns the tensors.

        It is taken at the present parameters, but for those that ``at`` gives values of, and over the level's next
        batch or, ``again``, over its last one.
        """
        ...

    def loss(self, level: Level) -> float:
        """The loss that came with the last gradient of the level at the present parameters."""
        ...

    def values(self, *groups: Group) -> Gradients:
        """Copies of these groups' parameters."""
        ...

    def dots(self, *pairs: tuple[Gradients, Gradients]) -> list[float]:
        """For each pair the inner product over the names that both have, over all shards, in float32 or better."""
        ...

    def apply(self, direction: Gradients, *, progress: float | None = None, scale: float = 1.0) -> None:
        """Clips ``direction`` and makes one optimiser step; parameters without an entry stay where they are.

        ``progress`` in (0, 1) says where the learning-rate schedule stands, for a solver with a schedule of its own;
        by default it is the middle of this step. ``scale`` is a factor of the learning rate.
        """
        ...

    def move(self, direction: Gradients) -> None:
        """Adds ``direction`` to the parameters, past the optimiser."""
        ...

    def group_of(self, name: str) -> Group:
        """The group of the parameter called ``name``."""
        ...

    def forget(self, group: Group) -> None:
        """Drops the optimiser's moments of a group."""
        ...

    def log(self, **numbers: float) -> None:
        """Adds numbers to this step's row of metrics."""
        ...


class Solver(Protocol):
    """One way to treat the two levels."""

    two_level: bool  # whether it needs an inner level at all

    @property
    def requires(self) -> frozenset[Requirement]:
        """What must hold for it to work: ``floor``, a known lower bound of the inner loss; ``falling rate``, a
        learning rate that goes to zero; ``own step``, parameters that it may move past the optimiser along
        differences of gradients, which half precision drowns; ``outer parameters``, some that no inner step moves."""
        ...

    def step(self, oracle: Oracle) -> None:
        """One training step: asks for gradients, combines them, applies the result."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on besides the oracle's step."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``."""
        ...


def axpy(scale: float, x: Gradients, y: Gradients) -> Gradients:
    """``scale * x + y`` over the union of names; reuses and overwrites the tensors of both."""
    both = [name for name in x if name in y]
    if both:
        torch._foreach_add_([y[name] for name in both], [x[name] for name in both], alpha=scale)
    rest = {name: gradient for name, gradient in x.items() if name not in y}
    if rest and scale != 1.0:
        torch._foreach_mul_(list(rest.values()), scale)
    return y | rest


def only(oracle: Oracle, gradient: Gradients, *groups: Group) -> Gradients:
    """The entries of these groups; the tensors are not copied."""
    return {name: tensor for name, tensor in gradient.items() if oracle.group_of(name) in groups}


def local_dot(x: Gradients, y: Gradients) -> Tensor:
    """The inner product over the names that both have, of what this process holds, as a float64 scalar.

    Products are added up in float32 or better: a running total in bfloat16 loses a seventh of a long sum.
    """
    parts = []
    for name, a in x.items():
        if name in y:
            b = y[name]
            exact = a.dtype if a.dtype == torch.float64 else torch.float32
            parts.append(torch.dot(a.reshape(-1).to(exact), b.reshape(-1).to(exact)).double())
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)


def aligned_rate(
    parameters: Mapping[str, Tensor], groups: Mapping[str, Group], rates: Iterable[tuple[Collection[Tensor], float]]
) -> float:
    """The largest learning rate of a shared parameter; of an inner one, where the levels meet in outer ones alone.

    ``rates`` are the optimiser's groups of tensors, each with its rate.
    """
    met: Group = "shared" if "shared" in groups.values() else "inner"
    aligned = {id(parameter) for name, parameter in parameters.items() if groups[name] == met}
    return max(rate for tensors, rate in rates if aligned & {id(tensor) for tensor in tensors})


def assign_groups(
    names: Iterable[str],
    reached: Mapping[Level, Collection[str]],
    part_of: Callable[[str], str] = str,
    *,
    outer_parts: Collection[str] = (),
) -> dict[str, Group]:
    """The group of every name that a level reaches; ``ValueError`` if two levels share none, for then they do not meet.

    ``part_of`` maps a name to what the error calls it, and what ``outer_parts`` are given by: the parts that the inner
    loss reads and the outer level alone may choose. Such a part that the inner loss does not read is an error.
    """
    inner, outer = reached.get("inner", ()), reached.get("outer", ())
    groups: dict[str, Group] = {}
    read: set[str] = set()
    for name in names:
        if part_of(name) in outer_parts and name in outer:
            groups[name] = "outer"
            read |= {part_of(name)} if name in inner else set()
        elif name in inner or name in outer:
            groups[name] = "shared" if name in inner and name in outer else "inner" if name in inner else "outer"
    unread = sorted(set(outer_parts) - read)
    if unread:
        raise ValueError(
            f"inner_depends_on_outer: got {', '.join(unread)}, which both losses do not reach; wanted parts that train "
            "and that both losses read"
        )
    if len(reached) == 2 and "shared" not in groups.values() and not (read and "inner" in groups.values()):
        raise ValueError(
            f"the two levels share no parameter that trains: the inner loss reaches {_some(inner, part_of)}, the outer "
            f"loss {_some(outer, part_of)}; train a part that both losses read"
        )
    return groups


def _some(names: Collection[str], part_of: Callable[[str], str]) -> str:
    parts = sorted({part_of(name) for name in names}) or ["nothing"]
    return ", ".join(parts[:6]) + (f" and {len(parts) - 6} more" if len(parts) > 6 else "")
