"""The command line answers at once, and a mistake in typing says how to write it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest

from hialign import __version__, cli

HEAVY = {"torch", "numpy", "transformers", "hydra", "omegaconf", "datasets", "wandb"}


def hialign(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hialign", *arguments], capture_output=True, text=True, timeout=120)


def heavy_modules_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has imported after ``code``."""
    report = f"{code}\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=120, check=True)
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def stand_in(monkeypatch: pytest.MonkeyPatch, main: object) -> None:
    """Makes ``main`` the command train."""
    module = types.ModuleType("stand_in_for_train")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in_for_train", module)
    monkeypatch.setitem(cli.COMMANDS, "train", ("stand_in_for_train:main", "train"))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.delenv("HIALIGN_TRACEBACK", raising=False)


def test_import_hialign_imports_nothing_heavy() -> None:
    assert heavy_modules_after("import hialign") == set()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["trian"], ["train", "--experiment", "x"]])
def test_help_and_typing_mistakes_import_nothing_heavy(arguments: list[str]) -> None:
    assert heavy_modules_after(f"from hialign.cli import main; main({arguments!r})") == set()


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_lists_every_command_with_examples(arguments: tuple[str, ...]) -> None:
    done = hialign(*arguments)
    assert done.returncode == 0
    assert done.stderr == ""
    for name, (_, line) in cli.COMMANDS.items():
        assert name in done.stdout
        assert line in done.stdout
    assert "hialign train experiment=hierarchical" in done.stdout


def test_the_examples_in_the_help_name_real_commands() -> None:
    for line in cli.EXAMPLES.splitlines():
        program, name, *_ = line.split()
        assert program == "hialign"
        assert name in cli.COMMANDS


def test_every_command_of_the_table_exists() -> None:
    for target, _ in cli.COMMANDS.values():
        assert callable(cli.load(target))


def test_version_is_the_package_s() -> None:
    done = hialign("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"hialign {__version__}")


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    done = hialign("trian", "experiment=hacl")
    assert done.returncode == 2
    assert "did you mean 'train'?" in done.stderr


def test_an_unknown_command_is_answered_with_the_list() -> None:
    done = hialign("xyzzy")
    assert done.returncode == 2
    assert all(name in done.stderr for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--experiment", "hacl"], "write experiment=hacl"),
        (["--experiment=hacl"], "write experiment=hacl"),
        (["-experiment", "hacl"], "write experiment=hacl"),
        (["seed=3", "--experiment"], "write experiment=..."),
        (["--solver", "seed=3"], "write solver=..."),
        (["--exp", "hacl"], "write exp=hacl"),
        (["--multi-run"], "did you mean Hydra's --multirun?"),
    ],
)
def test_a_flag_that_is_not_hydra_s_is_refused_with_the_right_spelling(arguments: list[str], wanted: str) -> None:
    done = hialign("train", *arguments)
    assert done.returncode == 2
    assert wanted in done.stderr


def test_hydra_s_own_flags_and_odd_overrides_pass() -> None:
    arguments = ["--cfg=job", "--resolve", "-m", "--config-dir", "mine", "~stages.pretrain", "+x=-1", "x=--y", "-1"]
    assert cli.refused_flag("train", [*cli.HYDRA_FLAGS, *arguments]) is None


def test_the_flags_let_through_are_exactly_hydra_s() -> None:
    from hydra._internal.utils import get_args_parser

    assert {flag for action in get_args_parser()._actions for flag in action.option_strings} == cli.HYDRA_FLAGS


def test_a_command_finds_its_arguments_in_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    stand_in(monkeypatch, lambda: seen.append(list(sys.argv)))
    assert cli.main(["train", "experiment=hacl", "--cfg", "job"]) == 0
    assert seen == [["hialign train", "--cfg", "job", "experiment=hacl"]]


def test_an_exit_code_of_a_command_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda: 3)
    assert cli.main(["train"]) == 3


def test_a_user_s_error_is_one_line_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise ValueError("stages.pretrain.solver: got 'joint', wanted an inner level")

    stand_in(monkeypatch, main)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "hialign train: stages.pretrain.solver: got 'joint', wanted an inner level\n"
    monkeypatch.setenv("HIALIGN_TRACEBACK", "1")
    assert cli.main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise AssertionError("ours")

    stand_in(monkeypatch, main)
    with pytest.raises(AssertionError, match="ours"):
        cli.main(["train"])


def test_control_c_ends_with_130_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    stand_in(monkeypatch, main)
    assert cli.main(["train"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_train_help_reaches_hydra() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hialign", "train", "--help"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    assert "experiment" in done.stdout


def test_flags_may_stand_behind_the_settings() -> None:
    arguments = ["experiment=x", "-m", "seed=0,1", "--config-dir", "mine", "--cfg=job", "-c", "job"]
    wanted = ["-m", "--config-dir", "mine", "--cfg=job", "-c", "job", "experiment=x", "seed=0,1"]
    assert cli.flags_first(arguments) == wanted


def test_a_recipe_may_be_left_out_and_another_group_may_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    stand_in(monkeypatch, lambda: seen.append(list(sys.argv[1:])))
    assert cli.main(["train", "experiment=dpo", "recipe=null", "cache=null"]) == 0
    assert seen == [["experiment=dpo", "~recipe", "cache=null"]]
    assert cli.main(["train", "model=null"]) == 1
    assert "hialign train: model: got null, wanted a name of those that `hialign configs model` lists" in (
        capsys.readouterr().err
    )
    assert len(seen) == 1
