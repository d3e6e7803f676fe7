"""Turns to text, which of its tokens are to be predicted, and the same layouts as jinja for whoever asks a model."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hialign.data.records import IMAGE, Answer, Turn

# The checkpoints trained on v1 expect these words: LLaVA's conv_vicuna_v1 (llava/conversation.py@c121f04).
V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


TEMPLATES = ("plain_eos", "plain", "v1", "chat")

# A message's content as training writes a question: a string as it is, of parts the images first.
_SAID = (
    "{%- macro said(content) -%}{%- if content is string -%}{{ content | trim }}{%- else -%}"
    "{%- set pictures = content | selectattr('type', 'equalto', 'image') | list | length -%}"
    "{%- set words = content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') | trim -%}"
    "{{ (('IMAGE' ~ BETWEEN) * pictures ~ words) | trim }}{%- endif -%}{%- endmacro -%}"
)
_PLAIN = "{%- for message in messages -%}{{ said(message['content']) }}{%- endfor -%}"
_V1 = (
    "{%- if messages[0]['role'] == 'system' -%}{{ said(messages[0]['content']) }}{%- set turns = messages[1:] -%}"
    "{%- else -%}{{ SYSTEM }}{%- set turns = messages -%}{%- endif -%}{{ ' ' }}"
    "{%- for turn in turns -%}{%- if turn['role'] == 'user' -%}{{ 'USER: ' ~ said(turn['content']) }}"
    "{%- if add_generation_prompt or not loop.last -%}{{ ' ASSISTANT:' }}{%- endif -%}"
    "{%- else -%}{{ ' ' ~ said(turn['content']) ~ eos_token }}{%- endif -%}{%- endfor -%}"
)
_CHAT = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=said(message['content']))] -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)


class FastTokenizer(Protocol):
    """What is used of a transformers tokenizer that knows where in the text its tokens lie."""

    is_fast: bool
    chat_template: Any
    bos_token: Any
    bos_token_id: Any
    eos_token: Any
    eos_token_id: Any

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Mapping[str, Any]: ...

    def get_added_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> Any: ...

    def get_chat_template(self) -> str: ...

    def decode(self, token_ids: list[int]) -> Any: ...


@dataclass(frozen=True)
class Segment:
    """A piece of a row's text; "<image>" in it stands for an image."""

    text: str
    supervised: bool  # whether it is to be predicted
    phrase: int = 0  # the number of the phrase that it is, from 1 on; 0: it is none


def plain(turns: Sequence[Turn]) -> list[Segment]:
    """The images, then the answer and a line end, which are to be predicted; a ValueError unless there is one turn.

    Source: LLaVA stage 1, preprocess_plain in llava/train/train.py@c121f04: what the question says is left out.
    Differs: several images are allowed.
    """
    if len(turns) != 1:
        raise ValueError(f"{len(turns)} turns, and the template plain holds one; use the template v1 or chat")
    count = turns[0].question.count(IMAGE)
    if not count:
        raise ValueError("no image, and the template plain holds nothing else before its answer; use v1 or chat")
    return [Segment(IMAGE * count, False), Segment(turns[0].answer + "\n", True)]


def v1(turns: Sequence[Turn], eos: str) -> list[Segment]:
    """Vicuna's dialogue, in which each answer and the ``eos`` behind it are to be predicted.

    The space before an answer belongs to it: tokenizers like Llama's join it to the first word.

    Source: LLaVA-1.5 stage 2, preprocess_v1 in llava/train/train.py@c121f04.
    Differs: spans are found in the text, so that no tokenizer makes a row lose its labels ("tokenization mismatch").
    """
    segments = [Segment(V1_SYSTEM + " ", False)]
    for turn in turns:
        segments += [Segment(f"USER: {_question(turn)} ASSISTANT:", False), Segment(f" {turn.answer}{eos}", True)]
    return segments


def chat(turns: Sequence[Turn], tokenizer: FastTokenizer) -> list[Segment]:
    """The tokenizer's own chat template, in which each answer and the token that ends it are to be predicted.

    A ValueError where the template shows the turns otherwise than one behind the other, changes what they say, or ends
    an answer with no token of its own. White space around a question or an answer is dropped.

    The text between the turns is found by rendering stand-ins; what a template puts before an answer by itself (an
    empty block of thoughts, for one) is thereby not to be predicted.
    """
    contents = [text.strip() for turn in turns for text in (_question(turn), turn.answer)]
    between = _between(len(contents), tokenizer)
    segments = [Segment(between[0], False)]
    for number, (content, after) in enumerate(zip(contents, between[1:], strict=True)):
        answer = number % 2 == 1
        end = _end(after, tokenizer.get_added_vocab()) if answer else 0
        segments += [Segment(content + after[:end], answer), Segment(after[end:], False)]
    if "".join(segment.text for segment in segments) != _render(contents, tokenizer):
        raise ValueError("the chat template changes what the turns say; use the template v1")
    return segments


def tokenise(segments: Iterable[Segment], tokenizer: FastTokenizer, image_token: str) -> tuple[list[int], list[bool]]:
    """The ids of the whole text, and for each whether it is to be predicted; every image is one ``image_token``.

    The text is tokenised in one piece, as the model will see it, and a token is to be predicted when some of its
    characters are.
    """
    ids, supervised, _ = tokenise_phrases(segments, tokenizer, image_token)
    return ids, supervised


def tokenise_phrases(
    segments: Iterable[Segment], tokenizer: FastTokenizer, image_token: str
) -> tuple[list[int], list[bool], list[int]]:
    """What ``tokenise`` gives, and for each token the phrase that some of its characters are in, the later of two."""
    texts = [replace(segment, text=segment.text.replace(IMAGE, image_token)) for segment in segments]
    wanted = b"".join(bytes([segment.supervised]) * len(segment.text) for segment in texts)
    numbers = array("H")
    for segment in texts:
        numbers.extend(array("H", [segment.phrase]) * len(segment.text))
    text = "".join(segment.text for segment in texts)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    supervised, phrases, last = [], [], 0
    for start, end in encoded["offset_mapping"]:
        # Byte-level tokenizers trim white space off the offsets: a token of nothing else is empty and lies behind it.
        place = slice(start, end) if start < end else slice(last, end) if last < end else slice(start, start + 1)
        supervised.append(1 in wanted[place])
        phrases.append(max(numbers[place], default=0))
        last = end
    return list(encoded["input_ids"]), supervised, phrases


def with_phrases(segments: Sequence[Segment], answer: Answer) -> list[Segment]:
    """A dialogue's segments, of which the last ``answer`` alone is to be predicted, cut at its phrases' ends."""
    last = max(number for number, segment in enumerate(segments) if segment.supervised)
    whole = segments[last].text
    begin = whole.index(answer.text)  # behind a space, before an end token
    pieces, at = [], 0
    for number, (start, end) in enumerate(answer.phrases, start=1):
        pieces.append(Segment(whole[at : begin + start], True))
        pieces.append(Segment(whole[begin + start : begin + end], True, number))
        at = begin + end
    before = [replace(segment, supervised=False) for segment in segments[:last]]
    return [*before, *pieces, Segment(whole[at:], True), *segments[last + 1 :]]


def starts_with_bos(template: str, text: str, tokenizer: FastTokenizer) -> bool:
    """Whether a row of ``template`` whose text is ``text`` gets the bos token before it.

    A chat template writes its own, and where it does not, the tokenizer may: a processor that is handed the text then
    lets it.
    """
    if tokenizer.bos_token_id is None or text.startswith(tokenizer.bos_token):
        return False
    return template != "chat" or adds_bos(tokenizer)


def adds_bos(tokenizer: FastTokenizer) -> bool:
    """Whether the tokenizer puts its bos token before what it is given."""
    ids = tokenizer("a", add_special_tokens=True, return_offsets_mapping=False)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def as_jinja(template: str, tokenizer: FastTokenizer, image_token: str) -> str:
    """The layout as a processor's chat template: its prompt is, token by token, what a row holds before its answer.

    The layouts ``plain`` and ``plain_eos`` were trained without a question; what is asked comes behind the image all
    the same, to be gone on with.
    """
    between = "''" if template in ("plain", "plain_eos") else "'\\n'"
    said = _SAID.replace("IMAGE", image_token).replace("BETWEEN", between)
    if template == "chat":
        return said + _CHAT + tokenizer.get_chat_template() + _unprompted(tokenizer)
    bos = "{{ bos_token }}" if tokenizer.bos_token_id is not None and not adds_bos(tokenizer) else ""
    body = _V1.replace("SYSTEM", repr(V1_SYSTEM)) if template == "v1" else _PLAIN
    return said + bos + body


def _unprompted(tokenizer: FastTokenizer) -> str:
    """What a chat template shows before an answer beyond its own prompt, as jinja to be added to it.

    Some write an empty block of thoughts there, which a row of training then holds too. A ValueError where the prompt
    is no beginning of what an answer follows on.
    """
    before, between, _ = _between(2, tokenizer)
    question = _marks(1)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": question[0]}], tokenize=False, add_generation_prompt=True
    )
    prompt = str(rendered).removeprefix(before + question[0])
    if not between.startswith(prompt):
        raise ValueError(
            f"the chat template asks for an answer with {prompt!r} and shows answers behind {between!r}; use the "
            "template v1"
        )
    rest = between.removeprefix(prompt)
    return f"{{%- if add_generation_prompt -%}}{{{{ {rest!r} }}}}{{%- endif -%}}" if rest else ""


def end_ids(template: str, tokenizer: FastTokenizer, image_token: str) -> list[int]:
    """The tokens that end an answer of ``template``, where generation is to stop."""
    if template in ("plain_eos", "v1"):
        return [tokenizer.eos_token_id]
    turns = (Turn(IMAGE, "a"),)
    segments = chat(turns, tokenizer) if template == "chat" else plain(turns)
    ids, supervised = tokenise(segments, tokenizer, image_token)
    last = [token for token, wanted in zip(ids, supervised, strict=True) if wanted][-1]
    # a tokenizer that drops line ends leaves `plain` without an end
    return [last] if template == "chat" or not str(tokenizer.decode([last])).strip() else []


def _question(turn: Turn) -> str:
    """The question, behind its image and a line end. Where there are several images, they stay where they are.

    Source: preprocess_multimodal in llava/train/train.py@c121f04, which knows one image.
    """
    if turn.question.count(IMAGE) != 1:
        return turn.question
    return f"{IMAGE}\n{turn.question.replace(IMAGE, '').strip()}".strip()


def _render(contents: Sequence[str], tokenizer: FastTokenizer) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def _marks(count: int) -> list[str]:
    """Stand-ins for contents, from Unicode's private use area, so in no template."""
    return [f"\ue000{number}\ue001" for number in range(count)]


def _between(count: int, tokenizer: FastTokenizer) -> list[str]:
    """What the chat template writes before, between and after ``count`` contents."""
    marks = _marks(count)
    text = _render(marks, tokenizer)
    if re.findall("\ue000[0-9]+\ue001", text) != marks:
        raise ValueError("the chat template does not show every turn's text once and in order; use the template v1")
    return re.split("\ue000[0-9]+\ue001", text)


def _end(after: str, added: Iterable[str]) -> int:
    """Where the token ends that closes an answer, in the text ``after`` it."""
    bare = after.lstrip()
    length = max((len(token) for token in added if bare.startswith(token)), default=0)
    if not length:
        raise ValueError(
            f"the chat template ends an answer with {after[:40]!r}, which is no token of its own, so that a model "
            "would not learn to stop; use the template v1"
        )
    return len(after) - len(bare) + length
