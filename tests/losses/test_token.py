"""next_token against numbers by hand, a slow loop and transformers' convention."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hialign.losses import count_targets, next_token


def random_batch(*, batch: int = 3, length: int = 6, vocab: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, vocab, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocab, (batch, length), generator=generator)
    labels[torch.rand(batch, length, generator=generator) < 0.4] = -100
    return logits, labels


def test_next_token_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(4), 0.0], [50.0, -50.0]]])
    labels = torch.tensor([[1, 1, 0]])  # the first is not predicted: the logits before it do not exist
    # p(1) = 3/4 at the first place, p(0) = 4/5 at the second; the last logits predict nothing
    assert next_token(logits, labels).item() == pytest.approx(-(math.log(3 / 4) + math.log(4 / 5)) / 2)
    assert next_token(logits, labels, reduction="sum").item() == pytest.approx(-math.log(3 / 4) - math.log(4 / 5))
    assert count_targets(labels).item() == 2


@pytest.mark.parametrize("seed", range(3))
def test_next_token_equals_a_slow_loop(seed: int):
    logits, labels = random_batch(seed=seed)
    losses = [
        -float(logits[row, t].softmax(-1)[labels[row, t + 1]].log())
        for row in range(len(labels))
        for t in range(labels.shape[1] - 1)
        if labels[row, t + 1] != -100
    ]
    assert count_targets(labels).item() == len(losses)
    assert next_token(logits, labels, reduction="sum").item() == pytest.approx(sum(losses))
    assert next_token(logits, labels).item() == pytest.approx(sum(losses) / len(losses))


def test_next_token_equals_the_shifted_dense_cross_entropy():
    logits, labels = random_batch()
    dense = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(next_token(logits, labels), dense)


def test_uniform_logits_score_the_log_of_the_vocabulary():
    _, labels = random_batch()
    assert next_token(torch.zeros(3, 6, 7), labels).item() == pytest.approx(math.log(7))


def test_gradients_are_those_of_finite_differences():
    logits, labels = random_batch(batch=2, length=4, vocab=3)
    assert torch.autograd.gradcheck(lambda x: next_token(x, labels), (logits.requires_grad_(),))


def test_only_places_before_a_label_get_a_gradient():
    logits, labels = random_batch()
    next_token(logits.requires_grad_(), labels).backward()
    reached = torch.zeros_like(labels, dtype=torch.bool)
    reached[:, :-1] = labels[:, 1:] != -100
    assert logits.grad is not None
    assert torch.equal(logits.grad.any(-1), reached)


def test_sums_over_counts_are_unchanged_when_split_over_ranks():
    full, labels = random_batch(batch=4)
    labels[1] = -100  # one rank without anything to predict
    split = full.clone().requires_grad_()
    full.requires_grad_()
    next_token(full, labels).backward()
    count = sum(count_targets(row) for row in labels.split(1))
    parts = [next_token(x, y, reduction="sum") for x, y in zip(split.split(1), labels.split(1), strict=True)]
    loss = torch.stack(parts).sum() / count
    loss.backward()
    torch.testing.assert_close(loss, next_token(full, labels))
    torch.testing.assert_close(split.grad, full.grad)


def test_a_batch_without_targets_sums_to_zero_with_zero_gradient():
    logits, labels = random_batch()
    labels[:, 1:] = -100
    labels[:, 0] = 1
    next_token_sum = next_token(logits.requires_grad_(), labels, reduction="sum")
    next_token_sum.backward()
    assert next_token_sum.item() == 0.0
    assert count_targets(labels).item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_finite_for_large_logits(dtype: torch.dtype):
    logits, labels = random_batch()
    logits = (1e4 * logits.clamp(-3, 3)).to(dtype).requires_grad_()
    loss = next_token(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_half_logits_score_as_their_float32_copies():
    logits, labels = random_batch()
    logits = logits.bfloat16()
    assert torch.equal(next_token(logits, labels), next_token(logits.float(), labels))


def test_float64_stays_float64():
    assert next_token(*random_batch()).dtype == torch.float64


def test_only_labelled_rows_are_upcast():
    logits = torch.zeros(1, 50, 7, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.full((1, 50), -100)
    labels[0, [3, 8]] = 1
    kept: list[tuple[int, ...]] = []

    def note(saved: Tensor) -> Tensor:
        if saved.dtype == torch.float32:
            kept.append(tuple(saved.shape))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        next_token(logits, labels)
    assert (2, 7) in kept
    assert all(math.prod(shape) <= 2 * 7 for shape in kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.ones(2, 4, dtype=torch.int64)}, r"logits \(2, 5, 7\) and labels \(2, 4\)"),
        ({"logits": torch.zeros(2, 5)}, r"logits \(2, 5\)"),
        ({"labels": torch.ones(2, 5, dtype=torch.int32)}, "labels are torch.int32"),
        ({"labels": torch.full((2, 5), -100)}, "labels .* no token to predict"),
        ({"labels": torch.full((2, 5), 7)}, "labels run from 7 to 7, wanted 0 to 6"),
        ({"labels": torch.full((2, 5), -200)}, "labels run from -200"),
        ({"reduction": "none"}, "reduction='none'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str):
    arguments: dict[str, object] = {
        "logits": torch.zeros(2, 5, 7),
        "labels": torch.ones(2, 5, dtype=torch.int64),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        next_token(**arguments)  # type: ignore[arg-type]


def test_count_targets_names_labels_without_a_batch():
    with pytest.raises(ValueError, match=r"labels have shape \(5,\)"):
        count_targets(torch.ones(5, dtype=torch.int64))
