"""ScienceQA's questions with choices, from the columns of its parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from hialign.data.files import Problems, lacking
from hialign.data.records import IMAGE, BadRecord, Conversation, Dataset, ImageSource, Part, Turn, check_on_error
from hialign.data.records import split as split_records
from hialign.data.tables import cells, label, load, require_columns

LETTER = "Answer with the option's letter from the given choices directly."
_COLUMNS = ("image", "question", "choices", "answer", "hint")


def hub_scienceqa(
    path: str | list[str],
    *,
    name: str | None = None,
    split: str,
    revision: str | None = None,
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[Conversation]:
    """One conversation of one turn for each row: context, question and options; the right one's letter.

    ``path`` as in hub_captions. Rows without an image are text alone, which ScienceQA half consists of. A record's id
    is its row's number. LLaVA's own files of ScienceQA are read by llava_conversations.

    Bad rows raise a BadRecord or, with on_error="skip", are listed in ``skipped``; a missing set, split or column
    always raises.

    Source: Lu et al. 2022, arXiv:2209.09513; the prompt is LLaVA's, CQM-A in scripts/convert_sqa_to_llava.py@c121f04.
    Differs: nothing.
    """
    check_on_error(on_error)
    rows = load(path, name, split, revision)
    require_columns(rows, path, {column: column for column in _COLUMNS})
    sources = cells(rows, path, split, "image", "image")
    problems = Problems(label(path), on_error)
    records = []
    for number, row in enumerate(rows.select_columns(list(_COLUMNS[1:]))):
        try:
            records.append(_record(str(number), sources[number], row, problems.file))
        except BadRecord as error:
            problems.add(error.record, error.problem, error.fix)
    parted = split_records(records, part, holdout=holdout, seed=split_seed)
    return Dataset(label(path, split), parted, tuple(problems.skipped), on_error)


def _record(number: str, images: tuple[ImageSource, ...], row: Mapping[str, Any], file: str) -> Conversation:
    problem = lacking(row, {"question": str, "choices": list, "answer": int, "hint": (str, type(None))})
    choices, context = row["choices"], str(row["hint"] or "").strip() or "N/A"
    if not problem and not (2 <= len(choices) <= len(ascii_uppercase) and all(isinstance(c, str) for c in choices)):
        problem = f"choices={choices!r}"
    if not problem and not 0 <= row["answer"] < len(choices):
        problem = f"answer={row['answer']} of {len(choices)} choices"
    if not problem and (not row["question"].strip() or IMAGE in "".join((row["question"], context, *choices))):
        problem = f"question={row['question']!r} is empty, or a text contains the placeholder {IMAGE}"
    if problem:
        raise BadRecord(file, f"row {number}", problem, "wanted a question, two or more choices, the right one's place")
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    asked = f"Context: {context}\nQuestion: {row['question'].strip()}\nOptions: {options}".replace("  ", " ")
    turn = Turn(f"{IMAGE}\n" * len(images) + f"{asked}\n{LETTER}", ascii_uppercase[row["answer"]])
    return Conversation(number, images, (turn,))
