"""The comparison of solvers is fair to each, and what it says is made from its numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hialign.benchmarks.intervals import mean95

FILE = Path(__file__).resolve().parents[2] / "scripts" / "pareto.py"
FLOPS = {"reference": 1e12, "joint": 1e12, "dynamic_barrier": 2e12}


@pytest.fixture(scope="module")
def pareto(load_script: Callable[[str, str], ModuleType]) -> ModuleType:
    return load_script("pareto", "pareto.py")


def row(
    name: str, seed: int, gap: float, task: float, chair: float, *, val_chair: float | None = None
) -> dict[str, Any]:
    """A run's, with the same numbers on val but for CHAIR."""
    family, _, setting = name.partition(" ")
    numbers = {"gap": gap, "task": task, "chair": chair, "recall": 0.5, "inner": gap + 0.1, "residual": 1.0}
    val = {key: value for key, value in numbers.items() if key != "residual"}
    return {
        "arm": {"family": family, "setting": setting, "overrides": [], "stretch": 1},
        "seed": seed,
        "command": "hialign train",
        "val": val | {"chair": chair if val_chair is None else val_chair},
        "test": numbers,
        "floor": 0.1,
        "outer_steps": 90,
        "seconds": 30.0,
    }


def whole(pareto: ModuleType, rows: list[dict[str, Any]]) -> dict[str, Any]:
    settings = {"steps": 60, "seeds": [0, 1], "scenes": 200, "jobs": 2, "device": "cpu"}
    machine = {"cores": 2, "cpu": "some"}
    made = {"command": "python scripts/pareto.py", "settings": settings, "machine": machine}
    return {**pareto.compare(rows, FLOPS), **made}


def test_every_arm_trains_the_same_parts_on_as_many_outer_samples(pareto: ModuleType, validated: Any) -> None:
    seen = set()
    for arm in (pareto.REFERENCE, *pareto.arms()):
        best = ("solver.best=0.5",) if arm.family == pareto.BUDGETED else ()
        config = validated(*pareto._train(arm, 60, 3), *best)
        outer = 1 - config.solver.fraction if arm.family == "sequential" else 1.0
        kept = {
            stage: {
                "outer steps": node.steps * outer,
                **{
                    key: str(node[key])
                    for key in ("train", "batch_size", "lr", "part_lr", "outer", "inner", "schedule")
                },
            }
            for stage, node in config.stages.items()
        }
        assert (kept["pretrain"]["outer steps"], kept["finetune"]["outer steps"]) == (30, 60), arm
        seen.add(json.dumps([kept, config.seed], sort_keys=True))
    assert len(seen) == 1
    assert config.seed == 3


def test_arms_have_names_of_their_own(pareto: ModuleType) -> None:
    names = [arm.name for arm in (pareto.REFERENCE, *pareto.arms())]
    assert len(set(names)) == len(names) == 17
    assert len(pareto.quick_arms()) == 2


def test_the_front_by_hand(pareto: ModuleType) -> None:
    places = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (2.0, 2.5), "d": (3.0, 1.0), "e": (3.0, 3.0), "twin": (2.0, 2.0)}
    assert pareto.front(places) == ["a", "b", "d", "twin"]


def test_the_interval_by_hand() -> None:
    found = mean95([1.0, 2.0, 3.0])  # 4.303 * 1 / sqrt(3)
    assert (found["mean"], found["half"]) == (2.0, pytest.approx(2.4843, abs=1e-4))
    assert mean95([1.0])["half"] is None


def test_a_setting_is_chosen_by_val_alone_and_not_by_what_is_reported(pareto: ModuleType) -> None:
    rows = [
        row("joint weight 1", 0, 0.2, 0.5, 0.3, val_chair=0.1),
        row("joint weight 10", 0, 0.1, 0.4, 0.1, val_chair=0.3),
        row("dynamic_barrier end 1e1", 0, 0.2, 0.6, 0.3, val_chair=0.2),
        row("dynamic_barrier end 1e2", 0, 0.2, 0.5, 0.3, val_chair=0.2),
    ]
    chosen = pareto.compare(rows, FLOPS)["chosen"]
    assert chosen == {"joint": "joint weight 1", "dynamic_barrier": "dynamic_barrier end 1e2"}  # a tie: the task loss


def test_where_joint_wins_the_text_says_so(pareto: ModuleType) -> None:
    rows = [
        row("reference inner loss only", 0, 0.01, 0.1, 0.0),
        row("joint weight 1", 0, 0.1, 0.5, 0.2),
        row("joint weight 1", 1, 0.3, 0.7, 0.2),
        row("dynamic_barrier end 1e2", 0, 0.4, 0.8, 0.3),
        row("dynamic_barrier end 1e2", 1, 0.2, 0.6, 0.3),
    ]
    told = pareto.text(whole(pareto, rows))
    assert told.count("joint: joint weight 1; others: none.") == 2
    assert told.count("- joint weight 1 beats dynamic_barrier end 1e2: 1 of 2") == 2
    assert told.count("Another arm beats joint on both axes: nothing.") == 2
    assert "| joint weight 1 * | 0.2000 +- 1.2706 | 0.6000 +- 1.2706 |" in told


def test_where_joint_loses_the_text_says_that(pareto: ModuleType) -> None:
    rows = [
        row(name, seed, gap, task, chair)
        for seed in (0, 1)
        for name, gap, task, chair in (
            ("joint weight 1", 0.3, 0.5, 0.2),
            ("joint weight 10", 0.2, 0.7, 0.1),
            ("dynamic_barrier end 1e2", 0.25, 0.4, 0.3),
        )
    ]
    result = whole(pareto, rows)
    told = pareto.text(result)
    assert result["fronts"]["gap/task"] == ["joint weight 10", "dynamic_barrier end 1e2"]
    assert result["fronts"]["gap/chair"] == ["joint weight 10"]
    assert "others: dynamic_barrier end 1e2." in told
    assert "- dynamic_barrier end 1e2 beats joint weight 1: 2 of 2" in told
    assert "- joint weight 10 beats dynamic_barrier end 1e2: 2 of 2" in told  # of gap and CHAIR
    assert result["best_known"] == {"loss": pytest.approx(0.3), "from": "joint weight 10, seed 0"}
    assert result["budget_above"] is None


def test_a_reference_is_on_no_front(pareto: ModuleType) -> None:
    rows = [row("reference inner loss only", 0, 0.01, 0.1, 0.0), row("joint weight 1", 0, 0.1, 0.5, 0.2)]
    result = pareto.compare(rows, FLOPS)
    assert set(map(tuple, result["fronts"].values())) == {("joint weight 1",)}
    assert result["chosen"] == {"joint": "joint weight 1"}
    assert (result["best_known"]["loss"], result["budget_above"]) == (pytest.approx(0.11), pytest.approx(0.11))


def test_the_figure_is_drawn_with_and_without_intervals(pareto: ModuleType, tmp_path: Path) -> None:
    rows = [row(name, 0, 0.2, 0.5, 0.2) for name in ("joint weight 1", "dynamic_barrier end 1e2")]
    for some in (rows, [*rows, *({**one, "seed": 1} for one in rows)]):
        pareto.draw(whole(pareto, some), tmp_path / "figure.png")
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_mixture_of_commits_is_said_and_one_commit_is_not(pareto: ModuleType) -> None:
    rows = [row(f"joint weight {weight}", 0, 0.2, 0.5, 0.2) for weight in (1, 10, 100)]
    assert whole(pareto, rows)["made_by"] == {"unknown": 3}
    assert "same code" not in pareto.text(whole(pareto, rows))
    one, other = {"commit": "a" * 40, "uncommitted_changes": False}, {"commit": "b" * 40, "uncommitted_changes": True}
    same = [{**one_row, "made_by": [one]} for one_row in rows]
    assert "same code" not in pareto.text(whole(pareto, same))
    told = pareto.text(whole(pareto, [rows[0], same[1], {**rows[2], "made_by": [one, other]}]))
    assert "**Not all runs were made by the same code**" in told
    listed = f"unknown: 1; {'a' * 10}: 2; {'b' * 10} with uncommitted changes: 1."
    assert f"Runs by commit: {listed}" in told


def test_a_run_was_made_by_all_commits_that_went_on_with_it(
    pareto: ModuleType, tmp_path: Path, monkeypatch: Any
) -> None:
    def by(commit: str, *resumed: Any) -> dict[str, Any]:
        return {"commit": commit, "uncommitted_changes": False, "host": "h", "resumed": list(resumed)}

    monkeypatch.setattr("hialign.runner.names.provenance", lambda: by("c"))
    (tmp_path / "provenance.json").write_text(json.dumps(by("a", by("a"), by("b"))))
    assert [made["commit"] for made in pareto.made_by(tmp_path)] == ["a", "b", "c"]
    assert set(pareto.made_by(tmp_path)[0]) == {"commit", "uncommitted_changes"}


def job(pareto: ModuleType, folder: Path) -> Any:
    return pareto.Job(pareto.arms()[0], 0, folder / "hierarchical" / "run", ("seed=0",), ("batch_size=1",), "base")


def test_a_run_that_is_done_is_not_made_again(pareto: ModuleType, tmp_path: Path) -> None:
    one = job(pareto, tmp_path)
    one.folder.parent.mkdir()
    key = {"train": ["seed=0"], "evaluate": ["batch_size=1"], "base": "base"}
    one.folder.with_name("run.json").write_text(json.dumps({"key": key, "row": {"seconds": 1.0}}))
    assert pareto.score(one) == {"seconds": 1.0}


def test_a_run_that_was_made_otherwise_is_refused(pareto: ModuleType, tmp_path: Path) -> None:
    one = job(pareto, tmp_path)
    one.folder.parent.mkdir()
    key = {"train": ["seed=0"], "evaluate": ["batch_size=1"], "base": "an older one"}
    one.folder.with_name("run.json").write_text(json.dumps({"key": key, "row": {}}))
    with pytest.raises(ValueError, match=r"was made otherwise: .*an older one.*use another --out"):
        pareto.score(one)


@pytest.mark.slow
def test_a_quick_comparison_runs_from_end_to_end_and_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, str(FILE), "--quick", "--out", "runs", "--docs", "docs"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "docs" / "pareto.json").read_text())
        assert [one["outer_steps"] for one in result["arms"]] == [6, 6, 6]
        assert all(one["flops"] > 1e9 for one in result["arms"])
        assert all(one["made_by"] for one in result["runs"])
        assert (tmp_path / "docs" / "pareto.md").read_text() in done.stdout
        (rows,) = {file.read_text().count("\n") for file in tmp_path.glob("runs/hierarchical/*/metrics.jsonl")}
        assert rows == 6
        logs = [file.read_text() for file in tmp_path.glob("runs/hierarchical/*.log")]
        assert [text.count("$ hialign train") for text in logs] == [1, 1, 1]
    budgeted = [one["command"] for one in result["runs"] if "constrained_dual" in one["command"]]
    assert all(f"solver.best={result['budget_above']:.6f}" in one for one in budgeted)
