"""halva, phrase_sums and changed_token_weights against numbers by hand, slow loops and known limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hialign.losses import changed_token_weights, halva, phrase_sums


def random_pair(*, batch: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    """Logps of 8 and 9 tokens, and ids of one to three phrases per row, the same on both sides."""
    generator = torch.Generator().manual_seed(seed)
    logps = [-torch.rand(batch, length, generator=generator, dtype=torch.float64) for length in (8, 9)]
    ids = [torch.zeros(batch, length, dtype=torch.int64) for length in (8, 9)]
    for row in range(batch):
        for phrase in range(1, 2 + int(torch.randint(3, (), generator=generator))):
            for side in ids:
                size = 1 + int(torch.randint(2, (), generator=generator))
                start = 2 * phrase
                side[row, start : start + size] = phrase
    return *logps, *ids


def slow_cells(chosen: Tensor, rejected: Tensor, chosen_ids: Tensor, rejected_ids: Tensor) -> list[list[float]]:
    rows = []
    for row in range(len(chosen)):
        phrases = sorted(set(chosen_ids[row].tolist()) - {0})
        sums = [
            [sum(float(logps[row, t]) for t in range(logps.shape[1]) if ids[row, t] == phrase) for phrase in phrases]
            for logps, ids in ((chosen, chosen_ids), (rejected, rejected_ids))
        ]
        rows.append([-math.log(math.exp(c) / (math.exp(c) + math.exp(r))) for c, r in zip(*sums, strict=True)])
    return rows


def test_phrase_sums_by_hand():
    """Phrase 1 is the tokens of -1 and -2; the token of -4 is in none; phrase 2 is missing, phrase 3 is -8."""
    logps = torch.tensor([[-1.0, -2.0, -4.0, -8.0]])
    assert phrase_sums(logps, torch.tensor([[1, 1, 0, 3]])).tolist() == [[-3.0, 0.0, -8.0]]


def test_phrase_sums_need_not_be_of_neighbours_and_ignore_the_rest_even_where_it_is_infinite():
    logps = torch.tensor([[-1.0, -torch.inf, -4.0]], requires_grad=True)
    sums = phrase_sums(logps, torch.tensor([[1, 0, 1]]))
    sums.sum().backward()
    assert sums.tolist() == [[-5.0]]
    assert logps.grad is not None
    assert logps.grad.tolist() == [[1.0, 0.0, 1.0]]


def test_no_phrase_has_no_sum():
    assert phrase_sums(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 0)


def test_halva_by_hand():
    """Phrase 1: -1 against -3; phrase 2: -2 against -1. log(1 + e^-2) = 0.126928, log(1 + e) = 1.313262; half each.

    The anchors' divergences sum to 3 and 1, a mean of 2; times alpha 0.4 that is 0.8.
    """
    chosen, rejected = torch.tensor([[-1.0, -9.0, -2.0]]), torch.tensor([[-3.0, -1.0]])
    ids = torch.tensor([[1, 0, 2]]), torch.tensor([[1, 2]])
    assert halva(chosen, rejected, *ids, alpha=0.0).item() == pytest.approx(0.720095, abs=1e-6)
    divergences = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    assert halva(chosen, rejected, *ids, divergences=divergences).item() == pytest.approx(1.520095, abs=1e-6)


def test_the_target_divergence_by_hand():
    """A token of p 1/2 under the reference and 1/4 under the policy: 1/2 * log 2; a masked one, 0 and 0: nothing."""
    one = torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64)
    anchors = {"policy_anchor": torch.tensor([[0.25, 1.0]]).log(), "reference_anchor": torch.tensor([[0.5, 1.0]]).log()}
    loss = halva(*one, **anchors, kl="target", alpha=1.0)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * math.log(2))


@pytest.mark.parametrize("seed", range(4))
def test_halva_equals_a_slow_loop(seed: int):
    pair = random_pair(seed=seed)
    rows = slow_cells(*pair)
    cells = [cell for row in rows for cell in row]
    assert halva(*pair, alpha=0.0).item() == pytest.approx(sum(cells) / len(cells), abs=1e-12)
    assert halva(*pair, alpha=0.0, reduction="sum").item() == pytest.approx(sum(cells), abs=1e-12)
    width = max(len(row) for row in rows)
    missing = 3 * width - len(cells)
    padded = (sum(cells) + missing * math.log(2)) / (3 * width)
    assert halva(*pair, alpha=0.0, cells="padded").item() == pytest.approx(padded, abs=1e-12)


def test_halva_of_one_phrase_is_softplus_of_its_difference():
    chosen, rejected, *_ = random_pair(batch=1)
    ids = torch.ones_like(chosen, dtype=torch.int64), torch.ones_like(rejected, dtype=torch.int64)
    expected = F.softplus(rejected.sum() - chosen.sum())
    for cells in ("real", "padded"):
        torch.testing.assert_close(halva(chosen, rejected, *ids, alpha=0.0, cells=cells), expected)


def test_real_and_padded_cells_agree_where_every_row_has_every_phrase():
    chosen, rejected, chosen_ids, rejected_ids = random_pair()
    ids = chosen_ids.clamp(max=1), rejected_ids.clamp(max=1)
    real, padded = (halva(chosen, rejected, *ids, alpha=0.0, cells=cells) for cells in ("real", "padded"))
    torch.testing.assert_close(real, padded)


def test_padded_cells_thin_out_the_gradient_of_real_ones():
    chosen, rejected, chosen_ids, rejected_ids = random_pair(batch=2)
    chosen_ids[1], rejected_ids[1] = chosen_ids[1].clamp(max=1), rejected_ids[1].clamp(max=1)
    chosen_ids[0, 0], rejected_ids[0, 0] = 2, 2
    gradients = []
    for cells in ("real", "padded"):
        moved = chosen.clone().requires_grad_()
        halva(moved, rejected, chosen_ids, rejected_ids, alpha=0.0, cells=cells).backward()
        gradients.append(moved.grad)
    real = len(set(chosen_ids[0].tolist()) - {0}) + 1
    width = int(chosen_ids.max())
    assert real < 2 * width
    torch.testing.assert_close(gradients[1], gradients[0] * real / (2 * width))


def test_a_phrase_that_no_row_has_is_no_cell():
    chosen, rejected = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -3.0]])
    ids, gap = torch.tensor([[1, 2]]), torch.tensor([[1, 3]])
    for cells in ("real", "padded"):
        expected = halva(chosen, rejected, ids, ids, alpha=0.0, cells=cells)
        torch.testing.assert_close(halva(chosen, rejected, gap, gap, alpha=0.0, cells=cells), expected)


def test_halva_leaves_alone_what_is_in_no_phrase():
    chosen, rejected, *ids = random_pair()
    chosen = chosen.requires_grad_()
    halva(chosen, rejected, *ids, alpha=0.0).backward()
    assert chosen.grad is not None
    assert torch.equal(chosen.grad != 0, ids[0] > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen_phrases": torch.tensor([[1, 3, 0]])}, r"row 0 has the phrases \[1, 3\] .* and \[1, 2\]"),
        ({"chosen_phrases": torch.tensor([[1, 1, 0]])}, r"row 0 has the phrases \[1\]"),
        ({"chosen_phrases": torch.zeros(1, 3, dtype=torch.int64)}, r"phrases \[\]"),
        ({"chosen_phrases": torch.tensor([[1, 2]])}, r"policy_chosen \(1, 3\) and chosen_phrases \(1, 2\).*\[:, 1:\]"),
        ({"chosen_phrases": torch.tensor([[1.0, 2.0, 0.0]])}, "chosen_phrases is torch.float32"),
        ({"rejected_phrases": torch.tensor([[1, -100, 2]])}, "rejected_phrases holds -100"),
        ({"divergences": None}, "kl='vocabulary' came with no anchors"),
        ({"policy_anchor": torch.zeros(1, 2)}, "came with divergences and policy_anchor, wanted divergences;"),
        ({"kl": "target"}, "kl='target' came with divergences, wanted policy_anchor and reference_anchor"),
        ({"divergences": torch.tensor(1.0)}, r"divergences have shape \(\)"),
        ({"divergences": torch.zeros(0, 4)}, r"divergences have shape \(0, 4\)"),
        ({"kl": "reverse"}, "kl='reverse'"),
        ({"cells": "all"}, "cells='all'"),
    ],
)
def test_what_does_not_fit_halva_is_named(change: dict[str, Any], message: str):
    values = {
        "policy_chosen": torch.zeros(1, 3),
        "policy_rejected": torch.zeros(1, 3),
        "chosen_phrases": torch.tensor([[1, 2, 0]]),
        "rejected_phrases": torch.tensor([[1, 0, 2]]),
        "divergences": torch.zeros(1, 4),
    }
    with pytest.raises(ValueError, match=message):
        halva(**{**values, **change})


def test_a_batch_without_any_phrase_is_an_error():
    none = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="hold no phrase"):
        halva(torch.zeros(2, 3), torch.zeros(2, 3), none, none, alpha=0.0)


def changed(chosen: list[int], rejected: list[int], *, rule: str = "diff") -> tuple[list[int], list[int]]:
    """Which of the ids weigh more, by their place among the given ids."""
    sides = [torch.tensor([[0, *ids]]) for ids in (chosen, rejected)]
    weights = changed_token_weights(*sides, gamma=3.0, rule=rule)
    assert all(set(side.unique().tolist()) <= {1.0, 3.0} for side in weights)
    first, second = (side[0].eq(3).nonzero()[:, 0].tolist() for side in weights)
    return first, second


def test_a_replaced_token_weighs_more_on_both_sides():
    for rule in ("diff", "released"):
        assert changed([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 9, 5, 6, 7], rule=rule) == ([3], [3])


def test_an_insertion_weighs_what_is_there_and_on_the_other_side_what_is_said_instead():
    # "a red umbrella ." against "a red umbrella and a dog ."
    assert changed([1, 2, 3, 9], [1, 2, 3, 4, 5, 6, 9]) == ([3], [3, 4, 5])
    assert changed([1, 2, 3, 4, 5, 6, 9], [1, 2, 3, 9]) == ([3, 4, 5], [3])


def test_a_tail_that_one_side_lacks_has_nothing_to_weigh_there():
    assert changed([1, 2, 3], [1, 2, 3, 4, 5]) == ([], [3, 4])


def test_the_released_rule_is_blind_to_insertions_and_deletions():
    assert changed([1, 2, 3, 7, 8, 9], [1, 2, 3, 4, 7, 8, 9], rule="released") == ([], [])
    assert changed([1, 2, 3, 4, 7, 8, 9], [1, 2, 3, 7, 8, 9], rule="released") == ([], [])


def test_the_released_rule_takes_a_short_common_run_as_changed():
    """Two replacements two tokens apart make one span of four."""
    ids = [1, 2, 3, 10, 4, 5, 11, 6, 7, 8], [1, 2, 3, 20, 4, 5, 21, 6, 7, 8]
    assert changed(*ids, rule="released") == ([3, 4, 5, 6], [3, 4, 5, 6])
    assert changed(*ids) == ([3, 6], [3, 6])


def test_the_released_rule_over_whole_rows_takes_padding_as_changed():
    """The end token and the padding behind it, id 0, against an answer that goes on."""
    assert changed([1, 2, 3, 4, 2, 0, 0], [1, 2, 3, 4, 8, 9, 2], rule="released") == ([4, 5, 6], [4, 5, 6])


def test_equal_answers_weigh_one_everywhere():
    for rule in ("diff", "released"):
        assert changed([1, 2, 3, 4], [1, 2, 3, 4], rule=rule) == ([], [])


def test_long_answers_are_compared_by_all_their_tokens():
    """From 200 tokens on, difflib by itself takes frequent ones as no common ground."""
    common = [1, 2] * 120
    ids = [3, 4, 5, *common, 8], [3, 4, 5, *common, 9]
    assert changed(*ids) == ([243], [243])
    assert changed(*common_shifted(common)) != changed(*common_shifted(common), rule="released")


def common_shifted(common: list[int]) -> tuple[list[int], list[int]]:
    return [3, *common, 8], [4, *common, 9]


def test_weights_are_zero_outside_the_answer_and_follow_the_logps():
    chosen = torch.tensor([[-100, -100, 5, 6, 7, -100], [-100, 5, 6, 8, 9, 2]])
    rejected = torch.tensor([[-100, -100, 5, 9, 7], [-100, 5, 6, 7, 9]])
    weights = changed_token_weights(chosen, rejected)
    assert weights[0].tolist() == [[0, 1, 5, 1, 0], [1, 1, 5, 1, 5]]
    assert weights[1].tolist() == [[0, 1, 5, 1], [1, 1, 5, 1]]


@settings(deadline=None, max_examples=200)
@given(chosen=st.lists(st.integers(1, 4), max_size=12), rejected=st.lists(st.integers(1, 4), max_size=12))
def test_what_is_not_changed_is_a_common_subsequence_but_for_the_tokens_after_gaps(
    chosen: list[int], rejected: list[int]
):
    first, second = changed(chosen, rejected)
    if chosen != rejected and chosen and rejected:
        assert first or second
    if chosen == rejected:
        assert not first
        assert not second
    # Each side's unchanged tokens appear, in their order, in the other side.
    for ids, marked, other in ((chosen, first, rejected), (rejected, second, chosen)):
        rest = iter(other)
        assert all(token in rest for place, token in enumerate(ids) if place not in marked)


@settings(deadline=None, max_examples=100)
@given(chosen=st.lists(st.integers(1, 4), max_size=12), rejected=st.lists(st.integers(1, 4), max_size=12))
def test_gamma_one_weighs_every_token_alike(chosen: list[int], rejected: list[int]):
    for rule in ("diff", "released"):
        sides = [torch.tensor([[0, *ids]]) for ids in (chosen, rejected)]
        weights = changed_token_weights(*sides, gamma=1.0, rule=rule)
        assert all(torch.equal(side, torch.ones_like(side)) for side in weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen_ids": torch.tensor([1, 2])}, r"chosen_ids is torch.int64 \(2,\)"),
        ({"rejected_ids": torch.tensor([[1.0, 2.0]])}, "rejected_ids is torch.float32"),
        ({"rejected_ids": torch.tensor([[1, 2], [3, 4]])}, r"rejected_ids is torch.int64 \(2, 2\) beside 1 rows"),
        ({"rule": "words"}, "rule='words'"),
    ],
)
def test_what_does_not_fit_the_weights_is_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        changed_token_weights(
            **{"chosen_ids": torch.tensor([[1, 2]]), "rejected_ids": torch.tensor([[1, 2]]), **change}
        )
