"""What a frozen model makes of the data, on disk: written once, found again by the rows that it was made of.

A folder holds shards, safetensors files of many entries, and a manifest: the key that says what made them, and which
steps of a stream's walk each shard covers. An entry is tensors by name, called after a digest of the row.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hialign.files import write_json

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_BYTES = 256 * 2**20
SHARD_SECONDS = 20.0  # of making entries; what a kill may lose

Entry = Mapping[str, Tensor]  # by name, each (some, ...)
Key = Mapping[str, Any]  # what made a cache; goes through json


@dataclass(frozen=True)
class Shard:
    """One file, and the steps of the walk whose new entries it holds."""

    file: str
    bytes: int
    index: int  # checksum of the file's own list of entries
    begin: int
    end: int
    after: Mapping[str, Any]  # the stream's state behind these steps
    drawn: bool  # whether a random draw decided some of these rows, so that another epoch or seed has other ones


@dataclass(frozen=True)
class Manifest:
    """What a folder holds, or is to hold when ``steps`` steps are covered."""

    key: Key
    made_from: str  # for people: the same weights may have several names
    walk: Mapping[str, Any]  # what decides the rows of the stream's steps
    steps: int
    rows: int  # of those steps
    shards: tuple[Shard, ...] = ()

    @property
    def drawn(self) -> bool:
        """Whether a random draw decided some rows."""
        return any(shard.drawn for shard in self.shards)

    @property
    def missing(self) -> list[tuple[int, int, Mapping[str, Any] | None]]:
        """The steps that no shard covers, from and to, and the stream's state before them, None for its start."""
        begins = [*(shard.begin for shard in self.shards), self.steps]
        ends = [0, *(shard.end for shard in self.shards)]
        states = [None, *(shard.after for shard in self.shards)]
        gaps = zip(ends, begins, states, strict=True)
        return [(end, begin, state) for end, begin, state in gaps if end < begin]


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None where there is none."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        return Manifest(**{**content, "shards": tuple(Shard(**shard) for shard in content["shards"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file}: not a manifest of this version ({error}); remove the folder {folder} and run hialign cache again"
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the folder's manifest whole."""
    write_json(folder / MANIFEST, {"format": FORMAT, **asdict(manifest)})


@dataclass(frozen=True)
class Made:
    """The new entries of one batch, and whether a random draw decided any row of it."""

    entries: Mapping[str, Entry]
    drawn: bool


class Walk(Protocol):
    """What is used of a stream: its rows in their order, a step at a time."""

    def next(self) -> list[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Reader:
    """The entries of a folder. It may be copied into worker processes.

    Every entry is checked as it is read; a list of entries, and a file's size, as it is opened. ``ValueError`` names
    the file that is damaged.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.places: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._files: dict[str, Any] = {}
        for shard in shards:
            self.places |= {key: (shard.file, entry) for key, entry in read_index(folder, shard).items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def find(self, key: str) -> dict[str, Tensor] | None:
        """The entry called ``key``, None where there is none."""
        if key not in self.places:
            return None
        name, spans = self.places[key]
        with _damage(self.folder / name):
            if name not in self._files:
                self._files[name] = safe_open(self.folder / name, framework="pt")
            return _read_entry(self._files[name], spans)

    def none_of(self, name: str) -> Tensor | None:
        """(0, ...): no rows of the tensors called ``name``; None where the cache has none at all."""
        file = next((file for file, entry in self.places.values() if name in entry["spans"]), None)
        if file is None:
            return None
        with _damage(self.folder / file), safe_open(self.folder / file, framework="pt") as opened:
            empty: Tensor = opened.get_slice(name)[:0]
            return empty


def fill(
    folder: Path,
    manifest: Manifest,
    stream: Walk,
    make: Callable[[Any, Collection[str]], Made],
    *,
    shard_bytes: int = SHARD_BYTES,
    shard_seconds: float = SHARD_SECONDS,
    progress: Callable[[int], object] = lambda rows: None,
) -> Manifest:
    """Covers the manifest's missing steps; returns it with their shards, as it then is on disk.

    ``make`` is given one of the stream's batches and the keys that are known already; ``progress`` is told each step's
    number of rows. A shard ends with the step in which it reaches either bound. A kill loses the one under way and none
    before it.
    """
    known = {key for shard in manifest.shards for key in read_index(folder, shard)}
    start = stream.state_dict()
    for begin, end, state in manifest.missing:
        stream.load_state_dict(dict(start if state is None else state))
        at = begin
        while at < end:
            made, steps = _collect(stream, make, known, end - at, (shard_bytes, shard_seconds), progress)
            file = f"{at:06d}-{at + steps:06d}.safetensors"
            written = write_shard(folder, file, made.entries)
            shard = Shard(file, *written, at, at + steps, stream.state_dict(), made.drawn)
            shards = sorted((*manifest.shards, shard), key=lambda one: one.begin)
            manifest = replace(manifest, shards=tuple(shards))
            write_manifest(folder, manifest)
            at += steps
    return manifest


def _collect(
    stream: Walk,
    make: Callable[[Any, Collection[str]], Made],
    known: set[str],
    most: int,
    bounds: tuple[int, float],
    progress: Callable[[int], object],
) -> tuple[Made, int]:
    """The new entries of the next steps, ``most`` or until they reach a bound, and how many steps those were.

    Their keys are added to ``known``.
    """
    entries: dict[str, Entry] = {}
    drawn, began = False, time.monotonic()
    for step in range(most):
        batches = stream.next()
        for batch in batches:
            made = make(batch, known)
            entries |= made.entries
            known |= made.entries.keys()
            drawn |= made.drawn
        progress(sum(map(len, batches)))
        if _size(entries) >= bounds[0] or time.monotonic() - began >= bounds[1]:
            return Made(entries, drawn), step + 1
    return Made(entries, drawn), most


def write_shard(folder: Path, file: str, entries: Mapping[str, Entry]) -> tuple[int, int]:
    """Writes the entries into one file, which has its name when it is whole; its size, its list's checksum."""
    spans: dict[str, dict[str, tuple[int, int]]] = {key: {} for key in entries}
    tensors = {}
    for name in sorted({name for entry in entries.values() for name in entry}):
        parts, at = [], 0
        for key, entry in entries.items():
            if name in entry:
                parts.append(entry[name].detach().cpu())
                spans[key][name] = (at, at + len(parts[-1]))
                at += len(parts[-1])
        tensors[name] = torch.cat(parts)
    listed = {key: {"spans": spans[key], "crc": _checksum(entry)} for key, entry in entries.items()}
    index = json.dumps(listed)
    partial = folder / f"partial-{file}"
    save_file(tensors, partial, metadata={"index": index})
    with partial.open("rb+") as out:
        os.fsync(out.fileno())
    os.replace(partial, folder / file)
    return (folder / file).stat().st_size, zlib.crc32(index.encode())


def read_index(folder: Path, shard: Shard) -> dict[str, dict[str, Any]]:
    """Where each entry lies in the shard, by its key; ``ValueError`` names a file that is damaged."""
    file = folder / shard.file
    with _damage(file):
        if not file.is_file():
            raise _Damaged("it is gone")
        if file.stat().st_size != shard.bytes:
            raise _Damaged(f"it has {file.stat().st_size} bytes, and {shard.bytes} were written")
        with safe_open(file, framework="pt") as opened:
            index = (opened.metadata() or {}).get("index", "")
        if zlib.crc32(index.encode()) != shard.index:
            raise _Damaged("its list of entries does not have its checksum")
        found: dict[str, dict[str, Any]] = json.loads(index)
        return found


def check_shard(folder: Path, shard: Shard) -> dict[str, dict[str, Any]]:
    """As ``read_index``, with every entry read and checked."""
    index = read_index(folder, shard)
    with _damage(folder / shard.file), safe_open(folder / shard.file, framework="pt") as opened:
        for spans in index.values():
            _read_entry(opened, spans)
    return index


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A name for exactly these weights."""
    made = hashlib.sha256()
    for name in sorted(state):
        made.update(f"{name} {state[name].dtype} {tuple(state[name].shape)} ".encode())
        made.update(_bytes(state[name]))
    return made.hexdigest()[:32]


class _Damaged(Exception):
    """What is wrong with a file."""


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (_Damaged, SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged: {error}; delete it and run the same hialign cache again, which makes it anew"
        ) from error


def _size(entries: Mapping[str, Entry]) -> int:
    return sum(tensor.nbytes for entry in entries.values() for tensor in entry.values())


def _read_entry(opened: Any, place: Mapping[str, Any]) -> dict[str, Tensor]:
    entry = {name: opened.get_slice(name)[begin:end] for name, (begin, end) in place["spans"].items()}
    if _checksum(entry) != place["crc"]:
        raise _Damaged("an entry does not have its checksum")
    return entry


def _checksum(entry: Entry) -> int:
    made = 0
    for name in sorted(entry):
        made = zlib.crc32(_bytes(entry[name]), made)
    return made


def _bytes(tensor: Tensor) -> Any:
    """The tensor's bytes, not copied where they lie in order in the processor's memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
