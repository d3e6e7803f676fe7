"""HallusionBench's accuracies and diagnoses: by hand, and those of the official scripts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.benchmarks.hallusionbench import CHECK, HallusionBench, agrees, blame, verdict, verdict_strict
from hialign.benchmarks.scores import numbers

Official = Callable[[str], Any]


def name(entry: dict[str, Any]) -> str:
    return "_".join(str(entry[part]) for part in ("category", "subcategory", "set_id", "figure_id", "question_id"))


def make(folder: Path, items: list[dict[str, Any]], replies: Any = None, **settings: Any) -> HallusionBench:
    told = {"question": "Is it so?", "gt_answer_details": "It is so."}
    entries = [
        told | {"filename": None if item["visual_input"] == "0" else f"./VD/math/{name(item)}.png"} | item
        for item in items
    ]
    (folder / "HallusionBench.json").write_text(json.dumps(entries))
    file = folder / "replies.json"
    if replies is not None:
        file.write_text(json.dumps(replies))
    return HallusionBench(root=str(folder), replies=None if replies is None else str(file), **settings)


def judged(items: list[dict[str, Any]], checks: list[str], same: list[str] | None = None) -> list[dict[str, Any]]:
    rows = [item | {CHECK: check, "model_prediction": "x"} for item, check in zip(items, checks, strict=True)]
    return rows if same is None else [row | {"same": one} for row, one in zip(rows, same, strict=True)]


def item(category: str, figure: str, question: str, visual: str, truth: str = "1") -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": "math",
        "visual_input": visual,
        "set_id": "0",
        "figure_id": figure,
        "question_id": question,
        "gt_answer": truth,
    }


def test_the_official_scores_of_judged_answers(official: Official, tmp_path: Path):
    fixture = official("hallusionbench/small.json")
    items, wanted = fixture["items"], fixture["expected"]
    bench = make(tmp_path, items, judged(items, fixture["correctness"], fixture["same"]))
    found = bench.score({name(one): "x" for one in items}).numbers
    for acc in ("aAcc", "qAcc", "fAcc", "easy_aAcc", "hard_aAcc"):
        assert round(found[acc], 4) == wanted[acc]
        assert found[f"{acc}_strict"] == found[acc], "stored checks are words whose meaning is clear"
    groups = {"VD": ("easy_vd", "hard_vd", "figure_vd"), "VS": ("easy_vs", "hard_vs", "figure_vs")}
    for category, (easy, hard, figure) in groups.items():
        answers = wanted[f"{category.lower()}_per_question"]
        assert found[f"{category}/aAcc"] == pytest.approx(100 * answers["correct"] / answers["total"])
        assert found[f"{category}/easy_aAcc"] == pytest.approx(100 * wanted[easy]["correct"] / wanted[easy]["total"])
        assert found[f"{category}/hard_aAcc"] == pytest.approx(100 * wanted[hard]["correct"] / wanted[hard]["total"])
        assert found[f"{category}/fAcc"] == pytest.approx(100 * wanted[figure]["correct"] / wanted[figure]["total"])
        assert found[f"{category}/figure_score"] == pytest.approx(wanted[figure]["score"])
    figures, pairs = wanted["figure"], wanted["per_pair"]
    assert found["figure_score"] == pytest.approx(figures["score"])
    for kind in ("wrong", "inconsistent"):
        assert found[f"consistency_{kind}"] == pytest.approx(100 * figures[kind] / figures["total"])
    failures = pairs["LH_cg"] + pairs["VI_cg"] + pairs["Mix_cg"]
    for kind, theirs in (("LH", "LH_cg"), ("VI", "VI_cg"), ("Mixed", "Mix_cg")):
        assert found[kind] == pytest.approx(100 * pairs[theirs] / failures)
    assert found["yes_no_bias_diff"] == pytest.approx(wanted["bias"]["diff"], abs=1e-12)
    assert found["yes_no_bias_fp_ratio"] == pytest.approx(wanted["bias"]["fp"], abs=1e-12)


@pytest.mark.parametrize(("run", "check"), [("all_uncertain", "2"), ("all_wrong", "0"), ("all_correct", "1")])
def test_runs_that_are_all_alike_have_the_official_scores_or_a_flag(
    official: Official, annotations: Path, tmp_path: Path, run: str, check: str
):
    root = annotations / "hallusionbench"
    items = json.loads((root / "HallusionBench.json").read_text())
    file = tmp_path / "replies.json"
    file.write_text(json.dumps(judged(items, [check] * len(items))))
    bench = HallusionBench(root=str(root), replies=str(file))
    scores, wanted = bench.score({name(one): "x" for one in items}), official(f"hallusionbench/{run}.json")
    assert "LH" not in scores.numbers
    assert "LH, VI and Mixed are left out" in scores.flags[0]
    if "raises" in wanted:
        assert "where the official script divides by zero" in scores.flags[1]
        assert (scores.numbers["aAcc"], scores.numbers["yes_no_bias_fp_ratio"]) == (100, 0)
        return
    assert len(scores.flags) == 1
    for acc in ("aAcc", "qAcc", "fAcc", "easy_aAcc", "hard_aAcc"):
        assert round(scores.numbers[acc], 4) == wanted[acc]
    assert scores.numbers["yes_no_bias_diff"] == pytest.approx(wanted["bias"]["diff"], abs=1e-12)
    assert scores.numbers["yes_no_bias_fp_ratio"] == pytest.approx(wanted["bias"]["fp"], abs=1e-12)


def test_the_official_table_of_replies(official: Official):
    table = official("hallusionbench/judge_text_mapping.json")
    assert [str(verdict(row["judge"])) for row in table["correctness"]] == [
        r["correctness"] for r in table["correctness"]
    ]
    assert [str(int(agrees(row["judge"]))) for row in table["same"]] == [row["same"] for row in table["same"]]


def test_the_scores_of_lmms_eval_s_rule(official: Official, tmp_path: Path):
    fixture = official("hallusionbench/yes_no_rule_lmms_eval.json")
    items = [dict(zip(fixture["columns"], row, strict=True)) for row in fixture["rows"]]
    bench = make(tmp_path, items, rule="lmms_eval")
    answers = dict(zip(map(name, items), fixture["predictions"], strict=True))
    scores = bench.score(answers)
    for acc in ("aAcc", "qAcc", "fAcc"):
        assert scores.numbers[f"lmms_eval/{acc}"] == pytest.approx(fixture["expected"][acc], abs=1e-12)
    unclear = fixture["predictions"].count("I cannot tell")
    assert scores.numbers["lmms_eval/unclear_strict"] == pytest.approx(unclear / len(items)) != 0
    assert scores.numbers["lmms_eval/aAcc_strict"] < scores.numbers["lmms_eval/aAcc"], "to lmms-eval that is a no"
    assert sum(scores.correct.values()) / len(items) == scores.numbers["lmms_eval/aAcc"]


def test_an_answer_that_says_neither_is_a_no_to_lmms_eval_and_wrong_to_the_strict_rule(tmp_path: Path):
    items = [item("VD", "0", "0", "1", "0"), item("VD", "0", "1", "1", "0")]
    scores = make(tmp_path, items, rule="lmms_eval").score({name(items[0]): "A triangle", name(items[1]): "Not yes"})
    assert (scores.numbers["lmms_eval/aAcc"], scores.numbers["lmms_eval/aAcc_strict"]) == (1 / 2, 1 / 2)
    assert [row["strict"] for row in scores.rows] == [None, False]
    assert scores.numbers["lmms_eval/unclear_strict"] == 1 / 2


def test_the_real_file_is_read_whole_and_without_figures_left_out(annotations: Path):
    root = str(annotations / "hallusionbench")
    judge, words = HallusionBench(root=root, images="img"), HallusionBench(root=root, rule="lmms_eval")
    assert (len(judge.questions()), len(words.questions())) == (1129, 951)
    assert sum(question.image is None for question in judge.questions()) == 178
    assert judge.questions()[700].image == "img/VD/math/3_0.png"
    truth = {one: "Yes" if entry["gt_answer"] == "1" else "No" for one, entry in words.entries.items()}
    scores = words.score(truth)
    assert {scores.numbers[f"lmms_eval/{acc}"] for acc in ("aAcc", "qAcc", "fAcc")} == {1.0}
    assert len(judge.requests(dict.fromkeys(judge.entries, "x"))) == 1129 + len(judge.originals) == 1129 + 674


FOUR = [
    item("VS", "0", "0", "0"),
    item("VS", "0", "1", "0", "0"),
    item("VS", "1", "0", "1"),
    item("VS", "1", "1", "2", "0"),
    item("VD", "0", "0", "1"),
]


def test_the_numbers_by_hand(tmp_path: Path):
    """Unclear without a figure is right, so VS 0_0, 0_1, 1_0 and VD are right, and VS 1_1, whose truth is no, wrong.

    Of three question groups two are whole; of two figures, VS's absent one left out, VD's is. Easy groups: 2 of VS
    (0_0 with 1_0, and 0_1), VD; hard: VS 1_1. The wrong answer repeats what was right without a figure: LH.
    """
    replies = judged(FOUR, ["2", "1", "1", "0", "1"], ["1"] * 5)
    scores = make(tmp_path, FOUR, replies).score({name(one): "x" for one in FOUR})
    found = scores.numbers
    assert (found["aAcc"], found["fAcc"], found["easy_aAcc"], found["hard_aAcc"]) == (80, 50, 100, 0)
    assert found["qAcc"] == pytest.approx(200 / 3)
    assert (found["consistency_wrong"], found["consistency_inconsistent"], found["figure_score"]) == (0, 50, 0.75)
    assert (found["LH"], found["VI"], found["Mixed"]) == (100, 0, 0)
    assert found["yes_no_bias_diff"] == pytest.approx(4 / 5 - 3 / 5), "the wrong no is taken for a yes"
    assert found["yes_no_bias_fp_ratio"] == 1
    assert list(scores.units) == ["VS_math_0", "VD_math_0"]
    assert sum(scores.correct.values()) == 4


@pytest.mark.parametrize(
    ("category", "figure", "visual", "found", "original", "same", "cause"),
    [
        ("VD", "0", "1", 2, 2, True, "VI"),
        ("VS", "0", "0", 0, 0, True, "LH"),
        ("VS", "0", "0", 2, 2, True, None),
        ("VD", "1", "2", 1, 0, True, None),
        ("VD", "1", "2", 0, 1, True, "Mixed"),
        ("VD", "1", "2", 0, 1, False, "VI"),
        ("VD", "1", "2", 2, 1, True, "VI"),
        ("VD", "1", "2", 0, 0, True, "VI"),
        ("VS", "1", "1", 0, 0, True, "LH"),
        ("VS", "1", "1", 0, 0, False, "Mixed"),
        ("VS", "1", "1", 2, 0, True, "Mixed"),
        ("VS", "1", "2", 0, 2, True, "VI"),
        ("VS", "1", "2", 2, 1, True, "VI"),
        ("VS", "1", "1", 0, 1, True, "VI"),
        ("VS", "1", "2", 0, 1, True, "LH"),
        ("VS", "1", "2", 0, 1, False, "VI"),
    ],
)
def test_what_is_blamed(category, figure, visual, found, original, same, cause):
    assert blame(item(category, figure, "0", visual), found, original, same) == cause


@pytest.mark.parametrize(
    ("reply", "official", "strict"),
    [
        ("not correct", 1, 0),
        ("The prediction isn't quite correct.", 1, 0),
        ("wrong", 2, 0),
        ("not incorrect", 0, 1),
        ("partially correct", 1, 2),
        ("It is incorrect, not correct", 0, 0),
        ("Correct.", 1, 1),
        ("correct or incorrect?", 0, 2),
        ("unclear", 2, 2),
        ("", 2, 2),
    ],
)
def test_the_strict_verdict_stands_beside_the_official_one(reply: str, official: int, strict: int):
    assert (verdict(reply), verdict_strict(reply)) == (official, strict)


def test_strict_numbers_are_of_strict_verdicts(tmp_path: Path):
    texts = ["correct", "wrong", "not correct", "correct", "partially correct"]
    rows = [{"id": name(one), "reply": text} for one, text in zip(FOUR, texts, strict=True)]
    found = make(tmp_path, FOUR, rows).score({name(one): "x" for one in FOUR}).numbers
    assert (found["aAcc"], found["aAcc_strict"]) == (100, 40), (
        "official: wrong is unclear, which is right without figure"
    )


def test_replies_in_rows_give_what_judged_files_give_in_any_order_and_number(tmp_path: Path):
    checks, same = ["2", "0", "1", "0", "1"], ["1", "1", "0", "1", "1"]
    answers = {name(one): "x" for one in FOUR}
    wanted = make(tmp_path, FOUR, judged(FOUR, checks, same)).score(answers).numbers
    words = {"0": "incorrect", "1": "correct", "2": "unclear"}
    rows = [{"id": name(one), "reply": words[check]} for one, check in zip(FOUR, checks, strict=True)]
    rows += [{"id": f"{name(FOUR[at])}/same", "reply": {"1": "same", "0": "different"}[same[at]]} for at in (2, 3)]
    random.Random(1).shuffle(rows)
    assert make(tmp_path, FOUR, rows).score(answers).numbers == wanted
    for file, some in (("vd.json", FOUR[4:]), ("vs.json", FOUR[:4])):
        at = slice(4, 5) if file == "vd.json" else slice(0, 4)
        (tmp_path / file).write_text(json.dumps(judged(some, checks[at], same[at])))
    files = [str(tmp_path / "vd.json"), str(tmp_path / "vs.json")]
    assert HallusionBench(root=str(tmp_path), replies=files).score(answers).numbers == wanted


def test_the_statistic_of_totals_is_the_numbers_and_takes_arrays(tmp_path: Path):
    bench = make(tmp_path, FOUR, judged(FOUR, list("20101"), list("11011")))
    scores = bench.score({name(one): "x" for one in FOUR})
    assert numbers(scores.units, scores.statistic) == scores.numbers
    assert bench.score({name(one): "x" for one in FOUR[::-1]}).numbers == scores.numbers
    sums = {count: np.array([0.0, 2.0]) for unit in scores.units.values() for count in unit}
    assert all(value.shape == (2,) and np.isfinite(value).all() for value in scores.statistic(sums).values())


def test_official_lmms_eval_and_our_answers_are_read(tmp_path: Path):
    bench, words = make(tmp_path, FOUR), make(tmp_path, FOUR, rule="lmms_eval")
    wanted = {name(one): f"Yes {name(one)}" for one in FOUR}
    visual = {name(one): wanted[name(one)] for one in FOUR if one["visual_input"] != "0"}
    results = [one | {"model_prediction": wanted[name(one)]} for one in FOUR[::-1]]
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(results))
    assert (bench.read(str(file)), words.read(str(file))) == (wanted, wanted)
    rows = [
        {"doc_id": at, "doc": one, "filtered_resps": [wanted[name(one)]]}
        for at, one in enumerate(FOUR)
        if one["visual_input"] != "0"
    ]
    file.write_text(json.dumps(rows[::-1]))
    assert words.read(str(file)) == visual
    file.write_text(json.dumps([{"id": one, "answer": text} for one, text in wanted.items()]))
    assert (bench.read(str(file)), words.read(str(file))) == (wanted, wanted)
    file.write_text(json.dumps([{"answer": text} for text in wanted.values()]))
    assert (bench.read(str(file)), words.read(str(file))) == (wanted, wanted)
    file.write_text(json.dumps([{"answer": text} for text in visual.values()]))
    assert words.read(str(file)) == visual
    scores, alone = words.score(wanted), words.score(visual)
    assert scores.numbers == alone.numbers
    assert scores.flags == ["Answers to questions that are not asked here, which are left out: 2."]
    assert alone.flags == []


@pytest.mark.parametrize(
    ("replies", "told"),
    [
        (judged(FOUR[:4], list("1111")), "1 not answered: VD_math_0_0_0"),
        (judged(FOUR, list("11113")), "gpt4v_output_gpt_check='3', wanted 0, 1 or 2"),
        (
            judged(FOUR[:3], list("111"), list("111")) + judged(FOUR[3:], list("11")),
            "same: 1 not answered: VS_math_0_1_1",
        ),
        ([row | {"model_prediction": "y"} for row in judged(FOUR, list("11111"))], "is a reply to 'y'"),
    ],
)
def test_replies_that_do_not_fit_are_named(tmp_path: Path, replies: Any, told: str):
    with pytest.raises(ValueError, match=told):
        make(tmp_path, FOUR, replies).score({name(one): "x" for one in FOUR})


def test_missing_answers_replies_files_and_rules_are_named(tmp_path: Path):
    bench = make(tmp_path, FOUR)
    with pytest.raises(ValueError, match="1 not answered: VD_math_0_0_0"):
        bench.score({name(one): "x" for one in FOUR[:4]})
    with pytest.raises(ValueError, match=r"replies: none given.*rule=lmms_eval needs none"):
        bench.score({name(one): "x" for one in FOUR})
    with pytest.raises(ValueError, match="rule: got 'gpt', wanted one of judge, lmms_eval"):
        make(tmp_path, FOUR, rule="gpt")
    with pytest.raises(ValueError, match="VD_math_0_1_0 is asked of no figure 0"):
        make(tmp_path, [item("VD", "1", "0", "2")]).requests({"VD_math_0_1_0": "x"})
    with pytest.raises(ValueError, match=r"no such file; wanted HallusionBench.json \(github.com"):
        HallusionBench(root=str(tmp_path / "none")).questions()


def test_two_answers_to_a_question_and_unknown_ones_are_named(tmp_path: Path):
    file = tmp_path / "answers.json"
    rows = [{"id": name(one), "answer": "Yes"} for one in (*FOUR, FOUR[4])] + [{"id": "VD_x", "answer": "Yes"}]
    file.write_text(json.dumps(rows))
    for rule in ("judge", "lmms_eval"):
        with pytest.raises(ValueError, match="1 answered twice: VD_math_0_0_0; 1 of no question: VD_x"):
            make(tmp_path, FOUR, rule=rule).read(str(file))


LACKING = "to be taken out"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gt_answer_details": LACKING}, "question 1: no gt_answer_details; wanted HallusionBench.json"),
        ({"filename": LACKING}, "question 1: no filename; wanted HallusionBench.json"),
        ({"filename": 3}, "VS_math_0_0_0: filename is 3, no text"),
        ({"category": "VX"}, "VX_math_0_0_0: category is 'VX', none of VD, VS"),
        ({"gt_answer": "yes"}, "VS_math_0_0_0: gt_answer is 'yes', none of 0, 1"),
        ({"visual_input": "3"}, "VS_math_0_0_0: visual_input is '3', none of 0, 1, 2"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(tmp_path: Path, change: dict[str, Any], told: str):
    file = tmp_path / "HallusionBench.json"
    bench = make(tmp_path, FOUR)
    first = json.loads(file.read_text())[0] | change
    file.write_text(json.dumps([{field: value for field, value in first.items() if value != LACKING}]))
    with pytest.raises(ValueError, match=f"HallusionBench.json: {told}"):
        bench.questions()
