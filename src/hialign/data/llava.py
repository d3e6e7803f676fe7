"""Files in LLaVA's format: conversations about images, for its pretraining and its instruction tuning."""

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
from hialign.data.records import (
    IMAGE,
    BadRecord,
    CaptionedImage,
    Conversation,
    Dataset,
    Part,
    Turn,
    check_on_error,
    split,
)

LAYOUT = (
    "get blip_laion_cc_sbu_558k.json or llava_v1_5_mix665k.json and the images that it names, and give "
    "annotations=FILE images=FOLDER, or images={coco: FOLDER, gqa: FOLDER, ...} by what the images' names begin with"
)


def llava_conversations(
    annotations: str,
    images: str | dict[str, str],
    *,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[Conversation]:
    """The conversations of a LLaVA json file, or jsonl by its name, with their images from the folder ``images``.

    Where the images lie in several folders, ``images`` gives each beginning of their names its own: with coco:
    /data/coco, coco/train2017/1.jpg is /data/coco/train2017/1.jpg; the longest that fits counts.

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
    images: str | dict[str, str],
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


def _read_records(annotations: str, images: str | dict[str, str], on_error: str) -> tuple[list[Conversation], Problems]:
    check_on_error(on_error)
    text = read_text(Path(annotations), LAYOUT)
    found = folders(images, LAYOUT)
    problems = Problems(annotations, on_error)
    seen: Counter[str] = Counter()
    records = []
    for place, entry in json_entries(text, annotations, problems, "LLaVA's format: [{id, image, conversations}, ...]"):
        try:
            record = _record(entry, found, annotations, place)
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
        else:
            records.append(Conversation(numbered(record.id, seen), record.images, record.turns))
    return with_images(records, problems), problems


def _record(entry: Any, found: Mapping[str, Path], file: str, place: str) -> Conversation:
    """The entry's conversation; a BadRecord when it is not one, or an image lies outside of the folders ``found``."""
    record = named(entry, place)
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
    paths = tuple(image_file(found, name, file=file, record=record) for name in names)
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
