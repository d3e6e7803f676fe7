"""Preferences and hallucinated captions to batches: two texts for each row's images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hialign.batch import HallucinatedBatch, PreferenceBatch, Tokens
from hialign.data.collate import (
    AnswerRow,
    ImageProcessor,
    LanguageCollator,
    LanguageTokenizer,
    PairCollator,
    PairItem,
    Tokenizer,
    filled,
    pad,
    processed,
)
from hialign.data.corrupt import KINDS, NOISE_STEP, STEPS, corrupted
from hialign.data.preferences import flaw_of
from hialign.data.records import BadRecord, Dataset, HallucinatedImage, Preference, load_image

_TRIES = 20  # other records that are looked at for another image


@dataclass(frozen=True)
class PreferenceItem:
    """One row of a PreferenceBatch before padding."""

    record: str
    pixel_values: Tensor  # (images, 3, height, width)
    corrupted: Tensor | None  # the same shape
    chosen: AnswerRow
    rejected: AnswerRow
    start: int


@dataclass(frozen=True)
class HallucinatedItem:
    """One row of a HallucinatedBatch before padding."""

    pair: PairItem
    hallucinated: tuple[list[int], list[int]]


class PreferenceCollator:
    """Rows of a prompt, its images or none, and two answers, in the layout ``template``: v1 or chat.

    ``corrupt`` says how each image is made to say less for a visual preference, one of ``corrupt.KINDS``, None: it is
    not asked for. ``noise_step`` is how much noise, with "noise"; ``others`` is the data set to take another record's
    image from, with "other". ``phrases``: each record must have its phrases marked, which the batch then holds.

    What a record's generator decides is drawn once, for every model that reads the batch.
    """

    def __init__(
        self,
        tokenizer: LanguageTokenizer,
        image_processor: ImageProcessor,
        *,
        image_token_id: int,
        num_image_tokens: int,
        max_length: int = 2048,
        template: str = "v1",
        corrupt: str | None = None,
        noise_step: int = NOISE_STEP,
        others: Dataset[Any] | None = None,
        phrases: bool = False,
    ) -> None:
        if template not in ("v1", "chat"):
            raise ValueError(f"template={template!r}: two answers need their question; use template=v1 or chat")
        if corrupt is not None and corrupt not in KINDS:
            raise ValueError(f"corrupt={corrupt!r}: wanted one of {', '.join(KINDS)}, or null")
        if not 0 <= noise_step < STEPS:
            raise ValueError(f"noise_step={noise_step}: wanted 0 <= noise_step < {STEPS}")
        if (corrupt == "other") != (others is not None):
            raise ValueError(f"corrupt={corrupt!r} with others={others and others.name}: each wants the other")
        self.rows = LanguageCollator(
            tokenizer,
            image_processor,
            image_token_id=image_token_id,
            num_image_tokens=num_image_tokens,
            max_length=max_length,
            template=template,
        )
        self.corrupt, self.noise_step, self.others, self.phrases = corrupt, noise_step, others, phrases

    def encode(self, record: Preference, rng: np.random.Generator) -> PreferenceItem:
        """One row; a BadRecord when an image does not load, or the two answers cannot be set against each other.

        Nothing is cut: half an answer would be another answer.
        """
        flaw = flaw_of(record.turns, len(record.images), *record.answers)
        if flaw:
            raise _bad(record, flaw, "mend the record, or leave it out")
        chosen, rejected = (self.rows.answer(record, answer) for answer in record.answers)
        if chosen.ids == rejected.ids:
            raise _bad(record, "chosen and rejected are the same to the tokenizer", "leave the record out")
        for side, row in (("chosen", chosen), ("rejected", rejected)):
            self._check_length(record, side, row)
        if self.phrases:
            _check_phrases(record, chosen, rejected)
        pixel_values = self.rows.pixels(record)
        corrupted = None if self.corrupt is None else self._corrupted(record, pixel_values, rng)
        return PreferenceItem(record.id, pixel_values, corrupted, chosen, rejected, _start(chosen, rejected))

    def collate(self, items: list[PreferenceItem]) -> PreferenceBatch:
        """The items as one batch, each side padded to its own longest row; all images one behind the other."""
        corrupted = [item.corrupted for item in items if item.corrupted is not None]
        chosen, rejected = ([getattr(item, side) for item in items] for side in ("chosen", "rejected"))
        return PreferenceBatch(
            records=tuple(item.record for item in items),
            pixel_values=torch.cat([item.pixel_values for item in items]),
            corrupted_pixel_values=torch.cat(corrupted) if corrupted else None,
            chosen=self._padded(chosen),
            rejected=self._padded(rejected),
            starts=torch.tensor([item.start for item in items]),
            chosen_phrases=filled([row.phrases for row in chosen], 0) if self.phrases else None,
            rejected_phrases=filled([row.phrases for row in rejected], 0) if self.phrases else None,
        )

    def _padded(self, rows: list[AnswerRow]) -> Tokens:
        return pad([row.ids for row in rows], [row.labels for row in rows], self.rows.tokenizer.pad_token_id)

    def _check_length(self, record: Preference, side: str, row: AnswerRow) -> None:
        longest = self.rows.max_length
        if len(row.ids) <= longest:
            return
        lost = "some of an image lie" if self.rows.image_token_id in row.ids[longest:] else "the answer's end lies"
        problem = f"of {len(row.ids)} tokens of {side} {lost} behind max_length={longest}"
        raise _bad(record, problem, "raise max_length, or shorten the text")

    def _corrupted(self, record: Preference, pixel_values: Tensor, rng: np.random.Generator) -> Tensor:
        """Each of the record's images made to say less, (images, 3, height, width)."""
        if not record.images:
            raise _bad(record, f"it has no image, and corrupt={self.corrupt!r} wants one", "leave the record out")
        made = torch.stack([self._less(record, number, pixels, rng) for number, pixels in enumerate(pixel_values)])
        same = [number for number, pair in enumerate(zip(made, pixel_values, strict=True)) if torch.equal(*pair)]
        if same:
            problem = f"corrupt={self.corrupt!r} leaves image {same[0] + 1} of {len(made)} as it is"
            raise _bad(record, problem, "use another: a crop cuts nothing off a small image, noise and zoom suit any")
        return made

    def _less(self, record: Preference, number: int, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """The record's image, the ``number``-th of several, made to say less."""
        assert self.corrupt is not None
        if self.corrupt == "other":
            return self._other(record, pixels, rng)
        image, process = partial(load_image, record, number), partial(processed, self.rows.image_processor)
        return corrupted(self.corrupt, image, pixels, process, rng, step=self.noise_step)

    def _other(self, record: Preference, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """The first image of another record that is not the same picture: several records may share one."""
        for other in self._drawn(rng):
            if other.images and other.id != record.id:
                found = processed(self.rows.image_processor, load_image(other))
                if not torch.equal(found, pixels):
                    return found
        raise _bad(record, f"{_TRIES} records by chance show no other image", "use corrupt=noise, or add records")

    def _drawn(self, rng: np.random.Generator) -> Iterator[Any]:
        assert self.others is not None
        for _ in range(_TRIES):
            yield self.others.records[int(rng.integers(len(self.others)))]


class HallucinatedCollator:
    """Each image with one of its captions and the text that is wrong of it, in the vocabularies of PairCollator."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        clip_tokenizer: Tokenizer | None,
        image_processor: ImageProcessor,
        *,
        max_length: int = 77,
    ) -> None:
        self.pairs = PairCollator(tokenizer, clip_tokenizer, image_processor, max_length=max_length)

    def encode(self, record: HallucinatedImage, rng: np.random.Generator) -> HallucinatedItem:
        """One row, of a caption that ``rng`` chooses and its wrong counterpart; a BadRecord when it has none."""
        captions, wrong = tuple(record.captions), tuple(record.hallucinated)
        if len(captions) != len(wrong):
            problem = f"{len(captions)} captions and {len(wrong)} hallucinated ones"
            raise BadRecord(str(record.image), record.id, problem, "write one hallucinated caption for each caption")
        number = int(rng.integers(len(captions)))
        right, other = (texts[number].strip() for texts in (captions, wrong))
        row = self.pairs.row(record, right, self.pairs.pixels(record))
        ids = self.pairs.ids(record, other)
        if ids[0] == row.caption:
            problem = f"the hallucinated caption {other!r} is the caption to the tokenizer"
            raise BadRecord(str(record.image), record.id, problem, "write one that is wrong of the image")
        return HallucinatedItem(row, ids)

    def collate(self, items: list[HallucinatedItem]) -> HallucinatedBatch:
        """The items as one batch; each text is padded to its own longest row, no label is set."""
        batch = self.pairs.collate([item.pair for item in items])
        hallucinated, clip_hallucinated = self.pairs.texts([item.hallucinated for item in items])
        return HallucinatedBatch(
            **{field.name: getattr(batch, field.name) for field in fields(batch)},
            hallucinated=hallucinated,
            clip_hallucinated=clip_hallucinated,
        )


def _start(chosen: AnswerRow, rejected: AnswerRow) -> int:
    """How many ids both rows begin with, before anything is to be predicted.

    A tokenizer may join the prompt's last characters with an answer's first; such a token is the answer's.
    """
    sides = zip(chosen.ids, rejected.ids, chosen.labels, rejected.labels, strict=False)
    for place, (one, other, *labels) in enumerate(sides):
        if one != other or labels != [-100, -100]:
            return place
    raise AssertionError("a row without an answer")  # rows end in an answer, which has labels


def _check_phrases(record: Preference, chosen: AnswerRow, rejected: AnswerRow) -> None:
    """Nothing, or a BadRecord when the two sides have not the same phrases, at least one, each with tokens."""
    numbers = [len(answer.phrases) for answer in record.answers]
    if numbers[0] != numbers[1] or not numbers[0]:
        problem = f"{numbers[0]} phrases in chosen and {numbers[1]} in rejected"
        raise _bad(record, problem, "mark as many in both, and one at least")
    for side, row in (("chosen", chosen), ("rejected", rejected)):
        lost = set(range(1, numbers[0] + 1)) - set(row.phrases)
        if lost:
            problem = f"phrase {min(lost)} of {side} has no token of its own"
            raise _bad(record, problem, "mark it together with its neighbour, or leave the record out")


def _bad(record: Preference, problem: str, fix: str) -> BadRecord:
    place = str(record.images[0]) if record.images else "a preference without an image"
    return BadRecord(place, record.id, problem, fix)
