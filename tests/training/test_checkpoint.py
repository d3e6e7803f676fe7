"""Checkpoints: whole or absent, the last few of each stage, and refused where they could not continue."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from hialign import distributed
from hialign.training import Checkpoint, latest, load_weights
from hialign.training import checkpoint as checkpoints

CPU = torch.device("cpu")


def save(run, stage="first", step=1, *, keep=9, weights=None):
    state = {"weights": {"w": torch.full((2,), float(step))} if weights is None else weights, "step": step}
    return checkpoints.save(run, stage, step, state, total_step=100 + step, keep=keep)


def names(run, stage="first"):
    return sorted(path.name for path in (run / "checkpoints" / stage).iterdir())


def test_what_was_saved_comes_back(tmp_path):
    folder = save(tmp_path, step=3)
    found = latest(tmp_path, ["first"])
    assert found == Checkpoint(folder, "first", 3)
    state = checkpoints.load(found, CPU)
    assert state["weights"]["w"].tolist() == [3.0, 3.0]
    assert state["step"] == 3
    assert checkpoints.read_weights(found)["w"].tolist() == [3.0, 3.0]
    assert '"total_step": 103' in (folder / "where.json").read_text()


@pytest.mark.parametrize("dies_in", [0, 1])
def test_a_save_that_dies_leaves_the_checkpoint_before_and_no_half_one(tmp_path, monkeypatch, dies_in):
    """``dies_in`` is the file that is half written: the state, or the random states."""
    save(tmp_path, step=1)
    written = []

    def torn(value, out):
        if len(written) == dies_in:
            out.write(b"half")
            raise KeyboardInterrupt
        written.append(value)
        real(value, out)

    real = torch.save
    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, step=2)
    monkeypatch.setattr(torch, "save", real)
    assert latest(tmp_path, ["first"]).step == 1
    assert checkpoints.load(latest(tmp_path, ["first"]), CPU)["step"] == 1
    save(tmp_path, step=2)  # what lies half written is in nobody's way
    assert names(tmp_path) == ["step-000001", "step-000002"]
    assert checkpoints.load(latest(tmp_path, ["first"]), CPU)["step"] == 2


def test_a_checkpoint_has_its_name_only_when_all_its_files_are_there(tmp_path, monkeypatch):
    seen = []
    real = torch.save

    def watching(value, out):
        seen.append(latest(tmp_path, ["first"]))
        real(value, out)

    monkeypatch.setattr(torch, "save", watching)
    folder = save(tmp_path)
    assert seen == [None, None]
    assert sorted(path.name for path in folder.iterdir()) == ["random-0.pt", "state.pt", "where.json"]


def test_the_last_few_of_each_stage_are_kept(tmp_path):
    save(tmp_path, "other", 1, keep=2)
    for step in (2, 4, 6, 8):
        save(tmp_path, "first", step, keep=2)
    assert names(tmp_path) == ["step-000006", "step-000008"]
    assert names(tmp_path, "other") == ["step-000001"]


def test_latest_is_the_furthest_stage_and_its_highest_step(tmp_path):
    assert latest(tmp_path, ["first", "second"]) is None
    save(tmp_path, "first", 999_999)
    save(tmp_path, "first", 1_000_000)  # sorts before it by name
    assert latest(tmp_path, ["first", "second"]).step == 1_000_000
    save(tmp_path, "second", 1)
    found = latest(tmp_path, ["first", "second"])
    assert (found.stage, found.step) == ("second", 1)
    assert latest(tmp_path, ["second", "first"]).stage == "first"


def test_another_thread_count_is_refused_with_the_one_to_set(tmp_path, monkeypatch):
    save(tmp_path)
    found = latest(tmp_path, ["first"])
    written = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: written + 3)
    with pytest.raises(ValueError, match=rf"threads={written}, .*has {written + 3}.*set OMP_NUM_THREADS={written}$"):
        checkpoints.load(found, CPU)
    checkpoints.load(found, torch.device("cuda"))  # there the processor's threads round nothing


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_another_number_of_ranks_is_refused_with_the_one_to_set(tmp_path, monkeypatch, device):
    save(tmp_path)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(
        ValueError, match=r"ranks=1, this process has 4.*set --nproc-per-node so that there are 1 ranks"
    ):
        checkpoints.load(latest(tmp_path, ["first"]), torch.device(device))


def test_random_states_continue_where_they_were_saved(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    draw()
    save(tmp_path)
    expected = draw()
    draw()
    checkpoints.restore_random(checkpoints.load(latest(tmp_path, ["first"]), CPU))
    assert draw() == expected


def test_what_a_rank_has_of_its_own_comes_back_and_older_checkpoints_have_it_in_the_state(tmp_path):
    settings = {"total_step": 1, "keep": 9}
    checkpoints.save(tmp_path, "new", 1, {"step": 1}, own={"streams": {"a": {"at": 3}}}, **settings)
    assert checkpoints.load(latest(tmp_path, ["new"]), CPU)["streams"] == {"a": {"at": 3}}
    folder = checkpoints.save(tmp_path, "old", 1, {"step": 1, "streams": {"a": {"at": 4}}}, **settings)
    written = torch.load(folder / "random-0.pt", weights_only=False)
    del written["own"]  # as it was written then
    torch.save(written, folder / "random-0.pt")
    assert checkpoints.load(latest(tmp_path, ["old"]), CPU)["streams"] == {"a": {"at": 4}}


def test_weights_are_loaded_by_name_and_the_others_stay():
    layer = torch.nn.Linear(2, 2)
    bias = layer.bias.detach().clone()
    load_weights(layer, {"weight": torch.eye(2)})
    assert torch.equal(layer.weight, torch.eye(2))
    assert torch.equal(layer.bias, bias)
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("weight", (3, 2), r"weight was saved with shape \(3, 2\), this model has \(2, 2\)"),
        ("wieght", (2, 2), r"wieght was saved with shape \(2, 2\), this model has no such parameter"),
    ],
)
def test_weights_of_another_model_are_refused_by_name_and_shape(name, shape, message):
    with pytest.raises(ValueError, match=message):
        load_weights(torch.nn.Linear(2, 2), {name: torch.zeros(shape)})
