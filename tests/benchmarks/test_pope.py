"""POPE's rule and its numbers: by hand, and those of the official scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hialign.benchmarks.pope import CATEGORIES, Pope, says_yes, score

Official = Callable[[str], Any]
LLAVA = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1 score",
    "yes_ratio": "Yes ratio",
}
NAMES = {"accuracy": "acc", "precision": "precision", "recall": "recall", "f1": "f1", "yes_ratio": "yes_ratio"}


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
    nothing = dict.fromkeys(("precision", "recall", "f1", "yes_ratio"), 0.0)
    assert score([("no", True), ("no", False)]) == {"accuracy": 0.5, **nothing}


def test_no_answer_is_an_error():
    with pytest.raises(ValueError, match="no answer"):
        score([])


def write(folder: Path, name: str, entries: list[dict[str, Any]]) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


@pytest.fixture
def small(tmp_path: Path) -> Pope:
    """Two images with two questions each, in every category."""
    asked = [
        {"question_id": n, "image": f"{n // 3}.jpg", "text": f"Is there a {word} in the image?", "label": label}
        for n, word, label in ((1, "dog", "yes"), (2, "cat", "no"), (3, "cup", "yes"), (4, "car", "no"))
    ]
    for category in CATEGORIES:
        write(tmp_path / "pope", f"coco_pope_{category}.json", asked)
    return Pope(root=str(tmp_path / "pope"))


def test_the_official_scores_from_official_files(official: Official, tmp_path: Path):
    fixture = official("pope/official_evaluate.json")
    for category in CATEGORIES:
        write(tmp_path / "q", f"coco_pope_{category}.json", fixture[category]["questions"])
        write(tmp_path / "a", f"my_{category}_answers.jsonl", fixture[category]["answers"])
    pope = Pope(root=str(tmp_path / "q"))
    scores = pope.score(pope.read(str(tmp_path / "a")))
    for category in CATEGORIES:
        wanted = fixture[category]["expected"]
        for name, theirs in NAMES.items():
            assert scores.numbers[f"{category}/{name}"] == pytest.approx(wanted[theirs], abs=1e-12)
        totals = {
            name: sum(unit.get(f"{category}/{name}", 0) for unit in scores.units.values()) for name in ("tp", "fn")
        }
        assert totals == {"tp": wanted["TP"], "fn": wanted["FN"]}
    assert scores.flags == []


def test_the_official_scores_from_llava_s_flow(official: Official, tmp_path: Path):
    fixture, questions = official("pope/llava_eval_pope.json"), official("pope/official_evaluate.json")
    for category in CATEGORIES:
        write(tmp_path, f"coco_pope_{category}.json", questions[category]["questions"])
    asked = write(tmp_path, "llava_pope_test.jsonl", fixture["question_file"])
    said = write(tmp_path, "answers.jsonl", fixture["result_file"])
    pope = Pope(root=str(tmp_path), llava_questions=str(asked))
    numbers = pope.score(pope.read(str(said))).numbers
    for category in CATEGORIES:
        wanted = fixture["expected"][category]
        for name, theirs in LLAVA.items():
            assert numbers[f"{category}/{name}"] == pytest.approx(wanted[theirs], abs=1e-12)


def test_the_official_table_of_answers(official: Official):
    table = official("pope/parse_table.json")
    assert [(row["answer"], says_yes(row["answer"])) for row in table] == [
        (row["answer"], row["parsed"] == "yes") for row in table
    ]


def test_where_the_official_script_divides_by_zero_there_is_a_number_and_a_flag(official: Official, tmp_path: Path):
    for name, case in official("pope/degenerate.json").items():
        asked = [
            {"question_id": n, "image": "a.jpg", "text": f"Is there {n}?", "label": label}
            for n, label in enumerate(case["labels"])
        ]
        write(tmp_path / name, "coco_pope_random.json", asked)
        pope = Pope(root=str(tmp_path / name), categories=["random"])
        scores = pope.score({f"random/{n}": answer for n, answer in enumerate(case["answers"])})
        assert bool(scores.flags) == ("raises" in case["expected"]), name
        if scores.flags:
            assert scores.numbers["random/f1"] == 0
        else:
            assert scores.numbers["random/f1"] == pytest.approx(case["expected"]["f1"], abs=1e-12)


def test_both_versions_of_the_real_files_are_read(annotations: Path):
    pope = Pope(root=str(annotations / "pope"))
    truth = {name: entry["label"] for name, entry in pope.entries.items()}
    assert len(pope.questions()) == len(truth) == 9000
    numbers = pope.score(truth).numbers
    assert {numbers[f"{category}/f1"] for category in CATEGORIES} == {numbers["mean/f1_strict"]} == {1.0}


def test_the_strict_rule_stands_beside_the_official_one(small: Pope):
    answers = {f"{category}/{n}": text for category in CATEGORIES for n, text in enumerate(["Yes", "NO", "?", "No"], 1)}
    numbers = small.score(answers).numbers
    assert numbers["random/accuracy"] == 3 / 4, "NO and ? are a yes by the official rule: right, wrong, right, right"
    assert numbers["random/accuracy_strict"] == 3 / 4, "right, right, unclear, right"
    assert numbers["random/unclear_strict"] == 1 / 4
    assert (numbers["random/yes_ratio"], numbers["random/yes_ratio_strict"]) == (3 / 4, 1 / 4)


def test_answers_with_a_category_are_joined_by_ids_in_any_order(small: Pope, tmp_path: Path):
    entries = [
        {"doc_id": n, "doc": {"question_id": str(n % 4 + 1), "category": category}, "filtered_resps": ["no"]}
        for n, category in enumerate(category for category in CATEGORIES for _ in range(4))
    ]
    file = write(tmp_path, "lmms.jsonl", entries[::-1])
    assert small.read(str(file)) == dict.fromkeys(small.entries, "no")


def test_our_own_answers_are_read(small: Pope, tmp_path: Path):
    answers = {name: f"yes {name}" for name in small.entries}
    file = write(tmp_path, "pope.jsonl", [{"id": name, "answer": text} for name, text in reversed(answers.items())])
    assert small.read(str(file)) == answers


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda answers: answers.pop("random/2"), "1 not answered: random/2"),
        (lambda answers: answers.update({"random/9": "no"}), "1 of no question: random/9"),
    ],
)
def test_missing_and_unknown_answers_are_named(small: Pope, change: Callable[[dict[str, str]], object], told: str):
    answers = dict.fromkeys(small.entries, "no")
    change(answers)
    with pytest.raises(ValueError, match=told):
        small.score(answers)


def test_llava_s_answers_without_its_question_file_say_what_is_wanted(small: Pope, tmp_path: Path):
    file = write(tmp_path, "a.jsonl", [{"question_id": n, "text": "no", "model_id": "x"} for n in range(12)])
    with pytest.raises(ValueError, match=r"answers in LLaVA's format, .* set llava_questions= to its llava_pope_test"):
        small.read(str(file))
    asked = write(tmp_path, "llava_pope_test.jsonl", [{"question_id": 0, "text": "?"}])
    with pytest.raises(ValueError, match=r"llava_pope_test.jsonl: question 1: no category"):
        Pope(root=small.root, llava_questions=str(asked)).read(str(file))


def test_a_question_that_several_categories_have_is_answered_rightly_once(small: Pope):
    """The three files ask the same of the same images here: of 12 answers 4 are questions of their own."""
    assert len(small.score(dict.fromkeys(small.entries, "yes")).correct) == 4


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"question_id": 1, "image": "a.jpg", "text": "?"}, "question 1: no label"),
        ({"question_id": 1, "image": "a.jpg", "text": 7, "label": "no"}, "question 1: text is 7, no text"),
    ],
)
def test_a_broken_question_is_named(tmp_path: Path, entry: dict[str, Any], told: str):
    write(tmp_path, "coco_pope_random.json", [entry])
    with pytest.raises(ValueError, match=told):
        Pope(root=str(tmp_path), categories=["random"]).questions()


def test_both_versions_are_read_as_they_are(tmp_path: Path):
    """The older file misspells its questions and has gaps; answers repeat them in either spelling."""
    asked = [
        {"question_id": n, "image": "a.jpg", "text": f"Is there {word} in the {image}?", "label": "no"}
        for n, word, image in ((1, "an apple", "imange"), (4, "a cat", "image"))
    ]
    write(tmp_path / "q", "coco_pope_random.json", asked)
    said = [{"question": one["text"].replace("imange", "image"), "answer": "no"} for one in asked]
    write(tmp_path / "a", "random.jsonl", said)
    pope = Pope(root=str(tmp_path / "q"), categories=["random"])
    assert pope.read(str(tmp_path / "a")) == {"random/1": "no", "random/4": "no"}


def test_a_missing_file_says_where_it_is_to_be_had(tmp_path: Path):
    with pytest.raises(ValueError, match=r"coco_pope_random.json: no such file; wanted a file of POPE \(github.com"):
        Pope(root=str(tmp_path)).questions()


def test_answers_that_are_no_answers_are_told(small: Pope):
    assert small.score(dict.fromkeys(small.entries, "no")).flags[-1].endswith("the official script divides by zero")
    told = small.score(dict.fromkeys(small.entries, "1")).flags
    assert told == ["12 of 12 answers say neither yes nor no, which the official rule takes for a yes"]
