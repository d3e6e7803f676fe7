"""What the loop is given: a stage, its levels, and the streams of batches they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from hialign.batch import Batch
from hialign.objectives import Objective
from hialign.solvers import Level, Solver


@runtime_checkable
class Remembering(Protocol):
    """An objective that keeps something of earlier batches, the same on all ranks, which a checkpoint must hold."""

    def remember(self) -> None:
        """Called before each new batch of its level."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it keeps."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a ``state_dict``."""
        ...


class Stream(Protocol):
    """An endless, resumable source of batches."""

    def next(self) -> list[Batch]:
        """This rank's micro-batches of one optimiser step."""
        ...

    def peek(self) -> Batch:
        """The first micro-batch of the next step, which stays the next one."""
        ...

    @property
    def epochs(self) -> float:
        """How often the data has been seen."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...


@dataclass(frozen=True)
class LevelRun:
    """A loss and its named streams; the level's loss is the sum of its streams' means."""

    objective: Objective
    streams: Mapping[str, Stream]


@dataclass(frozen=True)
class Optimisation:
    """How a stage steps; the learning rate is a part's own, this is what all parts have in common."""

    steps: int
    warmup: float = 0.03  # share of the steps
    schedule: str = "cosine"  # or "constant"
    weight_decay: float = 0.0
    # Of Adam. With .999 the large gradients from before alignment still divide the steps along the aligned set: on an
    # InfoNCE whose best aligned point is known, the barrier stops there and arrives with .99 (test_barrier.py).
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0  # largest gradient norm of a group; 0 for none


@dataclass(frozen=True)
class Stage:
    """One stage of training, ready to run.

    ``rates`` freezes what does not train in this stage and returns the learning rate of every parameter that does;
    ``part_of`` maps a parameter's name to the part of the model that it belongs to; ``inner_depends_on_outer`` are
    the parts that the inner loss reads and the outer level alone may choose.
    """

    name: str
    levels: Mapping[Level, LevelRun]
    solver: Solver
    optimisation: Optimisation
    rates: Callable[[], dict[str, float]]
    part_of: Callable[[str], str]
    inner_depends_on_outer: tuple[str, ...] = ()

    def streams(self) -> dict[str, Stream]:
        """All levels' streams as ``level/stream``."""
        return {f"{level}/{name}": s for level, run in self.levels.items() for name, s in run.streams.items()}

    def remembering(self) -> dict[Level, Remembering]:
        """The objectives that keep something of earlier batches, by level."""
        objectives = {level: run.objective for level, run in self.levels.items()}
        return {level: objective for level, objective in objectives.items() if isinstance(objective, Remembering)}

    def close(self) -> None:
        """Ends all workers."""
        for stream in self.streams().values():
            stream.close()
