"""Losses that pull matching rows of two sets of embeddings together and push the others apart."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    offset: int = 0,
    same: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of each query against all keys, where row i's positive is key i + offset.

    Returns (): the mean or the sum over the rows; or (rows,) for ``reduction="none"``. One direction only:
    CLIP's loss is half of this plus half of it with queries and keys swapped.

    Args:
        queries: (rows, dim), of any length: rows are normalised here.
        keys: (columns, dim). Keys gathered from other processes come in as they are; columns without a query
            are further negatives.
        temperature: divides the cosines; a float or a tensor of one element, which gets a gradient. A tensor's
            sign is not checked, because reading it would wait for the device.
        offset: our first row's place among the keys: rank * local batch size after a gather.
        same: (rows, columns) bool, True where a key shows the query's own item (an image that is twice in the
            batch). Such a key is no negative: it leaves the denominator, unless it is the row's positive.
        reduction: "mean", "sum" or "none". Under a sharded batch, the sums of all ranks add up to the whole.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4.
    Differs: the score is a cosine over a temperature (as in CLIP, arXiv:2103.00020), not a bilinear form;
    ``same`` is ours.
    """
    if queries.dim() != 2 or keys.dim() != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"info_nce: queries {tuple(queries.shape)} and keys {tuple(keys.shape)} do not fit; wanted (rows, dim) "
            "and (columns, dim): pool and project both to one width first"
        )
    rows, columns = len(queries), len(keys)
    if offset < 0 or offset + rows > columns:
        raise ValueError(
            f"info_nce: offset={offset} + {rows} queries is outside the {columns} keys; "
            "pass the keys of every rank and offset = rank * local batch size"
        )
    if same is not None and (same.dtype != torch.bool or same.shape != (rows, columns)):
        raise ValueError(
            f"info_nce: same is {same.dtype} {tuple(same.shape)}, wanted torch.bool {(rows, columns)}; "
            "compare the items' ids, as in ids[:, None] == all_ids[None, :]"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"info_nce: reduction={reduction!r}, wanted 'mean', 'sum' or 'none'; choose one of these")
    if reduction == "mean" and rows == 0:
        raise ValueError("info_nce: queries has no row, wanted at least one for a mean; use reduction='sum'")

    # Autocast would run the product in half precision. Only devices whose autocast every torch since 2.2 knows
    # are switched (meta has none at all); elsewhere the scores follow autocast.
    device = queries.device.type
    with torch.autocast(device, enabled=False) if device in ("cpu", "cuda", "xpu") else nullcontext():
        wide = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
        cosines = F.normalize(queries.to(wide), dim=-1) @ F.normalize(keys.to(wide), dim=-1).T  # (rows, columns)
        scores = cosines / _checked(temperature, wide)
        positives = torch.arange(rows, device=scores.device) + offset
        if same is not None:
            scores = scores.masked_fill(same.scatter(1, positives[:, None], False), float("-inf"))
        return F.cross_entropy(scores, positives, reduction=reduction)


def _checked(temperature: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """The temperature as something that divides scores of ``dtype`` without widening them."""
    if isinstance(temperature, Tensor):
        # Both () and (1,) come up: FSDP2 shards no scalar parameter.
        if temperature.shape not in ((), (1,)):
            raise ValueError(
                f"info_nce: temperature has shape {tuple(temperature.shape)}, wanted () or (1,); "
                "pass one temperature for all rows"
            )
        return temperature.to(dtype)
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"info_nce: temperature={temperature}, wanted a finite number > 0; CLIP's is 1 / exp(logit_scale)"
        )
    return temperature
