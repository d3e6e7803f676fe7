"""Losses over the tokens of a text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # the label of a position that is not to be predicted, as in Hugging Face models


def next_token(logits: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the label at t + 1 under the logits at t.

    Returns (): the mean over all predicted tokens of the batch, or their sum. Only positions with a label are
    copied to float32, so that a long image prefix costs nothing at the width of the vocabulary.

    Args:
        logits: (batch, length, vocab).
        labels: (batch, length), int64: the token's own id, not shifted; -100 where nothing is to be predicted.
        reduction: "mean" or "sum". Micro-batches and ranks need "sum", divided by all their ``count_targets``:
            a mean of means weighs a token by the company it keeps.

    Source: LlamaForCausalLM in Hugging Face transformers.
    Differs: a batch without any label is an error under "mean", where theirs is NaN.
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"next_token: logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; wanted "
            "(batch, length, vocab) and (batch, length): label image positions with -100 too"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"next_token: labels are {labels.dtype}, wanted torch.int64; call labels.long()")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"next_token: reduction={reduction!r}, wanted 'mean' or 'sum'; choose one of these")

    predicted = labels[:, 1:] != IGNORED  # (batch, length - 1)
    targets = labels[:, 1:][predicted]  # (targets,)
    if len(targets) == 0 and reduction == "mean":
        raise ValueError(
            f"next_token: labels {tuple(labels.shape)} hold no token to predict (all are -100 after the first "
            "position), wanted at least one; drop such rows, or use reduction='sum' and divide by count_targets"
        )
    # On a GPU an id outside the vocabulary ends the process with an assertion that names neither.
    vocab = logits.shape[-1]
    if bool(((targets < 0) | (targets >= vocab)).any()):
        raise ValueError(
            f"next_token: labels run from {int(targets.min())} to {int(targets.max())}, wanted 0 to {vocab - 1} or "
            "-100; resize the model's embeddings after adding tokens, and label image placeholders with -100"
        )
    chosen = logits[:, :-1][predicted]  # (targets, vocab)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(chosen.to(wide), targets, reduction=reduction)


def count_targets(labels: Tensor) -> Tensor:
    """(), int64: how many tokens ``next_token`` predicts under these labels, (batch, length).

    The first position of a row does not count: nothing stands before it to predict it from.

    Source: none.
    Differs: nothing.
    """
    if labels.dim() != 2:
        raise ValueError(
            f"count_targets: labels have shape {tuple(labels.shape)}, wanted (batch, length); add a batch dimension"
        )
    return (labels[:, 1:] != IGNORED).sum()
