"""LLaVA-1.6 read as a Llava: one view of an image at the tower's resolution, none of its tiles."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, LlavaConfig, LlavaImageProcessor, LlavaNextConfig

from hialign.models.pretrained import pretrained

NEWLINE = "image_newline"  # ends each row of tiles, so that one view has no place for it
NOTE = (
    f"the checkpoint is a LlavaNext, read as a Llava: an image is one view without tiles, and {NEWLINE} is left out. "
    "What is saved is a Llava"
)


def is_llava_next(name: str, revision: str | None) -> bool:
    """Whether the checkpoint ``name`` says that it is a LlavaNext."""
    return isinstance(pretrained(AutoConfig, "checkpoint", name, revision=revision), LlavaNextConfig)


def flat_config(config: LlavaNextConfig) -> LlavaConfig:
    """The Llava of the same tower, projector and language model.

    Source: LVUGAI/CHiP@e7f5193, scripts/chip.sh, which trains LLaVA-1.6's weights on images put onto a square, with as
        many tokens each as the tower has patches.
    Differs: nothing.
    """
    shared = (
        *("vision_config", "text_config", "image_token_index", "projector_hidden_act", "multimodal_projector_bias"),
        *("vision_feature_layer", "vision_feature_select_strategy", "tie_word_embeddings"),
    )
    return LlavaConfig(**{key: getattr(config, key) for key in shared})


def flat_image_processor(image_processor: Any) -> Any:
    """The image processor that resizes, crops and normalises as LlavaNext's, into one view instead of tiles."""
    left = ("image_processor_type", "processor_class", "image_grid_pinpoints", "do_pad")
    return LlavaImageProcessor(**{k: v for k, v in image_processor.to_dict().items() if k not in left}, do_pad=False)
