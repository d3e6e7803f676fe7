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
    monkeypatch.setattr(demo, "_run", lambda command: commands.append(command) or 0)
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
    (folder,) = tmp_path.iterdir()
    assert f"name={folder.name}" in typed[0]
    assert (one.run, other.run) == tuple(f"{tmp_path}/{arm}/{folder.name}" for arm in demo.ARMS)


def test_demo_stops_at_the_first_command_that_fails_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = iter([0, 7, 0])
    monkeypatch.setattr(demo, "_run", lambda command: next(codes))
    assert cli.main(["demo", f"output={tmp_path}", "steps=4"]) == 7
    assert next(codes) == 0
    error = capsys.readouterr().err
    assert f"hialign demo: stopped in `hialign evaluate run={tmp_path}/llava/demo-" in error
    assert f"(exit code 7); `hialign demo output={tmp_path} steps=4` goes on and does nothing twice" in error


def test_a_demo_that_was_stopped_goes_on_under_its_name_and_a_finished_one_does_not(
    typed: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", f"output={tmp_path}"]) == 0
    (folder,) = tmp_path.iterdir()
    first = list(typed)
    assert all("resume=auto" in command for command in first[::2])
    assert cli.main(["demo", f"output={tmp_path}"]) == 0
    assert typed == first * 2
    assert f"going on with {folder}" in capsys.readouterr().out
    begun = json.loads((folder / demo.BEGUN).read_text())
    folder.rename(tmp_path / "demo-20200101-000000")  # a new one gets another name in the same second too
    for other in ({"steps": 7}, {"seed": 1}, {"commit": "another"}):
        (tmp_path / "demo-20200101-000000" / demo.BEGUN).write_text(json.dumps({**begun, **other}))
        assert demo._begin(tmp_path, {"seed": 0, "steps": 160, "scenes": 100}).name != "demo-20200101-000000"
    (tmp_path / "demo-20200101-000000" / demo.BEGUN).write_text(json.dumps(begun))
    (tmp_path / "demo-20200101-000000" / "scores.json").write_text("{}")
    assert demo._begin(tmp_path, {"seed": 0, "steps": 160, "scenes": 100}).name != "demo-20200101-000000"


def test_an_interruption_between_commands_is_told_as_one_in_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run", lambda command: 0)
    monkeypatch.setattr(demo, "_show", interrupted)
    assert cli.main(["demo", f"output={tmp_path}"]) == 130
    assert "stopped at the table (exit code 130); `hialign demo" in capsys.readouterr().err


def finished(folder: Path, **changed: Any) -> Path:
    """A run's folder with all that the demo reads of it; ``changed`` are scores by their names behind the slash."""
    names = [row for row in demo.ROWS if "/" in row]
    benchmarks: dict[str, dict[str, Any]] = {"tabletop_zero_shot": {"scenes": 300.0}, "retrieval": {"images": 300.0}}
    for row in names:
        benchmark, _, name = row.partition("/")
        benchmarks.setdefault(benchmark, {"model": "finetune/step-000160"})[name] = 0.5
    benchmarks["tabletop_captions"] |= {"test/recall/low": 0.4, "test/recall/high": 0.6, **changed}
    (folder / "answers").mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(benchmarks))
    (folder / "metrics.jsonl").write_text('{"seconds": 1.5}\n{"seconds": 2.0}\n')
    answers = [{"id": f"counterfactual-{i:07d}", "answer": "a cup."} for i in range(demo.SHOWN)]
    (folder / "answers" / "tabletop_captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return folder


NUMBERS = {"seed": 3, "steps": 160, "scenes": 100}


def test_the_demo_s_files_say_what_their_numbers_rest_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    demo._show({arm: finished(tmp_path / arm) for arm in demo.ARMS}, tmp_path / "demo", NUMBERS)
    written = json.loads((tmp_path / "demo" / "scores.json").read_text())
    assert written["setup"] == {
        **NUMBERS,
        "steps": {"pretrain": 80, "finetune": 160},
        "zero_shot_scenes": 300,
        "retrieval_images": 300,
    }
    told = (tmp_path / "demo" / "demo.md").read_text()
    assert told.strip() in capsys.readouterr().out
    assert "One seed (3), 80 + 160 steps of training; 100 scenes of each split, 300 for zero-shot" in told
    assert "say nothing of another seed of training" in " ".join(told.split())
    (line,) = [line for line in told.splitlines() if "things found, test" in line]
    assert line.count("0.500 [0.40, 0.60]") == 2
    (line,) = [line for line in told.splitlines() if "R@1" in line and line.startswith("|")]
    assert line.count("0.500 [0.44, 0.56]") == 2  # Wilson's, of 300 images
    assert written["arms"]["llava"]["seconds"] == 3.5


def test_a_null_score_of_the_demo_is_a_dash_and_a_missing_one_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    whole, null = finished(tmp_path / "a"), finished(tmp_path / "b", **{"test/chair_i": None})
    demo._show({"llava": whole, "hierarchical": null}, tmp_path / "demo", NUMBERS)
    told = (tmp_path / "demo" / "demo.md").read_text().splitlines()
    (line,) = [line for line in told if line.startswith("| CHAIR-i, test ")]
    assert line.split("|")[2:4] == ["              0.500 ", "                  - "]
    assert "-: the score was no finite number (null in scores.json)" in told
    lacking = finished(tmp_path / "c")
    scores = json.loads((lacking / "scores.json").read_text())
    del scores["tabletop_captions"]["test/chair_s"]
    (lacking / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(ValueError, match=r"c/scores.json has no tabletop_captions/test/chair_s; the table needs"):
        demo._show({"llava": whole, "hierarchical": lacking}, tmp_path / "demo", NUMBERS)


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
    for numbers in arms.values():
        assert {name for name in numbers if not name.endswith(("/low", "/high"))} == set(demo.ROWS)
        assert all({f"{row}/low", f"{row}/high"} <= set(numbers) for row in demo.ROWS if row != "seconds")
    told = (folder / "demo.md").read_text()
    assert told.strip() in out
    assert all(f"| {name} " in told for name in demo.ROWS.values())
    assert told.count("  - llava: ") == told.count("  - hierarchical: ") == demo.SHOWN


def outer() -> str:
    """A program that runs one command as the demo does, of the package ``hialign`` in the folder where it runs."""
    return (
        f"import os, signal, sys; sys.path[0] = {str(Path(demo.__file__).resolve().parents[3])!r}; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); from hialign.runner.commands.demo import _run; "
        "os.environ['PYTHONPATH'] = '.'; raise SystemExit(_run(['train']))"
    )


def test_what_a_command_prints_comes_through_a_pipe_before_it_ends(tmp_path: Path) -> None:
    """Of a stand-in for the package whose ``hialign`` says something and waits for a file."""
    (tmp_path / "hialign").mkdir()
    (tmp_path / "hialign" / "__main__.py").write_text(
        "import pathlib, time\nprint('under way')\nwhile not pathlib.Path('seen').exists(): time.sleep(0.05)\n"
    )
    (tmp_path / "hialign" / "__init__.py").write_text("")
    with subprocess.Popen([sys.executable, "-c", outer()], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "under way\n"  # else both wait, for ever
        (tmp_path / "seen").touch()
        assert running.wait(timeout=60) == 0


def test_ctrl_c_waits_for_the_command_under_way(tmp_path: Path) -> None:
    """Killed instead, training could not save what it has. The command is a stand-in for the package."""
    (tmp_path / "hialign").mkdir()
    (tmp_path / "hialign" / "__init__.py").write_text("")
    (tmp_path / "hialign" / "__main__.py").write_text(
        "import time, signal; signal.signal(signal.SIGINT, lambda *_: None); print('on', flush=True)\n"
        "time.sleep(2); open('saved', 'w').close(); raise SystemExit(3)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", outer()], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "on\n"
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to both
    assert running.wait(timeout=60) == 3
    assert (tmp_path / "saved").exists()
    running.stdout.close()
