"""Entries on disk: whole or absent, found by name, checked as they are read."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import pytest
import torch

from hialign.training.cache import (
    MANIFEST,
    Made,
    Manifest,
    Reader,
    check_shard,
    fill,
    fingerprint,
    read_manifest,
    write_manifest,
)


@dataclass
class Numbers:
    """A stream whose step n holds the rows 2n and 2n + 1, of ``rows`` that come again and again."""

    rows: int = 12
    at: int = 0

    def next(self):
        first, self.at = 2 * self.at, self.at + 1
        return [[first % self.rows, (first + 1) % self.rows]]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Maker:
    """An entry for each row, of as many numbers as the row says; counts its calls and fails at one of them."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __call__(self, batch, known):
        if all(str(row) in known for row in batch):
            return Made({}, False)
        self.calls.append(batch)
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        return Made({str(row): entry(row) for row in batch if str(row) not in known}, False)


def entry(row):
    made = {"logps": torch.arange(row, dtype=torch.float32) / 7}
    if row % 3 == 0:
        made["states"] = torch.full((row, 4), row + 0.5, dtype=torch.bfloat16)
    return made


def begun(folder, steps=6):
    folder.mkdir(exist_ok=True)
    manifest = Manifest({"of": "test"}, "here", {}, steps, 2 * steps)
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def folder(tmp_path):
    """A cache of 12 rows in 6 shards."""
    fill(tmp_path, begun(tmp_path), Numbers(), Maker(), shard_bytes=1)
    return tmp_path


def read(folder):
    return Reader(folder, read_manifest(folder).shards)


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)


def test_every_entry_comes_back_as_it_was_made(folder):
    reader = pickle.loads(pickle.dumps(read(folder)))  # as worker processes get it
    assert len(reader.places) == 12
    for row in range(12):
        found = reader.find(str(row))
        assert found.keys() == entry(row).keys()
        for name, tensor in entry(row).items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert reader.find("12") is None
    assert reader.none_of("states").shape == (0, 4)


def test_a_reader_that_has_read_still_goes_to_a_worker(folder):
    reader = read(folder)
    reader.find("3")
    assert torch.equal(pickle.loads(pickle.dumps(reader)).find("3")["logps"], entry(3)["logps"])


def test_rows_that_come_again_are_made_once(tmp_path):
    maker = Maker()
    manifest = fill(tmp_path, begun(tmp_path, steps=18), Numbers(), maker)
    assert len(maker.calls) == 6
    assert not manifest.missing
    assert len(read(tmp_path).places) == 12


@pytest.mark.parametrize(("bounds", "shards"), [({}, 1), ({"shard_bytes": 1}, 6), ({"shard_seconds": 0.0}, 6)])
def test_a_shard_ends_at_either_bound(tmp_path, bounds, shards):
    """Log-probabilities alone are small: without the second one a kill after an hour could lose all of it."""
    assert len(fill(tmp_path, begun(tmp_path), Numbers(), Maker(), **bounds).shards) == shards


def test_a_killed_writing_goes_on_behind_its_last_whole_shard(tmp_path):
    maker = Maker(fails_at=4)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, begun(tmp_path), Numbers(), maker, shard_bytes=1)
    kept = read_manifest(tmp_path)
    assert [(begin, end) for begin, end, _ in kept.missing] == [(3, 6)]
    written = {shard.file: (tmp_path / shard.file).stat().st_mtime_ns for shard in kept.shards}
    again = Maker()
    fill(tmp_path, kept, Numbers(), again, shard_bytes=1)
    assert again.calls == [[6, 7], [8, 9], [10, 11]]
    assert all((tmp_path / file).stat().st_mtime_ns == time for file, time in written.items())
    assert {row: read(tmp_path).find(str(row))["logps"].shape[0] for row in range(12)} == {r: r for r in range(12)}


def test_a_lost_shard_alone_is_made_again(folder):
    manifest = read_manifest(folder)
    kept = replace(manifest, shards=tuple(shard for shard in manifest.shards if shard.begin not in (0, 3)))
    assert [(begin, end) for begin, end, _ in kept.missing] == [(0, 1), (3, 4)]
    maker = Maker()
    assert fill(folder, kept, Numbers(), maker, shard_bytes=1) == manifest
    assert maker.calls == [[0, 1], [6, 7]]


def test_a_longer_walk_goes_on_where_the_shorter_one_ended(tmp_path):
    short = fill(tmp_path, begun(tmp_path, steps=2), Numbers(), Maker())
    maker = Maker()
    fill(tmp_path, replace(short, steps=4, rows=8), Numbers(), maker)
    assert maker.calls == [[4, 5], [6, 7]]


@pytest.mark.parametrize("place", [0, 9, 60, -1, -5])
def test_a_flipped_bit_is_found_and_its_file_named(folder, place):
    shard = read_manifest(folder).shards[4]  # rows 8 and 9
    flip(folder / shard.file, place)
    message = rf"{shard.file} is damaged: .*; delete it and run the same hialign cache again"
    with pytest.raises(ValueError, match=message):
        check_shard(folder, shard)
    with pytest.raises(ValueError, match=message):
        [read(folder).find(str(row)) for row in (8, 9)]


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_file_that_is_cut_or_gone_is_named_when_the_cache_is_opened(folder, harm):
    shard = read_manifest(folder).shards[2]
    content = (folder / shard.file).read_bytes()
    (folder / shard.file).unlink()
    if harm == "cut":
        (folder / shard.file).write_bytes(content[:-3])
    with pytest.raises(ValueError, match=rf"{shard.file} is damaged: it (has|is gone)"):
        read(folder)


def test_a_manifest_of_another_version_is_refused(folder):
    (folder / MANIFEST).write_text('{"format": 0, "shards": []}')
    with pytest.raises(ValueError, match=r"manifest.json: not a manifest of this version .*; remove the folder"):
        read_manifest(folder)
    (folder / MANIFEST).unlink()
    assert read_manifest(folder) is None


def test_a_fingerprint_tells_values_names_kinds_and_shapes_apart():
    plain = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.zeros(3)}
    others = [
        {**plain, "a": torch.tensor([[1.0, 2.0000002]])},
        {"a": plain["a"], "c": plain["b"]},
        {**plain, "b": torch.zeros(3, dtype=torch.bfloat16)},
        {**plain, "a": plain["a"].T},
    ]
    assert fingerprint(plain) == fingerprint(dict(reversed(plain.items())))
    assert len({fingerprint(weights) for weights in [plain, *others]}) == 5
