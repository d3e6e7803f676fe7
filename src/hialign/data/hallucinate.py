"""Captioned images to hallucinated captions: which phrase of which caption changed, and into what."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from tqdm import tqdm

from hialign.data.changes import KINDS, NUMBERS, Option, Statistics, options, scene, states
from hialign.data.lexicon import Sentence, read
from hialign.data.records import CaptionedImage
from hialign.data.replies import Ask, Replies


@dataclass(frozen=True)
class Change:
    """One phrase: its kind, and its characters, from start to end, in the caption and in the hallucinated one."""

    kind: str
    span: tuple[int, int]
    hallucinated_span: tuple[int, int]


@dataclass(frozen=True)
class Hallucinated:
    """A caption of an image, the ``number``-th of them, and what it became by its changes, in order, at least one."""

    record: CaptionedImage
    number: int
    text: str
    changes: tuple[Change, ...]

    @property
    def caption(self) -> str:
        """The caption as it was."""
        return self.record.captions[self.number]


@dataclass(frozen=True)
class Left:
    """A caption that got no hallucinated one, and why."""

    record: CaptionedImage
    number: int
    why: str

    @property
    def caption(self) -> str:
        """The caption."""
        return self.record.captions[self.number]


def normalised(text: str) -> str:
    """The words of a text in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


@dataclass(frozen=True)
class ByWords:
    """Hallucinated captions by word lists and by which things the set itself names together.

    Of the ``kinds`` that a caption has room for, each is as likely; ``changes`` phrases change, fewer where there is
    no room. What a caption becomes depends on the set, the seed and the caption's place, not on other captions' luck.
    """

    kinds: Sequence[str] = KINDS
    changes: int = 1

    def __post_init__(self) -> None:
        _check_kinds(self.kinds)
        if self.changes < 1:
            raise ValueError(f"changes: got {self.changes}, wanted at least 1")

    def __call__(self, records: Sequence[CaptionedImage], *, seed: int) -> Iterator[Hallucinated | Left]:
        """One result for each caption of each record, in order."""
        read_records = [tuple(read(caption) for caption in record.captions) for record in records]
        statistics = Statistics(read_records)
        for record, sentences in zip(records, read_records, strict=True):
            for number, sentence in enumerate(sentences):
                chosen = self._choose(sentence, sentences, statistics, random.Random(f"{seed}/{record.id}/{number}"))
                yield _finished(record, number, chosen)

    def _choose(
        self, sentence: Sentence, captions: tuple[Sentence, ...], statistics: Statistics, rng: random.Random
    ) -> list[Option]:
        chosen: list[Option] = []
        while len(chosen) < self.changes:
            families = {family for option in chosen for family in option.families}
            found = options(scene(sentence, captions, families), statistics)
            free = [
                option
                for kind, given in found.items()
                for option in given
                if kind in self.kinds and all(option.end < c.start or c.end < option.start for c in chosen)
            ]
            free = [option for option in free if not option.weak] or free
            if not free:
                break
            chosen.append(_draw(free, rng))
        return sorted(chosen, key=lambda option: option.start)


def _draw(given: list[Option], rng: random.Random) -> Option:
    """A kind and a place in the caption, each as likely, and one of the options there by weight."""
    kind = rng.choice(sorted({option.kind for option in given}))
    start, end = rng.choice(sorted({(option.start, option.end) for option in given if option.kind == kind}))
    here = [option for option in given if (option.kind, option.start, option.end) == (kind, start, end)]
    return rng.choices(here, [option.weight for option in here])[0]


def _finished(record: CaptionedImage, number: int, chosen: list[Option]) -> Hallucinated | Left:
    caption = record.captions[number]
    if not chosen:
        return Left(record, number, "no phrase that the word lists know and that no caption of the image rules out")
    text, changes, done = "", [], 0
    for option in chosen:
        text += caption[done : option.start]
        changes.append(Change(option.kind, (option.start, option.end), (len(text), len(text) + len(option.new))))
        text, done = text + option.new, option.end
    text += caption[done:]
    if normalised(text) in {normalised(other) for other in record.captions}:
        return Left(record, number, "what it became is another caption of the image")
    return Hallucinated(record, number, text, tuple(changes))


ASKED = {
    "object": "replace one thing or being in it by another kind that often goes with the rest but is not in the image",
    "attribute": "change one colour, size, age, material or other quality in it into one that is wrong",
    "action": "change what somebody or something in it does into something else",
    "place": "move it to another place: change the words that say where it happens",
    "count": "change one number in it; where it has none, give a wrong number of something",
    "relation": "change where two things in it are to each other, such as in front of into behind",
}


def prompt(record: CaptionedImage, number: int, kind: str) -> str:
    """What a language model is asked, to make one caption of an image wrong in one way."""
    known = "\n".join(f"- {caption}" for caption in record.captions)
    return (
        f"These sentences are all true of one image:\n{known}\n\n"
        f"Make the sentence below false of this image. To do so, {ASKED[kind]}. Change one phrase only and leave every "
        "other word as it is, so that the sentence stays as long and as natural as it was. Do not use a synonym or a "
        "more general word, do not negate, and say nothing that one of the sentences above says. "
        f"Answer with the new sentence alone.\n\nSentence: {record.captions[number]}"
    )


@dataclass(frozen=True)
class ByModel:
    """Hallucinated captions by a language model, whose replies are kept in the file ``cache``.

    A caption is asked for up to ``tries`` times, for another of ``kinds`` each time, until a reply differs from it in
    at most ``phrases`` phrases, names in them nothing that a caption of the image names, and is none of these captions.
    The kind of a change is the one that was asked for, unless the word lists know its words for another one.
    """

    ask: Ask
    cache: str
    kinds: Sequence[str] = KINDS
    tries: int = 3
    phrases: int = 2

    def __post_init__(self) -> None:
        _check_kinds(self.kinds)
        for key in ("tries", "phrases"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: got {getattr(self, key)}, wanted at least 1")

    def __call__(self, records: Sequence[CaptionedImage], *, seed: int) -> Iterator[Hallucinated | Left]:
        """One result for each caption of each record, in order, once all have been asked for."""
        replies = Replies(Path(self.cache))
        places = [(record, number) for record in records for number in range(len(record.captions))]
        orders = [_shuffled(self.kinds, f"{seed}/{record.id}/{number}") for record, number in places]
        results: list[Hallucinated | Left | None] = [None] * len(places)
        for attempt in range(self.tries):
            pending = [i for i, result in enumerate(results) if not isinstance(result, Hallucinated)]
            kinds = [orders[i][attempt % len(orders[i])] for i in pending]
            prompts = [prompt(*places[i], kind) for i, kind in zip(pending, kinds, strict=True)]
            said = tqdm(replies.get(self.ask, prompts), f"asking, {attempt + 1} of {self.tries}", len(prompts))
            for i, kind, reply in zip(pending, kinds, said, strict=True):
                results[i] = _judged(*places[i], reply, kind, self.phrases)
        return (result for result in results if result is not None)


def _check_kinds(kinds: Sequence[str]) -> None:
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds: got {list(kinds)}, wanted some of {', '.join(KINDS)}")


def _shuffled(kinds: Sequence[str], seed: str) -> list[str]:
    return random.Random(seed).sample(list(kinds), len(kinds))


def _judged(record: CaptionedImage, number: int, reply: str, kind: str, phrases: int) -> Hallucinated | Left:
    """The hallucinated caption that a reply makes; what keeps it from being one, as a Left."""
    caption = record.captions[number]
    captions = tuple(read(text) for text in record.captions)
    found = differences(caption, _sentence(reply))
    if not found:
        return Left(record, number, "the model repeated the caption or said nothing")
    if len(found) > phrases:
        return Left(record, number, f"the model changed more than {phrases} phrases")
    if sum(end - start for start, end, _ in found) > 0.6 * len(caption):
        return Left(record, number, "the model wrote another sentence")
    if any(states(new, caption[start:end], captions) for start, end, new in found):
        return Left(record, number, "the model named what a caption of the image names")
    chosen = [Option(_kind(new, kind), start, end, new, frozenset()) for start, end, new in found]
    return _finished(record, number, chosen)


def _sentence(reply: str) -> str:
    """The first line that says something, without quotation marks or a heading."""
    line = next((line.strip() for line in reply.splitlines() if line.strip()), "")
    return re.sub(r"^(new )?(sentence|caption|answer)\s*:\s*", "", line, flags=re.IGNORECASE).strip("\"'“”`* ")


def differences(caption: str, changed: str) -> list[tuple[int, int, str]]:
    """(start, end, new) of each phrase of ``caption`` that ``changed`` words otherwise; punctuation does not count.

    No phrase is empty on either side: where words were only added or left out, a neighbour counts as changed with them.
    """
    old, new = ([match for match in re.finditer(r"\w+(?:['-]\w+)*", text)] for text in (caption, changed))
    if not old or not new:
        return []
    matcher = SequenceMatcher(None, [m.group().lower() for m in old], [m.group().lower() for m in new], autojunk=False)
    spans: list[list[int]] = []
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            continue
        if (a == b or c == d) and min(a, c) > 0:
            a, c = a - 1, c - 1
        elif a == b or c == d:
            b, d = b + 1, d + 1
        if spans and (a < spans[-1][1] or c < spans[-1][3]):
            spans[-1][1], spans[-1][3] = b, d
        else:
            spans.append([a, b, c, d])
    return [(old[a].start(), old[b - 1].end(), changed[new[c].start() : new[d - 1].end()]) for a, b, c, d in spans]


def _kind(phrase: str, asked: str) -> str:
    """The kind of a change, by what the new phrase is known to name."""
    names = {"colour": "attribute", "wider": "object"}
    known = {names.get(r.kind, r.kind) for m in read(phrase).mentions for r in m.readings}
    if any(word in NUMBERS for word in phrase.lower().split()):
        known.add("count")
    return asked if asked in known or not known else min(known, key=KINDS.index)
