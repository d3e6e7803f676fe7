"""The losses of `token` from hidden states and the head's weight, without the logits of a whole batch.

The head runs over a block of positions at a time, so that (batch, length, vocab) never exists. Values and gradients
are those of the plain form. Where the head is frozen, the gradient of the hidden states is made in the forward pass,
beside the logits; where it trains, the backward pass computes the logits once more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .token import IGNORED, check_reduction, predicted_in, sample_mean, spread, targets_in

# (logits of a block, the block's rows, whether slopes are wanted) -> the rows' losses, (rows,), and their slopes
# d loss / d logits, (rows, vocab).
_Score = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]

_VOCAB_BLOCK = 4096  # rows of the head's gradient that are widened at a time


def chunked_next_token(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    reduction: str = "mean",
    chunk_size: int = 256,
) -> Tensor:
    """(): ``next_token(hidden @ weight.T + bias, labels)``, without those logits.

    Args:
        hidden: (batch, length, dim), what the head reads: after the last norm.
        weight: (vocab, dim), frozen or not.
        labels: (batch, length), int64, not shifted; -100 where nothing is to be predicted.
        bias: (vocab,).
        reduction: "mean", "sum" or "sample_mean", as in ``next_token``.
        chunk_size: positions per block; it bounds the memory at some (chunk_size, vocab), and changes no value.

    Source: the plain form; Wijmans et al. 2024, arXiv:2411.09009, for the idea of recomputing the logits.
    Differs: blocks of positions only, not of the vocabulary. No second derivative.

    >>> chunked_next_token(torch.zeros(1, 3, 2), torch.ones(4, 2), torch.tensor([[-100, 2, 3]]))  # log 4
    tensor(1.3863)
    """
    predicted, losses = _token_losses("chunked_next_token", hidden, weight, labels, bias, chunk_size)
    check_reduction("chunked_next_token", reduction, predicted)
    if reduction == "sample_mean":
        return sample_mean(losses, predicted)
    return losses.sum() if reduction == "sum" else losses.mean()


def chunked_token_logps(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, chunk_size: int = 256
) -> Tensor:
    """(batch, length - 1): ``token_logps(hidden @ weight.T + bias, labels)``, without those logits.

    ``sequence_logps`` takes it as it takes the plain form's. Arguments as in ``chunked_next_token``.

    Source: as ``token_logps`` and ``chunked_next_token``.
    Differs: as there.

    >>> chunked_token_logps(torch.zeros(1, 3, 2), torch.ones(4, 2), torch.tensor([[-100, 2, -100]]))
    tensor([[-1.3863,  0.0000]])
    """
    predicted, losses = _token_losses("chunked_token_logps", hidden, weight, labels, bias, chunk_size)
    return spread(-losses, predicted)


def chunked_token_kl(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    mask_or_labels: Tensor,
    *,
    bias: Tensor | None = None,
    reference_weight: Tensor | None = None,
    reference_bias: Tensor | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """(batch, length - 1): ``token_kl`` of the two models' logits, without either's logits.

    Args:
        hidden: (batch, length, dim), the policy's.
        weight: (vocab, dim), the policy's head, frozen or not.
        reference_hidden: (batch, length, reference_dim); gets no gradient.
        mask_or_labels: (batch, length) int64 labels, or (batch, length - 1) bool, as in ``token_kl``.
        bias: (vocab,), the policy's.
        reference_weight: (vocab, reference_dim). None: the reference's head is the policy's own (weight and bias),
            as where adapters train and the head does not. It gets no gradient.
        reference_bias: (vocab,), beside a reference_weight.
        chunk_size: positions per block.

    Source: as ``token_kl`` and ``chunked_next_token``.
    Differs: as there.

    >>> hidden = torch.tensor([[[1.0], [2.0]]])
    >>> chunked_token_kl(hidden, torch.ones(3, 1), hidden, torch.tensor([[-100, 1]]))
    tensor([[0.]])
    """
    name = "chunked_token_kl"
    if reference_weight is None:
        if reference_bias is not None:
            raise ValueError(f"{name}: reference_bias came without reference_weight; give both, or neither")
        reference_weight, reference_bias = weight, bias
    dtype = _checked_dtype(name, hidden, weight, bias, chunk_size)
    reference_dtype = _checked_dtype(name, reference_hidden, reference_weight, reference_bias, chunk_size, "reference_")
    if hidden.shape[:2] != reference_hidden.shape[:2] or len(weight) != len(reference_weight):
        raise ValueError(
            f"{name}: hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} do not fit reference_hidden "
            f"{tuple(reference_hidden.shape)} and reference_weight {tuple(reference_weight.shape)}; wanted the same "
            "batch, length and vocabulary: score the same tokens with two models of one vocabulary"
        )
    predicted = predicted_in(name, mask_or_labels, (hidden.shape[0], hidden.shape[1] - 1))
    reference = (
        reference_hidden.detach()[:, :-1][predicted].to(reference_dtype),
        reference_weight.detach().to(reference_dtype),
        None if reference_bias is None else reference_bias.detach().to(reference_dtype),
    )
    wide = torch.promote_types(dtype, torch.float32)

    def divergence(logits: Tensor, rows: slice, slopes: bool) -> tuple[Tensor, Tensor | None]:
        states, head, offset = reference
        log_reference = F.linear(states[rows], head, offset).log_softmax(-1, dtype=wide)
        log_policy = logits.log_softmax(-1, dtype=wide)
        probs = log_reference.exp()
        losses = torch.linalg.vecdot(probs, log_reference.sub_(log_policy))
        return losses, log_policy.exp_().sub_(probs) if slopes else None

    states = hidden[:, :-1][predicted]  # (targets, dim)
    return spread(_losses(states, weight, bias, divergence, chunk_size, dtype), predicted)


def _token_losses(
    name: str, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Where a label is predicted, (batch, length - 1) bool, and minus its log-probability, (targets,)."""
    dtype = _checked_dtype(name, hidden, weight, bias, chunk_size)
    if hidden.shape[:2] != labels.shape:
        raise ValueError(
            f"{name}: hidden {tuple(hidden.shape)} and labels {tuple(labels.shape)} do not fit; wanted "
            "(batch, length, dim) and (batch, length): label image positions with -100 too"
        )
    predicted = labels[:, 1:] != IGNORED
    targets = targets_in(name, labels, len(weight))[:, None]
    wide = torch.promote_types(dtype, torch.float32)

    def surprise(logits: Tensor, rows: slice, slopes: bool) -> tuple[Tensor, Tensor | None]:
        log_probs = logits.log_softmax(-1, dtype=wide)
        logps = log_probs.gather(-1, targets[rows])  # (rows, 1)
        # The slope is p - 1 at the target and p elsewhere.
        return -logps[:, 0], log_probs.exp_().scatter_(-1, targets[rows], logps.expm1()) if slopes else None

    return predicted, _losses(hidden[:, :-1][predicted], weight, bias, surprise, chunk_size, dtype)


def _losses(
    states: Tensor, weight: Tensor, bias: Tensor | None, score: _Score, chunk_size: int, dtype: torch.dtype
) -> Tensor:
    """(targets,): the score's losses of the head's logits at each of ``states``, (targets, dim)."""
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    ahead = torch.is_grad_enabled() and states.requires_grad and not trained
    losses: Tensor = _BlockedHead.apply(states, weight, bias, score, chunk_size, dtype, ahead)
    return losses


class _BlockedHead(torch.autograd.Function):
    """(targets,): losses of the head's logits, a block of positions at a time.

    ``ahead`` makes the gradient of the states in the forward pass: each loss depends on its own state only, so what
    comes from above is one factor per row. The head's gradient sums over rows, needs those factors first, and
    therefore the logits a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        score: _Score,
        chunk_size: int,
        dtype: torch.dtype,
        ahead: bool,
    ) -> Tensor:
        losses = states.new_empty(len(states), dtype=torch.promote_types(dtype, torch.float32))
        slopes_in = torch.empty_like(states, dtype=dtype) if ahead else None
        with _no_autocast(states):
            head, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for rows in _blocks(len(states), chunk_size):
                logits = F.linear(states[rows].to(dtype), head, offset)  # (rows, vocab)
                losses[rows], slopes = score(logits, rows, ahead)
                if slopes_in is not None and slopes is not None:
                    torch.mm(slopes.to(dtype), head, out=slopes_in[rows])
        ctx.settings = score, chunk_size, dtype, ahead
        ctx.save_for_backward(*(slopes_in, states[:0]) if ahead else (states, weight, bias))
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        score, chunk_size, dtype, ahead = ctx.settings
        if ahead:
            slopes_in, like = ctx.saved_tensors
            return (slopes_in * factors[:, None]).to(like.dtype), *(None,) * 6
        states, weight, bias = ctx.saved_tensors
        wide = factors.dtype
        to_states, to_weight, to_bias = (
            torch.zeros_like(tensor, dtype=kept) if needed else None
            for tensor, kept, needed in zip(
                (states, weight, bias), (dtype, wide, wide), ctx.needs_input_grad, strict=False
            )
        )
        with _no_autocast(states):
            head, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            for rows in _blocks(len(states), chunk_size):
                block = states[rows].to(dtype)
                slopes = score(F.linear(block, head, offset), rows, True)[1].mul_(factors[rows, None])
                if to_bias is not None:
                    to_bias += slopes.sum(0)
                slopes = slopes.to(dtype)
                if to_states is not None:
                    torch.mm(slopes, head, out=to_states[rows])
                if to_weight is not None:
                    _add_product(to_weight, slopes, block)
        grads = (to_states, states), (to_weight, weight), (to_bias, bias)
        return *(None if grad is None else grad.to(of.dtype) for grad, of in grads), *(None,) * 4


def _add_product(total: Tensor, slopes: Tensor, block: Tensor) -> None:
    """Add slopes.T @ block to ``total``, (vocab, dim), without a second tensor of that size."""
    if total.dtype == slopes.dtype:
        total.addmm_(slopes.T, block)
        return
    # Half products, summed in float32: a slice of the vocabulary at a time.
    for start in range(0, len(total), _VOCAB_BLOCK):
        total[start : start + _VOCAB_BLOCK] += slopes[:, start : start + _VOCAB_BLOCK].T @ block


def _blocks(rows: int, chunk_size: int) -> list[slice]:
    """Slices that cover the rows, chunk_size at a time."""
    return [slice(start, min(start + chunk_size, rows)) for start in range(0, rows, chunk_size)]


def _no_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast, where the device has one: the dtypes were chosen before."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if device in ("cpu", "cuda", "xpu") else nullcontext()


def _checked_dtype(
    name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk_size: int, side: str = ""
) -> torch.dtype:
    """The dtype that hidden @ weight.T has here, autocast included; an error where the shapes or dtypes do not fit."""
    if hidden.dim() != 3 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"{name}: {side}hidden {tuple(hidden.shape)} and {side}weight {tuple(weight.shape)} do not fit; wanted "
            "(batch, length, dim) and (vocab, dim): pass the head's weight as nn.Linear holds it"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: {side}bias has shape {tuple(bias.shape)}, wanted ({len(weight)},), the vocabulary's")
    if chunk_size < 1:
        raise ValueError(f"{name}: chunk_size={chunk_size}, wanted 1 or more; 256 is a good start")
    # What autocast makes of a product is asked of a product: the functions that tell changed between torch releases.
    dtypes = [(one @ one).dtype for one in (hidden.new_zeros(1, 1), weight.new_zeros(1, 1))]
    if dtypes[0] != dtypes[1]:
        raise ValueError(
            f"{name}: {side}hidden is {hidden.dtype} and {side}weight {weight.dtype}; cast one to the other, or run "
            "under torch.autocast"
        )
    return dtypes[0]
