"""The table of baselines compares like with like, and what it says is made from its numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def baselines(load_script: Callable[[str, str], ModuleType]) -> ModuleType:
    """The script, with the one that it borrows from."""
    load_script("pareto", "pareto.py")
    return load_script("baselines", "baselines.py")


def row(baselines: ModuleType, name: str, seed: int, chair: float, **others: float) -> dict[str, Any]:
    """A run's, with the same number for all measures but CHAIR-i and ``others``."""
    numbers = dict.fromkeys(baselines.MEASURES, 0.5) | {"chair_i": chair} | others
    scores = {baselines.MEASURES[key][1]: value for key, value in numbers.items()}
    training = {"loss": [1.0 + seed, 0.5]}
    return {"arm": {"name": name}, "seed": seed, "scores": scores, "training": training, "made_by": []}


def made(baselines: ModuleType, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {**baselines.compare(rows), "command": "python scripts/baselines.py", "made_by": {"abc": len(rows)}}


def test_what_goes_on_from_the_start_differs_in_its_outer_level_alone(baselines: ModuleType, composed: Any) -> None:
    """Parts, steps, rows and, but for the start's own, the rate: else a difference could be theirs."""
    seen = set()
    for arm in (arm for arm in (*baselines.ARMS, *baselines.FURTHER) if arm.goes_on and arm.experiment != "halva"):
        words = [word for word in baselines.train_words(arm, 3, Path("start")) if "from_run" not in word]
        stage = composed(*words).stages.prefer
        rate = stage.lr if "stages.prefer.lr=1.5e-3" not in arm.words else None
        seen.add((tuple(stage.train.items()), stage.steps, stage.batch_size, stage.template))
        assert rate in (None, composed("experiment=dpo", "data=tabletop", "model=tabletop").stages.prefer.lr)
    assert len(seen) == 1


def test_the_controls_rate_is_the_one_that_the_start_ended_its_training_with(
    baselines: ModuleType, composed: Any
) -> None:
    start = composed(*baselines.train_words(baselines.START, 0, Path("start"))).stages.finetune
    control = next(arm for arm in baselines.ARMS if arm.name == "trained on, full rate")
    words = [word for word in baselines.train_words(control, 0, Path("start")) if "from_run" not in word]
    assert composed(*words).stages.prefer.lr == start.lr
    assert composed(*words).stages.prefer.outer == start.outer


def test_every_run_but_the_pretraining_ones_goes_on_from_the_start(baselines: ModuleType) -> None:
    goes_on = {arm.name: "model.from_run=here" in baselines.train_words(arm, 0, Path("here")) for arm in baselines.ARMS}
    assert [name for name, on in goes_on.items() if not on] == ["start", "hacl"]


def test_a_difference_is_taken_seed_by_seed(baselines: ModuleType) -> None:
    """Starts far apart and a gain of .1 in each: the mean differs by .1 without any spread."""
    rows = [row(baselines, "start", seed, 0.2 * seed) for seed in (1, 2, 3)]
    rows += [row(baselines, "trained on", seed, 0.2 * seed) for seed in (3, 2, 1)]
    rows += [row(baselines, "dpo", seed, 0.2 * seed - 0.1) for seed in (2, 3, 1)]
    dpo = baselines.compare(rows)["arms"][-1]["differences"]["start"]["chair_i"]
    assert dpo["mean"] == pytest.approx(-0.1)
    assert dpo["half"] == pytest.approx(0, abs=1e-9)
    assert baselines.clear(dpo)


def test_a_gain_within_its_interval_is_not_called_one(baselines: ModuleType) -> None:
    """Differences .3, -.1, -.5 have the mean -.1 and t(2) * .4 / sqrt(3) = .994 beside it."""
    rows = [row(baselines, "start", seed, 0.5) for seed in range(3)]
    rows += [row(baselines, "trained on", seed, 0.5) for seed in range(3)]
    rows += [row(baselines, "dpo", seed, value) for seed, value in enumerate((0.8, 0.4, 0.0))]
    rows += [row(baselines, "halva", seed, value) for seed, value in enumerate((0.41, 0.4, 0.39))]
    said = baselines.text(made(baselines, rows))
    found = baselines.compare(rows)["arms"][2]["differences"]["start"]["chair_i"]
    assert found["half"] == pytest.approx(4.303 * 0.4 / 3**0.5)
    assert "CHAIR-i against `start`: better by more than the interval: halva; worse: none" in said
    assert "-0.100 +- 0.025 *" in said  # t(2) * .01 / sqrt(3)


def test_one_seed_has_no_interval_and_no_star(baselines: ModuleType) -> None:
    rows = [row(baselines, "start", 0, 0.5), row(baselines, "trained on", 0, 0.4), row(baselines, "dpo", 0, 0.1)]
    said = baselines.text(made(baselines, rows))
    assert "One seed, so without an interval." in said
    assert "| dpo | -0.400 | " in said
    assert "better by more than the interval: none" in said


def test_an_arm_with_fewer_seeds_says_so_and_is_compared_on_its_own(baselines: ModuleType) -> None:
    rows = [row(baselines, name, seed, 0.1 * seed) for name in ("start", "trained on") for seed in (1, 2)]
    rows.append(row(baselines, "dpo", 2, 0.1))
    said = baselines.text(made(baselines, rows))
    assert "| dpo (1 of 2 seeds) | -0.100 | " in said
    assert "| trained on | 0.000 +- 0.000 | " in said


def test_a_runs_training_is_read_at_its_two_ends(baselines: ModuleType, tmp_path: Path) -> None:
    lines = [f'{{"stage": "a", "outer_loss": 9, "seconds": 1, "step": {n}}}' for n in range(5)]
    lines += [f'{{"stage": "b", "outer_loss": {n}, "seconds": 1, "step": {n}}}' for n in range(20)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "scores.json").write_text('{"captions": {"loss": 0.25}}')
    found = baselines.read(tmp_path)
    assert found["training"] == {"loss": [0.5, 18.5]}
    assert (found["scores"], found["steps"], found["seconds"]) == ({"captions/loss": 0.25}, 20, 25)


def test_the_figure_is_drawn(baselines: ModuleType, tmp_path: Path) -> None:
    names = [arm.name for arm in (*baselines.ARMS, *baselines.FURTHER)]
    rows = [row(baselines, name, seed, 0.1 * seed) for name in names for seed in (0, 1)]
    baselines.draw(made(baselines, rows), tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
