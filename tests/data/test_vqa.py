"""VQAv2's files: what five questions become, and that every kind of bad entry raises or is listed, never lost."""

import json

import pytest

from hialign.data import BadRecord, Turn, vqa_v2

QUESTIONS = [{"question_id": 100 + i, "image_id": 1 + i % 2, "question": f"Cup {i}? "} for i in range(5)]
ANNOTATIONS = [
    {"question_id": 100 + i, "image_id": 1 + i % 2, "multiple_choice_answer": f"{i}", "answers": []} for i in range(5)
]


@pytest.fixture
def vqa(tmp_path, write_image):
    """A function: (questions, annotations) -> the arguments of vqa_v2, with the images 1 and 2 there."""

    def make(questions, annotations):
        for number in (1, 2):
            write_image(tmp_path / "images" / f"COCO_train2014_{number:012d}.jpg")
        (tmp_path / "questions.json").write_text(json.dumps({"questions": questions}))
        (tmp_path / "annotations.json").write_text(json.dumps({"annotations": annotations}))
        return {name: str(tmp_path / f"{name}.json") for name in ("questions", "annotations")} | {
            "images": str(tmp_path / "images")
        }

    return make


def test_a_question_is_a_turn_with_llavas_short_answer_prompt(vqa):
    data = vqa_v2(**vqa(QUESTIONS, ANNOTATIONS))
    assert [record.id for record in data.records] == ["100", "101", "102", "103", "104"]
    assert data.records[3].images[0].name == "COCO_train2014_000000000002.jpg"
    prompt = "<image>\nCup 3?\nAnswer the question using a single word or phrase."
    assert data.records[3].turns == (Turn(prompt, "3"),)
    assert data.skipped == ()


def test_without_annotations_the_answers_are_empty(vqa):
    data = vqa_v2(**(vqa(QUESTIONS, []) | {"annotations": None}), part="heldout", holdout=0.4)
    assert [record.turns[0].answer for record in data.records] == ["", ""]


@pytest.mark.parametrize(
    ("question", "annotation", "file", "record", "problem"),
    [
        (None, {"question_id": 9, "multiple_choice_answer": "x"}, "annotations", "question_id 9", "not among the ques"),
        ({"question_id": 9, "image_id": 1, "question": "x"}, None, "annotations", "question_id 9", "has no answer"),
        (
            {"question_id": 9, "image_id": 3, "question": "x"},
            {"question_id": 9, "multiple_choice_answer": "x"},
            "questions",
            "9",
            "its image is missing, such as .*000000000003.jpg",
        ),
        ({"question_id": 9, "image_id": "1", "question": "x"}, None, "questions", "questions[5]", "image_id='1'"),
        ({"question_id": 9, "image_id": 1, "question": " "}, None, "questions", "questions[5]", "question=' '"),
        ({"question_id": 9, "image_id": 1, "question": "<image>"}, None, "questions", "questions[5]", "<image>"),
        ({"question_id": 100, "image_id": 1, "question": "x"}, None, "questions", "questions[5]", "a second question"),
        ("x", None, "questions", "questions[5]", "a str instead of an object"),
        (None, {"question_id": 100, "multiple_choice_answer": " "}, "annotations", "annotations[5]", "answer=' '"),
        (None, {"question_id": 100}, "annotations", "annotations[5]", "no field 'multiple_choice_answer'"),
    ],
)
def test_a_bad_entry_raises_or_is_listed_while_the_others_stay(vqa, question, annotation, file, record, problem):
    arguments = vqa(QUESTIONS + [question] * (question is not None), ANNOTATIONS + [annotation] * bool(annotation))
    with pytest.raises(BadRecord, match=problem) as caught:
        vqa_v2(**arguments)
    assert (caught.value.file, caught.value.record) == (arguments[file], record)
    data = vqa_v2(**arguments, on_error="skip")
    assert len(data) == 5
    assert [skipped.record for skipped in data.skipped] == [record]


@pytest.mark.parametrize("name", ["{image}.jpg", "{}.jpg", "{image_id:q}.jpg", "{image_id", "one.jpg"])
def test_an_image_name_that_is_no_format_of_the_id_is_refused(vqa, name):
    with pytest.raises(ValueError, match="image_name="):
        vqa_v2(**vqa(QUESTIONS, ANNOTATIONS), image_name=name)


def test_files_that_are_missing_or_of_another_kind_are_named(vqa, tmp_path):
    arguments = vqa(QUESTIONS, ANNOTATIONS)
    for name, found in (("questions", "no such file"), ("annotations", "no such file"), ("images", "no such folder")):
        with pytest.raises(ValueError, match=f"nowhere: {found}; get VQAv2"):
            vqa_v2(**(arguments | {name: str(tmp_path / "nowhere")}), on_error="skip")
    with pytest.raises(BadRecord, match="top level: no list 'annotations' in the keys"):
        vqa_v2(**(arguments | {"annotations": arguments["questions"]}), on_error="skip")
