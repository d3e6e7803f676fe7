"""MME: two yes-or-no questions to each image, one of either truth; full marks where both are right."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from hialign.benchmarks.answers import ASKED, Entry, first, identity, read_entries, read_text
from hialign.benchmarks.questions import join_known, only_asked
from hialign.benchmarks.reply import yes_or_no
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, column, numbers, share

HALLUCINATION = ("existence", "count", "position", "color")
PERCEPTION = (*HALLUCINATION, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)
TOTALS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION}
DEEPER = ("posters", "celebrity", "scene", "landmark", "artwork")  # their images lie in a folder images
ENDING = " Please answer yes or no."
SHORT = "\nAnswer the question using a single word or phrase."  # what LLaVA asks instead
LAYOUT = (
    "MME's questions of one task (eval_tool.zip, Your_Results, of github.com/BradyFU/"
    "Awesome-Multimodal-Large-Language-Models, branch Evaluation): lines of image, question, Yes or No, between tabs"
)


@dataclass(frozen=True)
class Item:
    """One question: its task, image and text as the files have them, and whether yes is right."""

    task: str
    image: str
    text: str
    truth: bool


def reading(answer: str) -> bool | None:
    """Whether MME reads ``answer`` as a yes or a no; None, which is wrong, for neither in its first four characters.

    So "eyes" is a yes, "Nothing" and " no" are a no, and "The answer is yes" is neither.

    Source: Fu et al. 2023, arXiv:2306.13394; eval_tool's calculation.py.
    Differs: nothing.
    """
    start = answer.lower()[:4]
    if "yes" in start:
        return True
    return False if "no" in start else None


def counts(said: Sequence[bool | None], truths: Sequence[bool], rule: str = "") -> dict[str, float]:
    """One image's part in the sums that ``marks`` reads, names ending in ``rule``."""
    pairs = list(zip(said, truths, strict=True))
    right = sum(one == truth for one, truth in pairs)
    found = {
        "questions": len(pairs),
        "right": right,
        "images": 1,
        "both": right == len(pairs),
        "tp": pairs.count((True, True)),
        "fp": pairs.count((True, False)),
        "fn": pairs.count((False, True)),
        "other": sum(one is None for one, _ in pairs),
    }
    return {f"{name}{rule}": float(value) for name, value in found.items()}


def marks(sums: Columns, task: str, rule: str = "") -> dict[str, np.ndarray]:
    """A task's ``score`` of 200, and fractions: ``acc``, ``acc_plus`` of images, precision and recall of the yes.

    ``other`` is the share of answers that are neither; precision and recall leave them out.

    Source: as ``reading``.
    Differs: nothing.
    """

    def of(name: str) -> np.ndarray:
        return column(sums, f"{task}/{name}{rule}")

    acc, plus = share(of("right"), of("questions")), share(of("both"), of("images"))
    return {
        "score": 100 * (acc + plus),
        "acc": acc,
        "acc_plus": plus,
        "precision": share(of("tp"), of("tp") + of("fp")),
        "recall": share(of("tp"), of("tp") + of("fn")),
        "other": share(of("other"), of("questions")),
    }


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """Totals of the groups of tasks that are whole, then each task's ``marks``; ``_strict`` by the strict rule."""
    tasks = list(dict.fromkeys(name.split("/")[0] for name in sums))
    by_rule = {rule: {task: marks(sums, task, rule) for task in tasks} for rule in ("", "_strict")}
    found = {
        f"{total}{rule}": np.sum([told[task]["score"] for task in group], axis=0)
        for total, group in TOTALS.items()
        if set(group) <= set(tasks)
        for rule, told in by_rule.items()
    }
    for rule, told in by_rule.items():
        found |= {f"{task}/{name}{rule}": value for task in tasks for name, value in told[task].items()}
    return found


@dataclass(frozen=True, kw_only=True)
class Mme:
    """MME's questions of some tasks.

    Args:
        root: the folder with ``<task>.txt``.
        images: the folder with one for each task, as MME's release has them.
        tasks: which are asked; the hallucination subset is ``HALLUCINATION``.
        suffix: what stands in place of `` Please answer yes or no.``, with which the questions end; ``SHORT`` is
            LLaVA's. None: the questions as they are.
        max_new_tokens: of an answer, where a model is asked.

    Source: as ``reading``.
    Differs: answers with line breaks or tabs are read, which break the official files.
    """

    IMAGES: ClassVar[str] = (
        "MME's images, a folder for each task (github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, MME)"
    )

    root: str
    images: str = ""
    tasks: Sequence[str] = field(default=TASKS)
    suffix: str | None = None
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: got {list(self.tasks)}, wanted some of {', '.join(TASKS)}, each once")

    @cached_property
    def entries(self) -> dict[str, Item]:
        """Question id, ``task/image/1`` or ``/2``, -> the question."""
        found: dict[str, Item] = {}
        for task in self.tasks:
            file = Path(self.root) / f"{task}.txt"
            for number, cells in enumerate(_lines(file, LAYOUT, least=3), start=1):
                if cells[2].strip().lower() not in ("yes", "no"):
                    raise ValueError(f"{file}: line {number} has {cells[2]!r} for an answer; wanted {LAYOUT}")
                place = 1 if f"{task}/{cells[0]}/1" not in found else 2
                if f"{task}/{cells[0]}/{place}" in found:
                    raise ValueError(f"{file}: line {number} is the third to {cells[0]}; wanted two to each image")
                item = Item(task, cells[0], cells[1], cells[2].strip().lower() == "yes")
                found[f"{task}/{cells[0]}/{place}"] = item
        alone = [name for name in found if name.endswith("/1") and f"{name[:-1]}2" not in found]
        if alone:
            raise ValueError(f"{self.root}: {alone[0][:-2]} has one question; wanted two to each image: get it again")
        return found

    def questions(self) -> list[Question]:
        """The questions in the tasks' and files' order."""
        return [
            Question(id=name, image=os.path.join(self.images, _path(item)), text=self._asked(item.text))
            for name, item in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Answers as the official folder of ``<task>.txt``, LLaVA's lines, lmms-eval's rows, or ours.

        LLaVA's and lmms-eval's are joined by task, image and question. Answers to other tasks of MME's than ``tasks``
        are handed on to ``score``, which counts them.
        """
        texts = {name: item.text for name, item in self.entries.items()}
        places = {(item.task, _stem(item.image), _core(item.text)): name for name, item in self.entries.items()}
        path = Path(answers)
        entries = self._folder(path) if path.is_dir() else read_entries(path, "answers, or a folder of <task>.txt")
        return join_known(entries, texts, self._other_task, file=path, key=lambda entry: _key(entry, places))

    def _other_task(self, name: str) -> bool:
        """Whether a question is of a task that is not asked; its file is not read."""
        return (task := name.split("/")[0]) in TASKS and task not in self.tasks

    def _folder(self, folder: Path) -> list[Entry]:
        wanted = "MME's results of one task: lines of image, question, truth, answer, between tabs"
        return [
            {"question_id": f"{task}/{cells[0]}", "question": cells[1], "answer": cells[3]}
            for task in self.tasks
            for cells in _lines(folder / f"{task}.txt", wanted, least=4)
        ]

    def _asked(self, text: str) -> str:
        if self.suffix is None:
            return text
        if not text.endswith(ENDING.strip()):
            raise ValueError(f"suffix: {text!r} does not end with {ENDING.strip()!r}, in whose place it would stand")
        return text.removesuffix(ENDING.strip()).rstrip() + self.suffix

    def score(self, answers: Answers) -> Scores:
        """The tasks' scores by the official rule and the strict one; an image with its two questions is a unit."""
        answers, flags = only_asked(answers, self.entries, self._other_task, "mme")
        official = {name: reading(answers[name]) for name in self.entries}
        strict = {name: yes_or_no(answers[name]) for name in self.entries}
        units = {}
        for first_one in (name for name in self.entries if name.endswith("/1")):
            names, task = (first_one, f"{first_one[:-1]}2"), self.entries[first_one].task
            truths = [self.entries[name].truth for name in names]
            found = counts([official[name] for name in names], truths)
            found |= counts([strict[name] for name in names], truths, "_strict")
            units[first_one[:-2]] = {f"{task}/{name}": value for name, value in found.items()}
        rows = [
            {
                "id": name,
                "answer": answers[name],
                "says_yes": official[name],
                "strict": strict[name],
                "label": item.truth,
            }
            for name, item in self.entries.items()
        ]
        correct = {name: official[name] == item.truth for name, item in self.entries.items()}
        return Scores(
            numbers=numbers(units, statistic), units=units, statistic=statistic, correct=correct, rows=rows, flags=flags
        )


def _lines(file: Path, wanted: str, least: int) -> list[list[str]]:
    """The cells of each line; a ValueError where there are not ``least``, or not as many as an answer allows."""
    found = []
    for number, line in enumerate(read_text(file, wanted).rstrip("\n").split("\n"), start=1):
        cells = line.rstrip("\r").split("\t")
        if not least <= len(cells) <= 4:
            raise ValueError(f"{file}: line {number} has {len(cells)} cells, an answer may hold a tab; wanted {wanted}")
        found.append(cells)
    return found


def _key(entry: Entry, places: Mapping[tuple[str, str, str], str]) -> str | None:
    if (own := identity(entry, ["id"])) is not None:
        return own
    asked, path = first(entry, ASKED), first(entry, ["question_id"])
    if path is None or asked is None:
        return None if path is None else str(path)
    task, image = str(path).split("/")[0], str(path).split("/")[-1]
    return places.get((task, _stem(image), _core(str(asked))), f"{path} {asked!r}")


def _core(text: str) -> str:
    """The question without what asks for a short answer."""
    for part in ("<image>", ENDING.strip(), SHORT.strip()):
        text = text.replace(part, "")
    return " ".join(text.split())


def _stem(image: str) -> str:
    return os.path.splitext(image)[0]


def _path(item: Item) -> str:
    return os.path.join(item.task, "images" if item.task in DEEPER else "", item.image)
