"""CLIP's towers, Hugging Face's and open_clip's, give the numbers that their own code gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from hialign.models import clip_from_hf, clip_from_open_clip

TEXTS = ["a dog runs", "two cups of tea on a table"]


@pytest.fixture(params=[True, False], ids=["quick_gelu", "gelu"])
def name_and_model(request: pytest.FixtureRequest, tmp_path: Path, checkpoints):
    """A small model of open_clip's with weights that no layer hides, registered and saved."""
    name = f"tiny-{request.param}"
    return name, *checkpoints.open_clip(tmp_path, name, quick_gelu=request.param)


def test_every_layer_of_the_image_tower_is_open_clips(name_and_model):
    name, weights, model = name_and_model
    towers = clip_from_open_clip(name, weights)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = towers.vision(pixels, output_hidden_states=True)
        theirs = model.visual.forward_intermediates(pixels, indices=[0, 1, 2], output_fmt="NLC")["image_intermediates"]
        for layer, expected in enumerate(theirs):
            torch.testing.assert_close(ours.hidden_states[layer + 1][:, 1:], expected, atol=1e-5, rtol=0)
        embedded = ours.pooler_output @ towers.image_projection.T
        torch.testing.assert_close(embedded, model.encode_image(pixels), atol=1e-5, rtol=1e-5)


def test_the_text_tower_is_open_clips(name_and_model):
    import open_clip

    name, weights, model = name_and_model
    towers = clip_from_open_clip(name, weights)
    ids = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    with torch.no_grad():
        embedded = towers.text(input_ids=ids).pooler_output @ towers.text_projection.T
        torch.testing.assert_close(embedded, model.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert towers.temperature == pytest.approx(1 / model.logit_scale.exp().item())


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [("ViT-B-33", None, "open_clip has no model 'ViT-B-33'"), ("RN50", None, "not laid out as CLIP's ViT")],
)
def test_what_clips_layout_cannot_hold_is_refused(name: str, pretrained: str | None, message: str):
    with pytest.raises(ValueError, match=message):
        clip_from_open_clip(name, pretrained)


def test_the_text_tower_reads_what_open_clips_tokenizer_writes(name_and_model):
    import open_clip

    tokenizer = clip_from_open_clip(*name_and_model[:2]).tokenizer
    for text in [*TEXTS, "Two  CUPS of tea, the children's café no. 12!!", "naïve 東京 😀 it's"]:
        row = open_clip.get_tokenizer("ViT-B-32")([text])[0].tolist()
        assert tokenizer(text)["input_ids"] == row[: row.index(tokenizer.eos_token_id) + 1]


def test_a_clip_of_hugging_face_gives_its_own_embeddings(checkpoints):
    whole, towers = CLIPModel.from_pretrained(checkpoints.clip).eval(), clip_from_hf(checkpoints.clip)
    pixels, ids = torch.randn(2, 3, 32, 32), towers.tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        images, texts = towers.vision(pixels).pooler_output, towers.text(input_ids=ids).pooler_output
        theirs = whole(input_ids=ids, pixel_values=pixels)
    for ours, wanted in (
        (images @ towers.image_projection.T, theirs.image_embeds),
        (texts @ towers.text_projection.T, theirs.text_embeds),
    ):
        torch.testing.assert_close(torch.nn.functional.normalize(ours, dim=-1), wanted, atol=1e-6, rtol=0)
    assert towers.temperature == pytest.approx(1 / whole.logit_scale.exp().item())


def test_a_model_that_is_no_clip_is_refused(checkpoints):
    with pytest.raises(ValueError, match="is a 'llama' model, wanted a CLIP"):
        clip_from_hf(checkpoints.llama)


def test_a_clip_that_lacks_a_weight_is_refused(checkpoints, tmp_path):
    shutil.copytree(checkpoints.clip, tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys.*visual_projection"):
        clip_from_hf(str(tmp_path / "clip"))
