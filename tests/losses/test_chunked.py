"""The chunked losses are the plain ones, value by value and gradient by gradient, and never hold the matrix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hialign.losses import info_nce, info_nce_chunked, symmetric_info_nce, symmetric_info_nce_chunked


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves_of(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    temperature = torch.tensor([0.2], dtype=torch.float64)
    tensors = (normal(rows, 5), normal(columns, 5, seed=1), temperature)
    return tensors[0].requires_grad_(), tensors[1].requires_grad_(), tensors[2].requires_grad_()


def assert_same_loss_and_gradients(chunked: Tensor, plain: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, 1 + plain.numel(), dtype=plain.dtype).reshape(plain.shape)  # no two rows alike
    found, expected = (torch.autograd.grad((loss * weights).sum(), leaves) for loss in (chunked, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_chunked_loss_by_hand():
    """Cosines [[1, .6], [0, .8]] at .5, a score a tile: forth differences .8 and 1.6, back 2 and .4."""
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    forth, back = ([math.log1p(math.exp(-d)) for d in differences] for differences in ((0.8, 1.6), (2.0, 0.4)))
    losses = info_nce_chunked(images, texts, temperature=0.5, tile=1, reduction="none")
    assert losses.tolist() == pytest.approx(forth)
    both = symmetric_info_nce_chunked(images, texts, temperature=0.5, tile=1)
    assert both.item() == pytest.approx(sum(forth + back) / 4)


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(("rows", "columns", "offset"), [(7, 7, 0), (3, 11, 0), (3, 11, 4), (4, 9, 5), (1, 1, 0)])
def test_one_direction_is_info_nce(rows: int, columns: int, offset: int, tile: int):
    queries, keys, temperature = leaves = leaves_of(rows, columns)
    number = torch.arange(columns) % 4
    for items in (None, number):
        own = None if items is None else items[offset : offset + rows]
        same = None if own is None else own[:, None] == number
        options: dict[str, Any] = {"temperature": temperature, "offset": offset, "reduction": "none"}
        plain = info_nce(queries, keys, same=same, **options)
        assert_same_loss_and_gradients(
            info_nce_chunked(queries, keys, items=own, all_items=items, tile=tile, **options), plain, leaves
        )


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("items", [None, torch.tensor([0, 1, 0, 2, 3, 1, 0])])
def test_both_directions_are_symmetric_info_nce(items: Tensor | None, tile: int):
    images, texts, temperature = leaves = leaves_of(7, 7)
    same = None if items is None else items[:, None] == items
    plain = symmetric_info_nce(images, texts, temperature=temperature, same=same, reduction="none")
    chunked = symmetric_info_nce_chunked(
        images, texts, temperature=temperature, items=items, tile=tile, reduction="none"
    )
    assert_same_loss_and_gradients(chunked, plain, leaves)


@pytest.mark.parametrize("tile", [2, 100])
def test_the_loss_is_unchanged_when_split_over_ranks(tile: int):
    images, texts, temperature = leaves = leaves_of(6, 6)
    items = torch.tensor([0, 1, 0, 2, 3, 1])
    parts = [
        symmetric_info_nce_chunked(
            images[rows],
            texts[rows],
            all_images=images,
            all_texts=texts,
            offset=rows.start,
            temperature=temperature,
            items=items[rows],
            all_items=items,
            tile=tile,
        )
        for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    whole = symmetric_info_nce(images, texts, temperature=temperature, same=items[:, None] == items)
    assert_same_loss_and_gradients(torch.stack(parts).mean(), whole, leaves)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_are_those_of_the_plain_loss(reduction: str):
    images, texts, temperature = leaves = leaves_of(5, 5)
    options: dict[str, Any] = {"temperature": temperature, "reduction": reduction}
    plain, chunked = info_nce(images, texts, **options), info_nce_chunked(images, texts, tile=2, **options)
    assert_same_loss_and_gradients(chunked, plain, leaves)
    both = symmetric_info_nce_chunked(images, texts, tile=2, **options)
    assert_same_loss_and_gradients(both, symmetric_info_nce(images, texts, **options), leaves)


def test_gradients_are_those_of_finite_differences():
    leaves = leaves_of(4, 6)
    assert torch.autograd.gradcheck(
        lambda q, k, t: info_nce_chunked(q, k, temperature=t, offset=1, tile=2, reduction="none"), leaves
    )
    assert torch.autograd.gradcheck(
        lambda q, k, t: symmetric_info_nce_chunked(q, k, temperature=t, tile=3, reduction="none"), leaves_of(4, 4)
    )


def test_frozen_keys_get_no_gradient_and_queries_still_do():
    queries, keys, _ = leaves_of(3, 5)
    info_nce_chunked(queries, keys.detach(), tile=2).backward()
    expected = torch.autograd.grad(info_nce(queries, keys), queries)
    assert queries.grad is not None
    torch.testing.assert_close((queries.grad,), expected)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives, and how many products of matrices there were."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = self.products = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.products += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def largest(loss: Any, **options: Any) -> Largest:
    images, texts, _ = leaves_of(64, 64)
    with Largest() as seen:
        loss(images, texts, **options).backward()
    return seen


def test_no_tensor_is_larger_than_the_embeddings_or_a_tile():
    options: dict[str, Any] = {"items": torch.arange(64) % 60, "tile": 8}
    for loss in (info_nce_chunked, symmetric_info_nce_chunked):
        assert largest(loss, **options).numel == 64 * 5  # the embeddings
    assert largest(symmetric_info_nce).numel == 64 * 64  # so that the test could fail


def test_both_directions_take_the_products_of_one():
    """A tile is multiplied out in the forward, again in the backward, and twice for the gradients."""
    one, both = largest(info_nce_chunked, tile=32), largest(symmetric_info_nce_chunked, tile=32)
    assert one.products == both.products == 4 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_finite_at_scores_of_1e4(dtype: torch.dtype):
    for sign in (1, -1):
        for loss in (info_nce_chunked, symmetric_info_nce_chunked):
            leaves = [(f * normal(6, 5)).to(dtype).requires_grad_() for f in (1, sign)]
            temperature = torch.tensor([1e-4], requires_grad=True)
            value = loss(*leaves, temperature=temperature, items=torch.arange(6) % 4, tile=4)
            value.backward()
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in [*leaves, temperature])


def test_autocast_reaches_neither_the_loss_nor_its_gradients():
    images, texts = (t.float().detach().requires_grad_() for t in leaves_of(6, 6)[:2])
    outside = symmetric_info_nce_chunked(images, texts, temperature=0.01, tile=4)
    expected = torch.autograd.grad(outside, (images, texts))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = symmetric_info_nce_chunked(images, texts, temperature=0.01, tile=4)
        found = torch.autograd.grad(inside, (images, texts))
    assert torch.equal(inside, outside)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_second_derivative_is_refused_and_not_wrong():
    queries, keys, _ = leaves_of(3, 3)
    with pytest.raises(ValueError, match="create_graph=True, wanted a first derivative alone; use info_nce"):
        torch.autograd.grad(info_nce_chunked(queries, keys, tile=2), queries, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.ones(6, 5)}, r"queries \(3, 4\) and keys \(6, 5\)"),
        ({"offset": 4}, "offset=4"),
        ({"tile": 0}, "tile=0, wanted at least 1"),
        ({"items": torch.zeros(3)}, r"items is torch.float32 \(3,\), wanted integers \(3,\)"),
        ({"items": torch.zeros(3).long()}, r"all_items is torch.int64 \(3,\), wanted integers \(6,\)"),
        ({"all_items": torch.zeros(6).long()}, "all_items is given without items"),
        ({"queries": torch.ones(0, 4)}, "queries has no row"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"info_nce_chunked: {message}"):
        info_nce_chunked(**{"queries": torch.ones(3, 4), "keys": torch.ones(6, 4)} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": torch.ones(2, 4)}, r"images \(3, 4\) and texts \(2, 4\)"),
        ({"all_texts": torch.ones(6, 4)}, "one of all_images and all_texts is given"),
        ({"all_images": torch.ones(6, 4), "all_texts": torch.ones(5, 4)}, r"all_images \(6, 4\) and all_texts"),
        ({"offset": 1}, "offset=1"),
        ({"temperature": torch.ones(2)}, r"temperature has shape \(2,\)"),
    ],
)
def test_what_does_not_fit_both_directions_is_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"symmetric_info_nce_chunked: {message}"):
        symmetric_info_nce_chunked(**{"images": torch.ones(3, 4), "texts": torch.ones(3, 4)} | change)
