"""What every loss over embeddings does alike: rows that have no direction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hialign.losses import (
    cyclip,
    hacl,
    info_nce,
    info_nce_chunked,
    siglip,
    symmetric_info_nce,
    symmetric_info_nce_chunked,
    triplet,
)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "info_nce": info_nce,
    "info_nce, decoupled": lambda queries, keys: info_nce(queries, keys, decoupled=True),
    "symmetric_info_nce": symmetric_info_nce,
    "info_nce_chunked": info_nce_chunked,
    "symmetric_info_nce_chunked": symmetric_info_nce_chunked,
    "hacl": lambda images, captions: hacl(images, captions, captions.roll(1, 0)),
    "siglip": siglip,
    "triplet": triplet,
    "cyclip": cyclip,
}


@pytest.mark.parametrize("length", [0.0, 1e-15])
@pytest.mark.parametrize("name", LOSSES)
def test_a_row_without_a_direction_gets_no_gradient_where_it_would_drown_all_others(name: str, length: float):
    rows = torch.randn(4, 5)
    rows[1] *= length
    rows.requires_grad_()
    loss = LOSSES[name](rows, torch.randn(4, 5))
    assert loss.isfinite()
    loss.backward()
    assert rows.grad is not None
    assert rows.grad[1].tolist() == [0] * 5
    assert 0 < rows.grad.norm() < 100


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"cyclip"}))  # which asks what a row scores with itself, too
def test_a_row_without_a_direction_scores_as_one_at_right_angles_to_all_keys(name: str):
    rows, keys = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    keys[:, 5] = 0
    none, upright = rows.clone(), rows.clone()
    none[1] = 0
    upright[1] = torch.eye(6, dtype=torch.float64)[5]
    torch.testing.assert_close(LOSSES[name](none, keys), LOSSES[name](upright, keys))
