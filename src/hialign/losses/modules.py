"""The parts of contrastive training that remember something: a queue of keys, and a temperature that is learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MemoryQueue(nn.Module):
    """The last ``size`` keys that were pushed, for ``info_nce(..., queue=memory.rows)``.

    Only what was pushed is ever handed out: a queue that begins full of random vectors trains against them. It moves
    and is saved with the model it is part of. Under several processes, push the keys of all of them, gathered, so
    that every queue holds the same. Push after the loss: keys that are in the queue and in the batch count twice.

    >>> memory = MemoryQueue(3, dim=2)
    >>> len(memory.rows)
    0
    >>> memory.push(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    >>> memory.push(torch.tensor([[3.0, 3.0], [4.0, 4.0]]))
    >>> sorted(memory.rows[:, 0].tolist())
    [2.0, 3.0, 4.0]

    Source: Wu et al. 2018, arXiv:1805.01978 (a memory of embeddings); He et al. 2019, arXiv:1911.05722, sec. 3 (the
    queue).
    Differs: keys are stored as they come, from no momentum encoder.
    """

    storage: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"MemoryQueue: size={size} and dim={dim}, wanted both >= 1; HACL's size is 16384")
        self.register_buffer("storage", torch.zeros(size, dim))
        self.pushed = 0  # in all

    @property
    def rows(self) -> Tensor:
        """(n, dim), n <= size: a copy of the keys that are there, in any order, which later pushes leave alone."""
        return self.storage[: self.pushed].clone()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Adds keys, (n, dim), in place of the oldest ones; of more than ``size`` the last are kept."""
        size, dim = self.storage.shape
        if keys.dim() != 2 or keys.shape[1] != dim or not keys.is_floating_point():
            raise ValueError(
                f"MemoryQueue: keys is {keys.dtype} {tuple(keys.shape)}, wanted floats (n, {dim}); push what the loss "
                "takes as its keys"
            )
        kept = keys[-size:]
        first = self.pushed + len(keys) - len(kept)
        places = (first + torch.arange(len(kept), device=self.storage.device)) % size
        self.storage[places] = kept.to(self.storage)
        self.pushed += len(keys)

    def get_extra_state(self) -> Tensor:
        """How many keys were pushed, for the state dict."""
        return torch.tensor([self.pushed])

    def set_extra_state(self, state: Tensor) -> None:
        """Takes what ``get_extra_state`` gave."""
        self.pushed = int(state)


class Temperature(nn.Module):
    """A temperature that is learned, (1,), between ``minimum`` and ``maximum``.

    The parameter is the log of 1 / temperature, as CLIP's. What comes out never leaves the bounds, and its gradient
    passes at them, so that a parameter beyond a bound comes back. Call ``clamp_`` after each step of the optimiser,
    so that it does not go further and further away meanwhile.

    >>> temperature = Temperature(0.5)
    >>> round(temperature().item(), 4)
    0.5

    Source: Radford et al. 2021, arXiv:2103.00020, sec. 2.5: 0.07 at first, and a scale of at most 100.
    Differs: of shape (1,), since FSDP2 shards no scalars.
    """

    def __init__(self, initial: float = 0.07, *, minimum: float = 0.01, maximum: float = 1.0) -> None:
        super().__init__()
        if not 0 < minimum <= initial <= maximum < float("inf"):
            raise ValueError(
                f"Temperature: minimum={minimum}, initial={initial}, maximum={maximum}, wanted 0 < minimum <= initial "
                "<= maximum; HACL's are 0.001, 0.07 and 0.5"
            )
        self.log_scale = nn.Parameter(torch.tensor([-math.log(initial)]))
        self.bounds = (-math.log(maximum), -math.log(minimum))

    def forward(self) -> Tensor:
        """The temperature, (1,)."""
        inside = self.log_scale.detach().clamp(*self.bounds)
        # the difference is zero, and carries the gradient
        return (-(inside + (self.log_scale - self.log_scale.detach()))).exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Puts the parameter back between the bounds."""
        self.log_scale.clamp_(*self.bounds)
