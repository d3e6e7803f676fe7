"""Images with captions in what the datasets library reads: hub names, parquet files, folders of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hialign.data.files import Problems
from hialign.data.records import IMAGE, CaptionedImage, Dataset, Part, check_on_error
from hialign.data.records import split as split_records


@dataclass(frozen=True)
class _Cell:
    """The image in one row of a table, read when it is asked for."""

    name: str
    images: Any  # datasets.Dataset of the image column, not decoded
    column: str
    row: int

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """The cell's bytes, or those of the file that it names; an OSError when it has neither."""
        cell = self.images[self.row][self.column] or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        if cell.get("path"):
            return Path(cell["path"]).read_bytes()
        raise OSError("the cell is empty")


def hub_captions(
    path: str,
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

    ``path`` is a hub name (``name`` its configuration, ``revision`` a commit), a parquet file, or a folder of parquet
    files or of images with a metadata.jsonl. ``split`` is the data set's own; ``part`` and ``holdout`` divide it. A
    caption column holds one caption or a list. A record's id is its row's number, so a hub set keeps its order and its
    held-out part only under one ``revision``. Images are decoded when a batch needs them.

    Bad captions raise a BadRecord or, with on_error="skip", are listed in ``skipped``; a missing set, split or column
    always raises.
    """
    check_on_error(on_error)
    rows = _load(path, name, split, revision)
    for argument, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in rows.column_names:
            raise ValueError(f"{argument}={column!r}: {path} has the columns {sorted(rows.column_names)}")
    problems = Problems(path, on_error)
    images = _encoded(rows, path, image_column)
    records = []
    for number, value in enumerate(rows[caption_column]):
        captions = _captions(value, f"row {number}", problems)
        if captions:
            cell = _Cell(f"{path} ({split})", images, image_column, number)
            records.append(CaptionedImage(str(number), cell, captions))
    parted = split_records(records, part, holdout=holdout, seed=split_seed)
    return Dataset(f"{path} ({split})", parted, tuple(problems.skipped), on_error)


def _load(path: str, name: str | None, split: str, revision: str | None) -> Any:
    """The table; what datasets says when there is none, with our arguments before it."""
    import datasets  # three seconds, which who reads other files need not wait

    where = {"path": "parquet", "data_files": path} if path.endswith(".parquet") else {"path": path}
    try:
        return datasets.load_dataset(**where, name=name, split=split, revision=revision)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"path={path!r}, name={name!r}, split={split!r}: {error}; wanted a name on the hub, a parquet file, or a "
            "folder of parquet files or of images with a metadata.jsonl"
        ) from error


def _encoded(rows: Any, path: str, column: str) -> Any:
    """The image column alone, its cells as bytes or paths; a ValueError when it holds no images."""
    import datasets

    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors derive from these
        kind = rows.features[column]
        raise ValueError(f"image_column={column!r}: {path} holds {kind} there; wanted images") from error


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
