"""dpo, ddpo and tdpo against numbers by hand, slow loops, known limits and TRL."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hialign.losses import ddpo, dpo, sequence_logps, tdpo


def sums(batch: int = 3, *, seed: int = 0) -> tuple[Tensor, ...]:
    """Policy and reference log-probabilities of the chosen and of the rejected answers, (batch,) each."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(-5 * torch.rand(batch, generator=generator, dtype=torch.float64) for _ in range(4))


def tokens(batch: int = 3, *, lengths: tuple[int, int] = (5, 4), seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        -torch.rand(batch, length, generator=generator, dtype=torch.float64) for length in (*lengths, *lengths)
    )


def surprise(score: float) -> float:
    """-log sigma(score), without a care for overflow."""
    return math.log(1 + math.exp(-score))


def test_dpo_by_hand():
    """Margin (-1 - -2) - (-3 - -2) = 2 nats; beta 0.5 makes it 1; -log sigma(1) = log(1 + 1/e) = 0.313262."""
    logps = [torch.tensor([value]) for value in (-1.0, -3.0, -2.0, -2.0)]
    assert dpo(*logps, beta=0.5).item() == pytest.approx(0.313262, abs=1e-6)
    details = dpo(*logps, beta=0.5, details=True)
    assert (details.chosen_rewards.item(), details.rejected_rewards.item()) == (0.5, -0.5)


def test_each_kind_by_hand():
    """Margin 2 nats, beta 0.1: sigmoid(0.2) smoothed by a quarter, ipo (2 - 5)^2 = 9, hinge 1 - 0.2 = 0.8."""
    logps = [torch.tensor([value]) for value in (-1.0, -3.0, -2.0, -2.0)]
    smoothed = 0.75 * surprise(0.2) + 0.25 * surprise(-0.2)
    assert dpo(*logps, label_smoothing=0.25).item() == pytest.approx(smoothed)
    assert dpo(*logps, kind="ipo").item() == pytest.approx(9.0)
    assert dpo(*logps, kind="hinge").item() == pytest.approx(0.8)
    assert dpo(*logps, kind="hinge", beta=0.6).item() == 0.0  # the margin is met


@pytest.mark.parametrize("seed", range(3))
def test_dpo_equals_a_slow_loop(seed: int):
    logps = sums(seed=seed)
    losses = [surprise(0.1 * ((w - r) - (rw - rr))) for w, r, rw, rr in zip(*(x.tolist() for x in logps), strict=True)]
    assert dpo(*logps).item() == pytest.approx(sum(losses) / 3, abs=1e-12)
    assert dpo(*logps, reduction="sum").item() == pytest.approx(sum(losses), abs=1e-12)


def test_the_reference_itself_scores_log_two():
    chosen, rejected, *_ = sums()
    assert dpo(chosen, rejected, chosen, rejected).item() == pytest.approx(math.log(2))


def test_without_a_reference_dpo_is_dpo_against_a_uniform_one():
    chosen, rejected, *_ = sums()
    flat = torch.full_like(chosen, -7.0)
    torch.testing.assert_close(dpo(chosen, rejected), dpo(chosen, rejected, flat, flat))


def test_full_smoothing_would_not_care_who_is_preferred():
    logps = sums()
    turned = logps[1], logps[0], logps[3], logps[2]
    near = 0.5 - 1e-9
    torch.testing.assert_close(dpo(*logps, label_smoothing=near), dpo(*turned, label_smoothing=near))


def test_dpo_falls_to_its_linear_limit_and_to_zero():
    zero = torch.zeros(1, dtype=torch.float64)
    assert dpo(zero - 1e4, zero, zero, zero).item() == pytest.approx(1000.0)  # beta * margin, and no overflow
    assert dpo(zero, zero - 1e5, zero, zero).item() == 0.0


def test_ddpo_by_hand():
    """Policy - reference is (1, 1, -1) and (0, 2). Weights (1, 1, 2) give 0 / 4 = 0; (0, 3) give 6 / 3 = 2.

    The margin is 0 - 2 = -2; beta 0.5 makes it -1; -log sigma(-1) = log(1 + e) = 1.313262. Without the division it
    is 0 - 6, so -3: log(1 + e^3) = 3.048587.
    """
    policy = torch.tensor([[-1.0, -1.0, -3.0]]), torch.tensor([[-2.0, 0.0]])
    reference = torch.full((1, 3), -2.0), torch.full((1, 2), -2.0)
    weights = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    assert ddpo(*policy, *reference, *weights).item() == pytest.approx(1.313262, abs=1e-6)
    assert ddpo(*policy, *reference, *weights, normalize=False).item() == pytest.approx(3.048587, abs=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_ddpo_equals_a_slow_loop(normalize: bool):
    logps = tokens()
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randint(1, 6, of.shape, generator=generator).double() for of in logps[:2]]

    def answer(policy: Tensor, reference: Tensor, by: Tensor, row: int) -> float:
        parts = zip(policy[row].tolist(), reference[row].tolist(), by[row].tolist(), strict=True)
        total = sum(weight * (own - other) for own, other, weight in parts)
        return total / by[row].sum().item() if normalize else total

    losses = [
        surprise(0.5 * (answer(logps[0], logps[2], weights[0], i) - answer(logps[1], logps[3], weights[1], i)))
        for i in range(3)
    ]
    assert ddpo(*logps, *weights, normalize=normalize).item() == pytest.approx(sum(losses) / 3, abs=1e-12)


def test_ddpo_with_equal_weights_is_dpo_on_means_or_sums():
    logps = tokens()
    masks = [torch.ones(of.shape, dtype=torch.bool) for of in logps[:2]]
    masks[0][1, 3:] = False  # a shorter answer
    weights = [mask.double() for mask in masks]
    for normalize, reduction in ((True, "mean"), (False, "sum")):
        whole = [sequence_logps(of, mask, reduction=reduction) for of, mask in zip(logps, masks * 2, strict=True)]
        torch.testing.assert_close(ddpo(*logps, *weights, beta=0.1, normalize=normalize), dpo(*whole))


def test_ddpo_ignores_what_weighs_nothing_even_where_it_is_infinite():
    logps = tokens()
    weights = [torch.ones_like(of) for of in logps[:2]]
    weights[0][:, 0] = 0
    for of in (logps[0], logps[2]):
        of[:, 0] = -torch.inf
    cut = logps[0][:, 1:], logps[1], logps[2][:, 1:], logps[3]
    torch.testing.assert_close(ddpo(*logps, *weights), ddpo(*cut, weights[0][:, 1:], weights[1]))


def test_tdpo_by_hand():
    """Margin 2 nats less 0.5 * (3 - 1) is 1; beta 0.1 makes it 0.1; -log sigma(0.1) = 0.644397."""
    logps = [torch.tensor([value]) for value in (-1.0, -3.0, -2.0, -2.0)]
    loss = tdpo(*logps, torch.tensor([1.0]), torch.tensor([3.0]))
    assert loss.item() == pytest.approx(0.644397, abs=1e-6)


def test_tdpo_equals_a_slow_loop():
    logps, kl = sums(), sums(seed=1)[:2]
    rows = zip(*(x.tolist() for x in (*logps, *kl)), strict=True)
    losses = [surprise(0.2 * ((w - r) - (rw - rr) - 0.7 * (kr - kc))) for w, r, rw, rr, kc, kr in rows]
    assert tdpo(*logps, *kl, beta=0.2, alpha=0.7).item() == pytest.approx(sum(losses) / 3, abs=1e-12)


def test_tdpo_without_its_divergence_is_dpo():
    logps, kl = sums(), sums(seed=1)[:2]
    assert torch.equal(tdpo(*logps, *kl, alpha=0.0), dpo(*logps))


def test_tdpo_pushes_the_rejected_divergence_down_and_leaves_the_chosen_one():
    chosen_kl, rejected_kl = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    tdpo(*(x.float() for x in sums()), chosen_kl, rejected_kl).backward()
    assert chosen_kl.grad is None
    assert rejected_kl.grad is not None
    assert (rejected_kl.grad > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_chosen": torch.zeros(3, 2)}, r"policy_chosen is torch.float32 \(3, 2\).*sequence_logps"),
        ({"policy_chosen": torch.zeros(3, dtype=torch.int64)}, "policy_chosen is torch.int64"),
        ({"reference_rejected": torch.zeros(2)}, r"policy_rejected \(3,\) and reference_rejected \(2,\)"),
        (
            {"policy_rejected": torch.zeros(1), "reference_rejected": torch.zeros(1)},
            r"policy_rejected has shape \(1,\)",
        ),
        ({"reference_chosen": None}, "reference_chosen is missing"),
        ({"reference_rejected": None}, "reference_rejected is missing"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"label_smoothing": 0.1, "kind": "ipo"}, "label_smoothing=0.1 has no meaning for kind='ipo'"),
        ({"kind": "kto"}, "kind='kto'"),
    ],
)
def test_what_does_not_fit_dpo_is_named(change: dict[str, Any], message: str):
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    with pytest.raises(ValueError, match=message):
        dpo(**{**{name: torch.zeros(3) for name in names}, **change})


def test_an_answer_that_weighs_nothing_is_named():
    logps = tokens()
    weights = [torch.ones_like(of) for of in logps[:2]]
    weights[1][2] = 0
    with pytest.raises(ValueError, match=r"rejected_weights sum to \[4.0, 4.0, 0.0\]"):
        ddpo(*logps, *weights)


def trl_dpo(logps: tuple[Tensor, ...], lengths: Tensor, *, beta: float, kind: str) -> Tensor:
    """The loss that TRL's DPOTrainer computes from these logps, by its own method on stand-ins for all that it reads.

    A token's logp is its answer's sum over the answer's length, so that TRL's sum over tokens is what dpo takes.
    """
    trainer_module = pytest.importorskip("trl.trainer.dpo_trainer", reason="TRL is the oracle and is not installed")
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = logps
    answers = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    mask = torch.cat([torch.zeros(len(answers), 1, dtype=torch.bool), answers], dim=1)  # a prompt of one token
    per_token = torch.cat([policy_chosen, policy_rejected])[:, None] / lengths[:, None] * answers
    outputs = SimpleNamespace(
        log_probs=per_token, entropy=per_token, mean_logits=per_token, is_top1=per_token > 0, logits=None
    )
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    stand_in = SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {
        "input_ids": torch.zeros_like(mask, dtype=torch.int64),
        "attention_mask": mask,
        "completion_mask": mask.long(),
        "ref_chosen_logps": reference_chosen,
        "ref_rejected_logps": reference_rejected,
    }
    loss = trainer_module.DPOTrainer._compute_loss(stand_in, lambda **_: outputs, batch, return_outputs=False)
    assert isinstance(loss, Tensor)
    return loss


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_dpo_is_trls(kind: str, seed: int):
    logps = sums(4, seed=seed)
    lengths = torch.randint(1, 6, (8,), generator=torch.Generator().manual_seed(seed))
    theirs = trl_dpo(logps, lengths, beta=0.3, kind=kind)
    # TRL's margin of ipo is one of means over the answers' tokens.
    chosen, rejected = lengths.chunk(2)
    ours = logps if kind != "ipo" else tuple(x / n for x, n in zip(logps, (chosen, rejected) * 2, strict=True))
    torch.testing.assert_close(dpo(*ours, beta=0.3, kind=kind), theirs)


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.3), ("hinge", 0.0), ("ipo", 0.0)])
def test_dpo_without_a_reference_is_trls_cpo(kind: str, smoothing: float):
    trl = pytest.importorskip("trl.experimental.cpo.cpo_trainer", reason="TRL is the oracle and is not installed")
    chosen, rejected, *_ = sums(4)
    stand_in = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        beta=0.3,
        label_smoothing=smoothing,
        loss_type=kind,
        simpo_gamma=0.0,
        alpha=0.0,
    )
    losses, *_ = trl.CPOTrainer.cpo_loss(stand_in, chosen, rejected)
    torch.testing.assert_close(dpo(chosen, rejected, beta=0.3, kind=kind, label_smoothing=smoothing), losses.mean())
