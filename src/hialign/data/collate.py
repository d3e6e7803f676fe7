"""Records to batches: one image and one caption each, tokenised, padded on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hialign.batch import LanguageBatch, PairBatch, Tokens
from hialign.data.records import BadRecord, CaptionedImage, load_image


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: Any  # int or None
    eos_token_id: Any
    pad_token_id: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, Any]: ...


class ImageProcessor(Protocol):
    """What is used of a transformers image processor."""

    def __call__(self, *, images: list[Image.Image], return_tensors: str) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class LanguageItem:
    """One row of a LanguageBatch before padding."""

    record: str
    pixel_values: Tensor  # (3, height, width)
    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class PairItem:
    """One row of a PairBatch before padding."""

    record: str
    pixel_values: Tensor  # (3, height, width)
    caption: list[int]
    clip_caption: list[int]


class LanguageCollator:
    """Rows of [bos] image placeholders, caption, [eos], of which the caption and eos are to be predicted.

    A tokenizer without a bos token (Qwen's, for one) gives rows without it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_processor: ImageProcessor,
        *,
        image_token_id: int,
        num_image_tokens: int,
        max_length: int = 2048,
    ) -> None:
        _require_ids("tokenizer", tokenizer, "eos_token_id", "pad_token_id")
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.image_token_id = image_token_id
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length

    def encode(self, record: CaptionedImage, rng: np.random.Generator) -> LanguageItem:
        """One row with a caption that ``rng`` chooses; a BadRecord when it does not load or does not fit."""
        return self.row(record, _choose(record.captions, rng), pixels(self.image_processor, record))

    def row(self, record: CaptionedImage, caption: str, pixel_values: Tensor) -> LanguageItem:
        """The row of one caption and an image of shape (3, height, width); a BadRecord when it does not fit."""
        prefix = self._prefix()
        target = [*self._caption_ids(record, caption), self.tokenizer.eos_token_id]
        if len(prefix) + len(target) > self.max_length:
            raise BadRecord(
                str(record.image),
                record.id,
                f"{len(prefix)} prompt + {len(target)} caption tokens are more than max_length={self.max_length}",
                "raise max_length, or shorten the caption",
            )
        return LanguageItem(record.id, pixel_values, prefix + target, [-100] * len(prefix) + target)

    def collate(self, items: list[LanguageItem]) -> LanguageBatch:
        """The items as one batch, padded to its longest row."""
        return LanguageBatch(
            records=tuple(item.record for item in items),
            pixel_values=torch.stack([item.pixel_values for item in items]),
            text=_pad([item.ids for item in items], [item.labels for item in items], self.tokenizer.pad_token_id),
        )

    def prompt(self, rows: int = 1) -> Tokens:
        """What a row holds before its caption, ``rows`` times, (rows, length): generation starts where training did."""
        return _pad([self._prefix()] * rows, None, self.tokenizer.pad_token_id)

    def _prefix(self) -> list[int]:
        return _bos(self.tokenizer) + [self.image_token_id] * self.num_image_tokens

    def _caption_ids(self, record: CaptionedImage, caption: str) -> list[int]:
        ids = _token_ids(self.tokenizer, caption, record)
        if self.image_token_id in ids:
            raise BadRecord(
                str(record.image),
                record.id,
                f"the caption {caption!r} contains the image token, id {self.image_token_id}",
                "remove it: the number of placeholders must equal the number of image features",
            )
        return ids


class PairCollator:
    """Each image with one caption, in the vocabularies of the language model and of the CLIP text tower."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        clip_tokenizer: Tokenizer,
        image_processor: ImageProcessor,
        *,
        max_length: int = 77,
    ) -> None:
        _require_ids("tokenizer", tokenizer, "eos_token_id", "pad_token_id")
        _require_ids("clip_tokenizer", clip_tokenizer, "bos_token_id", "eos_token_id", "pad_token_id")
        if max_length < 3:
            raise ValueError(f"max_length={max_length}: wanted 3 or more: start, one token, end")
        self.tokenizer = tokenizer
        self.clip_tokenizer = clip_tokenizer
        self.image_processor = image_processor
        self.max_length = max_length

    def encode(self, record: CaptionedImage, rng: np.random.Generator) -> PairItem:
        """One pair with a caption that ``rng`` chooses; a BadRecord when the image does not load."""
        return self.row(record, _choose(record.captions, rng), pixels(self.image_processor, record))

    def row(self, record: CaptionedImage, caption: str, pixel_values: Tensor) -> PairItem:
        """The pair of one caption and an image of shape (3, height, width).

        The CLIP row is cut to max_length and keeps its eos, where CLIP reads the text, as its own tokenizer does.
        """
        ids = [*_bos(self.tokenizer), *_token_ids(self.tokenizer, caption, record), self.tokenizer.eos_token_id]
        clip_ids = [self.clip_tokenizer.bos_token_id, *_token_ids(self.clip_tokenizer, caption, record)]
        clip_ids = [*clip_ids[: self.max_length - 1], self.clip_tokenizer.eos_token_id]
        return PairItem(record.id, pixel_values, ids, clip_ids)

    def collate(self, items: list[PairItem]) -> PairBatch:
        """The items as one batch; both captions are padded to their longest row, no label is set."""
        return PairBatch(
            records=tuple(item.record for item in items),
            pixel_values=torch.stack([item.pixel_values for item in items]),
            caption=_pad([item.caption for item in items], None, self.tokenizer.pad_token_id),
            clip_caption=_pad([item.clip_caption for item in items], None, self.clip_tokenizer.pad_token_id),
        )


def _require_ids(argument: str, tokenizer: Tokenizer, *names: str) -> None:
    for name in names:
        if getattr(tokenizer, name) is None:
            token = name.removesuffix("_id")
            raise ValueError(f"{argument} has no {token}; set {argument}.{token} to a token of its vocabulary")


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _choose(captions: Sequence[str], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))].strip()


def _token_ids(tokenizer: Tokenizer, caption: str, record: CaptionedImage) -> list[int]:
    """The caption's ids without special tokens; a BadRecord when there are none."""
    ids = list(tokenizer(caption, add_special_tokens=False)["input_ids"])
    if not ids:
        raise BadRecord(str(record.image), record.id, f"the caption {caption!r} has no tokens", "write a caption")
    return ids


def pixels(image_processor: ImageProcessor, record: CaptionedImage) -> Tensor:
    """The record's image as the tower wants it, (3, height, width)."""
    pixels: Tensor = image_processor(images=[load_image(record)], return_tensors="pt")["pixel_values"][0]
    return pixels


def _pad(rows: list[list[int]], labels: list[list[int]] | None, pad_id: int) -> Tokens:
    """The rows as one Tokens, padded on the right; without ``labels`` all of them are -100."""
    length = max(len(row) for row in rows)
    labels = labels if labels is not None else [[]] * len(rows)
    return Tokens(
        ids=torch.tensor([row + [pad_id] * (length - len(row)) for row in rows]),
        mask=torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        labels=torch.tensor([row + [-100] * (length - len(row)) for row in labels]),
    )
