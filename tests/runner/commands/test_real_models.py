"""Runs on checkpoints in the files of real ones, by the configs that name the real ones."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

STEPS = tuple(
    f"stages.{stage}.{key}"
    for stage in ("pretrain", "finetune")
    for key in ("steps=2", "batch_size=8", "micro_batch_size=4")
)


def train(workshop: Any, *arguments: str) -> Any:
    done = workshop.hialign("train", "data=flickr8k", "data.root=pictures", "trainer.workers=0", *STEPS, *arguments)
    assert done.code == 0, done.err
    return done


def rows(workshop: Any, experiment: str, name: str) -> list[dict[str, Any]]:
    lines = (workshop.run(name, experiment) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def vicuna(checkpoints) -> tuple[str, ...]:
    return ("model=vicuna_7b", f"model.llm={checkpoints.llama}", f"model.clip.name={checkpoints.clip}")


def test_the_lora_recipe_trains_in_bfloat16_with_checkpointing(workshop: Any, vicuna: tuple[str, ...]) -> None:
    """All that the recipe of LLaVA-1.5 7B sets, but for sizes: plain and v1, square and pad, frozen weights in bf16."""
    train(workshop, "experiment=llava_lora", "name=bf16", *vicuna, "lora.rank=4")
    losses = [row["outer_loss"] for row in rows(workshop, "llava_lora", "bf16")]
    assert len(losses) == 4
    assert all(0 < loss < 20 for loss in losses)
    run = workshop.run("bf16", "llava_lora")
    weights = torch.load(run / "checkpoints" / "finetune" / "step-000002" / "state.pt", weights_only=True)["weights"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    saved = load_file(run / "model" / "model.safetensors")
    assert saved["language_model.model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert saved["multi_modal_projector.linear_1.weight"].dtype == torch.float32
    plain, info = AutoModelForImageTextToText.from_pretrained(run / "model", output_loading_info=True)
    assert not any(info.values())
    assert plain.dtype == torch.bfloat16
    shutil.copytree(run, workshop.folder / "bf16_under_way", ignore=shutil.ignore_patterns("model"))
    for folder in ("runs/llava_lora/bf16", "bf16_under_way"):
        for dtype in ("fp32", "bf16"):
            how = (f"run={folder}", f"dtype={dtype}")
            done = workshop.hialign("evaluate", *how, "benchmark=[captions]", f"precision={dtype}")
            assert done.code == 0, done.err
            done = workshop.hialign("ask", *how, "pictures/images/00001.png", "What?", "max_new_tokens=3")
            assert (done.code, bool(done.out.strip())) == (0, True), done.err
    answers = [
        workshop.hialign("ask", f"run={folder}", "pictures/images/00001.png", "What?", "max_new_tokens=9").out
        for folder in ("runs/llava_lora/bf16", "bf16_under_way")
    ]
    assert answers[0] == answers[1]


def test_two_levels_train_on_an_assembled_model_and_on_a_checkpoint(
    workshop: Any, vicuna: tuple[str, ...], checkpoints
) -> None:
    two_level = ("experiment=hierarchical", "stages.finetune.train.llm=lora", "lora.rank=4", "solver=joint")
    train(workshop, *two_level, "name=assembled", *vicuna)
    folder = workshop.run("assembled") / "model"
    train(
        workshop, *two_level, "name=checkpoint", "model=llava_1_5_7b", f"model.checkpoint={folder}", "model.clip=null"
    )
    for name in ("assembled", "checkpoint"):
        row = rows(workshop, "hierarchical", name)[-1]
        assert {"inner_clip_loss", "inner_projector_loss", "outer_loss"} <= row.keys()
        done = workshop.hialign("evaluate", f"run=runs/hierarchical/{name}")
        assert done.code == 0, done.err
    log = (workshop.run("assembled") / "log.txt").read_text()
    assert "text 1," in log  # the CLIP text tower is there, frozen
    # what the second run started from, alignment included, is what the first one ended with
    start = load_file(folder / "alignment" / "model.safetensors")
    ended = load_file(workshop.run("checkpoint") / "model" / "alignment" / "model.safetensors")
    assert torch.equal(start["text.embeddings.token_embedding.weight"], ended["text.embeddings.token_embedding.weight"])
    assert not torch.equal(start["heads.clip_image.weight"], ended["heads.clip_image.weight"])


def test_an_open_clip_tower_and_qwen2_train_in_their_own_chat_layout(workshop: Any, checkpoints, tmp_path) -> None:
    weights, _ = checkpoints.open_clip(tmp_path, "tiny-trained", quick_gelu=True)
    model = ("model=qwen2_0_5b", f"model.llm={checkpoints.qwen2}", "model.clip.name=tiny-trained")
    layout = ("stages.pretrain.template=chat", "stages.finetune.template=chat")
    train(workshop, "experiment=llava", "name=qwen2", *model, f"model.clip.pretrained={weights}", *layout)
    done = workshop.hialign(
        "ask", "run=runs/llava/qwen2", "pictures/images/00001.png", "What is it?", "max_new_tokens=3"
    )
    assert (done.code, bool(done.out.strip())) == (0, True), done.err
    # a later run finds the language model's own layout again, whatever the first one was asked in
    train(workshop, "experiment=llava", "name=plain", *model, f"model.clip.pretrained={weights}")
    train(workshop, "experiment=llava", "name=chat", *model, "model.from_run=runs/llava/plain", *layout)
    first, chat = (
        (workshop.run(name, "llava") / "model" / "chat_template.jinja").read_text() for name in ("qwen2", "chat")
    )
    assert first == chat
    ends = json.loads((workshop.run("chat", "llava") / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2, 0]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("model.dtype=bf16", "trainer.precision=fp32"), "model.dtype: bf16 needs trainer.precision=bf16"),
        (("model.projector=mlp",), "model: projector: got 'mlp', wanted one of mlp2x_gelu, linear"),
        (("model.clip.nmae=x",), "model.clip.nmae"),
        (("lora.rank=0",), "lora: got Lora(rank=0"),
        (
            ("stages.finetune.train.heads=lora",),
            "stages.finetune.train.heads: lora is for vision, projector, llm, text",
        ),
    ],
)
def test_senseless_models_are_refused_by_key(
    workshop: Any, vicuna: tuple[str, ...], arguments: tuple[str, ...], wanted: str
) -> None:
    done = workshop.hialign(
        "train", "experiment=llava_lora", "name=no", "data=flickr8k", "data.root=pictures", *vicuna, *arguments
    )
    assert done.code == 1
    assert wanted in done.err


def test_chip_trains_llava_1_6_as_a_llava_and_says_so(workshop: Any, checkpoints) -> None:
    """All that the recipe sets, but for sizes; and an adapter does not name a base on which it would not fit."""
    model = ("model=llava_1_6_7b", f"model.checkpoint={checkpoints.llava_next}", f"model.clip.name={checkpoints.clip}")
    stage = ("stages.prefer.steps=1", "stages.prefer.batch_size=2", "stages.prefer.train.llm=lora", "lora.rank=4")
    common = ("experiment=chip", "data=tabletop", "trainer.workers=0", "name=flat")
    done = workshop.hialign("train", *common, *model, *stage)
    assert done.code == 0, done.err
    run = workshop.run("flat", "chip")
    assert "NOTE: the checkpoint is a LlavaNext, read as a Llava" in (run / "log.txt").read_text()
    assert rows(workshop, "chip", "flat")[0]["outer_chosen_reward"] == pytest.approx(0, abs=1e-4)
    plain, info = AutoModelForImageTextToText.from_pretrained(run / "model", output_loading_info=True)
    assert (type(plain).__name__, any(info.values())) == ("LlavaForConditionalGeneration", False)
    done = workshop.hialign("export", "run=runs/chip/flat", "out=flat_adapter", "format=adapter")
    assert done.code == 0, done.err
    under = json.loads((workshop.folder / "flat_adapter" / "base" / "config.json").read_text())
    assert under["model_type"] == "llava"
