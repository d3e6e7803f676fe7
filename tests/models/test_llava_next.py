"""LLaVA-1.6's weights in a Llava: the same parts, an image in one view."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)

from hialign.models import Model, clip_from_hf, from_checkpoint, save


@pytest.fixture(scope="module")
def read(checkpoints) -> Model:
    """Only to be read."""
    made = from_checkpoint(checkpoint=checkpoints.llava_next, seed=0)
    made.root.eval().requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def original(checkpoints) -> Any:
    return LlavaNextForConditionalGeneration.from_pretrained(checkpoints.llava_next).eval().requires_grad_(False)


def picture(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def inputs(model: Model, width: int = 64, height: int = 64) -> Any:
    return model.processor(images=[picture(width, height)], text=["<image> a dog"], return_tensors="pt")


def test_logits_are_those_of_a_llava_put_together_by_hand(read, original):
    config = LlavaConfig(
        vision_config=original.config.vision_config,
        text_config=original.config.text_config,
        image_token_index=original.config.image_token_index,
    )
    by_hand = LlavaForConditionalGeneration(config).eval()
    weights = {name: tensor for name, tensor in original.state_dict().items() if name != "model.image_newline"}
    by_hand.load_state_dict(weights)
    batch = inputs(read)
    with torch.no_grad():
        torch.testing.assert_close(read.root.llava(**batch).logits, by_hand(**batch).logits, rtol=1e-5, atol=1e-5)


def test_logits_are_those_of_llava_nexts_own_parts_on_one_view(read, original):
    batch = inputs(read)
    with torch.no_grad():
        states = original.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
        image = original.model.multi_modal_projector(states[:, 1:])  # without the class token
        rows = original.get_input_embeddings()(batch["input_ids"])
        rows[batch["input_ids"] == original.config.image_token_index] = image.flatten(0, 1)
        wanted = original.lm_head(original.model.language_model(inputs_embeds=rows).last_hidden_state)
        torch.testing.assert_close(read.root.llava(**batch).logits, wanted, rtol=1e-5, atol=1e-5)


def test_an_image_is_the_view_that_llava_next_has_beside_its_tiles(read, checkpoints):
    theirs = AutoProcessor.from_pretrained(checkpoints.llava_next)
    tiled = theirs(images=[picture(64, 64)], text=["<image> a dog"], return_tensors="pt")
    flat = inputs(read)
    assert flat["pixel_values"].shape == (1, 3, 32, 32)
    torch.testing.assert_close(flat["pixel_values"], tiled["pixel_values"][:, 0])
    counts = [int((batch["input_ids"] == theirs.image_token_id).sum()) for batch in (flat, tiled)]
    assert counts == [read.num_image_tokens, 16 + 64 + 8]  # 2 x 2 tiles of 16, a newline for each of their 8 rows
    assert read.num_image_tokens == 16
    assert inputs(read, 90, 40)["input_ids"].shape == flat["input_ids"].shape  # whatever the image's shape


def test_what_is_saved_is_a_llava_and_says_nothing_of_tiles(read, tmp_path):
    save(read, tmp_path / "model")
    plain, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert isinstance(plain, LlavaForConditionalGeneration)
    assert not any(info.values())
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    batch, again = inputs(read), processor(images=[picture(64, 64)], text=["<image> a dog"], return_tensors="pt")
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    with torch.no_grad():
        assert torch.equal(plain.eval()(**batch).logits, read.root.llava(**batch).logits)
    again = from_checkpoint(checkpoint=str(tmp_path / "model"), seed=0)
    assert (bool(read.note), again.note) == (True, "")


def test_it_takes_a_clip_and_asks_as_its_stage_does(read, checkpoints):
    made = from_checkpoint(checkpoint=checkpoints.llava_next, clip=clip_from_hf(checkpoints.clip), seed=0)
    assert made.clip_tokenizer is not None
    padded = made.asked(chat_template="{{ 'x' }}", end_ids=(), image_aspect="pad")
    assert padded.note == read.note
    square = Image.new("RGB", (80, 80), (122, 116, 104))
    square.paste(picture(80, 40), (0, 20))
    ours, by_hand = padded.processor.image_processor, read.processor.image_processor
    torch.testing.assert_close(
        ours(images=[picture(80, 40)], return_tensors="pt")["pixel_values"],
        by_hand(images=[square], return_tensors="pt")["pixel_values"],
    )


def test_weights_that_lack_more_or_have_more_than_the_newline_are_refused(original, checkpoints, tmp_path):
    shutil.copytree(checkpoints.llava_next, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    weights = load_file(file)
    weights["second_newline"] = weights["image_newline"].clone()
    del weights["multi_modal_projector.linear_2.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"not this model's: .*linear_2\.bias.*'unexpected_keys': \['second_newline'\]"
    ):
        from_checkpoint(checkpoint=str(tmp_path / "cut"), seed=0)
