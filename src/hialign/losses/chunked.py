"""``info_nce`` without its matrix: scores are made a tile at a time, and once more for the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .common import full_precision
from .scores import (
    check_embeddings,
    check_offset,
    check_reduction,
    check_sides,
    multiplier,
    reduced,
    scaled,
    unit,
    wide,
)


def info_nce_chunked(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    offset: int = 0,
    items: Tensor | None = None,
    all_items: Tensor | None = None,
    tile: int = 2048,
    reduction: str = "mean",
) -> Tensor:
    """``info_nce`` with the same value and gradients, in memory that grows with rows + columns, not their product.

    Returns (): the mean or the sum over the rows; or (rows,) for ``reduction="none"``. It costs one more product of
    queries and keys than ``info_nce``, so it is for batches whose scores do not fit.

    >>> queries, keys = torch.eye(3), torch.eye(3)
    >>> round(info_nce_chunked(queries, keys, temperature=1.0, tile=2).item(), 4)  # log(e + 2) - 1
    0.5514

    Args:
        queries: (rows, dim), of any length: rows are normalised here, as are the keys.
        keys: (columns, dim). Keys gathered from other processes come in as they are; columns without a query
            (a queue, hallucinated captions) are further negatives: concatenate them.
        temperature: as in ``info_nce``, and so are logit_scale, offset and reduction.
        items: (rows,) integers, one number for one item, instead of the mask ``same`` of ``info_nce``, which would be
            as large as the scores: a key of the query's item is no negative.
        all_items: (columns,), the same of the keys; without it, ``items``.
        tile: scores are made for this many rows and columns at a time.

    Source: as ``info_nce``; the sum of exponentials over blocks: Milakov and Gimelshein 2018, arXiv:1805.02867.
    Differs: it can be differentiated once only.
    """
    check_embeddings("info_nce_chunked", {"queries": queries, "keys": keys})
    check_offset("info_nce_chunked", ("queries", queries), ("keys", keys), offset)
    names = _names("info_nce_chunked", items, all_items, len(queries), len(keys))
    _check_tile("info_nce_chunked", tile)
    check_reduction("info_nce_chunked", "queries", queries, reduction)
    scale = multiplier("info_nce_chunked", temperature, logit_scale)
    with full_precision(queries):
        dtype = wide(queries, keys)
        lines = scaled(unit(queries, dtype), scale)
        losses: Tensor = _Tiled.apply(lines, unit(keys, dtype), *names, offset, tile, False)
        return reduced(losses, reduction)


def symmetric_info_nce_chunked(
    images: Tensor,
    texts: Tensor,
    *,
    all_images: Tensor | None = None,
    all_texts: Tensor | None = None,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    offset: int = 0,
    items: Tensor | None = None,
    all_items: Tensor | None = None,
    tile: int = 2048,
    reduction: str = "mean",
) -> Tensor:
    """``symmetric_info_nce`` with the same value and gradients, in memory that grows with rows + columns alone.

    Returns (): the mean or the sum over the pairs; or (rows,) for ``reduction="none"``. Without gathered rows both
    directions are read off the same tiles, so that it costs less than two directions with their matrices. With them
    a process makes tiles of its own rows against all columns, and nobody holds a whole matrix.

    >>> images, texts = torch.eye(3), torch.eye(3)
    >>> round(symmetric_info_nce_chunked(images, texts, logit_scale=2.0, tile=2).item(), 4)  # log(e**2 + 2) - 2
    0.2395

    Args:
        images: (rows, dim).
        texts: (rows, dim): row i belongs to image i.
        all_images: (columns, dim), the images of every rank, ``images`` among them; without it, ``images``.
        all_texts: the same of the texts; both or neither.
        temperature: as in ``info_nce_chunked``, and so are logit_scale, tile and reduction.
        offset: our first row's place among all rows.
        items: (rows,) integers: pairs whose item is one are no negatives of each other.
        all_items: (columns,), the same of all rows.

    Source: as ``symmetric_info_nce`` and ``info_nce_chunked``.
    Differs: it can be differentiated once only.
    """
    name = "symmetric_info_nce_chunked"
    every_image, every_text = images if all_images is None else all_images, texts if all_texts is None else all_texts
    check_embeddings(name, {"images": images, "texts": texts, "all_images": all_images, "all_texts": all_texts})
    check_sides(name, ("images", images, all_images), ("texts", texts, all_texts))
    check_offset(name, ("images", images), ("all_images", every_image), offset)
    names = _names(name, items, all_items, len(images), len(every_image))
    _check_tile(name, tile)
    check_reduction(name, "images", images, reduction)
    scale = multiplier(name, temperature, logit_scale)
    with full_precision(images):
        dtype = wide(images, texts, all_images, all_texts)
        one, other = unit(images, dtype), unit(texts, dtype)
        if every_image is images and every_text is texts:
            losses: Tensor = _Tiled.apply(scaled(one, scale), other, *names, offset, tile, True)
        else:
            forth = _Tiled.apply(scaled(one, scale), unit(every_text, dtype), *names, offset, tile, False)
            losses = forth + _Tiled.apply(scaled(other, scale), unit(every_image, dtype), *names, offset, tile, False)
        return reduced(losses / 2, reduction)


class _Tiled(torch.autograd.Function):
    """(rows,): each row's loss against its columns; and with ``both`` that of its column against the rows is added.

    Beside embeddings and gradients, no more is kept than one number a row and one a column: the logs of the
    denominators, from which each tile's softmax is made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        items: Tensor | None,
        all_items: Tensor | None,
        offset: int,
        tile: int,
        both: bool,
    ) -> Tensor:
        low = float("-inf")
        of_rows, of_columns = queries.new_full((len(queries),), low), queries.new_full((len(keys),), low)
        own = queries.new_zeros(len(queries))
        for rows, columns, scores in _tiles(queries, keys, items, all_items, offset, tile):
            of_rows[rows] = torch.logaddexp(of_rows[rows], scores.logsumexp(dim=1))
            if both:
                of_columns[columns] = torch.logaddexp(of_columns[columns], scores.logsumexp(dim=0))
            inside, diagonal = _own(rows, columns, offset)
            own[inside] = scores.diagonal(diagonal)
        ctx.save_for_backward(queries, keys, items, all_items, of_rows, of_columns)
        ctx.offset, ctx.tile, ctx.both = offset, tile, both
        return of_rows + of_columns - 2 * own if both else of_rows - own

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # once_differentiable would let this pass and leave out what comes through the tiles
        if torch.is_grad_enabled():
            raise ValueError(
                "info_nce_chunked: create_graph=True, wanted a first derivative alone; use info_nce, which can be "
                "differentiated twice"
            )
        queries, keys, items, all_items, of_rows, of_columns = ctx.saved_tensors
        for_queries, for_keys = torch.zeros_like(queries), torch.zeros_like(keys)
        with full_precision(queries):
            for rows, columns, scores in _tiles(queries, keys, items, all_items, ctx.offset, ctx.tile):
                weights = (scores - of_rows[rows, None]).exp_().mul_(grad[rows, None])
                if ctx.both:
                    weights += scores.sub_(of_columns[columns]).exp_().mul_(grad[columns])
                if ctx.needs_input_grad[0]:
                    for_queries[rows].addmm_(weights, keys[columns])
                if ctx.needs_input_grad[1]:
                    for_keys[columns].addmm_(weights.T, queries[rows])
            pull = (2 * grad if ctx.both else grad).unsqueeze(1)
            own = slice(ctx.offset, ctx.offset + len(queries))
            for_queries -= pull * keys[own]
            for_keys[own] -= pull * queries
        return for_queries, for_keys, None, None, None, None, None


def _tiles(
    queries: Tensor, keys: Tensor, items: Tensor | None, all_items: Tensor | None, offset: int, tile: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The rows, the columns and the scores of one tile after the other; what is no negative scores minus infinity."""
    for top in range(0, len(queries), tile):
        rows = slice(top, min(top + tile, len(queries)))
        for left in range(0, len(keys), tile):
            columns = slice(left, min(left + tile, len(keys)))
            scores = queries[rows] @ keys[columns].T
            if items is not None and all_items is not None:
                same = items[rows, None] == all_items[columns]
                same.diagonal(_own(rows, columns, offset)[1]).fill_(False)
                scores.masked_fill_(same, float("-inf"))
            yield rows, columns, scores


def _own(rows: slice, columns: slice, offset: int) -> tuple[slice, int]:
    """Which rows have their own column in the tile, and on which of the tile's diagonals that is."""
    first = max(rows.start, columns.start - offset)
    last = max(first, min(rows.stop, columns.stop - offset))
    return slice(first, last), rows.start + offset - columns.start


def _names(
    loss: str, items: Tensor | None, all_items: Tensor | None, rows: int, columns: int
) -> tuple[Tensor | None, Tensor | None]:
    """The items of the rows and of the columns."""
    if items is None:
        if all_items is not None:
            raise ValueError(f"{loss}: all_items is given without items, wanted both; pass our rows' items too")
        return None, None
    every = items if all_items is None else all_items
    for name, numbers, count in (("items", items, rows), ("all_items", every, columns)):
        if numbers.shape != (count,) or numbers.is_floating_point():
            raise ValueError(
                f"{loss}: {name} is {numbers.dtype} {tuple(numbers.shape)}, wanted integers {(count,)}; number the "
                "items, and gather the numbers with the keys"
            )
    return items, every


def _check_tile(loss: str, tile: int) -> None:
    if tile < 1:
        raise ValueError(f"{loss}: tile={tile}, wanted at least 1; 2048 is fast, less saves memory")
