"""cross_modal_dpo, mdpo and chip against numbers by hand, slow loops and the losses that they contain."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hialign.losses import chip, cross_modal_dpo, ddpo, dpo, mdpo, tdpo

NAMES = (
    "policy_chosen",
    "policy_rejected",
    "policy_corrupted",
    "reference_chosen",
    "reference_rejected",
    "reference_corrupted",
)


def sums(batch: int = 3, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: -5 * torch.rand(batch, generator=generator, dtype=torch.float64) for name in NAMES}


def pairs(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if not name.endswith("corrupted")}


def tokens(batch: int = 3, *, seed: int = 0) -> dict[str, Tensor]:
    """Rejected answers are one token longer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: -torch.rand(batch, 5 if name.endswith("rejected") else 4, generator=generator, dtype=torch.float64)
        for name in NAMES
    }


def weights(batch: int = 3, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(1, 5, (batch, length), generator=generator).double()
        for name, length in (("chosen_weights", 4), ("rejected_weights", 5))
    }


def divergences(batch: int = 3, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(batch, generator=generator, dtype=torch.float64) for name in ("chosen_kl", "rejected_kl")}


def surprise(score: float) -> float:
    return math.log(1 + math.exp(-score))


def by_hand() -> dict[str, Tensor]:
    """The answers' margin is (-1 + 2) - (-3 + 2) = 2 nats, the images' (-1 + 2) - (-4 + 2) = 3."""
    values = (-1.0, -3.0, -4.0, -2.0, -2.0, -2.0)
    return {name: torch.tensor([value]) for name, value in zip(NAMES, values, strict=True)}


def test_cross_modal_dpo_by_hand():
    """beta 0.5: log(1 + e^-1) + log(1 + e^-1.5) = 0.313262 + 0.201413 in the paper; log(1 + e^-2.5) as released."""
    assert cross_modal_dpo(**by_hand()).item() == pytest.approx(0.514675, abs=1e-6)
    assert cross_modal_dpo(**by_hand(), form="released").item() == pytest.approx(0.078889, abs=1e-6)


def test_mdpo_by_hand():
    """beta 0.1: margins of 2, 3 and, above an anchor of 0, 1 nats: 0.598139 + 0.554355 + 0.644397.

    An anchor of 0.1 takes the last to log 2 = 0.693147.
    """
    assert mdpo(**by_hand()).item() == pytest.approx(1.796891, abs=2e-6)
    assert mdpo(**by_hand(), anchor=0.1).item() == pytest.approx(1.845641, abs=2e-6)


def test_the_losses_of_sums_equal_a_slow_loop():
    values = sums()
    rows = list(zip(*(values[name].tolist() for name in NAMES), strict=True))
    margins = [((w - rw) - (r - rr), (w - rw) - (c - rc), w - rw) for w, r, c, rw, rr, rc in rows]
    paper = sum(surprise(0.5 * answers) + surprise(0.5 * images) for answers, images, _ in margins) / 3
    assert cross_modal_dpo(**values).item() == pytest.approx(paper, abs=1e-12)
    released = sum(surprise(0.1 * (answers + images)) for answers, images, _ in margins) / 3
    assert cross_modal_dpo(**values, form="released", beta=0.1).item() == pytest.approx(released, abs=1e-12)
    three = sum(surprise(0.1 * x) + surprise(0.1 * y) + surprise(0.1 * z - 0.2) for x, y, z in margins) / 3
    assert mdpo(**values, anchor=0.2).item() == pytest.approx(three, abs=1e-12)


def test_an_image_that_tells_nothing_leaves_dpo():
    values = sums()
    values["policy_corrupted"], values["reference_corrupted"] = values["policy_chosen"], values["reference_chosen"]
    torch.testing.assert_close(cross_modal_dpo(**values, form="released", beta=0.1), dpo(**pairs(values)))
    paper = dpo(**pairs(values), beta=0.5) + math.log(2)
    torch.testing.assert_close(cross_modal_dpo(**values), paper)


def slow_chip(values: dict[str, Tensor], form: str, *, beta: float, lam: float, gamma: float) -> float:
    """The two forms as the formulas are written, one token at a time."""

    def ratio(side: str, row: int, by: Tensor, *, mean: bool = False) -> float:
        own, other = values[f"policy_{side}"][row], values[f"reference_{side}"][row]
        total = sum(float(by[row, t]) * (float(own[t]) - float(other[t])) for t in range(len(own)))
        return total / float(by[row].sum()) if mean else total

    losses = []
    for row in range(3):
        by = values["chosen_weights"], values["rejected_weights"]
        ones = torch.ones_like(by[0]), torch.ones_like(by[1])
        flat = ones if form == "paper" else by
        chosen, rejected = ratio("chosen", row, flat[0]), ratio("rejected", row, flat[1])
        corrupted = ratio("corrupted", row, flat[0])
        if form == "released_bug":
            reference = values["reference_corrupted"][row]
            corrupted += float((by[0][row] * reference).sum()) - float(reference.sum()) * float(by[0][row].sum())
        kl = float(values["rejected_kl"][row]) - float(values["chosen_kl"][row])
        if form == "paper":
            segments = ratio("chosen", row, by[0], mean=True) - ratio("rejected", row, by[1], mean=True)
            terms = surprise(beta * (chosen - rejected)) + surprise(beta * (chosen - corrupted))
            losses.append(terms + lam * surprise(beta * segments) - gamma * beta * kl)
        else:
            losses.append(surprise(beta * (chosen - rejected + chosen - corrupted - gamma * kl)))
    return sum(losses) / 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["paper", "released", "released_bug"])
def test_chip_equals_a_slow_loop(form: str, seed: int):
    values = tokens(seed=seed) | weights(seed=seed) | divergences(seed=seed)
    slow = slow_chip(values, form, beta=0.3, lam=2.0, gamma=0.7)
    loss = chip(**values, beta=0.3, lam=2.0 if form == "paper" else None, gamma=0.7, form=form)
    assert loss.item() == pytest.approx(slow, abs=1e-12)


def test_chip_by_hand():
    """One token each, margins as in by_hand, KLs of 2 and 3; changed tokens weigh 4, which a mean of one forgets.

    Paper: 0.514675 + 3 * 0.313262 + 0.1 * 0.5 * (2 - 3) = 1.404461. Released with the weights 4 and beta 0.1:
    0.1 * (8 + 12 - 0.1) = 1.99, log(1 + e^-1.99) = 0.128125.
    """
    values = {name: value[:, None] for name, value in by_hand().items()}
    values |= {"chosen_weights": torch.tensor([[4.0]]), "rejected_weights": torch.tensor([[4.0]])}
    values |= {"chosen_kl": torch.tensor([2.0]), "rejected_kl": torch.tensor([3.0])}
    assert chip(**values).item() == pytest.approx(1.404461, abs=2e-6)
    assert chip(**values, form="released", beta=0.1).item() == pytest.approx(0.128125, abs=2e-6)


@pytest.mark.parametrize("form", ["paper", "released", "released_bug"])
def test_chip_without_image_segment_and_token_terms_is_dpo(form: str):
    values = tokens()
    answers = {name: value.sum(-1) for name, value in pairs(values).items()}
    torch.testing.assert_close(chip(**pairs(values), form=form), dpo(**answers, beta=0.5))


def test_chip_with_the_image_term_alone_is_cross_modal_dpo():
    values = tokens()
    answers = {name: value.sum(-1) for name, value in values.items()}
    for form in ("paper", "released"):
        torch.testing.assert_close(chip(**values, form=form), cross_modal_dpo(**answers, form=form))


def test_chip_with_the_token_term_alone_is_tdpo_as_released():
    values, kl = pairs(tokens()), divergences()
    answers = {name: value.sum(-1) for name, value in values.items()}
    loss = chip(**values, **kl, form="released", beta=0.1, gamma=0.5)
    torch.testing.assert_close(loss, tdpo(**answers, **kl, alpha=0.5))


def test_chip_with_the_segment_term_alone_is_dpo_and_ddpo():
    values, by = pairs(tokens()), weights()
    answers = {name: value.sum(-1) for name, value in values.items()}
    loss = chip(**values, **by, lam=2.0)
    torch.testing.assert_close(loss, dpo(**answers, beta=0.5) + 2 * ddpo(**values, **by))
    torch.testing.assert_close(chip(**values, **by, form="released"), ddpo(**values, **by, normalize=False))


def test_chip_weighs_segments_by_three_and_tokens_by_a_tenth():
    values = tokens() | weights() | divergences()
    assert torch.equal(chip(**values), chip(**values, lam=3.0, gamma=0.1))


def test_the_bug_needs_weights():
    values = tokens()
    assert torch.equal(chip(**values, form="released_bug"), chip(**values, form="released"))


def test_only_inside_the_sigmoid_is_the_rejected_divergence_pushed_down():
    for form, sign in (("paper", -1), ("released", 1)):
        kl = divergences()
        rejected = kl["rejected_kl"].requires_grad_()
        chip(**pairs(tokens()), **kl, form=form).backward()
        assert rejected.grad is not None
        assert (sign * rejected.grad > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "code"}, "form='code'"),
        ({"form": "released", "lam": 3.0}, "lam=3.0 has no place in form='released'"),
        ({"policy_corrupted": None}, "policy_corrupted is missing beside reference_corrupted"),
        ({"reference_corrupted": None}, "reference_corrupted is missing beside policy_corrupted"),
        ({"rejected_weights": None}, "rejected_weights is missing beside chosen_weights"),
        ({"chosen_kl": None}, "chosen_kl is missing beside rejected_kl"),
        ({"chosen_weights": torch.ones(3, 5)}, r"policy_chosen \(3, 4\).*chosen_weights \(3, 5\)"),
        ({"rejected_weights": torch.zeros(3, 5)}, "rejected_weights sum to"),
        ({"policy_chosen": torch.zeros(3)}, r"policy_chosen \(3,\)"),
        ({"rejected_kl": torch.zeros(3, 5)}, r"rejected_kl has shape \(3, 5\)"),
        ({"beta": -1.0}, "beta=-1.0"),
    ],
)
def test_what_does_not_fit_chip_is_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        chip(**{**tokens(), **weights(), **divergences(), **change})


def test_cross_modal_dpo_names_an_unknown_form():
    with pytest.raises(ValueError, match="form='released_bug'"):
        cross_modal_dpo(**sums(), form="released_bug")
