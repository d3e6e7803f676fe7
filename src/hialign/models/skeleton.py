"""A Llava and its alignment modules without numbers, on the meta device: names, shapes and dtypes, no download.

What a named checkpoint is made of is kept in architectures.json; a folder's own config is read where there is one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, CLIPTextConfig, CLIPVisionConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from hialign.models.heads import Alignment
from hialign.models.llava import ROWS, projector_activation
from hialign.models.model import BESIDE
from hialign.models.parts import make_projector_linear
from hialign.models.pretrained import dtype_of, pretrained
from hialign.models.root import Root


@dataclass(frozen=True)
class ClipShape:
    """Both towers' configs, and the width of their common space."""

    vision: CLIPVisionConfig
    text: CLIPTextConfig
    embed_dim: int


def clip_shape(name: str) -> ClipShape:
    """Of a Hugging Face CLIP: one that is kept, or a folder."""
    if Path(name).is_dir():
        config = pretrained(AutoConfig, "clip", name)
        return ClipShape(config.vision_config, config.text_config, config.projection_dim)
    kept = _kept("clip", "clip.name", name)
    return ClipShape(CLIPVisionConfig(**kept["vision"]), CLIPTextConfig(**kept["text"]), kept["embed_dim"])


def open_clip_shape(name: str) -> ClipShape:
    """Of open_clip's model ``name``, whose configs come with that package."""
    import open_clip  # seconds to import, and only this function needs it

    config = open_clip.get_model_config(name)
    if config is None or not isinstance(config["vision_cfg"].get("layers"), int):
        raise ValueError(f"clip.name: open_clip has no ViT {name!r} of CLIP's layout; wanted one such as ViT-B-16")
    vision, text = config["vision_cfg"], config["text_cfg"]
    tower = CLIPVisionConfig(
        hidden_size=vision["width"],
        intermediate_size=int(vision["width"] * vision.get("mlp_ratio", 4)),
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["width"] // vision.get("head_width", 64),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
    )
    texts = CLIPTextConfig(
        hidden_size=text["width"],
        intermediate_size=4 * text["width"],
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        vocab_size=text["vocab_size"],
        max_position_embeddings=text["context_length"],
    )
    return ClipShape(tower, texts, config["embed_dim"])


def checkpoint_skeleton(checkpoint: str, *, clip: ClipShape | None, dtype: str = "fp32", embed_dim: int = 768) -> Root:
    """As ``from_checkpoint``: a Llava that is kept, or a folder, with the alignment modules beside it if it has any."""
    if Path(checkpoint).is_dir():
        config = pretrained(AutoConfig, "checkpoint", checkpoint)
        beside = Path(checkpoint) / BESIDE / "alignment.json"
        if beside.is_file():
            return _skeleton(config, json.loads(beside.read_text()), dtype)
    else:
        kept = _kept("llava", "model.checkpoint", checkpoint)
        text = {**_kept("llm", "llm", kept["llm"])["config"], "vocab_size": kept["vocab_size"]}
        config = LlavaConfig(vision_config=clip_shape(kept["vision"]).vision, text_config=text)
    return _skeleton(config, _alignment(config, clip, embed_dim), dtype)


def parts_skeleton(
    llm: str, *, clip: ClipShape, projector: str = "mlp2x_gelu", feature_layer: int = -2, dtype: str = "fp32"
) -> Root:
    """As ``from_parts``: with rows for the image token and, where the tokenizer has none, for padding."""
    if Path(llm).is_dir():
        text, tokenizer = pretrained(AutoConfig, "llm", llm), pretrained(AutoTokenizer, "llm", llm)
        tokens = len(tokenizer) + 1 + (tokenizer.pad_token is None)
    else:
        kept = _kept("llm", "model.llm", llm)
        text, tokens = AutoConfig.for_model(**kept["config"]), kept["tokens"] + 2
    if tokens > text.vocab_size:
        text.vocab_size = -(-tokens // ROWS) * ROWS
    config = LlavaConfig(
        vision_config=clip.vision,
        text_config=text,
        projector_hidden_act=projector_activation(projector),
        vision_feature_layer=feature_layer,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    return _skeleton(config, _alignment(config, clip, 0), dtype)


def _kept(kind: str, field: str, name: str) -> dict[str, Any]:
    table = json.loads(files("hialign.models").joinpath("architectures.json").read_text())[kind]
    if name not in table:
        raise ValueError(
            f"{field}: the architecture of {name!r} is not kept here, which has {', '.join(table)}; give one of these, "
            "or a folder with its config.json"
        )
    found: dict[str, Any] = table[name]
    return found


def _alignment(config: Any, clip: ClipShape | None, embed_dim: int) -> dict[str, Any]:
    return {
        "text_config": None if clip is None else json.loads(clip.text.to_json_string(use_diff=False)),
        "vision_dim": config.vision_config.hidden_size,
        "llm_dim": config.get_text_config().hidden_size,
        "embed_dim": embed_dim if clip is None else clip.embed_dim,
        "temperature": 0.07,
    }


def _skeleton(config: Any, alignment: dict[str, Any], dtype: str) -> Root:
    with torch.device("meta"):
        llava: Any = Llava(config)
        root = Root(llava, Alignment(**alignment))
    llava.to(dtype_of(dtype))
    if config.projector_hidden_act == "linear":  # what tells that its second layer is the identity are its numbers
        second = llava.model.multi_modal_projector.linear_2
        llava.model.multi_modal_projector.linear_2 = second.to_empty(device="cpu")
        make_projector_linear(root)
    return root
