"""The house's rules that no linter knows."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Keys that belong to Hydra's instantiate, not to what it builds.
INSTANTIATE_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
# Keys of a group's files that the runner reads and takes out before it builds the target.
RUNNER_KEYS = {"model": {"from_run"}}


def test_losses_import_torch_and_nothing_else_heavy() -> None:
    code = "from hialign.losses import info_nce; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert "torch" in imported
    heavy = {"transformers", "torchvision", "open_clip", "peft", "datasets", "hydra", "omegaconf", "wandb", "PIL"}
    assert not imported & heavy
    ours = {name for name in imported if name.startswith("hialign")}
    assert not {name for name in ours if name != "hialign" and not name.startswith("hialign.losses")}


def test_benchmarks_import_numpy_and_nothing_else_heavy() -> None:
    code = """if True:
        import importlib, json, pkgutil, sys
        import hialign.benchmarks as room
        names = [module.name for module in pkgutil.iter_modules(room.__path__, "hialign.benchmarks.")]
        for name in names: importlib.import_module(name)
        print(json.dumps([len(names), sorted(sys.modules)]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    number, modules = json.loads(done.stdout.splitlines()[-1])
    assert number >= 10
    heavy = {"torch", "transformers", "torchvision", "open_clip", "datasets", "hydra", "omegaconf", "PIL", "matplotlib"}
    heavy |= {"nltk", "spacy", "pycocoevalcap", "openai", "anthropic"}
    assert not set(modules) & heavy
    ours = {name for name in modules if name.startswith("hialign")}
    assert not {name for name in ours if name != "hialign" and not name.startswith("hialign.benchmarks")}


def targets(node: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``_target_`` in a yaml's tree, with its place in it, however deeply nested."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, child in node.items():
            yield from targets(child, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from targets(child, f"{place}[{index}]")


def objections(node: dict[str, Any]) -> list[str]:
    """What is wrong with one mapping that names a target: it does not exist, takes **kwargs, or not these keys."""
    path = str(node["_target_"])
    if "${" in path:
        return [f"_target_: {path} is an interpolation, wanted a dotted path that can be read here"]
    try:
        target = locate(path)
    except (ImportError, AttributeError) as error:
        return [f"_target_: {path} cannot be imported: {error}"]
    found = []
    signature = inspect.signature(target)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        found.append(f"{path} takes **kwargs, so a misspelt key would pass")
    keys = {key: value for key, value in node.items() if key not in INSTANTIATE_KEYS}
    # What the yaml leaves out may come from another file or from the caller, so the keys are bound in part only.
    try:
        signature.bind_partial(*node.get("_args_", ()), **keys)
    except TypeError as error:
        found.append(f"{path}: {error}; it takes {', '.join(signature.parameters)}")
    return found


def locate(path: str) -> Any:
    """The object behind a dotted path, attributes of classes included."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Only a missing module on the path itself means "look one higher"; a missing dependency is an error.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(f"no module on the path {path}")


def yaml_files() -> list[Path]:
    return sorted(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("file", yaml_files(), ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_target_of_a_yaml_takes_its_keys_and_no_kwargs(file: Path) -> None:
    tree = yaml.safe_load(file.read_text())
    for key in RUNNER_KEYS.get(file.parent.name, ()):
        tree.pop(key, None)
    wrong = [f"{place or '(top)'}: {text}" for place, node in targets(tree, "") for text in objections(node)]
    assert not wrong, f"{file.relative_to(CONFIGS)}\n" + "\n".join(wrong)


@pytest.mark.parametrize(("group", "key"), [(group, key) for group, keys in RUNNER_KEYS.items() for key in keys])
def test_every_file_of_a_group_has_the_keys_that_the_runner_reads(group: str, key: str) -> None:
    """Else model.from_run=... would need a + before it with some models only."""
    assert not [
        file.name for file in sorted((CONFIGS / group).glob("*.yaml")) if key not in yaml.safe_load(file.read_text())
    ]


@pytest.mark.parametrize("file", yaml_files(), ids=lambda file: str(file.relative_to(CONFIGS)))
def test_a_yaml_that_sets_keys_of_the_whole_run_says_so_in_its_package(file: Path) -> None:
    """Experiments, recipes and launchers write beside the groups; trackers and benchmarks may be several at a time."""
    group, name = file.parent.name, file.stem
    wanted = {"experiment": "_global_", "recipe": "_global_", "launcher": "_global_"}
    wanted |= {several: f"{several}.{name}" for several in ("tracker", "benchmark")}
    first = file.read_text().splitlines()[0]
    assert first == f"# @package {wanted[group]}" if group in wanted else not first.startswith("# @package")


@pytest.mark.parametrize("file", yaml_files(), ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_yaml_says_why_it_exists(file: Path) -> None:
    lines = file.read_text().splitlines()
    first = lines[1] if lines and lines[0].startswith("# @package") and len(lines) > 1 else (lines or [""])[0]
    assert first.startswith("# "), f"{file.relative_to(CONFIGS)}: the first line (after # @package) says why it exists"


def takes_anything(**kwargs: object) -> None:
    """A target as it must not be."""


def takes_two(one: int, *, two: int = 2) -> None:
    """A target as it should be."""


def test_the_walk_finds_nested_targets_misspelt_keys_and_kwargs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "house_stand_in", sys.modules[__name__])
    tree = yaml.safe_load(
        """
        _target_: house_stand_in.takes_two
        one: {_target_: house_stand_in.takes_two, _partial_: true, two: "${seed}"}
        two:
          - {_target_: house_stand_in.takes_two, tow: 3}
          - {_target_: house_stand_in.takes_anything}
          - {_target_: house_stand_in.missing}
          - {_target_: "${solver}"}
        """
    )
    wrong = {place: objections(node) for place, node in targets(tree, "")}
    assert wrong[""] == []
    assert wrong["one"] == []
    assert "tow" in wrong["two[0]"][0]
    assert "**kwargs" in wrong["two[1]"][0]
    assert "cannot be imported" in wrong["two[2]"][0]
    assert "interpolation" in wrong["two[3]"][0]
