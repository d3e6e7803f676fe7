"""What a user gets from the wheel, outside the checkout, is what the checkout holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGES = ("torch", "transformers", "open_clip_torch", "peft", "hydra-core", "datasets", "wandb", "pytest")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300, env={**kept, **environment}
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


def checkout_files(folder: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern) if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build/ or egg-info of the checkout leaks into it."""
    source = tmp_path_factory.mktemp("source") / "hialign"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (repo / name).exists():
            shutil.copy(repo / name, source)
    for name in ("src", "configs"):
        shutil.copytree(repo / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    out = source / "dist"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that holds the wheel; torch and the rest are borrowed from this one."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"),
        wheel,
        cwd=folder,
    )
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A plain path is appended after the environment's own site-packages, and .pth files in it are not read, so the
    # checkout's editable install stays out of sight.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


def test_the_wheel_holds_every_module_and_config_and_nothing_else(repo: Path, wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {name for name in checkout_files(repo / "src", "*.py")}
    configs = {f"hialign/configs/{name}" for name in checkout_files(repo / "configs", "*.yaml")}
    read = {"hialign/configs/__init__.py", "hialign/py.typed", "hialign/models/architectures.json"}
    assert modules | configs | read <= names
    assert {name for name in names if name.endswith((".py", ".yaml"))} <= modules | configs | {
        "hialign/configs/__init__.py"
    }


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_installed_outside_the_checkout_it_finds_its_configs_and_answers(
    repo: Path, installed: Path, tmp_path: Path
) -> None:
    code = (
        "import hialign, importlib.resources as r; from pathlib import Path;"
        "root = Path(str(r.files('hialign.configs')));"
        "print(hialign.__file__, *sorted(str(p.relative_to(root)) for p in root.rglob('*.yaml')), sep='\\n')"
    )
    where, *found = run(installed / "python", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert Path(where).is_relative_to(installed.parent)
    assert set(found) == checkout_files(repo / "configs", "*.yaml")


def test_installed_outside_the_checkout_it_trains_with_its_own_configs(
    installed: Path, tmp_path: Path, draw_captioned: Callable[..., Path]
) -> None:
    """A number changed in the installed copy of a config shows that this copy is what is read."""
    (site,) = (installed.parent / "lib").glob("python*/site-packages")
    solver = site / "hialign" / "configs" / "solver" / "joint.yaml"
    solver.write_text(solver.read_text().replace("weight: 1.0", "weight: 0.125"))
    draw_captioned(tmp_path / "pictures", 12, seed=0)
    small = (
        "model.width=32",
        "model.layers=2",
        "model.image_size=32",
        "~stages.finetune",
        "stages.pretrain.steps=1",
    )
    batches = ("stages.pretrain.batch_size=4", "stages.pretrain.inner_batch_size=4", "name=first")
    run(
        *(installed / "hialign", "train", "experiment=joint", "data=flickr8k", "data.root=pictures", *small, *batches),
        cwd=tmp_path,
    )
    folder = tmp_path / "runs" / "joint" / "first"
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    facts = json.loads((folder / "provenance.json").read_text())
    assert (facts["commit"], facts["uncommitted_changes"]) == (None, False)
    assert "weight: 0.125" in (folder / "config.yaml").read_text()
    assert (folder / "model" / "model.safetensors").is_file()
    assert "usage: hialign COMMAND" in run(installed / "hialign", "--help", cwd=tmp_path).stdout


def test_the_packages_asked_for_are_installed_and_only_hydra_has_a_cap(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + [line for name in extras for line in extras[name]]
    for package in PACKAGES:
        assert any(line.startswith(f"{package}>=") for line in asked), package
    assert {line for line in asked if "<" in line or "==" in line} == {"hydra-core>=1.3.8,<1.4"}


def test_the_lock_names_no_host_no_path_and_no_local_build(repo: Path) -> None:
    pins = (repo / "constraints.txt").read_text().splitlines()[1:]
    assert not [line for line in pins if "/" in line or "+" in line or "==" not in line or " @ " in line]
    assert any(line.startswith("torch==") for line in pins)
