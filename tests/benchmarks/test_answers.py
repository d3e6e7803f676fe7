"""Answers are joined by their ids in any order, from every format, and nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hialign.benchmarks.answers import identity, join, join_replies, read_entries, read_json, said

QUESTIONS = {"1": "Is there a cup?", "2": "Is there a dog?", "3": "Is there a cat?"}
ENTRIES = [{"question_id": int(name), "prompt": text, "text": f"answer {name}"} for name, text in QUESTIONS.items()]
WANTED = {name: f"answer {name}" for name in QUESTIONS}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ENTRIES),
        "\n".join(map(json.dumps, ENTRIES)),
        "\n".join(json.dumps(entry, indent=2) for entry in ENTRIES),
        "\ufeff" + json.dumps(ENTRIES, indent=1),
    ],
    ids=["list", "lines", "pretty objects", "byte order mark"],
)
def test_a_list_lines_and_pretty_objects_are_the_same(tmp_path: Path, content: str):
    (tmp_path / "answers.json").write_text(content, encoding="utf-8")
    assert join(read_entries(tmp_path / "answers.json", "answers"), QUESTIONS, file="answers.json") == WANTED


def test_a_jsonl_of_one_line_is_a_list_of_one(tmp_path: Path):
    (tmp_path / "one.jsonl").write_text('{"id": 1}\n')
    assert read_json(tmp_path / "one.jsonl", "lines") == [{"id": 1}]


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "7", "answer": "yes"},
        {"question_id": 7, "answer": 2.5, "text": "yes"},
        {"question_id": 7, "text": "yes"},
        {"id": 7, "response": "yes"},
        {"doc_id": 0, "doc": {"question_id": "7"}, "resps": [["yes no"]], "filtered_resps": ["yes"]},
        {"doc_id": 0, "doc": {"id": 7}, "resps": [["yes"]]},
        {"id": 7, "question": "?", "answer": "yes"},
    ],
)
def test_what_llava_amber_lmms_eval_and_we_write_is_read(entry: dict[str, Any]):
    assert join([entry], {"7": "?"}, file="f") == {"7": "yes"}


@given(st.permutations(ENTRIES))
def test_the_order_of_answers_with_ids_does_not_matter(entries: list[dict[str, Any]]):
    assert join(entries, QUESTIONS, file="f") == WANTED


@given(st.permutations(range(3)))
def test_lmms_eval_s_rows_without_ids_are_in_the_order_of_their_doc_id(order: list[int]):
    rows = [{"doc_id": n, "filtered_resps": [f"answer {n + 1}"]} for n in order]
    assert join(rows, QUESTIONS, file="f") == WANTED


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([0, 1, 1], "f: doc_id: 1 answered twice: 1; 1 not answered: 2"),
        ([1, 2, 3], "1 of no question: 3"),
        ([0, 1, None], "doc_id of some entries is no whole number"),
    ],
)
def test_doc_ids_that_do_not_count_are_refused(numbers: list[int | None], told: str):
    with pytest.raises(ValueError, match=told):
        join([{"doc_id": n, "resps": [["x"]]} for n in numbers], QUESTIONS, file="f")


def test_a_number_is_an_answer():
    assert [said({"answer": value}, "f") for value in (2, 2.5)] == ["2", "2.5"]
    with pytest.raises(ValueError, match="no text"):
        said({"answer": True}, "f")


def test_a_stored_response_of_openai_s_is_not_called_by_its_own_id():
    response = {"id": "chatcmpl-1", "choices": [{"message": {"content": "Rating: 3"}}]}
    assert identity(response) is None
    assert join_replies([response], {"7": "an answer"}, file="f") == {"7": "Rating: 3"}
    assert identity({**response, "question_id": 7}) == "7"


def test_lmms_eval_s_older_file_is_read(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"args": {}, "logs": ENTRIES}))
    assert read_entries(tmp_path / "a.json", "answers") == ENTRIES


@given(st.permutations(ENTRIES))
def test_without_ids_another_order_is_refused_where_the_questions_are_repeated(entries: list[dict[str, Any]]):
    bare = [{"question": entry["prompt"], "answer": entry["text"]} for entry in entries]
    if entries == ENTRIES:
        assert join(bare, QUESTIONS, file="f") == WANTED
    else:
        with pytest.raises(ValueError, match=r"f: entry \d answers .*; answers without ids are joined by order"):
            join(bare, QUESTIONS, file="f")


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([*ENTRIES, ENTRIES[0]], "1 answered twice: 1"),
        (ENTRIES[:1], "2 not answered: 2, 3"),
        ([*ENTRIES, {"question_id": 9, "text": ""}], "1 of no question: 9"),
        ([ENTRIES[0], {"text": "x"}, ENTRIES[2]], "entry 2 has no id while others have one"),
        ([{"answer": "x"}] * 2, "2 answers without ids to 3 questions"),
        ([{"question_id": name} for name in QUESTIONS], "f: 1: no text of an answer; wanted one of text, answer"),
    ],
)
def test_what_does_not_join_is_named(entries: list[dict[str, Any]], told: str):
    with pytest.raises(ValueError, match=told):
        join(entries, QUESTIONS, file="f")


def test_many_problems_are_counted_and_a_few_named():
    with pytest.raises(ValueError, match="20 not answered: 0, 1, 2, 3, 4, and 15 more"):
        join([{"id": "x", "text": ""}], {str(n): "" for n in range(20)}, file="f")


def test_an_empty_answer_is_an_answer():
    assert said({"text": ""}, "f") == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the file is empty; wanted answers"),
        ('{"id": 1}\n{"id": ', r"line 2 column \d+ is not json .*; wanted answers"),
        ("[1, 2]", "entry 1 is a int, not an object"),
    ],
)
def test_broken_files_say_where(tmp_path: Path, content: str, told: str):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=told):
        read_entries(tmp_path / "a.json", "answers")


def test_a_file_that_is_no_text_says_where(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(ValueError, match="byte 8 is not utf-8"):
        read_json(tmp_path / "a.json", "answers")
