"""What holds of CHAIR, Object HalBench and AMBER alike."""

from __future__ import annotations

import numpy as np
import pytest

from hialign.benchmarks import amber, chair, objhal
from hialign.benchmarks.scores import Statistic

CHAIR = ("captions", "hallucinated", "mentions", "false", "found", "there", "words")
OBJHAL = ("answers", "naming", "hallucinated", "mentions", "false", "found", "there", "words")
AMBER = (
    *(f"g/{name}" for name in ("nouns", "false", "truth", "covered", "tempting", "fallen_for", "answers", "clean")),
    *(
        f"{task}/{name}{rule}"
        for task in amber.PARTS["d"]
        for name in ("answers", "right", "no", "says_no", "right_no")
        for rule in ("", "_strict")
    ),
)


@pytest.mark.parametrize(
    ("statistic", "names"),
    [(chair.statistic, CHAIR), (objhal.statistic, OBJHAL), (amber.statistic, AMBER)],
    ids=["chair", "objhal", "amber"],
)
def test_a_statistic_of_many_sums_is_that_of_each_and_defined_at_nothing(statistic: Statistic, names: tuple[str, ...]):
    drawn = np.random.default_rng(0).integers(1, 50, size=(len(names), 4)).astype(float)
    drawn[:, 0] = 0
    many = statistic(dict(zip(names, drawn, strict=True)))
    for draw in range(4):
        one = statistic(dict(zip(names, drawn[:, draw], strict=True)))
        assert {name: values[draw] for name, values in many.items()} == {
            name: float(value) for name, value in one.items()
        }
    assert all(np.isfinite(values).all() for values in many.values())
