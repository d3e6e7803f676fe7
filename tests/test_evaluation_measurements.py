"""The script that measures how long scoring takes: what it scores and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def script(load_script: Callable[[str, str], ModuleType]) -> ModuleType:
    return load_script("measure_evaluation", "benchmarks/evaluation.py")


def test_what_is_scored_is_as_much_as_the_titles_say(script: ModuleType, tmp_path: Path):
    assert (script.WHOLE.images, script.WHOLE.words, script.WHOLE.references) == (5000, 100, 5)
    assert 3 * script.WHOLE.questions == 9000
    script.make(tmp_path, script.SMALL)
    described = json.loads((tmp_path / "descriptions.json").read_text())
    assert {len(one["caption"].split()) for one in described} == {20}
    assert len(described) == 12
    assert len(json.loads((tmp_path / "captions_val2014.json").read_text())["annotations"]) == 24
    assert len(json.loads((tmp_path / "pope.json").read_text())) == 72


def test_a_ratio_is_the_median_over_turns_and_a_target_that_is_missed_is_said(script: ModuleType):
    turns = [[{"cpu_seconds": s, "seconds": 1, "torch": False} for s in times] for times in ([1, 2, 4], [2, 8, 4])]
    results = {"hialign": {"turns": turns[0]}, "pycocoevalcap": {"turns": turns[1]}}
    case = {"name": "cider", "title": "CIDEr", "most": 1.5, "results": results}
    assert script.rows(case)[1] == "| CIDEr | pycocoevalcap | 4.00 s | 1.00 s | 2.00 | no |"
    assert script.targets([case], quick=False) == [
        "| CIDEr: at most 1.5 s of one core | 2.00 s, **missed** |",
        "| scoring imports no torch | reached |",
    ]


def test_the_script_writes_numbers_and_a_page(repo: Path, tmp_path: Path):
    command = [sys.executable, "scripts/benchmarks/evaluation.py", "--quick", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repo / "src")}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "evaluation.json").read_text())
    for case in report["cases"]:
        ours = case["results"]["hialign"]
        assert "absent" in ours or not any(turn["torch"] for turn in ours["turns"]), case["name"]
    assert [case["name"] for case in report["cases"]] == ["chair", "cider", "captions", "pope", "import"]
    assert "| scoring imports no torch | reached |" in (tmp_path / "evaluation.md").read_text()
