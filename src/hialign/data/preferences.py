"""Prompts with an answer to prefer and one to avoid, as strings or messages: json files and tables -> Preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from hialign.data.files import Problems, folders, image_file, json_entries, named, numbered, read_text, with_images
from hialign.data.records import (
    IMAGE,
    Answer,
    BadRecord,
    CaptionedImage,
    Conversation,
    Dataset,
    ImageSource,
    Part,
    Preference,
    Skipped,
    Turn,
    check_on_error,
)
from hialign.data.records import split as split_records
from hialign.data.tables import cells, label, load, require_columns

LAYOUT = "get a json list or jsonl of {prompt, chosen, rejected, images} and give annotations=FILE images=FOLDER"
_WANTED = "wanted a string, or messages {role, content} by turns of user and assistant"
Message = tuple[str, str]  # who says it, what they say; "<image>" in it stands for an image


def json_preferences(
    annotations: str,
    images: str | dict[str, str] | None,
    *,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[Preference]:
    """The preferences of a json list, or jsonl by its name, of {prompt, chosen, rejected, images}, with id or without.

    ``prompt`` is a string or messages; chosen and rejected are a string each, or messages that end in the answer, with
    or without the prompt before it. ``images`` in the file is a list of names, or ``image`` one name, in the folder
    ``images`` (or several by the names' beginnings, as llava_conversations has them); null: there are none. Images that
    no "<image>" and no image part stands for come before the first question.

    Bad records and missing images raise a BadRecord or, with on_error="skip", are listed in ``skipped``; a missing or
    unreadable file or folder always raises. A record without an id is called after its place.
    """
    check_on_error(on_error)
    text = read_text(Path(annotations), LAYOUT)
    found = {} if images is None else folders(images, LAYOUT)
    problems = Problems(annotations, on_error)
    seen: Counter[str] = Counter()
    records = []
    for place, entry in json_entries(text, annotations, problems, "[{prompt, chosen, rejected, images}, ...]"):
        try:
            record = _from_entry(entry, found, annotations, place)
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
        else:
            records.append(Preference(numbered(record.id, seen), record.images, record.turns, record.answers))
    parted = split_records(with_images(records, problems), part, holdout=holdout, seed=split_seed)
    return Dataset("json_preferences", parted, tuple(problems.skipped), on_error)


def hub_preferences(
    path: str | list[str],
    *,
    name: str | None = None,
    split: str,
    prompt_column: str | None = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    image_column: str | None = "images",
    images: str = "",
    revision: str | None = None,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[Preference]:
    """The preferences of a set that ``datasets.load_dataset`` reads, each row one record; ``path`` as in hub_captions.

    Columns hold what the fields of json_preferences do. ``prompt_column=None``: chosen and rejected are messages that
    begin with the prompt. ``image_column`` holds an image or a list of them, None: the set has none; images that are
    only named lie in the folder ``images``. A record's id is its row's number; rows are divided into parts one by one.

    Bad rows raise a BadRecord or, with on_error="skip", are listed in ``skipped``; a missing set, split or column
    always raises. Images are decoded when a batch needs them.
    """
    check_on_error(on_error)
    rows = load(path, name, split, revision)
    columns = {"chosen_column": chosen_column, "rejected_column": rejected_column}
    columns |= {} if prompt_column is None else {"prompt_column": prompt_column}
    require_columns(rows, path, columns | ({} if image_column is None else {"image_column": image_column}))
    sources = cells(rows, path, split, "image_column", image_column, images)
    prompts = [None] * len(rows) if prompt_column is None else rows[prompt_column]
    problems = Problems(label(path), on_error)
    records = []
    for number, said in enumerate(zip(prompts, rows[chosen_column], rows[rejected_column], strict=True)):
        try:
            records.append(preference(str(number), sources[number], *said, file=problems.file, record=f"row {number}"))
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
    parted = split_records(records, part, holdout=holdout, seed=split_seed)
    return Dataset(label(path, split), parted, tuple(problems.skipped), on_error)


def chosen_captions(preferences: Dataset[Preference], *, least_words: int = 3) -> Dataset[CaptionedImage]:
    """Each image of ``preferences`` with the chosen answers about it for captions: what contrast can read of it.

    An answer is taken for a caption whatever was asked. One of fewer than ``least_words`` words ("Yes.") would describe
    any image, and one about several images or none describes none: they are listed in ``skipped``. Answers about one
    file come together, as captions of it; rows of a table are taken for images of their own, which they may not be.
    """
    of = type(preferences.records[0] if isinstance(preferences, Dataset) else preferences)
    if of is not Preference:
        raise ValueError(f"preferences: got {of.__name__}, wanted one data set of Preference records")
    found: dict[str, tuple[str, ImageSource, list[str]]] = {}
    left_out = []
    for record in preferences.records:
        if problem := _no_caption(record, least_words):
            left_out.append(Skipped(preferences.name, record.id, problem))
            continue
        image = record.images[0]
        place = str(image) if isinstance(image, Path) else f"record {record.id}"
        captions = found.setdefault(place, (record.id, image, []))[2]
        captions.append(record.chosen.text)
    records = [CaptionedImage(id, image, tuple(captions)) for id, image, captions in found.values()]
    name = f"{preferences.name}: chosen answers"
    return Dataset(name, records, (*preferences.skipped, *left_out), preferences.on_error)


def _no_caption(record: Preference, least_words: int) -> str:
    """Why the chosen answer is no caption; empty when it is one."""
    if len(record.images) != 1:
        return f"a preference of {len(record.images)} images is no captioned one"
    words = len(record.chosen.text.split())
    return f"its chosen answer, of {words} words, is no caption" if words < least_words else ""


def chosen_answers(preferences: Dataset[Preference]) -> Dataset[Conversation]:
    """The dialogues of ``preferences`` with their chosen answers: what supervised fine-tuning learns of the same set.

    Record i is made of preference i when it is asked for, under its id; the rejected answer is left out.
    """
    records = _Chosen(preferences.records)
    return Dataset(f"chosen of {preferences.name}", records, preferences.skipped, preferences.on_error)


@dataclass(frozen=True)
class _Chosen(Sequence[Conversation]):
    preferences: Sequence[Preference]

    def __len__(self) -> int:
        return len(self.preferences)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        found = self.preferences[index]
        return _with_chosen(found) if isinstance(found, Preference) else [_with_chosen(one) for one in found]


def _with_chosen(record: Preference) -> Conversation:
    *before, last = record.turns
    return Conversation(record.id, record.images, (*before, replace(last, answer=record.chosen.text)))


def _from_entry(entry: Any, found: Mapping[str, Path], file: str, place: str) -> Preference:
    """The record of an entry of a json file."""
    record = named(entry, place)
    absent = [field for field in ("chosen", "rejected") if not isinstance(entry, dict) or field not in entry]
    if absent:
        what = f"no field {absent[0]!r}" if isinstance(entry, dict) else f"a {type(entry).__name__}"
        raise BadRecord(file, record, what, "wanted {prompt, chosen, rejected, images}")
    names = entry.get("images", entry.get("image")) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BadRecord(file, record, f"images={names!r}", "wanted a list of images' names, or no such field")
    if names and not found:
        raise BadRecord(file, record, f"images={names!r} and no folder for them", "give images=FOLDER")
    paths = tuple(image_file(found, name, file=file, record=record) for name in names)
    said = entry.get("prompt"), entry["chosen"], entry["rejected"]
    return preference(str(entry.get("id", place)), paths, *said, file=file, record=record)


def preference(
    id: str, images: tuple[ImageSource, ...], prompt: Any, chosen: Any, rejected: Any, *, file: str, record: str
) -> Preference:
    """The record of a prompt and two answers, strings or messages; a BadRecord when they are not what they should be.

    Without a prompt (None), it is what chosen and rejected begin with.
    """
    sides = {"chosen": chosen, "rejected": rejected}
    said = {side: _messages(value, "assistant", side, file, record) for side, value in sides.items()}
    asked = said["chosen"][:-1] if prompt is None else _messages(prompt, "user", "prompt", file, record)
    for side, messages in said.items():
        if messages[-1][0] != "assistant" or messages[:-1] not in ([], asked):
            problem = f"{side} does not go on from the prompt with one answer of the assistant's"
            raise BadRecord(file, record, problem, "write the same prompt into both, or the answers alone")
    turns = _with_placeholders(_turns(asked, file, record), len(images))
    answers = Answer(said["chosen"][-1][1].strip()), Answer(said["rejected"][-1][1].strip())
    flaw = flaw_of(turns, len(images), *answers)
    if flaw:
        raise BadRecord(file, record, flaw, "wanted an image for each <image>, and two answers that differ")
    return Preference(id, images, turns, answers)


def flaw_of(turns: tuple[Turn, ...], images: int, chosen: Answer, rejected: Answer) -> str:
    """What keeps these from being a preference; empty when nothing does."""
    count = sum(turn.question.count(IMAGE) for turn in turns)
    if count != images:
        return f"{count} placeholders {IMAGE} and {images} images"
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.text:
            return f"{side} is empty"
        if IMAGE in answer.text:
            return f"{side} contains the placeholder {IMAGE}"
    if chosen.text.split() == rejected.text.split():
        return f"chosen and rejected are the same: {chosen.text[:80]!r}"
    return ""


def _messages(value: Any, role: str, field: str, file: str, record: str) -> list[Message]:
    """The messages of a value, a string being one of ``role``; a BadRecord when it is neither."""
    if isinstance(value, str):
        return [(role, value)]
    if not isinstance(value, list) or not value:
        raise BadRecord(file, record, f"{field}={value!r}", _WANTED)
    said = []
    for number, message in enumerate(value):
        content = _content(message.get("content")) if isinstance(message, dict) else None
        if content is None or message.get("role") not in ("user", "assistant"):
            raise BadRecord(file, record, f"{field}[{number}]={message!r}", _WANTED)
        said.append((str(message["role"]), content))
    return said


def _content(content: Any) -> str | None:
    """A message's text, with "<image>" for its image parts; None when it is neither text nor such parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for piece in content:
        kind = piece.get("type") if isinstance(piece, dict) else None
        if kind not in ("image", "text") or (kind == "text" and not isinstance(piece.get("text"), str)):
            return None
        texts.append(IMAGE if kind == "image" else piece["text"])
    return "\n".join(texts)


def _turns(messages: list[Message], file: str, record: str) -> tuple[Turn, ...]:
    """The turns of a prompt, of which the last has no answer; a BadRecord when it is no dialogue that asks last."""
    roles = [role for role, _ in messages]
    if len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise BadRecord(file, record, f"the prompt's roles are {roles}", f"{_WANTED}, the last a user's")
    texts = [text for _, text in messages] + [""]
    turns = tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))
    empty = [turn for turn in turns if not turn.question.strip()] + [t for t in turns[:-1] if not t.answer.strip()]
    if empty:
        raise BadRecord(file, record, f"a turn of the prompt is empty: {empty[0]}", "write it, or leave it out")
    return turns


def _with_placeholders(turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    """The turns, with the images before the first question where nothing says where they stand."""
    if not images or any(IMAGE in turn.question for turn in turns):
        return turns
    first = Turn(f"{IMAGE}\n" * images + turns[0].question, turns[0].answer)
    return (first, *turns[1:])
