"""Where a caption can be made wrong, and how: one function per kind of change, by the lists of ``words``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from hialign.data import words
from hialign.data.lexicon import (
    Form,
    Reading,
    Sentence,
    article,
    conjugated,
    families_of,
    lexicon,
    listed,
    named,
    plural,
    read,
    stem,
    stems,
    with_along,
)

KINDS = ("object", "attribute", "action", "place", "count", "relation")
_PRONOUNS = frozenset(listed("he, she, his, her, him, himself, herself, hers"))
_DETERMINERS = frozenset(
    listed(
        "a, an, the, his, her, its, their, my, this, that, these, those, some, another, one, each, every, any, "
        "no, both, two, three, four, five, six, seven, eight, nine, ten, many, several, other"
    )
)
# What may follow a noun that stands by itself; before anything else it may be half of a compound.
_AFTER_NOUN = frozenset(
    listed(
        "in, on, at, by, near, with, without, while, as, and, or, but, is, are, was, were, has, have, had, being, "
        "who, that, which, through, across, over, under, along, down, up, into, onto, from, to, for, of, off, "
        "around, behind, beside, next, outside, inside, among, against, past, towards, toward, during, before, "
        "after, together, alone, above, below, between, underneath, beneath, atop, it, he, she, they, his, her, "
        "its, their, not, about, because, so, where, when, out, away, alongside, very, both"
    )
)
_SUBJECTS = frozenset(listed("who, that, which, and, they, it, he, she, people, someone"))
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_GRAMMAR = (_AFTER_NOUN | _DETERMINERS) - set(NUMBERS)
_MANY = frozenset(
    listed("group, crowd, several, many, some, bunch, lot, pair, couple, team, others, various, few, multiple")
)


@dataclass(frozen=True)
class Option:
    """One way to make a caption wrong: the characters from ``start`` to ``end`` become ``new``.

    ``families`` is what the new phrase names; ``weight`` is to other options of the kind at the same place.
    """

    kind: str
    start: int
    end: int
    new: str
    families: frozenset[str]
    weight: float = 1.0


@dataclass(frozen=True)
class Scene:
    """A caption to change, all captions of its image, and what these name or let one expect."""

    sentence: Sentence
    others: tuple[Sentence, ...]
    named: frozenset[str]
    closed: frozenset[str]  # families that must not be offered
    stems: frozenset[str]


def scene(sentence: Sentence, captions: tuple[Sentence, ...], extra: Iterable[str] = ()) -> Scene:
    """The scene of one caption of an image; ``extra`` are families that have just been put into it."""
    seen = named(captions) | set(extra)
    return Scene(sentence, captions, frozenset(seen), frozenset(with_along(seen)), frozenset(stems(captions)))


class Statistics:
    """In how many images each thing is named, and each two of them.

    ``chance(thing, given)`` is the mean over ``given`` of the logarithm of the smoothed conditional frequency

        p(thing | other) = (images with both + k p(thing)) / (images with other + k),   k = 5

    with p(thing) = (images with it + 1) / (images + things); without ``given`` it is log p(thing). It rises with what
    occurs often as with what occurs together; pointwise mutual information alone would prefer the rarest.
    """

    def __init__(self, images: Iterable[tuple[Sentence, ...]]) -> None:
        self.images = 0
        self.alone: Counter[str] = Counter()
        self.together: Counter[tuple[str, str]] = Counter()
        for captions in images:
            things = sorted({thing for caption in captions for thing in _things(caption)})
            self.images += 1
            self.alone.update(things)
            self.together.update(combinations(things, 2))

    def chance(self, thing: str, given: Iterable[str], k: float = 5.0) -> float:
        """The mean logarithm of p(thing | other) over ``given``."""
        prior = (self.alone[thing] + 1) / (self.images + len(self.alone) + 1)
        terms = [
            math.log((self.together[min(thing, x), max(thing, x)] + k * prior) / (self.alone[x] + k)) for x in given
        ]
        return sum(terms) / len(terms) if terms else math.log(prior)


def _things(sentence: Sentence) -> Iterator[str]:
    for mention in sentence.mentions:
        yield from (_thing(r) for r in mention.readings if r.kind in ("object", "place"))


def _thing(reading: Reading) -> str:
    """The name that statistics know a reading by: what is offered counts by itself, the rest by its family."""
    return reading.name if reading.offered else reading.family.partition(":")[2]


def options(scene: Scene, statistics: Statistics) -> dict[str, list[Option]]:
    """Kind -> all the ways to make the caption wrong."""
    found = {
        "object": objects(scene, statistics),
        "attribute": attributes(scene),
        "action": actions(scene),
        "place": places(scene),
        "count": counts(scene),
        "relation": relations(scene),
    }
    kept = {kind: [option for option in given if not _stated(scene, option)] for kind, given in found.items()}
    return {kind: given for kind, given in kept.items() if given}


def _stated(scene: Scene, option: Option) -> bool:
    """Whether a caption of the image has a word of what is new; words of grammar, as of a relation, do not count."""
    old = {stem(word) for word in scene.sentence.text[option.start : option.end].lower().split()}
    new = {stem(word) for word in option.new.lower().split() if word not in _AFTER_NOUN | _DETERMINERS}
    return bool((new - old) & scene.stems)


def states(phrase: str, old: str, captions: Sequence[Sentence]) -> bool:
    """Whether what ``phrase`` says beyond the words of ``old`` is in one of the captions.

    Synonyms, and words wider than a thing that is named, are in it too; a phrase of words of grammar alone, such as
    "in front of", is when it stands there as it is.
    """
    before = {word.text for word in read(old).tokens}
    new = read(phrase)
    added = [token.text for token in new.tokens if token.text not in before]
    content = {stem(word) for word in added if word not in _GRAMMAR}
    if not content:
        said = [" ".join(token.text for token in sentence.tokens) for sentence in captions]
        return any(f" {phrase.lower()} " in f" {text} " for text in said)
    slots = {r.slot for s in captions for m in s.mentions for r in m.readings if r.kind == "object"}
    meant = [r for m in new.mentions if new.word(m.last - 1) in added for r in m.readings]
    wider = {r.slot for r in meant if r.kind == "wider"}
    families = {r.family for r in meant if r.kind != "wider"}
    return bool(content & stems(captions) or families & named(captions) or wider & slots)


def objects(scene: Scene, statistics: Statistics) -> Iterator[Option]:
    """A thing becomes another one that the set often names along with what the caption names."""
    context = set(_things(scene.sentence))
    for mention in scene.sentence.mentions:
        for reading in mention.readings:
            if reading.kind != "object" or not reading.replaceable:
                continue
            first = _phrase(scene.sentence, mention.first, reading)
            if first is None or not _noun_ends(scene.sentence, mention.last) or not _governed(scene, first, reading):
                continue
            if reading.slot in ("adult", "child", "minor") and not _free_gender(scene, reading):
                continue
            if reading.slot == "minor" and scene.sentence.word(mention.first - 1) in ("small", "little", "tiny"):
                continue
            slot = words.OFFERED_BY.get(reading.slot, reading.slot)
            for family, offered in lexicon().families.get(slot, {}).items():
                if family in scene.closed:
                    continue
                for other in offered:
                    if _number(other, reading) is not None:
                        new = _number(other, reading) or ""
                        chance = statistics.chance(_thing(other), context - {_thing(reading)})
                        yield _replace(scene, "object", mention.first, mention.last, new, {family}, math.exp(chance))


def _number(other: Reading, like: Reading) -> str | None:
    """The offered noun in the number of the one it replaces; None when it has no such form."""
    countable = other.form in ("one", "many")
    if countable and like.form in ("one", "many"):
        return other.name if like.form == "one" else plural(other.name)
    return other.name if other.form == like.form else None


def _phrase(sentence: Sentence, noun: int, reading: Reading) -> int | None:
    """The place of the first token of the noun's phrase; None when a word in it is not known to suit other nouns."""
    place, determined = noun, False
    while place > 0:
        word = sentence.word(place - 1)
        if word in _DETERMINERS:
            place, determined = place - 1, True
        elif not determined and (word in _general_modifiers() or _and_between_colours(sentence, place - 1)):
            place -= 1
        else:
            break
    before = sentence.word(place - 1)
    if determined or (place == 0 and reading.form != "one"):
        return place
    known = before in _AFTER_NOUN or any(sentence.readings(place - 1, "action"))
    return place if reading.form != "one" and known else (place if place == 0 else None)


@cache
def _general_modifiers() -> frozenset[str]:
    colours = {form for form, rs in lexicon().forms.items() if any(r.kind == "colour" for r in rs)}
    sizes = {word for group in words.ATTRIBUTES[:1] for part in group.split("|") for word in listed(part)}
    return frozenset(colours | sizes | {"young", "old", "older", "wet", "single"})


def _and_between_colours(sentence: Sentence, place: int) -> bool:
    return sentence.word(place) == "and" and all(any(sentence.readings(p, "colour")) for p in (place - 1, place + 1))


def _noun_ends(sentence: Sentence, place: int) -> bool:
    """Whether what follows a noun lets it stand by itself."""
    word = sentence.word(place)
    if not word or not word[0].isalnum():
        return word not in ("-", "'", "&")
    return word in _AFTER_NOUN - {"of"} or any(
        r.form in ("s", "ing", "base") for r in sentence.readings(place, "action")
    )


def _governor(sentence: Sentence, first: int) -> set[str]:
    """What the phrase that starts at ``first`` hangs on: a preposition of up to three words, or verbs."""
    found = {" ".join(sentence.word(p) for p in range(first - n, first)) for n in (1, 2, 3) if first >= n}
    return found | {reading.name for reading in sentence.readings(first - 1, "action")}


def _governed(scene: Scene, first: int, reading: Reading) -> bool:
    wanted = words.GOVERNORS.get(reading.slot)
    return wanted is None or bool(_governor(scene.sentence, first) & set(listed(wanted)))


def _free_gender(scene: Scene, reading: Reading) -> bool:
    """Whether nothing in the caption agrees with the gender, and no caption may speak of several people."""
    said = {token.text for token in scene.sentence.tokens}
    if said & {*_PRONOUNS, *listed(words.GENDERED)}:
        return False
    wider = {r for s in scene.others for m in s.mentions for r in m.readings if r.kind == "wider"}
    several = any(r.slot == reading.slot and (r.form == "many" or r.name in _MANY) for r in wider)
    return reading.form == "many" or not several


def attributes(scene: Scene) -> Iterator[Option]:
    """A colour, size, age, material, ... becomes another one."""
    for mention in scene.sentence.mentions:
        for reading in mention.readings:
            if reading.kind == "colour":
                yield from _colours(scene, mention.first)
            elif reading.kind == "attribute" and _fits_before(scene.sentence, mention.last, reading):
                for family, (other,) in lexicon().families[f"attribute {reading.slot}"].items():
                    if family != reading.family and not families_of(other.name) & scene.named:
                        yield _replace(scene, "attribute", mention.first, mention.last, other.name, {family})


def _fits_before(sentence: Sentence, place: int, reading: Reading) -> bool:
    """Whether the noun behind an attribute takes its opposites, and the next word is no end of the phrase."""
    rule = words.BEFORE.get(reading.slot, "")
    nouns = set(listed(rule.removeprefix("!")))
    if reading.name != reading.slot and place >= 2 and sentence.word(place - 2) in ("very", "too", "so"):
        return False
    head = next((p for p in range(place, place + 3) if not _modifier(sentence, p)), place)
    following = {sentence.word(p) for p in range(place, head + 1)}
    if not sentence.word(place).isalpha() or sentence.word(place) in _AFTER_NOUN:
        return False
    return not following & nouns if rule.startswith("!") or not rule else bool(following & nouns)


def _modifier(sentence: Sentence, place: int) -> bool:
    return any(sentence.readings(place, "colour")) or any(sentence.readings(place, "attribute"))


def _colours(scene: Scene, place: int) -> Iterator[Option]:
    sentence = scene.sentence
    hidden = set(listed(words.COLOUR_HIDING))
    if sentence.word(place - 1) in hidden or sentence.word(place + 1) in ("-", "juice", "haired", "light", "lights"):
        return
    between = ("and", "colored", "coloured")
    head = next(
        (p for p in range(place + 1, place + 6) if not _modifier(sentence, p) and sentence.word(p) not in between), 0
    )
    nouns = {r.slot for r in sentence.readings(head, "object")} | {r.slot for r in sentence.readings(head, "wider")}
    place_noun = any(sentence.readings(head, "place")) and not nouns
    if nouns & {"adult", "child"} or place_noun:
        return
    animal = "animal" in nouns or sentence.word(head) in ("hair", "fur", "haired")
    for family, offered in lexicon().families["colour"].items():
        if family in scene.closed:
            continue
        for other in offered:
            if not animal or other.name in words.FUR:
                yield _replace(scene, "attribute", place, place + 1, other.name, {family})


def actions(scene: Scene) -> Iterator[Option]:
    """A verb becomes one that what follows it goes with as well."""
    for mention in scene.sentence.mentions:
        for reading in mention.readings:
            if reading.kind != "action" or not _is_verb(scene.sentence, mention.first, reading.form):
                continue
            follows = _follows(scene.sentence, mention.last)
            for frame, old, new in words.ACTIONS:
                if not follows & set(frame.split()) or reading.name not in listed(old):
                    continue
                for verb in listed(new):
                    families = {r.family for r in lexicon().forms[verb] if r.kind == "action"}
                    if not families & scene.closed:
                        written = conjugated(verb, reading.form)
                        yield _replace(scene, "action", mention.first, mention.last, written, families)


def _is_verb(sentence: Sentence, place: int, form: Form) -> bool:
    """Whether a word that may be a verb is one here, by what stands before it."""
    before = sentence.word(place - 1)
    many = any(r.form in ("many", "pair") for k in ("object", "wider") for r in sentence.readings(place - 1, k))
    if form == "base":
        return many or before in ("who", "they", "people")
    bare = before not in _DETERMINERS and not _modifier(sentence, place - 1)
    if form == "s":
        one = any(r.form == "one" for k in ("object", "wider") for r in sentence.readings(place - 1, k))
        return bare and (one or before in _SUBJECTS)
    others = {*listed(words.STATIC), "of", "for", "with", "to", "from", "go", "goes", "going", "went"}
    return form == "ing" and bare and before not in others


def _follows(sentence: Sentence, place: int) -> set[str]:
    """What stands behind a verb: names of frames of ``words.ACTIONS``."""
    word = sentence.word(place)
    phrases = {" ".join(sentence.word(p) for p in range(place, place + n)) for n in (1, 2, 3)}
    if not word or word in (".", ",", ";", "and", "while", "as"):
        return {"static"}
    if phrases & set(listed(words.STATIC)):
        rest = {sentence.word(p) for p in range(place + 1, place + 4)}
        return set() if rest & {"air", "midair", "mid", "race", "circle", "circles"} else {"static"}
    if word in ("over", "at", "to", "with"):
        return {word}
    if word in listed(words.PATH):
        return {"path"}
    return _object_slots(sentence, place)


def _object_slots(sentence: Sentence, place: int) -> set[str]:
    """The slots of the noun whose phrase starts at ``place``, empty when none does."""
    for p in range(place, place + 5):
        nouns = {r.slot for r in sentence.readings(p, "object")}
        nouns |= {r.family.partition(":")[2] for r in sentence.readings(p, "place")}
        if nouns:
            return nouns
        if sentence.word(p) not in _DETERMINERS and not _modifier(sentence, p) and sentence.word(p) != "and":
            return set()
    return set()


def places(scene: Scene) -> Iterator[Option]:
    """A place becomes another one that its preposition goes with."""
    sentence = scene.sentence
    if any(r.name in listed(words.BOUND) for m in sentence.mentions for r in m.readings if r.kind == "action"):
        return
    if {"object:boat"} & scene.named:
        return
    for mention in sentence.mentions:
        for reading in mention.readings:
            if reading.kind != "place" or not reading.replaceable or not _noun_ends(sentence, mention.last):
                continue
            first = mention.first
            while first > 0 and (_modifier(sentence, first - 1) or any(sentence.readings(first - 1, "place"))):
                first -= 1
            determiner = sentence.word(first - 1) if sentence.word(first - 1) in ("a", "an", "the") else ""
            governor = _governor(sentence, first - bool(determiner))
            if (reading.form == "one") != bool(determiner) and reading.form in ("one",):
                continue
            for other in _places_after(scene, governor):
                if other.form == "mass" and determiner in ("a", "an"):
                    continue
                if other.form == "one" and not determiner:
                    continue
                yield _replace(scene, "place", first, mention.last, other.name, {other.family})


def _places_after(scene: Scene, governor: set[str]) -> Iterator[Reading]:
    for family, offered in lexicon().families["place"].items():
        if family in scene.closed:
            continue
        yield from (o for o in offered if governor & set(listed(words.PLACE_AFTER.get(o.name, ""))))


def counts(scene: Scene) -> Iterator[Option]:
    """A number of two or more becomes one that is larger by two to four."""
    said = {token.text for sentence in scene.others for token in sentence.tokens}
    for place, token in enumerate(scene.sentence.tokens):
        if token.text not in NUMBERS or not _counts_nouns(scene.sentence, place + 1):
            continue
        if said & (_MANY - {"pair", "couple"} if token.text == "two" else _MANY) and not _counts_all(
            scene.sentence, place
        ):
            continue
        value = NUMBERS.index(token.text)
        for other in NUMBERS[value + 2 : value + 5]:
            if other not in said:
                yield _replace(scene, "count", place, place + 1, other, {f"count:{other}"})


def _counts_all(sentence: Sentence, place: int) -> bool:
    """Whether a number says how many a group is, and not how many of it do something."""
    nouns = ("people", "persons", "children", "kids", "adults", "dogs")
    return sentence.word(place - 2) == "group" or sentence.word(place + 1) in nouns


def _counts_nouns(sentence: Sentence, place: int) -> bool:
    """Whether a plural noun follows, with nothing but attributes before it."""
    while _modifier(sentence, place) or (sentence.word(place) == "and" and _modifier(sentence, place + 1)):
        place += 1
    return any(r.form == "many" for k in ("object", "wider", "place") for r in sentence.readings(place, k))


def relations(scene: Scene) -> Iterator[Option]:
    """A preposition becomes its opposite."""
    said = {
        " ".join(t.text for t in s.tokens[i : i + n])
        for s in scene.others
        for i in range(len(s.tokens))
        for n in (1, 2, 3)
    }
    for place in range(len(scene.sentence.tokens)):
        for old, new, verbs, nouns in words.RELATIONS:
            length = len(old.split())
            phrase = " ".join(scene.sentence.word(p) for p in range(place, place + length))
            if phrase != old or said & set(listed(words.SAME_RELATION.get(new, new))):
                continue
            if scene.sentence.word(place + length) not in ("a", "an", "the", "his", "her", "its", "their", "another"):
                continue
            if verbs and not _governor(scene.sentence, place) & set(listed(verbs)):
                continue
            following = {scene.sentence.word(p) for p in range(place + length + 1, place + length + 4)}
            if nouns and not following & set(listed(nouns)):
                continue
            yield _replace(scene, "relation", place, place + length, new, {f"relation:{new}"})


def _replace(
    scene: Scene, kind: str, first: int, last: int, new: str, families: set[str], weight: float = 1.0
) -> Option:
    """The option that puts ``new`` in the place of tokens, with the article before them where that must change."""
    tokens, text = scene.sentence.tokens, scene.sentence.text
    start, end = tokens[first].start, tokens[last - 1].end
    if first > 0 and tokens[first - 1].text in ("a", "an") and article(new) != tokens[first - 1].text:
        start, new = tokens[first - 1].start, f"{article(new)} {new}"
    if text[start].isupper():
        new = new[0].upper() + new[1:]
    return Option(kind, start, end, new, frozenset(families), weight)
