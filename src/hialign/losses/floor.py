"""How low a contrastive loss can go."""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce_floor(batch_size: int, temperature: float | Tensor, *, items: int | None = None) -> Tensor:
    """The least InfoNCE, in nats, that any unit vectors reach on a batch of ``batch_size`` pairs, a float64 scalar.

    ``log(1 + (B - 1) exp(-M / ((M - 1) temperature)))`` with B the batch and M the distinct pairs that batches are
    drawn from; ``items=None`` takes one batch by itself, M = B, the lower value. Reached by the regular simplex, for
    which the dimension must be at least M - 1; below that the floor is loose. For one direction or the mean of both.
    It is neither zero nor ``log B``, which is what a constant embedding has.

    It holds for one positive a row, no label smoothing and a fixed temperature: a free one brings the infimum to 0.

    Raises ``ValueError`` for a batch below 2, fewer items than a batch holds, or a temperature that is not positive.

    >>> round(info_nce_floor(8, 0.5).item(), 4)
    0.5376
    >>> round(info_nce_floor(8, 0.5, items=32).item(), 4)
    0.6356

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4, for the loss; the bound by Jensen's inequality over the
    negatives, then over the rows, and Cauchy-Schwarz for the mean off-diagonal cosine.
    Differs: it is no loss, and has no gradient.
    """
    items = batch_size if items is None else items
    if batch_size < 2 or items < batch_size:
        raise ValueError(
            f"info_nce_floor: batch_size={batch_size}, items={items}; wanted 2 or more pairs, and no fewer items"
        )
    tau = torch.as_tensor(temperature, dtype=torch.float64).detach().reshape(())
    if not torch.all(tau > 0):
        raise ValueError(f"info_nce_floor: temperature={tau.item()}, wanted a number above 0")
    negatives = torch.log(torch.tensor(batch_size - 1.0, dtype=torch.float64, device=tau.device))
    return torch.nn.functional.softplus(negatives - items / ((items - 1) * tau))
