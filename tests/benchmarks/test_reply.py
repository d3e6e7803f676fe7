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
        *[(text, None) for text in ("Yes and no", "I cannot tell", "I'm not sure", "It is unclear whether it is one")],
        *[(text, None) for text in ("It is impossible to tell", "It cannot be determined", "I don\u2019t know")],
        *[(text, False) for text in ("That is false", "It is incorrect.")],
        *[(text, True) for text in ("No doubt, there is a dog", "Without any doubt it is true")],
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
        ("twenty-one", 21),
        ("There are ninety.", 90),
        ("two hundred", None),
        ("no one", None),
        ("the red one", None),
        ("one", 1),
        ("There is one dog, the big one.", 1),
        ("5-6", None),
        ("5 \u2013 6", None),
        ("1,000", None),
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
        *[(text, 0) for text in ("The answer is a dog", "Answer: a dog", "A", "a", "The answer is A", "answer is a.")],
        ("The choice is a bird", None),
        ("B) or C)", None),
        ("The answer is B. (A is a dog.)", 1),
        ("D", None),
        ("A or B", None),
        ("a dog, or a cat", None),
        ("", None),
        ("The answer is A. The answer is B.", None),
    ],
)
def test_options(answer: str, read: int | None):
    assert option(answer, CHOICES) == read
