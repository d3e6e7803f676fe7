"""Text from images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hialign.batch import Tokens
from hialign.models.model import Model


def generate(model: Model, pixel_values: Tensor, prompt: Tokens, *, max_new_tokens: int) -> list[str]:
    """What the model says after each row of ``prompt``, greedily, until its end token or ``max_new_tokens``.

    ``pixel_values`` is (batch, 3, height, width), one image a row; the rows of ``prompt`` are equally long.
    """
    if not bool(prompt.mask.all()):
        raise ValueError("generate: the prompts differ in length; wanted rows without padding")
    model.root.eval()
    llava: Any = model.root.llava  # transformers' stubs refuse its own models here
    with torch.no_grad():
        ids = llava.generate(
            input_ids=prompt.ids,
            attention_mask=prompt.mask,
            pixel_values=pixel_values,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    new = ids[:, prompt.ids.shape[1] :]
    return [text.strip() for text in model.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
