"""Where a caption can be made wrong, and how: one function per kind of change, by the lists of ``words``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

from hialign.data import words
from hialign.data.lexicon import (
    Form,
    Mention,
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

    ``families`` is what the new phrase names; ``weight`` is to other options of the kind at the same place. ``weak`` is
    what no caption speaks against, though one would have said it if it were so: that a hiker is a soldier.
    """

    kind: str
    start: int
    end: int
    new: str
    families: frozenset[str]
    weight: float = 1.0
    weak: bool = False


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
        return math.fsum(terms) / len(terms) if terms else math.log(prior)  # whatever the order of a set


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
            if reading.kind != "object" or not _exchangeable(scene, mention, reading):
                continue
            slot = words.OFFERED_BY.get(reading.slot, reading.slot)
            for other in _open(scene, slot):
                new = _number(other, reading)
                if new is not None:
                    chance = statistics.chance(_thing(other), context - {_thing(reading)})
                    option = _replace(scene, "object", mention, new, {other.family})
                    yield replace(option, weight=math.exp(chance), weak=reading.slot == "person")


def _open(scene: Scene, slot: str) -> Iterator[Reading]:
    """What a slot offers, without the families that the captions name or let one expect."""
    for family, offered in lexicon().families.get(slot, {}).items():
        if family not in scene.closed:
            yield from offered


def _exchangeable(scene: Scene, mention: Mention, reading: Reading) -> bool:
    """Whether the words around a noun suit other nouns of its slot as well."""
    if not reading.replaceable or not _noun_ends(scene.sentence, mention.last):
        return False
    first = _phrase(scene.sentence, mention.first, reading)
    if first is None or not _governed(scene, first, reading):
        return False
    if reading.slot == "minor" and scene.sentence.word(mention.first - 1) in ("small", "little", "tiny"):
        return False  # no small man
    if reading.slot == "vehicle" and _bound(scene):
        return False
    return reading.slot not in ("adult", "child", "minor") or _free_gender(scene, reading)


def _bound(scene: Scene) -> bool:
    """Whether the caption tells of something that is done on water, on snow or on a rock, and nowhere else."""
    bound = set(listed(words.BOUND))
    return any(r.kind == "action" and r.name in bound for m in scene.sentence.mentions for r in m.readings)


def _number(other: Reading, like: Reading) -> str | None:
    """The offered noun in the number of the one it replaces; None when it has no such form."""
    if other.form == "one" and like.form in ("one", "many"):
        return other.name if like.form == "one" else plural(other.name)
    return other.name if other.form == like.form else None


def _phrase(sentence: Sentence, noun: int, reading: Reading) -> int | None:
    """The place of the first token of the noun's phrase; None when a word in it is not known to suit other nouns."""
    place, determined = noun, False
    while place > 0:
        word = sentence.word(place - 1)
        if word in _DETERMINERS - {"another", "other"}:  # these ask for one more of the same
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
    """Whether no other word of the caption depends on who this is, and no caption may speak of several people."""
    said = {token.text for token in scene.sentence.tokens}
    if said & {*_PRONOUNS, *listed(words.GENDERED), "another", "other"}:
        return False
    wider = {r for s in scene.others for m in s.mentions for r in m.readings if r.kind == "wider"}
    several = any(r.slot == reading.slot and (r.form == "many" or r.name in _MANY) for r in wider)
    return reading.form == "many" or not several


def attributes(scene: Scene) -> Iterator[Option]:
    """A colour, size, age, material, ... becomes another one."""
    for mention in scene.sentence.mentions:
        for reading in mention.readings:
            if reading.kind == "colour":
                yield from _colours(scene, mention)
            elif reading.kind == "attribute" and _fits_before(scene.sentence, mention.last, reading):
                for family, (other,) in lexicon().families[f"attribute {reading.slot}"].items():
                    if family != reading.family and not families_of(other.name) & scene.named:
                        yield _replace(scene, "attribute", mention, other.name, {family})


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


def _colours(scene: Scene, mention: Mention) -> Iterator[Option]:
    """Other colours; only those of fur for an animal, none for people and places, whose colour says something else."""
    sentence, place = scene.sentence, mention.first
    if sentence.word(place - 1) in listed(words.COLOUR_HIDING):
        return
    if sentence.word(place + 1) in ("-", "juice", "haired", "light", "lights"):
        return
    between = ("and", "colored", "coloured")
    ahead = range(place + 1, place + 6)
    head = next((p for p in ahead if not _modifier(sentence, p) and sentence.word(p) not in between), place)
    nouns = {r.slot for kind in ("object", "wider") for r in sentence.readings(head, kind)}
    if nouns & {"adult", "child"} or (not nouns and any(sentence.readings(head, "place"))):
        return
    animal = "animal" in nouns or sentence.word(head) in ("hair", "fur", "haired")
    for other in _open(scene, "colour"):
        if not animal or other.name in words.FUR:
            yield _replace(scene, "attribute", mention, other.name, {other.family})


def actions(scene: Scene) -> Iterator[Option]:
    """A verb becomes one that what follows it goes with as well."""
    for mention in scene.sentence.mentions:
        for reading in mention.readings:
            if reading.kind != "action" or not _is_verb(scene.sentence, mention.first, reading.form):
                continue
            follows = _follows(scene.sentence, mention.last)
            fitting = [row for row in words.ACTIONS if follows & set(row[0].split()) and reading.name in listed(row[1])]
            for verb in dict.fromkeys(verb for row in fitting for verb in listed(row[2])):
                families = {r.family for r in lexicon().forms[verb] if r.kind == "action"}
                if not families & scene.closed:
                    yield _replace(scene, "action", mention, conjugated(verb, reading.form), families)


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
        bound = {"air", "midair", "mid", "race", "circle", "circles", "head", "hands", "legs", "feet", "toes", "knees"}
        return set() if rest & bound else {"static"}
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
            return nouns if sentence.word(p + 1) != "'" else set()  # of "a horse 's lead" it is the lead
        if sentence.word(p) not in _DETERMINERS and not _modifier(sentence, p) and sentence.word(p) != "and":
            return set()
    return set()


def places(scene: Scene) -> Iterator[Option]:
    """A place becomes another one that its preposition goes with."""
    sentence = scene.sentence
    if _bound(scene) or "object:boat" in scene.named:
        return
    for mention in sentence.mentions:
        for reading in mention.readings:
            if reading.kind != "place" or not reading.replaceable or not _noun_ends(sentence, mention.last):
                continue
            first = mention.first
            while first > 0 and (_modifier(sentence, first - 1) or any(sentence.readings(first - 1, "place"))):
                first -= 1
            determiner = sentence.word(first - 1) if sentence.word(first - 1) in ("a", "an", "the") else ""
            if reading.form == "one" and not determiner:
                continue
            governor = _governor(sentence, first - bool(determiner))
            for other in _open(scene, "place"):
                fits = determiner if other.form == "one" else determiner not in ("a", "an")
                if fits and governor & set(listed(words.PLACE_AFTER.get(other.name, ""))):
                    yield _replace(scene, "place", Mention(first, mention.last, ()), other.name, {other.family})


def counts(scene: Scene) -> Iterator[Option]:
    """A number of two or more becomes one that is larger by two to four."""
    said = {token.text for sentence in scene.others for token in sentence.tokens}
    for place, token in enumerate(scene.sentence.tokens):
        if token.text not in NUMBERS or not _counts_nouns(scene.sentence, place + 1):
            continue
        several = _MANY - {"pair", "couple"} if token.text == "two" else _MANY
        if said & several and not _counts_all(scene.sentence, place):
            continue
        value = NUMBERS.index(token.text)
        for other in NUMBERS[value + 2 : value + 5]:
            if other not in said:
                yield _replace(scene, "count", Mention(place, place + 1, ()), other, {f"count:{other}"})


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
    texts = [" ".join(token.text for token in sentence.tokens) for sentence in scene.others]
    for place in range(len(scene.sentence.tokens)):
        for old, new, verbs, nouns in words.RELATIONS:
            end = place + len(old.split())
            if " ".join(map(scene.sentence.word, range(place, end))) != old or not _related(
                scene, place, end, verbs, nouns
            ):
                continue
            if not any(f" {same} " in f" {text} " for same in listed(words.SAME_RELATION[new]) for text in texts):
                yield _replace(scene, "relation", Mention(place, end, ()), new, {f"relation:{new}"})


def _related(scene: Scene, place: int, end: int, verbs: str, nouns: str) -> bool:
    """Whether a noun phrase follows a preposition, with one of ``nouns``, and one of ``verbs`` stands before it."""
    if scene.sentence.word(end) not in ("a", "an", "the", "his", "her", "its", "their", "another"):
        return False
    if verbs and not _governor(scene.sentence, place) & set(listed(verbs)):
        return False
    following = set(map(scene.sentence.word, range(end + 1, end + 4)))
    if following & {"air", "sky"}:
        return False
    return not nouns or bool(following & set(listed(nouns)))


def _replace(scene: Scene, kind: str, old: Mention, new: str, families: set[str]) -> Option:
    """The option that puts ``new`` in the place of tokens, with the article before them where that must change."""
    tokens, text, first = scene.sentence.tokens, scene.sentence.text, old.first
    start, end = tokens[first].start, tokens[old.last - 1].end
    if first > 0 and tokens[first - 1].text in ("a", "an") and article(new) != tokens[first - 1].text:
        start, new = tokens[first - 1].start, f"{article(new)} {new}"
    if text[start].isupper():
        new = new[0].upper() + new[1:]
    return Option(kind, start, end, new, frozenset(families))
