"""Questions about images with short answers, in the files of VQAv2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hialign.data.files import Problems, existing, lacking, parse_json, read_text, require_folder
from hialign.data.records import IMAGE, BadRecord, Conversation, Dataset, Part, Turn, check_on_error, image_path, split

# What LLaVA-1.5 was trained to answer in one word after: arXiv:2310.03744, section 3.2.
SHORT_ANSWER = "Answer the question using a single word or phrase."
LAYOUT = (
    "get VQAv2 and give questions=.../v2_OpenEnded_mscoco_train2014_questions.json "
    "annotations=.../v2_mscoco_train2014_annotations.json images=.../train2014"
)


def vqa_v2(
    questions: str,
    annotations: str | None,
    images: str,
    *,
    image_name: str = "COCO_train2014_{image_id:012d}.jpg",
    part: Part = "train",
    holdout: float = 0.0,
    split_seed: int = 0,
    on_error: str = "raise",
) -> Dataset[Conversation]:
    """One conversation of one turn for each question: the image, the question, how to answer; the common answer.

    A record's id is its question's. Without ``annotations``, as for VQAv2's test parts, answers are empty: such records
    can be asked, not trained on. ``image_name`` makes the name of a file in ``images`` of an image_id. Bad entries,
    questions and answers without each other, and missing images raise a BadRecord or, with on_error="skip", are listed
    in ``skipped``; a missing or unreadable file or folder always raises.

    Source: Goyal et al. 2017, arXiv:1612.00837, files as on visualqa.org; the prompt is LLaVA-1.5's.
    """
    check_on_error(on_error)
    _check_name(image_name)
    asked = _list_of(questions, "questions")
    require_folder(Path(images), LAYOUT)
    problems = Problems(questions, on_error)
    records = _questions(asked, Path(images), image_name, problems)
    skipped = problems.skipped
    if annotations is not None:
        answering = Problems(annotations, on_error)
        answers = _answers(_list_of(annotations, "annotations"), answering)
        ids = {str(entry.get("question_id")) for entry in asked if isinstance(entry, dict)}  # those skipped included
        records = _answered(records, answers, ids, answering)
        skipped = skipped + answering.skipped
    return Dataset("vqa_v2", split(records, part, holdout=holdout, seed=split_seed), tuple(skipped), on_error)


def _check_name(image_name: str) -> None:
    try:
        different = image_name.format(image_id=1) != image_name.format(image_id=2)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"image_name={image_name!r}: {type(error).__name__} {error}; wanted a format of image_id, such as "
            "'COCO_val2014_{image_id:012d}.jpg'"
        ) from error
    if not different:
        raise ValueError(f"image_name={image_name!r} is the same for every image; write {{image_id:012d}} into it")


def _list_of(file: str, key: str) -> list[Any]:
    content = parse_json(read_text(Path(file), LAYOUT), file)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        found = f"the keys {sorted(content)[:10]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise BadRecord(file, "top level", f"no list {key!r} in {found}", f'wanted a VQAv2 file: {{"{key}": []}}')
    return list(content[key])


def _questions(entries: list[Any], folder: Path, image_name: str, problems: Problems) -> list[Conversation]:
    """The questions whose image is there, with empty answers; the others go to ``problems``."""
    records: dict[str, Conversation] = {}
    for number, entry in enumerate(entries):
        problem = lacking(entry, {"question_id": (int, str), "image_id": int, "question": str})
        if not problem and (not entry["question"].strip() or IMAGE in entry["question"]):
            problem = f"question={entry['question']!r}"
        if not problem and str(entry["question_id"]) in records:
            problem = f"a second question with the id {entry['question_id']}"
        if problem:
            problems.add(f"questions[{number}]", problem, "wanted question_id, image_id and a question")
            continue
        name, record = image_name.format(image_id=entry["image_id"]), str(entry["question_id"])
        path = image_path(folder, name, file=problems.file, record=record)
        turn = Turn(f"{IMAGE}\n{entry['question'].strip()}\n{SHORT_ANSWER}", "")
        records[record] = Conversation(record, (path,), (turn,))
    present = existing(path for record in records.values() for path in record.images if isinstance(path, Path))
    missing = [record.id for record in records.values() if record.images[0] not in present]
    if missing:
        first = records[missing[0]].images[0]
        problems.add_all(missing, f"its image is missing, such as {first}", "get the images, or mend image_name")
    return [record for record in records.values() if record.images[0] in present]


def _answers(entries: list[Any], problems: Problems) -> dict[str, str]:
    """Each question's answer; entries without one go to ``problems``."""
    answers: dict[str, str] = {}
    for number, entry in enumerate(entries):
        problem = lacking(entry, {"question_id": (int, str), "multiple_choice_answer": str})
        if not problem and (not entry["multiple_choice_answer"].strip() or IMAGE in entry["multiple_choice_answer"]):
            problem = f"multiple_choice_answer={entry['multiple_choice_answer']!r}"
        if problem:
            problems.add(f"annotations[{number}]", problem, "wanted question_id and multiple_choice_answer")
            continue
        answers[str(entry["question_id"])] = entry["multiple_choice_answer"].strip()
    return answers


def _answered(
    records: list[Conversation], answers: dict[str, str], asked: set[str], problems: Problems
) -> list[Conversation]:
    """The records with their answers; those without one go to ``problems``, as do answers to none of ``asked``."""
    unasked = [f"question_id {name}" for name in answers if name not in asked]
    problems.add_all(unasked, "it is not among the questions", "get the questions that belong to these annotations")
    unanswered = [f"question_id {record.id}" for record in records if record.id not in answers]
    problems.add_all(unanswered, "the question has no answer", "get the annotations that belong to these questions")
    return [
        replace(record, turns=(replace(record.turns[0], answer=answers[record.id]),))
        for record in records
        if record.id in answers
    ]
