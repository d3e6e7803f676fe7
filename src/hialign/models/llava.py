"""A Llava from a checkpoint, or from an image tower and a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from hialign.models.clip import ClipTowers
from hialign.models.heads import Alignment
from hialign.models.llava_next import NOTE, flat_image_processor, is_llava_next
from hialign.models.model import BESIDE, Model, Native, load_llava, with_beside
from hialign.models.parts import make_projector_linear
from hialign.models.pretrained import dtype_of, pretrained, pretrained_weights
from hialign.models.processor import llava_processor
from hialign.models.root import Root

PROJECTORS = {"mlp2x_gelu": "gelu", "linear": "linear"}  # LLaVA's names -> the activation between Llava's two layers
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
ROWS = 64  # an embedding matrix grows to a multiple of this, which GPUs multiply faster

# How a model that has learnt no layout yet is asked; a run writes its own into what it saves.
PLAIN_CHAT_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


def projector_activation(projector: str) -> str:
    """What Llava's config calls the activation of LLaVA's ``projector``."""
    if projector not in PROJECTORS:
        raise ValueError(f"projector: got {projector!r}, wanted one of {', '.join(PROJECTORS)}")
    return PROJECTORS[projector]


def from_checkpoint(
    *,
    checkpoint: str,
    seed: int,
    clip: ClipTowers | None = None,
    revision: str | None = None,
    dtype: str = "fp32",
    embed_dim: int = 768,
    temperature: float = 0.07,
) -> Model:
    """The Llava ``checkpoint``, a hub name (``revision`` a commit of it) or a folder, with its own processor.

    ``clip`` brings the CLIP whose image tower the checkpoint was made with: its text tower, projections and temperature
    are what the pair ``clip`` is read by. Without it there is no such pair, and ``embed_dim`` and ``temperature`` are
    those of the other pairs, whose heads are random by ``seed`` either way. Alignment modules that lie beside the
    checkpoint, as ``save`` writes them, are taken as they are.

    A LlavaNext (LLaVA-1.6) becomes a Llava of its weights that sees an image in one view, as CHiP trains it.

    ``dtype`` ("fp32" or "bf16") is that of the Llava's weights; a run keeps what it trains in float32.
    """
    processor = _llava_processor_of(checkpoint, revision)
    llava_next = is_llava_next(checkpoint, revision)
    llava = load_llava(checkpoint, dtype=dtype, revision=revision, llava_next=llava_next)
    processor = _fitted(processor, llava, checkpoint)
    beside = Path(checkpoint) / BESIDE
    if beside.is_dir():
        if clip is not None:
            raise ValueError(f"clip: {checkpoint} has alignment modules of its own in {BESIDE}/; leave clip out")
        return with_beside(llava, processor, beside)
    native = _native(processor.tokenizer, llava.generation_config)
    alignment = _alignment(llava.config, clip, embed_dim=embed_dim, temperature=temperature, seed=seed)
    tokenizer = None if clip is None else clip.tokenizer
    return Model(Root(llava, alignment), processor, tokenizer, native, note=NOTE if llava_next else "")


def _llava_processor_of(checkpoint: str, revision: str | None) -> Any:
    """The checkpoint's processor, before its weights are read; a tokenizer without a padding token gets one."""
    processor: Any = pretrained(AutoProcessor, "checkpoint", checkpoint, revision=revision)
    if not isinstance(processor, LlavaProcessor | LlavaNextProcessor):
        raise ValueError(
            f"checkpoint: {checkpoint} has a {type(processor).__name__}, wanted a LlavaProcessor or LlavaNextProcessor"
        )
    tokenizer: Any = processor.tokenizer
    if tokenizer.pad_token is None:  # never looked at, so a token that there is does as well as a new one
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return processor


def _fitted(processor: Any, llava: Any, checkpoint: str) -> LlavaProcessor:
    """The processor with as many placeholders as the tower has features, which some hub folders do not say."""
    tokenizer, tiled = processor.tokenizer, isinstance(processor, LlavaNextProcessor)
    if llava.config.image_token_index != tokenizer.convert_tokens_to_ids(processor.image_token):
        raise ValueError(
            f"checkpoint: {checkpoint} takes token {llava.config.image_token_index} for an image and its tokenizer "
            f"writes {tokenizer.convert_tokens_to_ids(processor.image_token)}; get the whole checkpoint again"
        )
    _end_as(llava.config.get_text_config(), tokenizer)
    return llava_processor(
        flat_image_processor(processor.image_processor) if tiled else processor.image_processor,
        tokenizer,
        llava.config,
        class_token=hasattr(llava.model.vision_tower.embeddings, "class_embedding"),
        chat_template=getattr(processor, "chat_template", None) or PLAIN_CHAT_TEMPLATE,
    )


def _end_as(text_config: Any, tokenizer: Any) -> None:
    """Makes the config name the tokenizer's one end token, which closes captions, where some name several."""
    text_config.eos_token_id = tokenizer.eos_token_id


def _native(tokenizer: Any, generation_config: Any) -> Native:
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    ends = tokenizer.eos_token_id if generation_config is None else generation_config.eos_token_id
    listed = [tokenizer.eos_token_id] if ends is None else ends if isinstance(ends, list) else [ends]
    return Native(template, tuple(listed))


def from_parts(
    *,
    clip: ClipTowers,
    llm: str,
    seed: int,
    projector: str = "mlp2x_gelu",
    revision: str | None = None,
    dtype: str = "fp32",
    feature_layer: int = -2,
) -> Model:
    """A Llava of CLIP's image tower, a fresh projector and the causal language model ``llm``.

    ``llm`` is a hub name (``revision`` a commit of it) or a folder. The tokenizer gets an image token, and a padding
    token if it has none; rows that the embedding matrices lack for these are drawn around the mean of the others.
    ``seed`` alone decides what is random: these rows, and the projector, which begins as LLaVA's did, as torch's linear
    layers do. The projector reads the tower's state ``feature_layer`` without its class token.

    ``ValueError`` for a language model that does more behind its last state than one matrix, since Llava would not.
    """
    activation = projector_activation(projector)
    # padded on the left for generation; training pads by itself
    tokenizer = _with_image_token(pretrained(AutoTokenizer, "llm", llm, revision=revision, padding_side="left"))
    language = _language_model(llm, revision, dtype_of(dtype))
    native = _native(tokenizer, language.generation_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _fit_vocabulary(language, tokenizer)
        llava = _joined(clip, language, tokenizer, activation, feature_layer)
    root = Root(llava, _alignment(llava.config, clip, embed_dim=0, temperature=0.0, seed=seed))
    if projector == "linear":
        make_projector_linear(root)
    llava.to(dtype_of(dtype))
    processor = llava_processor(
        clip.image_processor, tokenizer, llava.config, class_token=True, chat_template=PLAIN_CHAT_TEMPLATE
    )
    return Model(root, processor, clip.tokenizer, native)


def _with_image_token(tokenizer: Any) -> PreTrainedTokenizerBase:
    """The tokenizer with an image token, and with one for padding."""
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if tokenizer.eos_token is None:
        raise ValueError(f"llm: the tokenizer of {tokenizer.name_or_path} has no eos token, so no answer would end")
    made: PreTrainedTokenizerBase = tokenizer
    return made


def _language_model(name: str, revision: str | None, dtype: torch.dtype) -> Any:
    language = pretrained_weights(AutoModelForCausalLM, "llm", name, revision=revision, dtype=dtype)
    with torch.no_grad():
        out = language(torch.tensor([[0, 1]]), output_hidden_states=True)
        plain = language.get_output_embeddings()(out.hidden_states[-1])
    if not torch.equal(plain, out.logits):
        raise ValueError(f"llm: {name} changes its logits after the output layer, which a Llava would not do")
    return language


def _fit_vocabulary(language: Any, tokenizer: Any) -> None:
    """Gives every token a row; a matrix that is already large enough stays as it is."""
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=ROWS, mean_resizing=True)


def _joined(clip: ClipTowers, language: Any, tokenizer: Any, activation: str, feature_layer: int) -> Any:
    """The Llava with the given tower and language model for its own, not copied, and a fresh projector."""
    text_config = language.config
    text_config.pad_token_id = tokenizer.pad_token_id
    _end_as(text_config, tokenizer)
    config = LlavaConfig(
        vision_config=clip.vision.config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        projector_hidden_act=activation,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    with torch.device("meta"):  # its random weights would take minutes, and all but the projector's are replaced
        llava: Any = LlavaForConditionalGeneration(config)
    if type(llava.model.language_model) is not type(language.base_model):
        raise ValueError(
            f"llm: {type(language).__name__} is built on {type(language.base_model).__name__}, which is not what Llava "
            f"makes of its config ({type(llava.model.language_model).__name__})"
        )
    llava.model.vision_tower = clip.vision
    llava.model.multi_modal_projector = LlavaMultiModalProjector(config)
    llava.model.language_model = language.base_model
    llava.lm_head = language.get_output_embeddings()
    llava.tie_weights()
    llava.generation_config = _generation_config(language.generation_config, tokenizer)
    return llava


def _generation_config(of_language: Any, tokenizer: Any) -> GenerationConfig:
    """Greedy decoding that ends as the language model does; its sampling settings would only be warned about."""
    ends = None if of_language is None else of_language.eos_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=tokenizer.pad_token_id,
    )


def _alignment(config: Any, clip: ClipTowers | None, *, embed_dim: int, temperature: float, seed: int) -> Alignment:
    """Heads for a Llava of ``config``, and with ``clip`` its text tower, projections and temperature."""
    text_config = None if clip is None else json.loads(clip.text.config.to_json_string(use_diff=False))
    vision_dim, llm_dim = config.vision_config.hidden_size, config.get_text_config().hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        alignment = Alignment(
            text_config,
            vision_dim=vision_dim,
            llm_dim=llm_dim,
            embed_dim=embed_dim if clip is None else len(clip.image_projection),
            temperature=temperature if clip is None else clip.temperature,
        )
    if clip is not None:
        assert alignment.text is not None
        alignment.text.load_state_dict(clip.text.state_dict())
        _copy(clip.image_projection, alignment.heads["clip_image"], "image")
        _copy(clip.text_projection, alignment.heads["clip_text"], "text")
    return alignment


def _copy(projection: Tensor, head: nn.Module, side: str) -> None:
    weight: Any = head.weight
    if weight.shape != projection.shape:
        raise ValueError(
            f"clip: its {side} projection is {tuple(projection.shape)} and this Llava's tower needs "
            f"{tuple(weight.shape)}; give the CLIP that the tower comes from"
        )
    with torch.no_grad():
        weight.copy_(projection)
