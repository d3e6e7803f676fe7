"""Text from images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hialign.batch import Tokens
from hialign.models.model import Model


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the mode from before afterwards."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def generate(model: Model, pixel_values: Tensor | None, prompt: Tokens, *, max_new_tokens: int) -> list[str]:
    """What the model says after each row of ``prompt``, greedily, until its end token or ``max_new_tokens``.

    ``pixel_values`` is (batch, 3, height, width), one image a row, or None for rows without images; the rows of
    ``prompt`` are equally long.
    """
    if not bool(prompt.mask.all()):
        raise ValueError("generate: the prompts differ in length; wanted rows without padding")
    llava: Any = model.root.llava  # transformers' stubs refuse its own models here
    with torch.no_grad(), evaluating(model.root):
        ids = llava.generate(
            input_ids=prompt.ids,
            attention_mask=prompt.mask,
            **({} if pixel_values is None else {"pixel_values": pixel_values}),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    new = ids[:, prompt.ids.shape[1] :]
    return [text.strip() for text in model.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
