"""HALVA's files: a right and a hallucinated answer whose phrases that differ are masked, one against the other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
from hialign.data.preferences import flaw_of
from hialign.data.records import (
    Answer,
    BadRecord,
    Dataset,
    Part,
    Preference,
    Skipped,
    Span,
    Turn,
    check_on_error,
    split,
)

LAYOUT = "get HALVA's data.json and Visual Genome's images, and give annotations=FILE images=FOLDER"
_FIELDS = (
    *("question", "correct_answer", "correct_answer_masked"),
    *("hallucinated_answer", "hallucinated_answer_masked"),
)


def halva_preferences(
    annotations: str,
    images: str | dict[str, str],
    *,
    balance: bool = True,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[Preference]:
    """The pairs of a HALVA json, or jsonl by its name, with their phrases; images as llava_conversations has them.

    With ``balance``, of the records tagged qa as many are answered yes as no: the first by a permutation that
    ``split_seed`` chooses; those left out are listed in ``skipped``. Bad records (among them sides with different
    numbers of phrases, or none) and missing images raise a BadRecord or, with on_error="skip", are listed in
    ``skipped``; a missing or unreadable file or folder always raises.

    Source: Sarkar et al. 2024 (HALVA), arXiv:2405.18654; code pritamqu/HALVA@059b086, train_halva.py.
    Differs: phrases are spans of the answer's characters, so that any fast tokenizer finds its tokens; sides that do
        not match are bad records, where the code pairs what does not belong together.
    """
    check_on_error(on_error)
    text = read_text(Path(annotations), LAYOUT)
    found = folders(images, LAYOUT)
    problems = Problems(annotations, on_error)
    seen: Counter[str] = Counter()
    records, truths = [], {}
    for place, entry in json_entries(text, annotations, problems, "HALVA's format: [{id, image, question, ...}, ...]"):
        try:
            record = _record(entry, found, annotations, place)
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
            continue
        records.append(Preference(numbered(record.id, seen), record.images, record.turns, record.answers))
        if entry.get("tag") == "qa":
            truths[records[-1].id] = entry["raw_answer"].strip().lower()
    whole = with_images(records, problems)
    surplus = _surplus(whole, truths, split_seed) if balance else set()
    left_out = [Skipped(annotations, name, "its answer is the commoner of yes and no (balance)") for name in surplus]
    kept = [record for record in whole if record.id not in surplus]
    parted = split(kept, part, holdout=holdout, seed=split_seed)
    return Dataset("halva_preferences", parted, (*problems.skipped, *sorted(left_out, key=str)), on_error)


def _record(entry: Any, found: Mapping[str, Path], file: str, place: str) -> Preference:
    record = named(entry, place)
    problem = lacking(entry, {"id": (str, int), "image": str, **dict.fromkeys(_FIELDS, str)})
    if not problem and entry.get("tag") == "qa" and str(entry.get("raw_answer")).strip().lower() not in ("yes", "no"):
        problem = f"raw_answer={entry.get('raw_answer')!r} beside tag='qa'"
    if problem:
        raise BadRecord(file, record, problem, f"wanted id, image, {', '.join(_FIELDS)}; with tag qa raw_answer yes|no")
    path = image_file(found, entry["image"], file=file, record=record)
    chosen, rejected = (_answer(entry, field, file, record) for field in ("correct_answer", "hallucinated_answer"))
    turns = (Turn(entry["question"], ""),)
    problem = flaw_of(turns, 1, chosen, rejected)
    if not problem and len(chosen.phrases) != len(rejected.phrases):
        numbers = f"{len(chosen.phrases)} phrases and hallucinated_answer_masked {len(rejected.phrases)}"
        problem = f"correct_answer_masked has {numbers}"
    if problem:
        raise BadRecord(file, record, problem, "wanted two answers that differ in phrases masked on both sides")
    return Preference(str(entry["id"]), (path,), turns, (chosen, rejected))


def _answer(entry: dict[str, str], field: str, file: str, record: str) -> Answer:
    """The answer of ``field`` with the phrases that ``field``_masked marks in it."""
    text, masked = entry[field].strip(), entry[f"{field}_masked"]
    try:
        return Answer(text, phrase_spans(text, masked))
    except ValueError as error:
        fix = "wanted the answer with <MASK> ... </MASK> around each phrase, and nothing else changed"
        raise BadRecord(file, record, f"{field}_masked: {error}", fix) from error


def phrase_spans(text: str, masked: str) -> tuple[Span, ...]:
    """Where in ``text`` the phrases lie that ``masked`` puts into <MASK> ... </MASK>; white space does not count.

    A ValueError when the two say something else, or the marks are not closed one by one around words.
    """
    pieces = re.split(r"(</?MASK>)", masked)
    marks = pieces[1::2]
    if not marks or marks != ["<MASK>", "</MASK>"] * (len(marks) // 2):
        raise ValueError(f"its marks are {' '.join(marks) or 'none'}")
    places = [place for place, character in enumerate(text) if not character.isspace()]
    if "".join(masked.replace("<MASK>", "").replace("</MASK>", "").split()) != "".join(text.split()):
        raise ValueError(f"{masked[:80]!r} says something else than {text[:80]!r}")
    spans, at = [], 0
    for number, piece in enumerate(pieces[::2]):  # every second piece is a phrase
        size = len("".join(piece.split()))
        if number % 2 and not size:
            raise ValueError("a phrase is empty")
        if number % 2:
            spans.append((places[at], places[at + size - 1] + 1))
        at += size
    return tuple(spans)


def _surplus(records: list[Preference], truths: dict[str, str], seed: int) -> set[str]:
    """The ids of the records to leave out, so that as many of those with a truth are answered yes as no."""
    sides = [[r.id for r in records if truths.get(r.id) == truth] for truth in ("yes", "no")]
    few, many = sorted(sides, key=len)
    order = np.random.default_rng(seed).permutation(len(many))
    return {many[place] for place in order[len(few) :].tolist()}
