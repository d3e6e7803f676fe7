"""Datasets of images with captions: files as they are published -> CaptionedImage records."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hialign.data.records import BadRecord, CaptionedImage, Dataset, Skipped, check_on_error, image_path, split

Part = Literal["train", "heldout"]


@dataclass
class _Problems:
    """Raises the bad records of one annotation file, or keeps them, as ``on_error`` says."""

    file: str
    on_error: str
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, record: str, problem: str, fix: str) -> None:
        self.add_all([record], problem, fix)

    def add_all(self, records: list[str], problem: str, fix: str) -> None:
        """Raise for the first of ``records``, counting the others, or note every one of them."""
        if records and self.on_error == "raise":
            others = f" (and so for {len(records) - 1} other records)" if len(records) > 1 else ""
            way_out = "leave it out with on_error=skip (in training: data.on_error=skip)"
            raise BadRecord(self.file, records[0], problem + others, f"{fix}, or {way_out}")
        self.skipped.extend(Skipped(self.file, record, problem) for record in records)


@dataclass
class _Picture:
    """An image while its captions are collected."""

    path: Path
    captions: list[str] = field(default_factory=list)


def flickr8k(
    root: str,
    *,
    part: Part = "train",
    holdout: float = 0.1,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[CaptionedImage]:
    """The images of ``<root>/images`` with the captions of ``<root>/captions.txt``, a csv headed image,caption.

    A record's id is its image's name. Bad lines and missing images raise a BadRecord or, with on_error="skip", are
    listed in ``skipped``; a missing file or folder and a wrong header always raise.
    """
    check_on_error(on_error)
    file, folder = Path(root) / "captions.txt", Path(root) / "images"
    layout = f"get Flickr8k and lay it out as {file} (csv: image,caption) and {folder}/*.jpg"
    text = _read(file, layout)
    _require_folder(folder, layout)
    problems = _Problems(str(file), on_error)
    pictures: dict[str, _Picture] = {}
    for place, image, caption in _csv_rows(text, problems):
        picture = _picture(image, place, pictures, folder, problems)
        if picture is not None:
            _add_caption(picture, caption, f"{image} ({place})", problems)
    records = _records(pictures, problems)
    return Dataset(
        "flickr8k", split(records, part, holdout=holdout, seed=split_seed), tuple(problems.skipped), on_error
    )


def coco_captions(
    annotations: str,
    images: str,
    *,
    part: Part = "train",
    holdout: float = 0.1,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[CaptionedImage]:
    """The images of the folder ``images`` with the captions of a COCO captions file, ``annotations``.

    A record's id is its image's id in the file. Bad entries and missing images raise a BadRecord or, with
    on_error="skip", are listed in ``skipped``; a missing or unreadable file or folder always raises.
    """
    check_on_error(on_error)
    layout = (
        "get the captions and images of COCO and give annotations=.../annotations/captions_train2017.json "
        "images=.../train2017"
    )
    text = _read(Path(annotations), layout)
    _require_folder(Path(images), layout)
    content = _json(text, annotations)
    problems = _Problems(annotations, on_error)
    pictures = _coco_images(_entries(content, "images", annotations), Path(images), problems)
    _coco_captions(_entries(content, "annotations", annotations), pictures, problems)
    records = _records(pictures, problems)
    return Dataset(
        "coco_captions", split(records, part, holdout=holdout, seed=split_seed), tuple(problems.skipped), on_error
    )


def _read(file: Path, layout: str) -> str:
    """The file's text; a ValueError that gives the wanted layout when it is missing, a BadRecord when not utf-8."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; {layout}")
    try:
        return file.read_bytes().decode("utf-8-sig")  # -sig: spreadsheet programs begin a csv with a byte order mark
    except UnicodeDecodeError as error:
        raise BadRecord(
            str(file), f"byte {error.start}", f"not utf-8 ({error.reason})", "convert the file to utf-8, e.g. by iconv"
        ) from error


def _require_folder(folder: Path, layout: str) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; {layout}")


def _csv_rows(text: str, problems: _Problems) -> Iterator[tuple[str, str, str]]:
    """(place, image, caption) of each good line below the header.

    Every line is read alone, so that one unclosed quote spoils its own line and not all that follow.
    """
    lines = text.split("\n")
    if lines[0].strip() != "image,caption":
        raise BadRecord(
            problems.file, "line 1", f"the header is {lines[0].strip()[:80]!r}", "wanted the header 'image,caption'"
        )
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line.rstrip("\r")], strict=True))
        except csv.Error as error:
            problems.add(f"line {number}", f"not csv ({error})", 'write image,"caption" with inner quotes doubled')
            continue
        if len(cells) < 2 or not cells[0].strip():
            problem = "no image name" if len(cells) > 1 else "only one column"
            problems.add(f"line {number}", problem, "write image,caption")
            continue
        # A caption with unquoted commas comes in several cells.
        yield f"line {number}", cells[0].strip(), ",".join(cells[1:])


def _json(text: str, file: str) -> Any:
    """The file's content; a BadRecord with the place of the mistake when it is not json."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRecord(
            file, f"line {error.lineno} column {error.colno}", f"not json ({error.msg})", "get the file again"
        ) from error


def _entries(content: Any, key: str, file: str) -> list[Any]:
    """The list ``content[key]``; a BadRecord that says what is there instead."""
    if not isinstance(content, dict):
        found = f"a {type(content).__name__}"
    elif not isinstance(content.get(key), list):
        found = f"the keys {sorted(content)[:10]}"
    else:
        return list(content[key])
    raise BadRecord(
        file,
        "top level",
        f"no list {key!r} in {found}",
        'wanted a COCO captions file: {"images": [], "annotations": []}',
    )


def _lacking(entry: Any, wanted: dict[str, type | tuple[type, ...]]) -> str:
    """What keeps ``entry`` from being an object with the ``wanted`` fields; empty when nothing does."""
    if not isinstance(entry, dict):
        return f"a {type(entry).__name__} instead of an object"
    for name, kind in wanted.items():
        if not isinstance(entry.get(name), kind):
            return f"{name}={entry.get(name)!r}" if name in entry else f"no field {name!r}"
    return ""


def _coco_images(entries: list[Any], folder: Path, problems: _Problems) -> dict[str, _Picture]:
    pictures: dict[str, _Picture] = {}
    for number, entry in enumerate(entries):
        problem = _lacking(entry, {"id": (int, str), "file_name": str})
        if not problem and str(entry["id"]) in pictures:
            problem = f"a second image with the id {entry['id']}"
        if problem:
            problems.add(f"images[{number}]", problem, "wanted its own id and a file_name")
            continue
        _picture(entry["file_name"], f"images[{number}]", pictures, folder, problems, key=str(entry["id"]))
    return pictures


def _coco_captions(entries: list[Any], pictures: dict[str, _Picture], problems: _Problems) -> None:
    for number, entry in enumerate(entries):
        problem = _lacking(entry, {"image_id": (int, str), "caption": str})
        if problem:
            problems.add(f"annotations[{number}]", problem, "wanted image_id and a caption")
            continue
        record = f"annotation {entry.get('id', number)} of image {entry['image_id']}"
        if str(entry["image_id"]) not in pictures:
            problems.add(record, "its image_id is not among the images", "add the image")
            continue
        _add_caption(pictures[str(entry["image_id"])], entry["caption"], record, problems)


def _picture(
    name: str, place: str, pictures: dict[str, _Picture], folder: Path, problems: _Problems, *, key: str | None = None
) -> _Picture | None:
    """The picture called ``name``, put among ``pictures`` when new; None when its name leads out of the folder."""
    key = name if key is None else key
    if key not in pictures:
        try:
            pictures[key] = _Picture(image_path(folder, name, file=problems.file, record=place))
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
            return None
    return pictures[key]


def _add_caption(picture: _Picture, caption: str, record: str, problems: _Problems) -> None:
    caption = caption.strip()
    if not caption:
        problems.add(record, "the caption is empty", "write one")
    elif "<image>" in caption:
        # It would become one more image placeholder than there are images.
        problems.add(record, "the caption contains the placeholder '<image>'", "remove it")
    elif caption not in picture.captions:  # the same row twice is harmless
        picture.captions.append(caption)


def _records(pictures: dict[str, _Picture], problems: _Problems) -> list[CaptionedImage]:
    """The pictures that have a file and a caption; the others go to ``problems``."""
    present = _present(picture.path for picture in pictures.values())
    missing = [key for key, picture in pictures.items() if picture.path not in present]
    if missing:
        folder = pictures[missing[0]].path.parent
        problems.add_all(missing, f"its image is not in {folder}", "get the images of this annotation file")
    bare = [key for key, picture in pictures.items() if picture.path in present and not picture.captions]
    problems.add_all(bare, "no caption is left for this image", "give it a caption")
    return [
        CaptionedImage(key, picture.path, tuple(picture.captions))
        for key, picture in pictures.items()
        if picture.path in present and picture.captions
    ]


def _present(paths: Iterable[Path]) -> set[Path]:
    """Those of ``paths`` that exist, by one listing of each folder: a stat per file takes minutes on network disks."""
    wanted = set(paths)
    names = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in wanted}}
    return {path for path in wanted if path.name in names[path.parent]}
