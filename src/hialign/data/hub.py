"""Images with captions in what the datasets library reads: hub names, parquet files, folders of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hialign.data.files import Problems
from hialign.data.records import IMAGE, BadRecord, CaptionedImage, Dataset, Part, Skipped, Streamed, check_on_error
from hialign.data.records import split as split_records
from hialign.data.tables import UNREADABLE, Cell, content, encoded, label, load, reason, require_columns


@dataclass(frozen=True)
class _Held:
    """The image in a row that was read from a stream."""

    name: str
    cell: Mapping[str, Any] | None

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """The cell's bytes, or those of the file that it names; an OSError when it has neither."""
        return content(self.cell)

    @property
    def id(self) -> str:
        """The file that the cell names, or a digest of its bytes: a stream has no numbers that stay the same."""
        cell = self.cell or {}
        if not cell.get("bytes"):
            return str(cell.get("path") or "a row without an image")
        digest = hashlib.blake2b(cell["bytes"], digest_size=8).hexdigest()
        return f"{cell['path']} ({digest})" if cell.get("path") else f"image {digest}"


class _Share:
    """One rank's part of a stream."""

    def __init__(self, name: str, rows: Any, rank: int, world_size: int) -> None:
        from datasets.distributed import split_dataset_by_node

        self.name = name
        self.rows = split_dataset_by_node(rows, rank=rank, world_size=world_size)

    def start(self, shuffle: int, state: Mapping[str, Any] | None) -> Iterator[Any]:
        """The rows from ``state`` on, or all; datasets shuffles the files by the number of the epoch."""
        self.rows.set_epoch(shuffle)
        self.rows.load_state_dict(state)  # None: from the beginning
        try:
            yield from self.rows
        except UNREADABLE as error:
            raise ValueError(f"{self.name}: it cannot be read on: {reason(error)}; mend it, then resume") from error

    def state_dict(self) -> dict[str, Any]:
        """The place behind the row last read."""
        state: dict[str, Any] = self.rows.state_dict()
        return state


def hub_captions(
    path: str | list[str],
    *,
    name: str | None = None,
    split: str,
    image_column: str = "image",
    caption_column: str = "caption",
    revision: str | None = None,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[CaptionedImage]:
    """The images and captions of a data set that ``datasets.load_dataset`` reads, each row one record.

    ``path`` is a hub name (``name`` its configuration, ``revision`` a commit), parquet files (one, a list, a pattern
    such as ``train-*.parquet``), or a folder of parquet files or of images with a metadata.jsonl. ``split`` is the data
    set's own; ``part`` and ``holdout`` divide it. A caption column holds one caption or a list. A record's id is its
    row's number, so a hub set keeps its order and its held-out part only under one ``revision``. Images are decoded
    when a batch needs them.

    Bad captions raise a BadRecord or, with on_error="skip", are listed in ``skipped``; a missing set, split or column,
    and a metadata.jsonl that datasets cannot read, always raise.
    """
    check_on_error(on_error)
    rows = load(path, name, split, revision)
    require_columns(rows, path, {"image_column": image_column, "caption_column": caption_column})
    table = label(path, split)
    problems = Problems(label(path), on_error)
    images = encoded(rows, path, "image_column", image_column)
    records = []
    for number, value in enumerate(rows[caption_column]):
        captions = _captions(value, f"row {number}", problems)
        if captions:
            records.append(CaptionedImage(str(number), Cell(table, images, image_column, number), captions))
    parted = split_records(records, part, holdout=holdout, seed=split_seed)
    return Dataset(table, parted, tuple(problems.skipped), on_error)


def hub_caption_stream(
    path: str | list[str],
    *,
    name: str | None = None,
    split: str,
    image_column: str = "image",
    caption_column: str = "caption",
    revision: str | None = None,
    shuffle_buffer: int = 1000,
    on_error: str = "raise",
) -> Streamed[CaptionedImage]:
    """The same rows, read from where they lie while they are needed: nothing is downloaded or converted ahead.

    The order of the files is drawn anew for each pass, then ``shuffle_buffer`` rows at a time are put into an order of
    their own; up to two such blocks of encoded images are in memory. With several ranks each reads its own files where
    their number divides by that of the ranks, else every so many-th row, which means reading all of them.

    A record's id is the file that its image cell names, or a digest of the image. Bad rows raise a BadRecord when a
    batch needs them or, with on_error="skip", are counted and filled from another row of the batch; there is no way to
    hold a part of the rows out. A missing set, split or column raises here.
    """
    check_on_error(on_error)
    rows = load(path, name, split, revision, streaming=True)
    if rows.column_names is None:
        raise ValueError(f"path={path!r}: it does not say which columns it has, which a stream must; use hub_captions")
    require_columns(rows, path, {"image_column": image_column, "caption_column": caption_column})
    import datasets

    nothing = datasets.Dataset.from_dict({column: [] for column in rows.features}, features=rows.features)
    encoded(nothing, path, "image_column", image_column)  # that it holds images shows now and not in a worker
    columns = [image_column, caption_column]
    raw = rows.select_columns(columns).cast_column(image_column, datasets.Image(decode=False))
    table = label(path, split)
    record = partial(_streamed_record, name=table, columns=(image_column, caption_column), on_error=on_error)
    return Streamed(table, partial(_Share, table, raw), record, shuffle_buffer, on_error)


def _streamed_record(
    row: Mapping[str, Any], *, name: str, columns: tuple[str, str], on_error: str
) -> tuple[CaptionedImage, tuple[Skipped, ...]]:
    """The row's record, and the captions that were left out of it; a BadRecord when none remains."""
    image, value = (row[column] for column in columns)
    held = _Held(name, image)
    problems = Problems(name, on_error)
    captions = _captions(value, held.id, problems)
    if not captions:
        raise BadRecord(name, held.id, problems.skipped[-1].problem, "write a caption")
    return CaptionedImage(held.id, held, captions), tuple(problems.skipped)


def _captions(value: Any, record: str, problems: Problems) -> tuple[str, ...]:
    """The different captions of a cell, which may be none; each bad one goes to ``problems``."""
    captions: dict[str, None] = {}
    values = value if isinstance(value, list) else [value]
    for caption in values:
        if not isinstance(caption, str) or not caption.strip():
            problems.add(record, f"caption={caption!r}", "write one")
        elif IMAGE in caption:
            problems.add(record, f"the caption contains the placeholder {IMAGE!r}", "remove it")
        else:
            captions[caption.strip()] = None
    if not values:
        problems.add(record, "no caption", "write one")
    return tuple(captions)
