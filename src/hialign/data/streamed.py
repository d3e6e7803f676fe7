"""Batches of streamed datasets: read in blocks, each block in an order of its own, resumed at the row."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np

from hialign.data.order import FILES, ITEM, PERMUTATION, Collator, Division, choices
from hialign.data.records import BadRecord, Skipped, Streamed


@dataclass(frozen=True)
class _Place:
    """A rank's next row of one stream: its pass, its block there, its place in the block's order.

    ``source`` is the stream's own state where the block begins, None where a pass does.
    """

    epoch: int
    block: int
    row: int
    source: dict[str, Any] | None


@dataclass(frozen=True)
class _Position:
    """How many global batches were made, and the place in each stream."""

    batches: int
    places: tuple[_Place, ...]


@dataclass(frozen=True)
class _Row:
    """A raw row on its way to a worker: its dataset and what seeds the random choices about it."""

    which: int
    seed: tuple[int, ...]
    content: Any


class StreamedOrder:
    """Each stream is read pass by pass, in blocks of ``shuffle_buffer`` rows, each block in its own permutation.

    Every rank reads its own share of each stream, so that which rows a step has, and how many a rank's pass has,
    depends on the number of ranks. From which stream each row of a step comes does not.
    """

    examples_per_epoch = None

    def __init__(
        self, datasets: tuple[Streamed[Any], ...], weights: tuple[float, ...], division: Division, seed: int
    ) -> None:
        self.weights, self.division, self.seed = weights, division, seed
        self.items = StreamedItems(datasets)
        self.fixed = {
            "seed": seed,
            "batch_size": division.batch_size,
            "streams": [dataset.name for dataset in datasets],
            "shuffle_buffers": [dataset.shuffle_buffer for dataset in datasets],
            "weights": list(weights),
            "rank": division.rank,
            "world_size": division.world_size,
        }
        self._readers = [_Reader(data, which, division, seed) for which, data in enumerate(datasets)]

    def start(self) -> _Position:
        """The position before the first step."""
        return _Position(0, (_Place(0, 0, 0, None),) * len(self._readers))

    def steps(self, position: _Position) -> Iterator[tuple[list[_Row], _Position]]:
        """This rank's rows of each step from ``position`` on, with the position behind it; one such walk at a time."""
        for reader, place in zip(self._readers, position.places, strict=True):
            reader.seek(place)
        for batch in count(position.batches):
            chosen = choices(self.weights, self.division.batch_size, self.seed, batch)[self.division.ours]
            rows = [self._readers[which].next() for which in chosen.tolist()]
            yield rows, _Position(batch + 1, tuple(reader.place for reader in self._readers))

    def epochs(self, position: _Position) -> float:
        """The passes that this rank has finished, of a mixture those that it has finished of every stream."""
        return float(min(place.epoch for place in position.places))

    def state(self, position: _Position) -> dict[str, Any]:
        """The position as fields that go through json."""
        return {"batches": position.batches, "places": [asdict(place) for place in position.places]}

    def position(self, state: dict[str, Any]) -> _Position:
        """The position that ``state`` was made of."""
        return _Position(state["batches"], tuple(_Place(**place) for place in state["places"]))


class _Reader:
    """One rank's rows of one stream. While a block is handed out, the next one is read, a row for a row."""

    def __init__(self, data: Streamed[Any], which: int, division: Division, seed: int) -> None:
        self.data, self.which, self.division, self.seed = data, which, division, seed
        self.place = _Place(0, 0, 0, None)
        self._share = data.share(division.rank, division.world_size)
        self._reading: list[Iterator[Any]] = [iter(())]  # one; in a list that is emptied before the program ends:
        weakref.finalize(self, self._reading.clear)  # files that are left open complain after their modules are gone
        self._block: list[Any] = []  # empty: nothing is read yet, or reading has failed
        self._order = np.arange(0)
        self._coming: list[Any] = []  # of the next block
        self._begin: dict[str, Any] | None = None  # the share's state where the next block begins

    def seek(self, place: _Place) -> None:
        """Stand before ``place``; its block is read again unless it is the one at hand."""
        if not self._block or (place.epoch, place.block) != (self.place.epoch, self.place.block):
            self._open(place.epoch, place.block, place.source)
        if (self.place.epoch, self.place.block) != (place.epoch, place.block) or place.row >= len(self._block):
            self._block = []
            raise ValueError(
                f"{self.data.name}: pass {place.epoch + 1} has no row {self._number(place, place.row)}, from which to "
                "go on; the data are others than when the state was saved: use those, or start anew"
            )
        self.place = place

    def next(self) -> _Row:
        """The row at ``place``, which moves to the one behind it."""
        place, index = self.place, int(self._order[self.place.row])
        # the rank, because two ranks' rows of one number are different rows
        seed = (self.seed, ITEM, self.which, place.epoch, self.division.rank, self._number(place, index))
        row = _Row(self.which, seed, self._block[index])
        if place.row + 1 < len(self._block):
            self._read(1)
            self.place = replace(place, row=place.row + 1)
        else:
            self._turn_over(place.epoch, place.block + 1)
        return row

    def _number(self, place: _Place, index: int) -> int:
        return place.block * self.data.shuffle_buffer + index

    def _open(self, epoch: int, block: int, source: dict[str, Any] | None) -> None:
        """Begin to read the pass at a block, and stand before its first row."""
        words = np.random.SeedSequence([self.seed, FILES, self.which, epoch]).generate_state(1)
        self._reading[0] = self._share.start(int(words[0]) + 1, source)
        self._coming, self._begin = [], source
        self._turn_over(epoch, block)

    def _turn_over(self, epoch: int, block: int) -> None:
        """Make the coming block, read to its end, the one at hand; behind a pass's last block begins the next pass."""
        self._read(self.data.shuffle_buffer)
        if not self._coming and block == 0:
            share = f"rank {self.division.rank}'s share of {self.division.world_size}"
            raise ValueError(f"{self.data.name}: no row in {share}; wanted a stream of at least one row for each rank")
        if not self._coming:
            self._open(epoch + 1, 0, None)
            return
        self._block, self.place = self._coming, _Place(epoch, block, 0, self._begin)
        rng = np.random.default_rng([self.seed, PERMUTATION, self.which, epoch, block])
        self._order = rng.permutation(len(self._block))
        self._coming, self._begin = [], self._share.state_dict()

    def _read(self, most: int) -> None:
        """Up to ``most`` rows more of the coming block."""
        try:
            self._coming.extend(islice(self._reading[0], min(most, self.data.shuffle_buffer - len(self._coming))))
        except BaseException:
            self._block = []  # an iterator that has failed looks like one at its end; the next seek starts anew
            raise


class StreamedItems:
    """Rows to items; a bad one is filled from another row of its micro-batch, where bad ones are skipped."""

    def __init__(self, datasets: tuple[Streamed[Any], ...]) -> None:
        self._kinds = tuple((dataset.record, dataset.on_error) for dataset in datasets)

    def __call__(self, rows: list[_Row], collator: Collator[Any], skipped: list[Skipped]) -> list[Any]:
        """An item for each row, where the row is bad a good one's again; what was left out is added to ``skipped``."""
        made: dict[int, Any] = {}
        errors = []
        for number, row in enumerate(rows):
            record_of, on_error = self._kinds[row.which]
            try:
                record, left_out = record_of(row.content)
                skipped.extend(left_out)
                made[number] = collator.encode(record, np.random.default_rng(row.seed))
            except BadRecord as error:
                if on_error == "raise":
                    raise
                skipped.append(Skipped(error.file, error.record, error.problem))
                errors.append(error)
        if not made:
            problem = f"this and the other {len(rows) - 1} rows of a micro-batch are all bad: {errors[0].problem}"
            raise BadRecord(errors[0].file, errors[0].record, problem, f"mend the dataset ({errors[0].fix})")
        good = [*made, next(iter(made))]  # behind the last good one comes the first
        return [made[next((g for g in good if g >= number), good[-1])] for number in range(len(rows))]
