"""The losses of `token` from hidden states and the head's weight, without the logits of a whole batch.

The head runs over a block of positions at a time, so that (batch, length, vocab) never exists. Values and gradients
are those of the plain form. Where the head is frozen, or the losses are summed here, the gradients are made in the
forward pass, beside the logits; else (token by token, under a head that trains) the backward pass computes the logits
once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import full_precision
from .token import IGNORED, check_kl_reduction, check_reduction, predicted_in, sample_mean, spread, targets_in

# (logits of a block, which it may overwrite; the block's rows; whether slopes are wanted) -> the rows' losses, (rows,),
# and their slopes d loss / d logits, (rows, vocab). In place, since a tensor of that size costs as much as its exp.
_Score = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]

_VOCAB_BLOCK = 4096  # rows of the head's gradient that are widened at a time


def chunked_next_token(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    reduction: str = "mean",
    chunk_size: int = 512,
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
    Differs: blocks of positions only, not of the vocabulary. A second derivative (create_graph=True) is an error.

    >>> chunked_next_token(torch.zeros(1, 3, 2), torch.ones(4, 2), torch.tensor([[-100, 2, 3]]))  # log 4
    tensor(1.3863)
    """
    name, per_row = "chunked_next_token", reduction == "sample_mean"
    predicted, losses = _token_losses(name, hidden, weight, labels, bias, chunk_size, summed=not per_row)
    check_reduction(name, reduction, predicted)
    if per_row:
        return sample_mean(losses, predicted)
    return losses if reduction == "sum" else losses / predicted.sum()


def chunked_token_logps(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, chunk_size: int = 512
) -> Tensor:
    """(batch, length - 1): ``token_logps(hidden @ weight.T + bias, labels)``, without those logits.

    ``sequence_logps`` takes it as it takes the plain form's. Arguments as in ``chunked_next_token``.

    Source: as ``token_logps`` and ``chunked_next_token``.
    Differs: as there.

    >>> chunked_token_logps(torch.zeros(1, 3, 2), torch.ones(4, 2), torch.tensor([[-100, 2, -100]]))
    tensor([[-1.3863,  0.0000]])
    """
    predicted, losses = _token_losses("chunked_token_logps", hidden, weight, labels, bias, chunk_size, summed=False)
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
    reduction: str = "none",
    chunk_size: int = 512,
) -> Tensor:
    """(batch, length - 1), or (): ``token_kl`` of the two models' logits, without either's logits.

    Args:
        hidden: (batch, length, dim), the policy's.
        weight: (vocab, dim), the policy's head, frozen or not.
        reference_hidden: (batch, length, reference_dim); gets no gradient.
        mask_or_labels: (batch, length) int64 labels, or (batch, length - 1) bool, as in ``token_kl``.
        bias: (vocab,), the policy's.
        reference_weight: (vocab, reference_dim). None: the reference's head is the policy's own (weight and bias),
            as where adapters train and the head does not. It gets no gradient.
        reference_bias: (vocab,), beside a reference_weight.
        reduction: "none" or "sum", as in ``token_kl``; with a head that trains, "sum" is by a third cheaper.
        chunk_size: positions per block.

    Source: as ``token_kl`` and ``chunked_next_token``.
    Differs: as there.

    >>> hidden = torch.tensor([[[1.0], [2.0]]])
    >>> chunked_token_kl(hidden, torch.ones(3, 1), hidden, torch.tensor([[-100, 1]]))
    tensor([[0.]])
    """
    name = "chunked_token_kl"
    check_kl_reduction(name, reduction)
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
        others = F.linear(states[rows], head, offset).to(wide)
        logits, others = _below_max(logits.to(wide)), _below_max(others)
        differences = others - logits
        sums, other_sums = _exp_sums(logits), _exp_sums(others)  # both now hold exp
        probs = others.div_(other_sums)
        terms = differences.mul_(probs).masked_fill_(probs == 0, 0.0)  # as in token_kl
        losses = terms.sum(-1) + (sums.log() - other_sums.log())[:, 0]
        return losses, logits.div_(sums).sub_(probs) if slopes else None

    states, summed = hidden[:, :-1][predicted], reduction == "sum"
    losses = _losses(states, weight, bias, divergence, chunk_size, dtype, summed=summed)
    return losses if summed else spread(losses, predicted)


def _token_losses(
    name: str, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, chunk_size: int, *, summed: bool
) -> tuple[Tensor, Tensor]:
    """Where a label is predicted, (batch, length - 1) bool, and minus its log-probability, (targets,) or their sum."""
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
        logits = _below_max(logits.to(wide))
        scores = logits.gather(-1, targets[rows])  # (rows, 1)
        sums = _exp_sums(logits)  # logits now hold exp
        logps = scores - sums.log()
        # The slope is p - 1 at the target and p elsewhere.
        return -logps[:, 0], logits.div_(sums).scatter_(-1, targets[rows], logps.expm1()) if slopes else None

    states = hidden[:, :-1][predicted]  # (targets, dim)
    return predicted, _losses(states, weight, bias, surprise, chunk_size, dtype, summed=summed)


def _losses(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    score: _Score,
    chunk_size: int,
    dtype: torch.dtype,
    *,
    summed: bool,
) -> Tensor:
    """(targets,): the score's losses of the head's logits at each of ``states``, (targets, dim); () where summed."""
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    ahead = torch.is_grad_enabled() and (summed or not trained)
    losses: Tensor = _BlockedHead.apply(states, weight, bias, score, chunk_size, dtype, ahead, summed)
    return losses


class _BlockedHead(torch.autograd.Function):
    """(targets,): losses of the head's logits, a block of positions at a time; or (), their sum.

    ``ahead`` makes the gradients in the forward pass, while the logits are there. What comes from above is then one
    factor, or one per row, which suits the states: each loss depends on its own state only. The gradient of a head
    that trains sums over the rows, so that it needs their factors first, and therefore the logits a second time.
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
        summed: bool,
    ) -> Tensor:
        losses = states.new_empty(len(states), dtype=torch.promote_types(dtype, torch.float32))
        needed = ctx.needs_input_grad if ahead else (False, False, False)
        made = _run(states, weight, bias, score, chunk_size, dtype, needed, losses=losses)
        ctx.settings = score, chunk_size, dtype, ahead
        ctx.made = made if ahead else None
        ctx.save_for_backward(states, weight, bias)
        return losses.sum() if summed else losses

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # What comes back would count as a constant, and a second derivative would be wrong without a word.
            raise ValueError(
                "the chunked losses have no second derivative, and create_graph=True asks for one; use next_token, "
                "token_logps or token_kl on logits"
            )
        states, weight, bias = ctx.saved_tensors
        score, chunk_size, dtype, ahead = ctx.settings
        run = partial(_run, states, weight, bias, score, chunk_size, dtype, ctx.needs_input_grad)
        if ahead:
            # Scaled in place, so that a head's gradient exists once; a second backward pass makes its own.
            made, ctx.made = run() if ctx.made is None else ctx.made, None
            by = (factors[..., None], factors, factors)
            made = tuple(None if grad is None else _scaled(grad, factor) for grad, factor in zip(made, by, strict=True))
        else:
            made = run(factors=factors[:, None])
        of = (states, weight, bias)
        return *(None if grad is None else grad.to(to.dtype) for grad, to in zip(made, of, strict=True)), *(None,) * 5


def _run(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    score: _Score,
    chunk_size: int,
    dtype: torch.dtype,
    needed: tuple[bool, ...],
    *,
    losses: Tensor | None = None,
    factors: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The gradients of states, weight and bias that are needed, each row's times its factor; fills ``losses``."""
    wide = torch.promote_types(dtype, torch.float32)
    grads = tuple(
        torch.zeros_like(tensor, dtype=kept) if wanted and tensor is not None else None
        for tensor, kept, wanted in zip((states, weight, bias), (dtype, wide, wide), needed, strict=False)
    )
    slopes_wanted = any(grad is not None for grad in grads)
    with full_precision(states):  # the dtypes were chosen before
        head, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        logits = head.new_empty(min(chunk_size, len(states)), len(head))
        for rows in _blocks(len(states), chunk_size):
            block = states[rows].to(dtype)
            values, slopes = score(_linear(block, head, offset, out=logits[: len(block)]), rows, slopes_wanted)
            if losses is not None:
                losses[rows] = values
            if slopes is not None:
                _add_gradients(grads, slopes if factors is None else slopes.mul_(factors[rows]), block, head, rows)
    return grads


def _add_gradients(grads: tuple[Tensor | None, ...], slopes: Tensor, block: Tensor, head: Tensor, rows: slice) -> None:
    """Add what the slopes d loss / d logits of one block, (rows, vocab), give to each gradient."""
    to_states, to_weight, to_bias = grads
    if to_bias is not None:
        to_bias += slopes.sum(0)
    slopes = slopes.to(block.dtype)
    if to_states is not None:
        torch.mm(slopes, head, out=to_states[rows])
    if to_weight is not None:
        _add_product(to_weight, slopes, block)


def _scaled(grad: Tensor, factor: Tensor) -> Tensor:
    """grad * factor, in place unless that would round to half."""
    return grad.mul_(factor) if grad.dtype == factor.dtype else grad * factor


def _linear(block: Tensor, head: Tensor, offset: Tensor | None, *, out: Tensor) -> Tensor:
    """``out``, (rows, vocab): block @ head.T + offset."""
    return torch.mm(block, head.T, out=out) if offset is None else torch.addmm(offset, block, head.T, out=out)


def _below_max(logits: Tensor) -> Tensor:
    """The logits less their row's largest, in place."""
    return logits.sub_(logits.amax(-1, keepdim=True))


def _exp_sums(logits: Tensor) -> Tensor:
    """(rows, 1): the sums of exp(logits), which the logits become."""
    return logits.exp_().sum(-1, keepdim=True)


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
        raise ValueError(f"{name}: chunk_size={chunk_size}, wanted 1 or more; 512 is a good start")
    # What autocast makes of a product is asked of a product: the functions that tell changed between torch releases.
    dtypes = [(one @ one).dtype for one in (hidden.new_zeros(1, 1), weight.new_zeros(1, 1))]
    if dtypes[0] != dtypes[1]:
        raise ValueError(
            f"{name}: {side}hidden is {hidden.dtype} and {side}weight {weight.dtype}; cast one to the other, or run "
            "under torch.autocast"
        )
    return dtypes[0]
