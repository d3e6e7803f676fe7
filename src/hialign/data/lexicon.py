"""Captions as words of known meaning: tokens, what they name in which form, and the forms of what may replace them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from hialign.data import words

Form = Literal["one", "many", "mass", "pair", "base", "s", "ing", "past", "plain"]
Kind = Literal["object", "colour", "attribute", "action", "place", "wider"]
_Forms = Callable[[str], Iterator[tuple[Form, str]]]
TOKEN = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*|\d+|[^\sA-Za-z0-9]")
LONGEST = 3  # tokens of one entry


@dataclass(frozen=True)
class Token:
    """A word in lower case, and where it stands in the text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Reading:
    """One thing that a word can mean: ``name`` is its entry, ``family`` the first entry of its line."""

    kind: Kind
    slot: str
    family: str
    name: str
    form: Form
    offered: bool = False
    replaceable: bool = True


@dataclass(frozen=True)
class Mention:
    """The tokens from ``first`` up to ``last``, exclusive, and everything that they can mean."""

    first: int
    last: int
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Sentence:
    """A caption with its tokens and the longest entries found in it; ``at`` maps a token's place to its mention."""

    text: str
    tokens: tuple[Token, ...]
    mentions: tuple[Mention, ...]
    at: dict[int, Mention]

    def word(self, place: int) -> str:
        """The token's word; empty before the first and behind the last one."""
        return self.tokens[place].text if 0 <= place < len(self.tokens) else ""

    def readings(self, place: int, kind: str) -> Iterator[Reading]:
        """What the mention that covers a token means, of one kind."""
        mention = self.at.get(place)
        return (r for r in (mention.readings if mention else ()) if r.kind == kind)


@dataclass
class Lexicon:
    """``forms``: what each written form means. ``families``: slot -> family -> what it offers, in its basic form.

    ``along``: family -> families that one cannot rule out where it is named.
    """

    forms: dict[str, list[Reading]] = field(default_factory=dict)
    families: dict[str, dict[str, list[Reading]]] = field(default_factory=dict)
    along: dict[str, set[str]] = field(default_factory=dict)


def read(text: str) -> Sentence:
    """The caption's tokens and mentions; where entries overlap, the one that starts first and is longest counts."""
    tokens = tuple(Token(match.group().lower(), *match.span()) for match in TOKEN.finditer(text))
    forms, mentions, place = lexicon().forms, [], 0
    at: dict[int, Mention] = {}
    while place < len(tokens):
        for length in range(min(LONGEST, len(tokens) - place), 0, -1):
            written = " ".join(token.text for token in tokens[place : place + length])
            if written in forms:
                mention = Mention(place, place + length, tuple(forms[written]))
                mentions.append(mention)
                at |= dict.fromkeys(range(place, place + length), mention)
                place += length - 1
                break
        place += 1
    return Sentence(text, tokens, tuple(mentions), at)


def stem(word: str) -> str:
    """The word without the endings of number and tense, enough to see that two words are forms of one."""
    for ending, rest in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)] + rest
            break
    return word[:-1] if len(word) > 3 and (word[-1] == "e" or word[-1] == word[-2]) else word


def plural(noun: str) -> str:
    """The noun in the plural; of several words the last one changes."""
    head, space, last = noun.rpartition(" ")
    return head + space + (words.PLURALS.get(last) or _with_s(last))


def conjugated(verb: str, form: Form) -> str:
    """The verb as ``base``, ``s``, ``ing`` or ``past``."""
    if form in ("s", "base"):
        return _with_s(verb) if form == "s" else verb
    if form == "past" and verb in words.PAST:
        return words.PAST[verb]
    root = verb + verb[-1] if verb in listed(words.DOUBLING) else verb
    if verb.endswith("ie"):
        return verb[:-2] + "ying" if form == "ing" else verb + "d"
    if verb.endswith("e") and not verb.endswith("ee"):
        root = verb[:-1]
    if form == "past" and re.search(r"[^aeiou]y$", verb):
        root = verb[:-1] + "i"
    return root + ("ing" if form == "ing" else "ed")


def article(following: str) -> str:
    """``a`` or ``an`` for what follows."""
    vowel = re.match(r"[aeiou]", following.lower()) and not re.match(r"(uni|use|eu|one)", following.lower())
    return "an" if vowel else "a"


def _with_s(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


@cache
def lexicon() -> Lexicon:
    """All of ``words``, read once."""
    made = Lexicon()
    for slot, lines in words.OBJECTS.items():
        _add_families(made, "object", slot, lines, _noun_forms)
    _add_families(made, "place", "place", words.PLACES, _noun_forms)
    _add_families(made, "colour", "colour", words.COLOURS, _plain_form)
    _add_families(made, "action", "action", words.VERBS, _verb_forms)
    for slot, line in words.WIDER.items():
        for word in listed(line):
            for form, written in _noun_forms(word):
                _add(made, written, Reading("wider", slot, f"wider {slot}", word, form))
    for word, verb in words.STATES.items():
        _add(made, word, replace(made.forms[verb][0], form="past", replaceable=False))
    for group in words.ATTRIBUTES:
        parts = [listed(part) for part in group.split("|")]
        for part in parts:
            family = f"attribute:{parts[0][0]}:{part[0]}"
            for word in part:
                reading = Reading("attribute", parts[0][0], family, word, "plain", offered=word == part[0])
                _add(made, word, reading)
                if reading.offered:
                    made.families.setdefault(f"attribute {parts[0][0]}", {})[family] = [reading]
    _add_along(made)
    return made


@cache
def listed(line: str) -> tuple[str, ...]:
    """The entries of a line with commas between them."""
    return tuple(entry for entry in (" ".join(part.split()) for part in line.split(",")) if entry)


def _lines(text: str) -> Iterator[tuple[tuple[str, ...], ...]]:
    """(offered, replaceable, recognised) of each family."""
    for line in text.splitlines():
        if line.strip():
            offered, replaceable, recognised, *_ = [*line.split(":"), "", ""]
            yield listed(offered.replace("/", ",")), listed(replaceable), listed(recognised)


def _add_families(made: Lexicon, kind: Kind, slot: str, text: str, forms: _Forms) -> None:
    for offered, replaceable, recognised in _lines(text):
        entries = [*offered, *replaceable, *recognised]
        family = f"{kind}:{entries[0].lstrip('~*')}"
        for number, entry in enumerate(entries):
            readings = [
                (
                    written,
                    Reading(
                        kind,
                        slot,
                        family,
                        entry.lstrip("~*"),
                        form,
                        offered=number < len(offered),
                        replaceable=number < len(offered) + len(replaceable),
                    ),
                )
                for form, written in forms(entry)
            ]
            for written, reading in readings:
                _add(made, written, reading)
            if number < len(offered):
                made.families.setdefault(slot, {}).setdefault(family, []).append(readings[0][1])


def _add(made: Lexicon, written: str, reading: Reading) -> None:
    if reading not in made.forms.setdefault(written, []):
        made.forms[written].append(reading)


def _noun_forms(entry: str) -> Iterator[tuple[Form, str]]:
    if entry.startswith("~"):
        yield "mass", entry[1:]
    elif entry.startswith("*"):
        yield "pair", entry[1:]
    else:
        yield "one", entry
        yield "many", plural(entry)


def _verb_forms(entry: str) -> Iterator[tuple[Form, str]]:
    forms: tuple[Form, ...] = ("base", "s", "ing", "past")
    for form in forms:
        yield form, conjugated(entry, form)


def _plain_form(entry: str) -> Iterator[tuple[Form, str]]:
    yield "plain", entry


def families_of(word: str) -> set[str]:
    """The families, of whatever kind, that a written form belongs to."""
    return {reading.family for reading in lexicon().forms.get(word, ()) if reading.kind != "wider"}


def _add_along(made: Lexicon) -> None:
    kinds = {"things": ("object", "place"), "colour": ("colour",), "action": ("action",)}
    for group, lines in words.ALONG.items():
        for line in lines:
            found = [[r.family for r in made.forms.get(w, ()) if r.kind in kinds[group]] for w in listed(line)]
            assert all(found), f"words.ALONG: a word of {line!r} is in no list of {group}"
            together = set().union(*found)
            for family in together:
                made.along.setdefault(family, set()).update(together - {family})


def named(sentences: Iterable[Sentence]) -> set[str]:
    """Families that the captions name, in any reading of their words."""
    return {r.family for s in sentences for m in s.mentions for r in m.readings if r.kind != "wider"}


def with_along(families: Iterable[str]) -> set[str]:
    """``families`` and all that cannot be ruled out where they are named."""
    along = lexicon().along
    return set(families).union(*(along.get(family, set()) for family in families))


def stems(sentences: Sequence[Sentence]) -> set[str]:
    """The stems of all words of the captions."""
    return {stem(token.text) for sentence in sentences for token in sentence.tokens}
