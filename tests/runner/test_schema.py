"""A config that makes no sense is refused by its key, with the way out, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig

from hialign.runner.commands import train

Compose = Callable[..., DictConfig]
ROOT = "data.root=/nowhere"
LLAVA = ("experiment=llava", "data=flickr8k", ROOT)
TWO_LEVELS = ("experiment=hierarchical", "data=flickr8k", ROOT)
STAGE = "stages.finetune"

REFUSED = {
    "no experiment": (("data=flickr8k", ROOT), "stages: no experiment is chosen", "hialign configs experiment"),
    "no data": (("experiment=llava",), "data: not chosen", "hialign configs data"),
    "no root": (("experiment=llava", "data=flickr8k"), "data.root: not given", "set data.root=FOLDER"),
    "a role that the suite lacks": (
        (*TWO_LEVELS, "outer.data.caption=${data.vqa}"),
        f"{STAGE}.outer.data.caption: data=flickr8k has no vqa",
        "it has train, pairs, caption, heldout",
    ),
    "a link to nothing": ((*TWO_LEVELS, f"{STAGE}.outer=${{task}}"), f"{STAGE}.outer: ", "'task' not found"),
    "a solver for two levels on one": (
        (*LLAVA, "solver=joint"),
        "solver: hialign.solvers.Joint needs an inner level",
        "solver=single",
    ),
    "single on two levels": (
        (*TWO_LEVELS, "solver=single"),
        "solver: hialign.solvers.Single would ignore the inner level",
        "solver=joint",
    ),
    "a stage's own solver without inner level": (
        (*LLAVA, f"+solver@{STAGE}.solver=joint"),
        f"{STAGE}.solver: this stage has no inner level",
        f"set {STAGE}.inner too",
    ),
    "a stage's own single": (
        (*TWO_LEVELS, f"+solver@{STAGE}.solver=single"),
        f"{STAGE}.solver: hialign.solvers.Single would ignore",
        "choose solver=joint",
    ),
    "an unknown part": (
        (*TWO_LEVELS, f"+{STAGE}.train.nose=full"),
        f"{STAGE}.train.nose: got 'full'",
        "vision, projector, llm",
    ),
    "an unknown part that the inner loss reads": (
        (*TWO_LEVELS, f"{STAGE}.inner_depends_on_outer=[nose]"),
        f"{STAGE}.inner_depends_on_outer: got 'nose'",
        "vision, projector, llm",
    ),
    "a frozen part that the outer level may choose": (
        (*TWO_LEVELS, f"{STAGE}.inner_depends_on_outer=[temperature]"),
        f"{STAGE}.inner_depends_on_outer: temperature does not train here",
        f"{STAGE}.train",
    ),
    "a part that the inner loss reads, without inner level": (
        (*LLAVA, f"{STAGE}.inner_depends_on_outer=[llm]"),
        f"{STAGE}.inner_depends_on_outer: this stage has no inner level",
        f"{STAGE}.inner too",
    ),
    "a budget above nothing that is known": (
        (
            *TWO_LEVELS,
            "solver=constrained_dual",
            "inner.objective._target_=hialign.objectives.NextToken",
            "~inner.objective.pairs",
        ),
        "solver.best: not given, and hialign.objectives.NextToken of stages.pretrain has no proved floor",
        "set solver.best=",
    ),
    "a barrier by a value that nobody knows": (
        (
            *(*TWO_LEVELS, f"+solver@{STAGE}.solver=dynamic_barrier", f"{STAGE}.solver.phi=value"),
            "inner.objective._target_=hialign.objectives.NextToken",
            "~inner.objective.pairs",
        ),
        f"{STAGE}.solver.best: not given",
        "phi=grad",
    ),
    "an unknown phi": ((*TWO_LEVELS, "solver.phi=gradient"), "solver: phi: got 'gradient'", "grad, value, min"),
    "an unknown mode": (
        (*TWO_LEVELS, f"{STAGE}.train.vision=half"),
        f"{STAGE}.train.vision: got 'half'",
        "frozen, full, lora",
    ),
    "a rate for a frozen part": (
        (*TWO_LEVELS, f"+{STAGE}.part_lr.temperature=0.1"),
        f"{STAGE}.part_lr.temperature: this part does not train",
        f"see {STAGE}.train",
    ),
    "no length": ((*TWO_LEVELS, f"{STAGE}.epochs=null"), f"{STAGE}: neither steps nor epochs", f"set {STAGE}.epochs="),
    "an empty batch": ((*TWO_LEVELS, f"{STAGE}.batch_size=0"), f"{STAGE}.batch_size: got 0", "above 0"),
    "an empty inner batch": (
        (*TWO_LEVELS, f"{STAGE}.inner_batch_size=0"),
        f"{STAGE}.inner_batch_size: got 0",
        "above 0",
    ),
    "an empty micro-batch": (
        (*TWO_LEVELS, f"{STAGE}.micro_batch_size=0"),
        f"{STAGE}.micro_batch_size: got 0",
        "above 0",
    ),
    "no steps": ((*TWO_LEVELS, f"{STAGE}.steps=0"), f"{STAGE}.steps: got 0", "above 0"),
    "epochs below 0": ((*TWO_LEVELS, f"{STAGE}.epochs=-1"), f"{STAGE}.epochs: got -1", "above 0"),
    "a rate that is no number": ((*TWO_LEVELS, f"{STAGE}.lr=nan"), f"{STAGE}.lr: got nan", "above 0"),
    "a warm-up of more than all steps": ((*TWO_LEVELS, f"{STAGE}.warmup=1.5"), f"{STAGE}.warmup: got 1.5", "[0, 1)"),
    "an unknown schedule": (
        (*TWO_LEVELS, f"{STAGE}.schedule=linear"),
        f"{STAGE}.schedule: got 'linear'",
        "cosine, constant",
    ),
    "an unknown precision": ((*TWO_LEVELS, "trainer.precision=fp16"), "trainer.precision: got 'fp16'", "fp32, bf16"),
    "an unknown device": ((*TWO_LEVELS, "trainer.device=tpu"), "trainer.device: got 'tpu'", "auto, cpu or cuda"),
    "an unknown resume": ((*TWO_LEVELS, "resume=yes"), "resume: got 'yes'", "auto"),
    "a target of someone else": (
        (*TWO_LEVELS, "model._target_=os.system"),
        "model._target_: got 'os.system'",
        "allow=[package]",
    ),
    "a target that begins like ours": (
        (*TWO_LEVELS, "model._target_=hialigned.x"),
        "model._target_: got 'hialigned.x'",
        "allow=[package]",
    ),
    "a nested target of someone else": (
        (*TWO_LEVELS, "+outer.objective.extra._target_=os.system"),
        "objective.extra._target_: got 'os.system'",
        "allow=[package]",
    ),
    "a target that is not there": (
        (*TWO_LEVELS, "model._target_=hialign.models.huge"),
        "model._target_: hialign.models.huge cannot be imported",
        "huge",
    ),
    "a misspelt argument": (
        (*TWO_LEVELS, "+model.widht=3"),
        "model.widht: hialign.models.tiny takes no widht",
        "did you mean width?",
    ),
    "an argument of another solver": (
        (*TWO_LEVELS, "+solver.half_life=3"),
        "solver.half_life: hialign.solvers.DynamicBarrier takes no half_life",
        "start, end, ramp, phi",
    ),
    "a misspelt argument of an objective": (
        (*TWO_LEVELS, "+inner.objective.pair=[clip]"),
        "inner.objective.pair: hialign.objectives.Contrastive takes no pair",
        "did you mean pairs?",
    ),
    "a misspelt argument of a data set": (
        (*TWO_LEVELS, "+data.train.split_sed=1"),
        "data.caption.split_sed: hialign.data.flickr8k takes no split_sed",
        "did you mean split_seed?",
    ),
    "a wrong kind of argument": ((*TWO_LEVELS, "model.seed=abc"), "model.seed: got 'abc'", "wanted int"),
    "a wrong kind of solver's argument": (
        (*TWO_LEVELS, "solver=joint", "solver.weight=heavy"),
        "solver.weight: got 'heavy'",
        "wanted float",
    ),
    "a wrong kind of data's argument": (
        (*TWO_LEVELS, "data.split_seed=a"),
        "data.caption.split_seed: got 'a'",
        "wanted int",
    ),
    "a missing argument": ((*TWO_LEVELS, "~model.seed"), "model.seed: not given", "hialign.models.tiny needs it"),
    "a value that the solver refuses": (
        (*TWO_LEVELS, "solver=joint", "solver.weight=-1"),
        "solver: weight: got -1",
        "at least 0",
    ),
    "a value that the objective refuses": (
        (*TWO_LEVELS, "inner.objective.pairs=[ears]"),
        "inner.objective: pairs: got ['ears']",
        "clip, projector, llm",
    ),
    "a value that the tracker refuses": (
        (*TWO_LEVELS, "tracker=[wandb]", "tracker.wandb.mode=loud"),
        "tracker.wandb: ",
        "'online' or 'offline'",
    ),
    "a data set that is none": (
        (*TWO_LEVELS, "outer.data.caption=pictures"),
        f"{STAGE}.outer.data.caption: got 'pictures'",
        "_target_",
    ),
    "images to compare and none corrupted": (
        ("experiment=mdpo", "data=tabletop", "stages.prefer.corrupt=null"),
        "stages.prefer.corrupt: not given, and stages.prefer.outer.objective compares with a corrupted image",
        "set stages.prefer.corrupt=noise|zoom",
    ),
    "an unknown corruption": (
        ("experiment=dpo", "data=tabletop", "stages.prefer.corrupt=blur"),
        "stages.prefer.corrupt: got 'blur'",
        "noise, zoom, grey",
    ),
    "phrases of a suite that marks none": (
        ("experiment=halva", "data=rlhf_v", ROOT),
        "stages.prefer.outer.data.preference: data=rlhf_v has no phrases",
        "it has ",
    ),
    "a level without data": (
        (*TWO_LEVELS, f"{STAGE}.outer={{objective: 3}}"),
        f"{STAGE}.outer: ",
        "wanted an objective and data",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_senseless_config_is_refused_by_key_and_fix_and_nothing_is_written(
    composed: Compose, tmp_path: Path, case: str
) -> None:
    overrides, key, fix = REFUSED[case]
    config = composed(*overrides, f"output={tmp_path / 'runs'}")
    with pytest.raises(ValueError, match=re.escape(key)) as caught:
        train.run(config)
    assert fix in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Hydra's own: refused while composing.
UNCOMPOSED = {
    "an unknown key": ("sede=3", "sede"),
    "an unknown key of a stage": ("stages.finetune.epoch=3", "stages.finetune.epoch"),
    "a word for a number": ("seed=abc", "seed"),
    "a word for a number, deep": ("stages.finetune.batch_size=many", "stages.finetune.batch_size"),
    "a fraction for a count": ("stages.finetune.steps=2.5", "stages.finetune.steps"),
    "a tree for a number": ("trainer.workers={a: 1}", "trainer.workers"),
    "an unknown tracker": ("tracker=[abacus]", "tracker/abacus"),
    "an unknown solver": ("solver=magic", "solver/magic"),
    "an unknown suite": ("data=mine", "data/mine"),
}


@pytest.mark.parametrize("case", UNCOMPOSED)
def test_what_hydra_refuses_names_the_key(composed: Compose, case: str) -> None:
    override, key = UNCOMPOSED[case]
    with pytest.raises(HydraException) as caught:
        composed(*TWO_LEVELS, override)
    assert key in str(caught.value)


def test_a_package_of_the_user_s_is_admitted_by_name(
    validated: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_users_package.py").write_text(
        "class Mine:\n    two_level, requires = True, ()\n    def __init__(self, pull: float = 1.0): self.pull = pull\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = ("solver=joint", "~solver.weight", "solver._target_=a_users_package.Mine")
    with pytest.raises(ValueError, match=r"solver\._target_: got 'a_users_package\.Mine'.*allow=\[package\]"):
        validated(*TWO_LEVELS, *mine)
    assert validated(*TWO_LEVELS, *mine, "allow=[a_users_package]").solver._target_ == "a_users_package.Mine"
    with pytest.raises(ValueError, match=r"solver\.pul: a_users_package\.Mine takes no pul; did you mean pull\?"):
        validated(*TWO_LEVELS, *mine, "allow=[a_users_package]", "+solver.pul=2")


def test_the_first_thing_missing_is_named_not_what_would_follow_from_it(validated: Compose) -> None:
    with pytest.raises(ValueError, match=r"^stages: no experiment is chosen"):
        validated()
    with pytest.raises(ValueError, match=r"^data: not chosen"):
        validated("experiment=hierarchical", "solver=single")
    with pytest.raises(ValueError, match=r"^data\.root: not given"):
        validated("experiment=hierarchical", "data=flickr8k", "solver=single")


# Each would train something else than was asked for, or fail later without its key.
SLIPS = {
    "a stage without outer level": (f"{STAGE}.outer=null", f"{STAGE}.outer"),
    "a clip that turns the gradient round": (f"{STAGE}.clip=-1", f"{STAGE}.clip"),
    "a decay that grows": (f"{STAGE}.weight_decay=-1", f"{STAGE}.weight_decay"),
    "a part's rate that climbs": (f"+{STAGE}.part_lr.vision=-1", f"{STAGE}.part_lr.vision"),
    "saving every 0 steps": ("trainer.save_every=0", "trainer.save_every"),
    "keeping -1 checkpoints": ("trainer.keep=-1", "trainer.keep"),
    "-1 workers": ("trainer.workers=-1", "trainer.workers"),
    "measuring every -1 steps": ("trainer.diagnose_every=-1", "trainer.diagnose_every"),
    "an unknown key with a +": ("+sede=3", "sede"),
    "an unknown key of a stage with a +": (f"+{STAGE}.epoch=3", f"{STAGE}.epoch"),
    "an unknown key of the trainer with a +": ("+trainer.precison=bf16", "trainer.precison"),
    "a name that leads out of the output folder": ("name=../../elsewhere", "name"),
}


@pytest.mark.parametrize("case", SLIPS)
def test_a_slip_of_the_pen_is_refused_by_key(validated: Compose, case: str) -> None:
    override, key = SLIPS[case]
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}\b"):
        validated(*TWO_LEVELS, override)
