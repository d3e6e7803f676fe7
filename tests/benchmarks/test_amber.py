"""AMBER: the official scores with the recorded nouns and similarities, by hand, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.benchmarks.amber import Amber, closed_nouns, converted, describe, rounded, statistic
from hialign.benchmarks.scores import numbers, total

Official = Callable[[str], Any]
NAMES = {  # as the official script prints them
    "Descriminative Task": "d",
    "Exsitence": "de",
    "Attribute": "da",
    "State": "da_state",
    "Number": "da_number",
    "Action": "da_action",
    "Relation": "dr",
}
COUNTS = {
    "chair_score": "false",
    "chair_num": "nouns",
    "safe_cover_score": "covered",
    "safe_cover_num": "truth",
    "hallu_cover_score": "fallen_for",
    "hallu_cover_num": "tempting",
    "non_hallu_score": "clean",
    "non_hallu_num": "answers",
}
PREFIXES = {"de": "ha_", "da_state": "as_", "da_number": "an_", "da_action": "aa_", "dr": "asso_"}
TRIALS = {
    "qa_correct_score": "right",
    "qa_correct_num": "answers",
    "qa_no_score": "right_no",
    "qa_no_num": "no",
    "qa_ans_no_score": "right_no",
    "qa_ans_no_num": "says_no",
}


def flat(printed: dict[str, dict[str, float]]) -> dict[str, float]:
    """The printed numbers under our names."""
    return {
        f"{NAMES[group]}/{name}" if group in NAMES else name: value
        for group, values in printed.items()
        for name, value in values.items()
    }


def layout(folder: Path, annotations: list[Any], queries: list[Any], relation: Any = None, safe: Any = ()) -> str:
    """A data folder of AMBER with these annotations; descriptions are asked of an image of their own number."""
    generative = [
        {"id": entry["id"], "image": f"AMBER_{entry['id']}.jpg", "query": "Describe this image."}
        for entry in annotations
        if entry["type"] == "generative"
    ]
    (folder / "query").mkdir(parents=True)
    for name, content in (
        ("annotations", annotations),
        ("relation", relation or {}),
        ("query/query_generative", generative),
        ("query/query_discriminative", queries),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "safe_words.txt").write_text("\n".join(safe))
    return str(folder)


def similarity(table: dict[str, float]) -> Callable[[str, str], float]:
    return lambda a, b: 1.0 if a == b else table.get("|".join(sorted((a, b))), 0.1)


@pytest.fixture
def recorded(official: Official, tmp_path: Path) -> Callable[..., Amber]:
    """The benchmark on the annotations of the official runs, with their nouns and similarities."""
    described, asked = official("amber/generative.json"), official("amber/discriminative.json")
    root = layout(
        tmp_path / "amber",
        described["annotations"] + asked["annotations"],
        asked["queries"],
        described["relation"],
        described["safe_words"],
    )
    nouns = {
        entry["response"]: found["nouns"]
        for entry, found in zip(described["inference_data"], described["per_response"], strict=True)
    }
    known = {"tagger": nouns.__getitem__, "similarity": similarity(described["similarity_table"])}
    return lambda **settings: Amber(root=root, **(known | settings))


def answers_of(official: Official) -> dict[str, str]:
    entries = official("amber/generative.json")["inference_data"] + official("amber/discriminative.json")["responses"]
    return {str(entry["id"]): entry["response"] for entry in entries}


@pytest.mark.parametrize("kind", ["a", "d", "de", "da", "dr"])
def test_the_official_scores_of_each_kind_of_question(official: Official, recorded: Callable[..., Amber], kind: str):
    kinds = {"a": ["g", "de", "da", "dr"], "d": ["de", "da", "dr"]}.get(kind, [kind])
    amber, wanted = recorded(kinds=kinds), official("amber/discriminative.json")["expected"][kind]
    answers = {name: text for name, text in answers_of(official).items() if int(name) in wanted["ids"]}
    scores = amber.score(answers)
    printed = flat(wanted["printed"])
    assert {name: scores.numbers[name] for name in printed} == printed
    assert {name for name in scores.numbers if "strict" not in name} - {"AMBER"} == printed.keys()
    sums = total(scores.units)
    for task, prefix in PREFIXES.items():
        for theirs, ours in TRIALS.items():
            counted = int(wanted["counters"][prefix + theirs])  # without the 0.001 that it begins with
            assert sums.get(f"{task}/{ours}", 0) == counted, (task, ours)


def test_the_official_scores_of_descriptions(official: Official, recorded: Callable[..., Amber]):
    fixture = official("amber/generative.json")
    amber = recorded(kinds=["g"])
    answers = {str(entry["id"]): entry["response"] for entry in fixture["inference_data"]}
    scores = amber.score(answers)
    assert scores.numbers == fixture["expected"]
    sums = total(scores.units)
    assert {theirs: int(fixture["expected_counters"][theirs]) for theirs in COUNTS} == {
        theirs: sums[f"g/{ours}"] for theirs, ours in COUNTS.items()
    }
    for found in fixture["per_response"]:
        unit = scores.units[f"AMBER_{found['id']}.jpg"]
        assert {name: found[name] for name in COUNTS} == {name: unit[f"g/{ours}"] for name, ours in COUNTS.items()}
        assert rounded(statistic({name: np.asarray(value) for name, value in unit.items()})) == found["printed"]


def test_the_score_of_the_paper_and_the_statistic_up_to_rounding(official: Official, recorded: Callable[..., Amber]):
    scores = recorded().score(answers_of(official))
    assert scores.numbers["AMBER"] == 63.65, "(100 - 44.6 + 71.9) / 2"
    for name, value in numbers(scores.units, scores.statistic).items():
        assert value == pytest.approx(scores.numbers[name], abs=0.1), name
    assert len(scores.correct) == 180
    assert 100 * sum(scores.correct.values()) / 180.001 == pytest.approx(scores.numbers["d/Accuracy"], abs=0.05)


def test_degenerate_answers_score_as_in_the_official_script(official: Official, recorded: Callable[..., Amber]):
    cases = official("amber/degenerate.json")
    for name in ("all_yes", "all_no"):
        amber = recorded(kinds=["de", "da", "dr"])
        answers = {str(entry["id"]): entry["response"] for entry in cases[name]["data"]}
        printed = flat(cases[name]["printed"])
        found = amber.score(answers).numbers
        assert {key: found[key] for key in printed} == printed
    for name in ("empty", "empty_g"):
        columns = (
            [f"{task}/answers" for task in PREFIXES] if name == "empty" else [f"g/{one}" for one in COUNTS.values()]
        )
        found = rounded(statistic({column: np.asarray(0.0) for column in columns}))
        printed = flat(cases[name]["printed"])
        assert {key: found[key] for key in printed} == printed


def test_one_right_answer_scores_99_9_as_in_the_official_script(official: Official, tmp_path: Path):
    case = official("amber/degenerate.json")["one_correct_no"]
    annotation = {"id": 8633, "type": "discriminative-hallucination", "truth": "no"}
    root = layout(tmp_path / "amber", [annotation], [{"id": 8633, "image": "AMBER_1.jpg", "query": "Is there a cat?"}])
    found = Amber(root=root, kinds=["de"]).score({"8633": case["data"][0]["response"]}).numbers
    printed = flat(case["printed"])
    assert {name: found[name] for name in printed} == printed
    assert found["de/Accuracy_strict"] == 100


def test_answers_become_yes_or_no_as_others_make_them(official: Official):
    for case in official("amber/yes_no_conversion.json"):
        raw = case["raw"]
        found = {rule: converted(raw, rule) for rule in ("halva", "chip", "lmms_eval")}
        wanted = {"halva": case["halva"], "chip": case["chip"], "lmms_eval": case["lmms_eval_process_discriminative"]}
        assert found == wanted, raw
        assert converted(raw, "official") == raw


RELATION = {"sea": ["water"], "beach": ["sand"], "dog": [], "boat": ["ship"], "can": []}


def counted(nouns: list[str], alike: dict[str, float] | None = None) -> tuple[dict[str, float], list[str]]:
    return describe(
        nouns,
        ["sea", "beach", "sea"],
        ["boat", "dog"],
        RELATION,
        ["light"],
        None if alike is None else similarity(alike),
    )


def test_a_description_by_hand():
    """Water and sand cover two of three entries; a ship stands for the boat and is not there; light is never wrong."""
    counts, false = counted(["water", "sand", "ship", "ship", "light", "sea"])
    assert false == ["ship", "ship"]
    assert counts == {
        "g/nouns": 6,
        "g/false": 2,
        "g/truth": 3,
        "g/covered": 2,
        "g/tempting": 2,
        "g/fallen_for": 1,
        "g/answers": 1,
        "g/clean": False,
    }


def test_a_similar_word_covers_and_may_be_fallen_for_at_once():
    alike = {"puppy|water": 0.81, "dog|puppy": 0.9, "beach|shore": 0.8}
    counts, false = counted(["puppy", "shore"], alike)
    assert false == ["shore"], "0.8 is not above 0.8"
    assert (counts["g/covered"], counts["g/fallen_for"]) == (1, 1)
    assert counted(["puppy", "shore"])[1] == ["puppy", "shore"], "without a similarity"


def test_nouns_without_a_tagger():
    nouns = closed_nouns(["dog", "can", "TV", "glass", "sunglasses"])
    assert nouns("Dogs can see two dogs, a can, the TV, glasses and sunglasses.") == [
        "dog",
        "can",
        "TV",
        "glass",
        "sunglasses",
    ]


def test_without_a_tagger_and_similarity_the_scores_say_so(official: Official, recorded: Callable[..., Amber]):
    scores = recorded(kinds=["g"], tagger="builtin", similarity="none").score(
        {str(entry["id"]): entry["response"] for entry in official("amber/generative.json")["inference_data"]}
    )
    assert [flag.split(":")[0] for flag in scores.flags] == ["no tagger", "no similarity"]
    fixture = official("amber/generative.json")
    known = set(fixture["relation"]).union(*fixture["relation"].values())
    apart = {
        row["id"]: (row["nouns"], theirs)
        for row, found in zip(scores.rows, fixture["per_response"], strict=True)
        if row["nouns"] != (theirs := [noun for noun in found["nouns"] if noun in known])
    }
    assert all(set(theirs) < set(ours) for ours, theirs in apart.values()), "it finds what the tagger finds, and more"
    assert len(apart) == 4


def test_the_real_annotations_are_read(annotations: Path):
    amber = Amber(root=str(annotations / "amber"))
    asked = amber.questions()
    assert (len(asked), asked[0].text, asked[0].image) == (15220, "Describe this image.", "AMBER_1.jpg")
    assert len(amber.known) == 418
    truth = {
        name: entry["truth"].capitalize() if entry["type"] != "generative" else "Nothing."
        for name, entry in amber.annotations.items()
    }
    scores = amber.score(truth)
    assert {scores.numbers[f"{part}/F1"] for part in ("d", "de", "da", "dr")} == {100.0}
    assert (scores.numbers["CHAIR"], scores.numbers["Cover"], len(scores.units)) == (0, 0, 1004)


@pytest.fixture
def small(tmp_path: Path) -> Amber:
    annotations = [
        {"id": 1, "type": "generative", "truth": ["sea"], "hallu": ["dog"]},
        {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 1006, "type": "relation", "truth": "no"},
        {"id": 1007, "type": "discriminative-hallucination", "truth": "no"},
    ]
    queries = [{"id": n, "image": "AMBER_1.jpg", "query": f"Is it {n}?"} for n in (1005, 1006, 1007)]
    return Amber(root=layout(tmp_path / "amber", annotations, queries, RELATION), images="/i", suffix="\nYes or No.")


ANSWERS = {"1": "The sea and a dog.", "1005": "Yes", "1006": "No", "1007": "no, there is none"}


def test_all_questions_of_an_image_are_one_unit_and_the_strict_rule_stands_beside(small: Amber):
    scores = small.score(ANSWERS)
    assert list(scores.units) == ["AMBER_1.jpg"]
    assert list(scores.numbers)[:3] == ["AMBER", "CHAIR", "Cover"]
    assert (scores.numbers["d/Accuracy"], scores.numbers["d/Accuracy_strict"]) == (66.6, 100)
    assert (scores.numbers["de/Recall"], scores.numbers["de/Recall_strict"]) == (0, 100)
    assert scores.correct == {"1005": True, "1006": True, "1007": False}
    chip = Amber(root=small.root, conversion="chip").score(ANSWERS)
    assert chip.numbers["d/Accuracy"] == 100.0
    assert any("as chip does" in flag for flag in chip.flags)


def test_the_suffix_stands_behind_yes_or_no_questions_alone(small: Amber):
    asked = small.questions()
    assert [one.text for one in asked][:2] == ["Describe this image.", "Is it 1005?\nYes or No."]
    assert asked[1].image == "/i/AMBER_1.jpg"


@pytest.mark.parametrize("key", ["response", "answer", "text"])
def test_answers_are_joined_by_ids_in_any_order(small: Amber, tmp_path: Path, key: str):
    entries = [{"id": int(name), key: text} for name, text in ANSWERS.items()]
    random.Random(0).shuffle(entries)
    (tmp_path / "a.json").write_text(json.dumps(entries))
    assert small.read(str(tmp_path / "a.json")) == ANSWERS
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries[::-1]))
    assert small.read(str(tmp_path / "a.jsonl")) == ANSWERS


def test_rows_of_lmms_eval_are_read(small: Amber, tmp_path: Path):
    entries = [
        {"doc_id": 7 - n, "doc": {"id": int(name)}, "filtered_resps": [text]}
        for n, (name, text) in enumerate(ANSWERS.items())
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert small.read(str(tmp_path / "a.jsonl")) == ANSWERS


@pytest.mark.parametrize(
    ("change", "told"),
    [({"1007": None}, "1 not answered: 1007"), ({"9": "no"}, "1 of no question: 9")],
)
def test_missing_and_unknown_answers_are_named(small: Amber, change: dict[str, str | None], told: str):
    answers = {name: text for name, text in (ANSWERS | change).items() if text is not None}
    with pytest.raises(ValueError, match=told):
        small.score(answers)


def test_wrong_settings_and_missing_files_say_what_is_wanted(small: Amber, tmp_path: Path):
    with pytest.raises(ValueError, match=r"kinds: got \['a'\]; wanted some of g, de, da, dr"):
        Amber(root=small.root, kinds=["a"])
    with pytest.raises(ValueError, match="conversion: got 'x'; wanted official, halva, chip or lmms_eval"):
        Amber(root=small.root, conversion="x")
    for setting in ("tagger", "similarity"):
        with pytest.raises(ValueError, match=f"{setting}: got 'x'; wanted "):
            Amber(root=small.root, **{setting: "x"}).score(ANSWERS)
    with pytest.raises(ValueError, match=r"query_generative.json: no such file; wanted AMBER's data folder"):
        Amber(root=str(tmp_path)).questions()
    (Path(small.root) / "query/query_discriminative.json").write_text("[]")
    with pytest.raises(ValueError, match="3 not answered: 1005, 1006, 1007"):
        Amber(root=small.root).questions()


def test_answers_to_other_kinds_are_left_out_and_counted_and_unknown_ones_named(small: Amber, tmp_path: Path):
    existence = Amber(root=small.root, kinds=["de"])
    file = tmp_path / "whole.json"
    entries = [{"id": int(name), "response": text} for name, text in ANSWERS.items()]
    file.write_text(json.dumps(entries[::-1]))
    scores = existence.score(existence.read(str(file)))
    assert scores.flags == ["Answers to questions that are not asked here, which are left out: 3."]
    alone = existence.score({"1007": ANSWERS["1007"]})
    assert (scores.numbers, list(scores.correct), alone.flags) == (alone.numbers, ["1007"], [])
    file.write_text(json.dumps([*entries, {"id": 9, "response": "x"}]))
    with pytest.raises(ValueError, match="1 of no question: 9"):
        existence.read(str(file))


def test_two_answers_to_a_question_are_named(small: Amber, tmp_path: Path):
    entries = [{"id": int(name), "response": text} for name, text in (*ANSWERS.items(), ("1006", "Yes"))]
    (tmp_path / "twice.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="1 answered twice: 1006"):
        small.read(str(tmp_path / "twice.json"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("annotations", [{"type": "relation", "truth": "no"}], "question 1: no id; wanted AMBER's data folder"),
        ("annotations", [{"id": 1, "type": "generative", "truth": []}], "annotation 1: no hallu; wanted AMBER's data"),
        ("annotations", [{"id": 1, "type": "generative", "hallu": []}], "question 1: no truth; wanted AMBER's data"),
        (
            "annotations",
            [{"id": 1, "type": "generative", "truth": "sea", "hallu": []}],
            "annotation 1: truth is 'sea', no list of words; wanted AMBER's data",
        ),
        ("annotations", [{"id": 1, "type": "relation", "truth": []}], r"annotation 1: truth is \[\], not yes or no"),
        ("annotations", [{"id": 1, "type": "relation", "truth": "no"}] * 2, "question 2: 1 comes twice"),
        ("annotations", [{"id": 1, "type": "colour", "truth": "no"}], "annotation 1 is of type 'colour'; wanted AMBER"),
        ("relation", ["sea"], "wanted an object of {word: "),
        ("relation", {"sea": "water"}, "wanted an object of {word: "),
        ("query/query_discriminative", [{"id": 1005, "query": "?"}], "question 1: no image; wanted AMBER's data"),
        ("query/query_discriminative", [{"id": 1005, "image": 3, "query": "?"}], "question 1: image is 3, no text"),
        ("query/query_discriminative", [{"image": "a.jpg", "query": "?"}], "question 1: no id; wanted AMBER's data"),
    ],
)
def test_what_is_wrong_in_the_data_folder_is_named(small: Amber, name: str, content: Any, told: str):
    (Path(small.root) / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name}.json: {told}"):
        small.score(ANSWERS)


def test_wrong_settings_are_told_before_a_file_is_read():
    with pytest.raises(ValueError, match="tagger: got 'x'; wanted builtin, nltk, spacy"):
        Amber(root="none", tagger="x")
    with pytest.raises(ValueError, match="similarity: got 'x'; wanted none, spacy"):
        Amber(root="none", similarity="x")
