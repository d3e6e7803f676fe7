"""The nouns that data, models and objectives share: frozen dataclasses of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same value with ``function`` applied to every tensor in it, nested dataclasses and mappings included."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: _map_tensors(inside, function) for name, inside in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Rows of token ids, right-padded to the longest."""

    ids: Tensor  # (batch, length), int64
    mask: Tensor  # (batch, length), int64: 1 on tokens, 0 on padding
    labels: Tensor  # (batch, length), int64: the id where it is to be predicted, -100 elsewhere

    def to(self, device: torch.device | str) -> Self:
        """The same rows on ``device``."""
        moved: Self = _map_tensors(self, lambda tensor: tensor.to(device))
        return moved

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What every batch has; ``records`` names the rows, so that an error can say where it came from."""

    records: tuple[str, ...]

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on ``device``."""
        moved: Self = _map_tensors(self, lambda tensor: tensor.to(device))
        return moved

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, kw_only=True)
class LanguageBatch(Batch):
    """Images and the text that is to be predicted from them.

    Two things may come from a cache. ``pixel_values`` of three dimensions is what the image tower made of the images,
    (images, patches, vision width). ``reference`` is what the model that training began with says of the tokens to
    predict, row behind row, by name: ``text_logps`` (targets,), ``text_states`` (targets, width).
    """

    pixel_values: Tensor  # (images of the whole batch, 3, height, width), in row order; a row has 0, 1 or several
    text: Tokens  # image placeholders expanded to one id per patch, then the text
    reference: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(Batch):
    """Two answers to one prompt about the same images, row by row; what lies before ``starts`` both sides share.

    ``pixel_values``, ``corrupted_pixel_values`` and ``reference`` may come from a cache, as in LanguageBatch; the names
    begin with ``chosen``, ``rejected`` and, of the chosen answer behind corrupted images, ``corrupted``.
    """

    pixel_values: Tensor  # (images of the whole batch, 3, height, width), in row order; a row has 0, 1 or several
    corrupted_pixel_values: Tensor | None  # the same shape: each image made to say less; None: not asked for
    chosen: Tokens  # prompt, placeholders expanded to one id per patch, then the answer; labels on the answer alone
    rejected: Tokens  # of another length
    starts: Tensor  # (batch,), int64: chosen.ids[row, :starts[row]] equals rejected's, and no label is set in either
    chosen_phrases: Tensor | None  # as chosen.ids, int64: 1, 2, ... in the tokens of each phrase, 0 elsewhere
    rejected_phrases: Tensor | None  # as rejected.ids; each row has the same phrases on both sides
    reference: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """Images, each with one caption, as two towers see them: row i of both belongs together."""

    pixel_values: Tensor  # (batch, 3, height, width)
    caption: Tokens  # in the language model's vocabulary, no image placeholder
    clip_caption: Tokens | None  # in the CLIP text tower's vocabulary, start and end included; None: there is none

    def rows(self, chosen: slice) -> Self:
        """The batch of these rows alone."""
        cut: Self = _map_tensors(replace(self, records=self.records[chosen]), lambda tensor: tensor[chosen])
        return cut


@dataclass(frozen=True, kw_only=True)
class HallucinatedBatch(PairBatch):
    """Images, each with its caption and with a text that is wrong of it."""

    hallucinated: Tokens  # as caption, of another length
    clip_hallucinated: Tokens | None  # as clip_caption
