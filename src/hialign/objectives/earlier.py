"""Embeddings of earlier batches, for losses that have them as further negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hialign.distributed import gather
from hialign.losses import MemoryQueue


class Earlier:
    """The last ``size`` rows of earlier batches by name, the same on all ranks.

    A step may look at its batch several times, elsewhere in the parameters or at a part of it, and must find the same
    rows each time. So a batch's rows, as they were at the first look, wait until ``remember`` says that the next one
    comes. What is looked at before the first ``remember``, as a probe does, leaves nothing.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.queues: dict[str, MemoryQueue] = {}
        self.waiting: dict[str, Tensor] = {}
        self.looks = False  # whether the next look is a batch's first

    def remember(self) -> None:
        """The batch that waits is an earlier one from now on."""
        for name, rows in self.waiting.items():
            self._queue(name, rows).push(rows)
        self.waiting, self.looks = {}, True

    def see(self, rows: Mapping[str, Tensor]) -> None:
        """Takes this rank's rows of a batch, (rows, dim) each, at its first look."""
        if self.looks and self.size:
            self.waiting = {name: gather(tensor.detach())[0].clone() for name, tensor in rows.items()}
            self.looks = False

    def beside(self, name: str, rows: Tensor) -> Tensor:
        """``rows`` (columns, dim), and the earlier ones behind them."""
        return torch.cat([rows, self.queues[name].rows.to(rows)]) if name in self.queues else rows

    def __len__(self) -> int:
        return max((len(queue.rows) for queue in self.queues.values()), default=0)

    def state_dict(self) -> dict[str, Any]:
        """The earlier rows, and the batch that waits."""
        return {"queues": {name: queue.state_dict() for name, queue in self.queues.items()}, "waiting": self.waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a ``state_dict``."""
        self.queues = {}
        for name, saved in state["queues"].items():
            self._queue(name, saved["storage"]).load_state_dict(saved)
        self.waiting, self.looks = dict(state["waiting"]), False

    def _queue(self, name: str, like: Tensor) -> MemoryQueue:
        if name not in self.queues:
            self.queues[name] = MemoryQueue(self.size, like.shape[1]).to(like)
        return self.queues[name]
