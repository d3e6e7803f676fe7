"""TextVQA: questions about photographs that can be answered by reading what is written in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from hialign.benchmarks.answers import Entry, by_name, check_ids, first, identity, join, read_entries, read_list
from hialign.benchmarks.questions import require
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, numbers, share
from hialign.benchmarks.vqa import SHORT
from hialign.benchmarks.vqa_answers import agreement, strictly, submitted

LAYOUT = (
    'TextVQA_0.5.1_val.json of textvqa.org/dataset: {"data": [{"question_id", "image_id", "question", "answers": ten}]}'
)
LLAVA = "llava_textvqa_val_v051_ocr.jsonl of LLaVA's eval.zip: objects with question_id (the image's), text"


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """``accuracy`` in percent, and that by the strict rule."""
    return {name: 100 * share(sums[name], sums["number"]) for name in ("accuracy", "accuracy_strict")}


def kind(people: Sequence[str]) -> str:
    """What most people's answers are: ``number`` where they are digits, ``yes/no``, or ``other``."""
    kinds = Counter("number" if one.isdecimal() else "yes/no" if one in ("yes", "no") else "other" for one in people)
    most, number = kinds.most_common(1)[0]
    return most if 2 * number > len(people) else "other"


@dataclass(frozen=True, kw_only=True)
class TextVqa:
    """TextVQA's questions with ten people's answers each.

    Args:
        root: the folder with ``file``.
        file: the questions with their answers.
        images: the folder of the images, named by their ids.
        suffix: what is put behind each question; ``SHORT`` is LLaVA's.
        prompts: LLaVA's question file, whose texts (with what a reader of text has found) are asked instead.
        max_new_tokens: of an answer, where a model is asked; LLaVA's evaluation has 128.

    By the strict rule answers to questions that most people answer by a number, or by yes or no, are read as a person
    takes them, as in VQAv2; others are compared as officially.

    Source: Singh et al. 2019, arXiv:1904.08920; code haotian-liu/LLaVA@c121f04, eval_textvqa.py, m4c_evaluator.py.
    Differs: nothing.
    """

    IMAGES: ClassVar[str] = "TextVQA's train_val_images (textvqa.org)"

    root: str
    file: str = "TextVQA_0.5.1_val.json"
    images: str = ""
    suffix: str = SHORT
    prompts: str | None = None
    max_new_tokens: int = 128

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Question id -> the question as its file has it."""
        fields = ("question_id", "image_id", "question", "answers")
        file = Path(self.root) / self.file
        found = by_name(read_list(file, "data", fields, LAYOUT), "question_id", file)
        for name, entry in found.items():
            said = entry["answers"]
            if not isinstance(said, list) or not said or not all(isinstance(one, str) for one in said):
                raise ValueError(f"{file}: question {name}: answers are {said!r}, no texts of people; wanted {LAYOUT}")
        return found

    def questions(self) -> list[Question]:
        """The questions in their file's order."""
        texts = {name: str(entry["question"]) + self.suffix for name, entry in self.entries.items()}
        if self.prompts is not None:
            asked = read_entries(self.prompts, LLAVA)
            for number, one in enumerate(asked, start=1):
                require(one, ["question_id", "text"], f"{self.prompts}: question {number}", LLAVA)
            with_prompt = [{**one, "prompt": one["text"]} for one in asked]
            texts = join(with_prompt, texts, file=self.prompts, key=_key(self.entries))
        return [
            Question(id=name, image=os.path.join(self.images, f"{entry['image_id']}.jpg"), text=texts[name])
            for name, entry in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Answers in LLaVA's format, joined by the image and the question in the prompt, in lmms-eval's or ours."""
        texts = {name: str(entry["question"]) for name, entry in self.entries.items()}
        entries = read_entries(answers, "answers to TextVQA: a json list or a jsonl")
        return join(entries, texts, file=answers, key=_key(self.entries))

    def score(self, answers: Answers) -> Scores:
        """``accuracy`` in percent by the official rule and the strict one; an image is a unit."""
        check_ids(answers, self.entries, "textvqa")
        units: dict[str, dict[str, float]] = {}
        rows = []
        for name, entry in self.entries.items():
            said, *people = (submitted(text) for text in (answers[name], *entry["answers"]))
            accuracy = agreement(said, [(text, number) for number, text in enumerate(people)])
            strict = _strict(said, people)
            unit = units.setdefault(str(entry["image_id"]), {})
            for column, value in (("accuracy", accuracy), ("accuracy_strict", strict), ("number", 1.0)):
                unit[column] = unit.get(column, 0.0) + value
            rows.append({"id": name, "answer": answers[name], "accuracy": accuracy, "accuracy_strict": strict})
        return Scores(numbers=numbers(units, statistic), units=units, statistic=statistic, rows=rows)


def _strict(said: str, people: Sequence[str]) -> float:
    """What the answer is worth by the strict rule; as officially where people answer by other words."""
    if (asked := kind(people)) != "other":
        said, *people = (strictly(text, asked) for text in (said, *people))
    return agreement(said, [(text, number) for number, text in enumerate(people)])


def _key(entries: Mapping[str, Entry]) -> Callable[[Entry], str | None]:
    """What gives the id of an answer's question: its own, or where that is an image's (LLaVA) by the prompt.

    An image that is asked the same twice has its ids given out in order.
    """
    asked: dict[tuple[str, str], list[str]] = {}
    for name, entry in entries.items():
        asked.setdefault((str(entry["image_id"]), _plain(str(entry["question"]))), []).append(name)

    def key(entry: Entry) -> str | None:
        name, prompt = identity(entry), first(entry, ["prompt"])
        if name is None or name in entries or not isinstance(prompt, str):
            return name
        lines = [(name, _plain(line)) for line in prompt.split("\n")]
        names = next((asked[line] for line in lines if asked.get(line)), None)
        return names.pop(0) if names else name

    return key


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
