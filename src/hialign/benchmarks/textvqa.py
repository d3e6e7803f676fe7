"""TextVQA: questions about photographs that can be answered by reading what is written in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from hialign.benchmarks.answers import Entry, by_name, check_ids, first, identity, join, read_entries, read_list
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, numbers, share
from hialign.benchmarks.vqa import SHORT
from hialign.benchmarks.vqa_answers import agreement, submitted

LAYOUT = (
    'TextVQA_0.5.1_val.json of textvqa.org/dataset: {"data": [{"question_id", "image_id", "question", "answers": ten}]}'
)
LLAVA = "llava_textvqa_val_v051_ocr.jsonl of LLaVA's eval.zip: objects with question_id (the image's), text"


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """``accuracy`` in percent."""
    return {"accuracy": 100 * share(sums["accuracy"], sums["number"])}


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
        return by_name(read_list(file, "data", fields, LAYOUT), "question_id", file)

    def questions(self) -> list[Question]:
        """The questions in their file's order."""
        texts = {name: str(entry["question"]) + self.suffix for name, entry in self.entries.items()}
        if self.prompts is not None:
            asked = read_entries(self.prompts, LLAVA)
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
        """``accuracy`` in percent; an image is a unit."""
        check_ids(answers, self.entries, "textvqa")
        units: dict[str, dict[str, float]] = {}
        rows = []
        for name, entry in self.entries.items():
            people = [(submitted(str(text)), number) for number, text in enumerate(entry["answers"])]
            accuracy = agreement(submitted(answers[name]), people)
            unit = units.setdefault(str(entry["image_id"]), {"accuracy": 0.0, "number": 0.0})
            unit["accuracy"] += accuracy
            unit["number"] += 1
            rows.append({"id": name, "answer": answers[name], "accuracy": accuracy})
        return Scores(numbers=numbers(units, statistic), units=units, statistic=statistic, rows=rows)


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
