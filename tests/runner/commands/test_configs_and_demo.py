"""``hialign configs`` lists what there is; ``hialign demo`` types commands that exist."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hialign import cli
from hialign.runner.commands import demo

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
GROUPS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir() and not folder.name.startswith("_"))


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, str]]:
    assert cli.main(["configs", *arguments]) == 0
    groups: dict[str, dict[str, str]] = {}
    group = ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            name, _, purpose = line.strip().partition(" ")
            groups[group][name] = purpose.strip()
        else:
            group = line
            groups[group] = {}
    return groups


def test_configs_lists_every_yaml_with_its_first_comment(capsys: pytest.CaptureFixture[str]) -> None:
    groups = listed(capsys)
    assert sorted(groups) == GROUPS
    for group in GROUPS:
        assert sorted(groups[group]) == sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))
        for name, purpose in groups[group].items():
            assert purpose, f"{group}/{name}"
            assert f"# {purpose}" in (CONFIGS / group / f"{name}.yaml").read_text().splitlines()


def test_configs_lists_the_groups_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(listed(capsys, "solver", "data")) == ["solver", "data"]


def test_configs_answers_an_unknown_group_with_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs", "solvers"]) == 1
    error = capsys.readouterr().err
    assert "no group 'solvers'" in error
    assert all(group in error for group in GROUPS)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("step=3", "demo: there is no setting step; did you mean steps=?"),
        ("x", "demo: got 'x', wanted key=value"),
        ("z=3", "demo: there is no setting z; it takes output, seed, steps, scenes"),
        ("steps=1", "steps: got '1', wanted a whole number from 2 up"),
        ("seed=-1", "seed: got '-1', wanted a whole number from 0 up"),
    ],
)
def test_demo_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str], argument: str, told: str) -> None:
    assert cli.main(["demo", *argument.split()]) == 1
    assert told in capsys.readouterr().err


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the demo would run, which is not run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(demo, "_run", lambda command: commands.append(command[3:]) or 0)
    monkeypatch.setattr(demo, "_show", lambda *arguments: None)
    return commands


def test_demo_trains_both_arms_on_the_same_parts_and_equal_outer_samples(
    typed: list[list[str]], composed: Any, tmp_path: Path
) -> None:
    assert cli.main(["demo", f"output={tmp_path}", "steps=6", "seed=3"]) == 0
    assert [command[0] for command in typed] == ["train", "evaluate"] * 2
    llava, hierarchical = (composed(*command[1:]) for command in typed[::2])
    assert hierarchical.solver.inner_steps == 1
    for stage in ("pretrain", "finetune"):
        one, other = llava.stages[stage], hierarchical.stages[stage]
        assert one.inner is None
        assert other.inner is not None
        # heads are what the inner level alone has
        assert {**one.train, "heads": "full"} == other.train
        same = ("outer", "steps", "batch_size", "lr", "part_lr", "template")
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert (llava.stages.finetune.steps, llava.stages.pretrain.steps, llava.seed) == (6, 3, 3)


def test_demo_asks_both_arms_the_same(typed: list[list[str]], composed: Any, tmp_path: Path) -> None:
    assert cli.main(["demo", f"output={tmp_path}", "scenes=7"]) == 0
    one, other = (composed(*command[1:], config="evaluate") for command in typed[1::2])
    assert one.benchmark == other.benchmark
    assert one.benchmark.tabletop_captions.size == 7
    assert (one.run, other.run) == tuple(f"{tmp_path}/{arm}/{typed[0][-1].removeprefix('name=')}" for arm in demo.ARMS)


def test_demo_stops_at_the_first_command_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    codes = iter([7, 0])
    monkeypatch.setattr(demo, "_run", lambda command: next(codes))
    assert cli.main(["demo", f"output={tmp_path}"]) == 7
    assert next(codes) == 0


def test_demo_ends_with_a_table_captions_and_a_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real commands, of a few steps."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cli.main(["demo", f"output={tmp_path}", "steps=2", "scenes=3"]) == 0
    out = capfd.readouterr().out
    (folder,) = tmp_path.glob("demo-*")
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    arms = json.loads((folder / "scores.json").read_text())["arms"]
    assert list(arms) == ["llava", "hierarchical"]
    assert all(set(numbers) == set(demo.ROWS) for numbers in arms.values())
    told = (folder / "demo.md").read_text()
    assert told.strip() in out
    assert all(f"| {name} " in told for name in demo.ROWS.values())
    assert told.count("  - llava: ") == told.count("  - hierarchical: ") == demo.SHOWN


def test_ctrl_c_waits_for_the_command_under_way(tmp_path: Path) -> None:
    """Killed instead, training could not save what it has."""
    command = "import time, signal; signal.signal(signal.SIGINT, lambda *_: None); print('on', flush=True); "
    command += "time.sleep(2); open('saved', 'w').close(); raise SystemExit(3)"
    outer = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    outer += (
        f"from hialign.runner.commands.demo import _run; raise SystemExit(_run([sys.executable, '-c', {command!r}]))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", outer], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "on\n"
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to both
    assert running.wait(timeout=60) == 3
    assert (tmp_path / "saved").exists()
    running.stdout.close()
