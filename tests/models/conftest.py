"""One tiny model for the tests that only read it, one saved folder, and batches in its shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hialign.batch import LanguageBatch, PairBatch, Tokens
from hialign.models import Model, save, tiny

CAPTIONS = ("a dog.", "two red cups on the table in front of a window", "the children's ball")


@pytest.fixture(scope="session")
def model() -> Model:
    """Only to be read: every test sees the same one."""
    made = tiny(seed=0)
    made.root.eval().requires_grad_(False)
    return made


@pytest.fixture(scope="session")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, saved; only to be read."""
    saved = tmp_path_factory.mktemp("models") / "model"
    save(model, saved)
    return saved


@pytest.fixture(scope="session")
def make_tokens() -> Callable[..., Tokens]:
    """A function that pads lists of ids on the right."""

    def make(rows: list[list[int]], *, pad: int = 0, length: int = 0) -> Tokens:
        width = max(length, *(len(row) for row in rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return Tokens(ids=ids, mask=mask, labels=torch.where(mask == 1, ids, -100))

    return make


@pytest.fixture(scope="session")
def caption_ids(model: Model) -> list[list[int]]:
    """Captions of different lengths with their start and end tokens."""
    tokenizer = model.clip_tokenizer
    return [[tokenizer.bos_token_id, *tokenizer(caption)["input_ids"], tokenizer.eos_token_id] for caption in CAPTIONS]


@pytest.fixture(scope="session")
def pair_batch(caption_ids: list[list[int]], make_tokens: Callable[..., Tokens]) -> PairBatch:
    pixels = torch.randn(len(CAPTIONS), 3, 64, 64, generator=torch.Generator().manual_seed(1))
    tokens = make_tokens(caption_ids)
    return PairBatch(records=CAPTIONS, pixel_values=pixels, caption=tokens, clip_caption=tokens)


@pytest.fixture(scope="session")
def language_batch(
    model: Model, pair_batch: PairBatch, caption_ids: list[list[int]], make_tokens: Callable[..., Tokens]
) -> LanguageBatch:
    image = [model.processor.tokenizer.image_token_id] * model.num_image_tokens
    text = make_tokens([[ids[0], *image, *ids[1:]] for ids in caption_ids])
    text.labels[:, : 1 + len(image)] = -100
    return LanguageBatch(records=CAPTIONS, pixel_values=pair_batch.pixel_values, text=text)
