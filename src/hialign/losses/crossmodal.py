"""Preference losses that also compare two images: the true one, and one that was corrupted (noise, a crop).

``corrupted`` is always the chosen answer's log-probability under the corrupted image: the chosen answer is to become
likelier with the true image than without it.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from .common import check_choice
from .preference import (
    PreferenceLoss,
    check_rows,
    finished,
    kl_difference,
    pair_losses,
    pair_ratios,
    ratios,
    weighted_logps,
)


@overload
def cross_modal_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    policy_corrupted: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_corrupted: Tensor,
    *,
    beta: float = ...,
    form: str = ...,
    reduction: str = ...,
    details: Literal[False] = ...,
) -> Tensor: ...
@overload
def cross_modal_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    policy_corrupted: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_corrupted: Tensor,
    *,
    beta: float = ...,
    form: str = ...,
    reduction: str = ...,
    details: Literal[True],
) -> PreferenceLoss: ...
def cross_modal_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    policy_corrupted: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_corrupted: Tensor,
    *,
    beta: float = 0.5,
    form: str = "paper",
    reduction: str = "mean",
    details: bool = False,
) -> Tensor | PreferenceLoss:
    """(): ``dpo`` on two answers to one image, and on two images under one answer.

    Args:
        policy_chosen: (batch,), log-probability of the chosen answer, summed over its tokens.
        policy_rejected: (batch,), of the rejected answer under the same image.
        policy_corrupted: (batch,), of the chosen answer under the corrupted image.
        reference_chosen: (batch,), the same three under the frozen reference.
        reference_rejected: (batch,).
        reference_corrupted: (batch,): the same corrupted image as the policy's, noise included.
        beta: as in ``dpo``; the paper's is 0.5, the released code's 0.1.
        form: "paper": -log sigma of each margin, added; "released": -log sigma of the two margins' sum.
        reduction: "mean" or "sum" over the batch.
        details: return a ``PreferenceLoss`` instead; its rewards are those of the two answers.

    Source: Fu et al. 2025 (CHiP), arXiv:2501.16629, the visual and the response term; code LVUGAI/CHiP@e7f5193.
    Differs: nothing.

    >>> one = torch.ones(1)
    >>> cross_modal_dpo(-one, -one, -one, -one, -one, -one)  # 2 log 2
    tensor(1.3863)
    """
    name = "cross_modal_dpo"
    check_choice(name, "form", form, ("paper", "released"))
    chosen, rejected = pair_ratios(name, policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    corrupted = ratios(name, "corrupted", policy_corrupted, reference_corrupted)
    check_rows(name, len(chosen), {"policy_corrupted": corrupted})
    answers, images = chosen - rejected, chosen - corrupted
    if form == "paper":
        losses = pair_losses(name, answers, beta=beta) + pair_losses(name, images, beta=beta)
    else:
        losses = pair_losses(name, answers + images, beta=beta)
    return finished(name, losses, beta * chosen, beta * rejected, reduction=reduction, details=details)


@overload
def mdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    policy_corrupted: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_corrupted: Tensor,
    *,
    beta: float = ...,
    anchor: float = ...,
    reduction: str = ...,
    details: Literal[False] = ...,
) -> Tensor: ...
@overload
def mdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    policy_corrupted: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_corrupted: Tensor,
    *,
    beta: float = ...,
    anchor: float = ...,
    reduction: str = ...,
    details: Literal[True],
) -> PreferenceLoss: ...
def mdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    policy_corrupted: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_corrupted: Tensor,
    *,
    beta: float = 0.1,
    anchor: float = 0.0,
    reduction: str = "mean",
    details: bool = False,
) -> Tensor | PreferenceLoss:
    """(): the sum of three terms: two answers, two images, and the chosen answer's own reward above an anchor.

    The third keeps the chosen answer from becoming less likely, which the other two allow.

    Args:
        policy_chosen: (batch,), as in ``cross_modal_dpo``; and so the next five.
        policy_rejected: (batch,).
        policy_corrupted: (batch,).
        reference_chosen: (batch,).
        reference_rejected: (batch,).
        reference_corrupted: (batch,).
        beta: as in ``dpo``.
        anchor: delta, what beta * (policy - reference) of the chosen answer is held against.
        reduction: "mean" or "sum" over the batch.
        details: return a ``PreferenceLoss`` instead; its rewards are those of the two answers.

    Source: Wang et al. 2024, arXiv:2406.11839; code luka-group/mDPO, mdpo_trainer.py.
    Differs: nothing.

    >>> one = torch.ones(1)
    >>> mdpo(-one, -one, -one, -one, -one, -one)  # 3 log 2
    tensor(2.0794)
    """
    name = "mdpo"
    chosen, rejected = pair_ratios(name, policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    corrupted = ratios(name, "corrupted", policy_corrupted, reference_corrupted)
    check_rows(name, len(chosen), {"policy_corrupted": corrupted})
    answers = pair_losses(name, chosen - rejected, beta=beta)
    images = pair_losses(name, chosen - corrupted, beta=beta)
    anchored = pair_losses(name, chosen - anchor / beta, beta=beta)
    return finished(
        name, answers + images + anchored, beta * chosen, beta * rejected, reduction=reduction, details=details
    )


@overload
def chip(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    policy_corrupted: Tensor | None = ...,
    reference_corrupted: Tensor | None = ...,
    chosen_weights: Tensor | None = ...,
    rejected_weights: Tensor | None = ...,
    chosen_kl: Tensor | None = ...,
    rejected_kl: Tensor | None = ...,
    *,
    beta: float = ...,
    lam: float | None = ...,
    gamma: float = ...,
    form: str = ...,
    reduction: str = ...,
    details: Literal[False] = ...,
) -> Tensor: ...
@overload
def chip(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    policy_corrupted: Tensor | None = ...,
    reference_corrupted: Tensor | None = ...,
    chosen_weights: Tensor | None = ...,
    rejected_weights: Tensor | None = ...,
    chosen_kl: Tensor | None = ...,
    rejected_kl: Tensor | None = ...,
    *,
    beta: float = ...,
    lam: float | None = ...,
    gamma: float = ...,
    form: str = ...,
    reduction: str = ...,
    details: Literal[True],
) -> PreferenceLoss: ...
def chip(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    policy_corrupted: Tensor | None = None,
    reference_corrupted: Tensor | None = None,
    chosen_weights: Tensor | None = None,
    rejected_weights: Tensor | None = None,
    chosen_kl: Tensor | None = None,
    rejected_kl: Tensor | None = None,
    *,
    beta: float = 0.5,
    lam: float | None = None,
    gamma: float = 0.1,
    form: str = "paper",
    reduction: str = "mean",
    details: bool = False,
) -> Tensor | PreferenceLoss:
    """(): preference over answers, images, segments and tokens; a term whose tensors are left out is not there.

    With L the -log sigma(beta * margin) of a margin:

        paper      L(answers) + L(images) + lam * L(segments) + gamma * beta * (sg(KL chosen) - KL rejected)
        released   L(answers + images - gamma * (KL rejected - sg(KL chosen))), the first two as weighted sums

    Args:
        policy_chosen: (batch, length - 1), per token: ``token_logps``, 0 outside the answer.
        policy_rejected: (batch, other length - 1).
        reference_chosen: as policy_chosen, under the frozen reference.
        reference_rejected: as policy_rejected.
        policy_corrupted: as policy_chosen, under the corrupted image. With the next, the images' term.
        reference_corrupted: as policy_corrupted, of the same corrupted image.
        chosen_weights: as policy_chosen: ``changed_token_weights`` (0 outside the answer). With the next, the
            segments' term; the released code gives 4 to changed tokens, which is 1 + the paper's lambda.
        rejected_weights: as policy_rejected.
        chosen_kl: (batch,), KL(reference || policy) summed over the chosen answer. With the next, the tokens' term.
        rejected_kl: (batch,).
        beta: the paper's is 0.5, the released code's 0.1.
        lam: the segments' factor; None is the paper's for LLaVA, 3. The released forms have none.
        gamma: the tokens' factor.
        form: "paper", "released", or "released_bug": the released code as it stands, which multiplies the reference's
            log-probability under the corrupted image by the sum of the weights. The sigmoid then saturates.
        reduction: "mean" or "sum" over the batch.
        details: return a ``PreferenceLoss`` instead; its rewards are those of the two answers.

    Source: Fu et al. 2025, arXiv:2501.16629; code LVUGAI/CHiP@e7f5193, llava_trainer.py.
    Differs: nothing. Mind the sign of the paper's tokens' term: outside a sigmoid, minimising it pushes the rejected
        answer's divergence up without bound; inside, as in the released forms and in ``tdpo``, it is pushed down.

    >>> half = torch.full((1, 3), -0.5)
    >>> chip(half, half, half, half)  # log 2
    tensor(0.6931)
    """
    name = "chip"
    _check_form(form, lam)
    segments = _both("chosen_weights", chosen_weights, "rejected_weights", rejected_weights)
    corrupted = _both("policy_corrupted", policy_corrupted, "reference_corrupted", reference_corrupted)
    divergences = _both("chosen_kl", chosen_kl, "rejected_kl", rejected_kl)
    # The paper's answers and images are plain sums beside the segments; the released code's are weighted instead.
    chosen_by, rejected_by = (None, None) if form == "paper" or segments is None else segments

    chosen = _summed("chosen", policy_chosen, reference_chosen, chosen_by)
    rejected = _summed("rejected", policy_rejected, reference_rejected, rejected_by)
    check_rows(name, len(chosen), {"policy_rejected": rejected})
    margins = [chosen - rejected]
    if corrupted is not None:
        images = _summed("corrupted", *corrupted, chosen_by)
        check_rows(name, len(chosen), {"policy_corrupted": images})
        if form == "released_bug" and chosen_by is not None:
            images = images + _reference_excess(corrupted[1], chosen_by)
        margins.append(chosen - images)
    tokens = chosen.new_zeros(len(chosen))  # how much the KL of the rejected answer is above that of the chosen one
    if divergences is not None:
        check_rows(name, len(chosen), {"chosen_kl": divergences[0], "rejected_kl": divergences[1]})
        tokens = gamma * kl_difference(*divergences)

    if form == "paper":
        losses = torch.stack([pair_losses(name, margin, beta=beta) for margin in margins]).sum(0) - beta * tokens
        if segments is not None:
            means = (
                weighted_logps(name, "chosen", policy_chosen, reference_chosen, segments[0], normalize=True),
                weighted_logps(name, "rejected", policy_rejected, reference_rejected, segments[1], normalize=True),
            )
            losses = losses + (3.0 if lam is None else lam) * pair_losses(name, means[0] - means[1], beta=beta)
    else:
        losses = pair_losses(name, torch.stack(margins).sum(0) - tokens, beta=beta)
    return finished(name, losses, beta * chosen, beta * rejected, reduction=reduction, details=details)


def _check_form(form: str, lam: float | None) -> None:
    """Raise where chip's form is not one, or has no place for lambda."""
    check_choice("chip", "form", form, ("paper", "released", "released_bug"))
    if form != "paper" and lam is not None:
        raise ValueError(
            f"chip: lam={lam} has no place in form={form!r}, wanted None; there 1 + lambda is the weight of a changed "
            "token, in chosen_weights and rejected_weights"
        )


def _both(
    first_name: str, first: Tensor | None, second_name: str, second: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The two tensors of one of chip's terms, None where both are left out."""
    if first is not None and second is not None:
        return first, second
    if first is not None or second is not None:
        missing, given = (first_name, second_name) if first is None else (second_name, first_name)
        raise ValueError(f"chip: {missing} is missing beside {given}, wanted both; leave both out to drop their term")
    return None


def _summed(side: str, policy: Tensor, reference: Tensor, weights: Tensor | None) -> Tensor:
    """(batch,): the sum of policy - reference over each answer's tokens, weighted where there are weights."""
    weights = torch.ones_like(policy) if weights is None else weights
    return weighted_logps("chip", side, policy, reference, weights, normalize=False)


def _reference_excess(reference: Tensor, weights: Tensor) -> Tensor:
    """(batch,): what policy - reference gains where the reference's sum is multiplied by the weights' sum."""
    wide = torch.promote_types(reference.dtype, torch.float32)
    reference, weights = reference.detach().to(wide), weights.to(wide)
    return (weights * reference).sum(-1) - reference.sum(-1) * weights.sum(-1)
