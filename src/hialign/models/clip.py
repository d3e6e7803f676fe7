"""CLIP's two towers, from Hugging Face or from open_clip: the same numbers under Hugging Face's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
)

from hialign.models.pretrained import pretrained, pretrained_weights
from hialign.models.tokenizer import clip_tokenizer

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ClipTowers:
    """Both towers with the projections into their common space, and what images and texts go through before."""

    vision: CLIPVisionModel
    text: CLIPTextModel
    image_projection: Tensor  # (embed_dim, vision width)
    text_projection: Tensor  # (embed_dim, text width)
    temperature: float
    image_processor: Any  # a CLIPImageProcessor
    tokenizer: PreTrainedTokenizerBase  # the text tower's


def clip_from_hf(name: str, revision: str | None = None) -> ClipTowers:
    """The towers of a Hugging Face CLIP, a hub name (``revision`` a commit of it) or a folder, in float32.

    ``ValueError`` for a model that is no CLIP, and for weights that do not fill it.
    """
    kind = pretrained(AutoConfig, "clip", name, revision=revision).model_type
    if kind != "clip":
        raise ValueError(f"clip: {name} is a {kind!r} model, wanted a CLIP such as openai/clip-vit-large-patch14-336")
    model = pretrained_weights(CLIPModel, "clip", name, revision=revision, dtype=torch.float32)
    return ClipTowers(
        vision=model.vision_model,
        text=model.text_model,
        image_projection=model.visual_projection.weight.detach(),
        text_projection=model.text_projection.weight.detach(),
        temperature=float(1 / model.logit_scale.detach().exp()),
        image_processor=pretrained(AutoImageProcessor, "clip", name, revision=revision),
        tokenizer=pretrained(AutoTokenizer, "clip", name, revision=revision),
    )


def clip_from_open_clip(name: str, pretrained: str | None) -> ClipTowers:
    """The towers of the open_clip model ``name`` with the weights ``pretrained`` (a tag or a file), exactly.

    ``pretrained=None`` gives random weights and is for tests. ``ValueError`` for an unknown name or tag, and for models
    that CLIP's own layout cannot hold: timm or ResNet towers, SigLIP's pooling, other text encoders.
    """
    import open_clip  # seconds to import, and only this function needs it

    if open_clip.get_model_config(name) is None:
        raise ValueError(f"clip: open_clip has no model {name!r}; `open_clip.list_models()` names them")
    try:
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=pretrained is not None)
    except (RuntimeError, FileNotFoundError) as error:
        raise ValueError(f"clip: open_clip cannot load {name!r} with pretrained={pretrained!r}: {error}") from error
    _require_clip_layout(model, name)
    if type(open_clip.get_tokenizer(name)) is not open_clip.SimpleTokenizer:
        raise ValueError(f"clip: open_clip's {name!r} reads text through another tokenizer than CLIP's")
    config = open_clip.get_model_config(name)
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    settings = open_clip.get_model_preprocess_cfg(model)
    return ClipTowers(
        vision=_vision(model.visual, activation),
        text=_text(model, activation),
        image_projection=model.visual.proj.detach().T.contiguous(),
        text_projection=model.text_projection.detach().T.contiguous(),
        temperature=float(1 / model.logit_scale.detach().exp()),
        image_processor=_image_processor(settings),
        tokenizer=clip_tokenizer(),
    )


def _require_clip_layout(model: Any, name: str) -> None:
    """Refuses what would load without an error and give other numbers."""
    visual = model.visual
    plain = (
        type(model).__name__ == "CLIP"
        and type(visual).__name__ == "VisionTransformer"
        and visual.pool_type == "tok"
        and not visual.final_ln_after_pool
        and visual.attn_pool is None
        and isinstance(visual.ln_pre, nn.LayerNorm)
        and visual.proj is not None
        and model.text_pool_type == "argmax"
        and isinstance(model.text_projection, Tensor)
    )
    if not plain:
        raise ValueError(
            f"clip: open_clip's {name!r} is not laid out as CLIP's ViT is; wanted one such as ViT-B-32 or ViT-L-14-336"
        )


def _vision(visual: Any, activation: str) -> CLIPVisionModel:
    block = visual.transformer.resblocks[0]
    config = CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=visual.conv1.kernel_size[0],
        hidden_act=activation,
        layer_norm_eps=visual.ln_pre.eps,
        projection_dim=visual.proj.shape[1],
    )
    state = {
        "embeddings.class_embedding": visual.class_embedding,
        "embeddings.patch_embedding.weight": visual.conv1.weight,
        "embeddings.position_embedding.weight": visual.positional_embedding,
        **_norm("pre_layrnorm", visual.ln_pre),  # Hugging Face's spelling
        **_norm("post_layernorm", visual.ln_post),
        **_blocks(visual.transformer.resblocks),
    }
    return _filled(CLIPVisionModel(config), state)


def _text(model: Any, activation: str) -> CLIPTextModel:
    block = model.transformer.resblocks[0]
    end = model.vocab_size - 1  # CLIP's end token is its last
    config = CLIPTextConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.token_embedding.embedding_dim,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(model.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        max_position_embeddings=model.context_length,
        hidden_act=activation,
        layer_norm_eps=model.ln_final.eps,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=0,
    )
    state = {
        "embeddings.token_embedding.weight": model.token_embedding.weight,
        "embeddings.position_embedding.weight": model.positional_embedding,
        **_norm("final_layer_norm", model.ln_final),
        **_blocks(model.transformer.resblocks),
    }
    return _filled(CLIPTextModel(config), state)


def _blocks(blocks: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        layer = f"encoder.layers.{number}"
        for kind in ("weight", "bias"):
            # open_clip keeps query, key and value in one matrix
            parts = getattr(block.attn, f"in_proj_{kind}").chunk(3)
            state |= {f"{layer}.self_attn.{side}_proj.{kind}": part for side, part in zip("qkv", parts, strict=True)}
        state |= _linear(f"{layer}.self_attn.out_proj", block.attn.out_proj)
        state |= _linear(f"{layer}.mlp.fc1", block.mlp.c_fc) | _linear(f"{layer}.mlp.fc2", block.mlp.c_proj)
        state |= _norm(f"{layer}.layer_norm1", block.ln_1) | _norm(f"{layer}.layer_norm2", block.ln_2)
    return state


def _linear(name: str, module: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


_norm = _linear  # a layer norm has the same two


def _filled(module: M, state: dict[str, Tensor]) -> M:
    """``module`` with ``state``, every parameter of it, copied in."""
    with torch.no_grad():
        module.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, strict=True)
    return module.eval()


def _image_processor(settings: dict[str, Any]) -> CLIPImageProcessor:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return CLIPImageProcessor(
        size={"shortest_edge": height},
        crop_size={"height": height, "width": width},
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )
