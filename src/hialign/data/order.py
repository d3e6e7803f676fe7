"""What an order of batches is, and what every order has in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from hialign.batch import Batch
from hialign.data.records import Skipped

B_co = TypeVar("B_co", bound=Batch, covariant=True)

# The second word of every random stream. Without it [seed, 0] and [seed, 0, 0] would be one stream: numpy pads
# short seeds with zeros.
PERMUTATION, CHOICE, ITEM, FILES = 1, 2, 3, 4


class Collator(Protocol[B_co]):
    """What turns records into batches; it may be copied into worker processes."""

    def encode(self, record: Any, rng: np.random.Generator) -> Any:
        """One item: load the image, make every random choice with ``rng``, tokenise."""

    def collate(self, items: list[Any]) -> B_co:
        """The items as one batch, row i from item i."""


class Items(Protocol):
    """What turns the rows of a micro-batch into items; it is copied into worker processes."""

    def __call__(self, rows: list[Any], collator: Collator[Any], skipped: list[Skipped]) -> list[Any]:
        """An item for each row; what was left out on the way is added to ``skipped``. A BadRecord where none is."""


class Order(Protocol):
    """Which rows make each step. Rows and positions are its own affair: others pass them on, or ask it."""

    @property
    def fixed(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same rows."""

    @property
    def items(self) -> Items:
        """What workers do with rows."""

    @property
    def examples_per_epoch(self) -> int | None:
        """The records of all datasets together; None where that is unknown."""

    def start(self) -> Any:
        """The position before the first step."""

    def steps(self, position: Any) -> Iterator[tuple[list[Any], Any]]:
        """This rank's rows of each step from ``position`` on, with the position behind it; one such walk at a time."""

    def epochs(self, position: Any) -> float:
        """How often the data were seen."""

    def state(self, position: Any) -> dict[str, Any]:
        """The position as fields that go through json."""

    def position(self, state: dict[str, Any]) -> Any:
        """The position that ``state`` was made of."""


@dataclass(frozen=True)
class Division:
    """The rows of a step over all ranks, and which rank this is."""

    batch_size: int
    rank: int
    world_size: int

    @property
    def ours(self) -> slice:
        """Where this rank's rows stand among those of a step."""
        rows = self.batch_size // self.world_size
        return slice(self.rank * rows, (self.rank + 1) * rows)


def choices(weights: tuple[float, ...], batch_size: int, seed: int, batch: int) -> np.ndarray:
    """The dataset of each row of the ``batch``-th step over all ranks."""
    rng = np.random.default_rng([seed, CHOICE, batch])
    return rng.choice(len(weights), size=batch_size, p=np.asarray(weights) / sum(weights))
