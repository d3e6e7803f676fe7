"""A model and a stage's objectives as the numbers that `training.cost` reckons with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hialign.models import Lora, Root, lora_parts, part_of
from hialign.objectives import Contrastive, Hacl, Halva, NextToken, Objective, Preference
from hialign.solvers import Level
from hialign.training.cost import (
    Lengths,
    Pass,
    Shapes,
    Stack,
    anchor_passes,
    contrastive_passes,
    language_passes,
    preference_passes,
)


def shapes_of(root: Root, modes: Mapping[str, str], lora: Lora, *, checkpointed: bool) -> Shapes:
    """The model's shapes, on whatever device it lies; ``modes`` says of each part how it trains."""
    config: Any = root.llava.config
    text, vision = config.get_text_config(), config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    layer = config.vision_feature_layer
    adapted = lora_parts(root)

    def settings(part: str) -> dict[str, Any]:
        rank = lora.rank if part in adapted else 0
        return {"mode": modes.get(part, "frozen"), "rank": rank, "dropout": lora.dropout if rank else 0.0}

    projector = Stack(0, text.hidden_size, text.hidden_size, 1, 0, 0, gated=False, **settings("projector"))
    tower: Any = root.alignment.text
    head: Any = next(iter(root.alignment.heads.values()))
    return Shapes(
        vision=_clip(vision, checkpointed=checkpointed, **settings("vision")),
        patches=patches,
        patch_pixels=vision.num_channels * vision.patch_size**2,
        image_tokens=patches + (config.vision_feature_select_strategy != "default"),
        feature_layers=layer if layer >= 0 else vision.num_hidden_layers + 1 + layer,
        projector=projector,
        llm=_llama(text, checkpointed=checkpointed, **settings("llm")),
        vocabulary=text.vocab_size,
        tied=root.llava.lm_head.weight is root.llava.get_input_embeddings().weight,
        fixed_second=config.projector_hidden_act == "linear",
        text=None if tower is None else _clip(tower.config, checkpointed=False, **settings("text")),
        embed=head.weight.shape[0],
        heads_train=modes.get("heads") == "full",
    )


def _llama(config: Any, **settings: Any) -> Stack:
    each = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Stack(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        hidden=config.intermediate_size,
        heads=config.num_attention_heads,
        query_width=each * config.num_attention_heads,
        key_width=each * config.num_key_value_heads,
        gated=True,
        **settings,
    )


def _clip(config: Any, **settings: Any) -> Stack:
    return Stack(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        hidden=config.intermediate_size,
        heads=config.num_attention_heads,
        query_width=config.hidden_size,
        key_width=config.hidden_size,
        gated=False,
        **settings,
    )


def passes_of(
    objective: Objective, stream: str, shapes: Shapes, rows: int, tokens: Lengths, *, adapters_off: bool
) -> list[Pass]:
    """What the objective runs of the model for ``rows`` rows of ``stream``.

    ``adapters_off``: the reference is the model without its adapters. A pair's caption is the answer of ``tokens``.
    ``ValueError`` for an objective that is not one of the package's: nobody knows what it runs.
    """
    if isinstance(objective, NextToken):
        return language_passes(shapes, rows, tokens)
    if isinstance(objective, Preference):
        return preference_passes(
            shapes,
            rows,
            tokens,
            shared=objective.shared_prefix,
            reference=objective.needs_reference,
            corrupted="policy_corrupted" in objective.asked,
            divergences="chosen_kl" in objective.asked,
            adapters_off=adapters_off,
        )
    if isinstance(objective, Halva) and stream == "reference":
        return anchor_passes(shapes, rows, tokens, vocabulary=objective.kl == "vocabulary", adapters_off=adapters_off)
    if isinstance(objective, Halva):
        shared = objective.shared_prefix
        settings = {"reference": False, "corrupted": False, "divergences": False, "adapters_off": adapters_off}
        return preference_passes(shapes, rows, tokens, shared=shared, **settings)
    if isinstance(objective, Contrastive):
        wrong = isinstance(objective, Hacl)
        caption, clip_caption = tokens.prompt + tokens.answer, min(77, tokens.answer + 2)
        return contrastive_passes(shapes, rows, caption, clip_caption, objective.pairs, hallucinated=wrong)
    raise ValueError(f"{type(objective).__name__}: what it runs of the model is not known; wanted one of hialign's own")


def reached_by(objectives: Mapping[Level, Objective], root: Root, shapes: Shapes) -> dict[Level, set[str]]:
    """The parameters that train and that each level's loss reaches, as the probe of a run would find them."""
    trained = [name for name, parameter in root.named_parameters() if parameter.requires_grad]
    tied = shapes.tied
    found: dict[Level, set[str]] = {}
    for level, objective in objectives.items():
        pairs = objective.pairs if isinstance(objective, Contrastive) else ()
        free = isinstance(objective, Contrastive) and objective.temperature is None
        found[level] = {
            name
            for name in trained
            if (_in_pairs(name, pairs, free, shapes, tied) if pairs else _in_task(name, shapes))
        }
    return found


def _in_task(name: str, shapes: Shapes) -> bool:
    part = part_of(name)
    return part in ("projector", "llm") or (part == "vision" and _before_features(name, shapes))


def _in_pairs(name: str, pairs: Sequence[str], free: bool, shapes: Shapes, tied: bool) -> bool:
    part = part_of(name)
    if part == "vision":
        return "clip" in pairs or _before_features(name, shapes)
    if part == "projector":
        return set(pairs) != {"clip"}
    if part == "llm":
        embedding = ".embed_tokens." in name or (tied and ".lm_head." in name)
        return ("llm" in pairs and ".lm_head." not in name) or (embedding and set(pairs) != {"clip"})
    if part == "heads":
        return name.removeprefix("alignment.heads.").partition("_")[0] in pairs
    return "clip" in pairs if part == "text" else free


def _before_features(name: str, shapes: Shapes) -> bool:
    """Whether a weight of the tower lies before the layer that the projector reads."""
    if ".layers." not in name:
        return ".post_layernorm." not in name
    return int(name.partition(".layers.")[2].partition(".")[0]) < shapes.feature_layers
