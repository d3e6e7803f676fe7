"""POPE's rule and its numbers, by hand."""

from __future__ import annotations

import pytest

from hialign.benchmarks.pope import says_yes, score


@pytest.mark.parametrize("answer", ["No", "no, there is none", "It is not there.", "Yes, there is no doubt", "no. Yes"])
def test_a_first_sentence_with_no_or_not_in_it_is_a_no(answer: str):
    assert not says_yes(answer)


@pytest.mark.parametrize("answer", ["yes", "", "NO", "No!", "none", "cannot", "\nNo", "Well. No"])
def test_all_else_is_a_yes_as_in_the_official_script(answer: str):
    assert says_yes(answer)


def test_the_numbers_by_hand():
    """Said yes, yes, no, no, yes of yes, no, no, yes, yes: two hits of three yes said and of three true."""
    numbers = score([("yes", True), ("yes", False), ("no", False), ("no", True), ("yes", True)])
    third = pytest.approx(2 / 3)
    assert numbers == {"accuracy": 3 / 5, "precision": third, "recall": third, "f1": third, "yes_ratio": 3 / 5}


def test_a_model_that_never_says_yes_has_shares_of_nothing():
    assert score([("no", True), ("no", False)]) == {
        "accuracy": 0.5,
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "yes_ratio": 0.0,
    }


def test_no_answer_is_an_error():
    with pytest.raises(ValueError, match="no answer"):
        score([])
