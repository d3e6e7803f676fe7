"""Files of annotations and of answers: ours, and those that LLaVA, HALVA, CHiP, POPE and lmms-eval write."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]
IDS = ("id", "question_id")
TEXTS = ("text", "answer", "response", "caption", "model_prediction", "prediction", "output")
ASKED = ("question", "prompt", "query")
REPLIES = ("reply", "content")
JUDGED = ("answer", "model_answer", "model_prediction")  # what a reply's entry may repeat of the answer it is about


def read_text(file: str | Path, wanted: str) -> str:
    """The file's text; a ValueError that says what is ``wanted``, and where to get it, when it is missing."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted {wanted}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not utf-8 ({error.reason}); convert the file") from error


def read_json(file: str | Path, wanted: str) -> Any:
    """The content of a json file, or the list of a file that holds several values, one a line or pretty-printed.

    A ValueError says what is ``wanted`` when the file is missing, empty or broken.
    """
    text = read_text(file, wanted)
    decoder, values, place = json.JSONDecoder(), [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno} column {error.colno}"
            raise ValueError(f"{file}: {where} is not json ({error.msg}); wanted {wanted}") from error
        values.append(value)
    if not values:
        raise ValueError(f"{file}: the file is empty; wanted {wanted}")
    return values[0] if len(values) == 1 and not str(file).endswith(".jsonl") else values


def read_entries(file: str | Path, wanted: str) -> list[Entry]:
    """The objects of a json list, of a jsonl, or of pretty-printed objects one behind the other."""
    content = read_json(file, wanted)
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], list):
        content = content[0]  # a .jsonl that holds one list
    if isinstance(content, dict) and isinstance(content.get("logs"), list):
        content = content["logs"]  # lmms-eval's older files
    entries = content if isinstance(content, list) else [content]
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"{file}: entry {number} is a {type(entry).__name__}, not an object; wanted {wanted}")
    return entries


def read_list(file: str | Path, key: str, fields: Sequence[str], wanted: str) -> list[Entry]:
    """The objects of the list ``key`` of a json file, each of which has ``fields``; a ValueError where one has not."""
    content = read_json(file, wanted)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{file}: no list {key!r}; wanted {wanted}")
    for number, entry in enumerate(entries, start=1):
        lacking = [name for name in fields if not isinstance(entry, dict) or name not in entry]
        if lacking:
            raise ValueError(f"{file}: {key}, entry {number} has no {', '.join(lacking)}; wanted {wanted}")
    return entries


def by_name(entries: Iterable[Entry], field: str, file: str | Path) -> dict[str, Entry]:
    """The entries by what ``field`` holds, as a text; a ValueError when one comes twice."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if str(entry[field]) in found:
            raise ValueError(f"{file}: {field} {entry[field]} comes twice; get the file again")
        found[str(entry[field])] = entry
    return found


def first(entry: Entry, names: Iterable[str]) -> Any:
    """The value of the first of ``names`` that the entry has, or of the question that lmms-eval keeps as ``doc``."""
    names = [name for name in names if name != "id" or "choices" not in entry]  # a response of OpenAI's has its own id
    doc = entry.get("doc")
    for source in (entry, doc if isinstance(doc, dict) else {}):
        for name in names:
            if source.get(name) is not None:
                return source[name]
    return None


def said(entry: Entry, place: str) -> str:
    """The answer's text: one of ``TEXTS``, or what lmms-eval calls ``filtered_resps`` or ``resps``.

    A number is taken as it is written. A ValueError when there is none; an empty text is an answer.
    """
    value: Any = next((entry[name] for name in ("filtered_resps", "resps") if name in entry), None)
    while isinstance(value, list) and value:
        value = value[0]
    if value is None:
        value = next((entry[name] for name in TEXTS if isinstance(entry.get(name), str)), None)
    if value is None:
        value = next((str(entry[name]) for name in TEXTS if type(entry.get(name)) in (int, float)), None)
    if not isinstance(value, str):
        raise ValueError(f"{place}: no text of an answer; wanted one of {', '.join(TEXTS)}, filtered_resps, resps")
    return value


def join(
    entries: Sequence[Entry],
    questions: Mapping[str, str],
    *,
    file: str | Path,
    key: Callable[[Entry], str | None] = lambda entry: identity(entry),
    text: Callable[[Entry, str], str] = said,
) -> dict[str, str]:
    """The answers by the ids of ``questions`` (id -> text, in the official order), which all have one.

    ``key`` gives an entry's id, ``text`` its answer. Where no entry has an id they are joined by order, that of
    lmms-eval's ``doc_id`` where they have one, and then an entry that repeats its question must repeat the right one. A
    ValueError names ids that come twice, that are missing or that no question has.
    """
    keys = [key(entry) for entry in entries]
    if all(found is None for found in keys):
        return _by_order(_sorted(entries, file), questions, file, text)
    for number, found in enumerate(keys, start=1):
        if found is None:
            raise ValueError(f"{file}: entry {number} has no id while others have one; give all of them one, or none")
    named = [str(found) for found in keys]
    check_ids(named, questions, str(file))
    places = dict(zip(named, range(len(named)), strict=True))
    return {name: text(entries[places[name]], f"{file}: {name}") for name in questions}


def replied(entry: Entry, place: str) -> str:
    """The text of a judge's reply: one of ``REPLIES``, or the first choice of a stored response of OpenAI's."""
    choices = entry.get("choices")
    try:
        found = choices[0]["message"]["content"] if choices else first(entry, REPLIES)
    except (KeyError, IndexError, TypeError):
        found = None
    if not isinstance(found, str):
        raise ValueError(
            f"{place}: no judge's reply; wanted {', '.join(REPLIES)} or choices[0].message.content, a text"
        )
    return found


def read_replies(file: str | Path, wanted: str) -> list[Entry]:
    """The entries of a file of a judge's replies, which may be a list of texts."""
    content = read_json(file, wanted)
    if isinstance(content, list) and content and all(isinstance(one, str) for one in content):
        return [{"reply": one} for one in content]
    return read_entries(file, wanted)


def join_replies(
    entries: Sequence[Entry],
    answers: Mapping[str, str],
    *,
    file: str | Path,
    key: Callable[[Entry], str | None] = lambda entry: identity(entry),
    text: Callable[[Entry, str], str] = replied,
) -> dict[str, str]:
    """A judge's replies by the ids of ``answers``, which are in the questions' order, as ``join`` finds them.

    A ValueError, too, where an entry repeats the answer that it judges and it is not the one given.
    """
    found = join(entries, dict.fromkeys(answers, ""), file=file, key=key, text=text)
    for place, entry in zip(answers, entries, strict=True):
        name = key(entry) or place
        judged = first(entry, JUDGED)
        if isinstance(judged, str) and judged.strip() != answers[name].strip():
            raise ValueError(
                f"{file}: {name} is a reply to {judged!r}, and the answer is {answers[name]!r}; judge these answers"
            )
    return found


def identity(entry: Entry, names: Sequence[str] = IDS) -> str | None:
    """What the entry calls itself, as a text; None when it has none of ``names``."""
    found = first(entry, names)
    return None if found is None else str(found)


def check_ids(found: Iterable[str], wanted: Iterable[str], what: str) -> None:
    """Nothing, or a ValueError that names ids of ``found`` that come twice, that no question has, or that lack."""
    counted, known = Counter(iter(found)), dict.fromkeys(wanted)
    problems = {
        "answered twice": [name for name, times in counted.items() if times > 1],
        "of no question": [name for name in counted if name not in known],
        "not answered": [name for name in known if name not in counted],
    }
    told = [f"{len(names)} {problem}: {_some(names)}" for problem, names in problems.items() if names]
    if told:
        raise ValueError(
            f"{what}: {'; '.join(told)}; wanted one answer to each of {len(known)} questions, joined by their ids"
        )


def _sorted(entries: Sequence[Entry], file: str | Path) -> Sequence[Entry]:
    """The entries by lmms-eval's ``doc_id``, which counts the questions from 0; as they stand where none has one."""
    numbers = [entry.get("doc_id") for entry in entries]
    if all(number is None for number in numbers):
        return entries
    if not all(type(number) is int for number in numbers):
        raise ValueError(f"{file}: doc_id of some entries is no whole number; wanted lmms-eval's, or none at all")
    check_ids(map(str, numbers), map(str, range(len(entries))), f"{file}: doc_id")
    return sorted(entries, key=lambda entry: int(entry["doc_id"]))


def _by_order(
    entries: Sequence[Entry], questions: Mapping[str, str], file: str | Path, text: Callable[[Entry, str], str]
) -> dict[str, str]:
    if len(entries) != len(questions):
        raise ValueError(
            f"{file}: {len(entries)} answers without ids to {len(questions)} questions; wanted one to each in their "
            "order, or ids"
        )
    for number, (entry, (name, asked)) in enumerate(zip(entries, questions.items(), strict=True), start=1):
        repeated = first(entry, ASKED)
        if (
            isinstance(repeated, str)
            and _plain(asked) not in _plain(repeated)
            and _plain(repeated) not in _plain(asked)
        ):
            raise ValueError(
                f"{file}: entry {number} answers {repeated!r}, and question {name} is {asked!r}; answers without ids "
                "are joined by order: put them into that of the questions"
            )
    return {name: text(entry, f"{file}: {name}") for name, entry in zip(questions, entries, strict=True)}


def _plain(text: str) -> str:
    """The letters and digits alone; POPE's older files have "imange" for "image"."""
    return "".join(filter(str.isalnum, text.lower().replace("<image>", ""))).replace("imange", "image")


def _some(names: Sequence[str], number: int = 5) -> str:
    return ", ".join(names[:number]) + (f", and {len(names) - number} more" if len(names) > number else "")
