"""Tables that the datasets library reads: hub names, parquet files, folders of images; their cells as images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """The image in one row of a table, read when it is asked for; ``place``: the number of it in a cell of several."""

    name: str
    images: Any  # datasets.Dataset of the image column, not decoded
    column: str
    row: int
    place: int | None = None
    folder: str = ""  # where a name in a cell without bytes lies, unless it is a whole path

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """The cell's bytes, or those of the file that it names; an OSError when it has neither."""
        cell = self.images[self.row][self.column]
        return content(cell if self.place is None else cell[self.place], self.folder)


def content(cell: Mapping[str, Any] | None, folder: str = "") -> bytes:
    """The image's file content, a name in it taken from ``folder``; an OSError when the cell names none."""
    cell = cell or {}
    if cell.get("bytes"):
        return bytes(cell["bytes"])
    if not cell.get("path"):
        raise OSError("the cell is empty")
    path = str(cell["path"])
    if "://" not in path:
        return Path(folder, path).read_bytes()
    import fsspec  # what datasets itself reads streams with: a file on the hub, or one inside an archive

    with fsspec.open(path, "rb") as file:
        return bytes(file.read())


def label(path: str | list[str], split: str | None = None) -> str:
    """What errors call the data set."""
    name = path if isinstance(path, str) else ", ".join(path[:2]) + (", ..." if len(path) > 2 else "")
    return f"{name} ({split})" if split else name


def load(path: str | list[str], name: str | None, split: str, revision: str | None, *, streaming: bool = False) -> Any:
    """The table; what datasets says when there is none, with our arguments before it."""
    import datasets  # three seconds, which who reads other files need not wait

    parquet = isinstance(path, list) or path.endswith(".parquet")
    where: dict[str, Any] = {"path": "parquet", "data_files": path} if parquet else {"path": path}
    try:
        return datasets.load_dataset(**where, name=name, split=split, revision=revision, streaming=streaming)
    except (*UNREADABLE, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"path={path!r}, name={name!r}, split={split!r}: {reason(error)}; wanted a name on the hub, a parquet "
            "file or several, or a folder of parquet files or of images with a metadata.jsonl"
        ) from error


# What datasets lets through for files that it cannot read; pyarrow's errors derive from these.
UNREADABLE = (ValueError, OSError, TypeError, KeyError, NotImplementedError)


def reason(error: BaseException) -> str:
    """The error's words, with those of its cause where it only says that there was one."""
    cause = error.__cause__
    text = str(error) if cause is None else f"{error} ({cause})"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def require_columns(rows: Any, path: str | list[str], columns: Mapping[str, str]) -> None:
    """Nothing, or a ValueError when the table lacks one of ``columns``: the column of each argument.

    A column that no argument chooses stands for its own.
    """
    for argument, column in columns.items():
        if column not in rows.column_names:
            what = "no such column" if argument == column else f"{argument}={column!r}"
            raise ValueError(f"{what}: {label(path)} has the columns {sorted(rows.column_names)}, not {column!r}")


def encoded(rows: Any, path: str | list[str], argument: str, column: str) -> Any:
    """The image column alone, its cells as bytes or paths, or lists of these; a ValueError when it holds no images."""
    import datasets

    kind, image = rows.features[column], datasets.Image(decode=False)
    try:
        return rows.select_columns([column]).cast_column(column, type(kind)(image) if _several(kind) else image)
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors derive from these
        raise ValueError(f"{argument}={column!r}: {label(path)} holds {kind} there; wanted images") from error


def cells(
    rows: Any, path: str | list[str], split: str, argument: str, column: str | None, folder: str = ""
) -> list[tuple[Cell, ...]]:
    """Each row's images, which may be none, told without reading them; a ValueError when the column holds no images."""
    if column is None:
        return [()] * len(rows)
    images, name = encoded(rows, path, argument, column), label(path, split)
    held = images.data.column(column)  # the table behind it: a python list of the column would hold every image's bytes
    if _several(images.features[column]):
        counts = [count for chunk in held.chunks for count in chunk.value_lengths().fill_null(0).to_pylist()]
        return [tuple(Cell(name, images, column, row, i, folder) for i in range(n)) for row, n in enumerate(counts)]
    there = held.is_valid().to_pylist()
    return [(Cell(name, images, column, row, None, folder),) * valid for row, valid in enumerate(there)]


def _several(kind: Any) -> bool:
    import datasets

    return isinstance(kind, datasets.List | datasets.LargeList)
