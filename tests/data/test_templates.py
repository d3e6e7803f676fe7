"""Templates: the text written out by hand, and token by token what is to be predicted."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hialign.data.records import Answer, Turn
from hialign.data.templates import V1_SYSTEM, Segment, chat, plain, tokenise, tokenise_phrases, v1, with_phrases

WORDS = ["USER", "ASSISTANT", "A", "red", "cup", "What", "is", "on", "it", "3"]
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # before the last answer only, as Qwen3's
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)
ENDS_TWICE = (  # an end of the answer, and one of the text behind the last, as Phi-3's
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)
TALK = (Turn("What is on <image>", "A red cup"), Turn("is it 3", "3"))


def bpe(*, scheme):
    """Whole words of WORDS with and without a space before them, as Llama's tokenizers cut them; else bytes."""
    words = ["▁" + word for word in WORDS] + WORDS if scheme != "bytes" else ["Ġ" + w for w in WORDS] + WORDS
    merges = list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))
    bytes_ = [f"<0x{i:02X}>" for i in range(256)] if scheme != "bytes" else pre_tokenizers.ByteLevel.alphabet()
    pieces = dict.fromkeys(["<unk>", *bytes_, *(c for w in words for c in w), ":", *(a + b for a, b in merges)])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=scheme != "bytes"))
    if scheme == "legacy":  # a space before the text, and behind each special token
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif scheme == "first":  # before the text only
        inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.post_processor = processors.ByteLevel(trim_offsets=True)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|im_start|>", "<|im_end|>"]})
    return tokenizer


def text(segments):
    return "".join(segment.text for segment in segments)


def supervised(segments):
    return [segment.text for segment in segments if segment.supervised]


def marked(segments, tokenizer, image_token="<image>"):
    """Every token, those to be predicted in brackets."""
    ids, wanted = tokenise(segments, tokenizer, image_token)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return " ".join(f"[{piece}]" if want else piece for piece, want in zip(pieces, wanted, strict=True))


def test_plain_throws_the_question_away_and_ends_with_a_line_end():
    assert plain([Turn("What is on it?\n<image>", "A red cup")]) == [
        Segment("<image>", False),
        Segment("A red cup\n", True),
    ]
    assert plain([Turn("<image><image>", "A")])[0].text == "<image><image>"
    with pytest.raises(ValueError, match="2 turns, and the template plain holds one"):
        plain(TALK)
    with pytest.raises(ValueError, match="no image"):
        plain([Turn("What", "A")])


def test_v1_is_vicunas_dialogue_to_the_letter():
    segments = v1(TALK, "</s>")
    assert text(segments) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat is on ASSISTANT: A red cup</s>"
        "USER: is it 3 ASSISTANT: 3</s>"
    )
    assert supervised(segments) == [" A red cup</s>", " 3</s>"]


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        ("<image>\nWhat", "<image>\nWhat"),
        ("What\n<image>", "<image>\nWhat"),
        ("is <image> it", "<image>\nis  it"),
        ("<image>", "<image>"),
        ("<image> or <image>", "<image> or <image>"),
        (" What ", " What "),
    ],
)
def test_one_image_comes_first_in_its_turn_and_several_stay(question, shown):
    assert text(v1([Turn(question, "A")], "</s>")) == f"{V1_SYSTEM} USER: {shown} ASSISTANT: A</s>"


LAST = {  # the tokens behind the system prompt
    "legacy": (
        "▁USER : ▁ <image> ▁ <0x0A> What ▁is ▁on ▁ASSISTANT : [▁A] [▁red] [▁cup] [</s>] "
        "▁USER : ▁is ▁it ▁3 ▁ASSISTANT : [▁3] [</s>]"
    ),
    "first": (
        "▁USER : ▁ <image> <0x0A> What ▁is ▁on ▁ASSISTANT : [▁A] [▁red] [▁cup] [</s>] "
        "USER : ▁is ▁it ▁3 ▁ASSISTANT : [▁3] [</s>]"
    ),
    "bytes": (
        "ĠUSER : Ġ <image> Ċ What Ġis Ġon ĠASSISTANT : [ĠA] [Ġred] [Ġcup] [</s>] "
        "USER : Ġis Ġit Ġ3 ĠASSISTANT : [Ġ3] [</s>]"
    ),
}


@pytest.mark.parametrize("scheme", LAST)
def test_v1_predicts_each_answer_with_its_first_word_and_its_end(scheme):
    tokens = marked(v1(TALK, "</s>"), bpe(scheme=scheme))
    assert tokens.endswith(LAST[scheme])
    assert "[" not in tokens.removesuffix(LAST[scheme])


PHRASES = {  # the answer is predicted, in brackets; behind a token the number of its phrase
    "legacy": "▁ASSISTANT : [▁A]1 [▁red] [▁cup]2 [</s>]",
    "first": "▁ASSISTANT : [▁A]1 [▁red] [▁cup]2 [</s>]",
    "bytes": "ĠASSISTANT : [ĠA]1 [Ġred] [Ġcup]2 [</s>]",
}


@pytest.mark.parametrize("scheme", PHRASES)
def test_phrases_are_found_whatever_a_tokenizer_does_with_spaces_and_earlier_answers_are_not_predicted(scheme):
    tokenizer = bpe(scheme=scheme)
    turns = (Turn("What is on <image>", "A red cup"), Turn("is it 3", "A red cup"))
    segments = with_phrases(v1(turns, "</s>"), Answer("A red cup", ((0, 1), (6, 9))))
    assert text(segments) == text(v1(turns, "</s>"))
    ids, wanted, phrases = tokenise_phrases(segments, tokenizer, "<image>")
    pieces = tokenizer.convert_ids_to_tokens(ids)
    shown = [f"[{piece}]" if want else piece for piece, want in zip(pieces, wanted, strict=True)]
    tokens = " ".join(f"{piece}{phrase or ''}" for piece, phrase in zip(shown, phrases, strict=True))
    assert tokens.endswith(PHRASES[scheme])
    assert "[" not in tokens.removesuffix(PHRASES[scheme])
    assert sum(phrases) == 3


def test_a_phrase_is_one_of_its_answer_however_often_the_words_were_said_before():
    segments = with_phrases(chat([Turn("A red cup", "A red cup"), Turn("A", "A red cup")], chatml()), RED)
    assert [segment.text for segment in segments if segment.phrase] == ["red"]
    assert [segment.text for segment in segments if segment.supervised] == ["A ", "red", " cup<|im_end|>"]


RED = Answer("A red cup", ((2, 5),))


def chatml():
    tokenizer = bpe(scheme="bytes")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize(
    ("scheme", "tokens"),
    [
        ("legacy", "<image> [▁A] [▁red] [▁cup] [<0x0A>]"),
        ("first", "<image> [A] [▁red] [▁cup] [<0x0A>]"),
        ("bytes", "<image> [A] [Ġred] [Ġcup] [Ċ]"),
    ],
)
def test_plain_predicts_every_token_behind_the_image(scheme, tokens):
    assert marked(plain([Turn("<image>", "A red cup")]), bpe(scheme=scheme)) == tokens


@pytest.mark.parametrize(
    ("scheme", "tokens"),
    [
        ("legacy", "[▁A] [▁] [▁] [▁red] [<0x0A>] [<0xC3>] [<0xA9>] [</s>]"),
        ("first", "[▁A] [▁] [▁] [▁red] [<0x0A>] [<0xC3>] [<0xA9>] [</s>]"),
        ("bytes", "[ĠA] [Ġ] [Ġ] [Ġred] [Ċ] [Ã] [©] [</s>]"),  # offsets of the bare spaces are empty
    ],
)
def test_spaces_line_ends_and_pieces_of_a_letter_inside_an_answer_are_predicted(scheme, tokens):
    assert marked(v1([Turn("What", "A   red\né")], "</s>"), bpe(scheme=scheme)).endswith(f"ASSISTANT : {tokens}")


def test_spaces_in_a_question_are_not_predicted():
    tokens = marked(v1([Turn("What   is  ", "A")], "</s>"), bpe(scheme="bytes"))
    assert tokens.endswith("What Ġ Ġ Ġis Ġ Ġ ĠASSISTANT : [ĠA] [</s>]")


def test_the_models_own_image_token_takes_the_images_place():
    tokens = marked(plain([Turn("<image>", "A")]), bpe(scheme="first"), image_token="<|im_start|>")
    assert tokens == "<|im_start|> [A] [<0x0A>]"


@pytest.mark.parametrize(
    ("template", "whole", "answers"),
    [
        (
            CHATML,
            "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\n<image>\nWhat is on<|im_end|>\n"
            "<|im_start|>assistant\nA red cup<|im_end|>\n<|im_start|>user\nis it 3<|im_end|>\n"
            "<|im_start|>assistant\n3<|im_end|>\n",
            ["A red cup<|im_end|>", "3<|im_end|>"],
        ),
        (
            LLAMA_2,
            "<s>[INST] <image>\nWhat is on [/INST] A red cup </s><s>[INST] is it 3 [/INST] 3 </s>",
            ["A red cup </s>", "3 </s>"],
        ),
        (
            THINKING,
            "<|im_start|>user\n<image>\nWhat is on<|im_end|>\n<|im_start|>assistant\nA red cup<|im_end|>\n"
            "<|im_start|>user\nis it 3<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n3<|im_end|>\n",
            ["A red cup<|im_end|>", "3<|im_end|>"],
        ),
        (
            ENDS_TWICE,
            "<|im_start|>user\n<image>\nWhat is on<|im_end|>\n<|im_start|>assistant\nA red cup<|im_end|>\n"
            "<|im_start|>user\nis it 3<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n</s>",
            ["A red cup<|im_end|>", "3<|im_end|>"],
        ),
    ],
)
def test_chat_predicts_each_answer_and_the_token_that_ends_it(template, whole, answers):
    tokenizer = bpe(scheme="first")
    tokenizer.chat_template = template
    segments = chat(TALK, tokenizer)
    assert text(segments) == whole
    assert supervised(segments) == answers


@pytest.mark.parametrize("scheme", ["legacy", "first", "bytes"])
def test_chat_tokens_are_those_of_the_rendered_text(scheme):
    tokenizer = bpe(scheme=scheme)
    tokenizer.chat_template = CHATML
    messages = [{"role": "user", "content": "What"}, {"role": "assistant", "content": "A red"}]
    ids, _ = tokenise(chat([Turn("What", "A red")], tokenizer), tokenizer, "<image>")
    assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


def test_chat_marks_tokens_exactly():
    tokenizer = bpe(scheme="bytes")
    tokenizer.chat_template = CHATML.replace("{% if messages[0].role != 'system' %}", "{% if false %}")
    answer = "<|im_start|> a s s is t a n t Ċ [A] [Ġred] [<|im_end|>] Ċ"
    assert marked(chat([Turn("What", " A red\n")], tokenizer), tokenizer).endswith(answer)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "no token of its own"),
        ("{% for m in messages[-1:] %}{{ m.content }}<|im_end|>{% endfor %}", "once and in order"),
        ("{% for m in messages | reverse %}{{ m.content }}<|im_end|>{% endfor %}", "once and in order"),
        ("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}", "once and in order"),
        ("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", "changes what the turns say"),
    ],
)
def test_a_chat_template_that_hides_its_answers_is_refused(template, problem):
    tokenizer = bpe(scheme="first")
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=f"the chat template .*{problem}"):
        chat(TALK, tokenizer)


def test_a_turn_that_the_chat_template_would_change_is_refused():
    tokenizer = bpe(scheme="first")
    tokenizer.chat_template = THINKING
    with pytest.raises(ValueError, match="changes what the turns say"):
        chat([Turn("What", "on</think>A")], tokenizer)
