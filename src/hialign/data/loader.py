"""Endless batches in an order that the seed decides, made by worker processes, resumed after any step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hialign.batch import Batch
from hialign.data.indexed import IndexedOrder
from hialign.data.order import B_co, Collator, Division, Items, Order
from hialign.data.records import AnyData, BadRecord, Dataset, Mixture, Skipped, Streamed
from hialign.data.streamed import StreamedOrder
from hialign.data.workers import ignore_signals, quiet_start, uninterrupted, watched

B = TypeVar("B", bound=Batch)


@dataclass(frozen=True)
class _Made(Generic[B_co]):
    """A micro-batch and what was left out while it was made."""

    batch: B_co
    skipped: list[Skipped]


class _Maker(TorchDataset[Any], Generic[B]):
    """Rows to micro-batches; the part of a Loader that worker processes hold."""

    def __init__(self, items: Items, collator: Collator[B]) -> None:
        self.items, self.collator = items, collator

    def __getitem__(self, rows: list[Any]) -> _Made[B] | BadRecord:
        """The micro-batch of ``rows``, or the error: raised in a worker, it would come wrapped in a traceback."""
        skipped: list[Skipped] = []
        try:
            return _Made(self.collator.collate(self.items(rows, self.collator, skipped)), skipped)
        except BadRecord as error:
            return error


class Loader(Generic[B]):
    """Endless micro-batches of a dataset or a mixture, in an order that only the seed decides.

    ``batch_size`` counts the rows of one optimiser step over all ranks; rank r of W takes rows [r*B/W, (r+1)*B/W) of
    it. A dataset is walked epoch by epoch, each in its own order; a batch may run into the next epoch.

    A dataset with any record at hand has one permutation an epoch, and the row that replaces a bad record, chosen
    within its micro-batch, is all that the division into ranks can change. A streamed one is put in order block by
    block, each rank reads its own share, and a bad record is filled from another one of its micro-batch: there the
    rows of a step depend on the number of ranks and a state is one rank's own.

    With ``group_by_length`` the rows of a batch are of like length, and text-only ones have batches of their own where
    their number allows, which saves padding. In a mixture this holds of each dataset's share of a batch.

    ``name`` is what errors call the stream.
    """

    def __init__(
        self,
        data: AnyData,
        collator: Collator[B],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        group_by_length: bool = False,
        name: str | None = None,
        on_skip: Callable[[Skipped], None],
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed}: wanted 0 or more")
        _check_sizes(batch_size, micro_batch_size, rank, world_size)
        self.data, self.collator, self.workers = data, collator, workers
        self.micro_batch_size = micro_batch_size
        self.name = name or ", ".join(dataset.name for dataset in _datasets(data))
        self._order = _order(data, Division(batch_size, rank, world_size), seed, group_by_length=group_by_length)
        self._maker = _Maker(self._order.items, collator)
        self._position = self._order.start()
        self._ahead: deque[Any] = deque()  # the position behind each step that was handed to workers
        self._rows = batch_size // world_size
        self._on_skip = on_skip
        self._reported: set[Skipped] = set()
        self._iterator: Iterator[_Made[B] | BadRecord] | None = None

    def next(self) -> list[B]:
        """This rank's micro-batches of the next optimiser step.

        A BadRecord, or a WorkerDied, leaves the position where it was.
        """
        try:
            batches = [self._take() for _ in range(self._rows // self.micro_batch_size)]
        except BaseException:
            self.close()  # the iterator is in the middle of a step; the position is not
            raise
        self._position = self._ahead.popleft()
        return batches

    def peek(self) -> B:
        """The first micro-batch of what ``next`` gives, made here and now; the position stays, workers end."""
        if self._iterator is not None:
            self.close()  # there is one walk through an order at a time
        rows, _ = next(self._order.steps(self._position))
        return self._deliver(self._maker[rows[: self.micro_batch_size]])

    def trial(self) -> Generator[B, None, None]:
        """The micro-batches that ``next`` would give, made as for it; the position stays, workers end with it."""
        self.close()
        try:
            while True:
                yield self._take()
        finally:
            self.close()

    def through(self, collator: Collator[B]) -> None:
        """From now on batches are made by ``collator``; the position stays."""
        self.close()
        self.collator, self._maker = collator, _Maker(self._order.items, collator)

    def state_dict(self) -> dict[str, Any]:
        """The position after the steps delivered so far, and what it is a position in; goes through json."""
        return {**self._order.fixed, **self._order.state(self._position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of ``state``; a ValueError names the field in which its loader was another one."""
        free = dict.fromkeys(self._order.state(self._position))
        for field, ours in {"group_by_length": False, **self._order.fixed, **free}.items():
            if field not in state and field != "group_by_length":
                raise ValueError(f"loader state has no field {field!r}; wanted one that Loader.state_dict made")
            if ours is not None and state.get(field, False) != ours:
                raise ValueError(
                    f"loader state: {field}={state.get(field, False)}, but this loader has {field}={ours}; "
                    "resume with the seed, batch size and data that the state was saved with"
                )
        self.close()
        self._position = self._order.position(state)

    @property
    def examples_per_epoch(self) -> int | None:
        """The records of all datasets together; None of streamed ones, where nobody knows."""
        return self._order.examples_per_epoch

    @property
    def epochs(self) -> float:
        """Rows delivered to all ranks so far, over examples_per_epoch; of streamed data the passes finished."""
        return self._order.epochs(self._position)

    @property
    def processes(self) -> list[BaseProcess]:
        """The workers that are at work."""
        return list(getattr(self._iterator, "_workers", ()))  # torch has no public way

    def close(self) -> None:
        """End the workers, after the micro-batch that each is at; ``next`` starts new ones."""
        # torch ends them when the iterator is freed and has no public way; a traceback can keep the iterator alive.
        shutdown = getattr(self._iterator, "_shutdown_workers", None)
        self._iterator = None
        self._ahead.clear()
        if shutdown is not None:
            shutdown()

    def _take(self) -> B:
        """The next micro-batch of what workers are at; after an error they must be closed."""
        with uninterrupted():
            if self._iterator is None:
                self._iterator = self._start()
            with watched(self.processes, self.name):
                made = next(self._iterator)
        return self._deliver(made)

    def _start(self) -> Iterator[_Made[B] | BadRecord]:
        loader: DataLoader[Any] = DataLoader(
            self._maker,
            sampler=self._upcoming(),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_is,
            worker_init_fn=ignore_signals,
            # Its own generator: torch draws the workers' seeds from it, by default from the global one.
            generator=torch.Generator(),
        )
        with quiet_start():
            return iter(loader)

    def _upcoming(self) -> Iterator[list[Any]]:
        """The rows of this rank's micro-batches from the position on; workers are given them ahead of delivery."""
        for rows, after in self._order.steps(self._position):
            self._ahead.append(after)
            yield from (rows[i : i + self.micro_batch_size] for i in range(0, len(rows), self.micro_batch_size))

    def _deliver(self, made: _Made[B] | BadRecord) -> B:
        """The batch; every record skipped in it is reported unless it was before."""
        if isinstance(made, BadRecord):
            raise made
        for skipped in made.skipped:
            if skipped not in self._reported:
                self._reported.add(skipped)
                self._on_skip(skipped)
        return made.batch


def _datasets(data: AnyData) -> tuple[Dataset[Any] | Streamed[Any], ...]:
    return data.datasets if isinstance(data, Mixture) else (data,)


def _order(data: AnyData, division: Division, seed: int, *, group_by_length: bool) -> Order:
    """The order that suits the kind of data; a Mixture has one kind only."""
    datasets, weights = _datasets(data), data.weights if isinstance(data, Mixture) else (1.0,)
    streamed = tuple(dataset for dataset in datasets if isinstance(dataset, Streamed))
    if not streamed:
        indexed = tuple(dataset for dataset in datasets if isinstance(dataset, Dataset))
        return IndexedOrder(indexed, weights, division, seed, group_by_length=group_by_length)
    if group_by_length:
        raise ValueError(
            f"group_by_length: {streamed[0].name} is streamed, and the lengths of its rows are not known ahead; set "
            "group_by_length=false"
        )
    return StreamedOrder(streamed, weights, division, seed)


def _check_sizes(batch_size: int, micro_batch_size: int, rank: int, world_size: int) -> None:
    if min(batch_size, micro_batch_size, world_size) < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"batch_size={batch_size}, micro_batch_size={micro_batch_size}, world_size={world_size}, rank={rank}: "
            "wanted sizes of at least 1 and 0 <= rank < world_size"
        )
    unit = micro_batch_size * world_size
    if batch_size % unit:
        below = batch_size // unit * unit
        fitting = f"{below} or {below + unit}" if below else f"{unit}"
        raise ValueError(
            f"batch_size={batch_size} does not divide by micro_batch_size={micro_batch_size} * "
            f"world_size={world_size} = {unit}; use batch_size={fitting}"
        )


def _as_is(made: Any) -> Any:
    """The maker's answer as it came; torch's default would convert it."""
    return made
