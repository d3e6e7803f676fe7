"""LLaVA-Bench: open questions whose answers a judge marks from 1 to 10 beside a reference's answers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from hialign.benchmarks.answers import Entry, check_ids, first, identity, join, read_entries, replied
from hialign.benchmarks.questions import judged, read_questions, require, require_one_of, strict_flags
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, column, numbers, share_or_nan

Rule = Literal["llava", "rlhf_v"]
RULES = ("llava", "rlhf_v")
Pair = tuple[float, float]  # of the reference, of the model
FAILED = (-1.0, -1.0)  # the official script's marks of a reply that it cannot read
LAYOUT = (
    "LLaVA-Bench's questions (LLaVA's playground/data/coco2014_val_qa_eval/qa90_questions.jsonl, or questions.jsonl of "
    "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild): objects with question_id, image, text, category"
)
REPLIES = (
    "a judge's replies: LLaVA's reviews, objects with question_id and content (or tuple alone), or rows with id, reply"
)
REFERENCES = "the reference's answers, such as qa90_gpt4_answer.jsonl or answers_gpt4.jsonl: question_id and text"
CONTEXT = (
    "what the judge is told of the images, such as caps_boxes_coco2014_val_80.jsonl or context.jsonl: image, captions "
    "or caption, and instances where there are boxes"
)
PROMPT = """Two assistants answered a question about an image that you do not see. This is known of it:
{context}

Question: {question}

Answer of assistant 1:
{reference}

Answer of assistant 2:
{answer}

Mark each answer from 1 (useless) to 10 (excellent) for being helpful, to the point, right about the image and \
detailed enough. Which came first must not matter. Write two numbers with a blank between them on the first line, the \
mark of assistant 1 and that of assistant 2, and nothing else on it. Then give your reasons.
"""
_MARK = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w.]\w)")
_OUT_OF = re.compile(r"/\s*10\b")
_NAMES = re.compile(r"\bassistants?\s*(?:1\s*(?:and|,|&)\s*2|[12])(?=\W)", re.IGNORECASE)


def marks(reply: str) -> Pair:
    """The two marks on the reply's first line, or ``FAILED``.

    Commas become blanks, and between single blanks there must be two numbers: "8, 9" fails, "8,9" does not.

    Source: Liu et al. 2023, arXiv:2304.08485; code haotian-liu/LLaVA@c121f04, eval_gpt_review_bench.py.
    Differs: nothing.
    """
    cells = reply.split("\n")[0].replace(",", " ").split(" ")
    if len(cells) != 2:
        return FAILED
    try:
        return float(cells[0]), float(cells[1])
    except ValueError:
        return FAILED


def marks_strict(reply: str) -> Pair | None:
    """The two marks from 1 to 10 on the first line with anything on it, whatever stands around them, else None.

    "/10" and the names of the assistants are passed over.
    """
    line = next((line for line in reply.splitlines() if line.strip()), "")
    found = [float(number) for number in _MARK.findall(_NAMES.sub("", _OUT_OF.sub("", line)))]
    return (found[0], found[1]) if len(found) == 2 and all(1 <= one <= 10 for one in found) else None


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """Of all and of each category: the model's marks in percent of the reference's, and ten times both means.

    Source: as ``marks``, summarize_gpt_review.py.
    Differs: unrounded; not a number where there is no reply to take, or where the reference's marks sum to 0.
    """
    found = {}
    for group in dict.fromkeys(["all", *(name.split("/")[0] for name in sums)]):
        for rule in ("", "_strict"):
            of = [column(sums, f"{group}/{name}{rule}") for name in ("model", "reference", "pairs")]
            found[f"{group}/relative{rule}"] = 100 * share_or_nan(of[0], of[1])
            found[f"{group}/model{rule}"] = 10 * share_or_nan(of[0], of[2])
            found[f"{group}/reference{rule}"] = 10 * share_or_nan(of[1], of[2])
    return found


def statistic_rlhf_v(sums: Columns) -> dict[str, np.ndarray]:
    """``statistic`` of the replies that could be read; by another name, so that the two rules are not compared."""
    return statistic(sums)


@dataclass(frozen=True, kw_only=True)
class LlavaBench:
    """LLaVA-Bench (COCO) or (In-the-Wild), scored from a judge's marks.

    Args:
        questions_file: the questions.
        images: the folder of the images.
        suffix: what is put behind each question; officially nothing.
        replies: the judge's replies to ``requests``, the reference's answer being the first.
        rule: what becomes of replies whose marks cannot be read: ``llava`` takes -1 for both into the means, as the
            official script does; ``rlhf_v`` leaves them out. The strict numbers are of the replies that
            ``marks_strict`` reads.
        references: the reference's answers; ``requests`` needs them.
        context: what the judge is told of the images; ``requests`` needs it.
        max_new_tokens: of an answer, where a model is asked.

    Source: as ``marks``; RLHF-V@8daac8a summarize_gpt_llava_review.py.
    Differs: unrounded.
    """

    IMAGES: ClassVar[str] = "the images that the questions are about: COCO's val2014, or LLaVA-Bench in the wild"

    questions_file: str
    images: str = ""
    suffix: str = ""
    replies: str | None = None
    rule: Rule = "llava"
    references: str | None = None
    context: str | None = None
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        require_one_of("rule", self.rule, RULES)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Question id -> the question as its file has it."""
        texts = ("image", "text", "category")
        key = lambda entry: str(entry["question_id"])  # noqa: E731
        return read_questions(self.questions_file, LAYOUT, ("question_id", *texts), key, texts=texts)

    def questions(self) -> list[Question]:
        """The questions in the file's order."""
        return [
            Question(id=name, image=os.path.join(self.images, entry["image"]), text=entry["text"] + self.suffix)
            for name, entry in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Answers as LLaVA's lines (question_id, text), lmms-eval's rows, or ours."""
        return self._join(answers, "answers: a json list or a jsonl with question_id and text, or id and answer")

    def _join(self, file: str, wanted: str) -> dict[str, str]:
        texts = {name: str(entry["text"]) for name, entry in self.entries.items()}
        return join(read_entries(file, wanted), texts, file=file)

    @property
    def needs_replies(self) -> bool:
        """Whether a judge has to reply before answers can be scored."""
        return self.replies is None

    def requests(self, answers: Answers) -> dict[str, str]:
        """What to ask the judge of each answer, by question, the reference's answer being the first."""
        check_ids(answers, self.entries, "llava_bench")
        if self.references is None or self.context is None:
            lacking = "references" if self.references is None else "context"
            raise ValueError(f"{lacking}: none given, wanted {REFERENCES if lacking == 'references' else CONTEXT}")
        references = self._join(self.references, REFERENCES)
        told = {
            str(entry.get("image")): _told(entry, f"{self.context}: image {entry.get('image')}")
            for entry in read_entries(self.context, CONTEXT)
        }
        lone = [entry["image"] for entry in self.entries.values() if entry["image"] not in told]
        if lone:
            raise ValueError(f"{self.context}: nothing of the image {lone[0]}; wanted {CONTEXT}")
        return {
            name: PROMPT.format(
                context=told[entry["image"]],
                question=entry["text"],
                reference=references[name],
                answer=answers[name],
            )
            for name, entry in self.entries.items()
        }

    def score(self, answers: Answers) -> Scores:
        """``category/number`` by ``rule`` and the strict one; an image with its questions is a unit."""
        check_ids(answers, self.entries, "llava_bench")
        ordered = {name: answers[name] for name in self.entries}
        # LLaVA's reviews have an id of their own, which counts the lines from 1.
        key = lambda entry: identity(entry, ("question_id", "id"))  # noqa: E731
        replies = judged(self.replies, ordered, name="llava_bench", wanted=REPLIES, key=key, text=_content)
        units: dict[str, dict[str, float]] = {}
        rows = []
        for name, entry in self.entries.items():
            found, strict = marks(replies[name]), marks_strict(replies[name])
            unit = units.setdefault(str(entry["image"]), {})
            if self.rule == "llava" or found[0] != FAILED[0]:
                _add(unit, str(entry["category"]), found, "")
            if strict is not None:
                _add(unit, str(entry["category"]), strict, "_strict")
            rows.append({"id": name, "answer": answers[name], "reply": replies[name], "marks": found, "strict": strict})
        scored = numbers(units, statistic)
        flags = _flags(rows, "enter the means as -1" if self.rule == "llava" else "are left out")
        if missing := [name for name, value in scored.items() if np.isnan(value) and not name.endswith("_strict")]:
            flags.append(f"No reply gives these numbers, which are missing: {', '.join(missing)}.")
        used = statistic if self.rule == "llava" else statistic_rlhf_v
        return Scores(numbers=scored, units=units, statistic=used, rows=rows, flags=flags)


def _flags(rows: Sequence[Mapping[str, object]], became: str) -> list[str]:
    failed = [row["id"] for row in rows if row["marks"] == FAILED]
    told = []
    if failed:
        some = f"{len(failed)} of {len(rows)}, such as that to {failed[0]}."
        told.append(f"Replies without two marks, which {became}: {some}")
    return told + strict_flags(sum(row["strict"] is None for row in rows), len(rows))


def _add(unit: dict[str, float], category: str, pair: Sequence[float], rule: str) -> None:
    for group in ("all", category):
        for name, value in (("reference", pair[0]), ("model", pair[1]), ("pairs", 1.0)):
            unit[f"{group}/{name}{rule}"] = unit.get(f"{group}/{name}{rule}", 0.0) + value


def _content(entry: Entry, place: str) -> str:
    """The judge's reply, or the marks that a review without it has."""
    pair = entry.get("tuple")
    if first(entry, ("reply", "content", "choices")) is None and isinstance(pair, list) and len(pair) == 2:
        return f"{pair[0]} {pair[1]}"
    return replied(entry, place)


def _told(entry: Entry, place: str) -> str:
    """The captions and boxes of an image, a line each."""
    captions = entry.get("captions") or entry.get("caption")
    lines = [captions] if isinstance(captions, str) else list(captions) if isinstance(captions, list) else []
    boxes = entry.get("instances")
    for number, box in enumerate(boxes if isinstance(boxes, list) else [], start=1):
        require(box, ["category", "bbox"], f"{place}: instances, {number}", CONTEXT)
        lines.append(f"{box['category']}: {box['bbox']}")
    return "\n".join(map(str, lines))
