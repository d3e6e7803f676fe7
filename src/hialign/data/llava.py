"""Files in LLaVA's format: conversations about images, for its pretraining and its instruction tuning."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hialign.data.files import Problems, existing, lacking, parse_json, read_text, require_folder
from hialign.data.records import (
    IMAGE,
    BadRecord,
    CaptionedImage,
    Conversation,
    Dataset,
    Part,
    Turn,
    check_on_error,
    image_path,
    split,
)

LAYOUT = (
    "get blip_laion_cc_sbu_558k.json or llava_v1_5_mix665k.json and the images that it names, and give "
    "annotations=FILE images=FOLDER"
)


def llava_conversations(
    annotations: str,
    images: str,
    *,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[Conversation]:
    """The conversations of a LLaVA json file, or jsonl by its name, with their images from the folder ``images``.

    An id that several records have is made their own by #2, #3, ... in file order: llava_v1_5_mix665k.json asks about
    some images more than once. Bad records and missing images raise a BadRecord or, with on_error="skip", are listed in
    ``skipped``; a missing or unreadable file or folder always raises. Nothing is held out by default, as in LLaVA.

    Source: LazySupervisedDataset in llava/train/train.py@c121f04.
    Differs: what that leaves out or cuts in silence (a first turn of the model's, an empty answer) is a bad record.
    """
    records, problems = _read_records(annotations, images, on_error)
    parted = split(records, part, holdout=holdout, seed=split_seed)
    return Dataset("llava_conversations", parted, tuple(problems.skipped), on_error)


def llava_captions(
    annotations: str,
    images: str,
    *,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[CaptionedImage]:
    """The same file's images with the answer for caption: the pairs in LLaVA's pretraining data.

    A record of several turns, or without exactly one image, is a bad one here.
    """
    records, problems = _read_records(annotations, images, on_error)
    captions = []
    for record in records:
        if len(record.images) == len(record.turns) == 1:
            captions.append(CaptionedImage(record.id, record.images[0], (record.turns[0].answer.strip(),)))
        else:
            found = f"{len(record.turns)} turns and {len(record.images)} images"
            problems.add(record.id, f"{found} instead of a caption", "read this file by llava_conversations")
    parted = split(captions, part, holdout=holdout, seed=split_seed)
    return Dataset("llava_captions", parted, tuple(problems.skipped), on_error)


def _read_records(annotations: str, images: str, on_error: str) -> tuple[list[Conversation], Problems]:
    check_on_error(on_error)
    text = read_text(Path(annotations), LAYOUT)
    require_folder(Path(images), LAYOUT)
    problems = Problems(annotations, on_error)
    seen: Counter[str] = Counter()
    records = []
    for place, entry in _entries(text, annotations, problems):
        try:
            record = _record(entry, Path(images), annotations, place)
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
        else:
            seen[record.id] += 1
            again = f"#{seen[record.id]}" if seen[record.id] > 1 else ""
            records.append(Conversation(record.id + again, record.images, record.turns))
    return _with_images(records, problems), problems


def _entries(text: str, file: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """(place, entry) of everything in the file; of a jsonl, every line is read alone."""
    if Path(file).suffix != ".jsonl":
        content = parse_json(text, file)
        if not isinstance(content, list):
            found = f"a {type(content).__name__} instead of a list"
            raise BadRecord(file, "top level", found, "wanted LLaVA's format: [{id, image, conversations}, ...]")
        yield from ((f"record {number}", entry) for number, entry in enumerate(content))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            problems.add(f"line {number}", f"not json ({error.msg} at column {error.colno})", "get the file again")


def _named(entry: Any, place: str) -> str:
    return f"{entry['id']} ({place})" if isinstance(entry, dict) and "id" in entry else place


def _record(entry: Any, folder: Path, file: str, place: str) -> Conversation:
    """The entry's conversation; a BadRecord when it is not one, or an image lies outside of the folder."""
    record = _named(entry, place)
    problem = lacking(entry, {"id": (str, int), "conversations": list})
    if problem:
        raise BadRecord(file, record, problem, "wanted id and conversations")
    names = entry.get("image", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BadRecord(file, record, f"image={names!r}", "wanted an image's name, a list of them, or no such field")
    problem = _bad_turns(entry["conversations"])
    if problem:
        raise BadRecord(file, record, problem, "wanted human and gpt by turns, each with its words")
    values = [message["value"] for message in entry["conversations"]]
    turns = tuple(Turn(question, answer) for question, answer in zip(values[::2], values[1::2], strict=True))
    count = sum(turn.question.count(IMAGE) for turn in turns)
    if count != len(names):
        problem = f"{count} placeholders {IMAGE} and {len(names)} images"
        raise BadRecord(file, record, problem, f"write {IMAGE} once for each image")
    paths = tuple(image_path(folder, name, file=file, record=record) for name in names)
    return Conversation(str(entry["id"]), paths, turns)


def _bad_turns(messages: list[Any]) -> str:
    """What keeps the messages from being a human's and the model's by turns; empty when nothing does."""
    for number, message in enumerate(messages):
        wanted = ("human", "gpt")[number % 2]
        problem = lacking(message, {"from": str, "value": str})
        if not problem and message["from"] != wanted:
            problem = f"from={message['from']!r} where {wanted!r} was wanted"
        if not problem and wanted == "gpt":
            problem = _bad_answer(message["value"])
        if problem:
            return f"conversations[{number}]: {problem}"
    return "" if messages and len(messages) % 2 == 0 else f"{len(messages)} messages, which is no pairs of them"


def _bad_answer(answer: str) -> str:
    if not answer.strip():
        return "the answer is empty"
    return f"the answer contains the placeholder {IMAGE}" if IMAGE in answer else ""


def _with_images(records: Iterable[Conversation], problems: Problems) -> list[Conversation]:
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
