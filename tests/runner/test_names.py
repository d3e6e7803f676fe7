"""A run's folder name says what was changed, and its provenance where it came from."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hialign.runner.names import provenance, run_name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["experiment=hierarchical", "data.root=/x/y", "output=z"], "default"),
        (["solver=joint", "seed=3"], "seed-3_solver-joint"),
        (["seed=3", "solver=joint"], "seed-3_solver-joint"),
        (["model.width=32"], "model.width-32"),
        (["~stages.pretrain"], "stages.pretrain"),
        (["+solver@stages.pretrain.solver=joint"], "solver-stages.pretrain.solver-joint"),
        (["inner.objective.pairs=[clip,llm]"], "inner.objective.pairs--clip,llm"),
        (["model.from_run=runs/hierarchical/a b"], "model.from_run-runs-hierarchical-a-b"),
        (["trainer.workers=4", "tracker=[wandb]", "tracker.wandb.project=x", "launcher=slurm"], "default"),
        (["resume=auto", "hydra.verbose=true"], "default"),
        (["seed=3", "resume=auto"], "seed-3"),
    ],
)
def test_a_run_is_named_after_the_overrides_that_change_its_outcome(overrides: list[str], name: str) -> None:
    assert run_name(overrides) == name


def test_runs_of_two_precisions_have_two_names() -> None:
    assert run_name(["trainer.precision=bf16"]) != run_name([])


def test_a_name_is_one_plain_folder_whatever_was_typed() -> None:
    for typed in ("a=../../x", "a='b c'", "a={b: [1, ${c}]}", "a=ä/ö\\ü", "a=-", "a=.", "+a=$(rm)", 'a="x\ny"'):
        name = run_name([typed])
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9.,_-]*", name), name
        assert "=" not in name  # run=... is itself a Hydra override


def test_a_long_name_is_cut_and_stays_different_from_others() -> None:
    common = [f"stages.pretrain.key{i}=value" for i in range(20)]
    one, other = run_name([*common, "z=1"]), run_name([*common, "z=2"])
    assert len(one) < 140
    assert one != other
    assert one[:100] == other[:100]
    assert run_name([*common, "z=1"]) == one


def test_provenance_says_what_ran_where_and_from_which_commit(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hialign train", "seed=3"])
    facts = provenance()
    assert facts["command"] == ["hialign train", "seed=3"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", facts["time"])
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["host"]
    assert facts["versions"]["torch"] == version("torch")
    assert None not in facts["versions"].values()
    head = subprocess.run(["git", "-C", str(repo), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert facts["commit"] == (head.stdout.strip() if head.returncode == 0 else None)
    assert isinstance(facts["uncommitted_changes"], bool)


def test_an_installed_copy_inside_someone_s_checkout_does_not_claim_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hialign.runner import names

    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "theirs"], check=True)
    copy = tmp_path / "names.py"
    copy.write_text("")
    monkeypatch.setattr(names, "__file__", str(copy))
    assert names.provenance()["commit"] is None
    assert names.provenance()["uncommitted_changes"] is False
    subprocess.run([*git, "add", "names.py"], check=True)
    assert names.provenance()["commit"] is not None
    assert names.provenance()["uncommitted_changes"] is True
