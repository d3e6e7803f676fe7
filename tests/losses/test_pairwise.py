"""siglip, triplet, contrastive_margin and cyclip against numbers by hand, slow loops, limits and open_clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hialign.losses import contrastive_margin, cyclip, siglip, triplet


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coin(*shape: int, share: float, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


SEVERAL = coin(4, 9, share=0.3, seed=1)
SEVERAL[:, 2] = True  # a row needs a positive,
SEVERAL[:, 5] = False  # and for triplet a negative
SAME = coin(4, 9, share=0.4, seed=2)
SAME[:, 5] = False
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "offset": {"offset": 3},
    "same": {"same": SAME},
    "positives": {"positives": SEVERAL},
    "positives and same": {"positives": SEVERAL, "same": SAME},
}


def right_and_wrong(
    i: int, columns: int, *, offset: int = 0, positives: Tensor | None = None, same: Tensor | None = None
) -> tuple[list[int], list[int]]:
    right = [j for j in range(columns) if (j == i + offset if positives is None else bool(positives[i, j]))]
    return right, [j for j in range(columns) if j not in right and (same is None or not bool(same[i, j]))]


def slow_siglip(queries: Tensor, keys: Tensor, scale: float, bias: float, **choice: Any) -> Tensor:
    losses = []
    for i, query in enumerate(queries):
        right, wrong = right_and_wrong(i, len(keys), **choice)
        logits = [scale * cosine(query, key) + bias for key in keys]
        losses.append(sum(math.log1p(math.exp(-logits[j])) for j in right))
        losses[-1] += sum(math.log1p(math.exp(logits[j])) for j in wrong)
    return torch.tensor(losses, dtype=torch.float64)


def slow_triplet(queries: Tensor, keys: Tensor, margin: float, mining: str, **choice: Any) -> Tensor:
    losses = []
    for i, query in enumerate(queries):
        right, wrong = right_and_wrong(i, len(keys), **choice)
        scores = [cosine(query, key) for key in keys]
        if mining == "hard":
            losses.append(max(0.0, margin + max(scores[j] for j in wrong) - min(scores[j] for j in right)))
        else:
            terms = [max(0.0, margin + scores[n] - scores[p]) for p in right for n in wrong]
            losses.append(sum(terms) / len(terms))
    return torch.tensor(losses, dtype=torch.float64)


def test_siglip_by_hand():
    """Cosines [[1, .6], [0, .8]], doubled, less 1: right pairs at 1 and .6, wrong ones at .2 and -1."""
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    first = math.log1p(math.exp(-1)) + math.log1p(math.exp(0.2))
    second = math.log1p(math.exp(-0.6)) + math.log1p(math.exp(-1))
    losses = siglip(images, texts, logit_scale=2.0, bias=-1.0, reduction="none")
    assert losses.tolist() == pytest.approx([first, second])
    assert siglip(images, texts, temperature=0.5, bias=-1.0).item() == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_siglip_equals_a_slow_loop(choice: dict[str, Any]):
    queries, keys = normal(4, 5, seed=3), normal(9, 5, seed=4)
    fast = siglip(queries, keys, logit_scale=6.0, bias=-2.0, reduction="none", **choice)
    torch.testing.assert_close(fast, slow_siglip(queries, keys, 6.0, -2.0, **choice), rtol=1e-12, atol=1e-12)


def test_siglip_begins_with_a_scale_of_10_and_a_bias_of_minus_10():
    queries, keys = normal(4, 5), normal(4, 5, seed=1)
    torch.testing.assert_close(siglip(queries, keys, reduction="none"), slow_siglip(queries, keys, 10.0, -10.0))


def test_siglip_is_open_clips_loss_with_its_gradients():
    open_clip_loss = pytest.importorskip("open_clip.loss", reason="open_clip is the oracle here")
    images, texts = normal(7, 5).requires_grad_(), normal(7, 5, seed=1).requires_grad_()
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (8.0, -3.0))
    leaves = (images, texts, scale, bias)
    unit = (F.normalize(images, dim=-1), F.normalize(texts, dim=-1))
    theirs = open_clip_loss.SigLipLoss()(*unit, scale, bias)
    ours = siglip(images, texts, logit_scale=scale, bias=bias)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))


def test_siglip_does_not_tell_the_two_sides_apart():
    images, texts = normal(5, 4), normal(5, 4, seed=1)
    torch.testing.assert_close(siglip(images, texts), siglip(texts, images))


def test_triplet_by_hand():
    """Cosines of the query: .8 and .6 with what is right, 1 and 0 with what is wrong; margin .3.

    Hard: .3 + 1 - .6. All: lacking .5 and 0 behind .8, .7 and 0 behind .6, a mean of .3.
    """
    query, keys = torch.tensor([[2.0, 0.0]]), torch.tensor([[4.0, 3.0], [3.0, 4.0], [1.0, 0.0], [0.0, 9.0]])
    right = torch.tensor([[True, True, False, False]])
    assert triplet(query, keys, margin=0.3, positives=right).item() == pytest.approx(0.7)
    assert triplet(query, keys, margin=0.3, positives=right, mining="all").item() == pytest.approx(0.3)


@pytest.mark.parametrize("mining", ["hard", "all"])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_triplet_equals_a_slow_loop(choice: dict[str, Any], mining: str):
    queries, keys = normal(4, 5, seed=3), normal(9, 5, seed=4)
    fast = triplet(queries, keys, margin=0.4, mining=mining, reduction="none", **choice)
    torch.testing.assert_close(fast, slow_triplet(queries, keys, 0.4, mining, **choice), rtol=1e-12, atol=1e-12)


def test_with_one_positive_and_one_negative_mining_changes_nothing():
    queries, keys = normal(2, 5), normal(2, 5, seed=1)
    torch.testing.assert_close(triplet(queries, keys, mining="all"), triplet(queries, keys, mining="hard"))


def test_a_triplet_at_rest_has_no_loss_and_no_gradient():
    queries = torch.eye(3).requires_grad_()
    for mining in ("hard", "all"):
        loss = triplet(queries, torch.eye(3), margin=0.9, mining=mining)
        loss.backward()
        assert loss.item() == 0
        assert queries.grad is not None
        assert not queries.grad.any()


def test_contrastive_margin_by_hand():
    """Distance 5 apart and alike: 12.5. Distance .5, unlike, margin 2: 1.5^2 / 2. Beyond the margin: nothing."""
    first = torch.zeros(3, 2)
    second = torch.tensor([[3.0, 4.0], [0.3, 0.4], [3.0, 4.0]])
    losses = contrastive_margin(first, second, torch.tensor([True, False, False]), margin=2.0, reduction="none")
    assert losses.tolist() == pytest.approx([12.5, 1.125, 0.0])
    mean = contrastive_margin(first, second, torch.tensor([True, False, False]), margin=2.0)
    assert mean.item() == pytest.approx(13.625 / 3)


def test_contrastive_margin_equals_a_slow_loop():
    first, second, similar = normal(8, 3), normal(8, 3, seed=1), coin(8, share=0.5)
    losses = []
    for a, b, alike in zip(first, second, similar, strict=True):
        distance = math.dist(a.tolist(), b.tolist())
        losses.append(distance**2 / 2 if alike else max(0.0, 2.5 - distance) ** 2 / 2)
    fast = contrastive_margin(first, second, similar, margin=2.5, reduction="none")
    torch.testing.assert_close(fast, torch.tensor(losses, dtype=torch.float64))


def test_equal_rows_that_should_differ_score_half_the_squared_margin_and_stay_finite():
    first = torch.ones(2, 3, requires_grad=True)
    loss = contrastive_margin(first, torch.ones(2, 3), torch.tensor([False, False]), margin=3.0)
    loss.backward()
    assert loss.item() == 4.5
    assert first.grad is not None
    assert not first.grad.any()


def test_cyclip_by_hand():
    """Cosines of images with texts [[1, .6], [0, .8]]: .6^2 across for either row. Within: 0 against .6, the same."""
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    rows = cyclip(images, texts, cross_weight=1.0, within_weight=10.0, reduction="none")
    assert rows.tolist() == pytest.approx([3.96, 3.96])


def test_cyclip_equals_a_slow_loop():
    images, texts = normal(5, 4), normal(5, 4, seed=1)
    across = within = 0.0
    for i in range(5):
        for k in range(5):
            across += (cosine(images[i], texts[k]) - cosine(images[k], texts[i])) ** 2
            within += (cosine(images[i], images[k]) - cosine(texts[i], texts[k])) ** 2
    assert cyclip(images, texts).item() == pytest.approx((0.25 * across + 0.25 * within) / 5)
    assert cyclip(images, texts, within_weight=0.0, cross_weight=2.0).item() == pytest.approx(2 * across / 5)


def test_cyclip_of_texts_that_are_turned_images_has_nothing_within():
    images = normal(5, 4)
    turned = images @ torch.linalg.qr(normal(4, 4, seed=1))[0]
    assert cyclip(images, turned, cross_weight=0.0).item() == pytest.approx(0, abs=1e-12)
    assert cyclip(images, images).item() == 0


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "siglip": lambda a, b: siglip(a, b, temperature=0.3),
    "triplet hard": lambda a, b: triplet(a, b, margin=0.6),
    "triplet all": lambda a, b: triplet(a, b, margin=0.6, mining="all"),
    "cyclip": cyclip,
}


@settings(max_examples=15, deadline=None, database=None)
@given(order=st.permutations(range(6)), seed=st.integers(0, 1000), length=st.floats(1e-3, 1e3))
@pytest.mark.parametrize("name", LOSSES)
def test_neither_the_order_of_pairs_nor_the_length_of_rows_counts(
    name: str, order: list[int], seed: int, length: float
):
    one, other = normal(6, 4, seed=seed), normal(6, 4, seed=seed + 1)
    shuffled = LOSSES[name](length * one[order], other[order] / length)
    torch.testing.assert_close(shuffled, LOSSES[name](one, other))


@settings(max_examples=25, deadline=None, database=None)
@given(seed=st.integers(0, 1000), again=st.integers(3, 7))
def test_a_negative_that_comes_twice_never_lowers_the_loss(seed: int, again: int):
    queries, keys = normal(3, 4, seed=seed), normal(8, 4, seed=seed + 1)
    twice = torch.cat([keys, keys[again : again + 1]])
    for loss in (siglip, triplet):
        assert bool((loss(queries, twice, reduction="none") >= loss(queries, keys, reduction="none") - 1e-12).all())


@pytest.mark.parametrize("name", ["siglip", "triplet hard", "triplet all"])
def test_the_loss_is_unchanged_when_split_over_ranks(name: str):
    one, other = normal(6, 4), normal(6, 4, seed=1)
    loss: Callable[..., Tensor] = {
        "siglip": siglip,
        "triplet hard": triplet,
        "triplet all": lambda *rows, **o: triplet(*rows, mining="all", **o),
    }[name]
    parts = [loss(one[i : i + 2], other, offset=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(one, other))


def test_cyclip_is_unchanged_when_split_over_ranks():
    images, texts = normal(6, 4), normal(6, 4, seed=1)
    parts = [cyclip(images[i : i + 2], texts[i : i + 2], all_images=images, all_texts=texts) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), cyclip(images, texts))


def test_gradients_are_those_of_finite_differences():
    one, other = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    for loss in (*LOSSES.values(), lambda a, b: contrastive_margin(a, b, coin(4, share=0.5), margin=2.0)):
        assert torch.autograd.gradcheck(loss, (one, other))
    scale, bias = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (3.0, -1.0))
    assert torch.autograd.gradcheck(
        lambda a, b, s, c: siglip(a, b, logit_scale=s, bias=c, same=SAME[:, :4]), (one, other, scale, bias)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_finite_at_logits_of_1e4(dtype: torch.dtype):
    for sign in (1, -1):
        one, other = ((f * normal(4, 5, seed=1)).to(dtype).requires_grad_() for f in (1.0, sign))
        far = (1e4 * one.detach()).requires_grad_()
        similar = torch.tensor([True, False, True, False])
        losses = {
            "siglip": siglip(one, other, temperature=1e-4),
            "triplet": triplet(one, other, margin=1e4),
            "margin": contrastive_margin(far, other, similar, margin=1e4),
            "cyclip": cyclip(far, other, cross_weight=1e4),
        }
        for name, loss in losses.items():
            loss.backward()
            assert loss.dtype == torch.float32, name
            assert loss.isfinite(), name
        assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in (one, other, far))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (siglip, {"offset": 4}, "siglip: offset=4 .* 3 queries is outside the 6 keys"),
        (siglip, {"keys": torch.ones(6, 5)}, r"siglip: queries \(3, 4\) and keys \(6, 5\)"),
        (siglip, {"bias": torch.ones(3)}, r"siglip: bias has shape \(3,\), wanted \(\) or \(1,\)"),
        (siglip, {"bias": math.inf}, "siglip: bias=inf, wanted a finite number"),
        (siglip, {"temperature": 1.0, "logit_scale": 1.0}, "siglip: temperature and logit_scale are both given"),
        (siglip, {"positives": torch.zeros(3, 6).bool()}, "siglip: positives has none in 3 of 3 rows"),
        (triplet, {"keys": torch.ones(6, 4).int()}, "triplet: keys is torch.int32, wanted floats"),
        (triplet, {"margin": 0.0}, "triplet: margin=0.0, wanted a finite number > 0"),
        (triplet, {"mining": "semi-hard"}, "triplet: mining='semi-hard', wanted 'hard' or 'all'"),
        (triplet, {"same": torch.ones(3, 6).bool()}, "triplet: 3 of 3 rows have no negative, first row 0"),
        (triplet, {"positives": torch.ones(3, 6).bool()}, "triplet: 3 of 3 rows have no negative"),
        (triplet, {"queries": torch.ones(1, 4), "keys": torch.ones(1, 4)}, "1 of 1 rows have no negative"),
    ],
)
def test_what_does_not_fit_is_named(loss: Callable[..., Tensor], options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        loss(**{"queries": torch.ones(3, 4), "keys": torch.ones(6, 4)} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second": torch.ones(2, 4)}, r"first \(3, 4\) and second \(2, 4\) do not fit"),
        ({"similar": torch.ones(3)}, r"similar is torch.float32 \(3,\), wanted torch.bool \(3,\)"),
        ({"similar": torch.ones(3, 1).bool()}, r"similar is torch.bool \(3, 1\)"),
        ({"margin": -1.0}, "margin=-1.0"),
    ],
)
def test_pairs_that_do_not_fit_are_named(options: dict[str, Any], message: str):
    fitting = {"first": torch.ones(3, 4), "second": torch.ones(3, 4), "similar": torch.ones(3).bool()}
    with pytest.raises(ValueError, match=f"contrastive_margin: {message}"):
        contrastive_margin(**fitting | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": torch.ones(2, 4)}, r"images \(3, 4\) and texts \(2, 4\)"),
        ({"all_texts": torch.ones(6, 4)}, "one of all_images and all_texts is given"),
        ({"all_texts": torch.ones(6, 4), "all_images": torch.ones(5, 4)}, r"all_images \(5, 4\)"),
        ({"reduction": "max"}, "reduction='max'"),
    ],
)
def test_what_does_not_fit_cyclip_is_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"cyclip: {message}"):
        cyclip(**{"images": torch.ones(3, 4), "texts": torch.ones(3, 4)} | options)
