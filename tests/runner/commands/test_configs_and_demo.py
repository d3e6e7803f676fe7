"""``hialign configs`` lists what there is; ``hialign demo`` types commands that exist."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hialign import cli
from hialign.data import flickr8k
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
        ("photo=x", "demo: there is no setting photo; did you mean photos=?"),
        ("x", "demo: got 'x', wanted key=value"),
        ("photos=x=y z=3", "demo: there is no setting z; it takes photos, output"),
    ],
)
def test_demo_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str], argument: str, told: str) -> None:
    assert cli.main(["demo", *argument.split()]) == 1
    assert told in capsys.readouterr().err


def test_demo_trains_and_evaluates_what_it_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed: list[list[str]] = []

    def run(command: list[str]) -> int:
        typed.append(command[3:])
        return 0

    monkeypatch.setattr(demo, "NUM_DRAWN", 12)
    monkeypatch.setattr(demo, "_run", run)
    assert cli.main(["demo", f"output={tmp_path}"]) == 0
    assert [command[0] for command in typed] == ["train", "evaluate"]
    settings = dict(word.split("=", 1) for word in typed[0][1:])
    assert typed[1][1] == f"run={tmp_path}/hierarchical/{settings['name']}"
    assert len(flickr8k(settings["data.root"], holdout=0.0).records) == 12
    assert "It is no result." in capsys.readouterr().out
    assert cli.main(["demo", "photos=mine", f"output={tmp_path}"]) == 0
    assert "data.root=mine" in typed[2]


def test_demo_s_train_command_composes(composed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    typed: list[list[str]] = []
    monkeypatch.setattr(demo, "_run", lambda command: typed.append(command[3:]) or 0)
    monkeypatch.setattr("sys.argv", ["hialign demo", "photos=x", f"output={tmp_path}"])
    demo.main()
    assert composed(*typed[0][1:]).data.root == "x"
    assert composed(*typed[1][1:], config="evaluate").run.startswith(str(tmp_path))


def test_demo_stops_at_the_first_command_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    codes = iter([7, 0])
    monkeypatch.setattr(demo, "_run", lambda command: next(codes))
    assert cli.main(["demo", "photos=x", f"output={tmp_path}"]) == 7
    assert next(codes) == 0


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
