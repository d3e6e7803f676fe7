"""Real processes: killed, interrupted, resumed, and in the end the same bytes as a run that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from runpy import run_module

import pytest

STEPS = 6  # of each of two stages
SMALL = [
    "experiment=hierarchical",
    "data=flickr8k",
    *(f"stages.{stage}.steps={STEPS}" for stage in ("pretrain", "finetune")),
    *(f"stages.{stage}.{key}=8" for stage in ("pretrain", "finetune") for key in ("batch_size", "inner_batch_size")),
    *("model.width=32", "model.layers=2", "model.image_size=32", "model.patch_size=16"),
    "trainer.save_every=3",
]


class Commands:
    """Starts ``python -m hialign`` in processes forked from one that has imported everything, which saves 7 s each."""

    def __init__(self, output: Path, drawn: Path) -> None:
        self.output, self.drawn = output, drawn
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["hialign.runner.commands.train", "transformers.models.llava"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            forkserver.ensure_running()
        self.started: list[multiprocessing.Process] = []

    def arguments(self, name: str, *more: str) -> list[str]:
        return ["train", *SMALL, f"data.root={self.drawn}", f"output={self.output}", f"name={name}", *more]

    def start(self, name: str, *more: str) -> multiprocessing.Process:
        process = self.context.Process(target=run_module, args=("hialign", None, "__main__", True))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["hialign", *self.arguments(name, *more)])  # children get a copy
            process.start()
        self.started.append(process)
        return process

    def finish(self, process: multiprocessing.Process) -> int:
        process.join(60)
        assert process.exitcode is not None, "still running after a minute"
        return process.exitcode

    def folder(self, name: str) -> Path:
        return self.output / "hierarchical" / name


@pytest.fixture(scope="module")
def commands(tmp_path_factory, drawn):
    started = Commands(tmp_path_factory.mktemp("runs"), drawn)
    yield started
    for process in started.started:
        process.kill()


@pytest.fixture(scope="module")
def whole_and_killed(commands):
    """The folders of a run that was left alone and of one that got a SIGKILL behind its first checkpoint."""
    killed, whole = commands.start("killed"), commands.start("whole")
    folder = commands.folder("killed")
    wait_for(lambda: (folder / "checkpoints" / "pretrain" / "step-000003").is_dir(), killed)
    os.kill(killed.pid, signal.SIGKILL)
    assert commands.finish(killed) == -signal.SIGKILL
    assert commands.finish(whole) == 0
    return commands.folder("whole"), folder


@pytest.fixture(scope="module")
def whole(whole_and_killed):
    return whole_and_killed[0]


@pytest.fixture(scope="module")
def killed(whole_and_killed):
    return whole_and_killed[1]


@pytest.fixture(scope="module")
def on_two_threads(commands, killed):
    """``(folder, process)``: a copy of the killed run as the kill left it, and a process that wants to resume it."""
    folder = Path(shutil.copytree(killed, commands.folder("killed-copy")))
    command = [sys.executable, "-m", "hialign", *commands.arguments("killed-copy", "resume=auto")]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        yield folder, process
        process.kill()


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline, "the run ended before it could be stopped"  # noqa: PT018
        time.sleep(0.002)


def rows(folder):
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def status(folder):
    return json.loads((folder / "status.json").read_text())


def assert_same_run(folder, other):
    for file in ("model/model.safetensors", "model/alignment/model.safetensors"):
        assert (folder / file).read_bytes() == (other / file).read_bytes(), file
    assert [row | {"seconds": 0} for row in rows(folder)] == [row | {"seconds": 0} for row in rows(other)]
    assert [row["total_step"] for row in rows(folder)] == list(range(1, 2 * STEPS + 1))
    assert status(folder)["state"] == "done"


# on_two_threads comes first and is met last: that process imports while the others run
def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_bytes(commands, on_two_threads, whole, killed):
    assert status(killed)["state"] == "running"
    assert not (killed / "model").exists()
    assert commands.finish(commands.start("killed", "resume=auto")) == 0
    assert_same_run(killed, whole)
    assert "resuming from" in (killed / "log.txt").read_text()
    assert len(json.loads((killed / "provenance.json").read_text())["resumed"]) == 1


def test_ctrl_c_saves_says_preempted_and_resume_goes_on_to_the_same_bytes(commands, whole):
    process, folder = commands.start("interrupted"), commands.folder("interrupted")
    wait_for(lambda: len(rows(folder)) >= 1, process)
    os.kill(process.pid, signal.SIGINT)
    assert commands.finish(process) == 130
    assert status(folder)["state"] == "preempted"
    done = rows(folder)[-1]
    where = f"stopped by SIGINT after step {done['step']} of stage {done['stage']}"
    assert status(folder)["where"].startswith(where)
    assert (folder / "checkpoints" / done["stage"] / f"step-{done['step']:06d}").is_dir()
    assert not (folder / "model").exists()
    assert commands.finish(commands.start("interrupted", "resume=auto")) == 0
    assert_same_run(folder, whole)


def test_resuming_a_finished_run_changes_nothing(commands, whole):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    assert commands.finish(commands.start("whole", "resume=auto")) == 0
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before


def test_a_killed_run_is_not_resumed_on_another_number_of_threads(on_two_threads):
    folder, process = on_two_threads
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was written with threads=1, this process has 2" in errors
    assert "set OMP_NUM_THREADS=1" in errors
    assert "Traceback" not in errors
    assert (folder / "checkpoints" / "pretrain" / "step-000003" / "state.pt").is_file()
