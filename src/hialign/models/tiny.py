"""A Llava of about a million random parameters, with everything around it, built without downloads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from hialign.models.heads import Alignment
from hialign.models.llava import PLAIN_CHAT_TEMPLATE, projector_activation
from hialign.models.model import Model, Native
from hialign.models.parts import make_projector_linear
from hialign.models.processor import llava_processor
from hialign.models.root import Root
from hialign.models.tokenizer import tiny_tokenizer


def tiny(
    *,
    seed: int,
    projector: str = "mlp2x_gelu",
    image_size: int = 64,
    patch_size: int = 8,
    vocabulary: int = 2048,
    width: int = 128,
    layers: int = 3,
    temperature: float = 0.07,
) -> Model:
    """A random Llava (CLIP tower, projector, Llama) with its processor, and a random CLIP text tower beside it.

    ``seed`` alone decides the weights; the global generator is left as it was. For tests and for showing that the
    plumbing works: it has seen no data, so nothing it says after a short training is a result.
    """
    activation = projector_activation(projector)
    tokenizer = tiny_tokenizer(vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llava = LlavaForConditionalGeneration(_config(tokenizer, activation, image_size, patch_size, width, layers))
        root = Root(llava, _alignment(tokenizer, llava.config, temperature))
    if projector == "linear":
        make_projector_linear(root)
    llava.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    processor = llava_processor(
        _image_processor(image_size), tokenizer, llava.config, class_token=True, chat_template=PLAIN_CHAT_TEMPLATE
    )
    return Model(root, processor, tokenizer, Native(None, (tokenizer.eos_token_id,)))


def _config(
    tokenizer: PreTrainedTokenizerBase, activation: str, image_size: int, patch_size: int, width: int, layers: int
) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=width * 3 // 4,
        intermediate_size=width * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.image_token_id,
        projector_hidden_act=activation,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def _alignment(tokenizer: PreTrainedTokenizerBase, config: Any, temperature: float) -> Alignment:
    vision_dim, llm_dim = config.vision_config.hidden_size, config.text_config.hidden_size
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": vision_dim,
        "intermediate_size": 2 * vision_dim,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Alignment(text_config, vision_dim=vision_dim, llm_dim=llm_dim, embed_dim=64, temperature=temperature)


def _image_processor(image_size: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size})
