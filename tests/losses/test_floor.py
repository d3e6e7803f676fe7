"""info_nce_floor: a bound, and one that is reached."""

from __future__ import annotations

import doctest
import importlib
import itertools
import math

import pytest
import torch
from torch import Tensor

from hialign.losses import info_nce, info_nce_floor, symmetric_info_nce


def simplex(items: int, dim: int) -> Tensor:
    """Unit vectors with the same cosine between any two, turned at random."""
    corners = torch.eye(items, dtype=torch.float64) - 1 / items
    basis = torch.linalg.svd(corners)[0][:, : items - 1]
    rows = torch.nn.functional.pad(corners @ basis, (0, dim - items + 1))
    turn = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    return (rows / rows.norm(dim=1, keepdim=True)) @ turn


def test_the_example_in_the_docstring_runs():
    module = importlib.import_module("hialign.losses.floor")
    (example,) = doctest.DocTestFinder().find(info_nce_floor, "info_nce_floor", globs=dict(vars(module)))
    assert len(example.examples) == 2
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize(
    ("batch", "items", "temperature", "value"),
    [
        (8, 32, 0.5, 0.6356),  # log(1 + 7 exp(-32 / 15.5))
        (8, None, 0.5, 0.5376),  # log(1 + 7 exp(-16 / 7))
        (256, None, 0.07, 1.5e-4),
        (2, None, 1.0, math.log1p(math.exp(-2))),
        (6, None, 0.5, 0.374036),
    ],
)
def test_the_floor_by_hand(batch: int, items: int | None, temperature: float, value: float):
    assert info_nce_floor(batch, temperature, items=items).item() == pytest.approx(value, rel=0.01, abs=5e-5)


def test_a_floor_too_small_for_a_sum_of_one_plus_it_is_still_there():
    # 255 exp(-(256 / 255) / .01): 1 + x rounds to 1
    assert info_nce_floor(256, 0.01).item() == pytest.approx(255 * math.exp(-256 / 2.55), rel=1e-9)
    assert info_nce_floor(256, 0.01).item() == pytest.approx(6e-42, rel=0.1)


@pytest.mark.parametrize("loss", [info_nce, symmetric_info_nce])
@pytest.mark.parametrize(("items", "dim"), [(2, 1), (4, 4), (6, 8), (17, 16)])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_a_simplex_attains_the_floor(loss, items: int, dim: int, temperature: float):
    rows = simplex(items, dim)
    assert loss(rows, rows, temperature=temperature).item() == pytest.approx(
        info_nce_floor(items, temperature).item(), abs=1e-12
    )


def test_no_embedding_goes_below_the_floor():
    """A thousand of them, from noise to nearly a simplex, in few and many dimensions."""
    generator = torch.Generator().manual_seed(0)
    closest = math.inf
    for trial in range(1000):
        batch, dim = (int(torch.randint(2, 12, (), generator=generator)) for _ in range(2))
        temperature = 10 ** (torch.rand((), generator=generator).item() * 2 - 1.5)
        near = simplex(batch, dim) if dim >= batch - 1 else torch.zeros(batch, dim, dtype=torch.float64)
        noise = (1e-4, 1e-1, 1.0)[trial % 3]
        queries, keys = (near + noise * torch.randn(batch, dim, generator=generator, dtype=torch.float64) for _ in "qk")
        floor = info_nce_floor(batch, temperature).item()
        for loss in (info_nce, symmetric_info_nce):
            above = loss(queries, keys, temperature=temperature).item() - floor
            assert above > -1e-12
            closest = min(closest, above)
    assert closest < 1e-6  # the bound was put to the test


def test_the_simplex_attains_the_floor_of_batches_drawn_from_more_items():
    # every batch of a simplex's corners has the same loss, and it is the floor of the whole, above the batch's own
    rows = simplex(9, 10)
    floor = info_nce_floor(4, 0.5, items=9).item()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        chosen = torch.randperm(9, generator=generator)[:4]
        assert info_nce(rows[chosen], rows[chosen], temperature=0.5).item() == pytest.approx(floor, abs=1e-12)
    assert floor > info_nce_floor(4, 0.5).item() + 0.05


def test_the_mean_over_all_batches_of_any_embedding_is_at_least_the_items_floor():
    generator = torch.Generator().manual_seed(2)
    floor = info_nce_floor(3, 0.5, items=6).item()
    for _ in range(20):
        queries, keys = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in "qk")
        batches = [list(chosen) for chosen in itertools.combinations(range(6), 3)]
        mean = sum(info_nce(queries[b], keys[b], temperature=0.5).item() for b in batches) / len(batches)
        assert mean > floor
    # one batch alone may lie below it, which is why it is no floor of a batch
    pair = simplex(3, 3)
    assert info_nce(pair, pair, temperature=0.5).item() == pytest.approx(math.log1p(2 * math.exp(-3)))
    assert floor == pytest.approx(math.log1p(2 * math.exp(-2.4)))


def test_more_items_raise_the_floor_towards_that_of_perpendicular_negatives():
    floors = [info_nce_floor(8, 0.5, items=items).item() for items in (8, 16, 64, 10**6)]
    assert floors == sorted(floors)
    assert floors[-1] == pytest.approx(math.log(1 + 7 * math.exp(-2)), rel=1e-5)


def test_a_constant_embedding_has_log_b_whatever_the_temperature():
    rows = torch.ones(8, 3, dtype=torch.float64)
    assert info_nce(rows, rows, temperature=0.1).item() == pytest.approx(math.log(8))


def test_a_temperature_may_be_a_tensor_and_gets_no_gradient():
    temperature = torch.tensor([0.5], requires_grad=True)
    floor = info_nce_floor(8, temperature)
    assert floor.dtype == torch.float64
    assert not floor.requires_grad
    assert floor.item() == info_nce_floor(8, 0.5).item()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0.5, None), "batch_size=1, items=1; wanted 2 or more pairs"),
        ((8, 0.5, 7), "batch_size=8, items=7; wanted 2 or more pairs, and no fewer items"),
        ((8, 0.0, None), "temperature=0.0, wanted a number above 0"),
        ((8, -1.0, None), "temperature=-1.0"),
        ((8, math.nan, None), "temperature=nan"),
    ],
)
def test_what_has_no_floor_is_refused(arguments, message: str):
    batch, temperature, items = arguments
    with pytest.raises(ValueError, match=message):
        info_nce_floor(batch, temperature, items=items)
