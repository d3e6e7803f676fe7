"""The table of scores, and that neither it nor the answers need torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hialign.evaluation.report import side_by_side, table


def test_the_table_has_a_line_a_number_under_its_benchmark() -> None:
    scores = {"retrieval": {"recall@1": 0.25, "images": 800.0}, "captions": {"loss": 2.34567}}
    assert table(scores).splitlines() == [
        "retrieval",
        "  recall@1  0.2500",
        "  images    800",
        "captions",
        "  loss      2.3457",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (1.0, "1"),
        (0.5, "0.5000"),
        (-1.25, "-1.2500"),
        (-2.0, "-2"),
        (4e6, "4000000"),
        (1e-6, "0.0000"),
    ],
)
def test_whole_numbers_are_written_whole(value: float, text: str) -> None:
    assert table({"b": {"n": value}}).split()[-1] == text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_diverged_has_a_table(value: float) -> None:
    assert str(value) in table({"captions": {"loss": value}})


def test_an_interval_stands_behind_its_number_and_has_no_line() -> None:
    scores = {"b": {"test/recall": 0.5, "test/recall/low": 0.4321, "test/recall/high": 0.6, "high": 3.0}}
    assert table(scores).splitlines() == ["b", "  test/recall  0.5000 [0.432, 0.600]", "  high         3"]


def test_a_setting_that_is_null_is_written_so() -> None:
    assert table({"b": {"cooccurrence": None}}).split()[-1] == "null"


def test_a_report_and_answers_import_no_torch() -> None:
    code = (
        "import hialign.evaluation.report, hialign.evaluation.answer;"
        "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy", "transformers", "hydra", "PIL"} & set(json.loads(done.stdout))


def test_columns_stand_side_by_side_and_read_as_markdown() -> None:
    columns = {"llava": {"a": 0.5, "s": 61.4}, "hierarchical": {"a": 1.0, "s": 9.0}}
    assert side_by_side(columns, {"a": "accuracy", "s": "seconds"}).splitlines() == [
        "|          | llava | hierarchical |",
        "|----------|------:|-------------:|",
        "| accuracy | 0.500 |        1.000 |",
        "| seconds  |    61 |        9.000 |",
    ]


def test_intervals_stand_in_the_columns() -> None:
    columns = {"llava": {"a": 0.5, "a/low": 0.41, "a/high": 0.59}, "other": {"a": 1.0}}
    assert side_by_side(columns, {"a": "accuracy"}).splitlines()[2] == "| accuracy | 0.500 [0.41, 0.59] | 1.000 |"


def test_a_null_score_is_a_dash_with_its_reason() -> None:
    told = side_by_side({"llava": {"a": None}, "other": {"a": 1.0}}, {"a": "accuracy"}).splitlines()
    assert told[2:] == [
        "| accuracy |     - | 1.000 |",
        "",
        "-: the score was no finite number (null in scores.json)",
    ]


def test_a_missing_score_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="other: there is no score a; it has b"):
        side_by_side({"llava": {"a": 1.0}, "other": {"b": 1.0}}, {"a": "accuracy"})
