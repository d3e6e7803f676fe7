"""DPO as the command trains it and as TRL's trainer does, from the same model on the same records.

TRL reads the records as images and messages, through its own vision collator and the processor that a run saves.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from hialign.batch import PreferenceBatch
from hialign.data.records import IMAGE, Preference
from hialign.models import save
from hialign.runner import assemble, schema

STEPS, ROWS = 3, 4
COMMAND = (
    *("experiment=dpo", "data=tabletop", "model=tabletop", "seed=5", "stages.prefer.lr=1e-3"),
    *(f"stages.prefer.steps={STEPS}", f"stages.prefer.batch_size={ROWS}"),
    *("stages.prefer.schedule=constant", "stages.prefer.warmup=0"),
)
NUMBERS = {  # ours -> TRL's
    "outer_loss": "loss",
    "outer_chosen_logp": "logps/chosen",
    "outer_rejected_logp": "logps/rejected",
    "outer_chosen_reward": "rewards/chosen",
    "outer_rejected_reward": "rewards/rejected",
    "outer_accuracy": "rewards/accuracies",
    "outer_grad_norm": "grad_norm",
}


@dataclass(frozen=True)
class Trl:
    """What TRL's trainer said of each step, the gradients that each began with, and the weights at the end."""

    steps: list[dict[str, float]]
    gradients: list[dict[str, Tensor]]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


@dataclass(frozen=True)
class Ours:
    """Our model at the start, its objective, and the batches of the steps with their records."""

    model: Any
    objective: Any
    batches: list[PreferenceBatch]
    records: list[Preference]


def configured() -> DictConfig:
    """The config of ``COMMAND``, checked."""
    schema.register()
    with initialize_config_module("hialign.configs", version_base="1.3"):
        config = compose("train", list(COMMAND))
    schema.validate(config, experiment="dpo", suite="tabletop")
    return config


@pytest.fixture(scope="module")
def ours() -> Ours:
    config = configured()
    sources = assemble.read_data(config, pytest.fail)
    model = assemble.build_model(config)
    stage = assemble.build_stage(config, "prefer", model, sources, pytest.fail)
    assemble.keep_reference(model, [stage])
    outer = stage.levels["outer"]
    batches = [batch for _ in range(STEPS) for batch in outer.streams["preference"].next()]
    known = {record.id: record for record in sources["prefer", "outer", "preference"].records}
    records = [known[name] for batch in batches for name in batch.records]
    return Ours(assemble.as_asked(model, config, "prefer"), outer.objective, batches, records)


def row(record: Preference) -> dict[str, Any]:
    """The record as TRL's vision sets have it."""
    image = Image.open(io.BytesIO(record.images[0].read())).convert("RGB")
    question = record.turns[-1].question.removeprefix(IMAGE).strip()
    said = {side: [{"role": "assistant", "content": getattr(record, side).text}] for side in ("chosen", "rejected")}
    return {"images": [image], "prompt": [{"role": "user", "content": question}], **said}


@pytest.fixture(scope="module")
def trl(ours: Ours, tmp_path_factory: pytest.TempPathFactory) -> Trl:
    trl = pytest.importorskip("trl", reason="TRL is the oracle and is not installed")
    datasets = pytest.importorskip("datasets", reason="TRL's trainer reads datasets, which is not installed")
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

    folder = tmp_path_factory.mktemp("trl")
    save(ours.model, folder / "start")
    llava = AutoModelForImageTextToText.from_pretrained(folder / "start")
    llava.model.vision_tower.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in llava.named_parameters()}
    gradients: list[dict[str, Tensor]] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gradients.append({n: p.grad.clone() for n, p in kwargs["model"].named_parameters() if p.grad is not None})

    settings = trl.DPOConfig(
        output_dir=str(folder / "out"),
        beta=0.1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=20.0,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        train_sampling_strategy="sequential",
        max_length=None,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.DPOTrainer(
        model=llava,
        args=settings,
        train_dataset=datasets.Dataset.from_list([row(record) for record in ours.records]),
        processing_class=AutoProcessor.from_pretrained(folder / "start"),
        callbacks=[Watch()],
    )
    trainer.train()
    after = {name: p.detach().clone() for name, p in llava.named_parameters()}
    return Trl(trainer.state.log_history[:STEPS], gradients, before, after)


def test_dpo_runs_step_by_step_as_trls_trainer(workshop, trl):
    done = workshop.hialign("train", *COMMAND, "name=beside_trl")
    assert done.code == 0, done.err
    lines = (workshop.run("beside_trl", "dpo") / "metrics.jsonl").read_text().splitlines()
    for ours, theirs in zip(map(json.loads, lines), trl.steps, strict=True):
        mine = {name: ours[name] for name in NUMBERS}
        assert mine == pytest.approx({name: theirs[key] for name, key in NUMBERS.items()}, abs=1e-4, rel=1e-4)
    assert abs(trl.steps[-1]["rewards/margins"]) > 0.05  # the model has left its reference


def test_dpos_gradients_are_trls(ours, trl):
    """Of each parameter to 1e-4 of its largest entry, at every step; the steps then end at the same weights."""
    llava = ours.model.root.llava
    start = {name: p.detach().clone() for name, p in llava.named_parameters()}
    assert start.keys() == trl.before.keys()
    ours.model.root.train()
    optimizer = torch.optim.AdamW([p for p in llava.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    for batch, theirs in zip(ours.batches, trl.gradients, strict=True):
        optimizer.zero_grad()
        result = ours.model.root(ours.objective, batch)
        (result.loss_sum / result.weight).backward()
        found = {name: p.grad for name, p in llava.named_parameters() if p.grad is not None}
        assert found.keys() == theirs.keys()
        for name, gradient in theirs.items():
            apart = (found[name] - gradient).abs().max() / gradient.abs().max()
            assert apart < 1e-4, f"{name}: {apart:.1e} of the largest entry"
        optimizer.step()
    moved = {name: (trl.after[name] - weight).norm() for name, weight in trl.before.items()}
    for name, p in llava.named_parameters():
        assert (p - trl.after[name]).norm() <= 1e-2 * moved[name], name
