"""ScienceQA: its parquet columns in LLaVA's prompt, and LLaVA's own file of it."""

import json

import numpy as np
import pytest

from hialign.data import BadRecord, Turn, hub_scienceqa, llava_conversations, load_image


def columns(rows, cell):
    """The columns as they are published; a row is (question, choices, answer, hint, whether it has an image)."""
    questions, choices, answers, hints, images = zip(*rows, strict=True)
    same = {name: [name] * len(rows) for name in ("task", "grade", "subject", "topic", "category", "skill", "lecture")}
    return {
        "image": [cell(number) if there else None for number, there in enumerate(images)],
        "question": list(questions),
        "choices": list(choices),
        "answer": list(answers),
        "hint": list(hints),
        **same,
        "solution": [""] * len(rows),
    }


ROWS = [
    ("Which is a cup?", ["this  one", "that one"], 1, "Look.", True),
    ("Which is red?", ["a", "b", "c"], 0, "", False),
    ("Which?", ["a", "b"], 1, "Think.\nThen answer.", True),
    ("Who?", ["a", "b"], 0, "", True),
    ("Why?", ["a", "b"], 0, None, False),
]


def test_a_row_is_llavas_prompt_and_a_letter_with_an_image_or_without(table, cell):
    data = hub_scienceqa(table(columns(ROWS, cell)), split="train")
    assert [len(record.images) for record in data.records] == [1, 0, 1, 1, 0]
    end = "\nAnswer with the option's letter from the given choices directly."
    asked = [record.turns for record in data.records]
    assert asked[0] == (
        Turn(f"<image>\nContext: Look.\nQuestion: Which is a cup?\nOptions: (A) this one (B) that one{end}", "B"),
    )
    assert asked[1] == (Turn(f"Context: N/A\nQuestion: Which is red?\nOptions: (A) a (B) b (C) c{end}", "A"),)
    assert asked[4][0].question.startswith("Context: N/A")
    assert np.asarray(load_image(data.records[3]))[0, 0].tolist() == [3, 0, 0]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("Which?", ["a"], 0, "", True), r"row 1: choices=\['a'\]"),
        (("Which?", ["a", "b"], 2, "", True), "row 1: answer=2 of 2 choices"),
        (("Which?", ["a", "b"], -1, "", True), "row 1: answer=-1 of 2"),
        ((" ", ["a", "b"], 0, "", True), "row 1: question=' ' is empty"),
        (("Which <image>?", ["a", "b"], 0, "", True), "row 1: .*placeholder <image>"),
        ((None, ["a", "b"], 0, "", True), "row 1: question=None"),
    ],
)
def test_a_bad_row_raises_or_is_listed_while_the_others_stay(table, cell, row, problem):
    file = table(columns([ROWS[0], row, ROWS[1]], cell))
    with pytest.raises(BadRecord, match=problem):
        hub_scienceqa(file, split="train")
    data = hub_scienceqa(file, split="train", on_error="skip")
    assert ([r.id for r in data.records], [s.record for s in data.skipped]) == (["0", "2"], ["row 1"])


def test_a_column_that_is_not_there_is_named(table, cell):
    with pytest.raises(ValueError, match=r"no such column: .* has the columns .*, not 'hint'"):
        hub_scienceqa(table({name: v for name, v in columns(ROWS, cell).items() if name != "hint"}), split="train")


def test_llavas_own_file_of_it_is_read_as_any_of_llavas(tmp_path, write_image):
    write_image(tmp_path / "train" / "7" / "image.png")
    question = "Which is a cup?\nContext: Look.\nOptions: (A) this (B) that"
    entries = [
        {"id": "7", "image": "7/image.png", "conversations": [("human", f"{question}\n<image>"), ("gpt", "It is B.")]},
        {"id": "8", "conversations": [("human", question), ("gpt", "LECTURE: x\nThe answer is A.")]},
    ]
    for one in entries:
        one["conversations"] = [{"from": who, "value": text} for who, text in one["conversations"]]
    (tmp_path / "llava_train_QCM-LEA.json").write_text(json.dumps(entries))
    data = llava_conversations(str(tmp_path / "llava_train_QCM-LEA.json"), str(tmp_path / "train"))
    assert [(record.id, len(record.images)) for record in data.records] == [("7", 1), ("8", 0)]
