"""VQAv2: short answers to questions about photographs, worth as much as people agree on them."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from hialign.benchmarks.answers import Entry, by_name, check_ids, join, read_entries, read_list
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, numbers, share
from hialign.benchmarks.vqa_answers import agreement, official_accuracy, strictly, submitted

SHORT = "\nAnswer the question using a single word or phrase."  # LLaVA's suffix
TYPES = ("yes/no", "number", "other")
QUESTIONS = (
    'a file of questions of VQAv2 (visualqa.org/download.html): {"questions": [{"question_id", "image_id", '
    '"question"}]}'
)
ANNOTATIONS = (
    'a file of annotations of VQAv2 (visualqa.org/download.html): {"annotations": [{"question_id", "question_type", '
    '"answer_type", "answers": [{"answer", "answer_id"}]}]}; its test parts have none'
)


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """``overall`` in percent and those of the types of answers that have counts, by both rules."""
    found: dict[str, np.ndarray] = {}
    held = [kind for kind in TYPES if f"{kind}/number" in sums]
    for rule in ("", "_strict"):
        accuracy = {kind: sums.get(f"{kind}/accuracy{rule}", 0.0) for kind in held}
        number = {kind: sums[f"{kind}/number"] for kind in held}
        found[f"overall{rule}"] = 100 * share(sum(accuracy.values()), sum(number.values()))
        found |= {f"answer_type/{kind}{rule}": 100 * share(accuracy[kind], number[kind]) for kind in held}
    return found


@dataclass(frozen=True, kw_only=True)
class VqaV2:
    """VQAv2's questions with ten people's answers each.

    Args:
        root: the folder with ``v2_OpenEnded_mscoco_<split>_questions.json`` and ``v2_mscoco_<split>_annotations.json``.
        split: ``val2014`` or ``train2014``; the test parts' answers are not public.
        images: the folder of the images, ``COCO_<split>_<twelve digits>.jpg``.
        suffix: what is put behind each question; ``SHORT`` is LLaVA's.
        processed: whether answers are put through EvalAI's processor first, as LLaVA does before it hands them in.
        max_new_tokens: of an answer, where a model is asked; LLaVA's evaluation has 128.

    The accuracies by type of question stand beside the headline numbers without intervals: there are 65 types, many of
    them of few questions.

    Source: Goyal et al. 2017, arXiv:1612.00837; code GT-Vision-Lab/VQA@a013f00; haotian-liu/LLaVA@c121f04,
    convert_vqav2_for_submission.py, for ``processed``.
    Differs: nothing; the official script rounds to two decimals when it stores.
    """

    IMAGES: ClassVar[str] = "COCO's images of the questions' split (visualqa.org, cocodataset.org)"

    root: str
    split: str = "val2014"
    images: str = ""
    suffix: str = SHORT
    processed: bool = False
    max_new_tokens: int = 128

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Question id -> the question as its file has it."""
        file = Path(self.root) / f"v2_OpenEnded_mscoco_{self.split}_questions.json"
        entries = by_name(
            read_list(file, "questions", ("question_id", "image_id", "question"), QUESTIONS), "question_id", file
        )
        for name, entry in entries.items():
            if not str(entry["image_id"]).isdecimal():
                told = f"image_id is {entry['image_id']!r}, no number of an image of COCO"
                raise ValueError(f"{file}: question {name}: {told}; wanted {QUESTIONS}")
        return entries

    @cached_property
    def annotations(self) -> dict[str, Entry]:
        """Question id -> what is known of it, of all questions."""
        file = Path(self.root) / f"v2_mscoco_{self.split}_annotations.json"
        fields = ("question_id", "question_type", "answer_type", "answers")
        found = by_name(read_list(file, "annotations", fields, ANNOTATIONS), "question_id", file)
        check_ids(found, self.entries, str(file))
        for name, entry in found.items():
            _check_annotation(entry, f"{file}: question {name}")
        return found

    def questions(self) -> list[Question]:
        """The questions in their file's order."""
        return [
            Question(
                id=name,
                image=os.path.join(self.images, f"COCO_{self.split}_{int(entry['image_id']):012d}.jpg"),
                text=str(entry["question"]) + self.suffix,
            )
            for name, entry in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Answers in VQA's format, a list of question_id and answer, in LLaVA's, lmms-eval's or ours."""
        texts = {name: str(entry["question"]) for name, entry in self.entries.items()}
        return join(read_entries(answers, "answers to VQAv2: a json list or a jsonl"), texts, file=answers)

    def score(self, answers: Answers) -> Scores:
        """The numbers of ``statistic`` and, by the official rule, ``question_type/...``; an image is a unit."""
        check_ids(answers, self.entries, "vqa")
        units: dict[str, dict[str, float]] = {}
        types: dict[str, list[float]] = {}
        rows, unmarked = [], 0
        for name, entry in self.entries.items():
            truth = self.annotations[name]
            kind, people = str(truth["answer_type"]), _people(truth)
            said = submitted(answers[name]) if self.processed else answers[name]
            official = official_accuracy(said, people)
            strict = agreement(
                strictly(answers[name], kind), [(strictly(a, kind), n) for n, (a, _) in enumerate(people)]
            )
            unmarked += len(set(people)) < len(people)
            unit = units.setdefault(str(entry["image_id"]), {})
            for column, value in (("accuracy", official), ("accuracy_strict", strict), ("number", 1.0)):
                unit[f"{kind}/{column}"] = unit.get(f"{kind}/{column}", 0.0) + value
            types.setdefault(str(truth["question_type"]), []).append(official)
            rows.append({"id": name, "answer": answers[name], "accuracy": official, "accuracy_strict": strict})
        flags = [] if not unmarked else [_told(unmarked)]
        by_type = {f"question_type/{kind}": 100 * float(np.mean(values)) for kind, values in sorted(types.items())}
        found = numbers(units, statistic) | by_type
        return Scores(numbers=found, units=units, statistic=statistic, flags=flags, rows=rows)


def _check_annotation(entry: Entry, place: str) -> None:
    """Nothing, or a ValueError where the type of answer is unknown, or where no person's answer is as it should be."""
    if entry["answer_type"] not in TYPES:
        raise ValueError(f"{place} has answer_type {entry['answer_type']!r}; wanted one of {', '.join(TYPES)}")
    if not isinstance(entry["answers"], list) or not entry["answers"]:
        raise ValueError(f"{place}: answers are {entry['answers']!r}, none of a person; wanted {ANNOTATIONS}")
    if wrong := [one for one in entry["answers"] if not _is_answer(one)]:
        raise ValueError(f"{place}: {wrong[0]!r} is no person's answer; wanted {ANNOTATIONS}")


def _is_answer(one: object) -> bool:
    """Whether it has an answer, and whatever tells it from others' is a text or a number."""
    marks = ("answer_id", "answer_confidence")
    return (
        isinstance(one, dict) and "answer" in one and not any(isinstance(one.get(mark), list | dict) for mark in marks)
    )


def _people(truth: Entry) -> list[tuple[str, Hashable]]:
    return [(str(one["answer"]), (one.get("answer_id"), one.get("answer_confidence"))) for one in truth["answers"]]


def _told(number: int) -> str:
    return (
        f"{number} questions have equal answers without an answer_id of their own, which the official rule takes for "
        "one person's, so that they do not confirm each other; the strict one counts them apart"
    )
