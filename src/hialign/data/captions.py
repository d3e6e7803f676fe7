"""Datasets of images with captions: files as they are published -> CaptionedImage records."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hialign.data.files import Problems, existing, lacking, parse_json, read_text, require_folder
from hialign.data.records import BadRecord, CaptionedImage, Dataset, Part, check_on_error, image_path, split


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
    text = read_text(file, layout)
    require_folder(folder, layout)
    problems = Problems(str(file), on_error)
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
    text = read_text(Path(annotations), layout)
    require_folder(Path(images), layout)
    content = parse_json(text, annotations)
    problems = Problems(annotations, on_error)
    pictures = _coco_images(_entries(content, "images", annotations), Path(images), problems)
    _coco_captions(_entries(content, "annotations", annotations), pictures, problems)
    records = _records(pictures, problems)
    return Dataset(
        "coco_captions", split(records, part, holdout=holdout, seed=split_seed), tuple(problems.skipped), on_error
    )


def _csv_rows(text: str, problems: Problems) -> Iterator[tuple[str, str, str]]:
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


def _coco_images(entries: list[Any], folder: Path, problems: Problems) -> dict[str, _Picture]:
    pictures: dict[str, _Picture] = {}
    for number, entry in enumerate(entries):
        problem = lacking(entry, {"id": (int, str), "file_name": str})
        if not problem and str(entry["id"]) in pictures:
            problem = f"a second image with the id {entry['id']}"
        if problem:
            problems.add(f"images[{number}]", problem, "wanted its own id and a file_name")
            continue
        _picture(entry["file_name"], f"images[{number}]", pictures, folder, problems, key=str(entry["id"]))
    return pictures


def _coco_captions(entries: list[Any], pictures: dict[str, _Picture], problems: Problems) -> None:
    for number, entry in enumerate(entries):
        problem = lacking(entry, {"image_id": (int, str), "caption": str})
        if problem:
            problems.add(f"annotations[{number}]", problem, "wanted image_id and a caption")
            continue
        record = f"annotation {entry.get('id', number)} of image {entry['image_id']}"
        if str(entry["image_id"]) not in pictures:
            problems.add(record, "its image_id is not among the images", "add the image")
            continue
        _add_caption(pictures[str(entry["image_id"])], entry["caption"], record, problems)


def _picture(
    name: str, place: str, pictures: dict[str, _Picture], folder: Path, problems: Problems, *, key: str | None = None
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


def _add_caption(picture: _Picture, caption: str, record: str, problems: Problems) -> None:
    caption = caption.strip()
    if not caption:
        problems.add(record, "the caption is empty", "write one")
    elif "<image>" in caption:
        # It would become one more image placeholder than there are images.
        problems.add(record, "the caption contains the placeholder '<image>'", "remove it")
    elif caption not in picture.captions:  # the same row twice is harmless
        picture.captions.append(caption)


def _records(pictures: dict[str, _Picture], problems: Problems) -> list[CaptionedImage]:
    """The pictures that have a file and a caption; the others go to ``problems``."""
    present = existing(picture.path for picture in pictures.values())
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
