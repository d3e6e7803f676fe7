"""Object HalBench: descriptions of images of COCO, from which a judge has listed the things they say are there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from hialign.benchmarks.answers import JUDGED, Entry, check_ids, first, join, join_replies, read_entries, read_replies
from hialign.benchmarks.chair import Image, coco_number, image_key, read_coco, there
from hialign.benchmarks.questions import no_replies
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, numbers, share
from hialign.benchmarks.taggers import Tagged, nltk_noun_words, spacy_tagged
from hialign.benchmarks.vocabulary import Mention, Vocabulary, Words, built_in, closed, refined_file

QUESTIONS = (
    "obj_halbench_300_with_image.jsonl (github.com/RLHF-V/RLHF-V, eval/data): objects with image_id and question"
)
REPLIES = (
    "the judge's replies: a json list or a jsonl of objects with image_id and reply, of a chat API's responses, or of "
    "texts"
)
RULES, TAGGERS, LEMMATIZERS = ("rlhf_v", "chip"), ("builtin", "spacy"), ("builtin", "nltk")
NOUNS = ("NN", "NNS", "NNP", "NNPS")
Tagger = Callable[[str], Tagged]


def listed(reply: str, rule: str = "chip") -> Any:
    """What the judge's reply holds as json, which ought to be a list of texts; a ValueError when it holds none.

    ``rlhf_v`` reads the whole reply, or its last line where a list of texts begins somewhere in it; ``chip`` also takes
    the marks of a block of code away before.

    Source: RLHF-V/RLHF-V@8daac8a, eval_gpt_obj_halbench.py; LVUGAI/CHiP@e7f5193.
    Differs: nothing.
    """
    _check_setting("rule", rule, RULES)
    text = reply.strip()
    if rule == "chip":
        text = text.removeprefix("```json").removesuffix("```").strip()
    for part in (text, text.rsplit("\n", 1)[-1] if '["' in text else ""):
        try:
            return json.loads(part)
        except ValueError:
            continue
    raise ValueError(f"the judge's reply holds no json: {reply[:80]!r}; wanted a list of texts: ask it again")


def objects(reply: str, rule: str = "chip") -> list[str]:
    """The things that the judge lists; a ValueError when it is no list of texts."""
    found = listed(reply, rule)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"the judge's reply is no list of texts: {reply[:80]!r}; ask it again")
    return found


def phrases(tagged: Tagged, vocabulary: Vocabulary) -> list[str]:
    """The things in one of the judge's: its pairs of words that are one, or else its runs of nouns."""
    words = [word for word, _ in tagged]
    pairs = (vocabulary.pairs.get(" ".join(words[place : place + 2])) for place in range(len(words) - 1))
    found = [pair for pair in pairs if pair is not None]
    return found or _runs(tagged)


def _runs(tagged: Tagged) -> list[str]:
    """The words of each unbroken run of nouns, with blanks between."""
    runs: list[list[str]] = [[]]
    for word, tag in tagged:
        if tag in NOUNS:
            runs[-1].append(word)
        else:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def closed_tagger(vocabulary: Vocabulary) -> Tagger:
    """A tagger for which the words of the table's names are nouns, and no others."""
    words = closed(vocabulary)
    known = {word for name in vocabulary.nodes for word in name.split()}
    return lambda text: [(word, "NN" if word in known else "") for word in words(text)]


def mentioned(things: Iterable[str], vocabulary: Vocabulary, tagger: Tagger) -> tuple[list[str], list[Mention]]:
    """The judge's things as phrases, each once, and those that name a category, at their place among the phrases.

    Source: RLHF-V/RLHF-V@8daac8a, eval_gpt_obj_halbench.py.
    Differs: nothing.
    """
    found = list(dict.fromkeys(phrase for thing in things for phrase in phrases(tagger(f"a {thing}"), vocabulary)))
    return found, vocabulary.mentions((phrase, place) for place, phrase in enumerate(found))


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """The numbers of ``ObjHal`` from the sums of its counts, fractions and the words of an answer.

    ``CHAIRs_refine``: answers with something that is not there, of those that name a category. ``CHAIRi``: mentions of
    what is not there, of all. ``CHAIRs``: as the first, of all answers. ``obj_rec``: categories found, of those there.

    Source: RLHF-V/RLHF-V@8daac8a, eval_gpt_obj_halbench.py, summarize_gpt_obj_halbench_review.py.
    Differs: shares of nothing are 0, where theirs divide by zero.
    """
    names = ("answers", "naming", "hallucinated", "mentions", "false", "found", "there", "words")
    answers, naming, hallucinated, mentions, false, found, there, words = (sums.get(name, 0.0) for name in names)
    response, thing = share(hallucinated, naming), share(false, mentions)
    return {
        "CHAIRs_refine": response,
        "CHAIRi": thing,
        "CHAIRs": share(hallucinated, answers),
        "obj_rec": share(found, there),
        "correct_rate": 1 - response,
        "object_correct_rate": 1 - thing,
        "avg_word_len": share(words, answers),
    }


def prompt(question: str, answer: str) -> str:
    """What the judge is asked: to list, as json, the things that a description says are in the image."""
    return (
        "Below are a request about an image and a description of it. List every physical thing that the description "
        "says is visible in the image: people, animals, objects and parts of the surroundings. Name each as the "
        "description does, as a noun with what belongs to its name. Leave out what the description only guesses at, "
        "what it says is not there, and qualities, feelings and events.\n"
        'Reply with one list of strings in json on a single line and nothing else, such as ["dog", "dining table"]; '
        "with [] when there is none.\n\n"
        f"Request: {question}\nDescription: {answer}"
    )


@dataclass(frozen=True, kw_only=True)
class ObjHal:
    """Requests to describe images of COCO, whose answers are scored by the things that a judge lists.

    Args:
        root: the folder with COCO's ``instances_<split>.json`` and ``captions_<split>.json``.
        question_file: ``obj_halbench_300_with_image.jsonl``; what it holds of images is not read.
        replies: the judge's replies to ``requests``, for every answer of more than three words. They may be objects
            with an id and a reply, chat API's responses with an image_id, or, in the order of those answers, responses
            without or texts.
        judge: false scores the words of the answers themselves, as the official script does without a judge.
        splits: of COCO, those that the images are of.
        images: the folder of the images.
        rule: how replies are read, ``rlhf_v`` or ``chip``; see ``listed``.
        synonyms: ``synonyms_refine.txt``; null for our own table.
        tagger: what finds the nouns in the judge's things. ``builtin``: the words of the table. ``spacy``: the model
            ``spacy_model``. In Python also a function from a text to its words with their tags.
        lemmatizer: how words of captions, and of answers without a judge, are made singular. ``builtin``: what the
            table knows. ``nltk``: WordNet, as if every word were a noun. In Python also a function.
        max_new_tokens: of an answer, where a model is asked.

    Source: Yu et al. 2024, arXiv:2312.00849; code RLHF-V/RLHF-V@8daac8a, eval_gpt_obj_halbench.py; LVUGAI/CHiP@e7f5193.
    Differs: a missing or unreadable reply is an error, where theirs drops the answer.
    """

    IMAGES: ClassVar[str] = (
        "COCO's train2014 and val2014 (cocodataset.org), or those in obj_halbench_300_with_image.jsonl"
    )

    root: str
    question_file: str
    replies: str | None = None
    judge: bool = True
    splits: Sequence[str] = ("train2014", "val2014")
    images: str = ""
    rule: str = "chip"
    synonyms: str | None = None
    tagger: str | Tagger = "builtin"
    spacy_model: str = "en_core_web_trf"
    lemmatizer: str | Words = "builtin"
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        _check_setting("rule", self.rule, RULES)
        _check_setting("tagger", self.tagger, TAGGERS)
        _check_setting("lemmatizer", self.lemmatizer, LEMMATIZERS)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Image id -> the question as its file has it."""
        found: dict[str, Entry] = {}
        for number, entry in enumerate(read_entries(self.question_file, QUESTIONS), start=1):
            name = image_key(entry)
            if name is None or name in found or not isinstance(first(entry, ["question", "prompt"]), str):
                raise ValueError(
                    f"{self.question_file}: question {number} has the image {name}, which must be there and come once, "
                    f"and must have a text; wanted {QUESTIONS}"
                )
            found[name] = entry
        return found

    @cached_property
    def coco(self) -> dict[str, Image]:
        """Image id -> COCO's image, of those asked after."""
        images = read_coco(self.root, self.splits)
        unknown = [name for name in self.entries if name not in images]
        if unknown:
            raise ValueError(
                f"{self.question_file}: {len(unknown)} images are of none of {', '.join(self.splits)}, such as "
                f"{unknown[0]}; set splits to those that they are of"
            )
        return {name: images[name] for name in self.entries}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The table of synonyms."""
        return built_in() if self.synonyms is None else refined_file(self.synonyms)

    @cached_property
    def words(self) -> Words:
        """The reader of captions."""
        if not isinstance(self.lemmatizer, str):
            return self.lemmatizer
        return nltk_noun_words("set lemmatizer=builtin") if self.lemmatizer == "nltk" else closed(self.vocabulary)

    @cached_property
    def tag(self) -> Tagger:
        """The reader of the judge's things."""
        if not isinstance(self.tagger, str):
            return self.tagger
        if self.tagger == "spacy":
            return spacy_tagged(self.spacy_model, "set tagger=builtin")
        return closed_tagger(self.vocabulary)

    def questions(self) -> list[Question]:
        """The questions in their file's order."""
        return [
            Question(id=name, image=os.path.join(self.images, self.coco[name].file), text=self._text(entry))
            for name, entry in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Answers with an image_id, or in the questions' order without: RLHF-V's, CHiP's, lmms-eval's or ours."""
        entries = read_entries(answers, "answers: a json list or a jsonl of objects with image_id and answer")
        texts = {name: self._text(entry) for name, entry in self.entries.items()}
        return join(entries, texts, file=answers, key=image_key)

    @property
    def needs_replies(self) -> bool:
        """Whether a judge has to reply before answers can be scored."""
        return self.judge and self.replies is None

    def requests(self, answers: Answers) -> dict[str, str]:
        """The prompts to the judge by the questions' ids; answers of up to three words need none."""
        check_ids(answers, self.entries, "objhal")
        cleaned = {name: _clean(answers[name]) for name in self.entries}
        return {
            name: prompt(self._text(self.entries[name]), answer)
            for name, answer in cleaned.items()
            if len(answer.split()) > 3
        }

    def _text(self, entry: Entry) -> str:
        return str(first(entry, ["question", "prompt"]))

    def score(self, answers: Answers) -> Scores:
        """The numbers of ``statistic``, an image being a unit."""
        check_ids(answers, self.entries, "objhal")
        things = self._things(answers) if self.judge else None
        units, rows = {}, []
        for name in self.entries:
            answer = _clean(answers[name])
            truth = there(self.coco[name], self.vocabulary, self.words)
            if things is None:
                merged = self.vocabulary.merge(self.words(answer))
                parts, mentions = [word for word, _ in merged], self.vocabulary.mentions(merged)
            else:
                parts, mentions = mentioned(things[name], self.vocabulary, self.tag)
            units[name], row = _counted(answer, mentions, truth)
            found = "words" if things is None else "objs_after_refine"
            rows.append({"id": name, "image_id": coco_number(name), "caption": answer, found: parts, **row})
        return Scores(
            numbers=numbers(units, statistic), units=units, statistic=statistic, rows=rows, flags=self._flags(units)
        )

    def _things(self, answers: Answers) -> dict[str, list[str]]:
        """The things that the judge lists of each answer; none of an answer that it was not asked about."""
        wanted = self.requests(answers)
        if self.replies is None:
            raise no_replies("objhal", f"{REPLIES} (judge=false searches the words instead)")
        entries = [_cleaned(entry) for entry in read_replies(self.replies, REPLIES)]
        cleaned = {name: _clean(answers[name]) for name in wanted}
        replies = join_replies(entries, cleaned, file=self.replies, key=image_key)
        found: dict[str, list[str]] = {}
        broken = []
        for name in self.entries:
            try:
                found[name] = objects(replies[name], self.rule) if name in wanted else []
            except ValueError as error:
                broken.append(f"{name}: {error}")
        if broken:
            raise ValueError(f"{self.replies}: {len(broken)} replies cannot be read; {'; '.join(broken[:3])}")
        return found

    def _flags(self, units: Any) -> list[str]:
        flags = []
        if not self.judge:
            flags.append("no judge listed the things: the words of the answers were searched")
        if self.synonyms is None:
            flags.append("the table of synonyms is our own: papers count by synonyms_refine.txt (synonyms=FILE)")
        if self.judge and self.tagger == "builtin":
            flags.append("nouns are the words of the table: papers find them by a tagger (tagger=spacy)")
        if self.lemmatizer == "builtin":
            flags.append("words are made singular by what the table knows: papers use WordNet (lemmatizer=nltk)")
        if not any(unit["naming"] for unit in units.values()):
            flags.append("no answer names a category, so rates are reported as 0; the official script divides by zero")
        return flags


def _check_setting(name: str, value: object, known: Sequence[str]) -> None:
    if isinstance(value, str) and value not in known:
        raise ValueError(f"{name}: got {value!r}; wanted {' or '.join(known)}")


def _clean(answer: str) -> str:
    return answer.replace("Assistant:", "").strip()


def _cleaned(entry: Entry) -> Entry:
    """The entry of a reply with what it repeats of the answer cleaned as this is."""
    return {**entry} | {name: _clean(entry[name]) for name in JUDGED if isinstance(entry.get(name), str)}


def _counted(answer: str, mentions: Sequence[Mention], truth: set[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """What the scores are made of, and what the official code writes down."""
    false = [mention for mention in mentions if mention.node not in truth]
    counts: dict[str, float] = {
        "answers": 1,
        "naming": bool(mentions),
        "hallucinated": bool(false),
        "mentions": len(mentions),
        "false": len(false),
        "found": len(truth & {mention.node for mention in mentions}),
        "there": len(truth),
        "words": len(answer.split(" ")),
    }
    row = {
        "mscoco_generated_words": [[mention.word, mention.node] for mention in mentions],
        "mscoco_hallucinated_words": [[mention.word, [mention.word, mention.node]] for mention in false],
        "hallucination_idxs": [mention.place for mention in false],
        "mscoco_gt_words": sorted(truth),
        "metrics": {"CHAIRs": int(bool(false)), "CHAIRi": float(share(len(false), len(mentions)))},
    }
    return counts, row
