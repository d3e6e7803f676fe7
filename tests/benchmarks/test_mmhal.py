"""MMHal-Bench's ratings: by hand, and those of the official scripts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.benchmarks.mmhal import Mmhal, rating, rating_strict, usefulness
from hialign.benchmarks.scores import Question, numbers

Official = Callable[[str], Any]


def template(ids: list[str], types: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "question_type": kind,
            "question_topic": "indoor",
            "image_id": name,
            "image_src": f"https://host/{name}.jpg",
            "image_content": ["Cat", "Tree"],
            "question": f"What is in {name}?",
            "gt_answer": "A cat.",
            "model_answer": "",
        }
        for name, kind in zip(ids, types, strict=True)
    ]


def write(file: Path, content: Any) -> str:
    lines = "".join(json.dumps(one) + "\n" for one in content) if file.suffix == ".jsonl" else json.dumps(content)
    file.write_text(lines)
    return str(file)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a template of four questions of two types."""
    write(tmp_path / "response_template.json", template(list("abcd"), ["attribute", "other"] * 2))
    return tmp_path


def make(root: Path, replies: Any = None, **settings: Any) -> Mmhal:
    file = None if replies is None else write(root / "replies.json", replies)
    return Mmhal(root=str(root), replies=file, **settings)


@pytest.mark.parametrize(("rule", "whose"), [("llava_rlhf", "halva_llava_rlhf"), ("chip", "chip")])
def test_the_official_scores(official: Official, tmp_path: Path, rule: Any, whose: str):
    fixture = official("mmhal/score_parsing.json")
    ids, types = fixture["image_ids"], fixture["question_type_of_item_i"]
    write(tmp_path / "response_template.json", template(ids, types))
    scores = make(tmp_path, fixture["judge_responses"], rule=rule).score(dict.fromkeys(ids, "answer"))
    wanted, found = fixture["expected"][whose], scores.numbers
    assert [row["score"] or 0 for row in scores.rows] == wanted["scores"]
    assert found["average_score"] == wanted["average_score"]
    assert round(found["average_score"], 3 if rule == "chip" else 2) == wanted["average_score_printed"]
    per_type = [round(found[f"{kind}/average_score"], 2) for kind in types[:8]]
    assert per_type == wanted["per_type" if rule == "chip" else "per_type_printed"]
    if rule == "chip":
        assert found["hallucination_rate"] == wanted["hallucination_rate_percent"]
        assert found["informativeness"] == wanted["informativeness_percent"]
    else:
        assert found["hallucination_rate"] == wanted["hallucination_rate"]
        assert [not right for right in scores.correct.values()] == wanted["hallucination"]
        theirs = fixture["expected"]["rlhf_v"]
        assert [usefulness(row["score"] or 0, rule) for row in scores.rows] == theirs["informativeness_each"]
        assert found["informativeness"] == theirs["informativeness_percent"]


@pytest.mark.parametrize("stored", ["responses", "with image_id, shuffled", "ours"])
def test_stored_responses_and_rows_give_what_texts_give(official: Official, tmp_path: Path, stored: str):
    fixture = official("mmhal/score_parsing.json")
    ids, texts = fixture["image_ids"], fixture["judge_responses"]
    write(tmp_path / "response_template.json", template(ids, fixture["question_type_of_item_i"]))
    rows: list[dict[str, Any]] = [{"choices": [{"message": {"content": text}}]} for text in texts]
    if stored == "ours":
        rows = [{"id": name, "reply": text} for name, text in zip(ids, texts, strict=True)]
    elif stored != "responses":
        rows = [row | {"image_id": name} for name, row in zip(ids, rows, strict=True)]
    if stored != "responses":
        random.Random(0).shuffle(rows)
    answers = dict.fromkeys(ids, "answer")
    assert make(tmp_path, rows).score(answers).numbers == make(tmp_path, texts).score(answers).numbers


def test_the_numbers_by_hand(small: Path):
    """Ratings 6, 2, 3 and none, which counts as 0: mean 11/4, two below 3; worth 3, 2, 0, 0 of 3; strict 11/3."""
    scores = make(small, ["Rating: 6", "Rating: 2", "Rating: 3", "I cannot tell"]).score(dict.fromkeys("abcd", "x"))
    found = scores.numbers
    assert (found["average_score"], found["hallucination_rate"]) == (11 / 4, 1 / 2)
    assert found["informativeness"] == pytest.approx(100 * 5 / 12)
    assert (found["attribute/average_score"], found["other/average_score"]) == (9 / 2, 1.0)
    assert found["average_score_strict"] == pytest.approx(11 / 3)
    assert (found["hallucination_rate_strict"], found["unclear_strict"]) == (pytest.approx(1 / 3), 1 / 4)
    assert "count as 0, as officially: 1 of 4, such as that to d." in scores.flags[0]
    chip = make(small, ["Rating: 6", "Rating: 2", "Rating: 3", "?"], rule="chip").score(dict.fromkeys("abcd", "x"))
    assert (chip.numbers["hallucination_rate"], chip.numbers["informativeness"]) == (50, 50)


def test_replies_without_ids_are_in_the_template_s_order_whatever_the_answers_are_in(small: Path):
    mmhal = make(small, ["Rating: 6", "Rating: 2", "Rating: 3", "Rating: 0"])
    forth, back = mmhal.score({name: name for name in "abcd"}), mmhal.score({name: name for name in "dcba"})
    assert (forth.numbers, forth.rows) == (back.numbers, back.rows)


def test_the_statistic_of_totals_is_the_numbers_and_takes_arrays(small: Path):
    for rule in ("llava_rlhf", "chip"):
        scores = make(small, ["Rating: 6", "Rating:2", "Rating: 3", ""], rule=rule).score(dict.fromkeys("abcd", "x"))
        assert numbers(scores.units, scores.statistic) == scores.numbers
        sums = {name: np.array([0.0, 2.0]) for unit in scores.units.values() for name in unit}
        found = scores.statistic(sums)
        assert all(value.shape == (2,) and np.isfinite(value[1]) for value in found.values())
        strict = {"average_score_strict", "hallucination_rate_strict"}
        assert {name for name, value in found.items() if np.isnan(value[0])} == strict


def test_replies_that_none_can_read_give_no_strict_numbers(small: Path):
    scores = make(small, ["I cannot tell"] * 4).score(dict.fromkeys("abcd", "x"))
    assert (scores.numbers["average_score"], scores.numbers["hallucination_rate"]) == (0, 1)
    assert np.isnan([scores.numbers[f"{name}_strict"] for name in ("average_score", "hallucination_rate")]).all()
    assert scores.numbers["unclear_strict"] == 1
    assert scores.flags[-1] == "No reply can be read strictly: the strict numbers are missing."


@pytest.mark.parametrize(
    ("reply", "llava_rlhf", "chip", "strict"),
    [
        ("Rating: 4", 4, 4, 4),
        ("**Rating**: 5", None, 5, 5),
        ("Rating:5", None, None, 5),
        ("The rating is 4.", None, None, 4),
        ("Rating: **4**", None, None, 4),
        ("Rating (0-6): 5", None, None, 5),
        ("Rating - 4", None, None, 4),
        ("Rating: 4/6", 4, 4, 4),
        ("Rating: 10", 1, 1, None),
        ("Rating: 3.5", 3, 3, None),
        ("Rating: -1", None, None, None),
        ("Rating: 2. Not rating: 5", None, None, None),
        ("Rating: 4\nRating: 4", 4, 4, 4),
        ("Ratings vary", None, None, None),
    ],
)
def test_what_the_rules_read(reply: str, llava_rlhf: int | None, chip: int | None, strict: int | None):
    assert (rating(reply), rating(reply, "chip"), rating_strict(reply)) == (llava_rlhf, chip, strict)


def test_answers_of_four_formats_are_read(small: Path):
    wanted = {name: f"It is {name}." for name in "abcd"}
    filled = [
        entry | {"model_answer": f"It is {entry['image_id']}."} for entry in template(list("abcd"), ["other"] * 4)
    ]
    formats = {
        "filled.json": filled[::-1],
        "chip.jsonl": [{"image": name, "response": f"Assistant: {text}"} for name, text in wanted.items()],
        "llava.jsonl": [
            {"question_id": n, "prompt": f"What is in {name}?", "text": text}
            for n, (name, text) in enumerate(wanted.items())
        ],
        "ours.jsonl": [{"id": name, "answer": text} for name, text in reversed(wanted.items())],
    }
    for name, entries in formats.items():
        assert make(small).read(write(small / name, entries)) == wanted, name


def test_the_judge_is_told_contents_question_reference_and_answer(small: Path):
    mmhal = make(small)
    asked = mmhal.requests({name: f"{{{name}}} said" for name in "abcd"})
    order = [asked["b"].index(part) for part in ("Cat, Tree", "What is in b?", "A cat.", "{b} said", "Rating: N")]
    assert list(asked) == list("abcd")
    assert order == sorted(order)
    assert mmhal.questions()[0] == Question(id="a", image="a.jpg", text="What is in a?")


def test_replies_to_other_answers_are_refused(small: Path):
    rows = [{"id": name, "reply": "Rating: 3", "answer": "a dog"} for name in "abcd"]
    with pytest.raises(ValueError, match="a is a reply to 'a dog', and the answer is 'a cat'"):
        make(small, rows).score(dict.fromkeys("abcd", "a cat"))


@pytest.mark.parametrize(
    ("replies", "told"),
    [
        (["Rating: 3"] * 3, "3 answers without ids to 4 questions"),
        ([{"id": name, "reply": ""} for name in "abca"], "1 answered twice: a; 1 not answered: d"),
        ([{"id": name, "reply": ""} for name in "abcde"], "1 of no question: e"),
        (
            [{"id": name, "text": "Rating: 3"} for name in "abcd"],
            "a: no judge's reply; wanted reply, content or choices",
        ),
        ([{"id": name, "choices": [{}]} for name in "abcd"], "a: no judge's reply"),
    ],
)
def test_replies_that_do_not_fit_are_named(small: Path, replies: Any, told: str):
    with pytest.raises(ValueError, match=told):
        make(small, replies).score(dict.fromkeys("abcd", "x"))


def test_missing_answers_replies_files_and_rules_are_named(small: Path):
    with pytest.raises(ValueError, match="1 not answered: d"):
        make(small, ["Rating: 3"] * 4).score(dict.fromkeys("abc", "x"))
    with pytest.raises(ValueError, match=r"none given, .*answers/mmhal.requests.jsonl: .*benchmark.mmhal.replies=FILE"):
        make(small).score(dict.fromkeys("abcd", "x"))
    with pytest.raises(ValueError, match="rule: got 'halva', wanted one of llava_rlhf, chip"):
        make(small, rule="halva")
    entries = template(["a"], ["other"])
    for change, told in (
        ({"image_content": [1]}, r"a: image_content is \[1\], no list of texts; wanted MMHal-Bench's template"),
        ({"question": None}, "question 1: question is None, no text; wanted MMHal-Bench's template"),
    ):
        write(small / "response_template.json", [entries[0] | change])
        with pytest.raises(ValueError, match=told):
            make(small).questions()
    with pytest.raises(ValueError, match="no such file; wanted MMHal-Bench's template"):
        Mmhal(root=str(small), file="none.json").questions()
