"""Answers survive a kill, are not asked for twice, and are not mixed with another model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hialign.evaluation.answer import AnswerFile

MODEL = {"model": "finetune/step-000003", "max_new_tokens": 40}


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the answers a and b."""
    path = tmp_path / "answers" / "captions.jsonl"
    with AnswerFile(path, MODEL) as answers:
        answers.write("a", answer="one", references=["x"])
        answers.write("b", answer="zwei\n\u2028ö", references=[])
    return path


def test_an_answer_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "captions.jsonl"
    with AnswerFile(path, MODEL) as answers:
        assert answers.answers == {}
        answers.write("a", answer="one")
        assert rows(path) == [{"id": "a", "answer": "one"}]


def test_a_second_run_goes_on_with_the_first_one_s_answers(file: Path) -> None:
    with AnswerFile(file, MODEL) as answers:
        assert {name: row["answer"] for name, row in answers.answers.items()} == {"a": "one", "b": "zwei\n\u2028ö"}
        answers.write("c", answer="three")
    assert [row["id"] for row in rows(file)] == ["a", "b", "c"]


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_last_line_that_a_kill_cut_short_is_asked_for_again(file: Path, cut: int) -> None:
    whole = file.read_text()
    file.write_text(whole[:-cut])
    with AnswerFile(file, MODEL) as answers:
        assert list(answers.answers) == ["a"]
        answers.write("b", answer="zwei\n\u2028ö", references=[])
    assert file.read_text() == whole


@pytest.mark.parametrize(
    "other",
    [{**MODEL, "model": "finetune/step-000006"}, {**MODEL, "max_new_tokens": 3}, {**MODEL, "precision": "bf16"}],
)
def test_what_something_else_answered_is_replaced(file: Path, other: dict[str, Any]) -> None:
    with AnswerFile(file, other) as answers:
        assert answers.answers == {}
        assert file.read_text() == ""
        answers.write("a", answer="uno")
    assert [row["answer"] for row in rows(file)] == ["uno"]
    with AnswerFile(file, other) as answers:
        assert list(answers.answers) == ["a"]


def test_the_order_of_the_settings_does_not_matter(file: Path) -> None:
    with AnswerFile(file, dict(reversed(MODEL.items()))) as answers:
        assert list(answers.answers) == ["a", "b"]


def test_answers_of_which_nobody_knows_who_gave_them_are_replaced(file: Path) -> None:
    (file.parent / "captions.made_by.json").unlink()
    with AnswerFile(file, MODEL) as answers:
        assert answers.answers == {}


def test_an_error_on_the_way_keeps_what_was_answered(file: Path) -> None:
    def killed(answers: AnswerFile) -> None:
        with answers:
            answers.write("c", answer="three")
            raise KeyboardInterrupt

    answers = AnswerFile(file, MODEL)
    with pytest.raises(KeyboardInterrupt):
        killed(answers)
    assert answers.out is not None
    assert answers.out.closed
    assert [row["id"] for row in rows(file)] == ["a", "b", "c"]


def test_an_answer_given_twice_counts_as_the_last(file: Path) -> None:
    with AnswerFile(file, MODEL) as answers:
        answers.write("a", answer="uno")
    with AnswerFile(file, MODEL) as answers:
        assert answers.answers["a"]["answer"] == "uno"
