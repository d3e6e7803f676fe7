"""POPE: yes-or-no questions after things that are in an image, and after things that are not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from hialign.benchmarks.answers import Entry, check_ids, first, identity, join, read_entries
from hialign.benchmarks.questions import read_questions, require
from hialign.benchmarks.reply import yes_or_no
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, numbers, share

CATEGORIES = ("random", "popular", "adversarial")  # how the things that are not there were chosen
CELLS = ("tp", "fp", "tn", "fn")
TEXTS = ("image", "text", "label")  # of a question
LAYOUT = "a file of POPE (github.com/RUCAIBox/POPE, output/coco): objects with question_id, image, text, label"
LLAVA = "llava_pope_test.jsonl of LLaVA's eval.zip: objects with question_id, image, text, category"


def says_yes(answer: str) -> bool:
    """Whether POPE's rule reads ``answer`` as a yes: all that does not say no in its first sentence.

    The sentence ends at the first full stop, commas are dropped, and of the words between single blanks one is exactly
    "No", "no" or "not". So "NO", "none" and an empty answer are a yes.

    Source: Li et al. 2023, arXiv:2305.10355; code RUCAIBox/POPE@3df3ba1, evaluate.py.
    Differs: nothing.
    """
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def cell(said: bool | None, truth: bool) -> str:
    """Of ``CELLS`` the one that counts an answer, or ``unclear``."""
    if said is None:
        return "unclear"
    return ("tp" if truth else "fp") if said else ("fn" if truth else "tn")


def yes_numbers(tp: object, fp: object, tn: object, fn: object, unclear: object = 0) -> dict[str, np.ndarray]:
    """``accuracy``, ``precision``, ``recall`` and ``f1`` of the yes, and ``yes_ratio``, from counts or arrays of them.

    Fractions, not percent; unclear answers are wrong, and neither a yes nor a no.

    Source: as ``says_yes``.
    Differs: where theirs divides by zero, as for a model that never says yes, the share is 0.
    """
    hits, false, right, missed, other = (np.asarray(count, dtype=float) for count in (tp, fp, tn, fn, unclear))
    number = hits + false + right + missed + other
    precision, recall = share(hits, hits + false), share(hits, hits + missed)
    return {
        "accuracy": share(hits + right, number),
        "precision": precision,
        "recall": recall,
        "f1": share(2 * precision * recall, precision + recall),
        "yes_ratio": share(hits + false, number),
    }


def score(pairs: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """``yes_numbers`` of answers with their truths, read by ``says_yes``. A ValueError when there is no answer."""
    cells = [cell(says_yes(answer), truth) for answer, truth in pairs]
    if not cells:
        raise ValueError("pope: no answer; wanted at least one")
    return {name: float(value) for name, value in yes_numbers(*(cells.count(name) for name in CELLS)).items()}


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """Of each category that has counts the numbers by both rules, and before them the means over categories."""
    found: dict[str, np.ndarray] = {}
    categories = list(dict.fromkeys(name.split("/")[0] for name in sums))
    for category in categories:
        official, strict = (
            {name: sums.get(f"{category}/{name}{rule}", 0.0) for name in (*CELLS, "unclear")}
            for rule in ("", "_strict")
        )
        found |= {f"{category}/{name}": value for name, value in yes_numbers(**official).items()}
        found |= {f"{category}/{name}_strict": value for name, value in yes_numbers(**strict).items()}
        found[f"{category}/unclear_strict"] = share(strict["unclear"], sum(strict.values()))
    means = {
        f"mean/{name}": np.mean([found[f"{category}/{name}"] for category in categories], axis=0)
        for name in ("f1", "accuracy", "f1_strict", "accuracy_strict")
    }
    return means | found


@dataclass(frozen=True, kw_only=True)
class Pope:
    """POPE's questions, of one file for each category.

    Args:
        root: the folder with ``<files>_<category>.json``; both versions of the files that are about (2,910 random
            questions, and 3,000) are read as they are.
        files: what their names begin with, such as ``coco_pope``.
        categories: which are asked.
        images: the folder of the images.
        suffix: what is put behind each question; LLaVA's evaluation asks for a single word or phrase.
        llava_questions: LLaVA's question file, which answers in its format need: their ids run over all categories.
        max_new_tokens: of an answer, where a model is asked; LLaVA's evaluation has 128.

    Source: Li et al. 2023, arXiv:2305.10355; code RUCAIBox/POPE@3df3ba1; haotian-liu/LLaVA@c121f04, eval_pope.py.
    Differs: nothing in the official numbers but the shares of nothing, which are 0 and flagged.
    """

    IMAGES: ClassVar[str] = "COCO's val2014 (cocodataset.org, val2014.zip)"

    root: str
    files: str = "coco_pope"
    categories: Sequence[str] = CATEGORIES
    images: str = ""
    suffix: str = ""
    llava_questions: str | None = None
    max_new_tokens: int = 128

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Question id, ``category/question_id``, -> the question as its file has it."""
        found: dict[str, Entry] = {}
        for category in self.categories:
            file = Path(self.root) / f"{self.files}_{category}.json"
            key = lambda entry, category=category: f"{category}/{entry['question_id']}"  # noqa: E731
            found |= read_questions(file, LAYOUT, ("question_id", *TEXTS), key, texts=TEXTS)
        return found

    def questions(self) -> list[Question]:
        """The questions of all categories, in the files' order."""
        return [
            Question(id=name, image=os.path.join(self.images, entry["image"]), text=entry["text"] + self.suffix)
            for name, entry in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Answers in POPE's format (a folder with one file a category, joined by order), LLaVA's, lmms-eval's or ours.

        A single file's lines carry ``category/question_id`` as their id, or a category and a question_id (lmms-eval),
        or LLaVA's ids.
        """
        path = Path(answers)
        if path.is_dir():
            return self._read_folder(path)
        entries = read_entries(path, "answers: a json list or a jsonl, or a folder with one file a category")
        texts = {name: str(entry["text"]) for name, entry in self.entries.items()}
        if self.llava_questions is not None:
            return self._read_llava(entries, path)
        if any("model_id" in entry and identity(entry) not in self.entries for entry in entries):
            raise ValueError(
                f"{path}: answers in LLaVA's format, whose ids run over all categories; set llava_questions= to its "
                "llava_pope_test.jsonl"
            )
        if all(first(entry, ["category"]) is not None for entry in entries):
            key = lambda entry: f"{first(entry, ['category'])}/{identity(entry, ['question_id'])}"  # noqa: E731
            return join(entries, texts, file=path, key=key)
        return join(entries, texts, file=path)

    def _read_folder(self, folder: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        for category in self.categories:
            files = sorted(file for file in folder.iterdir() if category in file.name and file.suffix[:5] == ".json")
            if len(files) != 1:
                names = ", ".join(file.name for file in files) or "none"
                raise ValueError(f"{folder}: wanted one json or jsonl with {category} in its name, found {names}")
            entries = read_entries(files[0], "answers")
            texts = {name: str(entry["text"]) for name, entry in self._of(category).items()}
            key = lambda entry, category=category: (  # noqa: E731
                None if identity(entry) is None else f"{category}/{identity(entry)}"
            )
            found |= join(entries, texts, file=files[0], key=key)
        return found

    def _read_llava(self, entries: Sequence[Entry], path: Path) -> dict[str, str]:
        """LLaVA's ids lead to a category; within it, the question file has POPE's order."""
        assert self.llava_questions is not None
        asked = read_entries(self.llava_questions, LLAVA)
        for number, one in enumerate(asked, start=1):
            require(one, ("question_id", "text", "category"), f"{self.llava_questions}: question {number}", LLAVA)
        by_id = join(entries, {str(one["question_id"]): str(one["text"]) for one in asked}, file=path)
        found: dict[str, str] = {}
        for category in self.categories:
            mine = [one for one in asked if one["category"] == category]
            texts = {name: str(entry["text"]) for name, entry in self._of(category).items()}
            said = [{"question": one["text"], "text": by_id[str(one["question_id"])]} for one in mine]
            found |= join(said, texts, file=self.llava_questions)
        return found

    def _of(self, category: str) -> dict[str, Entry]:
        return {name: entry for name, entry in self.entries.items() if name.startswith(f"{category}/")}

    def score(self, answers: Answers) -> Scores:
        """``category/number`` by the official rule and the strict one, an image being a unit; see ``statistic``.

        ``correct``, by the official rule, has each question once: those after what is there are the same in all
        categories.
        """
        check_ids(answers, self.entries, "pope")
        units: dict[str, dict[str, float]] = {}
        correct: dict[str, bool] = {}
        rows = []
        for name, entry in self.entries.items():
            category, truth = name.split("/")[0], entry["label"] != "no"
            official, strict = says_yes(answers[name]), yes_or_no(answers[name])
            unit = units.setdefault(entry["image"], {})
            for column in (cell(official, truth), f"{cell(strict, truth)}_strict"):
                unit[f"{category}/{column}"] = unit.get(f"{category}/{column}", 0) + 1
            correct.setdefault(f"{entry['image']}/{entry['text']}", official == truth)
            rows.append({"id": name, "answer": answers[name], "says_yes": official, "strict": strict, "label": truth})
        flags = [
            f"{category}: no true yes, so F1 is reported as 0; the official script divides by zero"
            for category in self.categories
            if not any(unit.get(f"{category}/tp") for unit in units.values())
        ]
        unclear = sum(row["strict"] is None for row in rows)
        if 2 * unclear > len(rows):
            flags.append(
                f"{unclear} of {len(rows)} answers say neither yes nor no, which the official rule takes for a yes"
            )
        return Scores(
            numbers=numbers(units, statistic), units=units, statistic=statistic, correct=correct, rows=rows, flags=flags
        )
