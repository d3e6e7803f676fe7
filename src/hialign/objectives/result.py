"""What an objective returns, and what it needs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from hialign.batch import Batch, Tokens


@dataclass(frozen=True)
class Result:
    """A sum and what to divide it by.

    A mean could not be joined over micro-batches and ranks; the training loop adds both and divides once.
    """

    loss_sum: Tensor  # scalar, with gradient
    weight: Tensor  # scalar, without: how many tokens or rows the sum runs over
    numbers: Mapping[str, float | Tensor] = field(default_factory=dict)  # means over this batch, only logged


class Parts(Protocol):
    """The model as objectives see it: what goes in and what comes out, nothing of how it is built."""

    def next_token_logits(self, pixel_values: Tensor, text: Tokens) -> Tensor:
        """Logits (batch, length, vocabulary) of a row of text that holds the image's placeholders."""
        ...

    def text_states(self, pixel_values: Tensor, text: Tokens) -> Tensor:
        """Last hidden states (batch, length, width) of rows of text that hold the images' placeholders."""
        ...

    def answer_states(
        self, pixel_values: Tensor, chosen: Tokens, rejected: Tokens, starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For both answers behind one prompt, the states (batch, 1 + longest answer, width) that predict them."""
        ...

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """The output layer's weight (vocabulary, width) and its bias, if any."""
        ...

    def reference(self) -> AbstractContextManager[Parts]:
        """Within it the model is the one that training began with, without gradients."""
        ...

    @property
    def reference_head(self) -> tuple[Tensor, Tensor | None]:
        """``head`` of the model that training began with, without gradients."""
        ...

    def image_embeddings(self, pixel_values: Tensor, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        """For each pair by name, the images' embeddings (batch, dim)."""
        ...

    def text_embeddings(
        self, caption: Tokens, clip_caption: Tokens | None, pairs: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """For each pair by name, the captions' embeddings (batch, dim)."""
        ...

    @property
    def temperature(self) -> Tensor:
        """The contrastive temperature, shape (1,)."""
        ...


class Objective(Protocol):
    """A loss on a model: ``batch_type`` says which batches it reads, ``whole_batch`` that its rows see each other.

    One that reads several kinds has a mapping of its streams' names to the batches that they give.

    One that has ``bounded = True`` besides has a proved lower bound for each batch, among its numbers as ``floor``; one
    that has ``needs_reference = True`` compares with the model that the run started from: it has ``reference_reads``,
    the names of what it reads of that model, for each kind of batch, and ``read_reference``, which gives them. One that
    has ``needs_corrupted = True`` compares with the stage's corrupted image. ``unbounded``, where it is not empty, says
    what lets the loss fall without end.
    """

    batch_type: type[Batch] | Mapping[str, type[Batch]]
    whole_batch: bool

    def __call__(self, parts: Parts, batch: Batch) -> Result:
        """The loss of one micro-batch."""
        ...
