"""The script that measures what a solver's step costs: what it compares and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def script(load_script: Callable[[str, str], ModuleType]) -> ModuleType:
    return load_script("measure_solvers", "benchmarks/solvers.py")


def test_the_towers_have_the_sizes_they_are_called_by(script: ModuleType):
    sizes = {}
    for name, size in script.SIZES.items():
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in script.Inner(size).parameters())
    assert sizes == {"100k": pytest.approx(1e5, rel=0.1), "5M": pytest.approx(5e6, rel=0.1)}


def test_every_competitor_of_ours_makes_steps_that_move_the_tower(script: ModuleType):
    theirs = ("Betty", "TorchOpt")
    ours = [one for name, one in script.COMPETITORS.items() if name != "passes" and not name.startswith(theirs)]
    assert len(ours) >= 11
    for competitor in ours:
        two = script.Two(script.SMALL, depends=competitor.depends)
        before = torch.cat([p.detach().flatten().clone() for p in two.inner_net.tower.parameters()])
        step = competitor.build(two)
        step()
        after = torch.cat([p.detach().flatten() for p in two.inner_net.tower.parameters()])
        assert not torch.equal(before, after), competitor.name


def test_a_ratio_is_the_median_over_turns_of_our_time_over_the_sum_of_theirs(script: ModuleType):
    assert script.beside([1, 4, 3], [1, 1, 1], [1, 1, 3]) == 0.75  # .5, 2, .75


@pytest.mark.slow
def test_the_script_writes_numbers_and_a_page_that_names_what_it_lacks(repo: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(repo / "src")}
    command = [sys.executable, "scripts/benchmarks/solvers.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "solvers.json").read_text())
    results = report["sizes"]["small"]["results"]
    for name in ("passes", "outer alone", "inner alone", "Joint", "DynamicBarrier"):
        assert len(results[name]["seconds"]) == 2
        assert min(results[name]["seconds"]) > 0
    page = (tmp_path / "solvers.md").read_text()
    assert "| DynamicBarrier |" in page
    if report["versions"]["betty-ml"] == "not installed":
        assert "| Betty cg, 3 (inner level depends) | ModuleNotFoundError: No module named 'betty' | | |" in page
    assert all("measured" in target for target in report["sizes"]["small"]["targets"].values())
