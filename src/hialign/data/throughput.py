"""How fast a stream's batches are made, and what memory they take."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import psutil
from torch import Tensor

from hialign.data.loader import Loader
from hialign.data.workers import watched

SECONDS = 2.0  # no longer than this, but for the micro-batch under way
MICRO_BATCHES = 4  # are enough of each worker


@dataclass(frozen=True)
class Throughput:
    """The making of one stream's micro-batches in this process and its workers; sizes in bytes."""

    rows_per_second: float
    rows: int  # of a micro-batch
    batch: int
    images: int  # of these
    process: int
    workers: tuple[int, ...]  # resident memory, which counts what a worker shares with the process

    def __str__(self) -> str:
        count = len(self.workers)
        made = f"with {count} worker{'s' if count > 1 else ''}" if count else "in the main process"
        share = f", images {self.images / self.batch:.0%}" if self.batch else ""
        workers = f", workers {count} x {sum(self.workers) / count / 1e9:.1f} GB" if count else ""
        return (
            f"{self.rows_per_second:.0f} rows/s {made}, {self.batch / 1e6:.1f} MB a micro-batch of {self.rows}{share}; "
            f"process {self.process / 1e9:.1f} GB{workers}"
        )


def measure(loader: Loader[Any], *, most: int | None = None) -> Throughput:
    """The throughput of ``loader``, whose position and batches stay; takes a few micro-batches or two seconds.

    ``most`` bounds the micro-batches, for a stream that is not to be read beyond some step.
    """
    begin = time.perf_counter()
    trial = loader.trial()
    ends: list[float] = []
    together = max(1, loader.workers)  # the first of each worker come at about one time and say little of the rate
    enough = min(together * (1 + MICRO_BATCHES), most or sys.maxsize)
    try:
        while len(ends) < enough and (not ends or ends[-1] - begin < SECONDS):
            batch = next(trial)
            ends.append(time.perf_counter())
        with watched(loader.processes, loader.name):
            process, *workers = (psutil.Process(pid).memory_info().rss for pid in (os.getpid(), *_pids(loader)))
    finally:
        trial.close()
    counted, since = (len(ends) - together, ends[together - 1]) if len(ends) > together else (len(ends), begin)
    sizes = list(_sizes(batch))
    return Throughput(
        rows_per_second=counted * len(batch) / max(ends[-1] - since, 1e-9),
        rows=len(batch),
        batch=sum(size for _, size in sizes),
        images=sum(size for name, size in sizes if name == "pixel_values"),
        process=process,
        workers=tuple(workers),
    )


def _pids(loader: Loader[Any]) -> list[int]:
    return [process.pid for process in loader.processes if process.pid is not None]


def _sizes(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The name and the bytes of each tensor in a batch."""
    if isinstance(value, Tensor):
        yield name, value.nbytes
    elif is_dataclass(value):
        for field in fields(value):
            yield from _sizes(getattr(value, field.name), field.name)
    elif isinstance(value, Mapping):
        for inside, entry in value.items():
            yield from _sizes(entry, inside)
