"""What the adapters of annotation files share: reading, bad records raised or noted, what an entry lacks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hialign.data.records import BadRecord, Skipped


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
