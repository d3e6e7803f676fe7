"""Object HalBench: the official scores with the recorded judge and tagger, by hand, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hialign.benchmarks.objhal import ObjHal, closed_tagger, listed, mentioned, objects, phrases
from hialign.benchmarks.scores import numbers
from hialign.benchmarks.vocabulary import built_in, closed

Official = Callable[[str], Any]
COCO = str(Path(__file__).resolve().parents[1] / "golden" / "chair")
# What WordNet makes of those of the answers' words, taken as nouns, that name no category.
WORDNET = {
    "swings": "swing",
    "watches": "watch",
    "shows": "show",
    "runs": "run",
    "clouds": "cloud",
    "holds": "hold",
    "has": "ha",
}


def write(file: Path, entries: list[Any]) -> str:
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(file)


@pytest.fixture
def recorded(official: Official, tmp_path: Path) -> dict[str, Any]:
    """The 16 answers, their questions and the judge's replies as files; and what spaCy made of the judge's things."""
    fixture = official("objhal/pipeline.json")
    answers = fixture["answers"]
    replies = [
        {"image_id": entry["image_id"], "reply": fixture["judge_outputs"][text]}
        for entry in answers
        if len((text := entry["answer"].replace("Assistant:", "").strip()).split()) > 3
    ]
    asked = [{"image_id": entry["image_id"], "question": entry["question"], "image": "/9j/4"} for entry in answers]
    return {
        "questions": write(tmp_path / "questions.jsonl", asked),
        "answers": write(tmp_path / "answers.jsonl", answers),
        "replies": write(tmp_path / "replies.jsonl", replies),
        "tags": {text: [(word, tag) for word, tag in tagged] for text, tagged in fixture["nlp_tokens"].items()},
        "expected": fixture["expected"],
    }


def equal(benchmark: ObjHal, answers: str, wanted: dict[str, Any]) -> None:
    """Asserts the official numbers, and all that the official script writes of each answer."""
    scores = benchmark.score(benchmark.read(answers))
    for name, value in scores.numbers.items():
        assert value == wanted["overall_metrics"][name], name
    sentences = {str(sentence["image_id"]): sentence for sentence in wanted["sentences"]}
    for row in scores.rows:
        sentence = sentences.pop(row["id"])
        assert {name: row[name] for name in sentence} == {**sentence, "image_id": int(sentence["image_id"])}
    assert not sentences
    assert scores.numbers == numbers(scores.units, scores.statistic)


def test_the_official_scores_with_the_recorded_judge_and_tagger(recorded: dict[str, Any]):
    benchmark = ObjHal(
        root=COCO,
        question_file=recorded["questions"],
        replies=recorded["replies"],
        tagger=recorded["tags"].__getitem__,
        rule="rlhf_v",
    )
    equal(benchmark, recorded["answers"], recorded["expected"])
    scores = benchmark.score(benchmark.read(recorded["answers"]))
    summary = recorded["expected"]["summary"]
    assert 100 * scores.numbers["CHAIRs_refine"] == pytest.approx(summary["response_hall"], rel=1e-12)
    assert 100 * scores.numbers["CHAIRi"] == pytest.approx(summary["object_hall"], rel=1e-12)


def test_the_official_scores_without_a_judge(official: Official, recorded: dict[str, Any]):
    known = closed(built_in())
    benchmark = ObjHal(
        root=COCO,
        question_file=recorded["questions"],
        judge=False,
        lemmatizer=lambda text: [WORDNET.get(word, word) for word in known(text)],
    )
    equal(benchmark, recorded["answers"], official("objhal/no_judge_path.json")["expected"])


def test_the_judges_replies_are_read_by_both_rules(official: Official):
    for case in official("objhal/judge_json_parsing.json"):
        for rule in ("rlhf_v", "chip"):
            if case[f"{rule}_error"] is None:
                assert listed(case["content"], rule) == case[rule]
            else:
                with pytest.raises(ValueError, match="holds no json"):
                    listed(case["content"], rule)


@pytest.mark.parametrize("reply", ["null", '"dog"', '{"objects": ["dog"]}', "[1]"])
def test_a_reply_that_is_no_list_of_texts_is_refused(reply: str):
    with pytest.raises(ValueError, match="no list of texts"):
        objects(reply)


def test_pairs_come_before_runs_of_nouns():
    table = built_in()
    noun = [("wooden", "JJ"), ("dining", "NN"), ("table", "NN")]
    assert phrases([("a", "DT"), *noun], table) == ["dining table"]
    assert phrases([("leather", "NN"), ("couch", "NN"), ("with", "IN"), ("cushion", "NNS")], table) == [
        "leather couch",
        "cushion",
    ]
    assert phrases([("passenger", "NN"), ("train", "NN")], table) == ["train"]


def test_without_a_tagger_the_words_of_the_table_are_the_nouns():
    table = built_in()
    things = ["leather couch", "city buses", "toilet seat", "seat", "grass", "couches"]
    found, mentions = mentioned(things, table, closed_tagger(table))
    assert found == ["couch", "bus", "toilet", "seat"]
    assert [(mention.node, mention.place) for mention in mentions] == [("couch", 0), ("bus", 1), ("toilet", 2)]


@pytest.fixture
def small(tmp_path: Path) -> ObjHal:
    """Image 1003 has a dog and a couch, 1013 has nothing."""
    asked = [{"image_id": name, "question": f"Describe {name}."} for name in ("1003", "1013")]
    return ObjHal(root=COCO, question_file=write(tmp_path / "q.jsonl", asked), replies=str(tmp_path / "r.jsonl"))


ANSWERS = {"1003": "Assistant: A dog and a cat on a sofa.", "1013": "Sky."}


def chat(text: str) -> dict[str, Any]:
    return {"model": "judge", "choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.mark.parametrize(
    "reply",
    [
        {"id": "1003", "reply": '["dog", "cat", "sofa"]'},
        {"id": "1003", "answer": ANSWERS["1003"], "reply": '["dog", "cat", "sofa"]'},
        '["dog", "cat", "sofa"]',
        {"id": "chatcmpl-7", **chat('["dog", "cat", "sofa"]')},
        {"image_id": 1003, **chat('```json\n["dog", "cat", "sofa"]\n```')},
        chat('["dog", "cat", "sofa"]'),
    ],
    ids=["ours", "with its answer", "texts", "response with its own id", "chip", "rlhf_v"],
)
def test_the_numbers_by_hand(small: ObjHal, tmp_path: Path, reply: Any):
    """One of one answer that names something has something wrong: one of three. Of two there, both are found."""
    write(tmp_path / "r.jsonl", [reply])
    scores = small.score(ANSWERS)
    third = pytest.approx(1 / 3)
    assert scores.numbers == {
        "CHAIRs_refine": 1,
        "CHAIRi": third,
        "CHAIRs": 1 / 2,
        "obj_rec": 1,
        "correct_rate": 0,
        "object_correct_rate": pytest.approx(2 / 3),
        "avg_word_len": 9 / 2,
    }
    assert any("papers find them by a tagger" in flag for flag in scores.flags)


def test_the_judge_is_asked_about_answers_of_more_than_three_words(small: ObjHal):
    requests = small.requests(ANSWERS)
    assert list(requests) == ["1003"]
    assert "Request: Describe 1003." in requests["1003"]
    assert requests["1003"].endswith("Description: A dog and a cat on a sofa.")


def test_questions_have_cocos_images(small: ObjHal):
    asked = small.questions()
    assert [(one.id, one.text) for one in asked] == [("1003", "Describe 1003."), ("1013", "Describe 1013.")]
    assert asked[0].image == "COCO_val2014_000000001003.jpg"


def test_answers_are_joined_by_image_in_any_order_or_by_order_without(small: ObjHal, tmp_path: Path):
    entries = [{"image_id": name, "answer": text} for name, text in ANSWERS.items()]
    random.Random(1).shuffle(entries)
    assert small.read(write(tmp_path / "a.jsonl", entries)) == ANSWERS
    plain = [{"question": f"Describe {name}.", "response": text} for name, text in ANSWERS.items()]
    assert small.read(write(tmp_path / "b.jsonl", plain)) == ANSWERS
    with pytest.raises(ValueError, match=r"entry 1 answers 'Describe 1013.'"):
        small.read(write(tmp_path / "c.jsonl", plain[::-1]))


def test_replies_that_are_missing_or_broken_are_named(small: ObjHal, tmp_path: Path):
    with pytest.raises(ValueError, match=r"r.jsonl: no such file; wanted the judge's replies"):
        small.score(ANSWERS)
    write(tmp_path / "r.jsonl", [{"id": "1003", "reply": "dog, cat"}])
    with pytest.raises(ValueError, match=r"1 replies cannot be read; 1003: .*ask it again"):
        small.score(ANSWERS)
    write(tmp_path / "r.jsonl", [{"id": "1003", "answer": "A dog.", "reply": "[]"}])
    with pytest.raises(ValueError, match=r"1003 is a reply to 'A dog.', and the answer is 'A dog and a cat"):
        small.score(ANSWERS)
    write(tmp_path / "r.jsonl", [{"image_id": 1003, "choices": [{"message": {"content": None}}]}])
    with pytest.raises(ValueError, match=r"r.jsonl: 1003: no judge's reply; wanted"):
        small.score(ANSWERS)
    write(tmp_path / "r.jsonl", [{"id": "1003", "reply": "[]"}, {"id": "9", "reply": "[]"}])
    with pytest.raises(ValueError, match="1 of no question: 9"):
        small.score(ANSWERS)
    asked = r"replies: none given, .*judge=false .*answers/objhal.requests.jsonl.*set benchmark.objhal.replies=FILE"
    with pytest.raises(ValueError, match=asked):
        ObjHal(root=COCO, question_file=small.question_file).score(ANSWERS)


def test_unknown_images_and_wrong_settings_are_named(small: ObjHal, tmp_path: Path):
    with pytest.raises(ValueError, match="1 of no question: 7"):
        small.score({**ANSWERS, "7": "x"})
    file = write(tmp_path / "other.jsonl", [{"image_id": 7, "question": "Describe."}])
    with pytest.raises(ValueError, match=r"1 images are of none of train2014, val2014, such as 7"):
        ObjHal(root=COCO, question_file=file, judge=False).score({"7": "x"})
    twice = write(tmp_path / "twice.jsonl", 2 * [{"image_id": 7, "question": "Describe."}])
    with pytest.raises(ValueError, match="question 2 has the image 7, which must be there and come once"):
        ObjHal(root=COCO, question_file=twice).questions()
    known = {"tagger": "builtin or spacy", "lemmatizer": "builtin or nltk", "rule": "rlhf_v or chip"}
    for setting, names in known.items():
        with pytest.raises(ValueError, match=f"{setting}: got 'x'; wanted {names}"):
            ObjHal(root="none", question_file="none", **{setting: "x"})
