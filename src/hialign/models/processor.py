"""The Llava's processor: what images and text go through, the same in training, in generation and after a reload."""

from __future__ import annotations

from typing import Any

from transformers import LlavaImageProcessor, LlavaProcessor, PreTrainedTokenizerBase

IMAGE_ASPECTS = ("square", "pad")


def with_aspect(image_processor: Any, aspect: str) -> Any:
    """The image processor that does the same but for what it makes of an image that is no square.

    ``square``: the shorter side is resized and the middle cut out, as CLIP does. ``pad``: the image comes onto a square
    of the mean colour first. ``ValueError`` for a processor that has no mean colour or no crop.

    Source: process_images in llava/mm_utils.py@c121f04.
    """
    if aspect not in IMAGE_ASPECTS:
        raise ValueError(f"image_aspect={aspect!r}: wanted one of {', '.join(IMAGE_ASPECTS)}")
    if bool(getattr(image_processor, "do_pad", False)) == (aspect == "pad"):
        return image_processor
    settings = image_processor.to_dict()
    if not settings.get("image_mean") or not settings.get("do_center_crop"):
        raise ValueError(
            f"image_aspect={aspect!r}: {type(image_processor).__name__} does not resize and crop as CLIP's does; use "
            f"image_aspect={'square' if aspect == 'pad' else 'pad'}"
        )
    kept = {key: value for key, value in settings.items() if key not in ("image_processor_type", "processor_class")}
    return LlavaImageProcessor(**{**kept, "do_pad": aspect == "pad"})


def llava_processor(
    image_processor: Any, tokenizer: PreTrainedTokenizerBase, config: Any, *, class_token: bool, chat_template: str
) -> LlavaProcessor:
    """The processor that writes as many placeholders for an image as the tower of ``config`` gives features."""
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(class_token),  # whose default of 0 forgets CLIP's class token
        chat_template=chat_template,
    )
