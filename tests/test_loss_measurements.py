"""The script that measures the losses beside others: what it compares, what it judges, what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def script(load_script: Callable[[str, str], ModuleType]) -> ModuleType:
    return load_script("measure_losses", "benchmarks/losses.py")


def run(repo: Path, out: Path, only: str, *, path: Path | None = None) -> tuple[dict[str, Any], str]:
    """What the script writes of tiny sizes: the numbers and the page."""
    command = [sys.executable, "scripts/benchmarks/losses.py", "--quick", "--only", only, "--out", str(out)]
    paths = [str(folder) for folder in (path, repo / "src") if folder is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "losses.json").read_text()), (out / "losses.md").read_text()


def test_all_competitors_of_a_case_give_one_loss_and_one_gradient(script: ModuleType):
    for case in map(script.small, script.CASES):
        results = {name: script.run(script.COMPETITORS[name](), case.inputs("cpu"), "cpu") for name in case.competitors}
        for key in ("loss", "slope"):
            values = {name: numbers[key] for name, numbers in results.items()}
            ours = values[case.competitors[0]]
            assert values == {name: pytest.approx(ours, rel=1e-4) for name in values}, f"{case.name}, {key}"


def test_competitors_that_do_not_compute_the_same_are_not_compared(script: ModuleType):
    case = script.CASES[0]
    results = {name: {"loss": [1.0], "slope": [2.0]} for name in case.competitors}
    script.check_agreement(case, results)
    results["matrix, cross-entropy"]["slope"] = [2.1]
    with pytest.raises(RuntimeError, match=r"one-way-512: the slope is 2\.1 by matrix, cross-entropy and 2\.0 by"):
        script.check_agreement(case, results)


def test_a_target_is_held_against_the_least_of_the_others_turn_by_turn(script: ModuleType):
    """Ours 1, 4, 3 beside 2, 2, 2 and 1, 2, 6: both medians are 2, the first's ratios .5, 2, 1.5."""
    case = script.Case("made", "up", ("ours",), 3, 8, targets=(script.Target("time", "ours", ("one", "other"), 1.05),))
    results = {name: {"seconds": seconds} for name, seconds in (("ours", [1, 4, 3]), ("one", [2, 2, 2]))}
    results["other"] = {"seconds": [5, 5, 5]}
    (target,) = script.judged(case, results, "seconds")
    assert target == {"what": "time", "ours": "ours", "other": "one", "most": 1.05, "measured": 1.5}
    (line,) = script.target_rows({"title": "up", "targets": [target]}, quick=False)
    assert line.endswith("| 1.50x | **missed** |")
    (line,) = script.target_rows({"title": "up", "targets": [target | {"measured": 1.05}]}, quick=False)
    assert line.endswith("| 1.05x | reached |")
    absent = {"ours": {"seconds": [1]}, "one": {"absent": "one"}, "other": {"absent": "other"}}
    (target,) = script.judged(case, absent, "seconds")
    (line,) = script.target_rows({"title": "up", "targets": [target]}, quick=False)
    assert line.endswith("| - | not measured |")


def test_the_peak_is_that_of_what_was_held_meanwhile(script: ModuleType):
    before = script.held("cpu")
    torch.ones(2**24)  # 64 MiB, let go at once
    assert (script.peak("cpu") - before) / 2**20 == pytest.approx(64, abs=8)
    assert (script.held("cpu") - before) / 2**20 == pytest.approx(0, abs=8)


def test_the_script_runs_in_processes_that_take_turns(repo: Path, tmp_path: Path):
    report, page = run(repo, tmp_path, "kl-32000")
    (case,) = report["cases"]
    assert list(case["results"]) == ["chunked_token_kl", "logits, log_softmax, kl_div"]
    for numbers in case["results"].values():
        assert len(numbers["seconds"]) == len(numbers["peak_mib"]) == 2
    assert report["machine"]["threads"] == 1
    assert report["machine"]["cpu"] in page
    assert "Tiny sizes" in page
    assert "reached" not in page
    assert "missed" not in page


def test_a_peer_that_is_not_installed_is_named_in_the_table(repo: Path, tmp_path: Path):
    (tmp_path / "pytorch_metric_learning.py").write_text("raise ModuleNotFoundError('gone', name=__name__)\n")
    report, page = run(repo, tmp_path, "one-way-512", path=tmp_path)
    assert report["cases"][0]["results"]["pytorch-metric-learning NTXentLoss"] == {"absent": "pytorch_metric_learning"}
    assert "| pytorch-metric-learning NTXentLoss | pytorch_metric_learning is not installed | | |" in page
    assert "| matrix, cross-entropy | " in page


@pytest.mark.parametrize("options", [["--quick"], ["--only", "one-way"]])
def test_a_part_does_not_take_the_place_of_the_whole(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
):
    monkeypatch.setattr(sys, "argv", ["losses.py", *options])
    with pytest.raises(SystemExit):
        script.main()
    assert "--quick and --only need --out" in capsys.readouterr().err


def test_the_page_is_what_the_script_writes_of_its_numbers(script: ModuleType, repo: Path):
    folder = repo / "docs" / "benchmarks"
    report = json.loads((folder / "losses.json").read_text())
    assert not report["quick"]
    assert [case["name"] for case in report["cases"]] == [case.name for case in script.CASES]
    assert (folder / "losses.md").read_text() == script.markdown(report)
