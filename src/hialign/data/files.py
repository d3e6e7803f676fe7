"""What the adapters of annotation files share: reading, bad records raised or noted, what an entry lacks."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hialign.data.records import BadRecord, Pictured, Skipped, image_path

P = TypeVar("P", bound=Pictured)


@dataclass
class Problems:
    """Raises the bad records of one annotation file, or keeps them, as ``on_error`` says."""

    file: str
    on_error: str
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, record: str, problem: str, fix: str) -> None:
        """Raise for ``record``, or note it."""
        self.add_all([record], problem, fix)

    def add_all(self, records: list[str], problem: str, fix: str) -> None:
        """Raise for the first of ``records``, counting the others, or note every one of them."""
        if records and self.on_error == "raise":
            others = f" (and so for {len(records) - 1} other records)" if len(records) > 1 else ""
            way_out = "leave it out with on_error=skip (in training: data.on_error=skip)"
            raise BadRecord(self.file, records[0], problem + others, f"{fix}, or {way_out}")
        self.skipped.extend(Skipped(self.file, record, problem) for record in records)


def read_text(file: Path, layout: str) -> str:
    """The file's text; a ValueError that gives the wanted layout when it is missing, a BadRecord when not utf-8."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; {layout}")
    try:
        return file.read_bytes().decode("utf-8-sig")  # -sig: spreadsheet programs begin a csv with a byte order mark
    except UnicodeDecodeError as error:
        raise BadRecord(
            str(file), f"byte {error.start}", f"not utf-8 ({error.reason})", "convert the file to utf-8, e.g. by iconv"
        ) from error


def require_folder(folder: Path, layout: str) -> None:
    """Nothing, or a ValueError that gives the wanted layout when the folder is missing."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; {layout}")


def parse_json(text: str, file: str) -> Any:
    """The file's content; a BadRecord with the place of the mistake when it is not json."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRecord(
            file, f"line {error.lineno} column {error.colno}", f"not json ({error.msg})", "get the file again"
        ) from error


def json_entries(text: str, file: str, problems: Problems, wanted: str) -> Iterator[tuple[str, Any]]:
    """(place, entry) of everything in a json list or a jsonl, by the file's name; of that, every line is read alone.

    A BadRecord that says what was ``wanted`` when a json holds no list.
    """
    if Path(file).suffix != ".jsonl":
        content = parse_json(text, file)
        if not isinstance(content, list):
            raise BadRecord(file, "top level", f"a {type(content).__name__} instead of a list", f"wanted {wanted}")
        yield from ((f"record {number}", entry) for number, entry in enumerate(content))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            problems.add(f"line {number}", f"not json ({error.msg} at column {error.colno})", "get the file again")


def named(entry: Any, place: str, field: str = "id") -> str:
    """What an error calls the entry: what its ``field`` says, and its place."""
    return f"{entry[field]} ({place})" if isinstance(entry, dict) and field in entry else place


def numbered(name: str, seen: Counter[str]) -> str:
    """The name or, when it was ``seen`` before, the name with #2, #3, ..., so that each record has an id of its own."""
    seen[name] += 1
    return f"{name}#{seen[name]}" if seen[name] > 1 else name


def lacking(entry: Any, wanted: dict[str, type | tuple[type, ...]]) -> str:
    """What keeps ``entry`` from being an object with the ``wanted`` fields; empty when nothing does."""
    if not isinstance(entry, dict):
        return f"a {type(entry).__name__} instead of an object"
    for name, kind in wanted.items():
        if not isinstance(entry.get(name), kind):
            return f"{name}={entry.get(name)!r}" if name in entry else f"no field {name!r}"
    return ""


def existing(paths: Iterable[Path]) -> set[Path]:
    """Those of ``paths`` that exist, by one listing of each folder: a stat per file takes minutes on network disks."""
    wanted = set(paths)
    names = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in wanted}}
    return {path for path in wanted if path.name in names[path.parent]}


def folders(images: str | Mapping[str, str], layout: str) -> dict[str, Path]:
    """The folder of each beginning of an image's name, where ``images`` is one folder that of "", which all have.

    A ValueError that gives the wanted layout when a folder is missing.
    """
    given: Mapping[str, Any] = {"": images} if isinstance(images, str) else images
    if not given or not all(isinstance(folder, str) for folder in given.values()):
        raise ValueError(f"images={images!r}: wanted a folder, or a mapping of names' beginnings to folders")
    found = {beginning.rstrip("/"): Path(folder) for beginning, folder in given.items()}
    for folder in found.values():
        require_folder(folder, layout)
    return found


def image_file(found: Mapping[str, Path], name: str, *, file: str, record: str) -> Path:
    """The path of image ``name`` in the folder of its longest beginning; a BadRecord when it has none, or leads out."""
    fitting = [beginning for beginning in found if not beginning or name.startswith(f"{beginning}/")]
    if not fitting:
        fix = "give images one more beginning, with its folder"
        raise BadRecord(file, record, f"image {name!r} is in none of the folders {', '.join(found)}", fix)
    beginning = max(fitting, key=len)
    rest = name.removeprefix(f"{beginning}/") if beginning else name
    return image_path(found[beginning], rest, file=file, record=record)


def with_images(records: Iterable[P], problems: Problems) -> list[P]:
    """The records whose images are all there; the others go to ``problems``."""
    records = list(records)
    present = existing(path for record in records for path in record.images if isinstance(path, Path))
    whole = [record for record in records if all(path in present for path in record.images)]
    if len(whole) < len(records):
        kept = {record.id for record in whole}
        lost = [record for record in records if record.id not in kept]
        missing = next(path for path in lost[0].images if path not in present)
        problems.add_all([record.id for record in lost], f"an image is missing, such as {missing}", "get the images")
    return whole
