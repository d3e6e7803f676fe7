"""Records to batches: images, and captions or conversations, tokenised, padded on the right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hialign.batch import LanguageBatch, PairBatch, Tokens
from hialign.data.records import (
    IMAGE,
    Answer,
    BadRecord,
    CaptionedImage,
    Conversation,
    Pictured,
    Preference,
    Turn,
    load_image,
)
from hialign.data.templates import (
    TEMPLATES,
    FastTokenizer,
    Segment,
    chat,
    plain,
    starts_with_bos,
    tokenise_phrases,
    v1,
    with_phrases,
)


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: Any  # int or None
    eos_token_id: Any
    pad_token_id: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, Any]: ...


class LanguageTokenizer(Tokenizer, FastTokenizer, Protocol):
    """What is used of a language model's transformers tokenizer."""

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool = False
    ) -> Mapping[str, Any]: ...

    def convert_ids_to_tokens(self, ids: int) -> Any: ...


class ImageProcessor(Protocol):
    """What is used of a transformers image processor."""

    def __call__(self, *, images: list[Image.Image], return_tensors: str) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class LanguageItem:
    """One row of a LanguageBatch before padding."""

    record: str
    pixel_values: Tensor  # (images, 3, height, width)
    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class AnswerRow:
    """A prompt and one answer to it, before padding."""

    ids: list[int]
    labels: list[int]  # on the answer alone
    phrases: list[int]  # 1, 2, ... in the tokens of each phrase of the answer, 0 elsewhere


@dataclass(frozen=True)
class PairItem:
    """One row of a PairBatch before padding."""

    record: str
    pixel_values: Tensor  # (3, height, width)
    caption: list[int]
    clip_caption: list[int]


class LanguageCollator:
    """Rows of images and text in one of four layouts, ``template``.

    ``plain_eos``: [bos] image placeholders, caption, [eos], of which the caption and eos are to be predicted.
    ``plain``: the same with a line end for eos, LLaVA's stage 1. Both hold conversations of one turn with an image.
    ``v1``: LLaVA-1.5's dialogue. ``chat``: the tokenizer's own chat template. In both the answers with their end tokens
    are to be predicted, and a captioned image is one turn whose question is the image alone.

    A tokenizer without a bos token (Qwen's, for one) gives rows without it.
    """

    def __init__(
        self,
        tokenizer: LanguageTokenizer,
        image_processor: ImageProcessor,
        *,
        image_token_id: int,
        num_image_tokens: int,
        max_length: int = 2048,
        template: str = "plain_eos",
    ) -> None:
        _require_ids("tokenizer", tokenizer, "eos_token_id", "pad_token_id")
        _require_template(template, tokenizer, image_token_id)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.image_token_id = image_token_id
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length
        self.template = template

    def encode(self, record: CaptionedImage | Conversation, rng: np.random.Generator) -> LanguageItem:
        """One row, of a captioned image with a caption that ``rng`` chooses.

        A BadRecord when an image does not load, or the text does not fit: a caption must fit whole, a conversation is
        cut on the right, but neither an image nor all that is to be predicted may be cut away.
        """
        if isinstance(record, CaptionedImage):
            return self.row(record, _choose(record.captions, rng), self.pixels(record)[0])
        return self._item(record, record.turns, self.pixels(record))

    def row(self, record: CaptionedImage, caption: str, pixel_values: Tensor) -> LanguageItem:
        """The row of one caption and an image of shape (3, height, width); a BadRecord when it does not fit."""
        return self._item(record, (Turn(IMAGE, caption),), pixel_values[None])

    def answer(self, record: Preference, answer: Answer) -> AnswerRow:
        """The row of the record's prompt and one answer to it, uncut; a BadRecord when it cannot be written."""
        turns = (*record.turns[:-1], Turn(record.turns[-1].question, answer.text))
        try:
            ids, supervised, phrases = self._tokens(with_phrases(self._segments(turns), answer))
        except ValueError as error:
            raise BadRecord(_place(record), record.id, str(error), "or leave the record out") from error
        self._check_images(record, ids)
        labels = [token if wanted else -100 for token, wanted in zip(ids, supervised, strict=True)]
        return AnswerRow(self._expand(ids, ids), self._expand(ids, labels), self._expand(ids, phrases))

    def pixels(self, record: Pictured) -> Tensor:
        """The record's images as the tower wants them, (images, 3, height, width)."""
        loaded = [pixels(self.image_processor, record, number) for number in range(len(record.images))]
        return torch.stack(loaded) if loaded else self._no_pixels

    def collate(self, items: list[LanguageItem]) -> LanguageBatch:
        """The items as one batch, padded to its longest row; all images one behind the other, in row order."""
        return LanguageBatch(
            records=tuple(item.record for item in items),
            pixel_values=torch.cat([item.pixel_values for item in items]),
            text=pad([item.ids for item in items], [item.labels for item in items], self.tokenizer.pad_token_id),
        )

    def prompt(self, rows: int = 1, question: str | None = None, *, image: bool = True) -> Tokens:
        """What a row holds before its answer, ``rows`` times, (rows, length): generation starts where training did.

        The image stands alone or before a ``question``, which only a dialogue's template has room for. Without
        ``image`` the question stands alone.
        """
        if question is None and not image:
            raise ValueError("prompt: neither an image nor a question; wanted one of them at least")
        if question is not None and not self.asks:
            raise ValueError(
                f"template={self.template!r} shows the image alone, and {question!r} is to be asked beside it; ask a "
                "model that its last stage trained with template=v1 or chat"
            )
        if self.template == "plain_eos":
            ids = [*_bos(self.tokenizer), self.image_token_id]
        else:
            segments = self._segments(
                (Turn("\n".join(([IMAGE] if image else []) + ([] if question is None else [question])), "."),)
            )
            ids, _, _ = self._tokens(takewhile(lambda segment: not segment.supervised, segments))
        return pad([self._expand(ids, ids)] * rows, None, self.tokenizer.pad_token_id)

    @property
    def asks(self) -> bool:
        """Whether the template has room for a question beside the image."""
        return self.template in ("v1", "chat")

    @cached_property
    def _no_pixels(self) -> Tensor:
        """(0, 3, height, width), of the size that only the processor knows."""
        blank = Image.new("RGB", (64, 64))
        empty: Tensor = self.image_processor(images=[blank], return_tensors="pt")["pixel_values"][:0]
        return empty

    def _item(self, record: CaptionedImage | Conversation, turns: Sequence[Turn], pixel_values: Tensor) -> LanguageItem:
        ids, supervised = self._encoded(record, turns)
        self._check_images(record, ids)
        labels = [token if wanted else -100 for token, wanted in zip(ids, supervised, strict=True)]
        return self._cut(record, self._expand(ids, ids), self._expand(ids, labels), pixel_values)

    def _check_images(self, record: Pictured, ids: list[int]) -> None:
        """Nothing, or a BadRecord when the row has not one image token for each image."""
        if ids.count(self.image_token_id) != len(record.images):
            raise BadRecord(
                _place(record),
                record.id,
                f"{ids.count(self.image_token_id)} image tokens (id {self.image_token_id}) in its text and "
                f"{len(record.images)} images",
                "write <image> once for each image, and the image token nowhere else",
            )

    def _encoded(self, record: CaptionedImage | Conversation, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        """The row's ids, each image as one, and whether each is to be predicted."""
        if self.template == "plain_eos":
            return self._plain_eos(record, turns)
        if not all(turn.answer.strip() for turn in turns):
            raise BadRecord(_place(record), record.id, "a turn has no answer", "write one, or leave the turn out")
        try:
            return self._tokens(self._segments(turns))[:2]
        except ValueError as error:
            raise BadRecord(_place(record), record.id, str(error), "or leave the record out") from error

    def _segments(self, turns: Sequence[Turn]) -> list[Segment]:
        if self.template == "chat":
            return chat(turns, self.tokenizer)
        return v1(turns, self.tokenizer.eos_token) if self.template == "v1" else plain(turns)

    def _tokens(self, segments: Iterable[Segment]) -> tuple[list[int], list[bool], list[int]]:
        """The row's ids, each image as one, whether each is to be predicted, and the phrase that it is in."""
        image_token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        listed = list(segments)
        ids, supervised, phrases = tokenise_phrases(listed, self.tokenizer, image_token)
        text = "".join(segment.text for segment in listed)
        start = [self.tokenizer.bos_token_id] if starts_with_bos(self.template, text, self.tokenizer) else []
        return start + ids, [False] * len(start) + supervised, [0] * len(start) + phrases

    def _plain_eos(self, record: CaptionedImage | Conversation, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        images = len(record.images)
        if len(turns) != 1 or not images:
            raise BadRecord(
                _place(record),
                record.id,
                f"{len(turns)} turns and {images} images, and the template plain_eos holds one turn with an image",
                "use the template v1 or chat",
            )
        prefix = _bos(self.tokenizer) + [self.image_token_id] * images
        target = [*self._caption_ids(record, turns[0].answer), self.tokenizer.eos_token_id]
        return prefix + target, [False] * len(prefix) + [True] * len(target)

    def _caption_ids(self, record: CaptionedImage | Conversation, caption: str) -> list[int]:
        ids = _token_ids(self.tokenizer, caption, record)
        if self.image_token_id in ids:
            raise BadRecord(
                _place(record),
                record.id,
                f"the caption {caption!r} contains the image token, id {self.image_token_id}",
                "remove it: the number of placeholders must equal the number of image features",
            )
        return ids

    def _expand(self, ids: list[int], row: list[int]) -> list[int]:
        """``row``, which runs along ``ids``, with the entry of each image as often as it has patches."""
        counts = (self.num_image_tokens if token == self.image_token_id else 1 for token in ids)
        return [entry for entry, count in zip(row, counts, strict=True) for _ in range(count)]

    def _cut(
        self, record: CaptionedImage | Conversation, ids: list[int], labels: list[int], pixel_values: Tensor
    ) -> LanguageItem:
        """The row, cut to max_length where that is allowed."""
        kept = labels[: self.max_length]
        problem = ""
        if isinstance(record, CaptionedImage) and len(ids) > self.max_length:
            prompt = labels.count(-100)
            problem = f"{prompt} prompt + {len(labels) - prompt} caption tokens are more than max_length"
        elif self.image_token_id in ids[self.max_length :]:
            problem = f"of {len(ids)} tokens some of an image lie behind max_length"
        elif all(label == -100 for label in kept):
            problem = f"of {len(ids)} tokens none that is to be predicted lies before max_length"
        if problem:
            raise BadRecord(
                _place(record),
                record.id,
                f"{problem}={self.max_length}",
                "raise max_length, or shorten the " + ("caption" if isinstance(record, CaptionedImage) else "text"),
            )
        return LanguageItem(record.id, pixel_values, ids[: self.max_length], kept)


class PairCollator:
    """Each image with one caption, in the vocabularies of the language model and of the CLIP text tower, if any."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        clip_tokenizer: Tokenizer | None,
        image_processor: ImageProcessor,
        *,
        max_length: int = 77,
    ) -> None:
        _require_ids("tokenizer", tokenizer, "eos_token_id", "pad_token_id")
        if clip_tokenizer is not None:
            _require_ids("clip_tokenizer", clip_tokenizer, "bos_token_id", "eos_token_id", "pad_token_id")
        if max_length < 3:
            raise ValueError(f"max_length={max_length}: wanted 3 or more: start, one token, end")
        self.tokenizer = tokenizer
        self.clip_tokenizer = clip_tokenizer
        self.image_processor = image_processor
        self.max_length = max_length

    def encode(self, record: CaptionedImage, rng: np.random.Generator) -> PairItem:
        """One pair with a caption that ``rng`` chooses; a BadRecord when the image does not load."""
        return self.row(record, _choose(record.captions, rng), self.pixels(record))

    def pixels(self, record: CaptionedImage) -> Tensor:
        """The record's image as the tower wants it, (3, height, width)."""
        return pixels(self.image_processor, record)

    def row(self, record: CaptionedImage, caption: str, pixel_values: Tensor) -> PairItem:
        """The pair of one caption and an image of shape (3, height, width).

        The CLIP row is cut to max_length and keeps its eos, where CLIP reads the text, as its own tokenizer does.
        """
        return PairItem(record.id, pixel_values, *self.ids(record, caption))

    def collate(self, items: list[PairItem]) -> PairBatch:
        """The items as one batch; both captions are padded to their longest row, no label is set."""
        caption, clip_caption = self.texts([(item.caption, item.clip_caption) for item in items])
        return PairBatch(
            records=tuple(item.record for item in items),
            pixel_values=torch.stack([item.pixel_values for item in items]),
            caption=caption,
            clip_caption=clip_caption,
        )

    def texts(self, rows: list[tuple[list[int], list[int]]]) -> tuple[Tokens, Tokens | None]:
        """The captions' ids in either vocabulary, padded; None where there is no second."""
        first = pad([ids for ids, _ in rows], None, self.tokenizer.pad_token_id)
        if self.clip_tokenizer is None:
            return first, None
        return first, pad([ids for _, ids in rows], None, self.clip_tokenizer.pad_token_id)

    def ids(self, record: CaptionedImage, caption: str) -> tuple[list[int], list[int]]:
        """The caption's ids in either vocabulary, those of the second, if any, cut to max_length with its eos kept."""
        ids = [*_bos(self.tokenizer), *_token_ids(self.tokenizer, caption, record), self.tokenizer.eos_token_id]
        return ids, self._clip_ids(caption, record)

    def _clip_ids(self, caption: str, record: CaptionedImage) -> list[int]:
        if self.clip_tokenizer is None:
            return []
        ids = [self.clip_tokenizer.bos_token_id, *_token_ids(self.clip_tokenizer, caption, record)]
        return [*ids[: self.max_length - 1], self.clip_tokenizer.eos_token_id]


def _require_ids(argument: str, tokenizer: Tokenizer, *names: str) -> None:
    for name in names:
        if getattr(tokenizer, name) is None:
            token = name.removesuffix("_id")
            raise ValueError(f"{argument} has no {token}; set {argument}.{token} to a token of its vocabulary")


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _choose(captions: Sequence[str], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))].strip()


def _token_ids(tokenizer: Tokenizer, caption: str, record: CaptionedImage | Conversation) -> list[int]:
    """The caption's ids without special tokens; a BadRecord when there are none."""
    ids = list(tokenizer(caption, add_special_tokens=False)["input_ids"])
    if not ids:
        raise BadRecord(_place(record), record.id, f"the caption {caption!r} has no tokens", "write a caption")
    return ids


def _place(record: Pictured) -> str:
    """What an error names as the record's file."""
    return str(record.images[0]) if record.images else "a conversation without an image"


def _require_template(template: str, tokenizer: LanguageTokenizer, image_token_id: int) -> None:
    """Nothing, or a ValueError when the template is unknown or the tokenizer lacks what it needs."""
    if template not in TEMPLATES:
        raise ValueError(f"template={template!r}: wanted one of {', '.join(TEMPLATES)}")
    if template == "plain_eos":
        return
    if not tokenizer.is_fast:
        raise ValueError(f"template={template!r}: the tokenizer does not tell where its tokens lie; load a fast one")
    if image_token_id not in tokenizer.get_added_vocab().values():
        raise ValueError(
            f"template={template!r}: image_token_id={image_token_id} is no added token, so that text could swallow it; "
            'add it with tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})'
        )
    if template == "chat":
        if not tokenizer.chat_template:
            raise ValueError("template='chat': the tokenizer has no chat template; use the template v1")
        chat((Turn("a", "b"), Turn("c", "d")), tokenizer)  # raises here, before training, where it cannot be used


def pixels(image_processor: ImageProcessor, record: Pictured, number: int = 0) -> Tensor:
    """The record's image, the ``number``-th of several, as the tower wants it, (3, height, width)."""
    return processed(image_processor, load_image(record, number))


def processed(image_processor: ImageProcessor, image: Image.Image) -> Tensor:
    """The image as the tower wants it, (3, height, width)."""
    pixels: Tensor = image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    return pixels


def pad(rows: list[list[int]], labels: list[list[int]] | None, pad_id: int) -> Tokens:
    """The rows as one Tokens, padded on the right; without ``labels`` all of them are -100."""
    labels = labels if labels is not None else [[-100] * len(row) for row in rows]
    return Tokens(
        ids=filled(rows, pad_id), mask=filled([[1] * len(row) for row in rows], 0), labels=filled(labels, -100)
    )


def filled(rows: list[list[int]], entry: int) -> Tensor:
    """The rows, each filled up with ``entry`` on the right to the longest, (rows, length), int64."""
    length = max(len(row) for row in rows)
    return torch.tensor([row + [entry] * (length - len(row)) for row in rows])
