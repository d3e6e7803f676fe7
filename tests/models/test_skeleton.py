"""A model without numbers has the names, shapes and dtypes of the model that would be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hialign.models import clip_from_hf, clip_from_open_clip, count, from_parts, load
from hialign.models.skeleton import checkpoint_skeleton, clip_shape, open_clip_shape, parts_skeleton


def described(root: Any) -> dict[str, Any]:
    return {name: (tuple(p.shape), p.dtype) for name, p in root.named_parameters()}


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
@pytest.mark.parametrize("llm", ["llama", "qwen2"])
def test_parts_in_folders_have_the_skeleton_of_the_model_they_make(checkpoints: Any, llm: str, projector: str) -> None:
    name = getattr(checkpoints, llm)
    made = from_parts(clip=clip_from_hf(checkpoints.clip), llm=name, seed=0, projector=projector, dtype="bf16")
    bare = parts_skeleton(name, clip=clip_shape(checkpoints.clip), projector=projector, dtype="bf16")
    assert described(bare) == described(made.root)
    assert next(bare.llava.model.language_model.parameters()).is_meta


def test_a_saved_model_has_the_skeleton_of_the_one_that_is_loaded(folder: Path) -> None:
    assert described(checkpoint_skeleton(str(folder), clip=None)) == described(load(str(folder)).root)


def test_a_tower_of_open_clip_has_the_skeleton_of_its_weights(checkpoints: Any, tmp_path: Path) -> None:
    checkpoints.open_clip(tmp_path, "skeletal", quick_gelu=True)
    towers, shape = clip_from_open_clip("skeletal", None), open_clip_shape("skeletal")
    with torch.device("meta"):
        kinds = type(towers.vision)(shape.vision), type(towers.text)(shape.text)
    for made, bare in zip((towers.vision, towers.text), kinds, strict=True):
        assert {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in bare.named_parameters()}
    assert shape.embed_dim == len(towers.image_projection)


@pytest.mark.parametrize(
    ("checkpoint", "parameters"),
    [("llava-hf/llava-1.5-7b-hf", 7_063_427_072), ("llava-hf/llava-1.5-13b-hf", 13_351_494_656)],
)
def test_llavas_have_as_many_parameters_as_on_the_hub(checkpoint: str, parameters: int) -> None:
    rows = count(checkpoint_skeleton(checkpoint, clip=None))
    assert sum(row.total for row in rows if row.part in ("vision", "projector", "llm")) == parameters


def test_qwen_has_as_many_parameters_as_on_the_hub() -> None:
    rows = count(parts_skeleton("Qwen/Qwen2-0.5B-Instruct", clip=open_clip_shape("ViT-B-16")))
    assert {row.part: row.total for row in rows}["llm"] == 494_032_768


def test_what_is_not_kept_is_refused_with_what_is() -> None:
    with pytest.raises(ValueError, match=r"model\.llm: .*'lmsys/vicuna-33b'.*lmsys/vicuna-7b-v1.5.*or a folder"):
        parts_skeleton("lmsys/vicuna-33b", clip=clip_shape("openai/clip-vit-large-patch14-336"))
    with pytest.raises(ValueError, match=r"clip\.name: open_clip has no ViT 'RN50'"):
        open_clip_shape("RN50")
