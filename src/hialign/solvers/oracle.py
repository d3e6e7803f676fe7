"""What a solver may ask of training, and what training asks of a solver."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Protocol

from torch import Tensor

Level = Literal["inner", "outer"]
Group = Literal["inner", "shared", "outer"]
Gradients = dict[str, Tensor]


class Oracle(Protocol):
    """Gradients of either level, and one optimiser; hides batches, accumulation, precision, ranks and clipping.

    Every trainable parameter is in one group: ``inner`` or ``outer`` if only that level reaches it, else ``shared``.
    """

    step: int  # from 0
    total_steps: int

    def grads(self, level: Level) -> Gradients:
        """The level's gradient at the present parameters by parameter name; the caller owns the tensors."""
        ...

    def apply(self, direction: Gradients, *, progress: float | None = None) -> None:
        """Clips ``direction`` and makes one optimiser step; parameters without an entry stay where they are.

        ``progress`` in (0, 1) says where the learning-rate schedule stands, for a solver with a schedule of its own;
        by default it is the middle of this step.
        """
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
    """One way to treat the two levels; ``two_level`` says whether it needs an inner level at all."""

    two_level: bool

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
    for name, gradient in x.items():
        y[name] = y[name].add_(gradient, alpha=scale) if name in y else gradient.mul_(scale)
    return y


def assign_groups(
    names: Iterable[str], reached: Mapping[Level, Collection[str]], part_of: Callable[[str], str] = str
) -> dict[str, Group]:
    """The group of every name that a level reaches; ``ValueError`` if two levels share none, for then they do not meet.

    ``part_of`` maps a name to what the error calls it.
    """
    inner, outer = reached.get("inner", ()), reached.get("outer", ())
    groups: dict[str, Group] = {}
    for name in names:
        if name in inner or name in outer:
            groups[name] = "shared" if name in inner and name in outer else "inner" if name in inner else "outer"
    if len(reached) == 2 and "shared" not in groups.values():
        raise ValueError(
            f"the two levels share no parameter that trains: the inner loss reaches {_some(inner, part_of)}, the outer "
            f"loss {_some(outer, part_of)}; train a part that both losses read"
        )
    return groups


def _some(names: Collection[str], part_of: Callable[[str], str]) -> str:
    parts = sorted({part_of(name) for name in names}) or ["nothing"]
    return ", ".join(parts[:6]) + (f" and {len(parts) - 6} more" if len(parts) > 6 else "")
