"""AMBER: what descriptions make up, and questions after existence, attributes and relations, on 1,004 images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hialign.benchmarks.answers import Entry, check_ids, read_entries, read_json, read_text
from hialign.benchmarks.questions import join_known, only_asked, read_questions, require
from hialign.benchmarks.reply import yes_or_no
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, share, total
from hialign.benchmarks.taggers import nltk_tagged, spacy_similarity, spacy_tagged
from hialign.benchmarks.vocabulary import pieces, singulars

DATA = "AMBER's data folder (github.com/junyangwang0410/AMBER): annotations.json, relation.json, safe_words.txt, query/"
TAGGERS, SIMILARITIES = ("builtin", "nltk", "spacy"), ("none", "spacy")
KINDS = ("g", "de", "da", "dr")  # descriptions; questions after existence, attributes, relations
TASKS = {
    "discriminative-hallucination": "de",
    "discriminative-attribute-state": "da_state",
    "discriminative-attribute-number": "da_number",
    "discriminative-attribute-action": "da_action",
    "discriminative-relation": "dr",
    "relation": "dr",
}
PARTS = {  # what is reported -> the tasks whose counts it sums
    "d": ("de", "da_state", "da_number", "da_action", "dr"),
    "de": ("de",),
    "da": ("da_state", "da_number", "da_action"),
    "da_state": ("da_state",),
    "da_number": ("da_number",),
    "da_action": ("da_action",),
    "dr": ("dr",),
}
SMALL = 0.001  # what each of the official counts of trials begins with
SIMILAR = 0.8  # words more alike than this are the same
DETERMINERS = {"a", "an", "the", "this", "that", "one", "another", "each", "every", "no", "its", "his", "her", "their"}
Nouns = Callable[[str], list[str]]
Similarity = Callable[[str, str], float]
Counted = tuple[dict[str, float], dict[str, Any]]  # counts by name, and what is written down


def converted(answer: str, rule: str) -> str:
    """``Yes``, ``No`` or what counts as neither, of an answer to a yes-or-no question.

    ``official``: the answer as it is, which must be exactly Yes or No. ``halva``: Yes where "yes" occurs, else No.
    ``chip``: what the answer begins with, an "Assistant:" left out. ``lmms_eval``: Yes where "yes" occurs, else No
    where "no" does.

    Source: junyangwang0410/AMBER@534babf, inference.py; pritamqu/HALVA@059b086, model_amber_loader.py;
    LVUGAI/CHiP@e7f5193, eval_public.py; EvolvingLMMs-Lab/lmms-eval@75571cf.
    Differs: nothing.
    """
    text = answer.lower()
    if rule == "official":
        return answer
    if rule == "halva":
        return "Yes" if "yes" in text else "No"
    if rule == "chip":
        start = text.replace("assistant:", "").strip()
        return "No" if start.startswith("no") else "Yes" if start.startswith("yes") else ""
    if rule == "lmms_eval":
        return "Yes" if "yes" in text else "No" if "no" in text else answer
    raise ValueError(f"conversion: got {rule!r}; wanted official, halva, chip or lmms_eval")


def closed_nouns(words: Iterable[str]) -> Nouns:
    """A finder of nouns without a tagger: the given words and their plurals, their case kept.

    "can" is a noun behind a determiner alone. Verbs and adjectives that look like one of the nouns are taken for it.
    """
    known = dict.fromkeys(words)
    table = {word: word for word in known} | singulars(known)

    def nouns(text: str) -> list[str]:
        parts = pieces(text)
        return [
            table[word]
            for before, word in zip(["", *parts], parts, strict=False)
            if word in table and (word != "can" or before.lower() in DETERMINERS)
        ]

    return nouns


def tagged_nouns(tagged: Callable[[str], list[tuple[str, str]]]) -> Nouns:
    """A finder of nouns by a tagger: the base forms of what is tagged NN, NNS, NNP or NNPS."""
    return lambda text: [word for word, tag in tagged(text) if tag.startswith("NN")]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Words that an image's annotation lists, behind those that may stand for them, each with its place in the list."""

    words: Sequence[str]
    places: Sequence[int]

    @classmethod
    def of(cls, listed: Sequence[str], relation: Mapping[str, Sequence[str]]) -> Listed:
        """The associated words of all listed ones in their order, and then these themselves."""
        pairs = [(other, place) for place, word in enumerate(listed) for other in relation.get(word, ())]
        pairs += [(word, place) for place, word in enumerate(listed)]
        return cls(words=[word for word, _ in pairs], places=[place for _, place in pairs])

    def same(self, noun: str) -> int | None:
        """The place of the listed word that ``noun`` is or stands for; None when it is none."""
        return self.places[self.words.index(noun)] if noun in self.words else None

    def like(self, noun: str, similarity: Similarity | None) -> int | None:
        """The place of the first that is more alike than ``SIMILAR``; None without one, or without a similarity."""
        if similarity is None:
            return None
        near = (place for word, place in zip(self.words, self.places, strict=True) if similarity(noun, word) > SIMILAR)
        return next(near, None)


def describe(
    nouns: Sequence[str],
    truth: Sequence[str],
    tempting: Sequence[str],
    relation: Mapping[str, Sequence[str]],
    safe: Iterable[str],
    similarity: Similarity | None,
) -> tuple[dict[str, float], list[str]]:
    """What a description is counted as, and its nouns that are not there.

    Args:
        nouns: those of the description that AMBER knows, with repetitions.
        truth: what is in the image.
        tempting: what is not, but people or models might see.
        relation: word -> words that may stand for it.
        safe: words that are never wrong.
        similarity: of two words; null takes words for the same only where they are, or stand for each other.

    Source: Wang et al. 2023, arXiv:2311.07397, section 3.4; code junyangwang0410/AMBER@534babf, inference.py.
    Differs: nothing.
    """
    there, not_there = Listed.of(truth, relation), Listed.of(tempting, relation)
    covered: set[int | None] = set()
    fallen_for: set[int | None] = set()
    false = []
    safe = set(safe)
    for noun in nouns:
        if noun in safe:
            continue
        if (place := there.same(noun)) is not None:
            covered.add(place)
            continue
        fallen_for |= {not_there.same(noun), not_there.like(noun, similarity)}
        place = there.like(noun, similarity)
        covered.add(place)
        if place is None:
            false.append(noun)
    counts: dict[str, float] = {
        "g/nouns": len(nouns),
        "g/false": len(false),
        "g/truth": len(truth),
        "g/covered": len(covered - {None}),
        "g/tempting": len(tempting),
        "g/fallen_for": len(fallen_for - {None}),
        "g/answers": 1,
        "g/clean": not false,
    }
    return counts, false


def answered(answer: str | None, truth: str, task: str, rule: str = "") -> dict[str, float]:
    """What an answer, ``Yes``, ``No`` or neither, to a yes-or-no question is counted as."""
    right = answer == truth.capitalize()
    return {
        f"{task}/answers{rule}": 1,
        f"{task}/right{rule}": right,
        f"{task}/no{rule}": truth == "no",
        f"{task}/says_no{rule}": answer == "No",
        f"{task}/right_no{rule}": right and answer == "No",
    }


def generative(sums: Columns) -> dict[str, np.ndarray]:
    """``CHAIR``, ``Cover``, ``Hal`` and ``Cog`` in percent, from sums of ``describe``'s counts.

    CHAIR: nouns that are not there, of all. Cover: of what is there, how much is named. Hal: descriptions with a noun
    that is not there. Cog: of what people might see, how much is named.

    Source: as ``describe``, its 0.001 in the denominators included.
    Differs: not rounded.
    """

    def rate(part: str, whole: str) -> np.ndarray:
        return 100 * share(sums[f"g/{part}"], sums[f"g/{whole}"] + SMALL)

    return {
        "CHAIR": rate("false", "nouns"),
        "Cover": rate("covered", "truth"),
        "Hal": 100 - rate("clean", "answers"),
        "Cog": rate("fallen_for", "tempting"),
    }


def f1(precision: Any, recall: Any, part: str) -> np.ndarray:
    """The official harmonic mean of percents, with its small number in the denominator."""
    return share(2 * precision * recall, precision + recall + (1e-3 if part == "de" else 1e-4))


def discriminative(sums: Columns, part: str, rule: str = "") -> dict[str, np.ndarray]:
    """``Accuracy``, ``Precision``, ``Recall`` and ``F1`` in percent of the answers No, from sums of ``answered``.

    Source: as ``describe``; 0.001 is added to the denominators.
    Differs: not rounded, nor is F1 made from rounded numbers. By the strict rule nothing is added.
    """
    names = ("answers", "right", "no", "says_no", "right_no")
    answers, right, no, says_no, right_no = (
        sum(np.asarray(sums.get(f"{task}/{name}{rule}", 0.0), dtype=float) for task in PARTS[part]) for name in names
    )
    small = 0 if rule else SMALL
    precision, recall = 100 * share(right_no, says_no + small), 100 * share(right_no, no + small)
    return {
        f"{part}/Accuracy{rule}": 100 * share(right, answers + small),
        f"{part}/Precision{rule}": precision,
        f"{part}/Recall{rule}": recall,
        f"{part}/F1{rule}": share(2 * precision * recall, precision + recall) if rule else f1(precision, recall, part),
    }


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """All numbers of ``Amber``, of the kinds of questions that have counts.

    They are not rounded, so that two systems' differences and intervals are not either; ``Amber.score`` rounds its
    numbers as the official script does.
    """
    held = {name.split("/")[0] for name in sums}
    found = generative(sums) if "g" in held else {}
    all_kinds = {task[:2] for task in held} >= {"de", "da", "dr"}
    parts = [part for part, tasks in PARTS.items() if held & set(tasks) and (part != "d" or all_kinds)]
    for part in parts:
        found |= discriminative(sums, part)
    for part in parts:
        found |= discriminative(sums, part, "_strict")
    if "g" in held and "d" in parts:
        found = {"AMBER": (100 - found["CHAIR"] + found["d/F1"]) / 2} | found
    return found


def rounded(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The numbers as the official script prints them, to one place, F1 made from the rounded precision and recall.

    AMBER, (100 - CHAIR + F1) / 2 as the paper has it, is made from those; the script does not print it.
    """
    numbers = {name: round(float(value), 1) for name, value in found.items()}
    for part in PARTS:
        if f"{part}/F1" in numbers:
            mean = f1(numbers[f"{part}/Precision"], numbers[f"{part}/Recall"], part)
            numbers[f"{part}/F1"] = round(float(mean), 1)
    if "AMBER" in numbers:
        numbers["AMBER"] = round((100 - numbers["CHAIR"] + numbers["d/F1"]) / 2, 2)
    return numbers


@dataclass(frozen=True, kw_only=True)
class Amber:
    """AMBER's requests to describe an image, and its yes-or-no questions.

    Args:
        root: the folder with ``annotations.json``, ``relation.json``, ``safe_words.txt`` and the files of questions,
            ``query_generative.json`` and ``query_discriminative.json``, there or in ``query/``.
        kinds: what is asked, of ``KINDS``.
        images: the folder of the images.
        suffix: what is put behind each yes-or-no question; CHiP puts "\\nAnswer the question using a single word: Yes
            or No.\\n" there.
        conversion: how an answer becomes Yes or No; see ``converted``.
        tagger: what finds nouns. ``builtin``: AMBER's words, see ``closed_nouns``. ``nltk``: its tagger and WordNet, as
            the official script. ``spacy``: the model ``spacy_model``. In Python also a function from a text to nouns.
        similarity: when words are alike. ``none``: never. ``spacy``: by the vectors of ``spacy_model``, as the official
            script. In Python also a function of two words.
        spacy_model: a model of spaCy with vectors.
        max_new_tokens: of an answer, where a model is asked.

    Source: Wang et al. 2023, arXiv:2311.07397; code junyangwang0410/AMBER@534babf, inference.py.
    Differs: annotations are found by their ids, not by their places.
    """

    IMAGES: ClassVar[str] = "AMBER's images, AMBER_1.jpg to AMBER_1004.jpg (github.com/junyangwang0410/AMBER)"

    root: str
    kinds: Sequence[str] = KINDS
    images: str = ""
    suffix: str = ""
    conversion: str = "official"
    tagger: str | Nouns = "builtin"
    similarity: str | Similarity = "none"
    spacy_model: str = "en_core_web_lg"
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds: got {list(self.kinds)}; wanted some of {', '.join(KINDS)}")
        converted("", self.conversion)
        for name, value, known in (("tagger", self.tagger, TAGGERS), ("similarity", self.similarity, SIMILARITIES)):
            if isinstance(value, str) and value not in known:
                raise ValueError(f"{name}: got {value!r}; wanted {', '.join(known)}")

    @cached_property
    def whole(self) -> dict[str, Entry]:
        """Question id -> its annotation, of all kinds of questions."""
        file = Path(self.root) / "annotations.json"
        found = read_questions(file, DATA, ("id", "type", "truth"), _id)
        for name, entry in found.items():
            _check_annotation(entry, f"{file}: annotation {name}")
        return found

    @cached_property
    def annotations(self) -> dict[str, Entry]:
        """Question id -> its annotation, of those asked."""
        return {name: entry for name, entry in self.whole.items() if kind_of(entry["type"]) in self.kinds}

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Question id -> the question as its file has it."""
        files = {"generative": "g" in self.kinds, "discriminative": any(kind != "g" for kind in self.kinds)}
        found: dict[str, Entry] = {}
        for name in (name for name, wanted in files.items() if wanted):
            file, texts = self._file(f"query_{name}.json"), ("image", "query")
            asked = read_questions(file, DATA, ("id", *texts), _id, texts=texts)
            found |= {name: entry for name, entry in asked.items() if name in self.annotations}
        check_ids(found, self.annotations, f"{self.root}: questions")
        return found

    def _file(self, name: str) -> Path:
        inner = Path(self.root) / "query" / name
        return inner if inner.is_file() else Path(self.root) / name

    @cached_property
    def relation(self) -> Mapping[str, Sequence[str]]:
        """Word -> words that may stand for it."""
        file = Path(self.root) / "relation.json"
        found = read_json(file, DATA)
        if not isinstance(found, dict) or not all(_is_texts(words) for words in found.values()):
            raise ValueError(f"{file}: wanted an object of {{word: [words that may stand for it]}}, of {DATA}")
        return found

    @cached_property
    def known(self) -> set[str]:
        """All nouns that count."""
        return set(self.relation).union(*self.relation.values())

    @cached_property
    def nouns(self) -> Nouns:
        """The finder of nouns."""
        if not isinstance(self.tagger, str):
            return self.tagger
        if self.tagger == "nltk":
            return tagged_nouns(nltk_tagged("set tagger=builtin"))
        if self.tagger == "spacy":
            return tagged_nouns(spacy_tagged(self.spacy_model, "set tagger=builtin"))
        return closed_nouns(sorted(self.known))

    @cached_property
    def alike(self) -> Similarity | None:
        """How alike two words are; None for not at all."""
        if not isinstance(self.similarity, str):
            return self.similarity
        return spacy_similarity(self.spacy_model, "set similarity=none") if self.similarity == "spacy" else None

    def questions(self) -> list[Question]:
        """The questions of all kinds, in the files' order."""
        return [
            Question(id=name, image=os.path.join(self.images, entry["image"]), text=self._text(name))
            for name, entry in self.entries.items()
        ]

    def _text(self, name: str) -> str:
        described = self.annotations[name]["type"] == "generative"
        return str(self.entries[name]["query"]) + ("" if described else self.suffix)

    def read(self, answers: str) -> dict[str, str]:
        """Answers with an id and a response: the official ones, HALVA's, CHiP's, lmms-eval's or ours.

        Those to questions of other kinds than ``kinds`` are handed on to ``score``, which counts them.
        """
        entries = read_entries(answers, "answers: a json list or a jsonl of objects with id and response")
        texts = {name: self._text(name) for name in self.entries}
        return join_known(entries, texts, self.whole.__contains__, file=answers)

    def score(self, answers: Answers) -> Scores:
        """The numbers of ``statistic`` rounded as the official script does, an image being a unit."""
        answers, flags = only_asked(answers, self.entries, self.whole.__contains__, "amber")
        safe = read_text(Path(self.root) / "safe_words.txt", DATA).split() if "g" in self.kinds else []
        units: dict[str, dict[str, float]] = {}
        correct, rows = {}, []
        for name, entry in self.entries.items():
            annotation = self.annotations[name]
            if annotation["type"] == "generative":
                counts, row = self._described(answers[name], annotation, safe)
            else:
                counts, row = self._asked(answers[name], annotation)
                correct[name] = row["correct"]
            unit = units.setdefault(entry["image"], {})
            for column, count in counts.items():
                unit[column] = unit.get(column, 0) + count
            rows.append({"id": name, "answer": answers[name], **row})
        found = rounded(statistic(total(units)))
        flags += self._flags()
        return Scores(numbers=found, units=units, statistic=statistic, correct=correct, rows=rows, flags=flags)

    def _described(self, answer: str, annotation: Entry, safe: Sequence[str]) -> Counted:
        nouns = [noun for noun in self.nouns(answer) if noun in self.known]
        counts, false = describe(nouns, annotation["truth"], annotation["hallu"], self.relation, safe, self.alike)
        return counts, {"nouns": nouns, "hallucinated": false}

    def _asked(self, answer: str, annotation: Entry) -> Counted:
        task, truth = TASKS[annotation["type"]], annotation["truth"]
        official, strict = converted(answer, self.conversion), yes_or_no(answer)
        strictly = None if strict is None else "Yes" if strict else "No"
        counts = answered(official, truth, task) | answered(strictly, truth, task, "_strict")
        right = official == truth.capitalize()
        return counts, {"read_as": official, "strict": strict, "label": truth, "correct": right}

    def _flags(self) -> list[str]:
        flags = []
        if "g" in self.kinds and self.tagger == "builtin":
            flags.append("no tagger: nouns are AMBER's words wherever they stand; the official script tags with NLTK")
        if "g" in self.kinds and self.similarity == "none":
            flags.append("no similarity: words that are not the same and not associated are different things")
        if self.conversion != "official":
            flags.append(f"answers are converted to Yes and No as {self.conversion} does; the official script does not")
        return flags


def _id(entry: Entry) -> str:
    return str(entry["id"])


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _check_annotation(entry: Entry, place: str) -> None:
    """Nothing, or a ValueError where the annotation is of no known type or has not the truth of its type."""
    if entry["type"] not in (*TASKS, "generative"):
        raise ValueError(f"{place} is of type {entry['type']!r}; wanted {DATA}")
    if entry["type"] != "generative":
        if entry["truth"] not in ("yes", "no"):
            raise ValueError(f"{place}: truth is {entry['truth']!r}, not yes or no; wanted {DATA}")
        return
    require(entry, ["hallu"], place, DATA)
    for field in ("truth", "hallu"):
        if not _is_texts(entry[field]):
            raise ValueError(f"{place}: {field} is {entry[field]!r}, no list of words; wanted {DATA}")


def kind_of(type_: str) -> str:
    """The kind of question, of ``KINDS``, that an annotation's type is of."""
    return "g" if type_ == "generative" else TASKS[type_][:2]
