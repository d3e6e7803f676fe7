"""Configs composed and commands run inside the test process: a process of its own imports torch for seconds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from hialign import cli
from hialign.runner import schema

Compose = Callable[..., DictConfig]

# The smallest model and the fewest steps with which every part still takes part.
MODEL = ("model.width=32", "model.layers=2", "model.image_size=32")
STEPS = tuple(
    f"stages.{stage}.{key}"
    for stage in ("pretrain", "finetune")
    for key in ("steps=3", "batch_size=8", "inner_batch_size=8")
)


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Workshop:
    """A folder to type commands in, with drawn pictures in ``pictures/``."""

    folder: Path

    def hialign(self, *arguments: str) -> Done:
        """One command as the console script runs it."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(list(arguments))
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
        return Done(code, out.getvalue(), err.getvalue())

    def train(self, *arguments: str, experiment: str = "hierarchical") -> Done:
        """``hialign train`` of a model and a length for tests; later arguments override these."""
        common = (f"experiment={experiment}", "data=flickr8k", "data.root=pictures", *MODEL, *STEPS)
        return self.hialign(
            "train", *(["-m"] if "-m" in arguments else []), *common, *(a for a in arguments if a != "-m")
        )

    def run(self, name: str, experiment: str = "hierarchical") -> Path:
        """The folder of the run called ``name``."""
        return self.folder / "runs" / experiment / name


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, draw_captioned: Callable[..., Path]) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    draw_captioned(folder / "pictures", 40, seed=0)
    return Workshop(folder)


@pytest.fixture(scope="session")
def trained(workshop: Workshop) -> Workshop:
    """The workshop with a finished run called ``first``."""
    done = workshop.train("name=first")
    assert done.code == 0, done.err
    return workshop


@pytest.fixture
def composed() -> Compose:
    """A function from a config's name and overrides to the config, with Hydra's own part set beside it."""

    def make(*overrides: str, config: str = "train") -> DictConfig:
        schema.register()
        with initialize_config_module("hialign.configs", version_base="1.3"):
            whole = compose(config, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(whole)
        with open_dict(whole):
            del whole["hydra"]
        return whole

    return make


@pytest.fixture
def validated(composed: Compose) -> Compose:
    """As ``composed``, and past ``schema.validate``."""

    def make(*overrides: str) -> DictConfig:
        config = composed(*overrides)
        choices = HydraConfig.get().runtime.choices
        schema.validate(config, experiment=choices.get("experiment"), suite=str(choices.get("data")))
        return config

    return make
