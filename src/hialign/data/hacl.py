"""HACL's files: captions with a hallucinated one beside each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hialign.data.files import (
    Problems,
    folders,
    image_file,
    json_entries,
    lacking,
    named,
    numbered,
    read_text,
    with_images,
)
from hialign.data.records import IMAGE, BadRecord, Dataset, HallucinatedImage, Part, check_on_error, split

LAYOUT = (
    "make the file from captions of yours (no one has published HACL's) with the fields image, text and "
    "'Hallucination caption', and give annotations=FILE images=FOLDER"
)


def hacl_captions(
    annotations: str,
    images: str | dict[str, str],
    *,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[HallucinatedImage]:
    """The images of a HACL json, or jsonl by its name, with a caption and one that is wrong of the image.

    A record's id is its image's name, from its second record on with #2, #3, ...; ``images`` as llava_conversations
    has it. Bad records and missing images raise a BadRecord or, with on_error="skip", are listed in ``skipped``; a
    missing or unreadable file or folder always raises.

    Source: Jiang et al. 2024 (HACL), arXiv:2312.06968; the format of X-PLUG/mPLUG-HalOwl, hacl/README.MD.
    Differs: a record without a hallucinated caption is a bad one, where the code trains without contrast.
    """
    check_on_error(on_error)
    text = read_text(Path(annotations), LAYOUT)
    found = folders(images, LAYOUT)
    problems = Problems(annotations, on_error)
    seen: Counter[str] = Counter()
    records = []
    for place, entry in json_entries(text, annotations, problems, "[{image, text, 'Hallucination caption'}, ...]"):
        try:
            path, caption, wrong = _parts(entry, found, annotations, place)
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
        else:
            records.append(HallucinatedImage(numbered(entry["image"], seen), path, (caption,), (wrong,)))
    parted = split(with_images(records, problems), part, holdout=holdout, seed=split_seed)
    return Dataset("hacl_captions", parted, tuple(problems.skipped), on_error)


def _parts(entry: Any, found: Mapping[str, Path], file: str, place: str) -> tuple[Path, str, str]:
    """The image, its caption and the wrong one."""
    record = named(entry, place, "image")
    problem = lacking(entry, {"image": str, "text": str, "Hallucination caption": str})
    if problem:
        raise BadRecord(file, record, problem, "wanted image, text and 'Hallucination caption'")
    texts = {field: entry[field].strip() for field in ("text", "Hallucination caption")}
    for field, text in texts.items():
        if not text or IMAGE in text:
            raise BadRecord(file, record, f"{field}={text!r}", f"wanted a caption without the placeholder {IMAGE}")
    caption, wrong = texts.values()
    if caption.lower().split() == wrong.lower().split():
        problem = f"the hallucinated caption is the caption: {caption[:80]!r}"
        raise BadRecord(file, record, problem, "write one that is wrong of the image")
    return image_file(found, entry["image"], file=file, record=record), caption, wrong
