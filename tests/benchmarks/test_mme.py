"""MME's rule and its marks: by hand, and those of the official script."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.benchmarks.mme import ENDING, HALLUCINATION, SHORT, TASKS, Mme, reading
from hialign.benchmarks.scores import numbers, total

Official = Callable[[str], Any]
Rows = dict[str, list[list[str]]]


def write(folder: Path, rows: Rows, cells: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for task, lines in rows.items():
        (folder / f"{task}.txt").write_text("".join("\t".join(line[:cells]) + "\n" for line in lines))
    return str(folder)


def make(folder: Path, rows: Rows, **settings: Any) -> Mme:
    return Mme(root=write(folder / "questions", rows, 3), **({"tasks": list(rows)} | settings))


SMALL: Rows = {
    task: [
        [image, f"Is there {thing} in {image}?{ENDING}", truth, answer]
        for image, answers in (("1.jpg", ("Yes", "No")), ("2.png", ("The answer is yes", "No.")))
        for thing, truth, answer in zip(("a dog", "a cat"), ("Yes", "No"), answers, strict=True)
    ]
    for task in HALLUCINATION
}


def test_the_official_scores_from_official_files(official: Official, tmp_path: Path):
    fixture = official("mme/official_calculation.json")
    mme = make(tmp_path, fixture["rows"])
    scores = mme.score(mme.read(write(tmp_path / "answers", fixture["rows"], 4)))
    found, wanted = scores.numbers, fixture["expected"]
    assert list(fixture["rows"]) == list(TASKS)
    assert found["perception"] == pytest.approx(wanted["total"]["Perception"], abs=1e-9)
    assert found["cognition"] == pytest.approx(wanted["total"]["Cognition"], abs=1e-9)
    subset = wanted["hallucination_subset_existence_count_position_color"]
    assert found["hallucination"] == pytest.approx(subset, abs=1e-9)
    sums = total(scores.units)
    for task, theirs in fixture["metrics"].items():
        assert found[f"{task}/score"] == pytest.approx(wanted["task"][task], abs=1e-9)
        for name in ("precision", "recall", "acc"):
            assert found[f"{task}/{name}"] == pytest.approx(theirs[name], abs=1e-9)
        cells = {"TP": "tp", "FP": "fp", "FN": "fn", "other_num": "other"}
        assert {name: sums[f"{task}/{ours}"] for name, ours in cells.items()} == {name: theirs[name] for name in cells}


def test_the_official_table_of_answers(official: Official):
    label = {True: "yes", False: "no", None: "other"}
    table = official("mme/parse_table.json")
    assert [label[reading(row["pred"])] for row in table] == [row["label"] for row in table]
    assert [label[reading(row["pred"] + "\n")] for row in table] == [row["label_with_newline"] for row in table]


def test_the_marks_by_hand(tmp_path: Path):
    """Of four questions three are right, of two images one is: 75 + 50. Strict reads the answer in the sentence."""
    mme = make(tmp_path, SMALL)
    found = mme.score(mme.read(write(tmp_path / "answers", SMALL, 4))).numbers
    assert (found["existence/score"], found["existence/acc"], found["existence/acc_plus"]) == (125, 0.75, 0.5)
    assert (found["existence/recall"], found["existence/other"]) == (1, 0.25), "what is neither is not missed"
    assert found["hallucination"] == 4 * 125
    assert (found["hallucination_strict"], found["count/score_strict"]) == (800, 200)
    assert "perception" not in found


def test_llava_s_lmms_eval_s_and_our_answers_are_read_in_any_order(tmp_path: Path):
    mme = make(tmp_path, SMALL)
    wanted = mme.read(write(tmp_path / "answers", SMALL, 4))
    asked = [(task, line) for task, lines in SMALL.items() for line in lines]
    bare = lambda line: line[1].removesuffix(ENDING)  # noqa: E731
    formats: dict[str, list[dict[str, Any]]] = {
        "llava.jsonl": [
            {"question_id": f"{task}/images/{line[0]}", "prompt": bare(line) + SHORT, "text": line[3]}
            for task, line in asked
        ],
        "lmms.jsonl": [
            {"doc": {"question_id": f"{task}/{line[0]}", "question": line[1]}, "filtered_resps": [line[3]]}
            for task, line in asked
        ],
        "ours.jsonl": [{"id": name, "answer": text} for name, text in wanted.items()],
    }
    for name, entries in formats.items():
        random.Random(0).shuffle(entries)
        (tmp_path / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        assert mme.read(str(tmp_path / name)) == wanted, name


def test_the_statistic_of_totals_is_the_numbers_and_takes_arrays(tmp_path: Path):
    mme = make(tmp_path, SMALL)
    answers = {name: "yes" if "1.jpg" in name else "No." for name in mme.entries}
    scores = mme.score(answers)
    assert numbers(scores.units, scores.statistic) == scores.numbers
    assert mme.score(dict(reversed(answers.items()))).numbers == scores.numbers
    assert list(scores.units)[:2] == ["existence/1.jpg", "existence/2.png"]
    sums = {count: np.array([0.0, 2.0]) for unit in scores.units.values() for count in unit}
    assert all(value.shape == (2,) and np.isfinite(value).all() for value in scores.statistic(sums).values())


def test_questions_are_asked_as_they_are_or_with_llava_s_suffix(tmp_path: Path):
    rows = {"artwork": SMALL["count"], "count": SMALL["count"]}
    plain = make(tmp_path, rows, images="MME").questions()
    assert [one.image for one in plain][::4] == ["MME/artwork/images/1.jpg", "MME/count/1.jpg"]
    assert plain[0].text == "Is there a dog in 1.jpg? Please answer yes or no."
    short = make(tmp_path, rows, suffix=SHORT).questions()
    assert short[0].text == "Is there a dog in 1.jpg?\nAnswer the question using a single word or phrase."


def test_what_does_not_fit_is_named(tmp_path: Path):
    mme = make(tmp_path, SMALL)
    answers = dict.fromkeys(mme.entries, "no")
    with pytest.raises(ValueError, match=r"1 not answered: count/1.jpg/2"):
        mme.score({name: text for name, text in answers.items() if name != "count/1.jpg/2"})
    with pytest.raises(ValueError, match=r"1 of no question: count/9.jpg/1"):
        mme.score(answers | {"count/9.jpg/1": "no"})
    file = tmp_path / "twice.jsonl"
    line = {"question_id": "count/1.jpg", "prompt": SMALL["count"][0][1], "text": "no"}
    file.write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"question_id": "count/9.jpg"}) + "\n" + json.dumps(line)
    )
    with pytest.raises(ValueError, match=r"1 answered twice: count/1.jpg/1; 1 of no question: count/9.jpg 'Is there"):
        mme.read(str(file))
    broken = {task: [[*line[:3], "a\tb"] for line in lines] for task, lines in SMALL.items()}
    with pytest.raises(ValueError, match=r"existence.txt: line 1 has 5 cells"):
        mme.read(write(tmp_path / "broken", broken, 4))
    with pytest.raises(ValueError, match=r"tasks: got \['colour'\], wanted some of existence"):
        Mme(root="x", tasks=["colour"])
    with pytest.raises(ValueError, match=r"OCR.txt: no such file; wanted MME's questions of one task \(eval_tool.zip"):
        Mme(root=str(tmp_path), tasks=["OCR"]).questions()
    with pytest.raises(ValueError, match=r"count/1.jpg has one question"):
        make(tmp_path / "odd", {"count": SMALL["count"][:1]}).questions()
    with pytest.raises(ValueError, match=r"line 3 is the third to 1.jpg"):
        make(tmp_path / "three", {"count": [SMALL["count"][0]] * 3}).questions()


def test_answers_to_other_tasks_are_left_out_and_counted_and_unknown_ones_named(tmp_path: Path):
    whole = make(tmp_path, SMALL | {"OCR": SMALL["count"]})
    some = Mme(root=whole.root, tasks=HALLUCINATION)
    lines = [
        {"question_id": f"{item.task}/{item.image}", "prompt": item.text, "text": "Yes" if item.truth else "No"}
        for item in whole.entries.values()
    ]
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))
    scores = some.score(some.read(str(file)))
    assert scores.numbers["hallucination"] == 800
    assert scores.flags == ["Answers to questions that are not asked here, which are left out: 4."]
    assert scores.numbers.keys() == {name for name in whole.score(whole.read(str(file))).numbers if "OCR" not in name}
    for wrong in ("colour/1.jpg", "count/9.jpg"):
        file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0] | {"question_id": wrong}]))
        with pytest.raises(ValueError, match=f"1 of no question: {wrong}"):
            some.read(str(file))
