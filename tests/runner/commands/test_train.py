"""``hialign train`` from the command line to the run folder, on drawn pictures and a model of nearly nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from hialign.models import load, part_of, tiny


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load(str(run / "model")).root.state_dict()


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


def failed(workshop: Any, run: str, copy: str) -> Path:
    """A copy of a finished run that says that it failed after its last checkpoint."""
    folder: Path = workshop.run(copy)
    shutil.copytree(workshop.run(run), folder)
    (folder / "status.json").write_text('{"state": "failed"}')
    return folder


def test_a_finished_run_s_folder_holds_what_the_readme_lists(trained: Any) -> None:
    run = trained.run("first")
    wanted = {"config.yaml", "provenance.json", "status.json", "metrics.jsonl", "log.txt", "checkpoints", "model"}
    assert {path.name for path in run.iterdir()} - {"answers", "scores.json", ".lock"} == wanted
    assert state(run) == "done"
    assert "name=first" in json.loads((run / "provenance.json").read_text())["command"]
    assert {path.parent.name for path in run.glob("checkpoints/*/step-000003")} == {"pretrain", "finetune"}
    assert not list(trained.folder.glob("*/.hydra")) + list(trained.folder.glob("outputs"))


def test_a_run_s_metrics_have_every_step_of_every_stage_once(trained: Any) -> None:
    rows = metrics(trained.run("first"))
    assert [(row["stage"], row["step"]) for row in rows] == [
        (s, i) for s in ("pretrain", "finetune") for i in (1, 2, 3)
    ]
    assert [row["total_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all({"outer_loss", "inner_loss", "lr_factor"} <= set(row) for row in rows)


def test_a_run_s_config_is_resolved_and_composes_to_the_same_run(trained: Any) -> None:
    text = (trained.run("first") / "config.yaml").read_text()
    assert "${" not in text
    assert "???" not in text
    config = OmegaConf.create(text)
    assert config.stages.finetune.steps == 3
    assert config.solver._target_ == "hialign.solvers.DynamicBarrier"


def test_the_log_says_what_trains_and_ends_with_the_next_command(trained: Any) -> None:
    lines = (trained.run("first") / "log.txt").read_text().splitlines()
    assert any(re.match(r"stage finetune: 3 steps, solver DynamicBarrier", line) for line in lines)
    assert "hialign evaluate run=runs/hierarchical/first" in lines[-1]


def test_training_moves_what_trains_and_leaves_the_temperature(trained: Any) -> None:
    before = tiny(seed=0, width=32, layers=2, image_size=32).root.state_dict()
    after = weights(trained.run("first"))
    assert set(after) == set(before)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {part_of(name) for name in moved} == {"vision", "projector", "llm", "text", "heads"}
    assert not [name for name in moved if "heads.llm" in name]  # no pair reads them


def test_the_same_command_again_is_refused_with_both_ways_on(trained: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.run("first").rglob("*")}
    done = trained.train("name=first")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1
    for part in ("hialign train: runs/hierarchical/first exists (done)", "resume=auto", "name=OTHER"):
        assert part in done.err
    assert {path: path.stat().st_mtime_ns for path in trained.run("first").rglob("*")} == before


def test_resuming_a_finished_run_says_so_and_leaves_it(trained: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.run("first").rglob("*")}
    done = trained.train("name=first", "resume=auto")
    assert done.code == 0
    assert "runs/hierarchical/first is done" in done.err
    assert {path: path.stat().st_mtime_ns for path in trained.run("first").rglob("*")} == before


def test_resuming_with_another_config_names_each_changed_key_with_both_values(trained: Any) -> None:
    run = failed(trained, "first", "changed")
    done = trained.train("name=changed", "resume=auto", "stages.finetune.lr=0.5", "solver.ramp=0.25")
    assert done.code == 1
    assert "stages.finetune.lr: 0.001 -> 0.5; " in done.err
    assert "solver.ramp: 0.8 -> 0.25" in done.err
    assert "stages.pretrain" not in done.err
    assert state(run) == "failed"


def test_resuming_may_change_how_the_run_runs_and_writes_no_step_twice(trained: Any) -> None:
    run = failed(trained, "first", "resumed")
    shutil.rmtree(run / "checkpoints" / "finetune")
    shutil.rmtree(run / "model")
    done = trained.train(
        "name=resumed", "resume=auto", "trainer.save_every=2", "trainer.keep=1", "trainer.diagnose_every=1"
    )
    assert done.code == 0, done.err
    assert "resuming from" in done.err
    assert [row["total_step"] for row in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in (run / "checkpoints" / "finetune").iterdir()] == ["step-000003"]
    assert ["curvature" in row for row in metrics(run)] == [False] * 3 + [True] * 3
    expected = weights(trained.run("first"))
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_failed_run_without_checkpoint_is_begun_anew_by_the_same_command(workshop: Any) -> None:
    run = workshop.run("again", "llava")
    done = workshop.train("name=again", "data.root=nowhere", experiment="llava")
    assert done.code == 1
    assert "nowhere/captions.txt: no such file" in done.err
    assert state(run) == "failed"
    shutil.copytree(workshop.folder / "pictures", workshop.folder / "nowhere")
    assert workshop.train("name=again", "data.root=nowhere", experiment="llava").code == 0
    assert state(run) == "done"
    assert len(metrics(run)) == 6


def test_a_run_can_start_from_another_run_s_weights(trained: Any) -> None:
    frozen = "{vision: frozen, llm: frozen, text: frozen, heads: full, projector: full}"
    done = trained.train(
        *("name=second", "model.from_run=runs/hierarchical/first", "stages.pretrain.lr=1e-12", "~stages.finetune"),
        f"stages.pretrain.train={frozen}",
    )
    assert done.code == 0, done.err
    first = weights(trained.run("first"))
    for name, tensor in weights(trained.run("second")).items():
        torch.testing.assert_close(tensor, first[name], rtol=0, atol=1e-9, msg=name)


def test_two_runs_with_one_seed_are_the_same_and_with_another_differ(trained: Any) -> None:
    for name, seed in (("twin", 0), ("cousin", 1)):
        assert trained.train(f"name={name}", f"seed={seed}").code == 0
    first, twin, cousin = (weights(trained.run(name)) for name in ("first", "twin", "cousin"))
    assert all(torch.equal(first[name], twin[name]) for name in first)
    name = "llava.model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(first[name], cousin[name])


def test_a_sweep_writes_one_folder_a_run(workshop: Any) -> None:
    done = workshop.train("-m", "output=sweep", "solver=joint,sequential")
    assert done.code == 0, done.err
    runs = {folder.name: folder for folder in (workshop.folder / "sweep" / "hierarchical").iterdir()}
    assert len(runs) == 2
    for solver in ("joint", "sequential"):
        (run,) = (folder for name, folder in runs.items() if f"solver-{solver}" in name)
        assert state(run) == "done"
        assert OmegaConf.load(run / "config.yaml").solver._target_ == f"hialign.solvers.{solver.capitalize()}"


def test_a_failing_run_of_a_sweep_does_not_stop_the_others_and_the_sweep_fails(workshop: Any) -> None:
    done = workshop.train("-m", "output=halting", "solver=single,joint", "stages.pretrain.steps=1")
    assert done.code == 1
    assert "hialign train: solver: hialign.solvers.Single would ignore the inner level" in done.err
    (run,) = (workshop.folder / "halting" / "hierarchical").iterdir()
    assert "solver-joint" in run.name
    assert state(run) == "done"


@pytest.fixture(scope="module")
def broken(workshop: Any) -> Path:
    """The pictures with one broken."""
    folder: Path = workshop.folder / "broken"
    shutil.copytree(workshop.folder / "pictures", folder)
    (folder / "images" / "00003.png").write_bytes(b"not a picture")
    return folder


def test_a_broken_image_stops_the_run_by_file_and_record_in_a_process_of_its_own(
    workshop: Any, broken: Path, tmp_path: Path
) -> None:
    steps = ("stages.pretrain.steps=9", "stages.pretrain.batch_size=8", "~stages.finetune")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hialign", "train", "experiment=llava", "data=flickr8k"),
            *(f"data.root={broken}", "name=broken", f"output={tmp_path}", *steps),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hialign train: ")
    assert f"{broken}/images/00003.png: 00003.png: the image cannot be read" in last
    assert "skip" in last
    assert state(tmp_path / "llava" / "broken") == "failed"


def test_a_broken_image_is_skipped_listed_and_said_where_asked_for(workshop: Any, broken: Path) -> None:
    done = workshop.train("name=skipping", "data.root=broken", "data.on_error=skip", "stages.pretrain.steps=9")
    assert done.code == 0, done.err
    run = workshop.run("skipping")
    assert state(run) == "done"
    (row,) = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert row["file"] == str(broken / "images" / "00003.png")
    assert row["record"] == "00003.png"
    assert "cannot be read" in row["problem"]
    for told in (done.err, (run / "log.txt").read_text()):
        assert "skipped 1 records so far" in told


def test_tensorboard_gets_event_files_in_the_run_folder(workshop: Any) -> None:
    done = workshop.train("name=board", "tracker=[tensorboard]", experiment="llava")
    assert done.code == 0, done.err
    (file,) = (workshop.run("board", "llava") / "tensorboard").glob("events.out.tfevents.*")
    assert b"outer_loss" in file.read_bytes()


def test_a_user_s_own_experiment_trains(workshop: Any) -> None:
    mine = workshop.folder / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "careful.yaml").write_text(
        "# @package _global_\n# mine\ndefaults: [hierarchical, override /solver: joint, _self_]\n"
        "stages: {finetune: {part_lr: {vision: 1e-6}}}\n"
    )
    done = workshop.train("name=mine", "--config-dir", "mine", "recipe=hierarchical_tiny", experiment="careful")
    assert done.code == 0, done.err
    assert "there is no configs/recipe" not in done.out + done.err  # another's was chosen by name
    config = OmegaConf.load(workshop.run("mine", "careful") / "config.yaml")
    assert config.stages.finetune.part_lr == {"vision": 1e-6}
    assert config.solver._target_ == "hialign.solvers.Joint"
    assert workshop.hialign("evaluate", "run=runs/careful/mine", "benchmark=[retrieval]").code == 0


def test_a_stage_s_own_solver_is_the_one_that_trains_it(workshop: Any) -> None:
    done = workshop.train("name=mixed", "+solver@stages.pretrain.solver=joint")
    assert done.code == 0, done.err
    assert "stage pretrain: 3 steps, solver Joint" in done.err
    assert "stage finetune: 3 steps, solver DynamicBarrier" in done.err
    assert ["beta" in row for row in metrics(workshop.run("mixed"))] == [False] * 3 + [True] * 3


def test_epochs_count_the_outer_level_s_data(workshop: Any) -> None:
    done = workshop.train(
        *("name=epochs", "~stages.finetune", "stages.pretrain.steps=null", "stages.pretrain.epochs=1.5"),
        experiment="llava",
    )
    assert done.code == 0, done.err
    rows = metrics(workshop.run("epochs", "llava"))
    assert len(rows) == 7  # 36 pictures of 40 train, 8 at a time: 1.5 * 36 / 8, rounded
    assert rows[-1]["epochs/outer/caption"] == round(7 * 8 / 36, 4)


def test_showing_the_config_trains_nothing(workshop: Any) -> None:
    done = workshop.train("name=shown", "output=untouched", "--cfg", "job")
    assert done.code == 0
    assert "solver:" in done.out
    assert not (workshop.folder / "untouched").exists()


@pytest.mark.parametrize("override", ["sede=3", "seed=abc", "solver=magic"])
def test_a_mistyped_override_ends_with_its_key_and_no_traceback(workshop: Any, override: str) -> None:
    done = workshop.hialign("train", "experiment=llava", "data=flickr8k", "data.root=pictures", override)
    assert done.code == 1
    assert re.split("=", override)[0] in done.err
    assert "Traceback" not in done.err


def test_resuming_a_finished_run_with_another_config_names_the_changed_key(trained: Any) -> None:
    done = trained.train("name=first", "resume=auto", "stages.finetune.steps=100")
    assert done.code == 1
    assert "stages.finetune.steps: 3 -> 100" in done.err


@pytest.mark.slow
def test_the_readme_s_commands_work_on_photographs(workshop: Any, shared: Path) -> None:
    photographs = shared / "data" / "flickr8k"
    if not (photographs / "captions.txt").is_file():
        pytest.skip(f"no {photographs}")
    steps = [f"stages.{stage}.steps=4" for stage in ("pretrain", "finetune")]
    done = workshop.hialign(
        "train", "experiment=hierarchical", "data=flickr8k", f"data.root={photographs}", "name=photographs", *steps
    )
    assert done.code == 0, done.err
    done = workshop.hialign("evaluate", "run=runs/hierarchical/photographs")
    assert done.code == 0, done.err
    scores = json.loads((workshop.run("photographs") / "scores.json").read_text())
    heldout = round(0.1 * len(list((photographs / "images").iterdir())))
    assert scores["retrieval"]["images"] == scores["captions"]["images"] == heldout
    assert scores["captions"]["loss"] < 8  # a uniform guess over the vocabulary of 2048 costs 7.6


def test_two_processes_do_not_train_one_run(workshop: Any) -> None:
    import fcntl

    folder = workshop.run("twice")
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = workshop.train("name=twice")
    assert done.code == 1
    assert "twice: another process is training this run" in done.err
    assert not (folder / "config.yaml").exists()


def test_a_failed_run_whose_stage_has_a_checkpoint_is_not_begun_anew_as_another(trained: Any) -> None:
    folder = trained.run("lost")
    (folder / "checkpoints" / "pretrain" / "step-000003").mkdir(parents=True)
    (folder / "config.yaml").write_text((trained.run("first") / "config.yaml").read_text())
    (folder / "status.json").write_text('{"state": "failed"}')
    done = trained.train("name=lost", "resume=auto", "~stages.pretrain")
    assert done.code == 1
    assert "was started with another config: stages.pretrain" in done.err
    assert (folder / "config.yaml").read_text() == (trained.run("first") / "config.yaml").read_text()


def test_an_inner_batch_in_micro_batches_trains_as_the_whole_one(trained: Any) -> None:
    done = trained.train("name=split", *(f"stages.{s}.inner_micro_batch_size=2" for s in ("pretrain", "finetune")))
    assert done.code == 0, done.err
    rows, expected = metrics(trained.run("split")), metrics(trained.run("first"))
    assert len(rows) == len(expected) == 6
    for row, other in zip(rows, expected, strict=True):
        assert row["inner_floor"] == other["inner_floor"] > 0  # that of the whole batch
        for key in ("outer_loss", "inner_loss", "weight"):
            assert row[key] == pytest.approx(other[key], rel=1e-4), (row["total_step"], key)


def test_an_inner_batch_that_does_not_divide_by_its_micro_batch_is_refused_by_stage(workshop: Any) -> None:
    done = workshop.train("name=odd", "stages.finetune.inner_micro_batch_size=3")
    assert done.code == 1
    assert "stages.finetune (inner level): batch_size=8 does not divide by micro_batch_size=3" in done.err
    assert not (workshop.run("odd") / "checkpoints").exists()


def test_a_loss_that_cannot_be_split_refuses_micro_batches_by_key_and_name(
    workshop: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a_users_loss.py").write_text(
        "from hialign.objectives import NextToken\nclass Ranked(NextToken):\n    whole_batch = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = (
        "allow=[a_users_loss]",
        "outer.objective._target_=a_users_loss.Ranked",
        "stages.finetune.micro_batch_size=4",
    )
    done = workshop.train("name=ranked", *mine)
    assert done.code == 1
    for part in ("stages.finetune", "micro_batch_size: got 4 for 8 rows", "Ranked sees its rows", "cannot be split"):
        assert part in done.err
    assert not (workshop.run("ranked") / "checkpoints").exists()


STAGE = "stages.finetune"
# What makes a solver go astray and does not stop it: said when the run starts, by stage and setting.
ASTRAY = {
    "weight decay": ((f"{STAGE}.weight_decay=0.1",), "weight decay 0.1", "set weight_decay=0"),
    "a constant rate": ((f"{STAGE}.schedule=constant",), "DynamicBarrier at a constant learning rate", "schedule"),
    "a temperature that trains": ((f"{STAGE}.train.temperature=full",), "the temperature trains", "train.temperature"),
    "a sum without minimum": (
        ("solver=joint", f"{STAGE}.inner_depends_on_outer=[llm]"),
        "Joint with an inner loss that depends on outer parameters",
        "use DynamicBarrier",
    ),
}


@pytest.mark.parametrize("case", ASTRAY)
def test_a_setting_under_which_the_solver_goes_astray_is_warned_of_before_the_first_step(
    workshop: Any, case: str
) -> None:
    overrides, what, fix = ASTRAY[case]
    name = f"astray-{case.replace(' ', '-')}"
    done = workshop.train(f"name={name}", "stages.pretrain.steps=1", f"{STAGE}.steps=1", *overrides)
    assert done.code == 0, done.err
    lines = (workshop.run(name) / "log.txt").read_text().splitlines()
    warned = [line for line in lines if "WARNING" in line]
    assert len(warned) == 1
    assert warned[0].startswith(f"WARNING {STAGE}: {what}")
    assert fix in warned[0]
    assert lines.index(warned[0]) < next(i for i, line in enumerate(lines) if line.startswith("stage pretrain: "))


def test_a_run_as_the_experiment_has_it_warns_of_nothing(trained: Any) -> None:
    assert "WARNING" not in (trained.run("first") / "log.txt").read_text()


def test_a_part_that_the_two_losses_do_not_both_reach_is_refused_by_key(workshop: Any) -> None:
    done = workshop.train("name=unread", f"{STAGE}.inner_depends_on_outer=[text]")
    assert done.code == 1
    assert f"{STAGE}.inner_depends_on_outer: got text, which both losses do not reach" in done.err
    assert not (workshop.run("unread") / "checkpoints").exists()


def test_an_inner_loss_may_read_adapters_that_the_task_alone_chooses(workshop: Any) -> None:
    done = workshop.train(
        *("name=adapters", "~stages.pretrain", f"{STAGE}.steps=2", f"{STAGE}.train.llm=lora", "lora.rank=2"),
        *("inner.objective.pairs=[llm]", f"{STAGE}.inner_depends_on_outer=[llm]", "solver.inner_steps=1"),
    )
    assert done.code == 0, done.err
    table = (workshop.run("adapters") / "log.txt").read_text()
    row = next(line for line in table.splitlines() if line.split()[:2] == ["llm", "LoRA"])
    inner, shared, outer, untouched = row.split()[2:]
    assert (inner, shared, untouched) == ("-", "-", "-")
    assert outer != "-"
    assert [row["step"] for row in metrics(workshop.run("adapters"))] == [1, 2]
