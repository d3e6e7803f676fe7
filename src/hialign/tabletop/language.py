"""What is said of scenes: captions, questions, wrong captions, and what a text claims."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hialign.tabletop.world import COLOURS, KINDS, PARTNER, PLACES, SIZES, STATES, Scene, Thing, above, left_of, ordered

T = TypeVar("T")
Span = tuple[int, int]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_OPPOSITE = {"yes": "no", "no": "yes"}
_ODD_PLURALS = {"knife": "knives", "glass": "glasses"}
PLURALS = {kind: _ODD_PLURALS.get(kind, f"{kind}s") for kind in KINDS}
FORMS = (  # the first is what a caption says unless it is paraphrased
    "there is {things}.",
    "{things}.",
    "you can see {things}.",
    "the table holds {things}.",
    "the picture shows {things}.",
    "{things} on a table.",
    "there {are} {number} on the table: {things}.",
)
DESCRIBE = "describe the image."
TOPICS = ("existence", "count", "colour", "place", "relation")
CHANGES = ("object", "colour", "place", "count", "partner")
POSITIVE_BIAS = 0.7


@dataclass(frozen=True)
class Style:
    """How a caption says what it says: the sentence, the word before a place, the order in which it goes through."""

    form: str = FORMS[0]
    at: str = "at"
    order: tuple[int, ...] = tuple(range(len(PLACES)))  # the rank of each place


@dataclass(frozen=True)
class Question:
    """A question on one of the ``TOPICS``, and its answer of a word or two."""

    topic: str
    text: str
    answer: str


@dataclass(frozen=True)
class Mention:
    """Things of one kind that a text claims to be there, with what it says of them; None where it says nothing."""

    kind: str
    count: int = 1
    colour: str | None = None
    size: str | None = None
    state: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Preference:
    """Two captions in the same words but for one ``change``: the first is true.

    ``phrases`` is where the words lie that differ, (start, end) of characters in the first and in the second; None
    where the second only says more.
    """

    chosen: str
    rejected: str
    change: str
    phrases: tuple[Span, Span] | None


def style(rng: np.random.Generator, paraphrase: float) -> Style:
    """The plain style or, with probability ``paraphrase``, one of the others."""
    if not 0 <= paraphrase <= 1:
        raise ValueError(f"paraphrase={paraphrase}: wanted a probability in [0, 1]")
    if rng.random() >= paraphrase:
        return Style()
    order = rng.permutation(len(PLACES)) if rng.random() < 0.5 else range(len(PLACES))
    form, at = int(rng.integers(len(FORMS))), ("at", "in")[int(rng.integers(2))]
    return Style(FORMS[form], at, tuple(int(rank) for rank in order))


def describe(scene: Scene, style: Style) -> str:
    """The caption of ``scene`` in that style; it names everything there, large and whole being what goes unsaid."""
    if not scene.things:
        raise ValueError("describe: the scene is empty; wanted at least one thing")
    things = sorted(scene.things, key=lambda thing: style.order[PLACES.index(thing.place)])
    phrases = [f"{phrase(thing)} {style.at} the {thing.place}" for thing in things]
    count = len(things)
    return style.form.format(
        things=" and ".join([", ".join(phrases[:-1]), phrases[-1]] if count > 1 else phrases),
        are="is" if count == 1 else "are",
        number=f"{NUMBERS[count]} thing{'s' * (count > 1)}",
    )


def caption(scene: Scene, rng: np.random.Generator, *, paraphrase: float = 0.0) -> str:
    """A true caption of ``scene``."""
    return describe(scene, style(rng, paraphrase))


def phrase(thing: Thing) -> str:
    """The thing without its place: "a small red cup"."""
    words = (thing.size if thing.size == "small" else "", thing.state if thing.state == "broken" else "")
    return _with_article(" ".join(word for word in (*words, thing.colour, thing.kind) if word))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def question(
    scene: Scene, topic: str, rng: np.random.Generator, *, positive_bias: float = POSITIVE_BIAS
) -> Question | None:
    """A question on ``topic``, or None where the scene has nothing to ask: no thing that its kind alone tells apart.

    ``positive_bias`` is the share of yes among the answers to existence questions; the kinds asked after otherwise are
    any that are not there.
    """
    if topic not in _ASK:
        raise ValueError(f"topic={topic!r}: wanted one of {', '.join(TOPICS)}")
    if not 0 <= positive_bias <= 1:
        raise ValueError(f"positive_bias={positive_bias}: wanted a share in [0, 1]")
    asked = _ASK[topic](scene, rng, positive_bias)
    return None if asked is None else Question(topic, *asked)


def any_question(scene: Scene, rng: np.random.Generator, *, positive_bias: float = POSITIVE_BIAS) -> Question:
    """A question on a topic by chance; where the scene has nothing to ask of it, one after existence."""
    asked = question(scene, TOPICS[int(rng.integers(len(TOPICS)))], rng, positive_bias=positive_bias)
    asked = asked or question(scene, "existence", rng, positive_bias=positive_bias)
    assert asked is not None
    return asked


def existence_question(kind: str) -> str:
    """POPE's question."""
    return f"is there {_with_article(kind)} in the image?"


Asked = tuple[str, str] | None


def _existence(scene: Scene, rng: np.random.Generator, positive_bias: float) -> Asked:
    there = rng.random() < positive_bias
    kinds = [kind for kind in KINDS if (kind in scene.kinds) == there]
    return existence_question(_pick(kinds, rng)), "yes" if there else "no"


def _count(scene: Scene, rng: np.random.Generator, _bias: float) -> Asked:
    kind = _pick([kind for kind in KINDS if kind in scene.kinds], rng)
    return f"how many {PLURALS[kind]} are there?", NUMBERS[scene.count(kind)]


def _colour(scene: Scene, rng: np.random.Generator, _bias: float) -> Asked:
    alone = _alone(scene)
    if not alone:
        return None
    thing = _pick(alone, rng)
    return f"what colour is the {thing.kind}?", thing.colour


def _place(scene: Scene, rng: np.random.Generator, _bias: float) -> Asked:
    alone = _alone(scene)
    if not alone:
        return None
    thing = _pick(alone, rng)
    return f"where is the {thing.kind}?", thing.place


def _relation(scene: Scene, rng: np.random.Generator, _bias: float) -> Asked:
    """Of two things in different columns, or rows, which is further left, or up; half of the answers are yes."""
    relation, words = ((left_of, "to the left of"), (above, "above"))[int(rng.integers(2))]
    alone = _alone(scene)
    pairs = [(one, other) for one in alone for other in alone if relation(one, other)]
    if not pairs:
        return None
    one, other = _pick(pairs, rng)
    true = rng.random() < 0.5
    first, second = (one, other) if true else (other, one)
    return f"is the {first.kind} {words} the {second.kind}?", "yes" if true else "no"


_ASK: dict[str, Callable[[Scene, np.random.Generator, float], Asked]] = {
    "existence": _existence,
    "count": _count,
    "colour": _colour,
    "place": _place,
    "relation": _relation,
}


def _alone(scene: Scene) -> list[Thing]:
    """The things that are the only ones of their kind."""
    return [thing for thing in scene.things if scene.count(thing.kind) == 1]


def alter(scene: Scene, change: str, rng: np.random.Generator) -> Scene:
    """A scene that is ``scene`` but for one ``change``, so that its caption is a wrong one of ``scene``.

    ``object``: a thing is of a kind that is not there; ``colour``, ``place``: one has another; ``count``: there is one
    more of a kind that is there; ``partner``: there is the missing partner of a kind that is there or, where none is
    missing, some kind that is not.
    """
    if change not in CHANGES:
        raise ValueError(f"change={change!r}: wanted one of {', '.join(CHANGES)}")
    absent = [kind for kind in KINDS if kind not in scene.kinds]
    missing = [kind for kind in absent if PARTNER[kind] in scene.kinds]
    number = int(rng.integers(len(scene.things)))
    old = scene.things[number]
    if change == "count":
        return _with_more(scene, old.kind, rng)
    if change == "partner":
        return _with_more(scene, _pick(missing or absent, rng), rng)
    if change == "object":
        new = replace(old, kind=_pick(absent, rng))
    elif change == "colour":
        new = replace(old, colour=_pick([colour for colour in COLOURS if colour != old.colour], rng))
    else:
        new = replace(old, place=_pick(_free(scene), rng))
    return replace(scene, things=ordered([*scene.things[:number], new, *scene.things[number + 1 :]]))


def _with_more(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    thing = Thing(kind, _pick(COLOURS, rng), SIZES[0], _pick(_free(scene), rng), STATES[0])
    return replace(scene, things=ordered([*scene.things, thing]))


def _free(scene: Scene) -> tuple[str, ...]:
    if not scene.free:
        raise ValueError("alter: every place of the scene is taken; wanted a scene with a free one")
    return scene.free


def hallucinated(scene: Scene, change: str, rng: np.random.Generator, *, paraphrase: float = 0.0) -> str:
    """A caption of ``scene`` that is wrong by ``change``."""
    return preference(scene, change, rng, paraphrase=paraphrase).rejected


def preference(scene: Scene, change: str, rng: np.random.Generator, *, paraphrase: float = 0.0) -> Preference:
    """A true caption of ``scene``, and one in the same style that is wrong by ``change``."""
    said = style(rng, paraphrase)
    other = alter(scene, change, rng)
    chosen, rejected = describe(scene, said), describe(other, said)
    lost, added = (
        [thing for thing in one.things if thing not in two.things] for one, two in ((scene, other), (other, scene))
    )
    if not lost:
        return Preference(chosen, rejected, change, None)
    right, wrong = (f"{phrase(thing)} {said.at} the {thing.place}" for thing in (*lost, *added))
    starts = _find(chosen, right), _find(rejected, wrong)
    spans = [(at + start, at + end) for at, (start, end) in zip(starts, _differing(right, wrong), strict=True)]
    return Preference(chosen, rejected, change, (spans[0], spans[1]))


def mistaken(asked: Question, rng: np.random.Generator) -> str:
    """A wrong answer to the question, of the right one's kind."""
    if asked.answer in _OPPOSITE:
        return _OPPOSITE[asked.answer]
    others = {"count": NUMBERS[1:], "colour": COLOURS, "place": PLACES}[asked.topic]
    return _pick([answer for answer in others if answer != asked.answer], rng)


def _find(text: str, thing: str) -> int:
    """Where a caption says ``thing``; "at the top" is not where it says "at the top left"."""
    found = re.search(rf"{re.escape(thing)}(?! (?:left|right)\b)", text)
    assert found is not None
    return found.start()


def _differing(one: str, other: str) -> tuple[Span, Span]:
    """Where two texts differ, in whole words, at least one in each."""
    first, second = one.split(), other.split()
    most = min(len(first), len(second)) - 1
    front = next((i for i in range(most) if first[i] != second[i]), most)
    back = next((i for i in range(most - front) if first[-1 - i] != second[-1 - i]), most - front)
    return _span(first, front, len(first) - back), _span(second, front, len(second) - back)


def _span(words: list[str], start: int, stop: int) -> Span:
    """The characters of some words of a text."""
    return len(" ".join([*words[:start], ""])), len(" ".join(words[:stop]))


def _pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


def _any_of(words: tuple[str, ...] | list[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # "top left" before "top"


_SINGULAR = {word: kind for kind in KINDS for word in (kind, PLURALS[kind])}
_MENTION = re.compile(
    rf"\b(?:(?P<count>{_any_of(NUMBERS)}) )?(?:(?P<size>{_any_of(SIZES)}) )?(?:(?P<state>{_any_of(STATES)}) )?"
    rf"(?:(?P<colour>{_any_of(COLOURS)}) )?(?P<kind>{_any_of(list(_SINGULAR))})\b"
    rf"(?: (?:at|in|on) the (?P<place>{_any_of(PLACES)})\b)?"
)


def mentions(text: str) -> tuple[Mention, ...]:
    """What a caption claims to be there, in its order; "no cup" claims nothing."""
    found = []
    for match in _MENTION.finditer(plain(text)):
        count = NUMBERS.index(match["count"]) if match["count"] else 1
        said = {name: match[name] for name in ("colour", "size", "state", "place")}
        if count:
            found.append(Mention(_SINGULAR[match["kind"]], count, **said))
    return tuple(found)


def mark(text: str, wrong: Container[str], around: str = "*") -> str:
    """The text, in lower case, with ``around`` on both sides of each word that claims one of the ``wrong`` kinds."""

    def marked(match: re.Match[str]) -> str:
        kind, whole = match["kind"], match[0]
        if match["count"] == NUMBERS[0] or _SINGULAR[kind] not in wrong:
            return whole
        start = match.start("kind") - match.start()
        return f"{whole[:start]}{around}{kind}{around}{whole[start + len(kind) :]}"

    return _MENTION.sub(marked, plain(text))


def plain(text: str) -> str:
    """The text in lower case, with one blank for each stretch of white space."""
    return " ".join(text.lower().split())
