"""What info_nce can be asked for beside its keys, against numbers by hand and a slow loop; both directions at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hialign.losses import info_nce, symmetric_info_nce


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coin(*shape: int, share: float, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def slow(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float = 0.07,
    offset: int = 0,
    negatives: Tensor | None = None,
    queue: Tensor | None = None,
    positives: Tensor | None = None,
    same: Tensor | None = None,
    label_smoothing: float = 0.0,
    decoupled: bool = False,
) -> Tensor:
    losses = []
    for i, query in enumerate(queries):
        right = [j for j in range(len(keys)) if (j == i + offset if positives is None else bool(positives[i, j]))]
        left_out = [j for j in range(len(keys)) if same is not None and bool(same[i, j])]
        further = [] if negatives is None else list(negatives if negatives.dim() == 2 else negatives[i])
        further += [] if queue is None else list(queue)
        wrong = [cosine(query, key) / temperature for j, key in enumerate(keys) if j not in right + left_out]
        wrong += [cosine(query, key) / temperature for key in further]
        terms = []
        for j in right:
            own = cosine(query, keys[j]) / temperature
            counted = wrong if decoupled else [own, *wrong]
            log_sum = math.log(sum(math.exp(score) for score in counted))
            spread = sum(log_sum - score for score in counted) / len(counted)
            terms.append((1 - label_smoothing) * (log_sum - own) + label_smoothing * spread)
        losses.append(sum(terms) / len(terms))
    return torch.tensor(losses, dtype=torch.float64)


ROWS, COLUMNS, DIM = 4, 9, 5
SEVERAL = coin(ROWS, COLUMNS, share=0.3, seed=1)
SEVERAL[:, 2] = True  # a row needs one
OPTIONS: dict[str, dict[str, Any]] = {
    "offset": {"offset": 3},
    "negatives of the batch": {"negatives": normal(3, DIM, seed=2)},
    "negatives of each row": {"negatives": normal(ROWS, 2, DIM, seed=3), "offset": 2},
    "queue": {"queue": normal(6, DIM, seed=4)},
    "all further keys": {
        "negatives": normal(ROWS, 2, DIM, seed=3),
        "queue": normal(6, DIM, seed=4),
        "same": coin(ROWS, COLUMNS, share=0.4),
    },
    "positives": {"positives": SEVERAL},
    "positives and same": {"positives": SEVERAL, "same": coin(ROWS, COLUMNS, share=0.4), "queue": normal(2, DIM)},
    "smoothing": {"label_smoothing": 0.1, "offset": 1},
    "smoothing and same": {"label_smoothing": 0.2, "same": coin(ROWS, COLUMNS, share=0.4)},
    "smoothing and positives": {"label_smoothing": 0.2, "positives": SEVERAL, "negatives": normal(3, DIM, seed=2)},
    "decoupled": {"decoupled": True, "offset": 4},
    "decoupled and more": {"decoupled": True, "same": coin(ROWS, COLUMNS, share=0.4), "queue": normal(6, DIM)},
    "decoupled and positives": {"decoupled": True, "positives": SEVERAL, "negatives": normal(ROWS, 1, DIM)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_info_nce_equals_a_slow_loop(options: dict[str, Any]):
    queries, keys = normal(ROWS, DIM, seed=5), normal(COLUMNS, DIM, seed=6)
    fast = info_nce(queries, keys, temperature=0.3, reduction="none", **options)
    torch.testing.assert_close(fast, slow(queries, keys, temperature=0.3, **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]):
    queries, keys = normal(ROWS, DIM, seed=5).requires_grad_(), normal(COLUMNS, DIM, seed=6).requires_grad_()
    temperature = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    options = dict(options)
    further = options.pop("negatives", normal(1, DIM)).clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, k, t, n: info_nce(q, k, temperature=t, negatives=n, reduction="none", **options),
        (queries, keys, temperature, further),
    )


def test_a_queue_of_one_by_hand():
    """The query's cosines are 1 with its key, .6 with the negative and 0 with the queue's, at temperature 1."""
    loss = info_nce(
        torch.tensor([[2.0, 0.0]]),
        torch.tensor([[1.0, 0.0]]),
        temperature=1.0,
        negatives=torch.tensor([[3.0, 4.0]]),
        queue=torch.tensor([[0.0, 5.0]]),
    )
    assert loss.item() == pytest.approx(math.log(math.e + math.exp(0.6) + 1) - 1)


def test_two_captions_of_one_photo_by_hand():
    """Cosines 1 and .6 with its captions, 0 with the other: log(1 + e^-1) and log(1 + e^-.6), and their mean."""
    query, captions = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    loss = info_nce(query, captions, temperature=1.0, positives=torch.tensor([[True, True, False]]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-0.6))) / 2)


def test_the_decoupled_form_by_hand():
    """Positive 1; negatives .6 and 0: -log(e / (e^.6 + 1)). As printed, and no sum has the positive in it."""
    query, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    loss = info_nce(query, keys, temperature=1.0, decoupled=True)
    assert loss.item() == pytest.approx(-math.log(math.e / (math.exp(0.6) + 1)))


def test_smoothing_by_hand():
    """Scores 1 and 0, a fifth spread over both: .9 of the target is on the positive, .1 on the negative."""
    query, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = math.log(math.e + 1) - 0.9 * 1
    assert info_nce(query, keys, temperature=1.0, label_smoothing=0.2).item() == pytest.approx(expected)


def test_smoothing_is_torchs():
    queries, keys = normal(4, 5), normal(9, 5, seed=1)
    scores = F.normalize(queries) @ F.normalize(keys).T / 0.2
    theirs = F.cross_entropy(scores, torch.arange(4), label_smoothing=0.3)
    torch.testing.assert_close(info_nce(queries, keys, temperature=0.2, label_smoothing=0.3), theirs)
    # and by the other route, which has no cross-entropy in it
    nothing = torch.zeros(4, 9, dtype=torch.bool)
    ours = info_nce(queries, keys, temperature=0.2, label_smoothing=0.3, same=nothing)
    torch.testing.assert_close(ours, theirs)


def test_one_positive_a_row_is_the_plain_form():
    queries, keys = normal(4, 5), normal(6, 5, seed=1)
    own = torch.arange(4)[:, None] + 1 == torch.arange(6)
    torch.testing.assert_close(info_nce(queries, keys, positives=own), info_nce(queries, keys, offset=1))


def test_the_offset_is_not_read_beside_positives():
    queries, keys = normal(3, 5), normal(2, 5, seed=1)
    own = torch.tensor([[True, False], [True, False], [False, True]])  # more captions than photos
    assert torch.equal(info_nce(queries, keys, positives=own, offset=7), info_nce(queries, keys, positives=own))


def test_the_decoupled_loss_falls_below_any_bound_as_the_temperature_falls():
    eye = torch.eye(4)
    losses = [info_nce(eye, eye, temperature=t, decoupled=True).item() for t in (1.0, 0.1, 0.01)]
    assert losses == pytest.approx([math.log(3) - 1, math.log(3) - 10, math.log(3) - 100], rel=1e-5)


def test_the_plain_loss_is_the_decoupled_one_with_the_positive_added_to_the_sum():
    queries, keys = normal(4, 5), normal(6, 5, seed=1)
    decoupled = info_nce(queries, keys, decoupled=True, reduction="none")
    plain = info_nce(queries, keys, reduction="none")
    torch.testing.assert_close(plain, torch.log1p(decoupled.exp()))


def test_a_logit_scale_is_one_over_the_temperature():
    queries, keys = normal(4, 5), normal(6, 5, seed=1)
    scale = torch.tensor([8.0], dtype=torch.float64, requires_grad=True)
    loss = info_nce(queries, keys, logit_scale=scale)
    torch.testing.assert_close(loss, info_nce(queries, keys, temperature=1 / 8))
    torch.testing.assert_close(loss, info_nce(queries, keys, logit_scale=8))
    loss.backward()
    assert scale.grad is not None
    assert scale.grad.item() != 0


def test_a_queue_gets_no_gradient_and_negatives_do():
    queries, keys = normal(3, 5), normal(3, 5, seed=1)
    queue, negatives = normal(2, 5, seed=2).requires_grad_(), normal(2, 5, seed=2).requires_grad_()
    loss = info_nce(queries, keys, queue=queue, negatives=negatives)
    loss.backward()
    assert queue.grad is None
    assert negatives.grad is not None
    assert bool(negatives.grad.any(dim=1).all())
    torch.testing.assert_close(loss, info_nce(queries, keys, queue=torch.cat([queue, negatives])))


@settings(max_examples=25, deadline=None, database=None)
@given(seed=st.integers(0, 1000), again=st.integers(0, 4), decoupled=st.booleans())
def test_a_negative_that_comes_twice_never_lowers_the_loss(seed: int, again: int, decoupled: bool):
    queries, keys, further = normal(3, 4, seed=seed), normal(5, 4, seed=seed + 1), normal(5, 4, seed=seed + 2)
    once = info_nce(queries, keys, negatives=further, decoupled=decoupled, reduction="none")
    again_too = torch.cat([further, further[again : again + 1]])
    twice = info_nce(queries, keys, negatives=again_too, decoupled=decoupled, reduction="none")
    assert bool((twice >= once - 1e-12).all())  # a sum in another order


@settings(max_examples=25, deadline=None, database=None)
@given(order=st.permutations(range(6)), seed=st.integers(0, 1000), length=st.floats(1e-3, 1e3))
def test_neither_the_order_of_pairs_nor_the_length_of_rows_counts(order: list[int], seed: int, length: float):
    images, texts, further = normal(6, 4, seed=seed), normal(6, 4, seed=seed + 1), normal(6, 2, 4, seed=seed + 2)
    item = torch.arange(6) // 2
    options: dict[str, Any] = {"label_smoothing": 0.1, "positives": item[:, None] == item}
    loss = symmetric_info_nce(images, texts, text_negatives=further, **options)
    options["positives"] = options["positives"][order][:, order]
    shuffled = symmetric_info_nce(
        length * images[order], texts[order] / length, text_negatives=further[order], **options
    )
    torch.testing.assert_close(shuffled, loss)


def test_a_row_without_negatives_scores_zero_and_stays_differentiable_twice():
    queries, keys = normal(3, 4).requires_grad_(), normal(3, 4, seed=1)
    all_right = torch.ones(3, 3, dtype=torch.bool)
    loss = info_nce(queries, keys, positives=all_right)
    (gradient,) = torch.autograd.grad(loss, queries, create_graph=True)
    gradient.square().sum().backward()
    assert loss.item() == 0
    assert not gradient.any()
    assert queries.grad is not None
    assert not queries.grad.any()


def test_info_nce_can_be_differentiated_twice():
    positives = torch.tensor([[True, True, False, False], [False, False, True, False]])
    for options in ({}, {"positives": positives}, {"same": positives.roll(1, 1), "label_smoothing": 0.1}):
        assert torch.autograd.gradgradcheck(
            lambda q, k, options=options: info_nce(q, k, temperature=0.5, **options),
            (normal(2, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_values_and_gradients_are_finite_at_scores_of_1e4(options: dict[str, Any], dtype: torch.dtype):
    one = normal(COLUMNS, DIM, seed=6)
    for keys in (one, -one, normal(COLUMNS, DIM, seed=7)):
        leaves = [t.to(dtype).requires_grad_() for t in (one[:ROWS], keys)]
        temperature = torch.tensor([1e-4], requires_grad=True)
        loss = info_nce(*leaves, temperature=temperature, **options)
        loss.backward()
        # a further key in float64 makes the sum one of float64
        assert loss.dtype in (torch.float32, torch.float64)
        assert loss.isfinite()
        assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in [*leaves, temperature])


# Both directions


def halves(images: Tensor, texts: Tensor, **options: Any) -> Tensor:
    return (info_nce(images, texts, **options) + info_nce(texts, images, **options)) / 2


def test_both_directions_by_hand():
    """Cosines [[1, .6], [0, .8]] at .5: forth differences .8 and 1.6, back 2 and .4."""
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    terms = [math.log1p(math.exp(-difference)) for difference in (0.8, 1.6, 2.0, 0.4)]
    assert symmetric_info_nce(images, texts, temperature=0.5).item() == pytest.approx(sum(terms) / 4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logit_scale": 3.0, "label_smoothing": 0.2},
        {"same": coin(5, 5, share=0.4)},  # not even symmetric
        {"positives": coin(5, 5, share=0.4) | torch.eye(5, dtype=torch.bool)},
        {"decoupled": True, "reduction": "none"},
    ],
)
def test_both_directions_are_half_of_each(options: dict[str, Any]):
    images, texts = normal(5, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    ours, theirs = symmetric_info_nce(images, texts, **options), halves(images, texts, **options)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(loss.sum(), (images, texts)) for loss in (ours, theirs))
    torch.testing.assert_close(found, expected)


def test_each_side_meets_its_own_further_keys():
    images, texts = normal(5, 4), normal(5, 4, seed=1)
    wrong_images, wrong_texts = normal(5, 2, 4, seed=2), normal(3, 4, seed=3)
    old_images, old_texts = normal(7, 4, seed=4), normal(6, 4, seed=5)
    ours = symmetric_info_nce(
        images,
        texts,
        image_negatives=wrong_images,
        text_negatives=wrong_texts,
        image_queue=old_images,
        text_queue=old_texts,
    )
    forth = info_nce(images, texts, negatives=wrong_texts, queue=old_texts)
    back = info_nce(texts, images, negatives=wrong_images, queue=old_images)
    torch.testing.assert_close(ours, (forth + back) / 2)


def test_both_directions_are_open_clips_loss_with_its_gradients():
    open_clip_loss = pytest.importorskip("open_clip.loss", reason="open_clip is the oracle here")
    images, texts = normal(7, 5).requires_grad_(), normal(7, 5, seed=1).requires_grad_()
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    leaves = (images, texts, scale)
    theirs = open_clip_loss.ClipLoss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)
    ours = symmetric_info_nce(images, texts, logit_scale=scale)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))


def test_both_directions_are_unchanged_when_split_over_ranks():
    images, texts = normal(6, 4), normal(6, 4, seed=1)
    same = coin(6, 6, share=0.3)
    parts = [
        symmetric_info_nce(
            images[rows], texts[rows], all_images=images, all_texts=texts, offset=rows.start, same=same[rows]
        )
        for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), symmetric_info_nce(images, texts, same=same))


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


def test_one_product_serves_both_directions():
    images, texts = normal(5, 4), normal(5, 4, seed=1)
    with Products() as one:
        symmetric_info_nce(images, texts, all_images=images, all_texts=texts)
    with Products() as two:
        symmetric_info_nce(images, texts, all_images=images.clone(), all_texts=texts.clone())
    assert (one.count, two.count) == (1, 2)


FITTING: dict[str, Any] = {"queries": torch.ones(3, 4), "keys": torch.ones(6, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.ones(6, 4, dtype=torch.int64)}, r"info_nce: keys is torch.int64, wanted floats; .*keys.float"),
        ({"negatives": torch.ones(2, 5)}, r"negatives is torch.float32 \(2, 5\), wanted floats, \(n, 4\)"),
        ({"negatives": torch.ones(2, 2, 4)}, r"negatives is .* \(2, 2, 4\), .* or \(3, n, 4\)"),
        ({"negatives": torch.ones(2, 4).bool()}, "negatives is torch.bool"),
        ({"queue": torch.ones(2, 5)}, r"queries \(3, 4\) and queue \(2, 5\)"),
        ({"positives": torch.ones(6, 3).bool()}, r"positives is torch.bool \(6, 3\), wanted torch.bool \(3, 6\)"),
        ({"positives": torch.zeros(3, 6).bool()}, "positives has none in 3 of 3 rows, first in row 0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0, wanted 0 <= it < 1"),
        ({"label_smoothing": 0.1, "decoupled": True}, "label_smoothing=0.1 with decoupled, wanted one of them"),
        ({"temperature": 0.07, "logit_scale": 1.0}, "temperature and logit_scale are both given, wanted one"),
        ({"logit_scale": -1.0}, "logit_scale=-1.0, wanted a finite number > 0; it is the multiplier"),
        ({"decoupled": True, "same": torch.ones(3, 6).bool()}, "3 of 3 rows have no negative, first row 0"),
    ],
)
def test_what_does_not_fit_info_nce_is_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        info_nce(**FITTING | change)


def test_a_batch_of_one_has_a_loss_of_zero_and_no_decoupled_one():
    one = torch.ones(1, 4)
    assert symmetric_info_nce(one, one).item() == 0
    with pytest.raises(ValueError, match=r"info_nce: 1 of 1 rows have no negative, .* use a larger batch"):
        info_nce(one, one, decoupled=True)


PAIR: dict[str, Any] = {"images": torch.ones(3, 4), "texts": torch.ones(3, 4)}
GATHERED: dict[str, Any] = {"all_images": torch.ones(6, 4), "all_texts": torch.ones(6, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": torch.ones(2, 4)}, r"images \(3, 4\) and texts \(2, 4\) do not fit, wanted as many rows"),
        ({"texts": torch.ones(3, 5)}, r"images \(3, 4\) and texts \(3, 5\)"),
        ({"all_texts": torch.ones(6, 4)}, "one of all_images and all_texts is given, wanted both or neither"),
        ({**GATHERED, "all_texts": torch.ones(5, 4)}, r"all_images \(6, 4\) and all_texts \(5, 4\)"),
        ({**GATHERED, "offset": 4}, "offset=4 .* 3 images is outside the 6 all_texts"),
        ({"image_negatives": torch.ones(2, 3)}, r"image_negatives is .* \(2, 3\)"),
        ({"text_queue": torch.ones(2, 3)}, r"text_queue \(2, 3\)"),
        ({"same": torch.ones(3, 6).bool()}, r"same is torch.bool \(3, 6\), wanted torch.bool \(3, 3\)"),
        ({"temperature": 0.0}, "symmetric_info_nce: temperature=0.0"),
        ({"reduction": "batchmean"}, "symmetric_info_nce: reduction='batchmean'"),
        ({"images": torch.ones(0, 4), "texts": torch.ones(0, 4)}, "images has no row"),
    ],
)
def test_what_does_not_fit_both_directions_is_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        symmetric_info_nce(**PAIR | change)
