"""Every solver of ``configs/solver`` trains, by one command, a model of nearly nothing and the embedded base."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "solver"
SOLVERS = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
ONE_LEVEL = ("single",)
REST = [solver for solver in SOLVERS if solver not in ("dynamic_barrier", "sequential")]  # the base below has them all
NEVER_BOTH = ("alternating", "sequential", *ONE_LEVEL)  # these never hold the two gradients side by side
UNWEIGHTED = (*NEVER_BOTH, "implicit_tangent")  # what it descends is no weighted sum

SIZES = ("batch_size=4", "inner_batch_size=4")
FEW = [f"stages.finetune.{setting}" for setting in ("steps=3", *SIZES)]
TABLETOP = ["model=tabletop", "data=tabletop", "data.size=32", *FEW, "trainer.device=cpu"]

# What a row of metrics may hold; a key that nobody has written down is nobody's.
PLACE = {"stage", "step", "total_step", "seconds", "lr_factor"}
LEVELS = {f"{level}_{what}" for level in ("inner", "outer") for what in ("loss", "grad_norm")}
CONTRASTIVE = {"inner_clip_loss", "inner_projector_loss", "inner_floor"}
GROUPS = {f"{group}_{what}" for group in ("aligned", "outer") for what in ("update_norm", "clip_factor")}
OF_SOLVERS = {
    *("cosine", "shared_of_inner", "weight", "beta", "phi", "active", "pull_ratio", "over_budget"),
    *("outer_weight", "outer_pull", "cg_steps", "cg_residual", "step_length", "shortened", "damping"),
}
KNOWN = PLACE | LEVELS | CONTRASTIVE | GROUPS | OF_SOLVERS


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_a_row_is_whole(row: dict[str, Any], solver: str) -> None:
    numbers = {key: value for key, value in row.items() if key != "stage"}
    assert [key for key, value in numbers.items() if not math.isfinite(value)] == []
    assert {key for key in row if not key.startswith("epochs/")} <= KNOWN
    assert row.keys() & {"outer_loss", "inner_loss"}
    if solver not in NEVER_BOTH:
        assert {"outer_loss", "inner_loss", "inner_floor", "cosine", "shared_of_inner"} <= row.keys()
        assert row["inner_loss"] >= row["inner_floor"] > 0
        assert -1 <= row["cosine"] <= 1
        assert 0 < row["shared_of_inner"] <= 1
    if solver not in UNWEIGHTED:
        assert "weight" in row


@pytest.mark.parametrize(
    "solver", ["dynamic_barrier", "sequential", *(pytest.param(s, marks=pytest.mark.slow) for s in REST)]
)
def test_a_solver_trains_the_small_model(workshop: Any, solver: str) -> None:
    experiment = "llava" if solver in ONE_LEVEL else "hierarchical"
    done = workshop.train(f"solver={solver}", f"name={solver}", experiment=experiment)
    assert done.code == 0, done.err
    run = workshop.run(solver, experiment)
    rows = rows_of(run)
    assert [(row["stage"], row["step"]) for row in rows] == list(product(("pretrain", "finetune"), (1, 2, 3)))
    for row in rows:
        assert_a_row_is_whole(row, solver)
    target = str(OmegaConf.load(run / "config.yaml").solver._target_)
    assert f"stage finetune: 3 steps, solver {target.rsplit('.', 1)[-1]}" in (run / "log.txt").read_text().splitlines()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_trains_the_embedded_base(workshop: Any, solver: str) -> None:
    experiment = "llava" if solver in ONE_LEVEL else "hierarchical"
    done = workshop.hialign(
        *("train", f"experiment={experiment}", f"solver={solver}", f"name=tabletop-{solver}", "~stages.pretrain"),
        *TABLETOP,
    )
    assert done.code == 0, done.err
    rows = rows_of(workshop.run(f"tabletop-{solver}", experiment))
    assert [(row["stage"], row["step"]) for row in rows] == [("finetune", i) for i in (1, 2, 3)]
    for row in rows:
        assert_a_row_is_whole(row, solver)
