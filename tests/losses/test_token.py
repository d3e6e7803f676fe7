"""next_token, log-probabilities and divergences against numbers by hand, slow loops and other libraries."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hialign.losses import count_targets, next_token, sequence_logps, token_kl, token_logps


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


def test_a_samples_mean_by_hand():
    """Rows of one token at p 1/4 and of two at p 1/2: (log 4 + log 2) / 2, where the tokens' mean is 4/3 log 2."""
    quarter, half = [[0.0, math.log(3)]], [[0.0, 0.0]]
    logits = torch.tensor([quarter * 3, half * 3])
    labels = torch.tensor([[-100, 0, -100], [-100, 0, 1]])
    assert next_token(logits, labels, reduction="sample_mean").item() == pytest.approx(1.5 * math.log(2))
    assert next_token(logits, labels).item() == pytest.approx(4 / 3 * math.log(2))


def test_a_samples_mean_is_the_mean_of_the_samples_losses():
    logits, labels = random_batch()
    rows = [next_token(x, y) for x, y in zip(logits.split(1), labels.split(1), strict=True)]
    torch.testing.assert_close(next_token(logits, labels, reduction="sample_mean"), torch.stack(rows).mean())
    means = sequence_logps(token_logps(logits, labels), labels, reduction="mean")
    torch.testing.assert_close(-means, torch.stack(rows))


def test_a_samples_mean_names_the_row_without_a_token():
    logits, labels = random_batch()
    labels[1] = -100
    with pytest.raises(ValueError, match="row 1 of labels"):
        next_token(logits, labels, reduction="sample_mean")


def test_logps_by_hand():
    """p(1) = 3/4 at the first place; nothing is asked at the second; p(0) = 4/5 at the third."""
    logits = torch.tensor([[[0.0, math.log(3)], [7.0, 0.0], [math.log(4), 0.0], [0.0, 0.0]]])
    logps = token_logps(logits, torch.tensor([[0, 1, -100, 0]]))
    torch.testing.assert_close(logps, torch.tensor([[math.log(3 / 4), 0.0, math.log(4 / 5)]]))


@pytest.mark.parametrize("seed", range(3))
def test_logps_equal_a_slow_loop(seed: int):
    logits, labels = random_batch(seed=seed)
    slow = torch.zeros(3, 5, dtype=torch.float64)
    for row in range(3):
        for t in range(5):
            if labels[row, t + 1] != -100:
                slow[row, t] = logits[row, t].softmax(-1)[labels[row, t + 1]].log()
    torch.testing.assert_close(token_logps(logits, labels), slow)
    torch.testing.assert_close(-token_logps(logits, labels).sum(), next_token(logits, labels, reduction="sum"))


def test_logps_are_trls():
    utils = pytest.importorskip("trl.trainer.utils", reason="TRL is the oracle and is not installed")
    logits, labels = random_batch()
    labels = labels.clamp(min=0)
    theirs = utils.selective_log_softmax(logits[:, :-1], labels[:, 1:])
    torch.testing.assert_close(token_logps(logits, labels), theirs)


def test_gradients_of_logps_and_divergences_are_those_of_finite_differences():
    logits, labels = random_batch(batch=2, length=4, vocab=3)
    reference, _ = random_batch(batch=2, length=4, vocab=3, seed=1)
    moved = (logits.requires_grad_(),)
    assert torch.autograd.gradcheck(lambda x: token_logps(x, labels), moved)
    assert torch.autograd.gradcheck(lambda x: token_kl(x, reference, labels), moved)


def test_logps_of_rows_without_a_label_are_zero_with_zero_gradient():
    logits, labels = random_batch()
    logps = token_logps(logits.requires_grad_(), torch.full_like(labels, -100))
    logps.sum().backward()
    assert torch.equal(logps, torch.zeros(3, 5, dtype=torch.float64))
    assert logits.grad is not None
    assert not logits.grad.any()


def test_sequences_by_hand():
    """Logps -1, -2, -4 with the last outside the mask: the sum -3, the mean -1.5; weights 1 and 3: -7 and -7 / 4."""
    logps, mask = torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[True, True, False]])
    weights = torch.tensor([[1.0, 3.0, 9.0]])
    assert sequence_logps(logps, mask).item() == -3.0
    assert sequence_logps(logps, mask, reduction="mean").item() == -1.5
    assert sequence_logps(logps, mask, weights=weights).item() == -7.0
    assert sequence_logps(logps, mask, weights=weights, reduction="mean").item() == -1.75


def test_a_mask_and_the_labels_that_it_comes_from_are_one():
    logits, labels = random_batch()
    logps = token_logps(logits, labels)
    for reduction in ("sum", "mean"):
        from_labels = sequence_logps(logps, labels, reduction=reduction)
        assert torch.equal(from_labels, sequence_logps(logps, labels[:, 1:] != -100, reduction=reduction))


def test_equal_weights_of_any_size_leave_the_mean():
    logits, labels = random_batch()
    logps = token_logps(logits, labels)
    mean = sequence_logps(logps, labels, reduction="mean")
    weighted = sequence_logps(logps, labels, weights=torch.full_like(logps, 7.0), reduction="mean")
    torch.testing.assert_close(weighted, mean)


def test_a_masked_logp_may_be_infinite():
    logps = torch.tensor([[-1.0, -torch.inf]], requires_grad=True)
    total = sequence_logps(logps, torch.tensor([[True, False]]))
    total.sum().backward()
    assert total.item() == -1.0
    assert logps.grad is not None
    assert logps.grad.tolist() == [[1.0, 0.0]]


def test_divergences_by_hand():
    """Reference (1/2, 1/2), policy (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3 = 0.143841; the masked place is 0."""
    policy = torch.tensor([[[0.0, math.log(3)]] * 3])
    divergences = token_kl(policy, torch.zeros(1, 3, 2), torch.tensor([[-100, 1, -100]]))
    torch.testing.assert_close(divergences, torch.tensor([[0.5 * math.log(4 / 3), 0.0]]))


def test_divergences_equal_torchs_of_distributions():
    policy, labels = random_batch()
    reference, _ = random_batch(seed=1)
    between = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=reference), torch.distributions.Categorical(logits=policy)
    )[:, :-1]
    expected = between.masked_fill(labels[:, 1:] == -100, 0.0)
    torch.testing.assert_close(token_kl(policy, reference, labels), expected)
    torch.testing.assert_close(token_kl(policy, reference, labels[:, 1:] != -100), expected)
    torch.testing.assert_close(token_kl(policy, reference, labels, reduction="sum"), expected.sum())


def test_the_divergence_from_itself_is_zero_and_any_other_is_above():
    policy, labels = random_batch()
    reference, _ = random_batch(seed=1)
    assert not token_kl(policy, policy, labels).any()
    assert (token_kl(policy, reference, labels) > 0)[labels[:, 1:] != -100].all()
    shifted = token_kl(policy + 3.0, policy, labels)  # a constant of all logits is none of the distribution
    torch.testing.assert_close(shifted, torch.zeros_like(shifted))


def test_the_reference_of_a_divergence_gets_no_gradient():
    policy, labels = random_batch()
    reference = random_batch(seed=1)[0].requires_grad_()
    token_kl(policy.requires_grad_(), reference, labels).sum().backward()
    assert reference.grad is None
    assert policy.grad is not None
    assert policy.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logps_and_divergences_are_finite_for_large_logits(dtype: torch.dtype):
    logits, labels = random_batch()
    policy = (1e4 * logits.clamp(-3, 3)).to(dtype).requires_grad_()
    reference = -policy.detach()
    for values in (token_logps(policy, labels), token_kl(policy, reference, labels)):
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        (gradient,) = torch.autograd.grad(values.sum(), policy)
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_or_labels": torch.ones(2, 4, dtype=torch.int64)}, r"mask_or_labels is torch.int64 \(2, 4\)"),
        ({"mask_or_labels": torch.ones(2, 5, dtype=torch.bool)}, r"mask_or_labels is torch.bool \(2, 5\)"),
        ({"mask_or_labels": torch.ones(2, 4)}, "mask_or_labels is torch.float32"),
        (
            {"mask_or_labels": torch.tensor([[True] * 4, [False] * 4])},
            "row 1 of mask_or_labels has a total weight of 0",
        ),
        ({"weights": torch.ones(2, 5)}, r"weights \(2, 5\) do not fit logps \(2, 4\)"),
        ({"weights": torch.zeros(2, 4)}, "row 0 .* total weight of 0"),
        ({"reduction": "none"}, "reduction='none'"),
        ({"logps": torch.zeros(4)}, r"logps of shape \(4,\)"),
    ],
)
def test_what_does_not_fit_a_sequence_is_named(change: dict[str, object], message: str):
    arguments: dict[str, object] = {
        "logps": torch.zeros(2, 4),
        "mask_or_labels": torch.ones(2, 4, dtype=torch.bool),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        sequence_logps(**arguments)  # type: ignore[arg-type]


def test_what_does_not_fit_logps_and_divergences_is_named():
    logits, labels = random_batch()
    with pytest.raises(ValueError, match=r"token_logps: logits \(3, 6, 7\) and labels \(3, 5\)"):
        token_logps(logits, labels[:, 1:])
    with pytest.raises(ValueError, match="token_logps: labels run from 0 to 7, wanted 0 to 6"):
        token_logps(logits, torch.tensor([[0, 0, 7, 0, 0, 0]] * 3))
    with pytest.raises(ValueError, match=r"policy_logits \(3, 6, 7\) and reference_logits \(3, 6, 6\)"):
        token_kl(logits, logits[..., 1:], labels)
    with pytest.raises(ValueError, match=r"mask_or_labels is torch.int64 \(3, 5\)"):
        token_kl(logits, logits, labels[:, 1:])
    with pytest.raises(ValueError, match="reduction='mean'"):
        token_kl(logits, logits, labels, reduction="mean")
