"""A second reading of answers, as a person takes them; its numbers stand beside the official rule's, never instead.

What it cannot read is None and counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_TO_NINE = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TO_TWENTY = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
NUMBERS = {word: number for number, word in enumerate((*_TO_NINE, *_TO_TWENTY, "twenty"))}
_YES, _NO = {"yes", "yeah", "yep", "correct", "true"}, {"no", "nope", "none", "not", "incorrect", "false"}
_DENIAL = re.compile(r"\b(?:no|not|none|nope|cannot|never|neither|nothing|\w+n['\u2019]t)\b", re.IGNORECASE)
_STATED = re.compile(r"(?:there|it|they|this|that|he|she)\s+(?:is|are)\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+(?:['\u2019][a-z]+)?", re.IGNORECASE)
_COUNT = re.compile(r"(?<![\w.,-])(?:\d+(?![\w%]|[.,]\d)|" + "|".join(NUMBERS) + r")(?!\w)", re.IGNORECASE)
_NAMED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*[*(\"']*([A-Z])(?![\w'])", re.IGNORECASE)
_LEADING = re.compile(r"[\s*(\"']*([A-Z])(?:[).:,*\"']+(?=\s|$|\*)|\s*$)", re.IGNORECASE)


def yes_or_no(answer: str) -> bool | None:
    """Whether the answer says yes; None when it says neither, or both.

    The first word decides where it is a yes or a no, in whatever case and marks. Else it is what the text holds: a
    yes, a denial (no, not, none, cannot, isn't, ...), or a statement that something is there ("It is red.").
    """
    words = [word.lower() for word in _WORD.findall(answer)]
    if not words:
        return None
    if words[0] in _YES | _NO:
        return words[0] in _YES
    yes, denial = bool(_YES & set(words)), bool(_DENIAL.search(answer))
    if yes != denial:
        return yes
    return True if not yes and _STATED.match(answer.strip()) else None


def count(answer: str) -> int | None:
    """The number that the answer gives in digits or as a word up to twenty; None without one, or with several."""
    found = {NUMBERS[text.lower()] if text.lower() in NUMBERS else int(text) for text in _COUNT.findall(answer)}
    return found.pop() if len(found) == 1 else None


def option(answer: str, choices: Sequence[str]) -> int | None:
    """The place of the choice that the answer names by its letter or its text; None without one, or with several.

    Read are a letter that stands alone or begins the answer ("B", "(b)", "B. a dog"), one behind "answer", "option" or
    "choice" ("The answer is B"), and else a choice's text that alone occurs.
    """
    places = {match.upper() for match in _NAMED.findall(answer)}
    if not places and (leading := _LEADING.match(answer)):
        places = {leading[1].upper()}
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
