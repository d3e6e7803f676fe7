"""Preference losses: the chosen answer is to become likelier than the rejected one, against a reference.

What they take is log-probabilities: of whole answers, (batch,), from ``sequence_logps``, or per token,
(batch, length - 1), from ``token_logps``. Margins and rewards are in nats. `crossmodal` has the losses that also
compare two images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import check_choice


@dataclass(frozen=True)
class PreferenceLoss:
    """What a preference loss returns under ``details=True``; the rewards carry no gradient."""

    loss: Tensor  # ()
    losses: Tensor  # (batch,)
    chosen_rewards: Tensor  # (batch,): beta * (policy - reference) of the chosen answer
    rejected_rewards: Tensor  # (batch,)


@overload
def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None = ...,
    reference_rejected: Tensor | None = ...,
    *,
    beta: float = ...,
    label_smoothing: float = ...,
    kind: str = ...,
    reduction: str = ...,
    details: Literal[False] = ...,
) -> Tensor: ...
@overload
def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None = ...,
    reference_rejected: Tensor | None = ...,
    *,
    beta: float = ...,
    label_smoothing: float = ...,
    kind: str = ...,
    reduction: str = ...,
    details: Literal[True],
) -> PreferenceLoss: ...
def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    kind: str = "sigmoid",
    reduction: str = "mean",
    details: bool = False,
) -> Tensor | PreferenceLoss:
    """(): -log sigma(beta * margin), where margin = (policy - reference) of the chosen less that of the rejected.

    Args:
        policy_chosen: (batch,), log-probability of the chosen answer: ``sequence_logps``, the sum.
        policy_rejected: (batch,), of the rejected one.
        reference_chosen: (batch,), under the frozen reference. Leave both out for the reference-free loss.
        reference_rejected: (batch,).
        beta: how far the margin must go; larger keeps nearer to the reference.
        label_smoothing: in [0, 0.5), the share of pairs taken to be labelled the wrong way round ("sigmoid" only).
        kind: "sigmoid"; "ipo", (margin - 1 / (2 beta))^2; or "hinge", max(0, 1 - beta * margin).
        reduction: "mean" or "sum" over the batch. Under a split batch, the sums add up to the whole.
        details: return a ``PreferenceLoss`` instead.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023 (label smoothing); Azar et al. 2023 (IPO),
        arXiv:2310.12036, eq. 17; Zhao et al. 2023 (hinge), arXiv:2305.10425.
    Differs: "ipo" takes the logps as they come; with ``sequence_logps(..., reduction="mean")`` it is TRL's, whose
        margin is one of means.

    >>> dpo(torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-2.0]))  # log 2
    tensor(0.6931)
    """
    name = "dpo"
    chosen, rejected = pair_ratios(name, policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    losses = pair_losses(name, chosen - rejected, beta=beta, label_smoothing=label_smoothing, kind=kind)
    return finished(name, losses, beta * chosen, beta * rejected, reduction=reduction, details=details)


@overload
def ddpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_weights: Tensor,
    rejected_weights: Tensor,
    *,
    beta: float = ...,
    normalize: bool = ...,
    reduction: str = ...,
    details: Literal[False] = ...,
) -> Tensor: ...
@overload
def ddpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_weights: Tensor,
    rejected_weights: Tensor,
    *,
    beta: float = ...,
    normalize: bool = ...,
    reduction: str = ...,
    details: Literal[True],
) -> PreferenceLoss: ...
def ddpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_weights: Tensor,
    rejected_weights: Tensor,
    *,
    beta: float = 0.5,
    normalize: bool = True,
    reduction: str = "mean",
    details: bool = False,
) -> Tensor | PreferenceLoss:
    """(): ``dpo`` on weighted means, where the tokens that were corrected weigh more than the others.

    Args:
        policy_chosen: (batch, length - 1), per token: ``token_logps``. The two answers' lengths may differ.
        policy_rejected: (batch, other length - 1).
        reference_chosen: as policy_chosen, under the reference.
        reference_rejected: as policy_rejected.
        chosen_weights: as policy_chosen: gamma at changed tokens, 1 at the answer's others, 0 outside the answer:
            ``changed_token_weights``.
        rejected_weights: as policy_rejected.
        beta: as in ``dpo``.
        normalize: divide by the row's total weight, as the paper does. False: weighted sums.
        reduction: "mean" or "sum" over the batch.
        details: return a ``PreferenceLoss`` instead.

    Source: Yu et al. 2023 (RLHF-V), arXiv:2312.00849; code RLHF-V/RLHF-V@8daac8a.
    Differs: the paper's form (gamma 5, beta 0.5, normalised) is the default; the published command runs the code
        with gamma 1.1, beta 0.1 and normalize=False.

    >>> half, ones = torch.full((1, 3), -0.5), torch.ones(1, 3)
    >>> ddpo(half, half, half, half, ones, ones)  # log 2
    tensor(0.6931)
    """
    name = "ddpo"
    chosen = weighted_logps(name, "chosen", policy_chosen, reference_chosen, chosen_weights, normalize=normalize)
    rejected = weighted_logps(
        name, "rejected", policy_rejected, reference_rejected, rejected_weights, normalize=normalize
    )
    check_rows(name, len(chosen), {"policy_rejected": rejected})
    losses = pair_losses(name, chosen - rejected, beta=beta)
    return finished(name, losses, beta * chosen, beta * rejected, reduction=reduction, details=details)


@overload
def tdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float = ...,
    alpha: float = ...,
    reduction: str = ...,
    details: Literal[False] = ...,
) -> Tensor: ...
@overload
def tdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float = ...,
    alpha: float = ...,
    reduction: str = ...,
    details: Literal[True],
) -> PreferenceLoss: ...
def tdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    reduction: str = "mean",
    details: bool = False,
) -> Tensor | PreferenceLoss:
    """(): ``dpo`` whose margin is less alpha * (KL of the rejected answer - KL of the chosen one).

    The chosen answer's divergence is a constant, so that only the rejected answer's is pushed down.

    Args:
        policy_chosen: (batch,), as in ``dpo``; and so the next three.
        policy_rejected: (batch,).
        reference_chosen: (batch,).
        reference_rejected: (batch,).
        chosen_kl: (batch,), KL(reference || policy) summed over the chosen answer:
            ``sequence_logps(token_kl(...), labels)``.
        rejected_kl: (batch,), over the rejected answer.
        beta: as in ``dpo``.
        alpha: how much the divergences count.
        reduction: "mean" or "sum" over the batch.
        details: return a ``PreferenceLoss`` instead.

    Source: Zeng et al. 2024, arXiv:2404.11999, the second form (TDPO2); code Vance0124/Token-level-Direct-Preference-
        Optimization.
    Differs: nothing.

    >>> one = torch.ones(1)
    >>> tdpo(-one, -one, -one, -one, one, one)  # log 2
    tensor(0.6931)
    """
    name = "tdpo"
    chosen, rejected = pair_ratios(name, policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    check_rows(name, len(chosen), {"chosen_kl": chosen_kl, "rejected_kl": rejected_kl})
    margins = chosen - rejected - alpha * kl_difference(chosen_kl, rejected_kl)
    losses = pair_losses(name, margins, beta=beta)
    return finished(name, losses, beta * chosen, beta * rejected, reduction=reduction, details=details)


# What the losses of `crossmodal` and `phrase` do in the same way.


def pair_ratios(
    name: str,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None,
    reference_rejected: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(batch,) and (batch,): policy - reference of the chosen and of the rejected answers."""
    if (reference_chosen is None) != (reference_rejected is None):
        missing = "reference_chosen" if reference_chosen is None else "reference_rejected"
        raise ValueError(
            f"{name}: {missing} is missing beside the other, wanted both or neither; leave both out for the "
            "reference-free loss"
        )
    if reference_chosen is None or reference_rejected is None:
        reference_chosen, reference_rejected = torch.zeros_like(policy_chosen), torch.zeros_like(policy_rejected)
    chosen = ratios(name, "chosen", policy_chosen, reference_chosen)
    rejected = ratios(name, "rejected", policy_rejected, reference_rejected)
    check_rows(name, len(chosen), {"policy_rejected": rejected})
    return chosen, rejected


def check_rows(name: str, rows: int, others: dict[str, Tensor]) -> None:
    """Raise where one of the others is not (rows,): a single row would else be paired with every other, unseen."""
    for field, values in others.items():
        if values.shape != (rows,):
            raise ValueError(
                f"{name}: {field} has shape {tuple(values.shape)} beside {rows} chosen answers, wanted "
                f"({rows},); give one row per pair"
            )


def ratios(name: str, side: str, policy: Tensor, reference: Tensor) -> Tensor:
    """(batch,), float32 or wider: policy - reference of answers' log-probabilities; an error where they do not fit."""
    for field, logps in ((f"policy_{side}", policy), (f"reference_{side}", reference)):
        if logps.dim() != 1 or not logps.is_floating_point():
            raise ValueError(
                f"{name}: {field} is {logps.dtype} {tuple(logps.shape)}, wanted one log-probability per answer, "
                "(batch,); call sequence_logps on logps of tokens"
            )
    if policy.shape != reference.shape or len(policy) == 0:
        raise ValueError(
            f"{name}: policy_{side} {tuple(policy.shape)} and reference_{side} {tuple(reference.shape)} do not fit; "
            "wanted (batch,) twice, of one row at least: score the same answers with both models"
        )
    wide = torch.promote_types(policy.dtype, torch.float32)
    return policy.to(wide) - reference.detach().to(wide)


def weighted_logps(
    name: str, side: str, policy: Tensor, reference: Tensor, weights: Tensor, *, normalize: bool
) -> Tensor:
    """(batch,), float32 or wider: the weighted sum or mean of policy - reference over each answer's tokens."""
    if policy.dim() != 2 or policy.shape != reference.shape or policy.shape != weights.shape:
        raise ValueError(
            f"{name}: policy_{side} {tuple(policy.shape)}, reference_{side} {tuple(reference.shape)} and "
            f"{side}_weights {tuple(weights.shape)} do not fit; wanted (batch, length - 1) three times: token_logps "
            "of both models, and changed_token_weights of the same labels"
        )
    totals = weights.sum(-1)
    if len(policy) == 0 or bool((totals <= 0).any()):
        raise ValueError(
            f"{name}: {side}_weights sum to {totals.tolist()} per row, wanted at least one row, each more than 0: "
            "no token of such an answer counts; drop such rows"
        )
    wide = torch.promote_types(policy.dtype, torch.float32)
    # Where nothing counts a logp may be -inf (padding), and 0 * -inf is NaN.
    differences = (policy.to(wide) - reference.detach().to(wide)).masked_fill(weights == 0, 0.0)
    sums = (weights.to(wide) * differences).sum(-1)
    return sums / totals.to(wide) if normalize else sums


def kl_difference(chosen_kl: Tensor, rejected_kl: Tensor) -> Tensor:
    """(batch,), float32 or wider: the rejected answer's divergence less the chosen one's, which gets no gradient."""
    wide = torch.promote_types(rejected_kl.dtype, torch.float32)
    return rejected_kl.to(wide) - chosen_kl.detach().to(wide)


def pair_losses(
    name: str, margins: Tensor, *, beta: float, label_smoothing: float = 0.0, kind: str = "sigmoid"
) -> Tensor:
    """(batch,): each pair's loss, from its margin in nats."""
    if not 0 < beta < float("inf"):
        raise ValueError(f"{name}: beta={beta}, wanted a finite number > 0; DPO's is 0.1")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"{name}: label_smoothing={label_smoothing}, wanted 0 <= label_smoothing < 0.5; from one half on, the "
            "rejected answer would be preferred: swap the pairs instead"
        )
    if label_smoothing and kind != "sigmoid":
        raise ValueError(
            f"{name}: label_smoothing={label_smoothing} has no meaning for kind={kind!r}, wanted 0; it is for 'sigmoid'"
        )
    check_choice(name, "kind", kind, ("sigmoid", "ipo", "hinge"))
    if kind == "sigmoid":
        scores = beta * margins
        return -(1 - label_smoothing) * F.logsigmoid(scores) - label_smoothing * F.logsigmoid(-scores)
    if kind == "ipo":
        return (margins - 1 / (2 * beta)).square()
    return F.relu(1 - beta * margins)


def finished(
    name: str, losses: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor, *, reduction: str, details: bool
) -> Tensor | PreferenceLoss:
    """(): the losses' mean or sum; a ``PreferenceLoss`` under details."""
    check_choice(name, "reduction", reduction, ("mean", "sum"))
    loss = losses.mean() if reduction == "mean" else losses.sum()
    if not details:
        return loss
    return PreferenceLoss(loss, losses, chosen_rewards.detach(), rejected_rewards.detach())
