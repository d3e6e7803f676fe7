"""`hialign plan`'s arithmetic against what small models really take: operations, saved activations, optimiser state."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hialign.batch import HallucinatedBatch, LanguageBatch, PairBatch, PreferenceBatch, Tokens
from hialign.losses import chip, dpo
from hialign.models import Lora, Model, add_lora, checkpoint_activations, set_trainable, tiny
from hialign.objectives import Contrastive, Hacl, Halva, NextToken, Preference
from hialign.runner.shapes import passes_of, shapes_of
from hialign.training.cost import Lengths, Shapes, added, flops, similarity

LORA = Lora(4, 8, 0.0)
TOKENS = Lengths(prompt=5, answer=7)
ROWS = 3
PAIRS = ("clip", "projector", "llm")
PROBES = 40  # operations: the chunked losses multiply numbers of one element to learn autocast's dtype


def made(modes: dict[str, str], *, checkpointed: bool = False, **settings: Any) -> tuple[Model, Shapes]:
    """A small model that trains so, and its shapes."""
    model = tiny(seed=0, **{"width": 32, "layers": 3, "image_size": 32, "vocabulary": 600} | settings)
    if adapted := [part for part, mode in modes.items() if mode == "lora"]:
        add_lora(model.root, adapted, LORA, seed=0)
    set_trainable(model.root, modes)
    if checkpointed:
        checkpoint_activations(model.root)
    model.root.train()
    return model, shapes_of(model.root, modes, LORA, checkpointed=checkpointed)


def row_tokens(model: Model, before: int, answer: int, *, images: int = 1, rows: int = ROWS) -> Tokens:
    """Rows of an image, ``before`` words and an answer, all of one length."""
    image: Any = model.root.llava.config.image_token_index
    start = images * model.num_image_tokens + before
    ids = torch.full((rows, start + answer), 17)
    ids[:, : images * model.num_image_tokens] = image
    labels = ids.masked_fill(torch.arange(start + answer) < start, -100)
    return Tokens(ids=ids, mask=torch.ones_like(ids), labels=labels)


def batch_for(objective: Any, model: Model, stream: str = "") -> Any:
    size = model.root.llava.config.vision_config.image_size
    names, pixels = tuple("abc"), torch.randn(ROWS, 3, size, size)
    text = row_tokens(model, TOKENS.prompt, TOKENS.answer)
    if isinstance(objective, NextToken) or stream == "reference":
        return LanguageBatch(records=names, pixel_values=pixels, text=text)
    if isinstance(objective, Contrastive):
        caption = row_tokens(model, TOKENS.prompt, TOKENS.answer, images=0)
        clip_caption = row_tokens(model, 0, TOKENS.answer + 2, images=0)
        both: dict[str, Any] = {"records": names, "pixel_values": pixels, "caption": caption}
        if isinstance(objective, Hacl):
            return HallucinatedBatch(
                **both, clip_caption=clip_caption, hallucinated=caption, clip_hallucinated=clip_caption
            )
        return PairBatch(**both, clip_caption=clip_caption)
    phrases = (text.labels != -100).long()
    return PreferenceBatch(
        records=names,
        pixel_values=pixels,
        corrupted_pixel_values=pixels,
        chosen=text,
        rejected=text,
        starts=torch.full((ROWS,), text.ids.shape[1] - TOKENS.answer),
        chosen_phrases=phrases,
        rejected_phrases=phrases,
    )


def counted(model: Model, objective: Any, batch: Any) -> int:
    """What torch's counter sees of a step: every matrix product, those of attention included."""
    if getattr(objective, "needs_reference", False):
        model.root.keep_reference({name for name, p in model.root.named_parameters() if p.requires_grad})
    # the fused attention of a processor, and a product added in place, are what the counter has no formula for
    own = {torch.ops.aten.addmm_: lambda total, a, b, *rest, out_shape=None, **named: 2 * a[0] * a[1] * b[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=own) as counter:
        model.root(objective, batch).loss_sum.backward()
    return int(counter.get_total_flops())


def reckoned(shapes: Shapes, objective: Any, stream: str = "", *, adapters_off: bool = False) -> float:
    runs = passes_of(objective, stream, shapes, ROWS, TOKENS, adapters_off=adapters_off)
    total = sum((one.total for one in added([flops(shapes, run) for run in runs]).values()), 0.0)
    if isinstance(objective, Contrastive):
        wrong = isinstance(objective, Hacl)
        total += similarity(ROWS, ROWS, shapes.embed, len(objective.pairs), hallucinated=wrong).total
    return total


MODES = {
    "pretrain": {"projector": "full"},
    "finetune": {"projector": "full", "llm": "full"},
    "lora": {"projector": "full", "llm": "lora"},
    "lora_alone": {"llm": "lora"},
    "tower": {"vision": "full", "projector": "full"},
    "all": {"vision": "full", "projector": "full", "llm": "full"},
    "tower_lora": {"vision": "lora", "llm": "lora"},
    "all_lora": {"vision": "lora", "projector": "lora", "llm": "lora"},
}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("modes", MODES.values(), ids=MODES.keys())
def test_the_operations_of_a_language_step_are_those_that_torch_counts(modes: Any, checkpointed: bool) -> None:
    model, shapes = made(modes, checkpointed=checkpointed)
    objective = NextToken()
    assert counted(model, objective, batch_for(objective, model)) == reckoned(shapes, objective)


def preference(loss: Any, **settings: Any) -> Preference:
    return Preference(loss, **settings)


PREFERENCES = {
    "dpo": partial(preference, dpo),
    "dpo_apart": partial(preference, dpo, shared_prefix=False),
    "chip": partial(preference, chip),
}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("how", ["finetune", "lora_alone", "all"])
@pytest.mark.parametrize("new", PREFERENCES.values(), ids=PREFERENCES.keys())
def test_the_operations_of_a_preference_step_are_those_that_torch_counts(
    new: Any, how: str, checkpointed: bool
) -> None:
    model, shapes = made(MODES[how], checkpointed=checkpointed)
    objective = new()
    # adapters that have learnt nothing yet are left off in the reference
    beyond = counted(model, objective, batch_for(objective, model)) - reckoned(shapes, objective, adapters_off=True)
    assert 0 <= beyond <= PROBES


@pytest.mark.parametrize("stream", ["preference", "reference"])
@pytest.mark.parametrize("kl", ["vocabulary", "target"])
def test_the_operations_of_halvas_streams_are_those_that_torch_counts(kl: str, stream: str) -> None:
    model, shapes = made(MODES["lora_alone"])
    objective = Halva(kl=kl)
    beyond = counted(model, objective, batch_for(objective, model, stream))
    beyond -= int(reckoned(shapes, objective, stream, adapters_off=True))
    assert 0 <= beyond <= PROBES


CONTRASTS = {
    **{pair: partial(Contrastive, [pair]) for pair in PAIRS},
    "default": Contrastive,
    "hacl": Hacl,
    "all": partial(Hacl, list(PAIRS)),
}


@pytest.mark.parametrize("how", ["pretrain", "tower", "all", "tower_lora"])
@pytest.mark.parametrize("new", CONTRASTS.values(), ids=CONTRASTS.keys())
def test_the_operations_of_a_contrastive_step_are_those_that_torch_counts(new: Any, how: str) -> None:
    model, shapes = made(MODES[how] | {"heads": "full"})
    objective = new()
    assert counted(model, objective, batch_for(objective, model)) == reckoned(shapes, objective)
