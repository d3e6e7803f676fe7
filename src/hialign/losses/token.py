"""Log-probabilities of a text's tokens, and the losses over them, from logits.

A label stands at its own token, not shifted: the logits at t are scored against the label at t + 1. What comes back
per token has therefore one place less than the labels, and holds 0 where the label is -100. `head` has the same
functions from hidden states, for a vocabulary too wide to hold all logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import check_choice

IGNORED = -100  # the label of a position that is not to be predicted, as in Hugging Face models


def next_token(logits: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the label at t + 1 under the logits at t.

    Returns (): the mean over all predicted tokens of the batch, their sum, or the mean over the samples of each
    sample's mean. Only positions with a label are copied to float32, so that a long image prefix costs nothing at
    the width of the vocabulary.

    Args:
        logits: (batch, length, vocab).
        labels: (batch, length), int64: the token's own id, not shifted; -100 where nothing is to be predicted.
        reduction: "mean", "sum" or "sample_mean". Micro-batches and ranks need "sum", divided by all their
            ``count_targets``: a mean of means weighs a token by the company it keeps. "sample_mean" does so on
            purpose, so that a long answer counts no more than a short one.

    Source: LlamaForCausalLM in Hugging Face transformers.
    Differs: a batch without any label is an error under "mean", where theirs is NaN; "sample_mean" is ours.

    >>> next_token(torch.zeros(1, 3, 4), torch.tensor([[-100, 2, 3]]))  # log 4
    tensor(1.3863)
    """
    _check_logits("next_token", logits, labels)
    predicted = labels[:, 1:] != IGNORED  # (batch, length - 1)
    targets = targets_in("next_token", labels, logits.shape[-1])  # (targets,)
    check_reduction("next_token", reduction, predicted)
    chosen = logits[:, :-1][predicted]  # (targets, vocab)
    wide = torch.promote_types(logits.dtype, torch.float32)
    if reduction == "sample_mean":
        return sample_mean(F.cross_entropy(chosen.to(wide), targets, reduction="none"), predicted)
    return F.cross_entropy(chosen.to(wide), targets, reduction=reduction)


def count_targets(labels: Tensor) -> Tensor:
    """(), int64: how many tokens ``next_token`` predicts under these labels, (batch, length).

    The first position of a row does not count: nothing stands before it to predict it from.

    Source: none.
    Differs: nothing.

    >>> count_targets(torch.tensor([[5, 6, -100, 7]]))
    tensor(2)
    """
    if labels.dim() != 2:
        raise ValueError(
            f"count_targets: labels have shape {tuple(labels.shape)}, wanted (batch, length); add a batch dimension"
        )
    return (labels[:, 1:] != IGNORED).sum()


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch, length - 1): the log-probability of the label at t + 1 under the logits at t, 0 where it is -100.

    Args:
        logits: (batch, length, vocab). Only positions with a label are copied to float32.
        labels: (batch, length), int64, not shifted; -100 where nothing is to be scored.

    Source: Rafailov et al. 2023, arXiv:2305.18290; code eric-mitchell/direct-preference-optimization, _get_batch_logps.
    Differs: per token, where theirs sums; the sum is ``sequence_logps``.

    >>> token_logps(torch.zeros(1, 3, 4), torch.tensor([[-100, 2, -100]]))
    tensor([[-1.3863,  0.0000]])
    """
    _check_logits("token_logps", logits, labels)
    predicted = labels[:, 1:] != IGNORED
    targets = targets_in("token_logps", labels, logits.shape[-1])
    scored = logits[:, :-1][predicted]
    wide = torch.promote_types(logits.dtype, torch.float32)
    logps = scored.to(wide).log_softmax(-1).gather(-1, targets[:, None])[:, 0]  # (targets,)
    return spread(logps, predicted)


def sequence_logps(
    logps: Tensor, mask_or_labels: Tensor, *, weights: Tensor | None = None, reduction: str = "sum"
) -> Tensor:
    """(batch,): the log-probability of each row's answer, as the (weighted) sum or mean over its tokens.

    Takes what ``token_logps`` or ``chunked_token_logps`` returns; per-token divergences are summed by it too.

    Args:
        logps: (batch, length - 1).
        mask_or_labels: which tokens count: (batch, length - 1) bool, or the labels themselves, (batch, length) int64.
        weights: (batch, length - 1), 0 or more, of the tokens that count (``changed_token_weights``); 1 if None.
        reduction: "sum", or "mean": divided by the row's total weight.

    Source: Rafailov et al. 2023, arXiv:2305.18290 (sum); Yu et al. 2023 (RLHF-V), arXiv:2312.00849
        (weighted mean).
    Differs: a row without any token that counts is an error, where a sum would be 0 and a mean NaN.

    >>> sequence_logps(torch.tensor([[-1.0, -3.0]]), torch.tensor([[-100, 4, 5]]), reduction="mean")
    tensor([-2.])
    """
    predicted = predicted_in("sequence_logps", mask_or_labels, tuple(logps.shape))
    check_choice("sequence_logps", "reduction", reduction, ("sum", "mean"))
    if weights is not None and weights.shape != logps.shape:
        raise ValueError(
            f"sequence_logps: weights {tuple(weights.shape)} do not fit logps {tuple(logps.shape)}; give one weight "
            "per logp, which for weights beside the labels is weights[:, 1:]"
        )
    wide = torch.promote_types(logps.dtype, torch.float32)
    weights = predicted.to(wide) if weights is None else weights.to(wide) * predicted
    totals = weights.sum(-1)  # (batch,)
    if bool((totals <= 0).any()):
        row = int((totals <= 0).nonzero()[0])
        raise ValueError(
            f"sequence_logps: row {row} of mask_or_labels has a total weight of {float(totals[row])}, wanted more "
            "than 0: no token of its answer counts; drop such rows, or shorten the prompt that pushed the answer out"
        )
    # A masked logp may be -inf or NaN (padding under a causal mask), and 0 * -inf is NaN.
    sums = (weights * logps.to(wide).masked_fill(~predicted, 0.0)).sum(-1)
    return sums if reduction == "sum" else sums / totals


def token_kl(
    policy_logits: Tensor, reference_logits: Tensor, mask_or_labels: Tensor, *, reduction: str = "none"
) -> Tensor:
    """(batch, length - 1): KL(reference || policy) over the vocabulary at each scored position, 0 elsewhere.

    The forward divergence: the policy is to cover what the reference says. The reference gets no gradient.

    Args:
        policy_logits: (batch, length, vocab).
        reference_logits: the same shape.
        mask_or_labels: (batch, length) int64 labels, or (batch, length - 1) bool. Place t is the divergence of
            the logits at t, which predict the label at t + 1; the last logits predict nothing.
        reduction: "none", or "sum": (), over all positions.

    Source: Zeng et al. 2024 (TDPO), arXiv:2404.11999, definition of the sequential KL divergence;
        Sarkar et al. 2024 (HALVA), arXiv:2405.18654, as in code pritamqu/HALVA@059b086.
    Differs: from log_softmax on both sides, where HALVA's code takes softmax().log(), which is NaN on underflow.

    >>> token_kl(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 100.0], [0.0, 0.0]]]), torch.tensor([[-100, 1]]))
    tensor([[0.6931]])
    """
    check_kl_reduction("token_kl", reduction)
    if policy_logits.dim() != 3 or policy_logits.shape != reference_logits.shape:
        raise ValueError(
            f"token_kl: policy_logits {tuple(policy_logits.shape)} and reference_logits "
            f"{tuple(reference_logits.shape)} do not fit; wanted (batch, length, vocab) twice: score the same tokens "
            "with two models of one vocabulary"
        )
    batch, length, _ = policy_logits.shape
    predicted = predicted_in("token_kl", mask_or_labels, (batch, length - 1))
    wide = torch.promote_types(policy_logits.dtype, torch.float32)
    policy = policy_logits[:, :-1][predicted].to(wide).log_softmax(-1)  # (targets, vocab)
    reference = reference_logits.detach()[:, :-1][predicted].to(wide).log_softmax(-1)
    probs = reference.exp()
    # A vocabulary may be padded by logits of -inf, and what the reference never says counts as 0, not 0 * (-inf + inf).
    divergences = (probs * (reference - policy)).masked_fill(probs == 0, 0.0).sum(-1)
    return divergences.sum() if reduction == "sum" else spread(divergences, predicted)


# What the functions of `head` do in the same way.


def targets_in(name: str, labels: Tensor, vocab: int) -> Tensor:
    """(targets,): the labels to predict, in the order of a boolean mask; an error where one is outside the vocabulary.

    On a GPU an id outside the vocabulary would end the process with an assertion that names neither.
    """
    if labels.dtype != torch.int64:
        raise ValueError(f"{name}: labels are {labels.dtype}, wanted torch.int64; call labels.long()")
    targets = labels[:, 1:][labels[:, 1:] != IGNORED]
    if bool(((targets < 0) | (targets >= vocab)).any()):
        raise ValueError(
            f"{name}: labels run from {int(targets.min())} to {int(targets.max())}, wanted 0 to {vocab - 1} or "
            "-100; resize the model's embeddings after adding tokens, and label image placeholders with -100"
        )
    return targets


def predicted_in(name: str, mask_or_labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(batch, length - 1) bool: where a token is scored, from a mask of that ``shape`` or from the labels."""
    if len(shape) == 2 and mask_or_labels.dtype == torch.bool and mask_or_labels.shape == shape:
        return mask_or_labels
    if len(shape) == 2 and mask_or_labels.dtype == torch.int64 and mask_or_labels.shape == (shape[0], shape[1] + 1):
        return mask_or_labels[:, 1:] != IGNORED
    raise ValueError(
        f"{name}: mask_or_labels is {mask_or_labels.dtype} {tuple(mask_or_labels.shape)} for logps of shape {shape}; "
        "wanted a torch.bool mask of the logps' shape, (batch, length - 1), or int64 labels, (batch, length)"
    )


def check_reduction(name: str, reduction: str, predicted: Tensor) -> None:
    """Raise where ``next_token``'s reduction is not one, or has nothing to run over."""
    check_choice(name, "reduction", reduction, ("mean", "sum", "sample_mean"))
    shape = (predicted.shape[0], predicted.shape[1] + 1)
    if reduction == "mean" and not bool(predicted.any()):
        raise ValueError(
            f"{name}: labels {shape} hold no token to predict (all are -100 after the first "
            "position), wanted at least one; drop such rows, or use reduction='sum' and divide by count_targets"
        )
    if reduction == "sample_mean" and not bool(predicted.any(-1).all()):
        row = int((~predicted.any(-1)).nonzero()[0])
        raise ValueError(
            f"{name}: row {row} of labels {shape} holds no token to predict (all are -100 after the first position), "
            "wanted at least one in every row for 'sample_mean'; drop such rows"
        )


def check_kl_reduction(name: str, reduction: str) -> None:
    """Raise where ``token_kl``'s reduction is not one."""
    if reduction not in ("none", "sum"):
        raise ValueError(f"{name}: reduction={reduction!r}, wanted 'none' or 'sum'; for a mean, divide the sum")


def sample_mean(losses: Tensor, predicted: Tensor) -> Tensor:
    """(): the mean over the rows of each row's mean; ``losses`` (targets,) in the order of the mask."""
    return (spread(losses, predicted).sum(-1) / predicted.sum(-1)).mean()


def spread(values: Tensor, predicted: Tensor) -> Tensor:
    """The mask's shape: ``values`` (targets,) at their places, 0 elsewhere."""
    return values.new_zeros(predicted.shape).masked_scatter(predicted, values)


def _check_logits(name: str, logits: Tensor, labels: Tensor) -> None:
    """Raise where logits and labels are not (batch, length, vocab) and (batch, length)."""
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"{name}: logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; wanted "
            "(batch, length, vocab) and (batch, length): label image positions with -100 too"
        )
