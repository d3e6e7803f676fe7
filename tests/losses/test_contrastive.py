"""info_nce against numbers by hand, a slow loop, known limits and open_clip."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hialign.losses import info_nce


def random_pair(*, rows: int, dim: int, columns: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return queries, torch.randn(columns or rows, dim, generator=generator, dtype=torch.float64)


def slow_rows(
    queries: Tensor, keys: Tensor, *, temperature: float, offset: int = 0, same: Tensor | None = None
) -> Tensor:
    rows = []
    for i, query in enumerate(queries):
        own = i + offset
        kept = [j for j in range(len(keys)) if j == own or same is None or not same[i, j]]
        scores = {j: float(query @ keys[j] / (query.norm() * keys[j].norm())) / temperature for j in kept}
        rows.append(math.log(sum(math.exp(s) for s in scores.values())) - scores[own])
    return torch.tensor(rows, dtype=torch.float64)


def test_info_nce_by_hand():
    queries, keys = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    # cosines [[1, .6], [0, .8]] and a temperature of .5
    first, second = math.log(1 + math.exp(-0.8)), math.log(1 + math.exp(-1.6))
    by_row = info_nce(queries, keys, temperature=0.5, reduction="none")
    torch.testing.assert_close(by_row, torch.tensor([first, second]))
    assert info_nce(queries, keys, temperature=0.5).item() == pytest.approx((first + second) / 2)
    assert info_nce(queries, keys, temperature=0.5, reduction="sum").item() == pytest.approx(first + second)


@pytest.mark.parametrize("offset", [0, 3])
def test_info_nce_equals_a_slow_loop(offset: int):
    queries, keys = random_pair(rows=4, columns=9, dim=5)
    same = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    for mask in (None, same):
        fast = info_nce(queries, keys, temperature=0.3, offset=offset, same=mask, reduction="none")
        torch.testing.assert_close(fast, slow_rows(queries, keys, temperature=0.3, offset=offset, same=mask))


def test_the_default_temperature_is_007():
    queries, keys = random_pair(rows=4, dim=5)
    torch.testing.assert_close(info_nce(queries, keys), slow_rows(queries, keys, temperature=0.07).mean())


def test_equal_embeddings_score_the_log_of_the_number_of_keys():
    assert info_nce(torch.ones(3, 4), torch.ones(7, 4)).item() == pytest.approx(math.log(7))


def test_a_regular_simplex_reaches_the_floor():
    # spec/hierarchical.md, section 5: no batch of B pairs scores lower.
    batch, temperature = 6, 0.5
    simplex = torch.eye(batch, dtype=torch.float64) - 1 / batch
    floor = math.log(1 + (batch - 1) * math.exp(-batch / ((batch - 1) * temperature)))
    assert info_nce(simplex, simplex, temperature=temperature).item() == pytest.approx(floor)
    nudged = simplex + 0.1 * random_pair(rows=batch, dim=batch)[0]
    assert info_nce(nudged, simplex, temperature=temperature).item() > floor


def test_a_high_temperature_forgets_the_embeddings_and_a_low_one_keeps_the_nearest():
    queries = torch.eye(4)
    assert info_nce(queries, queries, temperature=1e6).item() == pytest.approx(math.log(4), rel=1e-5)
    assert info_nce(queries, queries, temperature=1e-3).item() == 0.0
    # The wrong key is nearer by a cosine of 1, so the loss is 1 / temperature.
    assert info_nce(queries, queries.roll(1, 0), temperature=1e-3).item() == pytest.approx(1000)


def test_length_does_not_count():
    queries, keys = random_pair(rows=4, dim=5)
    lengths = torch.tensor([[0.1], [1.0], [7.0], [300.0]])
    torch.testing.assert_close(info_nce(queries * lengths, keys / lengths), info_nce(queries, keys))


def test_info_nce_is_unchanged_when_split_over_ranks():
    full = [t.requires_grad_() for t in random_pair(rows=6, dim=5)]
    split = [t.detach().clone().requires_grad_() for t in full]
    info_nce(*full).backward()
    queries, keys = split
    parts = [info_nce(queries[i : i + 2], keys, offset=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), info_nce(*full))
    torch.stack(parts).mean().backward()
    for ours, theirs in zip(split, full, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@settings(max_examples=25, deadline=None, database=None)
@given(order=st.permutations(range(6)), seed=st.integers(0, 1000))
def test_the_order_of_pairs_does_not_count(order: list[int], seed: int):
    queries, keys = random_pair(rows=6, dim=4, seed=seed)
    same = torch.rand(6, 6, generator=torch.Generator().manual_seed(seed)) < 0.3
    shuffled = info_nce(queries[order], keys[order], same=same[order][:, order])
    torch.testing.assert_close(shuffled, info_nce(queries, keys, same=same))


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_finite_differences(masked: bool):
    queries, keys = random_pair(rows=3, columns=5, dim=4)
    same = torch.zeros(3, 5, dtype=torch.bool)
    same[0, 3], same[1, 2] = masked, masked
    inputs = (
        queries.requires_grad_(),
        keys.requires_grad_(),
        torch.tensor([0.4], dtype=torch.float64).requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda q, k, t: info_nce(q, k, temperature=t, offset=1, same=same, reduction="none"), inputs
    )


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_temperature_tensor_gives_the_floats_loss_and_gets_a_gradient(shape: tuple[int, ...]):
    queries, keys = (t.float() for t in random_pair(rows=4, dim=5))
    temperature = torch.full(shape, 0.2, dtype=torch.float64, requires_grad=True)
    loss = info_nce(queries, keys, temperature=temperature)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(queries, keys, temperature=0.2))
    loss.backward()
    step = 1e-3
    up, down = (info_nce(queries.double(), keys.double(), temperature=0.2 + s) for s in (step, -step))
    assert temperature.grad is not None
    assert temperature.grad.item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_finite_for_large_inputs(dtype: torch.dtype):
    queries, keys = ((1e4 * t.clamp(-3, 3)).to(dtype).requires_grad_() for t in random_pair(rows=6, dim=5))
    for scaled in ((queries, keys), (queries, -queries), (queries, queries)):
        loss = info_nce(*scaled, temperature=0.01)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    for leaf in (queries, keys):
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_score_as_their_float32_copies(dtype: torch.dtype):
    queries, keys = (t.to(dtype) for t in random_pair(rows=6, dim=5))
    assert torch.equal(info_nce(queries, keys), info_nce(queries.float(), keys.float()))


def test_float64_stays_float64():
    queries, keys = random_pair(rows=3, dim=4)
    assert info_nce(queries, keys).dtype == torch.float64


def test_autocast_does_not_reach_the_scores():
    queries, keys = (t.float() for t in random_pair(rows=6, dim=5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(queries, keys, temperature=0.01)
    assert torch.equal(inside, info_nce(queries, keys, temperature=0.01))


def test_both_directions_together_are_open_clips_loss():
    open_clip_loss = pytest.importorskip("open_clip.loss", reason="open_clip is the oracle here")
    images, texts = (F.normalize(t, dim=-1) for t in random_pair(rows=7, dim=5))
    temperature = torch.tensor(0.1, dtype=torch.float64)
    theirs = open_clip_loss.ClipLoss()(images, texts, 1 / temperature)
    ours = (info_nce(images, texts, temperature=0.1) + info_nce(texts, images, temperature=0.1)) / 2
    torch.testing.assert_close(ours, theirs)


def test_a_masked_key_is_as_if_it_were_not_there():
    queries, keys = random_pair(rows=1, columns=5, dim=4)
    same = torch.tensor([[False, False, True, False, True]])
    torch.testing.assert_close(info_nce(queries, keys, same=same), info_nce(queries, keys[[0, 1, 3]]))


def test_a_masked_key_gets_no_gradient():
    queries, keys = random_pair(rows=1, columns=3, dim=4)
    keys.requires_grad_()
    info_nce(queries, keys, same=torch.tensor([[False, True, False]])).backward()
    assert keys.grad is not None
    assert not keys.grad[1].any()
    assert keys.grad[0].any()
    assert keys.grad[2].any()


def test_the_positive_cannot_be_masked():
    queries, keys = random_pair(rows=3, columns=5, dim=4)
    own = torch.zeros(3, 5, dtype=torch.bool)
    own[torch.arange(3), torch.arange(3) + 2] = True
    torch.testing.assert_close(info_nce(queries, keys, offset=2, same=own), info_nce(queries, keys, offset=2))


def test_a_row_whose_negatives_are_all_masked_scores_zero():
    queries, keys = random_pair(rows=3, dim=4)
    queries.requires_grad_()
    loss = info_nce(queries, keys, same=torch.ones(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert queries.grad is not None
    assert not queries.grad.any()


def test_the_mask_is_left_as_it_was():
    queries, keys = random_pair(rows=3, dim=4)
    same = torch.ones(3, 3, dtype=torch.bool)
    info_nce(queries, keys, same=same)
    assert same.all()


def test_a_rank_without_rows_sums_to_zero():
    loss = info_nce(torch.zeros(0, 4), torch.ones(3, 4), reduction="sum")
    assert loss.item() == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.ones(3, 5)}, r"queries \(3, 5\) and keys \(6, 4\)"),
        ({"keys": torch.ones(6, 1, 4)}, r"keys \(6, 1, 4\)"),
        ({"queries": torch.ones(4)}, r"queries \(4,\)"),
        ({"offset": 4}, "offset=4 .* rank"),
        ({"offset": -1}, "offset=-1"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": torch.ones(3)}, r"temperature has shape \(3,\)"),
        ({"same": torch.ones(3, 3, dtype=torch.bool)}, r"same is torch.bool \(3, 3\)"),
        ({"same": torch.ones(3, 6)}, "same is torch.float32"),
        ({"reduction": "batchmean"}, "reduction='batchmean'"),
        ({"queries": torch.ones(0, 4)}, "queries has no row"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str):
    arguments: dict[str, object] = {"queries": torch.ones(3, 4), "keys": torch.ones(6, 4), **change}
    with pytest.raises(ValueError, match=message):
        info_nce(**arguments)  # type: ignore[arg-type]
