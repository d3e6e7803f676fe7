"""Batches of datasets that can be asked for any record: a pure function of the seed and the position."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from hialign.data.order import ITEM, PERMUTATION, Collator, Division, choices
from hialign.data.records import BadRecord, Dataset, Skipped

Key = tuple[int, int, int]  # which dataset, its epoch, the record's index in it

_MAX_BAD = 20
_POOL = 50  # batches that are sorted by length together: enough for like lengths, too few for like epochs


@dataclass(frozen=True)
class _Position:
    """How many global batches were made, and how many rows of them came from each dataset."""

    batches: int
    drawn: tuple[int, ...]


class IndexedOrder:
    """Each dataset is walked epoch by epoch, each in its own permutation, the same whatever the number of ranks.

    With ``group_by_length`` rows of like length come together.
    """

    def __init__(
        self,
        datasets: tuple[Dataset[Any], ...],
        weights: tuple[float, ...],
        division: Division,
        seed: int,
        *,
        group_by_length: bool,
    ) -> None:
        self.sizes = tuple(len(dataset) for dataset in datasets)
        self.weights, self.division, self.seed = weights, division, seed
        self.items = IndexedItems(datasets, seed)
        self.lengths = tuple(_lengths(dataset) for dataset in datasets) if group_by_length else None
        # ids is a checksum of each dataset's ids
        self.fixed = {
            "seed": seed,
            "batch_size": division.batch_size,
            "sizes": list(self.sizes),
            "ids": [zlib.crc32("\n".join(record.id for record in dataset.records).encode()) for dataset in datasets],
            "weights": list(weights),
        }
        if group_by_length:  # absent otherwise, as in the states from before there was a choice
            self.fixed["group_by_length"] = True
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}  # dataset -> its last epoch and order

    @property
    def examples_per_epoch(self) -> int:
        """The records of all datasets together."""
        return sum(self.sizes)

    def start(self) -> _Position:
        """The position before the first step."""
        return _Position(0, (0,) * len(self.sizes))

    def steps(self, position: _Position) -> Iterator[tuple[list[Key], _Position]]:
        """This rank's keys of each step from ``position`` on, with the position behind it."""
        while True:
            chosen = choices(self.weights, self.division.batch_size, self.seed, position.batches)
            keys = self._keys(position, chosen)
            counts = np.bincount(chosen, minlength=len(self.sizes))
            drawn = tuple(before + int(count) for before, count in zip(position.drawn, counts, strict=True))
            position = _Position(position.batches + 1, drawn)
            yield keys[self.division.ours], position

    def epochs(self, position: _Position) -> float:
        """Rows delivered to all ranks so far, over examples_per_epoch."""
        return sum(position.drawn) / self.examples_per_epoch

    def state(self, position: _Position) -> dict[str, Any]:
        """The position as fields that go through json."""
        return {"batches": position.batches, "drawn": list(position.drawn)}

    def position(self, state: dict[str, Any]) -> _Position:
        """The position that ``state`` was made of."""
        return _Position(state["batches"], tuple(state["drawn"]))

    def _keys(self, position: _Position, chosen: np.ndarray) -> list[Key]:
        """The keys of the global batch at ``position``, whose rows come from the ``chosen`` datasets."""
        drawn = list(position.drawn)
        keys = []
        for which in chosen.tolist():
            epoch, place = divmod(drawn[which], self.sizes[which])
            keys.append((which, epoch, int(self._permutation(which, epoch)[place])))
            drawn[which] += 1
        return keys

    def _permutation(self, which: int, epoch: int) -> np.ndarray:
        if which not in self._permutations or self._permutations[which][0] != epoch:
            rng = np.random.default_rng([self.seed, PERMUTATION, which, epoch])
            order = rng.permutation(self.sizes[which])
            if self.lengths is not None:
                begun = -epoch * self.sizes[which] % self.division.batch_size
                order = _grouped(order, self.lengths[which], self.division.batch_size, begun, rng)
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


def _lengths(dataset: Dataset[Any]) -> np.ndarray:
    """The number of images and of words of each record, (records, 2)."""
    try:
        return np.asarray([(len(record.images), record.words) for record in dataset.records])
    except AttributeError as error:
        raise ValueError(
            f"group_by_length: the records of dataset {dataset.name!r} lack what tells their length ({error}); "
            "use group_by_length=False"
        ) from error


class IndexedItems:
    """Keys to items; a bad record is replaced by the next good one of its dataset, where bad ones are skipped."""

    def __init__(self, datasets: tuple[Dataset[Any], ...], seed: int) -> None:
        self.datasets, self.seed = datasets, seed

    def __call__(self, rows: list[Key], collator: Collator[Any], skipped: list[Skipped]) -> list[Any]:
        """An item for each key; the records that were replaced are added to ``skipped``."""
        used = {(which, index) for which, _, index in rows}
        return [self._item(key, collator, used, skipped) for key in rows]

    def _item(self, key: Key, collator: Collator[Any], used: set[tuple[int, int]], skipped: list[Skipped]) -> Any:
        """The item of ``key`` or, where bad records are skipped, of the next good record that is not in ``used``."""
        which, epoch, _ = key
        data = self.datasets[which]
        errors = []
        for index in islice(self._candidates(key, used), _MAX_BAD):
            rng = np.random.default_rng([self.seed, ITEM, which, epoch, index])
            used.add((which, index))
            try:
                return collator.encode(data.records[index], rng)
            except BadRecord as error:
                if data.on_error == "raise":
                    raise
                skipped.append(Skipped(error.file, error.record, error.problem))
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
