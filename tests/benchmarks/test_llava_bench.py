"""LLaVA-Bench's marks: by hand, in the official formats, by both ways with replies that cannot be read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.benchmarks.llava_bench import FAILED, LlavaBench, marks, marks_strict
from hialign.benchmarks.scores import numbers

ASKED = [
    {"question_id": n, "image": f"{n // 2}.jpg", "text": f"What is {n}?", "category": category}
    for n, category in enumerate(("conv", "detail", "conv", "complex"))
]
ANSWERS = {str(n): f"It is {n}." for n in range(4)}
REPLIES = ["8 6\nThe second is shorter.", "10 5", "4 6", "8, 9"]


def write(file: Path, entries: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(file)


def make(folder: Path, replies: list[dict[str, Any]] | None = None, **settings: Any) -> LlavaBench:
    file = None if replies is None else write(folder / "reviews.jsonl", replies)
    return LlavaBench(questions_file=write(folder / "questions.jsonl", ASKED), replies=file, **settings)


def reviews(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": n + 1, "question_id": n, "category": f"llava_bench_{ASKED[n]['category']}", "content": text}
        for n, text in enumerate(texts)
    ]


def test_a_failed_reply_enters_llava_s_means_and_not_rlhf_v_s(tmp_path: Path):
    """LLaVA: (8 10 4 -1) and (6 5 6 -1), so 16 of 21; RLHF-V: 17 of 22; strict, which reads "8, 9": 26 of 30."""
    llava = make(tmp_path, reviews(REPLIES)).score(ANSWERS)
    assert llava.numbers["all/relative"] == pytest.approx(100 * 16 / 21)
    assert (llava.numbers["all/model"], llava.numbers["all/reference"]) == (40, 52.5)
    assert llava.numbers["conv/relative"] == 100
    assert llava.numbers["complex/relative"] == 100, "-1 of -1"
    assert llava.flags == ["Replies without two marks, which enter the means as -1: 1 of 4, such as that to 3."]
    rlhf_v = make(tmp_path, reviews(REPLIES), rule="rlhf_v").score(ANSWERS)
    assert rlhf_v.numbers["all/relative"] == pytest.approx(100 * 17 / 22)
    assert np.isnan(rlhf_v.numbers["complex/relative"]), "nothing to share is no share of 0"
    assert rlhf_v.numbers["complex/relative_strict"] == 112.5
    assert rlhf_v.flags == [
        "Replies without two marks, which are left out: 1 of 4, such as that to 3.",
        "No reply gives these numbers, which are missing: complex/relative, complex/model, complex/reference.",
    ]
    for scores in (llava, rlhf_v):
        assert scores.numbers["all/relative_strict"] == pytest.approx(100 * 26 / 30)


def test_replies_that_all_have_marks_are_not_flagged(tmp_path: Path):
    assert make(tmp_path, reviews(["8 6"] * 4)).score(ANSWERS).flags == []
    told = make(tmp_path, reviews(["8 6", "8 11", "8 6", "8 6"])).score(ANSWERS).flags
    assert told == ["Replies that the strict numbers leave out: 1 of 4."]


@pytest.mark.parametrize(
    ("reply", "official", "strict"),
    [
        ("8 9", (8, 9), (8, 9)),
        ("8,9\nBecause", (8, 9), (8, 9)),
        ("7.5 8", (7.5, 8), (7.5, 8)),
        ("8, 9", FAILED, (8, 9)),
        ("8 9 ", FAILED, (8, 9)),
        ("\n8 9", FAILED, (8, 9)),
        ("8/10 9/10", FAILED, (8, 9)),
        ("Assistant 1: 8, Assistant 2: 9", FAILED, (8, 9)),
        ("Assistant 1: 8.\nAssistant 2: 9.", FAILED, None),
        ("8", FAILED, None),
        ("8 11", (8, 11), None),
        ("-1 -1", FAILED, None),
        ("eight nine", FAILED, None),
        ("", FAILED, None),
    ],
)
def test_what_the_rules_read(reply: str, official: tuple[float, float], strict: tuple[float, float] | None):
    assert (marks(reply), marks_strict(reply)) == (official, strict)


def test_stored_tuples_and_our_rows_in_any_order_give_what_reviews_give(tmp_path: Path):
    wanted = make(tmp_path, reviews(REPLIES)).score(ANSWERS).numbers
    rows = [{"id": str(n), "reply": text, "answer": ANSWERS[str(n)]} for n, text in enumerate(REPLIES)]
    random.Random(3).shuffle(rows)
    assert make(tmp_path, rows).score(ANSWERS).numbers == wanted
    tuples = [{"question_id": n, "tuple": list(marks(text))} for n, text in enumerate(REPLIES)]
    found = make(tmp_path, tuples).score(ANSWERS).numbers
    official = {name: value for name, value in wanted.items() if not name.endswith("_strict")}
    assert {name: found[name] for name in official} == official


def test_the_statistic_of_totals_is_the_numbers_and_takes_arrays(tmp_path: Path):
    bench = make(tmp_path, reviews(REPLIES))
    scores = bench.score(ANSWERS)
    assert numbers(scores.units, scores.statistic) == scores.numbers
    assert not np.isnan(list(scores.numbers.values())).any()
    assert bench.score(dict(reversed(ANSWERS.items()))).numbers == scores.numbers
    assert make(tmp_path, reviews(REPLIES), rule="rlhf_v").score(ANSWERS).statistic is not scores.statistic
    assert list(scores.units) == ["0.jpg", "1.jpg"], "an image with its questions"
    sums = {count: np.array([0.0, 2.0]) for unit in scores.units.values() for count in unit}
    for value in scores.statistic(sums).values():
        assert np.isnan(value).tolist() == [True, False]


def test_the_real_questions_and_contexts_make_requests(annotations: Path, tmp_path: Path):
    file = annotations / "llava" / "qa90_questions.jsonl"
    bench = LlavaBench(questions_file=str(file), context=str(annotations / "coco" / "caps_boxes_coco2014_val_80.jsonl"))
    asked = bench.questions()
    assert len(asked) == 90
    assert sorted({entry["category"] for entry in bench.entries.values()}) == ["complex", "conv", "detail"]
    said = {one.id: f"model {one.id}" for one in asked}
    references = write(tmp_path / "gpt4.jsonl", [{"question_id": one.id, "text": f"GPT {one.id}"} for one in asked])
    whole = LlavaBench(questions_file=str(file), context=bench.context, references=references)
    prompt = whole.requests(said)["0"]
    parts = ["suitcase: [", asked[0].text, "GPT 0", "model 0", "two numbers"]
    order = [prompt.index(part) for part in parts]
    assert order == sorted(order)
    with pytest.raises(ValueError, match="references: none given, wanted the reference's answers"):
        bench.requests(said)


def test_llava_s_and_our_answers_are_read(tmp_path: Path):
    lines = [{"question_id": int(name), "prompt": "x", "text": text} for name, text in ANSWERS.items()]
    assert make(tmp_path).read(write(tmp_path / "llava.jsonl", lines[::-1])) == ANSWERS
    rows = [{"id": name, "answer": text} for name, text in ANSWERS.items()]
    assert make(tmp_path).read(write(tmp_path / "ours.jsonl", rows)) == ANSWERS


def test_what_does_not_fit_is_named(tmp_path: Path):
    asked = r"replies: none given, .*answers/llava_bench.requests.jsonl: ask a judge, and set benchmark.llava_bench.rep"
    with pytest.raises(ValueError, match=asked):
        make(tmp_path).score(ANSWERS)
    with pytest.raises(ValueError, match="1 not answered: 3"):
        make(tmp_path, reviews(REPLIES[:3])).score(ANSWERS)
    with pytest.raises(ValueError, match="1 answered twice: 0; 1 not answered: 3"):
        make(tmp_path, [{"id": n, "reply": "8 9"} for n in (0, 1, 2, 0)]).score(ANSWERS)
    with pytest.raises(ValueError, match="1 of no question: 9"):
        make(tmp_path, reviews(REPLIES)).score(ANSWERS | {"9": "x"})
    with pytest.raises(ValueError, match="rule: got 'gpt', wanted one of llava, rlhf_v"):
        make(tmp_path, rule="gpt")
    with pytest.raises(ValueError, match=r"no such file; wanted LLaVA-Bench's questions \(LLaVA's playground"):
        LlavaBench(questions_file=str(tmp_path / "none.jsonl")).questions()


def test_replies_that_none_can_read_give_no_strict_numbers(tmp_path: Path):
    scores = make(tmp_path, reviews(["good"] * 4)).score(ANSWERS)
    assert scores.numbers["all/relative"] == 100, "-1 of -1, as the official script has it"
    assert all(np.isnan(value) for name, value in scores.numbers.items() if name.endswith("_strict"))
    assert scores.flags[-1] == "No reply can be read strictly: the strict numbers are missing."


def test_a_box_without_its_category_is_named(tmp_path: Path):
    references = write(tmp_path / "gpt4.jsonl", [{"question_id": n, "text": "x"} for n in range(4)])
    boxes = {"captions": ["A dog."], "instances": [{"category": "dog", "bbox": [1, 2]}, {"bbox": [1, 2]}]}
    context = write(tmp_path / "boxes.jsonl", [{"image": f"{n}.jpg", **boxes} for n in range(2)])
    with pytest.raises(ValueError, match=r"boxes.jsonl: image 0.jpg: instances, 2: no category; wanted what the judge"):
        make(tmp_path, references=references, context=context).requests(ANSWERS)


def test_questions_without_a_field_or_that_come_twice_are_named(tmp_path: Path):
    bench = make(tmp_path)
    write(tmp_path / "questions.jsonl", [ASKED[0], {"question_id": 1, "image": "0.jpg", "category": "conv"}])
    with pytest.raises(ValueError, match=r"questions.jsonl: question 2: no text; wanted LLaVA-Bench's questions"):
        bench.questions()
    write(tmp_path / "questions.jsonl", [ASKED[0], ASKED[0]])
    with pytest.raises(ValueError, match=r"questions.jsonl: question 2: 0 comes twice; get the file again"):
        LlavaBench(questions_file=bench.questions_file).questions()
