"""A solver from its yaml is the solver that its class builds by itself."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hialign import solvers

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "solver"
DIFFER = {"alternating": {"inner_steps": 1}}  # on purpose; a comment on the line says why
PRESETS = {"blur", "bome", "dynamic_barrier_ema"}  # which say nothing but where they differ


def test_every_yaml_says_what_its_class_does():
    seen = set()
    for file in sorted(FOLDER.glob("*.yaml")):
        given = dict(OmegaConf.load(file))
        if "_target_" not in given:
            seen.add(file.stem)
            continue
        built = getattr(solvers, given.pop("_target_").rpartition(".")[2])
        defaults = {name: p.default for name, p in inspect.signature(built).parameters.items()}
        assert given.keys() == defaults.keys(), file.name
        assert {name: value for name, value in given.items() if value != defaults[name]} == DIFFER.get(file.stem, {})
    assert seen == PRESETS


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, values in DIFFER.items() for key in values])
def test_where_a_yaml_differs_its_line_says_why(name: str, key: str):
    (line,) = (line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith(f"{key}:"))
    assert "# the class has" in line
