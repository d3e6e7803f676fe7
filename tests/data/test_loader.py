"""The loader: one global order whatever the ranks, workers and restarts; nothing skipped in silence; no hangs."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from hialign.batch import Batch, LanguageBatch
from hialign.data import (
    BadRecord,
    CaptionedImage,
    Conversation,
    Dataset,
    LanguageCollator,
    Loader,
    Streamed,
    Turn,
    WorkerDied,
    flickr8k,
    measure,
    mix,
)


@dataclass(frozen=True, kw_only=True)
class Numbers(Batch):
    values: torch.Tensor  # (batch,): what each item drew from its generator


class Draw:
    """A collator whose items are a random number; it fails on the records named in ``bad``."""

    def __init__(self, bad=(), seconds=0.0):
        self.bad, self.seconds = frozenset(bad), seconds

    def encode(self, record, rng):
        time.sleep(self.seconds)
        if record.id in self.bad:
            raise BadRecord(f"{record.id}.jpg", record.id, "broken", "get it again")
        return record.id, rng.integers(1 << 40)

    def collate(self, items):
        values = torch.tensor([int(value) for _, value in items])
        return Numbers(records=tuple(name for name, _ in items), values=values)


def dataset(count, prefix="r", on_error="raise"):
    some = [CaptionedImage(f"{prefix}{i}", Path(f"{i}.jpg"), ("a",)) for i in range(count)]
    return Dataset(prefix, some, on_error=on_error)


def loader(data, collator=None, *, skips=None, **arguments):
    settings = {"batch_size": 4, "micro_batch_size": 2, "seed": 5} | arguments
    return Loader(data, collator or Draw(), on_skip=[].append if skips is None else skips.append, **settings)


def rows(steps):
    """(record, drawn number) of every row of some steps, in order."""
    return [row for step in steps for batch in step for row in zip(batch.records, batch.values.tolist(), strict=True)]


def take(some, count):
    return rows([some.next() for _ in range(count)])


def names(pairs):
    return [name for name, _ in pairs]


def wait_for_no_children(seconds=5.0):
    end = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)
    return multiprocessing.active_children()


def test_an_epoch_holds_every_record_once_and_the_next_one_in_another_order():
    drawn = names(take(loader(dataset(8)), 4))
    assert sorted(drawn[:8]) == sorted(drawn[8:]) == [f"r{i}" for i in range(8)]
    assert drawn[:8] != drawn[8:]
    assert names(take(loader(dataset(8), seed=6), 4)) != drawn


def test_a_record_draws_anew_in_each_epoch():
    drawn = take(loader(dataset(8)), 4)
    assert {dict(drawn[:8])[f"r{i}"] == dict(drawn[8:])[f"r{i}"] for i in range(8)} == {False}


def test_a_batch_larger_than_the_dataset_runs_into_the_next_epochs():
    small = loader(dataset(3), batch_size=8)
    step = small.next()
    assert [len(batch) for batch in step] == [2, 2, 2, 2]
    assert sorted(names(rows([step]))[:3]) == sorted(names(rows([step]))[3:6]) == ["r0", "r1", "r2"]
    assert small.epochs == pytest.approx(8 / 3)
    assert small.examples_per_epoch == 3


@pytest.mark.parametrize("size", [7, 3])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_together_see_what_one_process_sees(size, world_size):
    data = mix([dataset(size, "a"), dataset(5, "b")], [1, 2])
    alone = loader(data, batch_size=8, micro_batch_size=4)
    ranks = [
        loader(data, batch_size=8, micro_batch_size=1, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for _ in range(6):
        assert rows([part.next() for part in ranks]) == rows([alone.next()])


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch_is_bit_identical(workers):
    data = mix([dataset(11, "a"), dataset(6, "b")], [0.7, 0.3])
    whole = take(loader(data), 9)
    first = loader(data, workers=workers)
    assert take(first, 4) == whole[:16]
    state = json.loads(json.dumps(first.state_dict()))
    assert take(first, 1) == whole[16:20]
    for other in (0, 1):
        second = loader(data, workers=other, micro_batch_size=4)
        second.load_state_dict(state)
        assert take(second, 5) == whole[16:]
        assert second.state_dict()["batches"] == 9
        second.close()
    first.load_state_dict(state)  # also after batches were taken
    assert take(first, 5) == whole[16:]
    first.close()


def test_the_state_is_that_of_the_delivered_steps_and_small():
    some = loader(dataset(11), workers=2)
    some.next()
    time.sleep(0.2)  # workers are ahead by now
    state = some.state_dict()
    assert (state["batches"], state["drawn"]) == (1, [4])
    assert len(json.dumps(state)) < 200
    some.close()


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"seed": 6}, "seed=5, but this loader has seed=6"),
        ({"batch_size": 8}, "batch_size=4, but this loader has batch_size=8"),
        ({"data": dataset(12)}, "sizes="),
        ({"data": dataset(11, "x")}, "ids="),
        ({"data": mix([dataset(11), dataset(11)], [1, 1])}, "sizes="),
    ],
)
def test_a_state_of_another_loader_is_refused_by_field(other, field):
    state = loader(dataset(11)).state_dict()
    with pytest.raises(ValueError, match=field):
        loader(**({"data": dataset(11)} | other)).load_state_dict(state)
    del state["drawn"]
    with pytest.raises(ValueError, match="no field 'drawn'"):
        loader(dataset(11)).load_state_dict(state)


def test_a_state_of_other_weights_is_refused():
    two = [dataset(3, "a"), dataset(3, "b")]
    with pytest.raises(ValueError, match="weights="):
        loader(mix(two, [1, 2])).load_state_dict(loader(mix(two, [1, 1])).state_dict())


def test_a_mixture_keeps_its_shares_and_walks_each_dataset_by_its_own_epochs():
    drawn = names(take(loader(mix([dataset(10, "a"), dataset(1000, "b")], [3, 1]), batch_size=50), 40))
    share = sum(name.startswith("a") for name in drawn) / len(drawn)
    assert share == pytest.approx(0.75, abs=0.03)
    small = [name for name in drawn if name.startswith("a")]
    assert all(sorted(small[i : i + 10]) == sorted(f"a{k}" for k in range(10)) for i in range(0, 1400, 10))
    large = [name for name in drawn if name.startswith("b")]
    assert len(set(large)) == len(large)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_left_alone(workers):
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    some = loader(dataset(8), workers=workers)
    some.peek()
    some.next()
    some.close()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_peek_is_the_first_micro_batch_and_moves_nothing():
    for workers in (0, 1):
        some = loader(dataset(9), workers=workers)
        assert rows([[some.peek()]]) == rows([[some.peek()]]) == take(loader(dataset(9)), 1)[:2]
        assert some.state_dict()["batches"] == 0
        assert take(some, 2) == take(loader(dataset(9)), 2)
        assert rows([[some.peek()]]) == take(loader(dataset(9)), 3)[8:10]
        some.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_reaches_the_caller_as_it_is_and_does_not_move_the_position(workers):
    bad = take(loader(dataset(9)), 2)[5][0]
    some = loader(dataset(9), Draw([bad]), workers=workers)
    some.next()
    for _ in range(2):  # asked again, it fails again instead of leaving the batch out
        with pytest.raises(BadRecord) as caught:
            some.next()
        assert str(caught.value) == f"{bad}.jpg: {bad}: broken; get it again"
        assert some.state_dict()["batches"] == 1
    some.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_records_are_replaced_in_place_and_reported_once(workers):
    skips = []
    bad = ["r2", "r3", "r7"]
    some = loader(dataset(10, on_error="skip"), Draw(bad), skips=skips, workers=workers)
    clean, drawn = take(loader(dataset(10)), 10), take(some, 10)
    assert len(drawn) == len(clean)
    assert [a for a, b in zip(drawn, clean, strict=True) if b[0] not in bad] == [b for b in clean if b[0] not in bad]
    assert sorted(skip.record for skip in skips) == bad
    assert (skips[0].file, skips[0].problem) == (f"{skips[0].record}.jpg", "broken")
    for i in range(0, len(drawn), 2):  # micro-batches of two: where both rows differed, they still do
        before, after = names(clean[i : i + 2]), names(drawn[i : i + 2])
        assert len(set(after)) == 2 or len(set(before)) == 1
    assert "r4" in {a[0] for a, b in zip(drawn, clean, strict=True) if b[0] in ("r2", "r3")}
    some.close()


def test_a_replacement_is_the_next_record_that_the_micro_batch_does_not_hold():
    some = loader(dataset(4, on_error="skip"), Draw(["r1", "r2"]), batch_size=2)
    place = {name: i for i, name in enumerate(["r0", "r1", "r2", "r3"])}
    for before, after in zip(take(loader(dataset(4), batch_size=2), 6), take(some, 6), strict=True):
        assert after[0] in ("r0", "r3")
        assert before == after or place[before[0]] in (1, 2)
    pairs = [batch.records for _ in range(6) for batch in some.next()]
    assert all(set(pair) == {"r0", "r3"} for pair in pairs)


def test_twenty_bad_records_in_a_row_are_an_error():
    bad = [f"r{i}" for i in range(25)]
    with pytest.raises(BadRecord, match="this and the next 19 records of dataset 'r' are all bad: broken"):
        loader(dataset(40, on_error="skip"), Draw(bad), batch_size=40, micro_batch_size=1).next()
    with pytest.raises(BadRecord, match="this and the next 2 records"):
        loader(dataset(3, on_error="skip"), Draw(bad)).next()


def test_a_micro_batch_of_the_whole_dataset_is_filled_by_a_second_copy():
    skips = []
    step = loader(dataset(3, on_error="skip"), Draw(["r1"]), batch_size=3, micro_batch_size=3, skips=skips).next()
    assert sorted(step[0].records) == ["r0", "r2", "r2"]
    assert len(skips) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 10, "micro_batch_size": 4, "world_size": 2},
            r"batch_size=10 does not divide by micro_batch_size=4 \* world_size=2 = 8; use batch_size=8 or 16",
        ),
        ({"batch_size": 2, "micro_batch_size": 4}, "use batch_size=4$"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 1}, "rank=1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        loader(dataset(8), **settings)


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_closing_ends_the_workers_at_once(seconds):
    some = loader(dataset(50), Draw(seconds=seconds), workers=2)
    some.next()
    assert len(multiprocessing.active_children()) == 2
    start = time.monotonic()
    some.close()
    assert wait_for_no_children() == []
    assert time.monotonic() - start < 2
    some.next()  # and it goes on with new ones
    some.close()


def kill_all_workers():
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)


def streamed(count):
    """As ``dataset``, one row behind the other."""

    class Rows:
        def start(self, shuffle, state):
            self.at = (state or {"at": 0})["at"]
            while self.at < count:
                self.at += 1
                yield self.at - 1

        def state_dict(self):
            return {"at": self.at}

    def record(row):
        return CaptionedImage(f"r{row}", Path(f"{row}.jpg"), ("a",)), ()

    return Streamed("r", lambda rank, world_size: Rows(), record, shuffle_buffer=10)


KINDS = pytest.mark.parametrize("kind", [dataset, streamed])


@KINDS
def test_a_killed_worker_is_an_error_that_names_the_stream_and_the_way_out_and_not_a_hang(kind):
    some = loader(kind(200), Draw(seconds=0.02), workers=2, name="pretrain/outer/caption")
    some.next()
    start = time.monotonic()
    state = some.state_dict()
    kill_all_workers()
    with pytest.raises(WorkerDied) as caught:
        take(some, 50)
    assert time.monotonic() - start < 8
    for part in ("stream pretrain/outer/caption: one of its 2 data workers (pid ", "SIGKILL", "trainer.workers"):
        assert part in str(caught.value)
    assert wait_for_no_children() == []
    assert some.state_dict() == state
    assert take(some, 3) == take(loader(kind(200)), 4)[4:]  # and it can be asked again
    some.close()


@KINDS
def test_a_worker_that_is_killed_while_it_is_waited_for_is_an_error_at_once(kind):
    some = loader(kind(200), Draw(seconds=3), workers=1)
    killer = threading.Timer(1.0, kill_all_workers)
    killer.start()
    start = time.monotonic()
    with pytest.raises(WorkerDied, match=r"stream r: .*SIGKILL"):
        some.next()
    assert time.monotonic() - start < 8
    killer.join()
    assert wait_for_no_children() == []


class Half(Draw):
    """A collator whose batches are larger than a pipe holds, sent by a process that dies in the midst."""

    def collate(self, items):
        batch = super().collate(items)
        if multiprocessing.parent_process() is not None:
            threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGKILL]).start()
        return replace(batch, records=("x" * (1 << 28),))


def test_a_worker_that_dies_in_the_midst_of_a_message_is_an_error():
    some = loader(dataset(200), Half(), workers=1)
    start = time.monotonic()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        take(some, 50)
    assert time.monotonic() - start < 30
    assert wait_for_no_children() == []


def test_a_worker_that_dies_elsewhere_in_a_step_does_not_interrupt_it():
    some = loader(dataset(200), workers=2)
    some.next()
    kill_all_workers()
    time.sleep(0.5)  # a signal that raised would raise here
    with pytest.raises(WorkerDied):
        some.next()


@KINDS
def test_a_worker_that_is_killed_while_the_stream_is_measured_is_an_error(kind):
    killer = threading.Timer(0.7, kill_all_workers)
    killer.start()
    with pytest.raises(WorkerDied, match="stream some: "):
        measure(loader(kind(200), Draw(seconds=0.2), workers=2, name="some"))
    killer.join()
    assert wait_for_no_children() == []


class Leaves(Draw):
    def encode(self, record, rng):
        os._exit(3)


def test_a_worker_that_leaves_by_itself_is_named_with_its_exit_code():
    with pytest.raises(WorkerDied, match=r"ended with exit code 3; trainer.workers=0"):
        loader(dataset(8), Leaves(), workers=1).next()


ORPHANS = """
import multiprocessing, os, signal, time
from pathlib import Path
from hialign.data import CaptionedImage, Loader, Streamed

class Rows:
    def start(self, shuffle, state):
        while True:
            yield bytes(1 << 22)  # larger than a pipe: some worker is in the midst of it at any time

    def state_dict(self):
        return {}

class Some:
    def encode(self, record, rng):
        time.sleep(0.5)

    def collate(self, items):
        return items

data = Streamed("s", lambda rank, size: Rows(), lambda row: (CaptionedImage("1", Path(), ("a",)), ()), 4)
loader = Loader(data, Some(), batch_size=2, micro_batch_size=2, seed=2, workers=2, on_skip=print)
loader.next()
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="this system does not say who sent a signal")
def test_workers_do_not_outlive_a_main_process_that_is_killed():
    done = subprocess.run([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    end = time.monotonic() + 20
    while (left := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in the background inherits that it is ignored
from pathlib import Path
from hialign.data import CaptionedImage, Dataset, Loader, measure

class Slow:
    def encode(self, record, rng):
        print("begun", flush=True)
        time.sleep(0.2)

    def collate(self, items):
        return items

data = Dataset("d", [CaptionedImage(str(i), Path(), ("a",)) for i in range(80)])
loader = Loader(data, Slow(), batch_size=8, micro_batch_size=8, seed=2, workers=2, on_skip=print)
try:
    measure(loader) if sys.argv[1] == "measure" else loader.next()
except KeyboardInterrupt:
    raise SystemExit(9)
"""


# While the first rows are put into queues, and while it waits.
@pytest.mark.parametrize(("what", "after"), [("next", 0.0), ("next", 0.5), ("measure", 0.0)])
def test_ctrl_c_ends_the_wait_for_a_batch(what, after):
    command = [sys.executable, "-c", INTERRUPTED, what]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(after)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers too
        assert running.wait(timeout=30) == 9
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="this system does not say who sent a signal")
def test_workers_outlive_signals_that_are_meant_for_the_main_process():
    some = loader(dataset(50), Draw(seconds=0.01), workers=2)
    some.next()
    for child in multiprocessing.active_children():
        for name in ("TERM", "INT", "USR1", "USR2"):  # from another process, as a scheduler sends them
            subprocess.run(["kill", f"-{name}", str(child.pid)], check=True)
    assert len(take(some, 10)) == 40
    some.close()
    assert wait_for_no_children() == []


LEFT_RUNNING = """
import time
from pathlib import Path
from hialign.data import CaptionedImage, Dataset, Loader

class Slow:
    def encode(self, record, rng):
        time.sleep(0.01 if int(record.id) < 6 else 60)

    def collate(self, items):
        return items

data = Dataset("d", [CaptionedImage(str(i), Path(), ("a",)) for i in range(8)])
loader = Loader(data, Slow(), batch_size=1, micro_batch_size=1, seed=2, workers=2, on_skip=print)
loader.next()
raise SystemExit(3)
"""


def test_a_program_that_ends_without_closing_does_not_wait_for_its_workers():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LEFT_RUNNING], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert time.monotonic() - start < 30


class Fails(Draw):
    def encode(self, record, rng):
        raise KeyError("a bug")


def test_a_bug_in_a_collator_is_not_skipped():
    for workers in (0, 1):
        with pytest.raises(KeyError, match="a bug"):
            loader(dataset(8, on_error="skip"), Fails(), workers=workers).next()
    assert wait_for_no_children() == []


def test_a_broken_image_in_a_folder_is_skipped_and_named(tmp_path, write_image, tokenizer, image_processor):
    lines = ["image,caption"]
    for i in range(6):
        write_image(tmp_path / "images" / f"{i}.jpg", seed=i)
        lines.append(f"{i}.jpg,a red cup")
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    broken = tmp_path / "images" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    collator = LanguageCollator(tokenizer, image_processor, image_token_id=3, num_image_tokens=2)
    skips = []
    some = loader(flickr8k(str(tmp_path), holdout=0.0, on_error="skip"), collator, batch_size=6, skips=skips)
    some.next()
    some.next()
    assert [(skip.file, skip.record) for skip in skips] == [(str(broken), "3.jpg")]
    with pytest.raises(BadRecord, match=r"3\.jpg: the image cannot be read"):
        loader(flickr8k(str(tmp_path), holdout=0.0), collator, batch_size=6).next()


def test_real_flickr8k_batches_are_the_same_with_and_without_workers(shared, tokenizer, image_processor):
    data = flickr8k(str(shared / "data" / "flickr8k"))
    collator = LanguageCollator(tokenizer, image_processor, image_token_id=3, num_image_tokens=2)
    alone = loader(data, collator, batch_size=8, micro_batch_size=4)
    helped = loader(data, collator, batch_size=8, micro_batch_size=4, workers=2)
    for _ in range(2):
        for ours, theirs in zip(alone.next(), helped.next(), strict=True):
            assert isinstance(ours, LanguageBatch)
            assert ours.records == theirs.records
            assert torch.equal(ours.pixel_values, theirs.pixel_values)
            assert torch.equal(ours.text.ids, theirs.text.ids)
    helped.close()


def talks(count, text_only, prefix="t"):
    """Conversations of 1 to ``count`` words in an odd order, of which every ``text_only``-th has no image."""
    some = []
    for i in range(count):
        words = " ".join(["a"] * (i * 7 % count + 1))
        some.append(Conversation(f"{prefix}{i}", () if i % text_only == 0 else (Path("x"),), (Turn("q", words),)))
    return Dataset(prefix, some)


def batches(some, count):
    return [[name for batch in some.next() for name in batch.records] for _ in range(count)]


def test_grouped_batches_are_of_like_length_and_do_not_mix_text_with_images():
    data = talks(400, 4)
    kind = {record.id: len(record.images) for record in data.records}
    words = {record.id: record.words for record in data.records}
    for epoch in (slice(0, 50), slice(50, 100)):
        drawn = batches(loader(data, batch_size=8, group_by_length=True), 100)[epoch]
        assert sorted(name for batch in drawn for name in batch) == sorted(kind)
        mixed = [batch for batch in drawn if len({kind[name] for name in batch}) > 1]
        assert len(mixed) <= 1
        spans = [max(words[n] for n in batch) - min(words[n] for n in batch) for batch in drawn if batch not in mixed]
        assert np.mean(spans) < 30  # of 400, and about 310 in a batch of eight drawn at random
        assert np.corrcoef(range(50), [np.mean([words[n] for n in batch]) for batch in drawn])[0, 1] < 0.5


@pytest.mark.parametrize(("size", "batch_size"), [(37, 8), (8, 8), (5, 8), (64, 4), (9, 2)])
def test_grouping_keeps_every_record_once_an_epoch_and_the_order_the_same_on_all_ranks(size, batch_size):
    data = talks(size, 3)
    settings = {"batch_size": batch_size, "group_by_length": True}
    drawn = names(take(loader(data, **settings), 5 * size))
    for epoch in range(5):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == sorted(record.id for record in data.records)
    ranks = [loader(data, **settings, micro_batch_size=1, rank=rank, world_size=2) for rank in range(2)]
    alone = loader(data, **settings)
    for _ in range(12):
        assert rows([part.next() for part in ranks]) == rows([alone.next()])


def test_a_grouped_loader_resumes_and_an_ungrouped_one_refuses_its_state():
    data = talks(21, 3)
    whole = take(loader(data, group_by_length=True), 12)
    first = loader(data, group_by_length=True)
    take(first, 7)
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(data, group_by_length=True)
    second.load_state_dict(state)
    assert take(second, 5) == whole[28:]
    plain = loader(data)
    with pytest.raises(ValueError, match="group_by_length=True, but this loader has group_by_length=False"):
        plain.load_state_dict(state)
    with pytest.raises(ValueError, match="group_by_length=False, but this loader has group_by_length=True"):
        second.load_state_dict(plain.state_dict())
    assert "group_by_length" not in plain.state_dict()


def test_a_mixture_is_grouped_within_each_dataset():
    data = mix([talks(40, 2, "a"), talks(30, 3, "b")], [1, 1])
    drawn = names(take(loader(data, batch_size=10, micro_batch_size=5, group_by_length=True), 30))
    for prefix, size in (("a", 40), ("b", 30)):
        ours = [name for name in drawn if name.startswith(prefix)]
        assert sorted(ours[:size]) == sorted(f"{prefix}{i}" for i in range(size))


def test_records_without_a_length_cannot_be_grouped():
    @dataclass(frozen=True)
    class Bare:
        id: str

    with pytest.raises(ValueError, match="group_by_length: the records of dataset 'bare' lack"):
        loader(Dataset("bare", [Bare("1"), Bare("2")]), group_by_length=True)
