"""Endless batches whose order depends on the seed alone, not on ranks, workers or restarts."""

from __future__ import annotations

import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hialign.batch import Batch
from hialign.data.records import BadRecord, Dataset, Mixture, Skipped

B = TypeVar("B", bound=Batch)
B_co = TypeVar("B_co", bound=Batch, covariant=True)
Key = tuple[int, int, int]  # which dataset, its epoch, the record's index in it

# The second word of every random stream. Without it [seed, 0] and [seed, 0, 0] would be one stream: numpy pads
# short seeds with zeros.
_PERMUTATION, _CHOICE, _ITEM = 1, 2, 3
_MAX_BAD = 20
_POOL = 50  # batches that are sorted by length together: enough for like lengths, too few for like epochs


class Collator(Protocol[B_co]):
    """What turns records into batches; it may be copied into worker processes."""

    def encode(self, record: Any, rng: np.random.Generator) -> Any:
        """One item: load the image, make every random choice with ``rng``, tokenise."""

    def collate(self, items: list[Any]) -> B_co:
        """The items as one batch, row i from item i."""


@dataclass(frozen=True)
class _Position:
    """How many global batches were made, and how many rows of them came from each dataset."""

    batches: int
    drawn: tuple[int, ...]


class _Order:
    """The keys of each global batch, a pure function of the seed and the position.

    With ``lengths``, of each dataset the images and the words of every record, rows of like length come together.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        weights: tuple[float, ...],
        batch_size: int,
        seed: int,
        lengths: tuple[np.ndarray, ...] | None,
    ) -> None:
        self.sizes, self.batch_size, self.seed, self.lengths = sizes, batch_size, seed, lengths
        self.shares = np.asarray(weights) / sum(weights)
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}  # dataset -> its last epoch and order

    def start(self) -> _Position:
        return _Position(0, (0,) * len(self.sizes))

    def after(self, position: _Position) -> _Position:
        """The position one global batch later."""
        counts = np.bincount(self._choices(position.batches), minlength=len(self.sizes))
        drawn = tuple(before + int(count) for before, count in zip(position.drawn, counts, strict=True))
        return _Position(position.batches + 1, drawn)

    def keys(self, position: _Position) -> list[Key]:
        """The keys of the global batch at ``position``, batch_size of them."""
        drawn = list(position.drawn)
        keys = []
        for which in self._choices(position.batches).tolist():
            epoch, place = divmod(drawn[which], self.sizes[which])
            keys.append((which, epoch, int(self._permutation(which, epoch)[place])))
            drawn[which] += 1
        return keys

    def _choices(self, batch: int) -> np.ndarray:
        """The dataset of each row."""
        rng = np.random.default_rng([self.seed, _CHOICE, batch])
        return rng.choice(len(self.sizes), size=self.batch_size, p=self.shares)

    def _permutation(self, which: int, epoch: int) -> np.ndarray:
        if which not in self._permutations or self._permutations[which][0] != epoch:
            rng = np.random.default_rng([self.seed, _PERMUTATION, which, epoch])
            order = rng.permutation(self.sizes[which])
            if self.lengths is not None:
                begun = -epoch * self.sizes[which] % self.batch_size
                order = _grouped(order, self.lengths[which], self.batch_size, begun, rng)
            self._permutations[which] = (epoch, order)
        return self._permutations[which][1]


def _grouped(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, begun: int, rng: np.random.Generator
) -> np.ndarray:
    """The entries of ``order`` so that a batch's are of like length, and all with images or all without.

    The first ``begun`` rows fill the batch that the last epoch ended in, and what is left over at the end begins the
    next epoch's; only these, and at most one batch between, may mix.

    Source: the idea of get_modality_length_grouped_indices in llava/train/llava_trainer.py@c121f04.
    Differs: that sorts within each step's rows only; here rows of like length come from the next 50 batches.
    """
    batches: list[np.ndarray] = []
    rest: list[int] = []
    for kind in (lengths[order, 0] > 0, lengths[order, 0] == 0):
        ours = order[kind]
        whole = len(ours) // batch_size * batch_size
        rest.extend(ours[whole:].tolist())
        for start in range(0, whole, batch_size * _POOL):
            pool = ours[start : min(start + batch_size * _POOL, whole)]
            images, words = lengths[pool].T
            batches.extend(np.split(pool[np.lexsort((words, images))], len(pool) // batch_size))
    batches = [batches[i] for i in rng.permutation(len(batches))]
    while len(rest) < begun and batches:
        rest.extend(batches.pop().tolist())
    mixed = [np.asarray(rest[i : i + batch_size], dtype=order.dtype) for i in range(begun, len(rest), batch_size)]
    return np.concatenate([np.asarray(rest[:begun], dtype=order.dtype), *batches, *mixed])


@dataclass(frozen=True)
class _Made(Generic[B_co]):
    """A micro-batch and the records that were replaced in it, by dataset and index."""

    batch: B_co
    skipped: dict[tuple[int, int], Skipped]


class _Maker(TorchDataset[Any], Generic[B]):
    """Keys to micro-batches; the part of a Loader that worker processes hold."""

    def __init__(self, datasets: tuple[Dataset[Any], ...], collator: Collator[B], seed: int) -> None:
        self.datasets, self.collator, self.seed = datasets, collator, seed

    def __getitem__(self, keys: list[Key]) -> _Made[B] | BadRecord:
        """The micro-batch of ``keys``, or the error: raised in a worker, it would come wrapped in a traceback."""
        used = {(which, index) for which, _, index in keys}
        skipped: dict[tuple[int, int], Skipped] = {}
        try:
            items = [self._item(key, used, skipped) for key in keys]
            return _Made(self.collator.collate(items), skipped)
        except BadRecord as error:
            return error

    def _item(self, key: Key, used: set[tuple[int, int]], skipped: dict[tuple[int, int], Skipped]) -> Any:
        """The item of ``key`` or, where bad records are skipped, of the next good record that is not in ``used``."""
        which, epoch, _ = key
        data = self.datasets[which]
        errors = []
        for index in islice(self._candidates(key, used), _MAX_BAD):
            rng = np.random.default_rng([self.seed, _ITEM, which, epoch, index])
            used.add((which, index))
            try:
                return self.collator.encode(data.records[index], rng)
            except BadRecord as error:
                if data.on_error == "raise":
                    raise
                skipped[which, index] = Skipped(error.file, error.record, error.problem)
                errors.append(error)
        raise BadRecord(
            errors[0].file,
            errors[0].record,
            f"this and the next {len(errors) - 1} records of dataset {data.name!r} are all bad: {errors[0].problem}",
            f"mend the dataset ({errors[0].fix})",
        )

    def _candidates(self, key: Key, used: set[tuple[int, int]]) -> Iterator[int]:
        """The key's record, those behind it that are not in the micro-batch, and last, rather than none, the others."""
        which, _, index = key
        size = len(self.datasets[which])
        taken = frozenset(used)  # as it is now: what is tried below must not come again as one of the others
        behind = [(index + step) % size for step in range(1, min(size, len(taken) + _MAX_BAD + 1))]
        yield index
        yield from (other for other in behind if (which, other) not in taken)
        yield from (other for other in behind if (which, other) in taken)


class Loader(Generic[B]):
    """Endless micro-batches of a dataset or a mixture, in an order that only the seed decides.

    ``batch_size`` counts the rows of one optimiser step over all ranks; rank r of W takes rows [r*B/W, (r+1)*B/W) of
    it. A dataset is walked epoch by epoch, each in its own permutation; a batch may run into the next epoch. The row
    that replaces a bad record is chosen within its micro-batch, and is all that the division into ranks can change.

    With ``group_by_length`` the rows of a batch are of like length, and text-only ones have batches of their own where
    their number allows, which saves padding. In a mixture this holds of each dataset's share of a batch.
    """

    def __init__(
        self,
        data: Dataset[Any] | Mixture,
        collator: Collator[B],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        group_by_length: bool = False,
        on_skip: Callable[[Skipped], None],
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed}: wanted 0 or more")
        _check_sizes(batch_size, micro_batch_size, rank, world_size)
        datasets = data.datasets if isinstance(data, Mixture) else (data,)
        weights = data.weights if isinstance(data, Mixture) else (1.0,)
        lengths = tuple(_lengths(dataset) for dataset in datasets) if group_by_length else None
        self._order = _Order(tuple(len(dataset) for dataset in datasets), weights, batch_size, seed, lengths)
        self._maker = _Maker(datasets, collator, seed)
        self._position = self._order.start()
        self._fixed = _identity(datasets, weights, batch_size, seed)
        if group_by_length:  # absent otherwise, as in the states from before there was a choice
            self._fixed["group_by_length"] = True
        self._micro_batch_size, self._rank, self._rows = micro_batch_size, rank, batch_size // world_size
        self._workers = workers
        self._on_skip = on_skip
        self._reported: set[tuple[int, int]] = set()
        self._iterator: Iterator[_Made[B] | BadRecord] | None = None

    def next(self) -> list[B]:
        """This rank's micro-batches of the next optimiser step.

        A BadRecord, or the death of a worker, leaves the position where it was.
        """
        if self._iterator is None:
            self._iterator = self._start()
        try:
            batches = [self._deliver(next(self._iterator)) for _ in range(self._rows // self._micro_batch_size)]
        except BaseException:
            self.close()  # the iterator is in the middle of a step; the position is not
            raise
        self._position = self._order.after(self._position)
        return batches

    def peek(self) -> B:
        """The first micro-batch of what ``next`` gives, made here and now; the position stays."""
        return self._deliver(self._maker[self._micro_batches(self._position)[0]])

    def state_dict(self) -> dict[str, Any]:
        """The position after the steps delivered so far, and what it is a position in; goes through json."""
        return {**self._fixed, "batches": self._position.batches, "drawn": list(self._position.drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of ``state``; a ValueError names the field in which its loader was another one."""
        for field, ours in {"group_by_length": False, **self._fixed, "batches": None, "drawn": None}.items():
            if field not in state and field != "group_by_length":
                raise ValueError(f"loader state has no field {field!r}; wanted one that Loader.state_dict made")
            if ours is not None and state.get(field, False) != ours:
                raise ValueError(
                    f"loader state: {field}={state.get(field, False)}, but this loader has {field}={ours}; "
                    "resume with the seed, batch size and data that the state was saved with"
                )
        self.close()
        self._position = _Position(state["batches"], tuple(state["drawn"]))

    @property
    def examples_per_epoch(self) -> int:
        """The records of all datasets together."""
        return sum(self._order.sizes)

    @property
    def epochs(self) -> float:
        """Rows delivered to all ranks so far, over examples_per_epoch."""
        return sum(self._position.drawn) / self.examples_per_epoch

    def close(self) -> None:
        """End the workers, after the micro-batch that each is at; ``next`` starts new ones."""
        # torch ends them when the iterator is freed and has no public way; a traceback can keep the iterator alive.
        shutdown = getattr(self._iterator, "_shutdown_workers", None)
        self._iterator = None
        if shutdown is not None:
            shutdown()

    def _start(self) -> Iterator[_Made[B] | BadRecord]:
        loader: DataLoader[Any] = DataLoader(
            self._maker,
            sampler=self._upcoming(self._position),
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_is,
            worker_init_fn=_ignore_signals,
            # Its own generator: torch draws the workers' seeds from it, by default from the global one.
            generator=torch.Generator(),
        )
        return iter(loader)

    def _upcoming(self, position: _Position) -> Iterator[list[Key]]:
        while True:
            yield from self._micro_batches(position)
            position = self._order.after(position)

    def _micro_batches(self, position: _Position) -> list[list[Key]]:
        """The keys of this rank's micro-batches."""
        first = self._rank * self._rows
        keys = self._order.keys(position)[first : first + self._rows]
        return [keys[i : i + self._micro_batch_size] for i in range(0, len(keys), self._micro_batch_size)]

    def _deliver(self, made: _Made[B] | BadRecord) -> B:
        """The batch; every record skipped in it is reported unless it was before."""
        if isinstance(made, BadRecord):
            raise made
        for record, skipped in made.skipped.items():
            if record not in self._reported:
                self._reported.add(record)
                self._on_skip(skipped)
        return made.batch


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


def _identity(
    datasets: tuple[Dataset[Any], ...], weights: tuple[float, ...], batch_size: int, seed: int
) -> dict[str, Any]:
    """What must be the same for a position to mean the same rows; ``ids`` is a checksum of each dataset's ids."""
    return {
        "seed": seed,
        "batch_size": batch_size,
        "sizes": [len(dataset) for dataset in datasets],
        "ids": [zlib.crc32("\n".join(record.id for record in dataset.records).encode()) for dataset in datasets],
        "weights": list(weights),
    }


def _lengths(dataset: Dataset[Any]) -> np.ndarray:
    """The number of images and of words of each record, (records, 2)."""
    try:
        return np.asarray([(len(record.images), record.words) for record in dataset.records])
    except AttributeError as error:
        raise ValueError(
            f"group_by_length: the records of dataset {dataset.name!r} lack what tells their length ({error}); "
            "use group_by_length=False"
        ) from error


def _as_is(made: Any) -> Any:
    """The maker's answer as it came; torch's default would convert it."""
    return made


def _ignore_signals(_worker: int) -> None:
    """Leave signals to the main process: schedulers send theirs, and terminals Ctrl-C, to the workers as well.

    A worker that died of one would end the training before it has saved its checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none; there a SIGTERM still ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End this worker on the SIGTERM by which the main process ends its children when it exits, on no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
