"""Short answers made comparable, and what one is worth beside those of ten people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache

from hialign.benchmarks.reply import count, yes_or_no

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_WORDS)}
_ARTICLES = {"a", "an", "the"}
_SHORTENED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(words: Sequence[str]) -> dict[str, str]:
    return {
        word[:place] + word[place + 1 :]: word for word in words for place, letter in enumerate(word) if letter == "'"
    }


# "somebody'd" loses its apostrophe in the official table
_CONTRACTIONS = _without_one_apostrophe(_SHORTENED.split()) | {"somebody'd": "somebodyd"}


def without_marks(text: str) -> str:
    """The text without punctuation: each mark becomes a blank, or nothing where it is next to a blank somewhere in the
    text, and all of them nothing where a comma stands between digits.

    Full stops go unless a digit follows; the official script passes a flag in place of a count, so only the first 32.

    Source: Goyal et al. 2017, arXiv:1612.00837; code GT-Vision-Lab/VQA@a013f00, vqaEval.py, processPunctuation.
    Differs: nothing.
    """
    joined = re.search(r"\d,\d", text) is not None
    found = text
    for mark in _MARKS:
        if mark in text:
            drop = joined or f"{mark} " in text or f" {mark}" in text
            found = found.replace(mark, "" if drop else " ")
    return re.sub(r"\.(?!\d)", "", found, count=32)


def plain_words(text: str) -> str:
    """Lower-case words between single blanks, without articles, zero to ten in digits, apostrophes put back.

    Source: as ``without_marks``, processDigitArticle.
    Differs: nothing.
    """
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=2**16)  # the answers of a data set repeat
def normalised(text: str) -> str:
    """The answer as VQA's script compares it."""
    return plain_words(without_marks(_one_line(text)))


@lru_cache(maxsize=2**16)
def submitted(text: str) -> str:
    """The answer as LLaVA hands it to VQA's server, and as TextVQA's evaluation compares it.

    Source: Singh et al. 2019, arXiv:1904.08920; code haotian-liu/LLaVA@c121f04, m4c_evaluator.py,
    EvalAIAnswerProcessor.
    Differs: nothing.
    """
    return normalised(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


@lru_cache(maxsize=2**16)
def strictly(text: str, answer_type: str) -> str:
    """The answer as a person takes it: a number in digits or as a word, a yes or a no, else ``normalised``.

    Args:
        answer_type: ``number``, ``yes/no`` or another.
    """
    if answer_type == "number" and (number := count(text)) is not None:
        return str(number)
    if answer_type == "yes/no" and (said := yes_or_no(text)) is not None:
        return "yes" if said else "no"
    return normalised(text)


def official_accuracy(answer: str, people: Sequence[tuple[str, Hashable]]) -> float:
    """``agreement`` in which an answer is compared as it stands where all people gave the same one, else normalised.

    Args:
        people: each one's answer and what tells it from the others' (its id and confidence): the official script
            takes two that are equal in all to be one person's.

    Source: as ``without_marks``.
    Differs: nothing.
    """
    raw = [(_one_line(text), mark) for text, mark in people]
    if len({text for text, _ in raw}) == 1:
        return agreement(_one_line(answer), raw)
    return agreement(normalised(answer), [(normalised(text), mark) for text, mark in people])


def agreement(answer: str, people: Sequence[tuple[str, Hashable]]) -> float:
    """The mean over the people of min(1, as many of the others as gave this answer / 3); in [0, 1].

    Args:
        people: each one's answer and a mark. Who has the same answer and mark is none of the others.

    Source: Antol et al. 2015, arXiv:1505.00468, section 4.2, with the mean over the sets of nine of the data's page.
    Differs: nothing.
    """
    if not people:
        raise ValueError("agreement: no person's answer to compare with; wanted at least one")
    alike = Counter(people)
    right = sum(text == answer for text, _ in people)
    others = [right - (alike[text, mark] if text == answer else 0) for text, mark in people]
    return sum(min(1.0, number / 3) for number in others) / len(people)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
