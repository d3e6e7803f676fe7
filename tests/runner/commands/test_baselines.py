"""Every published baseline trains the embedded model from its config, alone and on two levels."""

from __future__ import annotations

import json
import math
import shutil

import pytest

ONE_STAGE = ("dpo", "ddpo", "tdpo", "mdpo", "chip", "halva")
TWO_LEVELS = ("hierarchical_dpo", "hierarchical_chip", "hierarchical_halva")
COMMON = ("data=tabletop", "model=tabletop", "stages.prefer.steps=2", "stages.prefer.batch_size=4")


def rows(workshop, experiment, name):
    text = (workshop.run(name, experiment) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("experiment", [*ONE_STAGE, *TWO_LEVELS])
def test_a_preference_baseline_trains_and_starts_at_its_reference(workshop, experiment):
    done = workshop.hialign("train", f"experiment={experiment}", *COMMON, "name=two")
    assert done.code == 0, done.err
    found = rows(workshop, experiment, "two")
    assert len(found) == 2
    assert all(math.isfinite(row["outer_loss"]) for row in found)
    if "halva" in experiment:
        assert found[0]["outer_anchor_kl"] == pytest.approx(0, abs=1e-6)
    else:
        assert found[0]["outer_chosen_reward"] == pytest.approx(0, abs=1e-4)
    assert found[1]["outer_loss"] != found[0]["outer_loss"]
    assert ("inner_loss" in found[0]) == (experiment in TWO_LEVELS)


@pytest.mark.parametrize("experiment", ["hacl", "hierarchical_hacl"])
def test_hacl_trains_both_stages(workshop, experiment):
    lengths = [f"stages.{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("steps=2", "batch_size=4")]
    done = workshop.hialign(
        "train", f"experiment={experiment}", "data=tabletop", "model=tabletop", *lengths, "name=two"
    )
    assert done.code == 0, done.err
    found = rows(workshop, experiment, "two")
    assert [row["stage"] for row in found] == ["pretrain"] * 2 + ["finetune"] * 2
    assert all(math.isfinite(row["inner_loss"]) for row in found if row["stage"] == "pretrain")
    assert ("inner_loss" in found[-1]) == (experiment == "hierarchical_hacl")


def test_a_preference_stage_behind_another_says_to_start_from_a_run(workshop, tmp_path):
    mine = tmp_path / "experiment" / "both.yaml"
    mine.parent.mkdir()
    mine.write_text(
        "# @package _global_\n"
        "defaults: [/stage@stages.pretrain: pretrain, /stage@stages.prefer: prefer, override /outer: dpo, _self_]\n"
        "stages: {pretrain: {steps: 1, batch_size: 4}}\n"
    )
    done = workshop.hialign("train", "--config-dir", str(tmp_path), "experiment=both", *COMMON, "name=both")
    assert done.code == 1
    assert "stages.prefer.outer: its reference is the model that the run starts from" in done.err
    assert "model.from_run=" in done.err


def test_a_loss_over_images_without_a_corrupted_one_names_the_key(workshop):
    done = workshop.hialign("train", "experiment=chip", *COMMON, "stages.prefer.corrupt=null", "name=bare")
    assert done.code == 1
    assert "stages.prefer.corrupt: not given, and stages.prefer.outer.objective compares with" in done.err
    assert not workshop.run("bare", "chip").exists()


def test_chip_as_printed_is_warned_of_once_before_anything_is_read(workshop):
    """Its term of tokens falls without end; the released form has none such, nor has the printed one without it."""
    cases = {"printed": ("outer=chip_paper",), "form": ("outer.objective.loss.form=paper",), "released": ()}
    for name, overrides in cases.items():
        overrides += ("stages.prefer.steps=1", f"name=warned_{name}")
        done = workshop.hialign("train", "experiment=chip", *COMMON, *overrides)
        assert done.code == 0, done.err
        log = (workshop.run(f"warned_{name}", "chip") / "log.txt").read_text()
        assert log.count("no lower bound") == (name != "released")
        if name == "printed":
            assert log.splitlines()[0].endswith("terms=[images, segments] leaves it out")
            assert "WARNING stages.prefer.outer.objective: loss.form=paper" in log.splitlines()[0]


def test_a_run_taken_up_again_compares_with_the_same_reference(workshop):
    """The reference is no part of a checkpoint: it is made anew from the start."""
    steps = ("stages.prefer.steps=3", "stages.prefer.batch_size=4", "trainer.save_every=1", "trainer.keep=3")
    common = ("experiment=dpo", "data=tabletop", "model=tabletop", *steps)
    assert workshop.hialign("train", *common, "name=whole").code == 0
    assert workshop.hialign("train", *common, "name=cut").code == 0
    folder = workshop.run("cut", "dpo")
    shutil.rmtree(folder / "checkpoints" / "prefer" / "step-000003")
    shutil.rmtree(folder / "checkpoints" / "prefer" / "step-000002")
    shutil.rmtree(folder / "model")
    (folder / "status.json").write_text('{"state": "preempted"}\n')
    done = workshop.hialign("train", *common, "name=cut", "resume=auto")
    assert done.code == 0, done.err
    whole, cut = (rows(workshop, "dpo", name) for name in ("whole", "cut"))
    assert [row["outer_loss"] for row in cut] == [row["outer_loss"] for row in whole]


def test_hacl_with_a_queue_goes_on_after_a_stop_as_if_there_had_been_none(workshop):
    """What the queue holds is part of a checkpoint, and measuring a step leaves nothing in it."""
    steps = ("stages.pretrain.steps=4", "stages.pretrain.batch_size=4", "~stages.finetune", "inner.objective.queue=6")
    common = ("experiment=hacl", "data=tabletop", "model=tabletop", *steps, "trainer.save_every=2", "trainer.keep=3")
    assert workshop.hialign("train", *common, "trainer.diagnose_every=0", "name=queue_whole").code == 0
    assert workshop.hialign("train", *common, "trainer.diagnose_every=1", "name=queue_cut").code == 0
    folder = workshop.run("queue_cut", "hacl")
    shutil.rmtree(folder / "checkpoints" / "pretrain" / "step-000004")
    shutil.rmtree(folder / "model")
    (folder / "status.json").write_text('{"state": "preempted"}\n')
    done = workshop.hialign("train", *common, "trainer.diagnose_every=1", "name=queue_cut", "resume=auto")
    assert done.code == 0, done.err
    whole, cut = (rows(workshop, "hacl", f"queue_{name}") for name in ("whole", "cut"))
    assert [row["inner_queued"] for row in whole] == [0, 4, 6, 6]
    assert [row["inner_loss"] for row in cut] == [row["inner_loss"] for row in whole]


def test_the_chosen_answers_alone_are_learnt_of_the_records_that_dpo_compares(workshop):
    """The same records in the same order: the first loss is minus the mean log-probability of DPO's chosen answers."""
    found = {}
    for outer in ("dpo", "chosen"):
        done = workshop.hialign("train", "experiment=dpo", f"outer={outer}", *COMMON, f"name=of_{outer}")
        assert done.code == 0, done.err
        found[outer] = rows(workshop, "dpo", f"of_{outer}")[0]
    tokens = -found["dpo"]["outer_chosen_logp"] * 4 / found["chosen"]["outer_loss"]
    assert tokens == pytest.approx(round(tokens), rel=1e-5)  # nats of four answers over nats a token
    assert round(tokens) >= 8  # each answer has a word and its end
