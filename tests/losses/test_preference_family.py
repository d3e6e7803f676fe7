"""What every preference loss must do, whatever its formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hialign.losses import PreferenceLoss, chip, cross_modal_dpo, ddpo, dpo, halva, mdpo, tdpo

Inputs = dict[str, Tensor]
ANSWERS = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
CORRUPTED = ("policy_corrupted", "reference_corrupted")


def answers(*names: str, batch: int, generator: torch.Generator, shape: tuple[int, ...] = ()) -> Inputs:
    """Log-probabilities: below 0."""
    return {name: -3 * torch.rand(batch, *shape, generator=generator, dtype=torch.float64) - 0.1 for name in names}


def divergences(*, batch: int, generator: torch.Generator) -> Inputs:
    return {name: torch.rand(batch, generator=generator, dtype=torch.float64) for name in ("chosen_kl", "rejected_kl")}


def weights(*, batch: int, generator: torch.Generator) -> Inputs:
    """Of 4 tokens: 0 outside the answer, 1 or 5 in it."""
    made = {}
    for name in ("chosen_weights", "rejected_weights"):
        rows = torch.ones(batch, 4, dtype=torch.float64)
        rows[torch.rand(batch, 4, generator=generator) < 0.4] = 5.0
        rows[:, 0] = 0.0
        made[name] = rows
    return made


def phrases(batch: int) -> Inputs:
    """Two phrases of the first row, one of each other; of 4 tokens."""
    chosen, rejected = torch.tensor([[1, 1, 0, 2]]), torch.tensor([[0, 1, 2, 2]])
    if batch > 1:
        chosen = torch.cat([chosen, torch.tensor([[0, 0, 1, 0]]).expand(batch - 1, -1)])
        rejected = torch.cat([rejected, torch.tensor([[0, 1, 1, 0]]).expand(batch - 1, -1)])
    return {"chosen_phrases": chosen, "rejected_phrases": rejected}


def tokens(*names: str, batch: int, generator: torch.Generator) -> Inputs:
    return answers(*names, batch=batch, generator=generator, shape=(4,))


def inputs(loss: Callable[..., Any], *, batch: int = 3, seed: int = 0) -> Inputs:
    how: dict[str, Any] = {"batch": batch, "generator": torch.Generator().manual_seed(seed)}
    if loss is dpo:
        return answers(*ANSWERS, **how)
    if loss is tdpo:
        return answers(*ANSWERS, **how) | divergences(**how)
    if loss in (cross_modal_dpo, mdpo):
        return answers(*ANSWERS, *CORRUPTED, **how)
    if loss is ddpo:
        return tokens(*ANSWERS, **how) | weights(**how)
    if loss is chip:
        return tokens(*ANSWERS, *CORRUPTED, **how) | weights(**how) | divergences(**how)
    assert loss is halva
    names = ("policy_chosen", "policy_rejected", "policy_anchor", "reference_anchor")
    return tokens(*names, **how) | phrases(batch)


CASES = [
    pytest.param(dpo, {}, id="dpo"),
    pytest.param(dpo, {"label_smoothing": 0.2}, id="dpo-smoothed"),
    pytest.param(dpo, {"kind": "ipo"}, id="dpo-ipo"),
    pytest.param(dpo, {"kind": "hinge", "beta": 0.3}, id="dpo-hinge"),
    pytest.param(ddpo, {}, id="ddpo"),
    pytest.param(ddpo, {"normalize": False}, id="ddpo-sums"),
    pytest.param(tdpo, {}, id="tdpo"),
    pytest.param(cross_modal_dpo, {}, id="cross_modal_dpo"),
    pytest.param(cross_modal_dpo, {"form": "released"}, id="cross_modal_dpo-released"),
    pytest.param(mdpo, {"anchor": 0.3}, id="mdpo"),
    pytest.param(chip, {}, id="chip"),
    pytest.param(chip, {"form": "released"}, id="chip-released"),
    pytest.param(chip, {"form": "released_bug"}, id="chip-released-bug"),
    pytest.param(halva, {"kl": "target"}, id="halva"),
]
every_loss = pytest.mark.parametrize(("loss", "options"), CASES)


def policies(values: Inputs) -> list[str]:
    """The names of what must get a gradient. tdpo's chosen divergence is a constant."""
    return [name for name in values if name.startswith("policy") or name == "rejected_kl"]


def with_gradients(values: Inputs) -> Inputs:
    return {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in values.items()}


@every_loss
def test_a_batch_of_three_equals_three_batches_of_one(loss: Callable[..., Any], options: dict[str, Any]):
    values = inputs(loss)
    whole = loss(**values, **options, details=True)
    rows = [
        loss(**{name: value[i : i + 1] for name, value in values.items()}, **options, details=True) for i in range(3)
    ]
    for field in ("losses", "chosen_rewards", "rejected_rewards"):
        torch.testing.assert_close(getattr(whole, field), torch.cat([getattr(row, field) for row in rows]))


@every_loss
def test_sums_of_a_split_batch_add_up_with_their_gradients(loss: Callable[..., Any], options: dict[str, Any]):
    values = inputs(loss, batch=4)
    whole, split = with_gradients(values), with_gradients(values)
    loss(**whole, **options, reduction="sum").backward()
    parts = [
        loss(**{name: value[i : i + 2] for name, value in split.items()}, **options, reduction="sum") for i in (0, 2)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), loss(**values, **options, reduction="sum"))
    torch.stack(parts).sum().backward()
    for name in policies(values):
        torch.testing.assert_close(split[name].grad, whole[name].grad)


@every_loss
def test_the_order_of_the_pairs_does_not_matter(loss: Callable[..., Any], options: dict[str, Any]):
    values = inputs(loss)
    turned = {name: value[[2, 0, 1]] for name, value in values.items()}
    torch.testing.assert_close(loss(**turned, **options), loss(**values, **options))


@every_loss
def test_gradients_are_those_of_finite_differences(loss: Callable[..., Any], options: dict[str, Any]):
    values = inputs(loss)
    if loss is dpo and options.get("kind") == "hinge":
        # Away from the corner, where finite differences average the two slopes.
        margins = values["policy_chosen"] - values["policy_rejected"]
        margins = margins - values["reference_chosen"] + values["reference_rejected"]
        assert ((1 - options["beta"] * margins).abs() > 1e-3).all()
    names = policies(values)

    def of(*moved: Tensor) -> Tensor:
        return loss(**{**values, **dict(zip(names, moved, strict=True))}, **options)

    assert torch.autograd.gradcheck(of, [values[name].clone().requires_grad_() for name in names])


@every_loss
def test_the_reference_gets_no_gradient_and_the_policy_does(loss: Callable[..., Any], options: dict[str, Any]):
    values = with_gradients(inputs(loss))
    loss(**values, **options).backward()
    for name in policies(values):
        assert values[name].grad is not None, name
        assert values[name].grad.any(), name
    for name in values:
        if name.startswith("reference") or name == "chosen_kl":
            assert values[name].grad is None or not values[name].grad.any(), name


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_values_and_gradients_are_finite_for_huge_margins(
    loss: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype, sign: int
):
    values = inputs(loss)
    for name, value in values.items():
        if name.startswith(("policy", "reference")):
            away = name in ("policy_chosen", "reference_rejected")
            value.fill_(-1e4 if away == (sign > 0) else -1e-3)
        values[name] = value.to(dtype) if value.is_floating_point() else value
    values = with_gradients(values)
    value = loss(**values, **options)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    for name in policies(values):
        gradient = values[name].grad
        assert gradient is not None
        assert gradient.dtype == dtype
        assert gradient.isfinite().all(), name


@every_loss
def test_half_inputs_score_as_their_float32_copies(loss: Callable[..., Any], options: dict[str, Any]):
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs(loss).items()}
    single = {name: value.float() if value.is_floating_point() else value for name, value in half.items()}
    assert torch.equal(loss(**half, **options), loss(**single, **options))


@every_loss
def test_details_hold_the_same_loss_and_rewards_without_gradient(loss: Callable[..., Any], options: dict[str, Any]):
    values = with_gradients(inputs(loss))
    details = loss(**values, **options, details=True)
    assert isinstance(details, PreferenceLoss)
    assert torch.equal(details.loss, loss(**values, **options))
    assert details.loss.requires_grad
    assert details.losses.shape == details.chosen_rewards.shape == details.rejected_rewards.shape == (3,)
    assert not details.chosen_rewards.requires_grad
    assert not details.rejected_rewards.requires_grad
    if loss is not halva:  # whose mean runs over phrases
        torch.testing.assert_close(details.losses.mean(), details.loss)


@every_loss
def test_a_missing_row_is_named_and_never_broadcast(loss: Callable[..., Any], options: dict[str, Any]):
    values = inputs(loss)
    for name in values:
        short = {**values, name: values[name][:1]}
        with pytest.raises(ValueError, match=name):
            loss(**short, **options)


@every_loss
def test_a_batch_without_a_pair_is_an_error(loss: Callable[..., Any], options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"one row|no phrase"):
        loss(**{name: value[:0] for name, value in inputs(loss).items()}, **options)


@every_loss
def test_an_unknown_reduction_is_named(loss: Callable[..., Any], options: dict[str, Any]):
    with pytest.raises(ValueError, match="reduction='none'"):
        loss(**inputs(loss), **options, reduction="none")


@pytest.mark.parametrize("loss", [dpo, tdpo, cross_modal_dpo, mdpo])
@settings(deadline=None, max_examples=30)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 100))
def test_what_both_models_share_cancels(loss: Callable[..., Any], shift: float, seed: int):
    values = inputs(loss, seed=seed)
    moved = {name: value + shift if name.endswith("_chosen") else value for name, value in values.items()}
    torch.testing.assert_close(loss(**moved), loss(**values))


@pytest.mark.parametrize("loss", [dpo, ddpo, tdpo, cross_modal_dpo, mdpo])
@settings(deadline=None, max_examples=30)
@given(gain=st.floats(0.01, 20), seed=st.integers(0, 100))
def test_a_likelier_chosen_answer_is_never_worse(loss: Callable[..., Any], gain: float, seed: int):
    values = inputs(loss, seed=seed)
    better = {**values, "policy_chosen": values["policy_chosen"] + gain}
    assert loss(**better) < loss(**values)
