"""A second reading of answers, as a person takes them; its numbers stand beside the official rule's, never instead.

What it cannot read for sure is None and counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_TO_NINE = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBERS = {word: number for number, word in enumerate((*_TO_NINE, *_TEENS))}
NUMBERS |= {word: 20 + 10 * place for place, word in enumerate(_TENS)}
NUMBERS |= {f"{ten}-{one}": NUMBERS[ten] + NUMBERS[one] for ten in _TENS for one in _TO_NINE[1:]}

_YES, _NO = {"yes", "yeah", "yep", "correct", "true"}, {"no", "nope", "none", "not", "incorrect", "false"}
_DENIAL = re.compile(r"\b(?:no|not|none|nope|cannot|never|neither|nothing|incorrect|false|\w+n['\u2019]t)\b")
_STATED = re.compile(r"(?:there|it|they|this|that|he|she)\s+(?:is|are)\b")
_SURE = re.compile(r"\b(?:no|without (?:a |any )?)\s*(?:doubt|question)\b")
_BOTH = re.compile(r"\byes (?:and|or) no\b|\bno (?:and|or) yes\b")
_UNSURE = re.compile(
    r"\b(?:unclear|unsure|uncertain|unknown|impossible|maybe|perhaps|not (?:sure|clear|certain|possible)"
    r"|(?:cannot|can't|can\u2019t|don't|don\u2019t|hard to|difficult to|unable to|able to)"
    r" (?:be )?(?:tell|say|know|determined?|judge|answer))\b"
)
_WORD = re.compile(r"[a-z]+(?:['\u2019][a-z]+)?")
_COUNT = re.compile(
    r"(?<![\w.,-])(?:\d+(?![\w%]|[.,-]\d|\s?\u2013)|" + "|".join(sorted(NUMBERS, key=len, reverse=True)) + r")(?![\w-])"
)
_MORE = re.compile(r"\s*(?:hundreds?|thousands?|millions?|dozens?|half|point)\b")  # what would go on with a number
_PRONOUN = re.compile(r"\b(?:no|this|that|each|every|any|another|other|which|the(?: \w+)?)\s+$")  # before "one"
_NAMED = re.compile(
    r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\b(?:\s+is)?\s*:?\s*[*(\"']*(?:([B-HJ-Z])\b|([A-Za-z])(?=[).:,*\"']|\s*$))"
)
_MARKED = re.compile(r"(?<![\w.])[*(\"']*([A-Z])[).:]", re.IGNORECASE)
_ALONE = re.compile(r"[\s*(\"']*([A-Z])[\s).:,*\"']*$", re.IGNORECASE)


def yes_or_no(answer: str) -> bool | None:
    """Whether the answer says yes; None when it says neither, or both, or that it does not know.

    The first word decides where it is a yes or a no, in whatever case and marks. Else it is what the text holds: a
    yes, a denial (no, not, cannot, isn't, false, ...), or a statement that something is there ("It is red.").
    """
    text = _SURE.sub("surely", answer.lower())
    words = _WORD.findall(text)
    if not words or _BOTH.search(text):
        return None
    if words[0] in _YES | _NO:
        return words[0] in _YES
    if _UNSURE.search(text):
        return None
    yes, denial = bool(_YES & set(words)), bool(_DENIAL.search(text))
    if yes != denial:
        return yes
    return True if not yes and _STATED.match(text.strip().removeprefix("surely").lstrip(" ,")) else None


def count(answer: str) -> int | None:
    """The number that the answer gives in digits or in words up to ninety-nine; None without one, or with several.

    None too for fractions, ranges, shares and words that go on (two hundred), and for "one" that stands for a thing.
    """
    text = answer.lower()
    found = set()
    for match in _COUNT.finditer(text):
        if _MORE.match(text, match.end()):
            return None
        if match[0] == "one" and _PRONOUN.search(text, 0, match.start()):
            continue
        found.add(NUMBERS[match[0]] if match[0] in NUMBERS else int(match[0]))
    return found.pop() if len(found) == 1 and not re.search(r"\d\s?[-\u2013]\s?\d", text) else None


def option(answer: str, choices: Sequence[str]) -> int | None:
    """The place of the choice that the answer names by its letter or its text; None without one, or with several.

    Read are a letter behind "answer", "option" or "choice" ("The answer is B"), one that is the whole answer ("b") or
    carries a mark ("(b)", "B. a dog"), and else a choice's text that alone occurs. An article is no letter.
    """
    places = {(capital or letter).upper() for capital, letter in _NAMED.findall(answer)}
    places = places or {letter.upper() for letter in _MARKED.findall(answer)}
    if not places and (alone := _ALONE.match(answer)):
        places = {alone[1].upper()}
    if places:
        place = ord(places.pop()) - ord("A")
        return place if not places and place < len(choices) else None
    said = _bare(answer)
    held = [place for place, choice in enumerate(choices) if _bare(choice) and f" {_bare(choice)} " in f" {said} "]
    exact = [place for place in held if _bare(choices[place]) == said]
    held = exact or held
    return held[0] if len(held) == 1 else None


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
