"""The world's base model: how it is laid out, and how the packaged one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from hialign.models import Model, Native, Root, load
from hialign.models.heads import Alignment
from hialign.models.processor import llava_processor
from hialign.tabletop.render import PIXELS
from hialign.tabletop.tokenizer import CHAT_TEMPLATE, tokenizer

FOLDER = Path(__file__).parent / "base"
PATCH = 24  # as large as a place
VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
TEXT: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
LANGUAGE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
EMBED = 128


def base(*, seed: int, folder: str | None = None) -> Model:
    """The base model that comes with the package: towers and language model pretrained, apart from each other.

    ``seed`` draws what no pretraining has touched, the projector and the heads of the pairs that go through it.
    ``folder`` names another one that the build script wrote.
    """
    with torch.random.fork_rng(devices=[]):
        model = load(str(FOLDER if folder is None else folder))  # draws numbers too, before it fills in what it read
        torch.manual_seed(seed)
        fresh = [model.root.llava.model.multi_modal_projector]
        fresh += [head for name, head in model.root.alignment.heads.items() if not name.startswith("clip")]
        for module in (inner for outer in fresh for inner in outer.modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return model


def untrained(*, seed: int) -> Model:
    """The same model with random weights, which ``seed`` alone decides."""
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llava = LlavaForConditionalGeneration(_config(words))
        alignment = Alignment(
            {**TEXT, **_ids(words), "vocab_size": len(words), "max_position_embeddings": 77},
            vision_dim=VISION["hidden_size"],
            llm_dim=LANGUAGE["hidden_size"],
            embed_dim=EMBED,
            temperature=0.07,
        )
    llava.generation_config = GenerationConfig(**_ids(words))
    native = Native(words.chat_template, (words.eos_token_id,))
    processor = llava_processor(_image_processor(), words, llava.config, class_token=True, chat_template=CHAT_TEMPLATE)
    return Model(Root(llava, alignment), processor, words, native)


def _ids(words: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _config(words: PreTrainedTokenizerFast) -> LlavaConfig:
    text = LlamaConfig(
        **LANGUAGE, **_ids(words), vocab_size=len(words), max_position_embeddings=1024, tie_word_embeddings=True
    )
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=PIXELS, patch_size=PATCH),
        text_config=text,
        image_token_index=words.image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS})
