"""ScienceQA's accuracies: by hand, and those of LLaVA's script and of ScienceQA's own tool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.benchmarks.scienceqa import LETTERS, ScienceQA, letter
from hialign.benchmarks.scores import Scores, numbers

Official = Callable[[str], Any]


def make(folder: Path, problems: dict[str, Any], **settings: Any) -> ScienceQA:
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems), "val": []}))
    return ScienceQA(root=str(folder), **settings)


def problem(answer: int, **changes: Any) -> dict[str, Any]:
    plain = {"question": "Which one?", "choices": ["a red  dog", "a cat", "a cow"], "hint": "", "image": None}
    return plain | {"grade": "grade2", "subject": "natural science", "topic": "biology", "answer": answer} | changes


@pytest.fixture
def scored(official: Official, tmp_path: Path) -> tuple[dict[str, Any], Scores]:
    """The fixture of LLaVA's script and what we make of its answers, of which five are missing."""
    fixture = official("scienceqa/llava_eval_science_qa.json")
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in fixture["predictions"]))
    bench = make(tmp_path, fixture["problems"], missing="wrong")
    (tmp_path / "pid_splits.json").write_text(json.dumps(fixture["pid_splits"]))
    return fixture, bench.score(bench.read(str(tmp_path / "answers.jsonl")))


def test_the_official_scores_of_llava_s_script(scored: tuple[dict[str, Any], Scores]):
    fixture, scores = scored
    wanted, texts = fixture["expected"], {one["question_id"]: one["text"] for one in fixture["predictions"]}
    assert (scores.numbers["accuracy"], sum(scores.correct.values())) == (wanted["acc"], wanted["correct"])
    assert round(scores.numbers["img_accuracy"], 2) == wanted["img_accuracy_2dp"]
    assert {name for name, right in scores.correct.items() if right} == set(wanted["correct_ids"])
    found = {row["id"]: -1 if row["chosen"] is None else row["chosen"] for row in scores.rows}
    assert found == wanted["results"]
    parsed = wanted["parsed_ans"]
    assert {name: letter(texts.get(name, "FAILED")) or "FAILED" for name in parsed} == parsed
    assert scores.flags == ["Questions without an answer, which count as wrong: 5 of 90."]


def test_the_official_report_by_category(official: Official, scored: tuple[dict[str, Any], Scores]):
    found = scored[1].numbers | {"acc_average": scored[1].numbers["accuracy"]}
    wanted = official("scienceqa/official_category_accuracy.json")["expected"]
    assert {name: f"{found[name]:.2f}" if name in found else -1 for name in wanted} == wanted


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("A", "A"),
        ("B. green", "B"),
        ("The answer is C.", "C"),
        ("The answer is Z!", "Z"),
        ("So The answer is B, because", "B"),
        ("The answer is A. The answer is B.", None),
        ("AB", None),
        ("F", None),
        ("a", None),
        ("A.", None),
        ("(A)", None),
        (" A", None),
        ("The answer is B", None),
        ("", None),
    ],
)
def test_the_letter_that_is_read(answer: str, read: str | None):
    assert letter(answer) == read
    assert LETTERS == "ABCDE"


FOUR = {
    "7": problem(0, hint="A hint.", image="image.png"),
    "8": problem(1, subject="social science", grade="grade11", topic="civics"),
    "9": problem(2, image="image.png"),
    "10": problem(0, subject="language science", topic="verbs", hint="A hint."),
}


def test_the_numbers_by_hand(tmp_path: Path):
    """Officially A and B are right, "(C)" fails and D runs past the choices; strictly (C) is right, D unclear."""
    scores = make(tmp_path, FOUR).score({"7": "A", "8": "B", "9": "(C)", "10": "D"})
    found = scores.numbers
    assert (found["accuracy"], found["img_accuracy"]) == (50, 50)
    assert (found["accuracy_strict"], found["img_accuracy_strict"], found["unclear_strict"]) == (75, 100, 0.25)
    assert (found["acc_natural"], found["acc_social"], found["acc_language"]) == (50, 100, 0)
    assert (found["acc_has_text"], found["acc_has_image"], found["acc_no_context"]) == (50, 50, 100)
    assert (found["acc_grade_1_6"], found["acc_grade_7_12"]) == (pytest.approx(100 / 3), 100)
    assert (found["acc_biology"], found["acc_civics"], found["acc_verbs"]) == (50, 100, 0)
    assert scores.flags == []


def test_the_statistic_of_totals_is_the_numbers_and_takes_arrays(tmp_path: Path):
    bench = make(tmp_path, FOUR)
    scores = bench.score({"7": "A", "8": "B", "9": "(C)", "10": "D"})
    assert numbers(scores.units, scores.statistic) == scores.numbers
    assert bench.score({"10": "D", "9": "(C)", "8": "B", "7": "A"}).numbers == scores.numbers
    sums = {count: np.array([0.0, 2.0]) for unit in scores.units.values() for count in unit}
    found = scores.statistic(sums)
    assert all(value.shape == (2,) and np.isfinite(value[1]) for value in found.values())
    assert {name for name, value in found.items() if np.isnan(value[0])} == {"img_accuracy", "img_accuracy_strict"}


def test_questions_are_asked_as_llava_asks_them(tmp_path: Path):
    asked = make(tmp_path, FOUR, images="test").questions()
    assert [one.image for one in asked] == ["test/7/image.png", None, "test/9/image.png", None]
    assert asked[0].text == (
        "Context: A hint.\nQuestion: Which one?\nOptions: (A) a red dog (B) a cat (C) a cow\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert asked[1].text.startswith("Context: N/A\n")


def test_llava_s_lines_result_files_and_our_answers_are_read(tmp_path: Path):
    bench, wanted = make(tmp_path, FOUR), {"7": "A", "8": "B", "9": "C", "10": "The answer is D."}
    formats = {
        "llava.json": [{"question_id": name, "prompt": "x", "text": text} for name, text in reversed(wanted.items())],
        "result.json": {"acc": 75.0, "results": {"7": 0}, "outputs": wanted},
        "lmms.json": [{"doc": {"question": "Which one?"}, "filtered_resps": [text]} for text in wanted.values()],
        "ours.json": [{"id": name, "answer": text} for name, text in wanted.items()],
    }
    for name, content in formats.items():
        (tmp_path / name).write_text(json.dumps(content))
        assert bench.read(str(tmp_path / name)) == wanted, name


def test_what_does_not_fit_is_named(tmp_path: Path):
    bench = make(tmp_path, FOUR)
    answers = {"7": "A", "8": "B", "9": "C"}
    with pytest.raises(ValueError, match="1 not answered: 10"):
        bench.score(answers)
    for missing in ("error", "wrong"):
        with pytest.raises(ValueError, match="1 of no question: 11"):
            make(tmp_path, FOUR, missing=missing).score(answers | {"10": "A", "11": "A"})
    file = tmp_path / "twice.json"
    file.write_text(json.dumps([{"id": name, "answer": "A"} for name in ("7", "7", "8", "12")]))
    with pytest.raises(ValueError, match=r"1 answered twice: 7; 1 of no question: 12; 2 not answered: 9, 10"):
        bench.read(str(file))
    with pytest.raises(ValueError, match=r"1 answered twice: 7; 1 of no question: 12"):
        make(tmp_path, FOUR, missing="wrong").read(str(file))
    with pytest.raises(ValueError, match="split: got 'dev', wanted one of test, val"):
        make(tmp_path, FOUR, split="dev").questions()
    with pytest.raises(ValueError, match="missing: got 'skip', wanted error or wrong"):
        make(tmp_path, FOUR, missing="skip")
    with pytest.raises(ValueError, match=r"pid_splits.json: no such file; wanted pid_splits.json of ScienceQA's data"):
        ScienceQA(root=str(tmp_path / "none")).questions()


def test_without_a_question_with_an_image_there_is_no_accuracy_of_images(tmp_path: Path):
    scores = make(tmp_path, {"8": FOUR["8"]}).score({"8": "B"})
    assert scores.numbers["accuracy"] == 100
    assert np.isnan([scores.numbers[f"img_accuracy{rule}"] for rule in ("", "_strict")]).all()
    assert scores.flags == ["No question with an image has an answer: img_accuracy is missing."]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"grade": "kinder"}, "problem 7: grade is 'kinder'; wanted choices"),
        ({"answer": 3}, "problem 7: answer is 3; wanted choices"),
        ({"answer": "A"}, "problem 7: answer is 'A'; wanted choices"),
        ({"image": 3}, "problem 7: image is 3; wanted choices"),
        ({"subject": ["x"]}, r"problem 7: subject is \['x'\]; wanted choices"),
        ({"choices": "AB"}, "problem 7: choices is 'AB'; wanted choices"),
    ],
)
def test_what_is_wrong_with_a_problem_is_named(tmp_path: Path, change: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=f"problems.json: {told}"):
        make(tmp_path, {"7": problem(0) | change}).score({"7": "A"})


def test_problems_without_a_field_and_files_of_another_kind_are_named(tmp_path: Path):
    lacking = {field: value for field, value in problem(0).items() if field not in ("grade", "hint")}
    with pytest.raises(ValueError, match=r"problems.json: problem 7: no hint, grade; wanted a problem of ScienceQA's"):
        make(tmp_path, {"7": lacking}).questions()
    (tmp_path / "pid_splits.json").write_text('{"test": 7}')
    with pytest.raises(ValueError, match=r"pid_splits.json: test is no list; wanted one of ids of ScienceQA's data"):
        ScienceQA(root=str(tmp_path)).questions()
    (tmp_path / "problems.json").write_text("[]")
    with pytest.raises(ValueError, match=r"problems.json: is a list; wanted the object of ScienceQA's data"):
        ScienceQA(root=str(tmp_path)).questions()
