"""Records, the datasets that hold them, and the errors that name them."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError


class Record(Protocol):
    """Anything with an id; a dataset adapter decides what else it holds."""

    @property
    def id(self) -> str: ...


class Pictured(Record, Protocol):
    """A record with some images, or none."""

    @property
    def images(self) -> tuple[ImageSource, ...]: ...


R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)


class EncodedImage(Protocol):
    """An image that is no file of its own, a cell of a table for one; ``str`` of it is its name in errors."""

    def read(self) -> bytes:
        """The image's file content (jpeg, png, ...); an OSError when it cannot be had."""


ImageSource = Path | EncodedImage
Span = tuple[int, int]  # where a phrase of a text begins and where it ends, in characters
Part = Literal["train", "heldout"]
IMAGE = "<image>"  # where an image stands in a turn; the model's own image token takes its place when it is tokenised


@dataclass(frozen=True)
class CaptionedImage:
    """One image and every caption written for it, at least one."""

    id: str
    image: ImageSource
    captions: tuple[str, ...]

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The image, as a conversation has its several."""
        return (self.image,)

    @property
    def words(self) -> int:
        """About how many words a row of it has: the mean over its captions."""
        return sum(_words(caption) for caption in self.captions) // len(self.captions)


@dataclass(frozen=True)
class HallucinatedImage(CaptionedImage):
    """A captioned image with a text for each caption, in the captions' order, that is wrong of the image."""

    hallucinated: tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """A question, with "<image>" where its images stand, and its answer; empty where none is known."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns, at least one, about some images or none: as many as the turns' questions have "<image>", in that order."""

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]

    @property
    def words(self) -> int:
        """About how many words all turns have together."""
        return sum(_words(turn.question) + _words(turn.answer) for turn in self.turns)


@dataclass(frozen=True)
class Answer:
    """An answer without white space around it; its phrases in their order, none of them empty, none overlapping."""

    text: str
    phrases: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if self.text != self.text.strip():
            raise ValueError(
                f"text={self.text[:80]!r}: wanted no white space around it, and phrases counted without it"
            )
        ends = [place for span in self.phrases for place in span]
        within = not ends or (ends[0] >= 0 and ends[-1] <= len(self.text))
        if not within or ends != sorted(ends) or any(start >= end for start, end in self.phrases):
            raise ValueError(
                f"phrases={self.phrases}: wanted (start, end) with start < end, in order, none overlapping, within the "
                f"{len(self.text)} characters of text={self.text[:80]!r}"
            )


@dataclass(frozen=True)
class Preference:
    """A dialogue whose last question, its answer left empty, has two answers: one to prefer, then one to avoid.

    Where one answer's phrases are marked the other's are too: as many, and phrase i of one stands against phrase i of
    the other.
    """

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]
    answers: tuple[Answer, Answer]

    @property
    def chosen(self) -> Answer:
        """The answer to prefer."""
        return self.answers[0]

    @property
    def rejected(self) -> Answer:
        """The answer to avoid."""
        return self.answers[1]

    @property
    def words(self) -> int:
        """About how many words the longer of its two rows has."""
        prompt = sum(_words(turn.question) + _words(turn.answer) for turn in self.turns)
        return prompt + max(_words(answer.text) for answer in self.answers)


def _words(text: str) -> int:
    return text.count(" ") + 1  # ten times faster than split, which counts for half a million conversations


@dataclass(frozen=True)
class Skipped:
    """A record that was left out, the file that named it, and why."""

    file: str
    record: str
    problem: str


class BadRecord(ValueError):
    """A record that cannot be used: which file and record, what is wrong with it, how to mend it."""

    def __init__(self, file: str, record: str, problem: str, fix: str) -> None:
        # All four go to ValueError, so that pickle can rebuild the error on its way out of a worker process.
        super().__init__(file, record, problem, fix)
        self.file = file
        self.record = record
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.problem}; {self.fix}"


def check_on_error(on_error: str) -> None:
    """Nothing, or a ValueError when ``on_error`` is neither "raise" nor "skip"."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error={on_error!r}: wanted "raise" or "skip"')


@dataclass(frozen=True)
class Dataset(Generic[R_co]):
    """Named records, never empty, with those left out on the way and what to do about a bad one met later.

    ``on_error`` is "raise" or "skip"; it decides about records that only fail when they are loaded.
    """

    name: str
    records: Sequence[R_co]
    skipped: tuple[Skipped, ...] = ()
    on_error: str = "raise"

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        if len(self.records) == 0:
            first = "; ".join(f"{s.file}: {s.record}: {s.problem}" for s in self.skipped[:3])
            raise ValueError(
                f"dataset {self.name!r} has no records, {len(self.skipped)} were skipped"
                + (f" (first: {first}); mend the files" if first else "; give it more records or another holdout")
            )

    def __len__(self) -> int:
        return len(self.records)


class Share(Protocol):
    """One rank's part of a stream of raw rows, which are whatever ``Streamed.record`` reads."""

    def start(self, shuffle: int, state: Mapping[str, Any] | None) -> Iterator[Any]:
        """The rows of a pass from ``state`` on, or all; ``shuffle``, above 0, decides the order of the files."""

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last row that was read, in the pass under way; goes through json."""


@dataclass(frozen=True)
class Streamed(Generic[R_co]):
    """Named records that are read one behind the other, how many there are unknown.

    ``share(rank, world_size)`` is one rank's part of the stream. Blocks of ``shuffle_buffer`` raw rows are read and
    each is put into an order of its own. ``record`` makes a row's record, and says what of the row it left out; a
    BadRecord when nothing is left. ``on_error`` is "raise" or "skip".
    """

    name: str
    share: Callable[[int, int], Share]
    record: Callable[[Any], tuple[R_co, tuple[Skipped, ...]]]
    shuffle_buffer: int
    on_error: str = "raise"

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer={self.shuffle_buffer}: wanted 1 or more rows")


@dataclass(frozen=True)
class Mixture:
    """Datasets, streamed all or none, and the weight with which each row of a batch is drawn from them."""

    datasets: tuple[Dataset[Any], ...] | tuple[Streamed[Any], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.datasets or len(self.datasets) != len(self.weights):
            raise ValueError(
                f"mix: {len(self.datasets)} datasets and {len(self.weights)} weights; give one weight per dataset"
            )
        if not all(weight > 0 and math.isfinite(weight) for weight in self.weights):
            raise ValueError(f"mix: weights={list(self.weights)}: each must be a finite number above 0")
        streamed = [dataset.name for dataset in self.datasets if isinstance(dataset, Streamed)]
        if streamed and len(streamed) < len(self.datasets):
            others = [dataset.name for dataset in self.datasets if dataset.name not in streamed]
            raise ValueError(
                f"mix: {streamed} are streamed and {others} are not; stream all of them, or none (hub_captions reads "
                "what hub_caption_stream streams)"
            )


AnyData = Dataset[Any] | Streamed[Any] | Mixture


def mix(datasets: list[Dataset[Any]] | list[Streamed[Any]], weights: list[float]) -> Mixture:
    """The mixture of ``datasets``, each row drawn from one of them in proportion to ``weights``."""
    return Mixture(tuple(datasets), tuple(float(weight) for weight in weights))  # type: ignore[arg-type]


def split(records: Sequence[R], part: Part, *, holdout: float, seed: int) -> list[R]:
    """The records of one part, ordered by id.

    A seeded permutation of the records ordered by id chooses round(holdout * n) held-out ones, at least one when
    holdout > 0, so that the parts do not depend on the order in a file; together they hold every record once.
    """
    if part not in ("train", "heldout"):
        raise ValueError(f'part={part!r}: wanted "train" or "heldout"')
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout}: wanted a share in [0, 1), for example 0.1")
    ordered = sorted(records, key=lambda record: record.id)
    for before, after in pairwise(ordered):
        if before.id == after.id:
            raise ValueError(f"two records have the id {after.id!r}; ids must differ to be split")
    count = max(1, round(holdout * len(ordered))) if holdout > 0 else 0
    chosen = set(np.random.default_rng(seed).permutation(len(ordered))[:count].tolist())
    return [record for index, record in enumerate(ordered) if (index in chosen) == (part == "heldout")]


def image_path(root: Path, name: str, *, file: str, record: str) -> Path:
    """The path of image ``name`` under ``root``; a BadRecord when the name leads out of it.

    Only the name is judged: a symbolic link below ``root`` may point anywhere, as the layouts of download caches do.
    """
    path = os.path.abspath(os.path.join(root, name))
    if not path.startswith(os.path.join(os.path.abspath(root), "")):
        raise BadRecord(
            file, record, f"image {name!r} is not inside {root}", f"write the name relative to {root}, without '..'"
        )
    return Path(path)


def load_image(record: Pictured, number: int = 0) -> Image.Image:
    """The record's image, the ``number``-th of several, in RGB; a BadRecord when it is gone, broken or no image."""
    source = record.images[number]
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source.read())) as image:
            return image.convert("RGB")
    # Pillow's decoders let more than OSError out for broken files; each of these was seen or is documented.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        # Pillow's words hold an address here, which would make every report of one record another one
        words = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise BadRecord(
            str(source),
            record.id,
            f"the image cannot be read ({type(error).__name__}: {words})",
            "get the file again, or leave it out with on_error=skip (in training: data.on_error=skip)",
        ) from error
