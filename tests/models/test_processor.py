"""What becomes of an image that is no square, in our processors as in LLaVA's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor, SiglipImageProcessor

from hialign.models import with_aspect

SMALL = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8))


def read(processor, image):
    return processor(images=[image], return_tensors="pt")["pixel_values"]


def on_a_square(image: Image.Image) -> Image.Image:
    """By hand: the image in the middle of a square of CLIP's mean colour, which is (122, 116, 104)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("size", [(40, 20), (21, 50), (64, 64), (33, 32)])
def test_pad_keeps_the_whole_image_on_a_square_of_the_mean_colour(size):
    image = noise(*size)
    assert torch.equal(read(with_aspect(SMALL, "pad"), image), read(SMALL, on_a_square(image)))
    assert torch.equal(read(with_aspect(SMALL, "square"), image), read(SMALL, image))
    assert torch.equal(read(SMALL, image), read(with_aspect(SMALL, "pad"), image)) == (size == (64, 64))


def test_a_padding_processor_is_saved_loaded_and_turned_back(tmp_path):
    with_aspect(SMALL, "pad").save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    image = noise(40, 20)
    assert torch.equal(read(again, image), read(SMALL, on_a_square(image)))
    assert with_aspect(again, "pad") is again
    assert torch.equal(read(with_aspect(again, "square"), image), read(SMALL, image))


def test_a_processor_that_is_not_clips_is_left_alone_or_refused():
    other = SiglipImageProcessor()
    assert with_aspect(other, "square") is other
    with pytest.raises(ValueError, match=r"SiglipImageProcessor does not resize and crop as CLIP's does; use .*square"):
        with_aspect(other, "pad")
    with pytest.raises(ValueError, match="image_aspect='anyres': wanted one of square, pad"):
        with_aspect(SMALL, "anyres")
