"""What benchmarks share: how files of questions are checked, answers to more than is asked, a judge's replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hialign.benchmarks.answers import (
    Entry,
    check_ids,
    identity,
    join,
    join_replies,
    read_entries,
    read_json,
    read_replies,
    replied,
    said,
)
from hialign.benchmarks.scores import Answers

Known = Callable[[str], bool]
Held = TypeVar("Held")
INSTANCES = {  # what is needed of the lists of COCO's instances_*.json
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Nothing, or a ValueError where the setting called ``name`` is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(choices)}")


def require(entry: Any, names: Iterable[str], place: str, wanted: str) -> None:
    """Nothing, or a ValueError that tells which of ``names`` the entry lacks."""
    lacking = [name for name in names if not isinstance(entry, dict) or name not in entry]
    if lacking:
        raise ValueError(f"{place}: no {', '.join(lacking)}; wanted {wanted}")


def read_questions(
    file: str | Path, layout: str, needed: Sequence[str], key: Callable[[Entry], str], *, texts: Sequence[str] = ()
) -> dict[str, Entry]:
    """The questions of a file by ``key``.

    A ValueError for one without a field of ``needed``, with one of ``texts`` that is none, or that comes twice.
    """
    found: dict[str, Entry] = {}
    for number, entry in enumerate(read_entries(file, layout), start=1):
        require(entry, needed, f"{file}: question {number}", layout)
        if wrong := [name for name in texts if not isinstance(entry[name], str)]:
            told = f"{wrong[0]} is {entry[wrong[0]]!r}, no text"
            raise ValueError(f"{file}: question {number}: {told}; wanted {layout}")
        if (name := key(entry)) in found:
            raise ValueError(f"{file}: question {number}: {name} comes twice; get the file again")
        found[name] = entry
    return found


def read_lists(file: str | Path, lists: Mapping[str, Sequence[str]], wanted: str) -> dict[str, list[Entry]]:
    """The ``lists`` of a json object, each of whose entries has the fields given; a ValueError where one has not."""
    content = read_json(file, wanted)
    require(content, lists, str(file), wanted)
    for name, fields in lists.items():
        if not isinstance(content[name], list):
            raise ValueError(f"{file}: {name} is a {type(content[name]).__name__}, not a list; wanted {wanted}")
        for number, entry in enumerate(content[name], start=1):
            require(entry, fields, f"{file}: {name}, entry {number}", wanted)
    return {name: content[name] for name in lists}


def held(table: Mapping[str, Held], entry: Entry, field: str, place: str) -> Held:
    """What ``table`` has of the id in a field of an entry; a ValueError where it has none."""
    found = table.get(str(entry[field]))
    if found is None:
        raise ValueError(f"{place}: {field} {entry[field]!r} is none of the file's; get the file again")
    return found


def join_known(
    entries: Sequence[Entry],
    questions: Mapping[str, str],
    known: Known,
    *,
    file: str | Path,
    key: Callable[[Entry], str | None] = identity,
) -> dict[str, str]:
    """As ``join``, and behind it the answers to other questions that are ``known``, which a setting does not ask."""
    asked: list[Entry] = []
    others: dict[str, Entry] = {}
    for entry in entries:
        name = key(entry)
        if name is None or name in questions or name in others or not known(name):
            asked.append(entry)
        else:
            others[name] = entry
    return join(asked, questions, file=file, key=key) | {
        name: said(entry, f"{file}: {name}") for name, entry in others.items()
    }


def only_asked(answers: Answers, questions: Iterable[str], known: Known, what: str) -> tuple[dict[str, str], list[str]]:
    """The answers to ``questions``, and a flag that counts those to others that are ``known``, where there are any.

    A ValueError as ``check_ids`` raises it for all else.
    """
    asked = dict.fromkeys(questions)
    others = {name for name in answers if name not in asked and known(name)}
    found = {name: text for name, text in answers.items() if name not in others}
    check_ids(found, asked, what)
    return found, [
        f"Answers to questions that are not asked here, which are left out: {len(others)}."
    ] if others else []


def strict_flags(left_out: int, number: int) -> list[str]:
    """What is said of a judge's replies that the strict numbers leave out, where there are any."""
    told = [f"Replies that the strict numbers leave out: {left_out} of {number}."] if left_out else []
    return [*told, "No reply can be read strictly: the strict numbers are missing."] if left_out == number else told


def no_replies(name: str, wanted: str) -> ValueError:
    """What is said where the judge's replies to the benchmark ``name`` are not there yet."""
    return ValueError(
        f"replies: none given, wanted {wanted}. `hialign evaluate` writes answers/{name}.requests.jsonl: ask a judge, "
        f"and set benchmark.{name}.replies=FILE; in Python requests(answers) are the prompts"
    )


def judged(
    file: str | None,
    answers: Answers,
    *,
    name: str,
    wanted: str,
    key: Callable[[Entry], str | None],
    text: Callable[[Entry, str], str] = replied,
) -> dict[str, str]:
    """The judge's replies in ``file`` by the ids of ``answers``; a ValueError where there is no file yet."""
    if file is None:
        raise no_replies(name, wanted)
    return join_replies(read_replies(file, wanted), answers, file=file, key=key, text=text)
