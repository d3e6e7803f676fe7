"""What alignment needs beside the model: a CLIP text tower, linear heads and a temperature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from hialign.batch import Tokens


class Alignment(nn.Module):
    """Text tower, one linear head for either side of each pair, and the temperature.

    Heads are linear, since a strong head can satisfy the contrastive loss without moving the embeddings under it, and
    the temperature is a parameter of shape (1,), since FSDP refuses scalars. Without ``text_config`` there is neither
    a text tower nor the pair ``clip``.
    """

    def __init__(
        self,
        text_config: dict[str, Any] | None,
        *,
        vision_dim: int,
        llm_dim: int,
        embed_dim: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.settings = {
            "text_config": text_config,
            "vision_dim": vision_dim,
            "llm_dim": llm_dim,
            "embed_dim": embed_dim,
            "temperature": temperature,
        }
        widths = {"projector": (llm_dim, llm_dim), "llm": (llm_dim, llm_dim)}
        self.text: CLIPTextModel | None = None
        if text_config is not None:
            self.text = CLIPTextModel(CLIPTextConfig(**text_config))
            widths = {"clip": (vision_dim, self.text.config.hidden_size), **widths}
        self.heads = nn.ModuleDict(
            {
                f"{pair}_{side}": nn.Linear(width, embed_dim, bias=False)
                for pair, (image, text) in widths.items()
                for side, width in (("image", image), ("text", text))
            }
        )
        self.log_temperature = nn.Parameter(torch.tensor([math.log(temperature)]))

    @property
    def temperature(self) -> Tensor:
        """Shape (1,)."""
        return self.log_temperature.exp()

    def head(self, pair: str, side: str, states: Tensor) -> Tensor:
        """States (batch, width) of one ``side`` of a pair, "image" or "text", as (batch, embed_dim)."""
        if pair == "clip":
            self._require_text()
        embeddings: Tensor = self.heads[f"{pair}_{side}"](states)
        return embeddings

    def embed_text(self, caption: Tokens | None) -> Tensor:
        """The text tower's state at the end token, (batch, text width); ``None`` is for models without a tower."""
        text = self._require_text()
        assert caption is not None
        pooled: Tensor = text(input_ids=caption.ids, attention_mask=caption.mask).pooler_output
        return pooled

    def _require_text(self) -> CLIPTextModel:
        if self.text is None:
            raise ValueError(
                "pairs: clip is asked for, and this model has no CLIP text tower; give it a model.clip, or use the "
                "pairs projector and llm alone"
            )
        return self.text
