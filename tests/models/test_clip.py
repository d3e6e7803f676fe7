"""open_clip's towers give the same numbers as Hugging Face models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hialign.models.clip import clip_from_open_clip

TEXTS = ["a dog runs", "two cups of tea on a table"]


@pytest.fixture(params=[True, False], ids=["quick_gelu", "gelu"])
def name_and_model(request: pytest.FixtureRequest, tmp_path: Path):
    """A small model of open_clip's with weights that no layer hides, registered and saved."""
    import open_clip

    name = f"tiny-{request.param}"
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        "quick_gelu": request.param,
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return name, str(tmp_path / "weights.pt"), model


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
