"""ScienceQA: school questions with choices, half of them with an image, answered by a letter."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any, ClassVar, Literal

import numpy as np

from hialign.benchmarks.answers import Entry, check_ids, identity, join, read_entries, read_json
from hialign.benchmarks.questions import require
from hialign.benchmarks.reply import option
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, column, numbers, share, share_or_nan

Missing = Literal["error", "wrong"]
LETTERS = ascii_uppercase[:5]
LETTER = "\nAnswer with the option's letter from the given choices directly."
SUBJECTS = {"natural science": "natural", "social science": "social", "language science": "language"}
REPORTED = (*SUBJECTS.values(), "has_text", "has_image", "no_context", "grade_1_6", "grade_7_12")
FIELDS = ("question", "choices", "answer", "hint", "image", "grade", "subject", "topic")
LAYOUT = "of ScienceQA's data/scienceqa (github.com/lupantech/ScienceQA)"
_STATED = re.compile(r"The answer is ([A-Z]).")  # any character behind the letter, but there has to be one


def letter(answer: str) -> str | None:
    """The letter that LLaVA's script reads; None where it fails.

    The whole answer is one of A to E, or begins with one and ". ", or says once "The answer is X" with a character
    behind. So "A.", "(A)", "a" and "The answer is B" at the end fail.

    Source: Liu et al. 2023, arXiv:2304.08485; code haotian-liu/LLaVA@c121f04, eval_science_qa.py.
    Differs: nothing.
    """
    if answer and answer in tuple(LETTERS):
        return answer
    if len(answer) >= 3 and answer[0] in LETTERS and answer[1:3] == ". ":
        return answer[0]
    found = _STATED.findall(answer)
    return found[0] if len(found) == 1 else None


def chosen(answer: str, choices: Sequence[str]) -> int | None:
    """The place of the choice whose letter ``letter`` reads; None where it fails or runs past the choices."""
    found = letter(answer)
    return LETTERS.index(found) if found and found in LETTERS[: len(choices)] else None


def groups(problem: Mapping[str, Any]) -> list[str]:
    """The groups of ScienceQA's own report that a problem belongs to.

    Source: Lu et al. 2022, arXiv:2209.09513; code lupantech/ScienceQA@2cbf831, tools/evaluate_acc.py.
    Differs: groups without a problem are left out of the scores, where theirs has -1.
    """
    grade = int(str(problem["grade"]).removeprefix("grade"))
    found = {
        SUBJECTS.get(problem["subject"], str(problem["subject"])): True,
        "has_text": bool(problem["hint"]),
        "has_image": bool(problem["image"]),
        "no_context": not problem["hint"] and not problem["image"],
        "grade_1_6": 1 <= grade <= 6,
        "grade_7_12": 7 <= grade <= 12,
        str(problem["topic"]): True,
    }
    return [name for name, member in found.items() if member]


def prompt(problem: Mapping[str, Any]) -> str:
    """Context, question and options as LLaVA asks them (CQM-A).

    Source: haotian-liu/LLaVA@c121f04, scripts/convert_sqa_to_llava_base_prompt.py.
    Differs: nothing.
    """
    options = " ".join(f"({name}) {choice}" for name, choice in zip(ascii_uppercase, problem["choices"], strict=False))
    context = str(problem["hint"] or "").strip() or "N/A"
    return f"Context: {context}\nQuestion: {problem['question']}\nOptions: {options}".replace("  ", " ").strip()


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """Percent right: of all, of those with an image, both by the strict rule, and of each group; unclear is a fraction.

    ``img_accuracy`` is LLaVA's, which passes over images without an answer; ``acc_has_image`` counts these as wrong.
    It is not a number where no question with an image has an answer.
    """

    def of(group: str, rule: str = "") -> np.ndarray:
        ratio = share_or_nan if group == "img" else share
        return 100 * ratio(column(sums, f"{group}/right{rule}"), column(sums, f"{group}/questions"))

    found = {
        "accuracy": of("all"),
        "img_accuracy": of("img"),
        "accuracy_strict": of("all", "_strict"),
        "img_accuracy_strict": of("img", "_strict"),
        "unclear_strict": share(column(sums, "all/unclear_strict"), column(sums, "all/questions")),
    }
    named = {name.removesuffix("/questions") for name in sums if name.endswith("/questions")} - {"all", "img"}
    ordered = [*filter(named.__contains__, REPORTED), *sorted(named - {*REPORTED})]
    return found | {f"acc_{group}": of(group) for group in ordered}


@dataclass(frozen=True, kw_only=True)
class ScienceQA:
    """ScienceQA's questions by LLaVA's protocol, reported as ScienceQA's own tool does, too.

    Args:
        root: the folder with problems.json and pid_splits.json.
        images: the folder with <id>/image.png, such as images/test.
        split: test, minitest, val, minival or train.
        suffix: what is put behind each question; LLaVA's by default.
        missing: ``wrong`` counts a question without an answer as wrong, as LLaVA's script does; ``error`` refuses.
        max_new_tokens: of an answer, where a model is asked.

    Source: as ``letter`` and ``groups``.
    Differs: nothing in the official numbers; theirs are printed with two decimals.
    """

    IMAGES: ClassVar[str] = "ScienceQA's images, <split>/<id>/image.png (scienceqa.github.io)"

    root: str
    images: str = ""
    split: str = "test"
    suffix: str = LETTER
    missing: Missing = "error"
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.missing not in ("error", "wrong"):
            raise ValueError(f"missing: got {self.missing!r}, wanted error or wrong")

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Problem id -> the problem, in the split's order."""
        splits = read_json(Path(self.root) / "pid_splits.json", f"pid_splits.json {LAYOUT}")
        problems = read_json(Path(self.root) / "problems.json", f"problems.json {LAYOUT}")
        for file, content in (("pid_splits.json", splits), ("problems.json", problems)):
            if not isinstance(content, dict):
                raise ValueError(f"{self.root}/{file}: is a {type(content).__name__}; wanted the object {LAYOUT}")
        if self.split not in splits:
            raise ValueError(f"split: got {self.split!r}, wanted one of {', '.join(splits)}")
        if not isinstance(splits[self.split], list):
            raise ValueError(f"{self.root}/pid_splits.json: {self.split} is no list; wanted one of ids {LAYOUT}")
        found = {}
        for name in map(str, splits[self.split]):
            if name not in problems:
                raise ValueError(f"{self.root}/problems.json: no problem {name} of {self.split}; wanted it {LAYOUT}")
            _check_problem(problems[name], f"{self.root}/problems.json: problem {name}")
            found[name] = problems[name]
        return found

    def questions(self) -> list[Question]:
        """The questions in the split's order; those without an image have none."""
        return [
            Question(
                id=name,
                image=os.path.join(self.images, name, problem["image"]) if problem["image"] else None,
                text=prompt(problem) + self.suffix,
            )
            for name, problem in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Answers as LLaVA's lines, a result file with ``outputs``, lmms-eval's rows in this order, or ours."""
        wanted = "answers: a jsonl with question_id and text, a result file with outputs, or rows with id and answer"
        entries = read_entries(answers, wanted)
        if len(entries) == 1 and isinstance(entries[0].get("outputs"), dict):
            entries = [{"id": name, "text": text} for name, text in entries[0]["outputs"].items()]
        given = {identity(entry) for entry in entries}
        texts = {
            name: str(problem["question"])
            for name, problem in self.entries.items()
            if self.missing == "error" or given == {None} or name in given
        }
        return join(entries, texts, file=answers)

    def score(self, answers: Answers) -> Scores:
        """The accuracies by LLaVA's rule and the strict one; a question is a unit."""
        lacking = [name for name in self.entries if name not in answers] if self.missing == "wrong" else []
        check_ids([*answers, *lacking], self.entries, "scienceqa")
        units: dict[str, dict[str, float]] = {}
        correct, rows = {}, []
        for name, problem in self.entries.items():
            text, choices = answers.get(name, ""), problem["choices"]
            official, strict = chosen(text, choices), option(text, choices)
            correct[name] = official == problem["answer"]
            units[name] = {"all/unclear_strict": float(strict is None)}
            seen = ["img"] if problem["image"] and name in answers else []
            for group in ("all", *seen, *groups(problem)):
                units[name] |= {
                    f"{group}/questions": 1.0,
                    f"{group}/right": float(correct[name]),
                    f"{group}/right_strict": float(strict == problem["answer"]),
                }
            rows.append({"id": name, "answer": text, "chosen": official, "strict": strict, "label": problem["answer"]})
        flags = (
            [f"Questions without an answer, which count as wrong: {len(lacking)} of {len(units)}."] if lacking else []
        )
        if not any("img/questions" in unit for unit in units.values()):
            flags.append("No question with an image has an answer: img_accuracy is missing.")
        return Scores(
            numbers=numbers(units, statistic), units=units, statistic=statistic, correct=correct, rows=rows, flags=flags
        )


def _check_problem(problem: Any, place: str) -> None:
    """Nothing, or a ValueError where a field of ``FIELDS`` is missing, or not what the scores are made of."""
    require(problem, FIELDS, place, f"a problem {LAYOUT}")
    choices, answer = problem["choices"], problem["answer"]
    right = {
        "choices": isinstance(choices, list) and all(isinstance(one, str) for one in choices),
        "answer": isinstance(answer, int) and isinstance(choices, list) and 0 <= answer < len(choices),
        "image": not problem["image"] or isinstance(problem["image"], str),
        "subject": isinstance(problem["subject"], str),
        "grade": re.fullmatch(r"(grade)?\d+", str(problem["grade"])) is not None,
    }
    wrong = next((field for field, holds in right.items() if not holds), None)
    if wrong is not None:
        wanted = "choices, texts; answer, the place of one of them from 0; image and subject, texts; grade, as grade7"
        raise ValueError(f"{place}: {wrong} is {problem[wrong]!r}; wanted {wanted}, {LAYOUT}")
