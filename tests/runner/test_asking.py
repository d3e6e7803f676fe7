"""A processor that a run saves asks, token by token, as the run trained; and its answers end where training's did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerFast

from hialign.batch import LanguageBatch
from hialign.data import CaptionedImage, Conversation, Turn
from hialign.data.templates import TEMPLATES, as_jinja, end_ids
from hialign.models import Model, clip_from_hf, from_checkpoint, from_parts, load, save
from hialign.runner.assemble import as_asked, collator

TRAINED = [
    (llm, template) for llm in ("llama", "qwen2") for template in TEMPLATES if (llm, template) != ("llama", "chat")
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (Turn("<image>\nWhat is on\nthe table?", "A cup ."), Turn("And under it ?", "Nothing"))


@pytest.fixture(scope="module")
def models(checkpoints) -> dict[str, Model]:
    clip = clip_from_hf(checkpoints.clip)
    return {llm: from_parts(clip=clip, llm=getattr(checkpoints, llm), seed=0) for llm in ("llama", "qwen2")}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.radial_gradient("L").resize((50, 30)).convert("RGB").save(tmp_path / "1.png")
    return tmp_path / "1.png"


def asked(model: Model, template: str, aspect: str = "square") -> Model:
    config = OmegaConf.create({"stages": {"last": {"template": template, "image_aspect": aspect}}})
    return as_asked(model, config, "last")


def trained_prompt(model: Model, template: str, record, aspect: str = "square"):
    """What a training row holds before its last answer, and the token that ends the answer."""
    rows = collator(LanguageBatch, model, template=template, image_aspect=aspect)
    item = rows.encode(record, np.random.default_rng(0))
    answer = [place for place, label in enumerate(item.labels) if label != -100]
    first = next(p for p in reversed(answer) if p - 1 not in answer)
    return item.ids[:first], item.ids[answer[-1]], item.pixel_values


def messages(turns, image: Image.Image) -> list[dict]:
    """The turns as transformers wants them, the last without its answer."""
    told = []
    for number, turn in enumerate(turns):
        text = turn.question.replace("<image>\n", "")
        parts = [{"type": "text", "text": text}] if text and text != "<image>" else []
        told.append({"role": "user", "content": ([{"type": "image", "image": image}] if number == 0 else []) + parts})
        told.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return told[:-1]


def written(processor, turns, picture: Path):
    return processor.apply_chat_template(
        messages(turns, Image.open(picture).convert("RGB")),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize(("llm", "template"), TRAINED)
@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_a_saved_processor_writes_what_training_wrote(models, picture, tmp_path, llm, template, aspect):
    model = asked(models[llm], template, aspect)
    save(model, tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    records = [(CaptionedImage("1", picture, ("a cup",)), (Turn("<image>", ""),))]
    if template in ("v1", "chat"):
        records += [
            (Conversation("2", (picture,), TURNS[:1]), TURNS[:1]),
            (Conversation("3", (picture,), TURNS), TURNS),
        ]
    for record, turns in records:
        ids, end, pixels = trained_prompt(models[llm], template, record, aspect)
        batch = written(processor, turns, picture)
        assert batch["input_ids"].tolist() == [ids]
        assert torch.equal(batch["pixel_values"], pixels)
        assert end in model.root.llava.generation_config.eos_token_id


@pytest.mark.parametrize(("llm", "template"), TRAINED)
def test_the_two_ways_into_a_processor_agree(models, picture, llm, template):
    """A template as text, then the text and the image: transformers' other way, with one start token too."""
    processor = asked(models[llm], template).processor
    turns = TURNS[:1]
    text = processor.apply_chat_template(messages(turns, Image.open(picture)), add_generation_prompt=True)
    image = Image.open(picture).convert("RGB")
    assert processor(images=[image], text=[text], return_tensors="pt")["input_ids"].tolist() == [
        written(processor, turns, picture)["input_ids"][0].tolist()
    ]


def test_the_next_run_finds_the_models_own_template_and_ends(models, tmp_path):
    """LLaVA's two stages as two runs: `plain`, saved, then another layout from what was saved."""
    own, first = models["qwen2"], asked(models["qwen2"], "plain")
    line_end = own.processor.tokenizer("\n")["input_ids"]
    assert first.root.llava.generation_config.eos_token_id == [2, 0, *line_end]
    save(first, tmp_path / "model")
    for again in (load(str(tmp_path / "model")), from_checkpoint(checkpoint=str(tmp_path / "model"), seed=0)):
        assert again.processor.tokenizer.chat_template == own.processor.tokenizer.chat_template == CHATML
        second = asked(again, "chat")
        assert second.processor.chat_template == asked(own, "chat").processor.chat_template
        assert second.root.llava.generation_config.eos_token_id == [2, 0]


def test_what_a_template_puts_before_an_answer_beyond_its_prompt_is_written_too(models, picture):
    """As Qwen3's empty block of thoughts."""
    thinking = CHATML.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    )
    own = models["qwen2"].processor.tokenizer
    own.chat_template = thinking
    try:
        record = Conversation("1", (picture,), TURNS[:1])
        ids, _, _ = trained_prompt(models["qwen2"], "chat", record)
        assert "<think>" in own.decode(ids)
        assert written(asked(models["qwen2"], "chat").processor, TURNS[:1], picture)["input_ids"].tolist() == [ids]
        own.chat_template = thinking.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>bot\n{% endif %}")
        with pytest.raises(ValueError, match=r"asks for an answer with .*bot.* and shows answers behind .*assistant"):
            asked(models["qwen2"], "chat")
        own.chat_template = {"default": CHATML, "tool_use": "{{ 1 }}"}
        assert "tool_use" not in as_jinja("chat", own, "<image>")
    finally:
        own.chat_template = CHATML


def test_v1_by_hand(models):
    processor = asked(models["llama"], "v1").processor
    told = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]},
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "Sure?"},
    ]
    start = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT: A cup.</s>"
    )
    assert processor.apply_chat_template(told) == start + "USER: Sure?"
    assert processor.apply_chat_template(told, add_generation_prompt=True) == start + "USER: Sure? ASSISTANT:"
    own = [{"role": "system", "content": "Be brief."}, told[0]]
    wanted = "Be brief. USER: <image>\nWhat is it? ASSISTANT:"
    assert processor.apply_chat_template(own, add_generation_prompt=True) == wanted


def test_answers_end_where_training_ended_them(models):
    for (llm, template), token in {
        ("llama", "plain_eos"): "</s>",
        ("llama", "plain"): "Ċ",  # a line end, as byte-level tokenizers write it
        ("llama", "v1"): "</s>",
        ("qwen2", "chat"): "<|im_end|>",
    }.items():
        tokenizer = models[llm].processor.tokenizer
        assert end_ids(template, tokenizer, "<image>") == [tokenizer.convert_tokens_to_ids(token)]


def test_a_tokenizer_that_adds_no_start_token_gets_it_from_the_template(models):
    """Else training, which writes it, and a processor, which leaves it to the tokenizer, would differ."""
    with_start = models["llama"].processor.tokenizer
    bare = PreTrainedTokenizerFast(
        tokenizer_object=models["qwen2"].processor.tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    assert "{{ bos_token }}" not in as_jinja("v1", with_start, "<image>")
    assert "{{ bos_token }}" in as_jinja("v1", bare, "<image>")
