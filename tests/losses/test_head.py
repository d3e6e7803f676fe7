"""The losses from hidden states and the head against the same losses of logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hialign.losses import (
    chunked_next_token,
    chunked_token_kl,
    chunked_token_logps,
    next_token,
    token_kl,
    token_logps,
)

BATCH, LENGTH, DIM, VOCAB = 3, 6, 5, 11


@dataclass
class Case:
    """A policy's and a reference's hidden states and heads, and labels."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    reference_hidden: Tensor
    reference_weight: Tensor
    labels: Tensor

    @property
    def logits(self) -> Tensor:
        return F.linear(self.hidden, self.weight, self.bias)

    @property
    def reference_logits(self) -> Tensor:
        return F.linear(self.reference_hidden, self.reference_weight)

    @property
    def trained(self) -> list[Tensor]:
        candidates = (self.hidden, self.weight, self.bias)
        return [tensor for tensor in candidates if tensor is not None and tensor.requires_grad]


def case(
    *,
    bias: bool = False,
    trains: str = "hidden",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    scale: float = 1.0,
    length: int = LENGTH,
    vocab: int = VOCAB,
) -> Case:
    """``trains`` names what asks for a gradient: hidden, weight, bias, in any combination."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    labels = torch.randint(vocab, (BATCH, length), generator=generator)
    labels[0, :3] = -100
    labels[1, 4] = -100
    made = Case(
        hidden=normal(BATCH, length, DIM).requires_grad_("hidden" in trains),
        weight=normal(vocab, DIM).requires_grad_("weight" in trains),
        bias=normal(vocab).requires_grad_("bias" in trains) if bias else None,
        reference_hidden=normal(BATCH, length, DIM + 1),
        reference_weight=normal(vocab, DIM + 1),
        labels=labels,
    )
    return made


def plain_logps(case: Case) -> Tensor:
    return token_logps(case.logits, case.labels)


def plain_kl(case: Case) -> Tensor:
    return token_kl(case.logits, case.reference_logits, case.labels)


def chunked_logps(case: Case, chunk_size: int) -> Tensor:
    return chunked_token_logps(case.hidden, case.weight, case.labels, bias=case.bias, chunk_size=chunk_size)


def chunked_kl(case: Case, chunk_size: int, **options: Any) -> Tensor:
    return chunked_token_kl(
        case.hidden,
        case.weight,
        case.reference_hidden,
        case.labels,
        bias=case.bias,
        reference_weight=case.reference_weight,
        chunk_size=chunk_size,
        **options,
    )


def chunked_loss(case: Case, chunk_size: int, reduction: str = "mean") -> Tensor:
    return chunked_next_token(
        case.hidden, case.weight, case.labels, bias=case.bias, reduction=reduction, chunk_size=chunk_size
    )


FORMS: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
    (plain_logps, chunked_logps),
    (plain_kl, chunked_kl),
    (lambda case: next_token(case.logits, case.labels), chunked_loss),
    (
        lambda case: next_token(case.logits, case.labels, reduction="sum"),
        lambda case, chunk_size: chunked_loss(case, chunk_size, "sum"),
    ),
    (
        lambda case: next_token(case.logits, case.labels, reduction="sample_mean"),
        lambda case, chunk_size: chunked_loss(case, chunk_size, "sample_mean"),
    ),
    (
        lambda case: token_kl(case.logits, case.reference_logits, case.labels, reduction="sum"),
        lambda case, chunk_size: chunked_kl(case, chunk_size, reduction="sum"),
    ),
]
every_form = pytest.mark.parametrize(
    ("plain", "chunked"), FORMS, ids=["logps", "kl", "mean", "sum", "sample_mean", "kl-sum"]
)
CLOSE = {"rtol": 0, "atol": 1e-10}


def assert_equal_forms(made: Case, plain: Callable[..., Tensor], chunked: Callable[..., Tensor], size: int) -> None:
    """Values and, under a random gradient from above, all gradients."""
    expected, got = plain(made), chunked(made, size)
    torch.testing.assert_close(got, expected, **CLOSE)
    above = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((got * above).sum(), made.trained),
        torch.autograd.grad((expected * above).sum(), made.trained),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@every_form
@pytest.mark.parametrize("size", [1, 2, 5, 11, 100])
@pytest.mark.parametrize(
    ("bias", "trains"),
    [
        (False, "hidden"),
        (False, "hidden weight"),
        (False, "weight"),
        (True, "hidden"),
        (True, "hidden weight bias"),
        (True, "hidden bias"),
        (True, "bias"),
        (True, "hidden weight"),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_form(
    plain: Callable[..., Tensor], chunked: Callable[..., Tensor], size: int, bias: bool, trains: str
):
    assert_equal_forms(case(bias=bias, trains=trains), plain, chunked, size)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 20), seed=st.integers(0, 1000), form=st.integers(0, 5), frozen=st.booleans())
def test_any_chunk_size_gives_the_plain_form(size: int, seed: int, form: int, frozen: bool):
    made = case(seed=seed, trains="hidden" if frozen else "hidden weight")
    assert_equal_forms(made, *FORMS[form], size)


def test_logps_by_hand():
    """Hidden (1, 0) under the rows (log 3, 5) and (0, 5): logits log 3 and 0, so p = 3/4 and 1/4."""
    hidden, weight = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]]), torch.tensor([[math.log(3), 5.0], [0.0, 5.0]])
    logps = chunked_token_logps(hidden, weight, torch.tensor([[-100, 1]]))
    assert logps.tolist() == [[pytest.approx(math.log(1 / 4))]]
    # A bias of log 3 for the second makes both equally likely.
    logps = chunked_token_logps(hidden, weight, torch.tensor([[-100, 1]]), bias=torch.tensor([0.0, math.log(3)]))
    assert logps.tolist() == [[pytest.approx(math.log(1 / 2))]]


@pytest.mark.parametrize("trains", ["hidden", "hidden weight"])
@every_form
def test_gradients_are_those_of_finite_differences(
    plain: Callable[..., Tensor], chunked: Callable[..., Tensor], trains: str
):
    made = case(trains=trains)

    def of(*_: Tensor) -> Tensor:
        return chunked(made, 4)

    assert torch.autograd.gradcheck(of, made.trained)


@pytest.mark.parametrize("trains", ["hidden", "hidden weight"])
@every_form
def test_a_second_backward_pass_gives_the_same_gradients(
    plain: Callable[..., Tensor], chunked: Callable[..., Tensor], trains: str
):
    made = case(trains=trains)
    total = chunked(made, 4).sum()
    first = torch.autograd.grad(total, made.trained, retain_graph=True)
    second = torch.autograd.grad(total, made.trained, retain_graph=True)
    assert all(torch.equal(again, once) for again, once in zip(second, first, strict=True))
    for twice, once in zip(torch.autograd.grad(2 * total, made.trained), first, strict=True):
        torch.testing.assert_close(twice, 2 * once)


@every_form
def test_a_second_derivative_is_refused(plain: Callable[..., Tensor], chunked: Callable[..., Tensor]):
    made = case()
    with pytest.raises(ValueError, match="no second derivative"):
        torch.autograd.grad(chunked(made, 4).sum(), made.hidden, create_graph=True)


def test_the_reference_of_a_divergence_gets_no_gradient():
    made = case(trains="hidden weight")
    made.reference_hidden.requires_grad_()
    made.reference_weight.requires_grad_()
    chunked_kl(made, 4).sum().backward()
    assert made.reference_hidden.grad is None
    assert made.reference_weight.grad is None
    assert made.weight.grad is not None


@pytest.mark.parametrize("trains", ["hidden", "hidden weight bias"])
def test_without_a_head_of_its_own_the_reference_reads_the_policys(trains: str):
    made = case(bias=True, trains=trains)
    made.reference_hidden = case(seed=1).hidden.detach()
    divergences = chunked_token_kl(made.hidden, made.weight, made.reference_hidden, made.labels, bias=made.bias)
    assert made.bias is not None
    reference = F.linear(made.reference_hidden, made.weight.detach(), made.bias.detach())
    expected = token_kl(made.logits, reference, made.labels)
    torch.testing.assert_close(divergences, expected, **CLOSE)
    for ours, theirs in zip(
        torch.autograd.grad(divergences.sum(), made.trained),
        torch.autograd.grad(expected.sum(), made.trained),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    same = chunked_token_kl(made.hidden, made.weight, made.hidden, made.labels, bias=made.bias)
    torch.testing.assert_close(same, torch.zeros_like(same), **CLOSE)


@every_form
@pytest.mark.parametrize("trains", ["hidden", "hidden weight bias"])
def test_a_vocabulary_padded_by_biases_of_minus_infinity_is_the_vocabulary(
    plain: Callable[..., Tensor], chunked: Callable[..., Tensor], trains: str
):
    """A divergence then has terms 0 * (-inf + inf), which are 0."""
    made, padded = case(bias=True, trains=trains), case(bias=True, trains=trains, vocab=VOCAB + 3)
    assert made.bias is not None
    assert padded.bias is not None
    with torch.no_grad():
        padded.hidden.copy_(made.hidden)
        padded.weight[:VOCAB].copy_(made.weight)
        padded.bias.fill_(-torch.inf)[:VOCAB].copy_(made.bias)
        padded.labels = made.labels
        # The reference has no bias: a state that is 1 everywhere, times minus infinity.
        made.reference_hidden[..., -1] = padded.reference_hidden[..., -1] = 1
        padded.reference_hidden.copy_(made.reference_hidden)
        padded.reference_weight[:VOCAB].copy_(made.reference_weight)
        padded.reference_weight[VOCAB:, -1] = -torch.inf
    for form in (plain, lambda of: chunked(of, 4)):
        expected, got = form(made), form(padded)
        torch.testing.assert_close(got, expected, **CLOSE)
        for wide, narrow in zip(
            torch.autograd.grad(got.sum(), padded.trained),
            torch.autograd.grad(expected.sum(), made.trained),
            strict=True,
        ):
            torch.testing.assert_close(wide[: len(narrow)], narrow, **CLOSE)


def test_a_mask_and_the_labels_that_it_comes_from_are_one():
    made = case()
    masked = chunked_token_kl(
        made.hidden,
        made.weight,
        made.reference_hidden,
        made.labels[:, 1:] != -100,
        reference_weight=made.reference_weight,
    )
    assert torch.equal(masked, chunked_kl(made, 512))


@every_form
@pytest.mark.parametrize("trains", ["hidden", "hidden weight bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_finite_for_large_logits(
    plain: Callable[..., Tensor], chunked: Callable[..., Tensor], trains: str, dtype: torch.dtype
):
    made = case(bias=True, trains=trains, dtype=dtype, scale=40.0)
    assert made.logits.abs().max() > 5e3
    values = chunked(made, 4)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    for gradient, of in zip(torch.autograd.grad(values.sum(), made.trained), made.trained, strict=True):
        assert gradient.dtype == of.dtype
        assert gradient.isfinite().all()


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_tensors_give_the_plain_forms_values_and_near_it_gradients(
    plain: Callable[..., Tensor], chunked: Callable[..., Tensor], dtype: torch.dtype
):
    made = case(trains="hidden weight", dtype=dtype)
    expected, got = plain(made), chunked(made, 4)
    torch.testing.assert_close(got, expected)
    for ours, theirs in zip(
        torch.autograd.grad(got.sum(), made.trained), torch.autograd.grad(expected.sum(), made.trained), strict=True
    ):
        # Each rounds to half in other places: a few units of the last place of the largest.
        near = 4 * torch.finfo(dtype).eps * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=near)


@every_form
@pytest.mark.parametrize("trains", ["hidden", "hidden weight bias"])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_runs_the_head_in_half_and_the_loss_in_float32(
    plain: Callable[..., Tensor], chunked: Callable[..., Tensor], trains: str, backward_inside: bool
):
    made = case(bias=True, trains=trains, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.logits.dtype == torch.bfloat16
        expected, got = plain(made).sum(), chunked(made, 4).sum()
        if backward_inside:
            gradients = torch.autograd.grad(got, made.trained)
    if not backward_inside:
        gradients = torch.autograd.grad(got, made.trained)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, made.trained), strict=True):
        assert ours.dtype == torch.float32
        near = 4 * torch.finfo(torch.bfloat16).eps * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=near)


def test_the_heads_gradient_under_half_is_summed_in_float32():
    """1 + 300 * 2^-9 in bfloat16 stays 1 if each 2^-9 is added by itself."""
    rows = 301
    hidden = torch.full((1, rows + 1, 1), 2.0**-8, dtype=torch.bfloat16)
    hidden[0, 0] = 2.0
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.ones(1, rows + 1, dtype=torch.int64)
    chunked_token_logps(hidden, weight, labels, chunk_size=1).sum().backward()
    assert weight.grad is not None
    expected = (2 + (rows - 1) * 2.0**-8) / 2  # p is 1/2 everywhere
    assert weight.grad[1].item() == pytest.approx(expected, rel=2.0**-8)


class Shapes(TorchDispatchMode):
    """Notes the size of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.sizes += [x.numel() for x in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(x, Tensor)]
        return out


@every_form
@pytest.mark.parametrize("trains", ["hidden", "hidden weight"])
def test_no_tensor_has_more_rows_of_the_vocabulary_than_a_chunk(
    plain: Callable[..., Tensor], chunked: Callable[..., Tensor], trains: str
):
    size = DIM + 1  # a chunk's logits are then as large as the reference's head, which is there anyway
    made = case(trains=trains, dtype=torch.float32, length=40, vocab=1000)
    sizes = {}
    for name, run in (("plain", lambda: plain(made)), ("chunked", lambda: chunked(made, size))):
        with Shapes() as noted:
            run().sum().backward()
        sizes[name] = max(noted.sizes)
    targets = int((made.labels[:, 1:] != -100).sum())
    assert targets > 100
    assert sizes["chunked"] == size * 1000
    assert sizes["plain"] >= targets * 1000


@pytest.mark.parametrize(("trains", "products"), [("hidden", 2), ("hidden weight", 4)])
def test_a_frozen_head_runs_twice_per_chunk_and_a_trained_one_four_times(trains: str, products: int):
    """Logits and their way back, against these, the logits once more and the head's own gradient."""
    made = case(trains=trains, dtype=torch.float32)
    assert count_products(lambda: chunked_logps(made, 100).sum().backward()) == products


def test_a_sum_under_a_trained_head_needs_no_logits_twice():
    made = case(trains="hidden weight", dtype=torch.float32)
    assert count_products(lambda: chunked_loss(made, 100).backward()) == 3
    assert count_products(lambda: chunked_kl(made, 100, reduction="sum").backward()) == 4  # one more: the reference


def test_without_a_gradient_the_head_runs_once():
    made = case(dtype=torch.float32, trains="hidden weight")
    with torch.no_grad():
        assert count_products(lambda: chunked_logps(made, 100)) == 1
        assert count_products(lambda: chunked_loss(made, 100)) == 1


def count_products(run: Callable[[], object]) -> int:
    """How many matrix products of the size of the head ran (the two that ask for the dtype are of one element)."""
    counted = 0

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal counted
            named = func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
            counted += named and any(isinstance(x, Tensor) and x.numel() > 1 for x in args)
            return func(*args, **(kwargs or {}))

    with Products():
        run()
    return counted


def test_places_without_a_label_get_no_gradient():
    made = case()
    chunked_logps(made, 4).sum().backward()
    reached = torch.zeros_like(made.labels, dtype=torch.bool)
    reached[:, :-1] = made.labels[:, 1:] != -100
    assert made.hidden.grad is not None
    assert torch.equal(made.hidden.grad.any(-1), reached)


@pytest.mark.parametrize("trains", ["hidden", "hidden weight"])
def test_a_batch_without_targets_sums_to_zero_with_zero_gradient(trains: str):
    made = case(trains=trains)
    made.labels = torch.full_like(made.labels, -100)
    for total in (chunked_loss(made, 4, "sum"), chunked_logps(made, 4).sum(), chunked_kl(made, 4).sum()):
        assert total.item() == 0.0
        assert not any(gradient.any() for gradient in torch.autograd.grad(total, made.trained))
    with pytest.raises(ValueError, match="hold no token to predict"):
        chunked_loss(made, 4)
    made.labels[1:, 2] = 1
    with pytest.raises(ValueError, match="row 0 of labels"):
        chunked_loss(made, 4, "sample_mean")


@pytest.mark.parametrize("loss", [chunked_token_logps, chunked_next_token])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 5)}, r"hidden \(2, 5\) and weight \(7, 3\)"),
        ({"weight": torch.zeros(3, 7)}, r"hidden \(2, 5, 3\) and weight \(3, 7\)"),
        ({"weight": torch.zeros(7, 3, dtype=torch.bfloat16)}, "hidden is torch.float32 and weight torch.bfloat16"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\), wanted \(7,\)"),
        ({"labels": torch.ones(2, 4, dtype=torch.int64)}, r"hidden \(2, 5, 3\) and labels \(2, 4\)"),
        ({"labels": torch.ones(2, 5)}, "labels are torch.float32"),
        ({"labels": torch.full((2, 5), 7)}, "labels run from 7 to 7, wanted 0 to 6"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_what_does_not_fit_is_named(loss: Callable[..., Tensor], change: dict[str, Any], message: str):
    values = {
        "hidden": torch.zeros(2, 5, 3),
        "weight": torch.zeros(7, 3),
        "labels": torch.ones(2, 5, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=f"{loss.__name__}: {message}"):
        loss(**{**values, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_hidden": torch.zeros(2, 4, 3)}, r"reference_hidden \(2, 4, 3\)"),
        ({"reference_hidden": torch.zeros(2, 5, 4)}, r"reference_hidden \(2, 5, 4\) and reference_weight \(7, 3\)"),
        ({"reference_weight": torch.zeros(8, 3)}, r"reference_weight \(8, 3\)"),
        ({"reference_bias": torch.zeros(7)}, "reference_bias came without reference_weight"),
        ({"mask_or_labels": torch.ones(2, 5, dtype=torch.bool)}, r"mask_or_labels is torch.bool \(2, 5\)"),
        ({"reduction": "mean"}, "reduction='mean'"),
        ({"reference_hidden": torch.zeros(2, 5, 3).bfloat16()}, "reference_hidden is torch.bfloat16"),
    ],
)
def test_what_does_not_fit_a_divergence_is_named(change: dict[str, Any], message: str):
    values = {
        "hidden": torch.zeros(2, 5, 3),
        "weight": torch.zeros(7, 3),
        "reference_hidden": torch.zeros(2, 5, 3),
        "mask_or_labels": torch.ones(2, 5, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        chunked_token_kl(**{**values, **change})
