"""POPE: yes-or-no questions after things that are in an image, and after things that are not."""

from __future__ import annotations

from collections.abc import Iterable

CATEGORIES = ("random", "popular", "adversarial")  # how the things that are not there were chosen


def says_yes(answer: str) -> bool:
    """Whether POPE's rule reads ``answer`` as a yes: all that does not say no in its first sentence.

    The sentence ends at the first full stop, commas are dropped, and of the words between single blanks one is exactly
    "No", "no" or "not". So "NO", "none" and an empty answer are a yes.

    Source: Li et al. 2023, arXiv:2305.10355; code RUCAIBox/POPE@3df3ba1, evaluate.py.
    Differs: nothing.
    """
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def score(pairs: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """``accuracy``, ``precision``, ``recall``, ``f1`` of the yes, and ``yes_ratio``, of answers with the truth.

    Fractions, not percent. A ValueError when there is no answer.

    Source: as ``says_yes``.
    Differs: where theirs divides by zero, as for a model that never says yes, the share is 0.
    """
    read = [(says_yes(answer), truth) for answer, truth in pairs]
    if not read:
        raise ValueError("pope: no answer; wanted at least one")
    yes, true = sum(said for said, _ in read), sum(truth for _, truth in read)
    hits = sum(said and truth for said, truth in read)
    precision, recall = _share(hits, yes), _share(hits, true)
    return {
        "accuracy": sum(said == truth for said, truth in read) / len(read),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": yes / len(read),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
