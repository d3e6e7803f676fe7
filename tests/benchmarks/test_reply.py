"""The second reading takes answers as a person does, and says None where a person could not tell."""

from __future__ import annotations

import pytest

from hialign.benchmarks.reply import count, option, yes_or_no


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        *[(text, True) for text in ("Yes", "yes.", "**Yes**", "(Yes)", "YES!", "Yes, there is no doubt", "\nyes")],
        *[(text, False) for text in ("No", "NO", "no!", '"No"', "Nope", "None", "No\nThe image ...", "Well. No")],
        *[(text, False) for text in ("There isn't one.", "There isn\u2019t one", "I cannot see a dog.", "Not really")],
        *[(text, True) for text in ("There is a dog.", "It is red.", "I would say yes")],
        *[(text, None) for text in ("", "?", "a dog", "It could be yes or no", "Unknown", "eyes", "noun", "know")],
    ],
)
def test_yes_and_no(answer: str, read: bool | None):
    assert yes_or_no(answer) is read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("2", 2),
        ("two", 2),
        ("There are Three dogs.", 3),
        ("3 dogs, three of them", 3),
        ("12.", 12),
        ("2 or 3", None),
        ("none", None),
        ("3.5", None),
        ("50%", None),
        ("someone", None),
        ("", None),
    ],
)
def test_numbers(answer: str, read: int | None):
    assert count(answer) == read


CHOICES = ["a dog", "a cat", "a dog and a cat"]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        *[(text, 1) for text in ("B", "b", "B.", "(B)", "B)", " B", "B. a cat", "**B**", "The answer is B")],
        *[(text, 1) for text in ("Answer: (b).", "the correct option is B because ...", "a cat", "It is a cat.")],
        ("a dog and a cat", 2),
        ("D", None),
        ("A or B", None),
        ("a dog, or a cat", None),
        ("", None),
        ("The answer is A. The answer is B.", None),
    ],
)
def test_options(answer: str, read: int | None):
    assert option(answer, CHOICES) == read
