"""Contrastive batches larger than memory: the loss sees all embeddings at once, the model a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hialign.batch import Batch
from hialign.objectives import Parts, Result

Read = Callable[[Callable[[Parts, Batch], Any], Batch], Any]


@runtime_checkable
class Cacheable(Protocol):
    """An objective whose rows see each other only by their embeddings."""

    def embed(self, parts: Parts, batch: Batch) -> dict[str, Tensor]:
        """Embeddings (rows, dim) by name."""
        ...

    def loss(self, parts: Parts, embeddings: Mapping[str, Tensor], records: Sequence[str]) -> Result:
        """The loss of a whole batch's embeddings."""
        ...


def cached_backward(objective: Cacheable, batches: Sequence[Batch], read: Read, device: torch.device) -> Result:
    """The loss of all ``batches`` as one, whose gradients are added to the parameters' as by one backward pass.

    Every micro-batch is embedded without a graph, the loss gives each embedding its gradient, and every micro-batch is
    embedded once more to pass its part on: one more forward pass, for a memory that does not grow with the batch.
    ``read(reader, batch)`` runs a reader on the model. Dropout draws the same both times. Over several processes each
    brings its rows, and as many of them; how they are split is each process's own affair.

    Source: Gao et al. 2021, arXiv:2101.06983 (GradCache).
    Differs: nothing.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        cached = [read(objective.embed, batch) for batch in batches]
    leaves = {name: torch.cat([one[name] for one in cached]).requires_grad_() for name in cached[0]}
    records = tuple(record for batch in batches for record in batch.records)
    result: Result = read(lambda parts, _: objective.loss(parts, leaves, records), batches[0])
    result.loss_sum.backward()
    begun = 0
    for batch in batches:
        embeddings = read(objective.embed, batch)
        slopes = {name: leaf.grad[begun : begun + len(batch)] for name, leaf in leaves.items() if leaf.grad is not None}
        learnt = [name for name in slopes if embeddings[name].requires_grad]
        if learnt:  # else nothing but the loss itself trains, as where only the temperature does
            torch.autograd.backward([embeddings[name] for name in learnt], [slopes[name] for name in learnt])
        del embeddings  # and what is left of its graph, before the next one is made
        begun += len(batch)
    return result
