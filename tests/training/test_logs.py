"""Logs: rows that survive a kill and a resumption, and trackers whose files are read back."""

from __future__ import annotations

import builtins
import json
import re
import struct
import sys
import time

import pytest

from hialign.files import write_json
from hialign.training import Logs, TensorBoard, Wandb, write_status
from hialign.training.logs import drop_rows_after

BLOCK = 32768  # bytes of a block in a .wandb file


def row(total_step, **more):
    return {"stage": "pretrain", "step": total_step, "total_step": total_step, "outer_loss": 1 / total_step} | more


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


class Watcher:
    """A tracker that notes what it is told."""

    def __init__(self):
        self.told = []

    def start(self, folder, config, *, after):
        self.told.append(("start", folder, config, after))

    def log(self, row):
        self.told.append(row)

    def finish(self):
        self.told.append("finish")


# metrics.jsonl


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with Logs(tmp_path, [], {}) as logs:
        for step in (1, 2):
            logs.write(row(step))
            assert read(tmp_path / "metrics.jsonl") == [row(n) for n in range(1, step + 1)]


def test_a_new_run_drops_the_rows_of_the_failed_one_before_it(tmp_path):
    for value in (1.0, 2.0):
        with Logs(tmp_path, [], {}) as logs:
            logs.write(row(1, outer_loss=value))
    assert read(tmp_path / "metrics.jsonl") == [row(1, outer_loss=2.0)]


def test_a_resumed_run_goes_on_behind_its_checkpoint(tmp_path):
    with Logs(tmp_path, [], {}) as logs:
        for step in (1, 2, 3, 4):
            logs.write(row(step, outer_loss=0.0))
    with Logs(tmp_path, [], {}, after=2) as logs:
        logs.write(row(3))
    assert read(tmp_path / "metrics.jsonl") == [row(1, outer_loss=0.0), row(2, outer_loss=0.0), row(3)]


def test_rows_behind_a_step_and_a_half_written_last_one_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row(n)) + "\n" for n in (1, 2, 3)) + json.dumps(row(2))[:-9])
    drop_rows_after(file, 2)
    assert read(file) == [row(1), row(2)]
    assert file.read_text().endswith("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_whole_row_whose_newline_is_missing_is_kept(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(row(1)))
    drop_rows_after(file, 1)
    assert file.read_text() == json.dumps(row(1)) + "\n"


def test_no_rows_are_dropped_where_there_is_no_file(tmp_path):
    drop_rows_after(tmp_path / "metrics.jsonl", 1)
    assert list(tmp_path.iterdir()) == []


def test_only_the_main_process_writes(tmp_path):
    watcher = Watcher()
    with Logs(tmp_path, [watcher], {}, main=False) as logs:
        logs.start_stage("pretrain", 3, 0)
        logs.write(row(1))
        logs.say("nobody hears this")
    assert list(tmp_path.iterdir()) == []
    assert watcher.told == []


def test_what_is_said_is_in_log_txt_and_on_the_terminal(tmp_path, capsys):
    with Logs(tmp_path, [], {}) as logs:
        logs.start_stage("pretrain", 3, 0)
        logs.say("one")
        logs.say("two")
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"
    assert "one\n" in capsys.readouterr().err


def test_trackers_are_told_the_start_each_row_and_the_end_even_of_a_failed_run(tmp_path):
    watcher = Watcher()
    with pytest.raises(RuntimeError), Logs(tmp_path, [watcher], {"seed": 1}, after=4) as logs:  # noqa: PT012
        logs.write(row(5))
        raise RuntimeError
    assert watcher.told == [("start", tmp_path, {"seed": 1}, 4), row(5), "finish"]


# status.json


def test_status_says_state_and_place_and_replaces_the_one_before(tmp_path):
    write_status(tmp_path, "running", stage="pretrain", step=3)
    write_status(tmp_path, "done")
    status = json.loads((tmp_path / "status.json").read_text())
    assert status.pop("time")
    assert status == {"state": "done"}


def test_a_json_file_that_cannot_be_written_whole_leaves_the_one_before(tmp_path):
    class Unwritable:
        def __str__(self):
            raise OSError("no space left")

    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(OSError, match="no space left"):
        write_json(tmp_path / "a.json", {"x": 2, "y": Unwritable()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


# trackers


def wandb_records(data):
    """The protobuf messages in the bytes of a .wandb file.

    The file is a log of LevelDB's kind behind a head of 7 bytes: blocks of 32 KiB hold fragments, each with a checksum
    (4 bytes), a length (2) and a kind (1): 1 is a whole message, 2 the first part of one, 3 a middle, 4 the last. What
    is left of a block that has no room for another head is filled up.
    """
    assert data[:4] == b":W&B"
    place, message = 7, b""
    while place + 7 <= len(data):
        room = BLOCK - place % BLOCK
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        fragment = data[place + 7 : place + 7 + length]
        place += 7 + length
        message = fragment if kind in (1, 2) else message + fragment
        if kind in (1, 4):
            yield message


def wandb_history(folder):
    """``(run ids, rows, config)`` of all offline runs in ``folder``, in the order they were begun."""
    from wandb.proto.wandb_internal_pb2 import Record

    ids, rows, config = [], [], {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        for data in wandb_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.append(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items()})
    return ids, rows, config


def wandb_run(folder, monkeypatch, *parts):
    """Logs rows through the real tracker, one run after another in the same folder, and reads them back."""
    pytest.importorskip("wandb", reason="wandb is an extra: pip install 'hialign[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder.mkdir()
    long = "x" * (2 * BLOCK)  # a row over several blocks
    for after, steps in parts:
        time.sleep(1.1 if after else 0)  # wandb names its folders by the second
        with Logs(folder, [Wandb(project="tests")], {"seed": 7, "solver": {"weight": 0.5}}, after=after) as logs:
            for step in steps:
                logs.write(row(step, **({"note": long} if step == 2 else {})))
    return *_written(folder, sum(len(steps) for _, steps in parts)), long


def _written(folder, rows):
    """``wandb_history`` when all is on disk: wandb's own process may write the last block after ``finish``."""
    end = time.monotonic() + 60
    while len((found := wandb_history(folder))[1]) < rows and time.monotonic() < end:
        time.sleep(0.2)
    return found


def test_wandb_offline_holds_every_row_and_the_config(tmp_path, monkeypatch):
    ids, rows, config, long = wandb_run(tmp_path / "run", monkeypatch, (0, (1, 2, 3, 4, 5)))
    assert [r["_step"] for r in rows] == [1, 2, 3, 4, 5]
    assert [r["outer_loss"] for r in rows] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert {r["stage"] for r in rows} == {"pretrain"}
    assert rows[1]["note"] == long
    assert "total_step" not in rows[0]
    assert (config["seed"], config["solver"]) == (7, {"weight": 0.5})
    assert set(ids) == {(tmp_path / "run" / "wandb_id").read_text()}


def test_a_resumed_run_keeps_its_id_in_wandb(tmp_path, monkeypatch):
    ids, rows, _, _ = wandb_run(tmp_path / "run", monkeypatch, (0, (1, 2, 3)), (3, (4, 5)))
    assert [r["_step"] for r in rows] == [1, 2, 3, 4, 5]
    assert len(ids) >= 2
    assert set(ids) == {(tmp_path / "run" / "wandb_id").read_text()}


def test_wandb_knows_two_modes():
    with pytest.raises(ValueError, match=r"tracker\.wandb\.mode: got 'disabled', wanted 'online' or 'offline'"):
        Wandb(project="tests", mode="disabled")


def tensorboard_scalars(folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is an extra: pip install 'hialign[tensorboard]'",
    )
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars, events


def test_tensorboard_holds_every_number_and_hides_what_a_killed_run_logged_behind_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an extra: pip install 'hialign[tensorboard]'")
    with Logs(tmp_path, [TensorBoard()], {"seed": 7}) as logs:
        for step in (1, 2, 3, 4):
            logs.write(row(step, outer_loss=0.25 * step))
    with Logs(tmp_path, [TensorBoard()], {"seed": 7}, after=2) as logs:
        for step in (3, 4, 5):
            logs.write(row(step, outer_loss=0.5 * step))
    scalars, events = tensorboard_scalars(tmp_path)
    assert scalars["outer_loss"] == [(1, 0.25), (2, 0.5), (3, 1.5), (4, 2.0), (5, 2.5)]
    assert set(scalars) == {"outer_loss", "step"}
    assert b'"seed": 7' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize(
    ("tracker", "module", "name"),
    [(Wandb(project="tests"), "wandb", "wandb"), (TensorBoard(), "torch.utils.tensorboard", "tensorboard")],
)
def test_a_tracker_whose_package_is_missing_says_how_to_get_it(tmp_path, monkeypatch, tracker, module, name):
    real = builtins.__import__

    def without(wanted, *arguments, **more):
        if wanted.split(".")[0] == module.split(".")[0] and wanted.startswith(module):
            raise ImportError(wanted)
        return real(wanted, *arguments, **more)

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    message = f"tracker={name}: the package {name} is missing; pip install 'hialign[{name}]'"
    with pytest.raises(ValueError, match=re.escape(message)), Logs(tmp_path, [tracker], {}):
        pass
