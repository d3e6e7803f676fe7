"""What the losses over two sets of embeddings share: arguments that fit, and rows and scales for their scores."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import check_choice


def check_embeddings(loss: str, named: dict[str, Tensor | None]) -> None:
    """Passes embeddings that are all (some rows, one dim) of floats; those that are None are left out."""
    given = [(name, rows) for name, rows in named.items() if rows is not None]
    first_name, first = given[0]
    for name, rows in given:
        if not rows.is_floating_point():
            raise ValueError(f"{loss}: {name} is {rows.dtype}, wanted floats; embed it, or call {name}.float()")
        if rows.dim() != 2 or first.dim() != 2 or rows.shape[1] != first.shape[1]:
            if name == first_name:
                name, rows = given[1]
            raise ValueError(
                f"{loss}: {first_name} {tuple(first.shape)} and {name} {tuple(rows.shape)} do not fit; wanted "
                "(rows, dim) and (columns, dim): pool and project both to one width first"
            )


def check_equal(loss: str, name: str, rows: Tensor, like_name: str, like: Tensor) -> None:
    """Passes two tensors with the same number of rows."""
    if len(rows) != len(like):
        raise ValueError(
            f"{loss}: {like_name} {tuple(like.shape)} and {name} {tuple(rows.shape)} do not fit, wanted as many rows "
            "in both: row i of one belongs to row i of the other"
        )


def check_sides(loss: str, one: tuple[str, Tensor, Tensor | None], other: tuple[str, Tensor, Tensor | None]) -> None:
    """Passes two sides of pairs, each its name, our rows and, on both sides or on none, those of every rank."""
    (name, rows, every), (other_name, others, every_other) = one, other
    check_equal(loss, other_name, others, name, rows)
    if every is None and every_other is None:
        return
    if every is None or every_other is None:
        raise ValueError(
            f"{loss}: one of all_{name} and all_{other_name} is given, wanted both or neither; gather both sides"
        )
    check_equal(loss, f"all_{other_name}", every_other, f"all_{name}", every)


def check_offset(loss: str, rows: tuple[str, Tensor], columns: tuple[str, Tensor], offset: int) -> None:
    """Passes an offset with which every row's own column exists."""
    (name, queries), (keys_name, keys) = rows, columns
    if offset < 0 or offset + len(queries) > len(keys):
        raise ValueError(
            f"{loss}: offset={offset} + {len(queries)} {name} is outside the {len(keys)} {keys_name}; "
            f"pass the rows of every rank as {keys_name} and offset = rank * local batch size"
        )


def check_negatives(loss: str, name: str, negatives: Tensor | None, rows: Tensor) -> None:
    """Passes no negatives, (n, dim) for all rows, or (rows, n, dim) for each."""
    if negatives is None:
        return
    count, dim = rows.shape
    fits = negatives.dim() == 2 or (negatives.dim() == 3 and len(negatives) == count)
    if not fits or negatives.shape[-1] != dim or not negatives.is_floating_point():
        raise ValueError(
            f"{loss}: {name} is {negatives.dtype} {tuple(negatives.shape)}, wanted floats, (n, {dim}) for the whole "
            f"batch or ({count}, n, {dim}) with each row's own; one a row is {name}[:, None]"
        )


def check_mask(loss: str, name: str, mask: Tensor | None, shape: tuple[int, int]) -> None:
    """Passes no mask, or one of bools of this shape."""
    if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):
        raise ValueError(
            f"{loss}: {name} is {mask.dtype} {tuple(mask.shape)}, wanted torch.bool {shape}; "
            "compare the items' ids, as in ids[:, None] == all_ids[None, :]"
        )


def check_positives(loss: str, positives: Tensor) -> None:
    """Passes a mask in which every row has a positive."""
    without = (~positives.any(dim=1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(
            f"{loss}: positives has none in {len(without)} of {len(positives)} rows, first in row {without[0]}, "
            "wanted at least one a row; leave such rows out, or pass the keys that belong to them"
        )


def check_some(loss: str, negatives: Tensor) -> None:
    """Passes rows with at least one negative each; ``negatives`` is their number, (rows,)."""
    without = (negatives == 0).nonzero().flatten().tolist()
    if without:
        raise ValueError(
            f"{loss}: {len(without)} of {len(negatives)} rows have no negative, first row {without[0]}, wanted at "
            "least one each; use a larger batch or more keys, or leave such rows out"
        )


def check_reduction(loss: str, name: str, rows: Tensor, reduction: str) -> None:
    """Passes a reduction that these rows have."""
    check_choice(loss, "reduction", reduction, ("mean", "sum", "none"))
    if reduction == "mean" and len(rows) == 0:
        raise ValueError(f"{loss}: {name} has no row, wanted at least one for a mean; use reduction='sum'")


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of the losses, or all of them."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def multiplier(
    loss: str, temperature: float | Tensor | None, logit_scale: float | Tensor | None, default: float = 0.07
) -> float | Tensor:
    """What cosines are multiplied by: ``logit_scale`` or 1 / ``temperature``, which is ``default`` without either."""
    if temperature is not None and logit_scale is not None:
        raise ValueError(
            f"{loss}: temperature and logit_scale are both given, wanted one; logit_scale is 1 / temperature"
        )
    if logit_scale is not None:
        return one_number(loss, "logit_scale", logit_scale, "it is the multiplier, not its log: call .exp() on CLIP's")
    wanted = default if temperature is None else temperature
    return 1 / one_number(loss, "temperature", wanted, "CLIP's is 1 / exp(logit_scale)")


def one_number(loss: str, name: str, value: float | Tensor, hint: str) -> float | Tensor:
    """The value as it is: a finite float > 0, or a tensor of one element.

    A tensor's sign is not checked, because reading it would wait for the device.
    """
    if isinstance(value, Tensor):
        # Both () and (1,) come up: FSDP2 shards no scalar parameter.
        if value.shape not in ((), (1,)):
            raise ValueError(
                f"{loss}: {name} has shape {tuple(value.shape)}, wanted () or (1,); pass one {name} for all rows"
            )
    elif not 0 < value < float("inf"):
        raise ValueError(f"{loss}: {name}={value}, wanted a finite number > 0; {hint}")
    return value


def wide(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: float32, or float64 where one of the tensors is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return dtype


def unit(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows at length 1; those shorter than 1e-12 have no direction: they become zeros, and get no gradient.

    F.normalize would multiply the gradient of a row of zeros by 1e12, which drowns that of all others.
    """
    rows = rows.to(dtype)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / lengths.masked_fill(lengths < 1e-12, float("inf"))


def scaled(rows: Tensor, scale: float | Tensor) -> Tensor:
    """The rows times the scale: scaling what has a dim is cheaper than scaling scores, which have all columns."""
    return rows * (scale.to(rows.dtype) if isinstance(scale, Tensor) else scale)


def own_columns(rows: int, columns: int, offset: int, device: torch.device) -> Tensor:
    """(rows, columns) bool, True where the column is the row's own, i + offset."""
    own = torch.arange(rows, device=device) + offset
    return own[:, None] == torch.arange(columns, device=device)
