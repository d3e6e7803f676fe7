"""Two processes under torchrun, all cases in one launch: the same numbers as one, and nobody waits for ever."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hialign.training import checkpoint as checkpoints
from hialign.training import latest

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("ranks.py")
SOLVERS = ("joint", "alternating")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, draw_captioned):
    """20 drawn pictures, and beside them, in ``broken``, the same with one that is no image."""
    folder = draw_captioned(tmp_path_factory.mktemp("data") / "drawn", 20, seed=0)
    broken = Path(shutil.copytree(folder, folder.with_name("broken")))
    (broken / "images" / "00007.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory, drawn):
    """``(what one process wrote, what two wrote, the two's stderr)``; the one runs here while torchrun starts."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT, two, drawn]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as launch:
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", sys.argv)  # the command line replaces it
                spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
                ranks = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(ranks)
                ranks.compare(one, drawn)
                assert ranks.command(one, drawn) == 0
            _, errors = launch.communicate(timeout=120)
        finally:
            launch.terminate()  # ends the ranks too, where kill would leave them behind
    through = [(two / f"through-{rank}").exists() for rank in (0, 1)]
    assert through == [True, True], f"the ranks did not come through:\n{errors}"
    return one, two, errors, launch.returncode


@pytest.fixture(scope="module")
def one(both):
    return both[0]


@pytest.fixture(scope="module")
def two(both):
    return both[1]


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def weights(folder, rank=0):
    return torch.load(folder / f"weights-{rank}.pt")


def told(folder):
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]


# Norms are taken in float32, and by them a step is clipped: they may differ in their last bit.
@pytest.mark.parametrize("solver", SOLVERS)
def test_two_processes_compute_the_losses_of_one(one, two, solver):
    expected, found = rows(one / solver), rows(two / solver)
    assert len(found) == len(expected) == 3
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            tolerance = 1e-6 if key.endswith("norm") else 1e-9
            assert value == (pytest.approx(other[key], rel=tolerance) if isinstance(value, float) else other[key]), key


@pytest.mark.parametrize("solver", SOLVERS)
def test_two_processes_end_at_the_weights_of_one(one, two, solver):
    expected, found = weights(one / solver), weights(two / solver)
    assert {tensor.dtype for name, tensor in found.items() if name.endswith("weight")} == {torch.float64}
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("run", [*SOLVERS, "whole", "stopped"])
def test_all_ranks_hold_the_same_weights(two, run):
    first, second = weights(two / run, 0), weights(two / run, 1)
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


def test_a_signal_to_one_rank_stops_all_at_the_same_step_with_one_checkpoint(two):
    first, second = told(two / "stopped")
    assert first == second
    assert first["kind"] == "Preempted"
    folder = two / "stopped" / "checkpoints" / "only" / "step-000002"
    assert first["says"] == f"stopped by SIGTERM after step 2 of stage only; saved {folder}"
    files = ["random-0.pt", "random-1.pt", "state.pt", "where.json"]
    assert sorted(path.name for path in latest(two / "stopped", ["only"]).folder.iterdir()) == files


def test_two_ranks_resume_to_the_same_bits(two):
    assert rows(two / "stopped") == rows(two / "whole")
    expected = weights(two / "whole")
    assert [name for name, t in weights(two / "stopped").items() if not torch.equal(t, expected[name])] == []


def test_each_rank_draws_random_numbers_of_its_own_and_gets_them_back(two):
    """Without this the test above would hold for ranks that share one random state."""
    folder = latest(two / "whole", ["only"]).folder
    first, second = (torch.load(folder / f"random-{rank}.pt", weights_only=False)["torch"] for rank in (0, 1))
    assert not torch.equal(first, second)


def test_a_checkpoint_of_two_ranks_is_refused_by_one(two):
    with pytest.raises(ValueError, match=r"ranks=2, this process has 1.*--nproc-per-node so that there are 2 ranks"):
        checkpoints.load(latest(two / "whole", ["only"]), torch.device("cpu"))


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_with_that_ranks_records(two):
    first, second = told(two / "loss")
    assert first == second
    assert first["kind"] == "NonFinite"
    assert "outer loss is not finite in step 2" in first["says"]
    named = first["says"].split("records of its batch: ")[1].split(";")[0]
    assert len(named.split(", ")) == 4  # rank 1's half of 8 rows, which is one micro-batch
    assert [row["step"] for row in rows(two / "loss")] == [1]


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(two):
    first, second = told(two / "gradient")
    assert first == second
    assert first["kind"] == "NonFinite"
    assert "the outer loss's gradient is not finite in step 2; records of its batch: 0" in first["says"]


def test_the_command_on_two_ranks_trains_as_on_one(one, two):
    """In float32, so to a tolerance. The second rank built another model: the first one's is sent to it."""
    found, expected = rows(two / "hierarchical" / "cli"), rows(one / "hierarchical" / "cli")
    assert [row["total_step"] for row in found] == [1, 2, 3, 4]
    for key in ("outer_loss", "inner_loss"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=1e-5)
    assert (two / "hierarchical" / "cli" / "model" / "model.safetensors").is_file()
    assert json.loads((two / "hierarchical" / "cli" / "status.json").read_text())["state"] == "done"
    assert [(two / f"through-{rank}").read_text() for rank in (0, 1)] == ["left the group 1 times"] * 2


def test_a_rank_that_fails_does_not_keep_the_others_waiting(both):
    _, two, errors, code = both
    assert code == 1
    assert "SIGALRM" not in errors  # which would have ended a rank that waits
    assert "00007.png: the image cannot be read" in errors
    assert not (two / "hierarchical" / "broken" / "model").exists()
