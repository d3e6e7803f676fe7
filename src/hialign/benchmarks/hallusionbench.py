"""HallusionBench: the same question to a figure and to edited ones, or without any; who guesses does not get all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from hialign.benchmarks.answers import (
    Entry,
    check_ids,
    first,
    identity,
    join_replies,
    read_entries,
    read_replies,
    replied,
)
from hialign.benchmarks.questions import join_known, no_replies, only_asked, read_questions, require_one_of
from hialign.benchmarks.reply import yes_or_no
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, column, numbers, share

Rule = Literal["judge", "lmms_eval"]
RULES = ("judge", "lmms_eval")
CATEGORIES = ("VD", "VS")  # visual dependent: there is always a figure; visual supplement: first there is none
PARTS = ("category", "subcategory", "set_id", "figure_id", "question_id")
FIELDS = (*PARTS, "visual_input", "question", "gt_answer_details", "gt_answer", "filename")
VALUES = {"category": CATEGORIES, "visual_input": ("0", "1", "2"), "gt_answer": ("0", "1")}
WRONG, RIGHT, UNCLEAR = 0, 1, 2  # as the official files store a judge's verdict
CHECK, SAME = "gpt4v_output_gpt_check", "same"  # under these names
LAYOUT = (
    "HallusionBench.json (github.com/tianyi-lab/HallusionBench): a list of objects with category, subcategory, "
    "visual_input, set_id, figure_id, question_id, question, gt_answer_details, gt_answer, filename"
)
REPLIES = (
    f"a judge's replies: HallusionBench's judged files, whose objects have {CHECK} and {SAME}, or rows with id and "
    "reply, the id being that of a request"
)
PROMPT = """A question, its reference answer and a prediction follow. Does the prediction agree with the reference?
Reply with one word: "correct" when nothing in the prediction contradicts the reference, "incorrect" when something \
does, "unclear" when the prediction takes no side.

Question: {question}
Reference answer: {reference}
Prediction: {answer}
"""
PROMPT_SAME = """Two responses to questions that you do not see follow. Could both be true at once?
Reply with one word: "same" when neither contradicts the other, "different" when they do.

First response: {answer}
Second response: {original}
"""
_DENIED = re.compile(r"(?:\bnot|n['\u2019]t|\bnever)\s+(?:\w+\s+){0,2}?(in)?correct\b")
_HALF = re.compile(r"\b(?:unclear|uncertain|unsure|partial(?:ly)?|partly)\b")


def verdict(reply: str) -> int:
    """``WRONG`` where the judge's reply has "incorrect" in it, else ``RIGHT`` for "correct", else ``UNCLEAR``.

    So "not correct" is right, and "wrong" unclear.

    Source: Guan et al. 2023, arXiv:2310.14566; code tianyi-lab/HallusionBench@744007c utils.py; HALVA@059b086.
    Differs: nothing.
    """
    if "incorrect" in reply.lower():
        return WRONG
    return RIGHT if "correct" in reply.lower() else UNCLEAR


def verdict_strict(reply: str) -> int:
    """The verdict as a person takes the reply; unclear where it calls the answer both or neither, or partly correct."""
    text = _DENIED.sub(lambda found: " correct" if found[1] else " incorrect", reply.lower())
    wrong, right = (bool(re.search(rf"\b(?:{words})\b", text)) for words in ("incorrect|wrong", "correct|right"))
    if wrong == right or _HALF.search(text):
        return UNCLEAR
    return WRONG if wrong else RIGHT


def agrees(reply: str) -> bool:
    """Whether the judge's reply has "same" in it, be it "not the same".

    Source: as ``verdict``.
    Differs: nothing.
    """
    return "same" in reply.lower()


def counted(found: int, entry: Entry) -> bool:
    """Whether a verdict is a right answer: unclear is right, too, where VS has no figure to know it from.

    Source: as ``verdict``.
    Differs: nothing.
    """
    return found == RIGHT or (found == UNCLEAR and entry["category"] == "VS" and str(entry["figure_id"]) == "0")


def blame(entry: Entry, found: int, original: int, same: bool) -> str | None:
    """Why an answer failed: ``LH`` language hallucination, ``VI`` visual illusion, ``Mixed``, None when it did not.

    Args:
        found: the verdict on the answer.
        original: the verdict on the answer to the same question with figure 0.
        same: whether the two answers agree.

    Source: as ``verdict``, its diagnosis per question.
    Differs: nothing.
    """
    seen = entry["category"] == "VD"
    if str(entry["figure_id"]) == "0":
        if seen:
            return None if found == RIGHT else "VI"
        return "LH" if found == WRONG else None
    if found == RIGHT:
        return None
    if seen:
        return "Mixed" if (original, found) == (RIGHT, WRONG) and same else "VI"
    if original == WRONG:
        return "LH" if found == WRONG and same else "Mixed"
    edited = str(entry["visual_input"]) == "2"
    return "LH" if (original, found) == (RIGHT, WRONG) and edited and same else "VI"


def counts(entries: Mapping[str, Entry], right: Mapping[str, bool]) -> dict[str, dict[str, float]]:
    """By set, whose questions share figures, what ``shares`` takes together; names begin with the category.

    A question group is one question over all figures; a figure group all questions to one figure, of which the absent
    one is none. Groups are easy by their questions without edited figures, hard by those with; a group may have both.
    """
    found: dict[str, dict[str, float]] = {}
    groups: dict[tuple[str, str, str, str], list[bool]] = {}
    for name, entry in entries.items():
        unit, category, correct, truth = _set(entry), entry["category"], right[name], str(entry["gt_answer"]) == "1"
        _add(found.setdefault(unit, {}), category, answers=1, right=correct, yes=truth, said_yes=correct == truth)
        _add(found[unit], category, wrong=not correct, wrong_of_no=not correct and not truth)
        level = "hard" if str(entry["visual_input"]) == "2" else "easy"
        keys = {"questions": entry["question_id"], level: entry["question_id"]}
        if category == "VD" or str(entry["figure_id"]) != "0":
            keys["figures"] = entry["figure_id"]
        for kind, key in keys.items():
            groups.setdefault((unit, category, kind, str(key)), []).append(correct)
    for (unit, category, kind, _), hits in groups.items():
        _add(found[unit], category, **{kind: 1, f"{kind}_right": all(hits)})
        if kind == "figures":
            _add(found[unit], category, figures_wrong=not any(hits), figures_score=sum(hits) / len(hits))
    return found


def shares(sums: Columns, categories: Sequence[str] = CATEGORIES) -> dict[str, np.ndarray]:
    """The accuracies and consistencies (fractions) and the yes/no bias of what ``counts`` counted.

    The bias takes it that an answer was yes where a yes was answered rightly or a no wrongly.

    Source: as ``verdict``, evaluation.py.
    Differs: fractions, unrounded; where all answers are right theirs divides by zero, and the ratio of false yes is 0.
    """

    def of(name: str) -> np.ndarray:
        found: np.ndarray = np.sum([column(sums, f"{one}/{name}") for one in categories], axis=0)
        return found

    figures = of("figures")
    return {
        "aAcc": share(of("right"), of("answers")),
        "qAcc": share(of("questions_right"), of("questions")),
        "fAcc": share(of("figures_right"), figures),
        "easy_aAcc": share(of("easy_right"), of("easy")),
        "hard_aAcc": share(of("hard_right"), of("hard")),
        "consistency_inconsistent": share(figures - of("figures_right") - of("figures_wrong"), figures),
        "consistency_wrong": share(of("figures_wrong"), figures),
        "figure_score": share(of("figures_score"), figures),
        "yes_no_bias_diff": share(of("said_yes") - of("yes"), of("answers")),
        "yes_no_bias_fp_ratio": share(of("wrong_of_no"), of("wrong")),
    }


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """The official numbers in their units: accuracies and consistency in percent, scores and bias fractions.

    ``consistency_correct`` is ``fAcc``. LH, VI and Mixed are percent of the failures; without judged pairs they lack.
    """
    official, strict = _by_rule(sums)
    found = _percent(shares(official))
    found |= {f"{name}_strict": value for name, value in _percent(shares(strict)).items() if name.endswith("Acc")}
    causes = {name: official[name] for name in ("LH", "VI", "Mixed") if name in official}
    found |= {name: 100 * share(value, sum(causes.values())) for name, value in causes.items()}
    for category in CATEGORIES:
        if f"{category}/answers" in official:
            found |= {f"{category}/{name}": value for name, value in _percent(shares(official, [category])).items()}
    return found


def statistic_lmms_eval(sums: Columns) -> dict[str, np.ndarray]:
    """lmms-eval's three accuracies, which are fractions, by its rule and by the strict one."""
    found: dict[str, np.ndarray] = {}
    for rule, mine in zip(("", "_strict"), _by_rule(sums), strict=True):
        told = shares(mine)
        found |= {f"lmms_eval/{name}{rule}": told[name] for name in ("aAcc", "qAcc", "fAcc")}
    return found


def _by_rule(sums: Columns) -> tuple[Columns, Columns]:
    """The official rule's sums and the strict one's, under the same names."""
    strict = {name.removesuffix("_strict"): value for name, value in sums.items() if name.endswith("_strict")}
    return {name: value for name, value in sums.items() if not name.endswith("_strict")}, strict


def _percent(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: value if name.startswith("yes_no_bias") or name == "figure_score" else 100 * value
        for name, value in found.items()
    }


@dataclass(frozen=True, kw_only=True)
class HallusionBench:
    """HallusionBench's 1,129 questions, judged, or the 951 with an image by lmms-eval's rule.

    Args:
        root: the folder with ``HallusionBench.json``.
        images: the folder with VD and VS of hallusion_bench.zip.
        suffix: what is put behind each question; officially nothing.
        rule: ``judge`` scores a judge's replies. ``lmms_eval`` needs none: an answer with "yes" anywhere in it is a
            yes and any other a no; its numbers are fractions of other questions and named ``lmms_eval/...``.
        replies: the judge's replies to ``requests``, in one file or in several (officially VD's and VS's). Of stored
            checks the strict numbers are the official ones: what the judge said is not known any more.
        max_new_tokens: of an answer, where a model is asked.

    Source: Guan et al. 2023, arXiv:2310.14566; code tianyi-lab/HallusionBench@744007c; lmms-eval@75571cf
    tasks/hallusion_bench/evaluate_hb.py.
    Differs: percent are not rounded to 4 decimals; as ``shares``.
    """

    IMAGES: ClassVar[str] = (
        "HallusionBench's folders VD and VS (github.com/tianyi-lab/HallusionBench, hallusion_bench.zip)"
    )

    root: str
    images: str = ""
    suffix: str = ""
    rule: Rule = "judge"
    replies: str | Sequence[str] | None = None
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        require_one_of("rule", self.rule, RULES)

    @cached_property
    def whole(self) -> dict[str, Entry]:
        """Id, the values of ``PARTS`` joined by _, -> the question as its file has it."""
        file = Path(self.root) / "HallusionBench.json"
        found = read_questions(file, LAYOUT, FIELDS, lambda entry: _part(entry, *PARTS))
        for name, entry in found.items():
            for field, known in VALUES.items():
                if str(entry[field]) not in known:
                    told = f"{field} is {entry[field]!r}, none of {', '.join(known)}"
                    raise ValueError(f"{file}: {name}: {told}; wanted {LAYOUT}")
            if not isinstance(entry["filename"], str | None):
                raise ValueError(f"{file}: {name}: filename is {entry['filename']!r}, no text; wanted {LAYOUT}")
        return found

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Those of ``whole`` that ``rule`` asks."""
        asked = {name: entry for name, entry in self.whole.items() if str(entry["visual_input"]) != "0"}
        return asked if self.rule == "lmms_eval" else self.whole

    @cached_property
    def originals(self) -> dict[str, str]:
        """Question -> the same one with figure 0, where it is another."""
        first_ones = {_original(entry): name for name, entry in self.entries.items() if str(entry["figure_id"]) == "0"}
        later = {name: _original(entry) for name, entry in self.entries.items() if str(entry["figure_id"]) != "0"}
        lone = [name for name, group in later.items() if group not in first_ones]
        if lone:
            raise ValueError(f"{self.root}: {lone[0]} is asked of no figure 0; get HallusionBench.json again")
        return {name: first_ones[group] for name, group in later.items()}

    def questions(self) -> list[Question]:
        """The questions in the file's order; those without a figure have no image."""
        return [
            Question(
                id=name,
                image=os.path.join(self.images, os.path.normpath(entry["filename"])) if entry["filename"] else None,
                text=str(entry["question"]) + self.suffix,
            )
            for name, entry in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Answers as the official results file (``model_prediction``), lmms-eval's rows, or ours.

        Others' files, and ours by the rule ``judge``, also answer the questions without a figure, which ``lmms_eval``
        does not ask: these are handed on to ``score``, which counts them. Rows without ids are of all questions in
        their order, or of those that are asked.
        """
        wanted = "answers: the questions with model_prediction, lmms-eval's rows, or rows with id and answer"
        entries = read_entries(answers, wanted)
        by_order = len(entries) == len(self.whole) and all(_key(entry) is None for entry in entries)
        asked = self.whole if by_order else self.entries
        texts = {name: str(entry["question"]) for name, entry in asked.items()}
        return join_known(entries, texts, self.whole.__contains__, file=answers, key=_key)

    @property
    def needs_replies(self) -> bool:
        """Whether a judge has to reply before answers can be scored."""
        return self.replies is None and self.rule == "judge"

    def requests(self, answers: Answers) -> dict[str, str]:
        """What to ask the judge: whether each answer is right, and as ``id/same`` whether it agrees with figure 0's."""
        if self.rule != "judge":
            raise ValueError(f"rule: {self.rule} asks no judge, wanted judge")
        check_ids(answers, self.entries, "hallusionbench")
        asked = {
            name: PROMPT.format(question=entry["question"], reference=entry["gt_answer_details"], answer=answers[name])
            for name, entry in self.entries.items()
        }
        return asked | {
            f"{name}/{SAME}": PROMPT_SAME.format(answer=answers[name], original=answers[original])
            for name, original in self.originals.items()
        }

    def score(self, answers: Answers) -> Scores:
        """The accuracies by ``rule`` and the strict one; a set, whose questions share figures, is a unit."""
        answers, flags = only_asked(answers, self.entries, self.whole.__contains__, "hallusionbench")
        return self._by_words(answers, flags) if self.rule == "lmms_eval" else self._by_judge(answers)

    def _by_words(self, answers: Answers, flags: Sequence[str]) -> Scores:
        said = {name: "yes" in answers[name].lower() for name in self.entries}
        strict = {name: yes_or_no(answers[name]) for name in self.entries}
        truth = {name: str(entry["gt_answer"]) == "1" for name, entry in self.entries.items()}
        right = {name: said[name] == truth[name] for name in truth}
        units = _both(self.entries, right, {name: strict[name] == truth[name] for name in truth})
        rows = [
            {"id": name, "answer": answers[name], "says_yes": said[name], "strict": strict[name], "label": truth[name]}
            for name in self.entries
        ]
        found = numbers(units, statistic_lmms_eval)
        found["lmms_eval/unclear_strict"] = sum(one is None for one in strict.values()) / len(strict)
        return Scores(numbers=found, units=units, statistic=statistic_lmms_eval, correct=right, rows=rows, flags=flags)

    def _by_judge(self, answers: Answers) -> Scores:
        checks, pairs = self._replies({name: answers[name] for name in self.entries})
        official = {name: verdict(checks[name]) for name in self.entries}
        strict = {name: verdict_strict(checks[name]) for name in self.entries}
        right, strictly = (
            {name: counted(one[name], entry) for name, entry in self.entries.items()} for one in (official, strict)
        )
        units = _both(self.entries, right, strictly)
        causes = self._causes(official, pairs) if pairs else {}
        for name, cause in causes.items():
            unit = units[_set(self.entries[name])]
            unit |= {kind: unit.get(kind, 0) + (kind == cause) for kind in ("LH", "VI", "Mixed")}
        parts = {"answer": answers, "reply": checks, "correct": right, "strict": strictly, "cause": causes}
        rows = [{"id": name, **{part: held.get(name) for part, held in parts.items()}} for name in self.entries]
        flags = {
            "LH, VI and Mixed are left out: the replies say of no two answers whether they are the same.": not pairs,
            "No answer is wrong: the ratio of false yes is 0, where the official script divides by zero.": all(
                right.values()
            ),
        }
        return Scores(
            numbers=numbers(units, statistic),
            units=units,
            statistic=statistic,
            correct=right,
            rows=rows,
            flags=[flag for flag, holds in flags.items() if holds],
        )

    def _causes(self, found: Mapping[str, int], pairs: Mapping[str, str]) -> dict[str, str | None]:
        return {
            name: blame(entry, found[name], found[self.originals.get(name, name)], agrees(pairs.get(name, SAME)))
            for name, entry in self.entries.items()
        }

    def _replies(self, answers: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """The judge's replies to the answers, and those to pairs of them, which may lack altogether."""
        if self.replies is None:
            raise no_replies("hallusionbench", f"{REPLIES} (rule=lmms_eval needs none)")
        files = [self.replies] if isinstance(self.replies, str) else list(self.replies)
        entries = [entry for file in files for entry in read_replies(file, REPLIES)]
        told = ", ".join(map(str, files))
        of_pairs = [entry for entry in entries if str(_key(entry)).endswith(f"/{SAME}")]
        checks = [entry for entry in entries if not str(_key(entry)).endswith(f"/{SAME}")]
        pairs = [(str(_key(entry)).removesuffix(f"/{SAME}"), replied(entry, told)) for entry in of_pairs]
        pairs += [
            (str(_key(entry)), "same" if _stored(entry, SAME) == 1 else "different")
            for entry in checks
            if SAME in entry
        ]
        pairs = [(name, text) for name, text in pairs if name not in self.entries or name in self.originals]
        if pairs:
            check_ids([name for name, _ in pairs], self.originals, f"{told}: {SAME}")
        return join_replies(checks, answers, file=told, key=_key, text=_check), dict(pairs)


def _both(
    entries: Mapping[str, Entry], right: Mapping[str, bool], strictly: Mapping[str, bool]
) -> dict[str, dict[str, float]]:
    strict = counts(entries, strictly)
    return {
        name: unit | {f"{count}_strict": value for count, value in strict[name].items()}
        for name, unit in counts(entries, right).items()
    }


def _part(entry: Entry, *names: str) -> str:
    return "_".join(str(first(entry, [name])) for name in names)


def _original(entry: Entry) -> str:
    return _part(entry, "category", "subcategory", "set_id", "question_id")


def _key(entry: Entry) -> str | None:
    if (own := identity(entry, ["id"])) is not None:
        return own
    return None if any(first(entry, [name]) is None for name in PARTS) else _part(entry, *PARTS)


def _stored(entry: Entry, name: str) -> int:
    value = str(entry[name])
    if value not in ("0", "1", "2"):
        raise ValueError(f"{_key(entry)}: {name}={entry[name]!r}, wanted 0, 1 or 2")
    return int(value)


def _check(entry: Entry, place: str) -> str:
    """The judge's reply; a stored check stands for the word that it was made of."""
    if CHECK not in entry:
        try:
            return replied(entry, place)
        except ValueError as error:
            raise ValueError(f"{error}; or a stored check, {CHECK} of 0, 1 or 2") from error
    return {WRONG: "incorrect", RIGHT: "correct", UNCLEAR: "unclear"}[_stored(entry, CHECK)]


def _set(entry: Entry) -> str:
    return _part(entry, "category", "subcategory", "set_id")


def _add(unit: dict[str, float], category: str, **found: float) -> None:
    for name, value in found.items():
        unit[f"{category}/{name}"] = unit.get(f"{category}/{name}", 0) + value
