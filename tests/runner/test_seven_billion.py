"""The LLaVA recipe at its full size, on the meta device: shapes, what trains, one step; no memory and no download."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hialign.batch import LanguageBatch, Tokens
from hialign.models import Lora, Root, add_lora, checkpoint_activations, label_of, part_of, set_trainable
from hialign.models.skeleton import checkpoint_skeleton, clip_shape
from hialign.runner.assemble import _rates, trained_parts
from hialign.training import Optimisation
from hialign.training.optim import adamw

VOCABULARY = 32_064  # Vicuna's 32,000 tokens, an image and padding, made a multiple of 64
PROJECTOR = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
# LoRA of rank 128 on q, k, v, o (4096 x 4096) and gate, up, down (4096 x 11008) of 32 layers
LORA = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
LLM = 6_738_415_616 + 2 * 64 * 4096  # Vicuna 7B as published, and 64 rows more in both matrices


RATES = {
    ("llava", "pretrain"): {"projector": 1e-3},
    ("llava", "finetune"): {"projector": 2e-5, "llm": 2e-5},
    ("llava_lora", "pretrain"): {"projector": 1e-3},
    ("llava_lora", "finetune"): {"projector": 2e-5, "llm": 2e-4},
}


@pytest.fixture
def root() -> Root:
    """LLaVA-1.5 7B's architecture, built without numbers."""
    return checkpoint_skeleton("llava-hf/llava-1.5-7b-hf", clip=clip_shape("openai/clip-vit-large-patch14-336"))


def sizes(root: Root, *, trainable: bool = False) -> Counter[str]:
    counted: Counter[str] = Counter()
    for name, parameter in root.named_parameters():
        if parameter.requires_grad or not trainable:
            counted[label_of(name)] += parameter.numel()
    return counted


def test_the_parts_have_the_published_sizes(root):
    counted = sizes(root)
    llava = sum(counted[part] for part in ("vision", "projector", "llm"))
    assert llava == 7_063_427_072
    assert LORA == 319_815_680
    assert counted["projector"] == PROJECTOR == 20_979_712
    assert counted["llm"] == LLM


@pytest.mark.parametrize(
    ("experiment", "stage", "trains"),
    [
        ("llava", "pretrain", {"projector": PROJECTOR}),
        ("llava", "finetune", {"projector": PROJECTOR, "llm": LLM}),
        ("llava_lora", "pretrain", {"projector": PROJECTOR}),
        ("llava_lora", "finetune", {"projector": PROJECTOR, "llm LoRA": LORA}),
    ],
)
def test_a_step_by_parts_of_every_stage_of_the_recipe_fits_its_shapes(composed, root, experiment, stage, trains):
    config = composed(f"experiment={experiment}", "model=vicuna_7b", "data=llava_instruct", "outer=instruct")
    adapted = trained_parts(config, "lora")
    if adapted:
        add_lora(root, adapted, Lora(**config.lora), seed=0)
    node = config.stages[stage]
    set_trainable(root, dict(node.train))
    assert sizes(root, trainable=True) == trains
    if config.trainer.gradient_checkpointing:
        checkpoint_activations(root)
    root.train()

    parameters = {name: p for name, p in root.named_parameters() if p.requires_grad}
    rates = _rates(SimpleNamespace(root=root), node)  # type: ignore[arg-type]
    assert {part_of(name): rate for name, rate in rates.items()} == RATES[experiment, stage]
    optimizer = adamw(parameters, rates, Optimisation(steps=1))
    loss = root(next_token_by_parts, rows_of(2, length=576 + 64))
    loss.backward()
    assert {name for name, p in root.named_parameters() if p.grad is not None} == set(parameters)
    optimizer.step()
    assert set(optimizer.state) == set(parameters.values())


def rows_of(rows: int, *, length: int) -> LanguageBatch:
    ids = torch.zeros(rows, length, dtype=torch.int64, device="meta")
    pixels = torch.zeros(rows, 3, 336, 336, device="meta")
    text = Tokens(ids=ids, mask=torch.ones_like(ids), labels=ids)
    return LanguageBatch(records=("",) * rows, pixel_values=pixels, text=text)


def next_token_by_parts(root: Any, batch: LanguageBatch) -> torch.Tensor:
    """The loss of the language level, from the model's parts.

    Llava's own forward and our loss count image tokens and labels by their values, of which the meta device has none;
    here the image tokens come first, and every position behind them has a label.
    """
    _, image = root._image_states(batch.pixel_values, projected=True)
    words = root.llava.get_input_embeddings()(batch.text.ids[:, image.shape[1] :])
    rows = torch.cat([image, words], dim=1)
    causal = rows.new_zeros(1, 1, rows.shape[1], rows.shape[1])  # a mask of four axes is taken as it is, unread
    hidden = root.llava.model.language_model(inputs_embeds=rows, attention_mask=causal, use_cache=False)
    logits = root.llava.lm_head(hidden.last_hidden_state[:, image.shape[1] - 1 : -1])
    assert image.shape == (len(batch), 576, 4096)
    assert logits.shape == (len(batch), 64, VOCABULARY)
    targets = batch.text.ids[:, image.shape[1] :]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
