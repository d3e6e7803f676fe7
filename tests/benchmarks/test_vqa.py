"""VQAv2's and TextVQA's rules and numbers: by hand, and those of the official scripts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hialign.benchmarks.scores import numbers
from hialign.benchmarks.textvqa import TextVqa
from hialign.benchmarks.textvqa import kind as kind_of
from hialign.benchmarks.vqa import VqaV2, statistic
from hialign.benchmarks.vqa_answers import (
    agreement,
    normalised,
    official_accuracy,
    plain_words,
    strictly,
    submitted,
    without_marks,
)

Official = Callable[[str], Any]


def ten(*answers: str) -> list[dict[str, Any]]:
    """The answers over and over until there are ten, each with its id."""
    return [{"answer": answers[n % len(answers)], "answer_id": n, "answer_confidence": "yes"} for n in range(10)]


def write(folder: Path, annotations: list[dict[str, Any]]) -> VqaV2:
    asked = [
        {"question_id": one["question_id"], "image_id": one["image_id"], "question": f"What is {one['question_id']}?"}
        for one in annotations
    ]
    folder.mkdir(exist_ok=True)
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": asked}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": annotations}))
    return VqaV2(root=str(folder))


def annotation(number: int, image: int, kind: str, *answers: str) -> dict[str, Any]:
    return {
        "question_id": number,
        "image_id": image,
        "question_type": "what is",
        "answer_type": kind,
        "answers": ten(*answers),
    }


@pytest.fixture
def small(tmp_path: Path) -> VqaV2:
    return write(
        tmp_path / "vqa",
        [
            annotation(1, 7, "number", "2"),
            annotation(2, 7, "yes/no", "yes", "no"),
            annotation(3, 8, "other", "red", "blue", "green", "red", "white"),
        ],
    )


@pytest.mark.parametrize(("equal", "wanted"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_an_answer_that_k_of_ten_people_gave_is_worth(equal: int, wanted: float):
    people = [("red" if n < equal else f"other {n}", n) for n in range(10)]
    assert agreement("red", people) == pytest.approx(wanted)


def test_agreement_is_that_of_the_slow_loop_over_the_sets_of_nine():
    rng = random.Random(0)
    for _ in range(50):
        people = [(rng.choice("abc"), rng.choice([n, 0])) for n in range(10)]
        answer, found = rng.choice("abc"), []
        for person in people:
            others = [other for other in people if other != person]
            found.append(min(1, sum(text == answer for text, _ in others) / 3))
        assert agreement(answer, people) == pytest.approx(sum(found) / 10)
    with pytest.raises(ValueError, match="no person's answer"):
        agreement("a", [])


def test_the_official_table_of_normal_forms(official: Official):
    for row in official("vqa/normalisation_table.json"):
        text = row["in"]
        assert without_marks(text) == row["official_punct"], text
        assert plain_words(text) == row["official_digit_article_only"], text
        assert normalised(text) == row["official_after_cleaning"], text
        assert submitted(text) == row["evalai_processor"], text


def test_the_official_scores(official: Official, tmp_path: Path):
    fixture = official("vqa/vqav2_official.json")
    vqa = write(tmp_path, fixture["annotations"])
    file = tmp_path / "results.json"
    file.write_text(json.dumps(fixture["results"]))
    scores = vqa.score(vqa.read(str(file)))
    for digits, name in ((2, ""), (10, "_n10")):
        expected = fixture["expected"][f"accuracy{name}"]
        assert round(scores.numbers["overall"], digits) == expected["overall"]
        for kind, value in expected["perAnswerType"].items():
            assert round(scores.numbers[f"answer_type/{kind}"], digits) == value
        for kind, value in expected["perQuestionType"].items():
            assert round(scores.numbers[f"question_type/{kind}"], digits) == value
        found = {row["id"]: round(100 * row["accuracy"], digits) for row in scores.rows}
        assert found == fixture["expected"][f"evalQA{name}"]
    assert scores.flags == []


def test_equal_answers_without_ids_do_not_confirm_each_other_as_in_the_official_script(
    official: Official, tmp_path: Path
):
    for name, case in official("vqa/answer_id_trap.json").items():
        vqa = write(tmp_path / name, [annotation(1, 1, "other", "x") | {"answers": case["answers"]}])
        scores = vqa.score({"1": case["pred"]})
        assert scores.numbers["overall"] == pytest.approx(case["evalQA"])
        assert scores.numbers["overall_strict"] == 100
        assert bool(scores.flags) == (name == "without_answer_id")


def test_where_all_people_agree_the_official_rule_compares_letters_and_the_strict_one_does_not():
    people = [("yes", n) for n in range(10)]
    assert official_accuracy("Yes.", people) == 0
    assert official_accuracy("Yes.", [*people[:9], ("no", 9)]) == 1
    assert strictly("Yes.", "yes/no") == "yes"


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("There are two dogs.", "number", "2"),
        ("twelve", "number", "12"),
        ("two or three", "number", "2 or 3"),
        ("No, it isn't.", "yes/no", "no"),
        ("hard to say", "yes/no", "hard to say"),
        ("The two dogs", "other", "2 dogs"),
    ],
)
def test_the_strict_rule_reads_numbers_and_yes_or_no_as_a_person_does(text: str, kind: str, wanted: str):
    assert strictly(text, kind) == wanted


def test_the_numbers_by_hand(small: VqaV2):
    """Raw "two" for ten times "2" is wrong; five of ten said yes; four of ten red."""
    scores = small.score({"1": "two", "2": "yes", "3": "white"})
    assert scores.numbers["answer_type/number"] == 0
    assert scores.numbers["answer_type/number_strict"] == 100
    assert scores.numbers["answer_type/yes/no"] == 100
    assert scores.numbers["answer_type/other"] == pytest.approx(60)
    assert scores.numbers["overall"] == pytest.approx(160 / 3)
    assert scores.numbers["overall_strict"] == pytest.approx(260 / 3)
    assert scores.numbers["question_type/what is"] == pytest.approx(160 / 3)
    assert set(scores.units) == {"7", "8"}
    headline = numbers(scores.units, statistic)
    assert headline == {name: scores.numbers[name] for name in headline}


def test_llava_s_processing_is_a_setting(small: VqaV2):
    processed = VqaV2(root=small.root, processed=True)
    answers = {"1": "Two?", "2": "yes", "3": "red"}
    assert small.score(answers).numbers["answer_type/number"] == 0
    assert processed.score(answers).numbers["answer_type/number"] == 100


def test_answers_of_four_formats_are_read_in_any_order(small: VqaV2, tmp_path: Path):
    answers = {"1": "2", "2": "no", "3": "red"}
    formats = {
        "official": [{"question_id": int(name), "answer": text} for name, text in answers.items()],
        "llava": [{"question_id": int(name), "prompt": "?", "text": text} for name, text in answers.items()],
        "lmms": [
            {"doc_id": n, "doc": {"question_id": int(name)}, "filtered_resps": [text]}
            for n, (name, text) in enumerate(answers.items())
        ],
        "ours": [{"id": name, "question": "?", "answer": text} for name, text in answers.items()],
    }
    for name, entries in formats.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(entries[::-1]))
        assert small.read(str(file)) == answers


def test_questions_have_coco_s_images_and_llava_s_suffix(small: VqaV2):
    question = VqaV2(root=small.root, images="val2014").questions()[0]
    assert question.image == "val2014/COCO_val2014_000000000007.jpg"
    assert question.text == "What is 1?\nAnswer the question using a single word or phrase."


def test_missing_and_unknown_answers_and_files_are_named(small: VqaV2, tmp_path: Path):
    with pytest.raises(ValueError, match="1 of no question: 9; 1 not answered: 3"):
        small.score({"1": "", "2": "", "9": ""})
    with pytest.raises(ValueError, match=r"no such file; wanted a file of questions of VQAv2 \(visualqa.org"):
        VqaV2(root=str(tmp_path)).questions()
    file = Path(small.root) / "v2_mscoco_val2014_annotations.json"
    file.write_text(json.dumps({"annotations": [annotation(1, 7, "number", "2")] * 2}))
    with pytest.raises(ValueError, match="question_id 1 comes twice"):
        VqaV2(root=small.root).score({"1": "", "2": "", "3": ""})
    file.write_text(json.dumps({"annotations": [{"question_id": 1}]}))
    with pytest.raises(ValueError, match="annotations, entry 1 has no question_type, answer_type, answers"):
        VqaV2(root=small.root).score({"1": "", "2": "", "3": ""})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answers": ["red"] * 10}, "question 1: 'red' is no person's answer; wanted a file of annotations of VQAv2"),
        ({"answers": [{"answer_id": 1}]}, "question 1: {'answer_id': 1} is no person's answer; wanted"),
        ({"answers": [{"answer": "red", "answer_id": []}]}, r"question 1: {.*} is no person's answer; wanted"),
        ({"answers": [None]}, "question 1: None is no person's answer; wanted"),
        ({"answers": []}, r"question 1: answers are \[\], none of a person"),
        ({"answer_type": "colour"}, "question 1 has answer_type 'colour'; wanted one of yes/no, number, other"),
    ],
)
def test_what_is_wrong_with_an_annotation_is_named(tmp_path: Path, change: dict[str, Any], told: str):
    vqa = write(tmp_path / "vqa", [annotation(1, 7, "other", "red") | change])
    with pytest.raises(ValueError, match=f"v2_mscoco_val2014_annotations.json: {told}"):
        vqa.score({"1": "red"})


def test_an_image_without_a_number_is_named(small: VqaV2):
    file = Path(small.root) / "v2_OpenEnded_mscoco_val2014_questions.json"
    file.write_text(file.read_text().replace('"image_id": 8', '"image_id": "eight"'))
    with pytest.raises(ValueError, match="question 3: image_id is 'eight', no number of an image of COCO"):
        small.questions()


@pytest.fixture
def text_vqa(tmp_path: Path) -> TextVqa:
    data = [
        {"question_id": n, "image_id": image, "question": asked, "answers": answers}
        for n, image, asked, answers in (
            (34602, "0054c91397f2fe05", "what is the brand?", ["nokia"] * 10),
            (34603, "0054c91397f2fe05", "What year?", ["1999"] * 3 + ["99"] * 7),
            (34604, "005635e119b9f32f", "what is the brand?", [f"no {n}" for n in range(10)]),
        )
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    return TextVqa(root=str(tmp_path))


def test_text_vqa_by_hand(text_vqa: TextVqa):
    """Processed even where all agree: 1; three of ten: 0.9; one of ten: 0.3; strictly "in 1999" is their 1999."""
    scores = text_vqa.score({"34602": "Nokia.", "34603": "In 1999.", "34604": "No 3"})
    assert scores.numbers == {
        "accuracy": pytest.approx(100 * (1 + 0 + 0.3) / 3),
        "accuracy_strict": pytest.approx(100 * (1 + 0.9 + 0.3) / 3),
    }
    assert scores.units["0054c91397f2fe05"] == {
        "accuracy": pytest.approx(1),
        "accuracy_strict": pytest.approx(1.9),
        "number": 2,
    }
    assert numbers(scores.units, scores.statistic) == scores.numbers
    assert text_vqa.score({"34602": "Nokia.", "34603": "1999", "34604": "No 3"}).numbers["accuracy"] == pytest.approx(
        100 * (1 + 0.9 + 0.3) / 3
    )


@pytest.mark.parametrize(
    ("people", "wanted"),
    [
        (["7"] * 6 + ["seven"] * 4, "number"),
        (["7"] * 5 + ["bus 7"] * 5, "other"),
        (["yes"] * 4 + ["no"] * 3 + ["nokia"] * 3, "yes/no"),
        (["nokia"] * 10, "other"),
    ],
)
def test_text_vqa_s_strict_rule_goes_by_what_most_people_answer(people: list[str], wanted: str):
    assert kind_of(people) == wanted


@pytest.mark.parametrize(
    ("answers", "told"), [([], r"\[\], no texts"), ("nokia", "'nokia', no texts"), ([{"answer": "x"}], "no texts")]
)
def test_text_vqa_s_answers_that_are_no_texts_are_named(text_vqa: TextVqa, answers: Any, told: str):
    file = Path(text_vqa.root) / "TextVQA_0.5.1_val.json"
    content = json.loads(file.read_text())
    content["data"][1]["answers"] = answers
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"TextVQA_0.5.1_val.json: question 34603: answers are .*{told}"):
        text_vqa.questions()


def test_text_vqa_joins_llava_s_answers_by_image_and_prompt(text_vqa: TextVqa, tmp_path: Path):
    tail = "\nReference OCR token: NOKIA, 99\nAnswer the question using a single word or phrase."
    entries = [
        {"question_id": image, "prompt": asked + tail, "text": said}
        for image, asked, said in (
            ("005635e119b9f32f", "what is the brand?", "c"),
            ("0054c91397f2fe05", "What year?", "b"),
            ("0054c91397f2fe05", "what is the brand?", "a"),
        )
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, entries)))
    assert text_vqa.read(str(file)) == {"34602": "a", "34603": "b", "34604": "c"}
    file.write_text("\n".join(map(json.dumps, entries[:2])))
    with pytest.raises(ValueError, match="1 not answered: 34602"):
        text_vqa.read(str(file))


def test_text_vqa_asks_llava_s_prompts_where_they_are_given(text_vqa: TextVqa, tmp_path: Path):
    asked = [
        {"question_id": entry["image_id"], "image": "x", "text": f"{entry['question']}\nReference OCR token: {name}"}
        for name, entry in text_vqa.entries.items()
    ]
    file = tmp_path / "llava.jsonl"
    file.write_text("\n".join(map(json.dumps, asked)))
    with_prompts = TextVqa(root=text_vqa.root, prompts=str(file))
    texts = [question.text for question in with_prompts.questions()]
    assert texts == [f"{e['question']}\nReference OCR token: {name}" for name, e in text_vqa.entries.items()]
    file.write_text(json.dumps({"question_id": "x"}))
    with pytest.raises(ValueError, match=r"llava.jsonl: question 1: no text; wanted llava_textvqa_val_v051_ocr.jsonl"):
        with_prompts.questions()
    assert text_vqa.questions()[0].text == "what is the brand?\nAnswer the question using a single word or phrase."
    assert text_vqa.questions()[0].image == "0054c91397f2fe05.jpg"


def test_text_vqa_s_missing_file_says_where_it_is_to_be_had(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no such file; wanted TextVQA_0.5.1_val.json of textvqa.org"):
        TextVqa(root=str(tmp_path)).questions()
