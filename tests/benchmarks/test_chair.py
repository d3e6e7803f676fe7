"""CHAIR: the scores of three official scripts, by hand, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hialign.benchmarks.chair import Caption, Chair, image_id, read_caption, read_coco, statistic, there
from hialign.benchmarks.scores import numbers
from hialign.benchmarks.vocabulary import Vocabulary, Words, as_pattern, built_in, chair_file, closed

Official = Callable[[str], Any]
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "chair"
SPLITS = ("train2014", "val2014")
ROW = (
    "mscoco_hallucinated_words",
    "mscoco_gt_words",
    "mscoco_generated_words",
    "hallucination_idxs",
    "words",
)


@pytest.fixture(scope="session")
def table(annotations: Path) -> Vocabulary:
    """The official synonyms."""
    return chair_file(str(annotations / "chair/synonyms.txt"))


def scored(table: Vocabulary, words: Words) -> tuple[dict[str, set[str]], list[Caption]]:
    """Of the made-up images what is there, and their 54 captions."""
    truth = {name: there(image, table, words) for name, image in read_coco(str(GOLDEN), SPLITS).items()}
    lines = [json.loads(line) for line in (GOLDEN / "captions.jsonl").read_text().splitlines()]
    return truth, [read_caption(words(line["caption"]), truth[str(line["image_id"])], table) for line in lines]


def equal(captions: Sequence[Caption], wanted: Any) -> None:
    """Asserts the official numbers, and all that the official script writes of each caption."""
    found = numbers({str(number): caption.counts for number, caption in enumerate(captions)}, statistic)
    for name, value in wanted["overall_metrics"].items():
        assert found[name] == pytest.approx(100 * value, rel=1e-12), name
    for caption, sentence in zip(captions, wanted["sentences"], strict=True):
        row = caption.row
        assert {name: row[name] for name in ROW} == {name: sentence[name] for name in ROW}
        for name, value in sentence["metrics"].items():
            assert row["metrics"][name] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("script", ["original_lisaanne", "maxlinn_pattern_singularize"])
def test_the_scripts_with_pattern_are_reproduced_without_it(official: Official, table: Vocabulary, script: str):
    truth, captions = scored(table, as_pattern)
    assert {name: sorted(found) for name, found in truth.items()} == official("chair/expected_gt_objects.json")[
        "pattern"
    ]
    equal(captions, official(f"chair/expected_{script}.json"))


def test_halvas_script_is_reproduced_from_its_lemmas(official: Official, table: Vocabulary):
    lemmas = {entry["caption"]: entry["lemmas"] for entry in official("chair/expected_tokens.json")}
    known = closed(table)  # for the reference captions, of which no lemmas were recorded
    truth, captions = scored(table, lambda text: lemmas[text] if text in lemmas else known(text))
    assert {name: sorted(found) for name, found in truth.items()} == official("chair/expected_gt_objects.json")["lemma"]
    equal(captions, official("chair/expected_halva_postag_lemma.json"))


def test_the_built_in_singular_differs_from_patterns_in_buses_and_ties_alone(official: Official, table: Vocabulary):
    _, ours = scored(table, closed(table))
    theirs = official("chair/expected_original_lisaanne.json")["sentences"]
    apart = {
        sentence["caption"]: [mention.node for mention in caption.mentions]
        for caption, sentence in zip(ours, theirs, strict=True)
        if [mention.node for mention in caption.mentions] != sentence["mscoco_generated_words"]
    }
    assert apart == {
        "A city bus and several buses wait at the traffic light.": ["bus", "bus", "traffic light"],
        "A bus.": ["bus"],
        "The lady is wearing a bow tie and ties.": ["person", "tie", "tie"],
    }


def test_our_own_table_finds_the_same_things_in_the_made_up_images(official: Official):
    table = built_in()
    truth, _ = scored(table, closed(table))
    assert {name: sorted(found) for name, found in truth.items()} == official("chair/expected_gt_objects.json")["lemma"]


def test_with_our_own_table_the_first_script_s_captions_differ_in_what_its_table_lacks(official: Official):
    """Five more mentions, all of things that are there; this golden needs no official table."""
    _, captions = scored(built_in(), as_pattern)
    wanted = official("chair/expected_original_lisaanne.json")
    more = {
        sentence["caption"]: mentions
        for caption, sentence in zip(captions, wanted["sentences"], strict=True)
        if (mentions := [mention.node for mention in caption.mentions]) != sentence["mscoco_generated_words"]
    }
    assert more == {
        "Two men with racquets play on the court. The crowd sits on benches.": ["person", "tennis racket", "bench"],
        "There is cheesecake on the desk.": ["cake", "dining table"],
        "A motor bike and a motor cycle.": ["motorcycle", "motorcycle"],
        "The boy has an iPhone and a mobile phone.": ["person", "cell phone", "cell phone"],
        "The umpire wears a mask.": ["person"],
    }
    found = numbers({str(number): caption.counts for number, caption in enumerate(captions)}, statistic)
    assert found["CHAIRs"] == pytest.approx(100 * wanted["overall_metrics"]["CHAIRs"], rel=1e-12)
    mentions = sum(len(sentence["mscoco_generated_words"]) for sentence in wanted["sentences"])
    assert wanted["overall_metrics"]["CHAIRi"] == pytest.approx(40 / mentions)
    assert found["CHAIRi"] == pytest.approx(100 * 40 / (mentions + 5))


def coco(folder: Path, split: str = "val2014") -> Path:
    """Image 1 has a dog and a car, by a caption a person too; image 2 has nothing."""
    folder.mkdir(exist_ok=True)
    images = [{"id": n, "file_name": f"COCO_{split}_{n:012d}.jpg"} for n in (1, 2)]
    instances = {
        "images": images,
        "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 1, "category_id": 3}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }
    captions = {"images": images, "annotations": [{"image_id": 1, "caption": "A man walks a puppy."}]}
    for kind, content in (("instances", instances), ("captions", captions)):
        (folder / f"{kind}_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Chair:
    return Chair(root=str(coco(tmp_path / "coco")), images="/images")


ANSWERS = {"1": "Dogs and a cat near cars. A cat!", "2": "Nothing but sky."}


def test_the_numbers_by_hand(small: Chair):
    """Four mentions, two of cats; of dog, car and person two are found; one caption of two is wrong."""
    scores = small.score(ANSWERS)
    assert scores.numbers == {"CHAIRs": 50, "CHAIRi": 50, "Recall": pytest.approx(200 / 3), "Len": (10 + 4) / 2}
    assert scores.numbers == numbers(scores.units, scores.statistic)
    assert scores.rows[0]["mscoco_hallucinated_words"] == [["cat", "cat"], ["cat", "cat"]]
    assert "papers count by CHAIR's synonyms.txt" in scores.flags[0]


def test_captions_without_things_are_scored_as_0_and_flagged(small: Chair):
    scores = small.score({"1": "", "2": "Sky."})
    assert (scores.numbers["CHAIRs"], scores.numbers["CHAIRi"], scores.numbers["Recall"]) == (0, 0, 0)
    assert scores.flags[-1].endswith("the official script divides by zero")


def test_questions_have_their_images(small: Chair):
    first, second = small.questions()
    assert (first.id, first.image) == ("1", "/images/COCO_val2014_000000000001.jpg")
    assert second.text == "Please describe this image in detail."


@pytest.mark.parametrize(
    "entries",
    [
        [{"image_id": int(name), "caption": text} for name, text in ANSWERS.items()],
        [{"question_id": int(name), "prompt": "Describe", "text": text} for name, text in ANSWERS.items()],
        [
            {"question_id": n, "image": f"COCO_val2014_{int(name):012d}.jpg", "text": text}
            for n, (name, text) in enumerate(ANSWERS.items())
        ],
        [{"id": name, "question": "Please", "answer": text} for name, text in ANSWERS.items()],
        [
            {"doc": {"question_id": f"COCO_val2014_{int(name):012d}.jpg"}, "filtered_resps": [text]}
            for name, text in ANSWERS.items()
        ],
    ],
    ids=["maxlinn", "halva", "llava", "ours", "lmms"],
)
def test_captions_of_other_systems_are_read_in_any_order(small: Chair, tmp_path: Path, entries: list[dict[str, Any]]):
    random.Random(0).shuffle(entries)
    for order, entries_ in enumerate((entries, entries[::-1])):
        file = tmp_path / f"{order}.jsonl"
        file.write_text("".join(json.dumps(entry) + "\n" for entry in entries_))
        assert small.read(str(file)) == ANSWERS


def test_captions_in_the_original_format_are_read(small: Chair, tmp_path: Path):
    content = {name: {"image_id": int(name), "caption": text, "CIDEr": 0.1} for name, text in ANSWERS.items()}
    file = tmp_path / "original.json"
    file.write_text(json.dumps({"overall": {"CIDEr": 0.1}, "imgToEval": content}))
    assert small.read(str(file)) == ANSWERS


def test_a_file_names_the_images_that_are_asked_after(small: Chair, tmp_path: Path):
    file = tmp_path / "some.jsonl"
    file.write_text('{"image_id": 2, "caption": "x"}\n')
    some = Chair(root=small.root, ids=str(file))
    assert [question.id for question in some.questions()] == ["2"]
    (tmp_path / "plain.json").write_text('[2, "COCO_val2014_000000000001.jpg"]')
    assert list(Chair(root=small.root, ids=str(tmp_path / "plain.json")).entries) == ["2", "1"]
    file.write_text('{"image_id": 2}\n{"image_id": 2}\n{"image_id": 7}\n')
    with pytest.raises(ValueError, match=r"1 images come twice \(2\) and 1 are not of val2014 \(7\)"):
        some.__class__(root=small.root, ids=str(file)).questions()


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"1": "x"}, "1 not answered: 2"),
        ({**ANSWERS, "3": "x"}, "1 of no question: 3"),
    ],
)
def test_missing_and_unknown_images_are_named(small: Chair, answers: dict[str, str], told: str):
    with pytest.raises(ValueError, match=told) as error:
        small.score(answers)
    assert "ids=FILE asks after fewer" in str(error.value)


def test_an_image_with_two_captions_is_named(small: Chair, tmp_path: Path):
    file = tmp_path / "twice.json"
    file.write_text(json.dumps([{"image_id": n, "caption": "x"} for n in (1, 1, 2)]))
    with pytest.raises(ValueError, match="1 answered twice: 1"):
        small.read(str(file))


def test_missing_files_and_wrong_settings_say_what_is_wanted(small: Chair, tmp_path: Path):
    with pytest.raises(ValueError, match=r"instances_val2014.json: no such file; wanted COCO's annotations"):
        Chair(root=str(tmp_path)).questions()
    with pytest.raises(ValueError, match="lemmatizer: got 'porter'; wanted one of builtin, pattern, nltk"):
        Chair(root=small.root, lemmatizer="porter")
    (tmp_path / "coco/captions_val2014.json").write_text("[]")
    with pytest.raises(ValueError, match=r"captions_val2014.json: no images, annotations; wanted"):
        small.questions()


def test_an_images_number_is_read_from_its_name():
    names = [42, "42", "000000000042", "COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"]
    assert {image_id(name) for name in names} == {"42"}


def test_lmms_eval_s_older_file_of_logs_is_read(small: Chair, tmp_path: Path):
    names = {name: f"COCO_val2014_{int(name):012d}.jpg" for name in ANSWERS}
    logs = [{"doc": {"question_id": names[name]}, "filtered_resps": [text]} for name, text in ANSWERS.items()]
    (tmp_path / "old.json").write_text(json.dumps({"args": {}, "logs": logs[::-1]}))
    assert small.read(str(tmp_path / "old.json")) == ANSWERS


@pytest.mark.parametrize(
    ("kind", "key", "entry", "told"),
    [
        ("instances", "annotations", {"image_id": 9, "category_id": 3}, "annotations, entry 3: image_id 9 is none of"),
        (
            "instances",
            "annotations",
            {"image_id": 1, "category_id": 99},
            "annotations, entry 3: category_id 99 is",
        ),
        (
            "instances",
            "annotations",
            {"image_id": 1},
            "annotations, entry 3: no category_id; wanted COCO",
        ),
        ("instances", "categories", {"id": 5}, "categories, entry 3: no name; wanted COCO's annotations"),
        ("instances", "images", {"id": 3}, "images, entry 3: no file_name; wanted COCO's annotations"),
        (
            "captions",
            "annotations",
            {"image_id": 9, "caption": "A dog."},
            "annotations, entry 2: image_id 9 is none",
        ),
        ("captions", "annotations", {"image_id": 1}, "annotations, entry 2: no caption; wanted COCO's annotations"),
        ("captions", "annotations", "A dog.", "annotations, entry 2: no image_id, caption; wanted COCO's annotations"),
    ],
)
def test_what_is_wrong_in_coco_s_files_is_named(small: Chair, kind: str, key: str, entry: Any, told: str):
    file = Path(small.root) / f"{kind}_val2014.json"
    content = json.loads(file.read_text())
    content[key].append(entry)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{file.name}: {told}"):
        small.score(ANSWERS)


@pytest.mark.parametrize(
    ("content", "told"),
    [([1], "imgToEval: is a list; wanted an object"), ({"1": {"caption": "x"}}, "imgToEval, 1: no image_id; wanted")],
)
def test_what_is_wrong_in_the_original_format_is_named(small: Chair, tmp_path: Path, content: Any, told: str):
    (tmp_path / "original.json").write_text(json.dumps({"imgToEval": content}))
    with pytest.raises(ValueError, match=f"original.json: {told}"):
        small.read(str(tmp_path / "original.json"))


def test_rows_name_images_that_have_no_number(tmp_path: Path):
    folder = coco(tmp_path / "coco")
    for kind in ("instances", "captions"):
        file = folder / f"{kind}_val2014.json"
        file.write_text(file.read_text().replace('"id": 2', '"id": "two"'))
    scores = Chair(root=str(folder)).score({"1": "A dog.", "two": "Sky."})
    assert [row["image_id"] for row in scores.rows] == [1, "two"]
