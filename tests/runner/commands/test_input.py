"""``hialign train``'s input side: streamed sets, the line about each stream, workers that die."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hialign.models import load


@pytest.fixture(scope="module")
def streamed(workshop: Any) -> Path:
    """The pictures as parquet files, with a validation split."""
    import pyarrow
    import pyarrow.parquet

    folder: Path = workshop.folder / "tables"
    folder.mkdir()
    files = sorted((workshop.folder / "pictures" / "images").iterdir())
    for name, chosen in (("train-0", files[:14]), ("train-1", files[14:30]), ("validation-0", files[30:])):
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in chosen]
        captions = [f"a picture called {file.stem}" for file in chosen]
        table = pyarrow.table({"image": images, "caption": captions})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=5)
    return folder


STREAM = ("data=hub_stream", "data.root=tables", "data.shuffle_buffer=9", "~stages.finetune")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def test_a_run_on_streams_resumes_to_the_same_bits_and_is_evaluated(workshop: Any, streamed: Path) -> None:
    common = (*STREAM, "stages.pretrain.steps=7", "trainer.save_every=3", "trainer.keep=9")
    assert workshop.train("name=streamed", *common).code == 0
    run, again = workshop.run("streamed"), workshop.run("streamed_again")
    assert metrics(run)[-1]["epochs/outer/caption"] == 1  # 56 rows of 30
    shutil.copytree(run, again)
    for late in (again / "checkpoints" / "pretrain" / "step-000007", again / "model"):
        shutil.rmtree(late)
    (again / "status.json").write_text('{"state": "failed"}')
    done = workshop.train("name=streamed_again", *common, "resume=auto", "trainer.workers=1")
    assert done.code == 0, done.err
    first, second = (load(str(folder / "model")).root.state_dict() for folder in (run, again))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert [row["outer_loss"] for row in metrics(again)] == [row["outer_loss"] for row in metrics(run)]
    done = workshop.hialign("evaluate", f"run={run}", "benchmark=[retrieval]")
    assert done.code == 0, done.err


def test_a_streamed_stage_without_steps_is_refused_by_key(workshop: Any, streamed: Path) -> None:
    done = workshop.train("name=endless", *STREAM, "stages.pretrain.steps=null")
    assert done.code == 1
    assert "stages.pretrain.steps: not given, and outer.data.caption is streamed" in done.err
    assert done.err.splitlines()[-1].startswith("hialign train: ")


def test_grouping_a_stream_by_length_is_refused_by_stage(workshop: Any, streamed: Path) -> None:
    done = workshop.train("name=grouped", *STREAM, "stages.pretrain.group_by_length=true")
    assert done.code == 1
    assert "stages.pretrain (outer level): group_by_length: " in done.err


def test_a_run_begins_with_a_line_about_each_stream_and_measures_a_data_set_once(trained: Any) -> None:
    lines = [line for line in (trained.run("first") / "log.txt").read_text().splitlines() if line.startswith("input ")]
    number = r"\d+(\.\d)?"
    measured = rf"{number} rows/s in the main process, {number} MB a micro-batch of 8, images \d+%; process {number} GB"
    assert len(lines) == 4
    assert re.fullmatch(rf"input pretrain/outer/caption: {measured}", lines[0])
    assert re.fullmatch(rf"input pretrain/inner/pairs: {measured}", lines[1])
    assert lines[2:] == [
        "input finetune/outer/caption: as pretrain/outer/caption",
        "input finetune/inner/pairs: as pretrain/inner/pairs",
    ]


def test_a_worker_that_is_killed_ends_the_run_with_its_stream_and_what_to_do(workshop: Any) -> None:
    run = workshop.run("killed", "llava")

    def kill() -> None:
        while not (run / "metrics.jsonl").is_file() or not metrics(run):
            time.sleep(0.05)
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    done = workshop.train(
        "name=killed", "trainer.workers=2", "stages.pretrain.steps=100000", "~stages.finetune", experiment="llava"
    )
    killer.join(timeout=5)
    assert not killer.is_alive()
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    for part in (
        "hialign train: stream pretrain/outer/caption: one of its 2 data workers",
        "SIGKILL",
        "trainer.worker",
    ):
        assert part in last
    assert status(run)["state"] == "failed"
    assert "stream pretrain/outer/caption: one of its 2 data workers" in status(run)["error"]
    assert multiprocessing.active_children() == []


LINES = {  # what is wrong with a line of captions.txt -> the record and the problem that are listed
    'a.png,"unclosed': ("line ", "not csv"),
    "00001.png, ": ("00001.png", "the caption is empty"),
    "gone.png,A cup .": ("gone.png", "its image is not in"),
    "../out.png,A cup .": ("line ", "is not inside"),
    "00002.png,An <image> .": ("00002.png", "placeholder '<image>'"),
}


@pytest.fixture(scope="module")
def spoilt(workshop: Any) -> Path:
    """The pictures with bad lines among the captions."""
    folder: Path = workshop.folder / "spoilt"
    shutil.copytree(workshop.folder / "pictures", folder)
    with (folder / "captions.txt").open("a") as out:
        out.write("\n".join(LINES) + "\n")
    return folder


def test_bad_lines_are_skipped_counted_logged_and_listed_where_asked_for(workshop: Any, spoilt: Path) -> None:
    done = workshop.train(
        "name=spoilt", "data.root=spoilt", "data.on_error=skip", "~stages.finetune", experiment="llava"
    )
    assert done.code == 0, done.err
    run = workshop.run("spoilt", "llava")
    rows = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert len(rows) == len(LINES)
    for record, problem in LINES.values():
        (row,) = [row for row in rows if problem in row["problem"]]
        assert row["record"].startswith(record)
        assert row["file"] == "spoilt/captions.txt"
    assert "skipped 4 records so far" in (run / "log.txt").read_text()


def test_the_first_bad_line_stops_a_run_by_file_line_and_what_to_do(workshop: Any, spoilt: Path) -> None:
    done = workshop.train("name=stopped", "data.root=spoilt", experiment="llava")
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert "spoilt/captions.txt: line 122: not csv" in last
    assert "on_error=skip" in last


def test_conversations_with_and_without_images_train_in_batches_of_like_length(workshop: Any) -> None:
    root = workshop.folder / "talks"
    names = [file.name for file in sorted((workshop.folder / "pictures" / "images").iterdir())]
    (root / "LLaVA-Pretrain").mkdir(parents=True)
    shutil.copytree(workshop.folder / "pictures" / "images", root / "LLaVA-Pretrain" / "images")
    shutil.copytree(workshop.folder / "pictures" / "images", root / "coco")

    def talk(*values: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]

    captions = [{"id": n, "image": n, "conversations": talk("<image>\nWhat?", f"A picture {n}")} for n in names]
    (root / "LLaVA-Pretrain" / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(captions))
    seen = [{"id": n, "image": f"coco/{n}", "conversations": talk("<image>\nWhat?", "A cup")} for n in names[:20]]
    text = [{"id": f"t{i}", "conversations": talk("Hi", "Hello " * (i + 1), "And?", "No")} for i in range(12)]
    bad = [{"id": "two", "image": "coco/x.png", "conversations": talk("<image> <image>", "Two")}]
    (root / "llava_v1_5_mix665k.json").write_text(json.dumps(seen + text + bad))
    common = ("data=llava_instruct", f"data.root={root}", "outer=instruct", "stages.finetune.group_by_length=true")
    settings = (*common, "stages.finetune.template=v1", "data.on_error=skip", "data.holdout=0.1")
    done = workshop.train("name=talks", *settings, experiment="llava")
    assert done.code == 0, done.err
    run = workshop.run("talks", "llava")
    (row,) = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert row["record"].startswith("two")
    assert row["problem"] == "2 placeholders <image> and 1 images"
    assert len(metrics(run)) == 6
