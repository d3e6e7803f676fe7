"""Streamed sets: every row once a pass, the same order again from any state, ranks apart, bad rows filled."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hialign.data import (
    BadRecord,
    CaptionedImage,
    Dataset,
    LanguageCollator,
    Loader,
    hub_caption_stream,
    hub_captions,
    load_image,
    mix,
)

ROWS = 23


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(level):
    out = io.BytesIO()
    Image.new("RGB", (10, 12), (level, 0, 0)).save(out, "png")
    return out.getvalue()


def write_parquet(file, levels, captions=None, images=None):
    import pyarrow
    import pyarrow.parquet

    file.parent.mkdir(exist_ok=True)
    images = [{"bytes": png(level), "path": None} for level in levels] if images is None else images
    captions = [f"cup {level}" for level in levels] if captions is None else captions
    # small groups: a block begins in the middle of some
    table = pyarrow.table({"image": images, "caption": captions, "unused": list(levels)})
    pyarrow.parquet.write_table(table, file, row_group_size=4)


def parquet(folder):
    """Three files of 23 rows; the pattern that names them."""
    for number, levels in enumerate((range(9), range(9, 18), range(18, ROWS))):
        write_parquet(folder / "parquet" / f"part-{number}.parquet", levels)
    return str(folder / "parquet" / "part-*.parquet")


def imagefolder(folder):
    """The same rows as a folder of images."""
    root = folder / "images"
    root.mkdir()
    for level in range(ROWS):
        (root / f"{level}.png").write_bytes(png(level))
    lines = [json.dumps({"file_name": f"{level}.png", "caption": f"cup {level}"}) for level in range(ROWS)]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return str(root)


class Draw:
    """A collator whose items are the caption, the image's red level and a random number."""

    def __init__(self, bad=()):
        self.bad = frozenset(bad)

    def encode(self, record, rng):
        level = int(np.asarray(load_image(record))[0, 0, 0])
        if level in self.bad:
            raise BadRecord("file", record.id, "bad", "mend it")
        return record.captions[0], level, int(rng.integers(1 << 40))

    def collate(self, items):
        return items


def loader(data, collator=None, *, skips=None, **arguments):
    settings = {"batch_size": 4, "micro_batch_size": 2, "seed": 5} | arguments
    return Loader(data, collator or Draw(), on_skip=[].append if skips is None else skips.append, **settings)


def stream(path, **arguments):
    return hub_caption_stream(path, **({"split": "train", "shuffle_buffer": 5} | arguments))


def take(some, steps):
    return [row for _ in range(steps) for batch in some.next() for row in batch]


def levels(rows):
    return [level for _, level, _ in rows]


@pytest.mark.parametrize("make", [parquet, imagefolder])
def test_a_pass_holds_every_row_once_with_its_own_caption_and_the_next_has_another_order(tmp_path, make):
    drawn = take(loader(stream(make(tmp_path)), batch_size=1, micro_batch_size=1), 2 * ROWS)
    assert sorted(levels(drawn[:ROWS])) == sorted(levels(drawn[ROWS:])) == list(range(ROWS))
    assert levels(drawn[:ROWS]) != levels(drawn[ROWS:])
    assert all(caption == f"cup {level}" for caption, level, _ in drawn)
    assert len({number for _, _, number in drawn}) == 2 * ROWS  # and each draws anew in each pass
    assert drawn == take(loader(stream(make_path(tmp_path, make)), batch_size=1, micro_batch_size=1), 2 * ROWS)
    other = take(loader(stream(make_path(tmp_path, make)), batch_size=1, micro_batch_size=1, seed=6), ROWS)
    assert levels(other) != levels(drawn[:ROWS])


def make_path(folder, make):
    """What ``make`` gave before."""
    return str(folder / "parquet" / "part-*.parquet") if make is parquet else str(folder / "images")


def test_rows_are_shuffled_within_blocks_and_files_between_passes(tmp_path):
    drawn = levels(take(loader(stream(parquet(tmp_path)), batch_size=1, micro_batch_size=1), 6 * ROWS))
    passes = [drawn[start : start + ROWS] for start in range(0, 6 * ROWS, ROWS)]
    files = [range(9), range(9, 18), range(18, ROWS)]
    orders = set()
    for rows in passes:
        order = sorted(files, key=lambda file: sum(rows.index(level) for level in file) / len(file))
        orders.add(tuple(file[0] for file in order))
        unshuffled = [level for file in order for level in file]
        for start in range(0, ROWS, 5):
            assert sorted(rows[start : start + 5]) == sorted(unshuffled[start : start + 5])
        assert rows != unshuffled
    assert len(orders) > 1


@pytest.mark.parametrize("make", [parquet, imagefolder])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_anywhere_goes_on_with_the_batches_that_it_would_have_had(tmp_path, make, workers):
    path = make(tmp_path)
    whole = take(loader(stream(path)), 16)  # 64 rows: two borders between passes
    first = loader(stream(path), workers=workers)
    states = []
    for step in range(13):
        states.append(json.loads(json.dumps(first.state_dict())))
        assert take(first, 1) == whole[4 * step : 4 * step + 4]
    first.close()
    for step in (0, 1, 3, 5, 6, 9, 12):  # at a block's begin and inside, before and behind a border
        for other in {0, workers}:
            second = loader(stream(path), workers=other, micro_batch_size=4)
            second.load_state_dict(states[step])
            assert take(second, 16 - step) == whole[4 * step :]
            second.close()


def test_a_state_is_that_of_delivered_steps_though_workers_are_ahead(tmp_path):
    path = parquet(tmp_path)
    ahead, alone = loader(stream(path), workers=2), loader(stream(path))
    for _ in range(4):
        assert take(ahead, 1) == take(alone, 1)
        assert ahead.state_dict() == alone.state_dict()
    ahead.close()


def test_peeking_and_trying_move_nothing(tmp_path):
    for workers in (0, 2):
        path = parquet(tmp_path)
        whole = take(loader(stream(path)), 12)
        some = loader(stream(path), workers=workers)
        for step in range(12):
            if step in (0, 4, 7):
                assert some.peek() == whole[4 * step : 4 * step + 2]
                before, tried = some.state_dict(), some.trial()
                assert [row for _ in range(6) for row in next(tried)] == whole[4 * step : 4 * step + 12]
                tried.close()
                assert some.state_dict() == before
            assert take(some, 1) == whole[4 * step : 4 * step + 4]
        some.close()


def test_finished_passes_are_counted_and_their_length_is_unknown(tmp_path):
    some = loader(stream(parquet(tmp_path)), batch_size=1, micro_batch_size=1)
    assert some.examples_per_epoch is None
    take(some, ROWS - 1)
    assert some.epochs == 0
    take(some, 1)
    assert some.epochs == 1
    take(some, ROWS)
    assert some.epochs == 2


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("make", [parquet, imagefolder])
def test_ranks_have_rows_of_their_own_and_each_resumes(tmp_path, make, world_size):
    path = make(tmp_path)
    settings = {"batch_size": world_size, "micro_batch_size": 1, "world_size": world_size}
    seen = []
    for rank in range(world_size):
        some = loader(stream(path), rank=rank, **settings)
        rows = []
        while some.epochs == 0:
            rows += take(some, 1)
        seen += levels(rows)
        again = loader(stream(path), rank=rank, **settings)
        take(again, 3)
        resumed = loader(stream(path), rank=rank, **settings)
        resumed.load_state_dict(json.loads(json.dumps(again.state_dict())))
        assert take(resumed, len(rows) - 3) == rows[3:]
    assert max(Counter(seen).values()) == 1
    assert len(seen) > ROWS - world_size  # what does not divide by the ranks is left over


def test_a_state_of_another_rank_stream_or_buffer_is_refused_by_field(tmp_path):
    path = parquet(tmp_path)
    state = loader(stream(path)).state_dict()
    two = {"batch_size": 4, "micro_batch_size": 2, "world_size": 2}
    for other, field in (
        (loader(stream(path), rank=1, **two), "rank=0, but this loader has rank=1"),
        (loader(stream(path), rank=0, **two), "world_size=1, but this loader has world_size=2"),
        (loader(stream(path, shuffle_buffer=6)), r"shuffle_buffers=\[5\]"),
        (loader(stream(imagefolder(tmp_path))), "streams="),
        (loader(Dataset("d", [CaptionedImage("1", Path("x"), ("a",))])), "no field 'sizes'"),
    ):
        with pytest.raises(ValueError, match=field):
            other.load_state_dict(state)
    indexed = loader(Dataset("d", [CaptionedImage("1", Path("x"), ("a",))])).state_dict()
    with pytest.raises(ValueError, match="no field 'streams'"):
        loader(stream(path)).load_state_dict(indexed)


def test_going_on_in_data_that_have_shrunk_is_an_error(tmp_path):
    path = parquet(tmp_path)
    some = loader(stream(path), batch_size=1, micro_batch_size=1)
    take(some, 21)
    state = some.state_dict()
    for file in (tmp_path / "parquet").iterdir():
        write_parquet(file, range(2))
    changed = loader(stream(path), batch_size=1, micro_batch_size=1)
    changed.load_state_dict(state)
    with pytest.raises(ValueError, match=r"part-\*.parquet \(train\): pass 1 has no row .* the data are others"):
        changed.next()


def test_a_mixture_of_streams_keeps_its_shares_and_walks_each_by_its_own_passes(tmp_path):
    path, other = parquet(tmp_path), tmp_path / "other.parquet"
    write_parquet(other, range(100, 107))
    data = mix([stream(path), stream(str(other))], [3, 1])
    some = loader(data, batch_size=50, micro_batch_size=50)
    drawn = levels(take(some, 20))
    assert sum(level < 100 for level in drawn) / len(drawn) == pytest.approx(0.75, abs=0.04)
    for chosen, size in (([n for n in drawn if n < 100], ROWS), ([n for n in drawn if n >= 100], 7)):
        for start in range(0, len(chosen) - size + 1, size):
            assert len(set(chosen[start : start + size])) == size
    first = loader(data, batch_size=50, micro_batch_size=50)
    take(first, 7)
    second = loader(data, batch_size=50, micro_batch_size=50)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert levels(take(second, 13)) == drawn[350:]


def test_a_mixture_of_streamed_and_other_sets_is_refused(tmp_path):
    path = parquet(tmp_path)
    with pytest.raises(ValueError, match=r"mix: \[.*\] are streamed and \['d'\] are not"):
        mix([stream(path), Dataset("d", [CaptionedImage("1", Path("x"), ("a",))])], [1, 1])


def test_grouping_by_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"group_by_length: .* is streamed.*group_by_length=false"):
        loader(stream(parquet(tmp_path)), group_by_length=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_stops_or_is_filled_from_its_micro_batch_and_reported_once(tmp_path, workers):
    path = parquet(tmp_path)
    with pytest.raises(BadRecord, match="bad; mend it"):
        take(loader(stream(path), Draw([7]), workers=workers), 6)
    clean, skips = take(loader(stream(path)), 18), []
    some = loader(stream(path, on_error="skip"), Draw([7, 20]), skips=skips, workers=workers)
    drawn = take(some, 18)
    some.close()
    for start in range(0, len(clean), 2):
        before, after = clean[start : start + 2], drawn[start : start + 2]
        good = [row for row in before if row[1] not in (7, 20)]
        assert after == [row if row in good else good[0] for row in before]
    assert len(skips) == 2
    assert all(skip.record.startswith("image ") and skip.problem == "bad" for skip in skips)


def test_a_micro_batch_of_nothing_but_bad_rows_is_an_error(tmp_path):
    with pytest.raises(
        BadRecord, match="this and the other 1 rows of a micro-batch are all bad: bad; mend the dataset"
    ):
        take(loader(stream(parquet(tmp_path), on_error="skip"), Draw(range(ROWS))), 1)


def test_bad_captions_and_images_are_named_by_data_set_and_image(tmp_path):
    file = tmp_path / "bad.parquet"
    cells = [
        {"bytes": png(0), "path": "zero.png"},
        {"bytes": b"no image", "path": "one.png"},
        {"bytes": png(2), "path": None},
        None,
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        {"bytes": png(5), "path": None},
    ]
    write_parquet(file, range(6), captions=[" ", "b", "an <image>", "d", "e", "f"], images=cells)
    skips = []
    some = loader(stream(str(file), on_error="skip"), batch_size=6, micro_batch_size=6, skips=skips)
    assert levels(take(some, 2)) == [5] * 12
    found = {skip.problem.split(":")[0].split(" (")[0]: skip for skip in skips}
    assert len(skips) == 5
    assert {skip.file for skip in skips} == {f"{file} (train)"}
    assert found["caption=' '"].record.startswith("zero.png (")
    assert "placeholder '<image>'" in "".join(skip.problem for skip in skips)
    unreadable = {skip.record.split(" (")[0] for skip in skips if "cannot be read" in skip.problem}
    assert unreadable == {"one.png", "a row without an image", str(tmp_path / "gone.png")}
    with pytest.raises(BadRecord, match=r"bad.parquet \(train\): .*on_error=skip"):
        take(loader(stream(str(file)), batch_size=6, micro_batch_size=6), 1)


def test_of_several_captions_a_bad_one_is_left_out_and_listed(tmp_path):
    file, skips = tmp_path / "several.parquet", []
    write_parquet(file, [0, 1], captions=[["a", " "], ["b"]])
    some = loader(stream(str(file), on_error="skip"), batch_size=2, micro_batch_size=2, skips=skips)
    assert sorted(row[0] for row in take(some, 1)) == ["a", "b"]
    assert [skip.problem for skip in skips] == ["caption=' '"]


def test_images_stay_encoded_until_a_worker_decodes_them(tmp_path, monkeypatch):
    opened = []
    data = stream(parquet(tmp_path))
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(1) or original(*a, **k))
    some = loader(data, workers=1)
    take(some, 3)
    some.close()
    assert opened == []  # in this process


def test_images_inside_an_archive_are_read(tmp_path):
    folder = Path(imagefolder(tmp_path))
    (tmp_path / "packed").mkdir()
    with zipfile.ZipFile(tmp_path / "packed" / "train.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    drawn = take(loader(stream(str(tmp_path / "packed")), batch_size=1, micro_batch_size=1), ROWS)
    assert sorted(levels(drawn)) == list(range(ROWS))


def test_several_files_may_be_listed(tmp_path):
    parquet(tmp_path)
    files = [str(tmp_path / "parquet" / f"part-{number}.parquet") for number in (0, 2)]
    drawn = take(loader(stream(files), batch_size=1, micro_batch_size=1), 14)
    assert sorted(levels(drawn)) == [*range(9), *range(18, ROWS)]
    assert len(hub_captions(files, split="train")) == 14


def test_what_cannot_be_streamed_is_said_when_the_set_is_made(tmp_path):
    path = parquet(tmp_path)
    for change, message in (
        ({"image_column": "picture"}, r"image_column='picture': .* has the columns \['caption', 'image', 'unused'\]"),
        ({"image_column": "unused"}, r"image_column='unused': .* wanted images"),
        ({"split": "val"}, "split='val'"),
        ({"path": str(tmp_path / "no.parquet")}, r"no.parquet', name=None"),
        ({"path": "nobody/nothing"}, "wanted a name on the hub"),
        ({"shuffle_buffer": 0}, "shuffle_buffer=0: wanted 1 or more"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(**({"path": path} | change))


def test_more_ranks_than_rows_are_an_error_and_not_a_wait(tmp_path):
    write_parquet(tmp_path / "one.parquet", [1])
    data = stream(str(tmp_path / "one.parquet"))
    with pytest.raises(ValueError, match="no row in rank 1's share of 2"):
        loader(data, batch_size=2, micro_batch_size=1, rank=1, world_size=2).next()


def test_a_file_that_breaks_in_the_middle_stops_by_the_set_s_name_and_again_when_asked_again(tmp_path):
    path = imagefolder(tmp_path)
    file = Path(path) / "metadata.jsonl"
    file.write_text(file.read_text() + '\n{"file_name": "../../out.png", "caption": "c"}')
    some = loader(stream(path), batch_size=1, micro_batch_size=1)
    for _ in range(2):
        some.load_state_dict(loader(stream(path), batch_size=1, micro_batch_size=1).state_dict())
        with pytest.raises(ValueError, match=r"images \(train\): it cannot be read on: .*\.\./\.\./out.png"):
            take(some, ROWS)


def test_streamed_images_become_the_batches_that_the_model_reads(tmp_path, tokenizer, image_processor):
    collator = LanguageCollator(tokenizer, image_processor, image_token_id=3, num_image_tokens=2)
    path = parquet(tmp_path)
    alone, helped = loader(stream(path), collator), loader(stream(path), collator, workers=2)
    for _ in range(3):
        for ours, theirs in zip(alone.next(), helped.next(), strict=True):
            assert ours.records == theirs.records
            assert torch.equal(ours.pixel_values, theirs.pixel_values)
            assert torch.equal(ours.text.ids, theirs.text.ids)
    helped.close()
