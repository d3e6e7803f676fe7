"""Losses over phrases of an answer, and the weights of tokens that two answers do not share."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import check_choice
from .preference import PreferenceLoss
from .token import IGNORED


@overload
def halva(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_phrases: Tensor,
    rejected_phrases: Tensor,
    *,
    divergences: Tensor | None = ...,
    policy_anchor: Tensor | None = ...,
    reference_anchor: Tensor | None = ...,
    alpha: float = ...,
    cells: str = ...,
    kl: str = ...,
    reduction: str = ...,
    details: Literal[False] = ...,
) -> Tensor: ...
@overload
def halva(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_phrases: Tensor,
    rejected_phrases: Tensor,
    *,
    divergences: Tensor | None = ...,
    policy_anchor: Tensor | None = ...,
    reference_anchor: Tensor | None = ...,
    alpha: float = ...,
    cells: str = ...,
    kl: str = ...,
    reduction: str = ...,
    details: Literal[True],
) -> PreferenceLoss: ...
def halva(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_phrases: Tensor,
    rejected_phrases: Tensor,
    *,
    divergences: Tensor | None = None,
    policy_anchor: Tensor | None = None,
    reference_anchor: Tensor | None = None,
    alpha: float = 0.4,
    cells: str = "real",
    kl: str = "vocabulary",
    reduction: str = "mean",
    details: bool = False,
) -> Tensor | PreferenceLoss:
    """(): softplus(rejected phrase - chosen phrase), a mean over the phrases, + alpha * divergence from the reference.

    Phrase k of the chosen answer stands against phrase k of the rejected one, each by its summed log-probability; no
    reference takes part in that. The divergence is taken on other answers, which are to stay as they are: anchors.

    Args:
        policy_chosen: (batch, length - 1), per token: ``token_logps``.
        policy_rejected: (batch, other length - 1).
        chosen_phrases: as policy_chosen, int64: 1, 2, ... in the tokens of each phrase, 0 elsewhere. Beside ids that
            are not shifted this is phrases[:, 1:].
        rejected_phrases: as policy_rejected. Each row has the same phrases on both sides.
        divergences: (anchors, anchor length - 1), with kl="vocabulary": ``token_kl`` or ``chunked_token_kl``.
        policy_anchor: (anchors, anchor length - 1), with kl="target": ``token_logps`` of the anchors.
        reference_anchor: as policy_anchor, under the reference.
        alpha: the divergence's factor; the paper's is 0.4 (7B), 0.5 (13B). At 0, the anchors may be left out.
        cells: "real": the mean runs over the phrases that exist. "padded": over batch * number of phrase ids, as the
            released code does, where each missing phrase adds a constant log 2 and thins out the others.
        kl: "vocabulary": over all tokens that might follow, as the released code does. "target": only the anchor's
            own tokens, p_reference * (log p_reference - log p_policy), as the paper's formula is written.
        reduction: "mean": over phrases, and over anchors (each a sum over its tokens). "sum": sums of both; ranks
            add up their sums, of the two parts one at a time, and divide by their numbers of phrases and anchors.
        details: return a ``PreferenceLoss`` instead. Its losses are each example's sum over its phrases, without the
            divergence; its rewards are each example's summed log-probability of the phrases.

    Source: Sarkar et al. 2024, arXiv:2405.18654; code pritamqu/HALVA@059b086, halva_trainer.py.
    Differs: softplus, where the code's log(1 + exp(x)) overflows; only real phrases by default; sides with different
        phrases are an error, where the code pairs what does not belong together.

    >>> logps = torch.tensor([[-1.0, -2.0, -1.0]])
    >>> halva(logps, logps, torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 1]]), alpha=0.0)  # log(1 + exp(-1))
    tensor(0.3133)
    """
    check_choice("halva", "cells", cells, ("real", "padded"))
    check_choice("halva", "reduction", reduction, ("mean", "sum"))
    for side, logps, ids in (
        ("chosen", policy_chosen, chosen_phrases),
        ("rejected", policy_rejected, rejected_phrases),
    ):
        _check_ids("halva", f"policy_{side}", logps, f"{side}_phrases", ids)
    real = _paired("halva", chosen_phrases, rejected_phrases)  # (batch, phrases)
    chosen = phrase_sums(policy_chosen, chosen_phrases)
    rejected = phrase_sums(policy_rejected, rejected_phrases)
    counted = real.any(0).expand_as(real) if cells == "padded" else real
    losses = F.softplus(rejected - chosen).masked_fill(~counted, 0.0).sum(-1)  # (batch,)
    loss = losses.sum() / counted.sum() if reduction == "mean" else losses.sum()
    anchors = _anchored(divergences, policy_anchor, reference_anchor, kl, alpha)
    if anchors is not None:
        loss = loss + alpha * (anchors.mean() if reduction == "mean" else anchors.sum())
    return PreferenceLoss(loss, losses, chosen.detach().sum(-1), rejected.detach().sum(-1)) if details else loss


def phrase_sums(logps: Tensor, phrase_ids: Tensor) -> Tensor:
    """(batch, phrases): the summed log-probability of each phrase; column k - 1 is phrase k, 0 where a row has none.

    Args:
        logps: (batch, length - 1): ``token_logps``.
        phrase_ids: the same shape, int64: 1, 2, ... in the tokens of each phrase, 0 elsewhere.

    Source: Sarkar et al. 2024 (HALVA), arXiv:2405.18654; code pritamqu/HALVA@059b086, accumulate_logps.
    Differs: columns are the ids themselves; there they are the sorted ids of the batch, which shifts them by a gap.

    >>> phrase_sums(torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[2, 0, 2]]))
    tensor([[ 0., -5.]])
    """
    _check_ids("phrase_sums", "logps", logps, "phrase_ids", phrase_ids)
    wide = torch.promote_types(logps.dtype, torch.float32)
    logps = logps.to(wide).masked_fill(phrase_ids == 0, 0.0)
    columns = int(phrase_ids.max()) + 1 if phrase_ids.numel() else 1
    return logps.new_zeros(len(logps), columns).scatter_add(1, phrase_ids, logps)[:, 1:]


def changed_token_weights(
    chosen_ids: Tensor, rejected_ids: Tensor, *, gamma: float = 5.0, rule: str = "diff"
) -> tuple[Tensor, Tensor]:
    """Two tensors, (batch, length - 1) each: gamma at the tokens that the other answer does not have, 1 at the others.

    A weight belongs to the logp of its token, so that the first token has none. Where an id is -100 the weight is 0.

    Args:
        chosen_ids: (batch, length), int64. Labels are best (-100 in prompt and padding): the weights are then 0
            outside the answer, as ``ddpo`` and ``chip`` want them.
        rejected_ids: (batch, other length), int64.
        gamma: the weight of a changed token: 5 in RLHF-V's paper, 4 in CHiP's code.
        rule: "diff": a changed token is one that a difference of the two sequences replaces, inserts or deletes.
            Where one answer only has more, the other has nothing to weigh there but the token that it says instead,
            the one right after the gap; that one is weighed, so that both sides of the decision are.
            "released": only replacements; common runs of fewer than 3 tokens count as changed; of sequences of 200
            or more, frequent tokens are no common ground. Over whole rows, as the released code calls it, pass input
            ids rather than labels (and multiply by the labels' mask).

    Source: Yu et al. 2023 (RLHF-V), arXiv:2312.00849, the corrected segments; code LVUGAI/CHiP@e7f5193, diff_lib.py.
    Differs: "diff" weighs insertions and deletions, to which the released rule is blind.

    >>> chosen, rejected = changed_token_weights(torch.tensor([[1, 2, 9]]), torch.tensor([[1, 2, 7, 8, 9]]))
    >>> chosen, rejected
    (tensor([[1., 5.]]), tensor([[1., 5., 5., 1.]]))
    """
    check_choice("changed_token_weights", "rule", rule, ("diff", "released"))
    for field, ids in (("chosen_ids", chosen_ids), ("rejected_ids", rejected_ids)):
        if ids.dim() != 2 or ids.dtype != torch.int64 or len(ids) != len(chosen_ids):
            raise ValueError(
                f"changed_token_weights: {field} is {ids.dtype} {tuple(ids.shape)} beside {len(chosen_ids)} rows of "
                "chosen_ids, wanted torch.int64 (batch, length), as many rows in both"
            )
    weights = [(ids != IGNORED).to(torch.get_default_dtype()) for ids in (chosen_ids, rejected_ids)]
    spans = _spans if rule == "diff" else _released_spans
    for row in range(len(chosen_ids)):
        places = [(side[row] != IGNORED).nonzero()[:, 0] for side in (chosen_ids, rejected_ids)]
        if rule == "released":
            places = [place[place > 0] for place in places]
        chosen, rejected = (
            ids[row, place].tolist() for ids, place in zip((chosen_ids, rejected_ids), places, strict=True)
        )
        for changed in spans(chosen, rejected):
            for side, place, span in zip(weights, places, changed, strict=True):
                side[row, place[span]] = gamma
    return weights[0][:, 1:], weights[1][:, 1:]


def _spans(chosen: list[int], rejected: list[int]) -> Iterator[tuple[slice, slice]]:
    """What differs: a slice of the chosen ids and one of the rejected ids each time, the lacking side's one token."""
    matcher = SequenceMatcher(None, chosen, rejected, autojunk=False)
    for what, start, stop, other_start, other_stop in matcher.get_opcodes():
        if what != "equal":
            yield slice(start, max(stop, start + 1)), slice(other_start, max(other_stop, other_start + 1))


def _released_spans(chosen: list[int], rejected: list[int]) -> Iterator[tuple[slice, slice]]:
    """The gaps between common runs of 3 or more that are not empty on either side."""
    blocks = SequenceMatcher(None, rejected, chosen).get_matching_blocks()
    runs = [(block.b, block.a, block.size) for block in blocks if block.size >= 3]
    at, other_at = 0, 0
    for start, other_start, size in [*runs, (len(chosen), len(rejected), 0)]:
        if start > at and other_start > other_at:
            yield slice(at, start), slice(other_at, other_start)
        at, other_at = start + size, other_start + size


def _paired(name: str, chosen_phrases: Tensor, rejected_phrases: Tensor) -> Tensor:
    """(batch, phrases) bool: which phrases each row has; an error where its two sides have not the same."""
    if len(chosen_phrases) != len(rejected_phrases):
        raise ValueError(
            f"{name}: policy_rejected and rejected_phrases have {len(rejected_phrases)} rows beside "
            f"{len(chosen_phrases)} of policy_chosen and chosen_phrases, wanted as many; give one row per pair"
        )
    if chosen_phrases.numel() == 0 or rejected_phrases.numel() == 0:
        raise ValueError(f"{name}: chosen_phrases or rejected_phrases is empty and holds no phrase; drop such batches")
    columns = 1 + max(int(ids.max()) for ids in (chosen_phrases, rejected_phrases))
    chosen, rejected = (
        torch.zeros(len(ids), columns, dtype=torch.bool, device=ids.device).scatter(1, ids, True)[:, 1:]
        for ids in (chosen_phrases, rejected_phrases)
    )
    if bool((chosen != rejected).any()):
        row = int((chosen != rejected).any(-1).nonzero()[0])
        ids = [(side[row].nonzero()[:, 0] + 1).tolist() for side in (chosen, rejected)]
        raise ValueError(
            f"{name}: row {row} has the phrases {ids[0]} in chosen_phrases and {ids[1]} in rejected_phrases, wanted "
            "the same on both sides; drop such rows, or allow longer answers where the end of one was cut off"
        )
    if not bool(chosen.any()):
        raise ValueError(
            f"{name}: chosen_phrases and rejected_phrases hold no phrase (all are 0), wanted at least one; drop such "
            "batches"
        )
    return chosen


def _check_ids(name: str, logps_field: str, logps: Tensor, field: str, ids: Tensor) -> None:
    """Raise where phrase ids are not int64, negative, or not one per logp."""
    if logps.dim() != 2 or logps.shape != ids.shape:
        raise ValueError(
            f"{name}: {logps_field} {tuple(logps.shape)} and {field} {tuple(ids.shape)} do not fit; wanted "
            f"(batch, length - 1) twice; ids that stand at their own tokens are {field}[:, 1:]"
        )
    if ids.dtype != torch.int64:
        raise ValueError(f"{name}: {field} is {ids.dtype}, wanted torch.int64; call .long()")
    if bool((ids < 0).any()):
        raise ValueError(
            f"{name}: {field} holds {int(ids.min())}, wanted 0 or more; give 0 to image, prompt and padding positions"
        )


def _anchored(
    divergences: Tensor | None, policy: Tensor | None, reference: Tensor | None, kl: str, alpha: float
) -> Tensor | None:
    """(anchors,): halva's divergence, summed over each anchor's tokens; None where alpha is 0 and there is none."""
    check_choice("halva", "kl", kl, ("vocabulary", "target"))
    given = [
        field
        for field, tensor in (("divergences", divergences), ("policy_anchor", policy), ("reference_anchor", reference))
        if tensor is not None
    ]
    if alpha == 0 and not given:
        return None
    wanted = ["divergences"] if kl == "vocabulary" else ["policy_anchor", "reference_anchor"]
    if given != wanted:
        raise ValueError(
            f"halva: kl={kl!r} came with {' and '.join(given) or 'no anchors'}, wanted {' and '.join(wanted)}; pass "
            "these alone, change kl, or set alpha=0"
        )
    if policy is not None and reference is not None:
        divergences = _target_divergences(policy, reference)
    assert divergences is not None
    if divergences.dim() != 2 or len(divergences) == 0:
        raise ValueError(
            f"halva: {' and '.join(given)} have shape {tuple(divergences.shape)}, wanted (anchors, length - 1), one "
            "anchor at least; pass values per token, not their sum"
        )
    return divergences.to(torch.promote_types(divergences.dtype, torch.float32)).sum(-1)


def _target_divergences(policy: Tensor, reference: Tensor) -> Tensor:
    """The two's shape: p_reference * (log p_reference - log p_policy) of each token itself; 0 where both logps are."""
    if policy.shape != reference.shape:
        raise ValueError(
            f"halva: policy_anchor {tuple(policy.shape)} and reference_anchor {tuple(reference.shape)} do not fit; "
            "wanted (anchors, length - 1) twice: token_logps of both models on the same labels"
        )
    wide = torch.promote_types(policy.dtype, torch.float32)
    reference = reference.detach().to(wide)
    return reference.exp() * (reference - policy.to(wide))
