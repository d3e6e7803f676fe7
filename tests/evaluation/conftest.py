"""A model to evaluate, with what asks it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from hialign.data import LanguageCollator, PairCollator
from hialign.evaluation.subject import Subject
from hialign.models import Model


@pytest.fixture
def asked_by() -> Callable[..., LanguageCollator]:
    """The collator that shows a model images, in a template."""

    def make(model: Model, template: str = "plain_eos") -> LanguageCollator:
        return LanguageCollator(
            model.processor.tokenizer,
            model.processor.image_processor,
            image_token_id=model.root.llava.config.image_token_index,
            num_image_tokens=model.num_image_tokens,
            template=template,
        )

    return make


@pytest.fixture
def make_subject(asked_by: Callable[..., LanguageCollator], tmp_path: Path) -> Callable[..., Subject]:
    """A subject of a model; a record that is skipped fails the test."""

    def make(model: Model, heldout: Callable[[], Any], *, batch_size: int, template: str = "plain_eos") -> Subject:
        return Subject(
            name="finetune/step-000003",
            made_by={"precision": "fp32"},
            world={},
            model=model,
            heldout=heldout,
            language=asked_by(model, template),
            pairs=PairCollator(model.processor.tokenizer, model.clip_tokenizer, model.processor.image_processor),
            answers=tmp_path / "answers",
            batch_size=batch_size,
            device=torch.device("cpu"),
            autocast=nullcontext,
            on_skip=lambda skipped: pytest.fail(f"skipped {skipped}"),
        )

    return make
