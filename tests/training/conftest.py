"""Fixtures of the training tests: drawn pictures, a small Llava, and stages of both put together."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hialign.data import CaptionedImage, Dataset, Loader, flickr8k
from hialign.models import Model, part_of, set_trainable, tiny
from hialign.objectives import Contrastive, NextToken
from hialign.runner.assemble import collator
from hialign.training import LevelRun, Optimisation, Stage


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory, draw_captioned: Callable[..., Path]) -> Path:
    """A folder of 20 drawn pictures in Flickr8k's layout."""
    return draw_captioned(tmp_path_factory.mktemp("drawn"), 20, seed=0)


@pytest.fixture(scope="session")
def dataset(drawn: Path) -> Dataset[CaptionedImage]:
    """18 of the drawn pictures: a batch of 8 goes past the end of an epoch in the third step."""
    return flickr8k(str(drawn))


@pytest.fixture(scope="session")
def new_model() -> Callable[[], Model]:
    """A function that gives a random Llava of 190,000 parameters, always the same one."""
    first = tiny(seed=0, width=32, layers=2, image_size=32, patch_size=16)
    return lambda: dataclasses.replace(first, root=copy.deepcopy(first.root))  # faster than building it


@pytest.fixture
def model(new_model: Callable[[], Model]) -> Model:
    """One of these models."""
    return new_model()


@pytest.fixture
def make_stage(dataset: Dataset[CaptionedImage]) -> Callable[..., Stage]:
    """A function that makes a stage on a model: captions outside, contrastive pairs inside if ``pairs`` are given."""

    def make(
        model: Model,
        *,
        name: str = "only",
        solver: Any = None,
        steps: int = 4,
        train: tuple[str, ...] = ("vision", "projector", "llm", "text", "heads"),
        pairs: tuple[str, ...] = (),
        outer: Any = None,
        batch_size: int = 8,
        micro_batch_size: int = 8,
        rate: float = 1e-3,
        **settings: Any,
    ) -> Stage:
        def loader(objective: Any, rows: int) -> Loader[Any]:
            made = collator(objective.batch_type, model)
            return Loader(dataset, made, batch_size=batch_size, micro_batch_size=rows, seed=3, on_skip=print)

        def rates() -> dict[str, float]:
            set_trainable(model.root, dict.fromkeys(train, "full"))
            return {name: rate for name, p in model.root.named_parameters() if p.requires_grad}

        task = outer or NextToken()
        levels: dict[Any, LevelRun] = {"outer": LevelRun(task, {"caption": loader(task, micro_batch_size)})}
        if pairs:
            inner = Contrastive(pairs)
            levels["inner"] = LevelRun(inner, {"pairs": loader(inner, batch_size)})
        return Stage(name, levels, solver, Optimisation(steps=steps, **settings), rates, part_of)

    return make
