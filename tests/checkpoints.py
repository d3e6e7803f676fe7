"""Small checkpoints in the files of real ones: language models, CLIPs of two libraries, a LLaVA-1.6."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hialign.models.tokenizer import clip_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # large, so that no two texts get logits that are nearly the same
}
_TILES = [[32, 64], [64, 32], [64, 64]]


def _bytes(specials: list[str]) -> Tokenizer:
    """Each byte a token, behind ``specials``."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*specials, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def write_llama(folder: Path) -> Path:
    """Llama as Vicuna has it: a start token before every text, no token for padding, no chat template."""
    torch.manual_seed(0)
    tokenizer = _bytes(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), bos_token_id=1, eos_token_id=2, **_SMALL))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_sentencepiece_llama(folder: Path) -> Path:
    """Llama with the tokenizer files that Vicuna has: a sentencepiece model and no other, <unk> for padding."""
    import sentencepiece
    from transformers import LlamaTokenizer

    text = folder / "text.txt"
    folder.mkdir()
    text.write_text("a dog runs over there\ntwo cups of tea on a table\nwhat is it?\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=290, model_type="bpe", byte_fallback=True
    )
    for left in (text, folder / "tokenizer.vocab"):
        left.unlink()
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    settings = {"tokenizer_class": LlamaTokenizer.__name__, "add_bos_token": True, "legacy": False, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    LlamaForCausalLM(LlamaConfig(vocab_size=290, **_SMALL)).save_pretrained(folder)
    return folder


def write_qwen2(folder: Path) -> Path:
    """Qwen2: no start token, ChatML, tied embeddings with rows to spare, two tokens that end an answer."""
    torch.manual_seed(1)
    tokenizer = _bytes(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    ends = {"bos_token_id": None, "eos_token_id": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=320, tie_word_embeddings=True, **ends, **_SMALL))
    model.generation_config = GenerationConfig(eos_token_id=[2, 0], pad_token_id=0)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """A CLIP of Hugging Face's."""
    torch.manual_seed(2)
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**text, "hidden_size": 48, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    model = CLIPModel(CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_llava_next(folder: Path, clip: Path, llama: Path) -> Path:
    """A LLaVA-1.6 of the tower of ``clip`` and the language model ``llama``: an image in tiles and as a whole."""
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(llama, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    text_config = LlamaConfig.from_pretrained(llama, vocab_size=320)
    config = LlavaNextConfig(
        vision_config=CLIPConfig.from_pretrained(clip).vision_config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_TILES,
    )
    model = LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=_TILES
    )
    LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


def register_open_clip(folder: Path, name: str, *, quick_gelu: bool) -> tuple[str, torch.nn.Module]:
    """Makes open_clip know a small model ``name``; returns the file of its weights, and the model."""
    import open_clip

    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        "quick_gelu": quick_gelu,
    }
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no layer hides another
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(model.state_dict(), folder / f"{name}.pt")
    return str(folder / f"{name}.pt"), model
