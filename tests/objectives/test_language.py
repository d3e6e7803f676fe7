"""NextToken on a stand-in for the model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hialign.batch import LanguageBatch, PairBatch, Tokens
from hialign.objectives import NextToken


class Table:
    """Parts that answer with the logits they hold."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.asked: list[tuple[Tensor, Tokens]] = []

    def next_token_logits(self, pixel_values: Tensor, text: Tokens) -> Tensor:
        self.asked.append((pixel_values, text))
        return self.logits


def language_batch(labels: list[list[int]]) -> LanguageBatch:
    rows = torch.tensor(labels)
    text = Tokens(ids=rows.clamp(min=0), mask=torch.ones_like(rows), labels=rows)
    return LanguageBatch(
        records=tuple(str(i) for i in range(len(rows))), pixel_values=torch.rand(len(rows), 3, 2, 2), text=text
    )


def test_next_token_by_hand():
    # odds of the label at t + 1 under the logits at t: 3 to 1, then 4 to 1; the second row predicts one token, 1 to 1
    logits = torch.tensor(
        [
            [[0.0, math.log(3)], [math.log(4), 0.0], [9.0, -9.0]],
            [[9.0, -9.0], [0.0, 0.0], [9.0, -9.0]],
        ]
    )
    batch = language_batch([[-100, 1, 0], [-100, -100, 1]])
    parts = Table(logits)
    result = NextToken()(parts, batch)
    expected = -math.log(3 / 4) - math.log(4 / 5) - math.log(1 / 2)
    assert result.loss_sum.item() == pytest.approx(expected, rel=1e-6)
    assert result.weight.item() == 3
    assert dict(result.numbers) == {}
    ((pixels, text),) = parts.asked
    assert pixels is batch.pixel_values
    assert text is batch.text


def test_sums_and_weights_of_micro_batches_add_up_to_those_of_the_batch():
    logits = torch.randn(4, 6, 11, dtype=torch.float64)
    labels = torch.randint(11, (4, 6))
    labels[torch.rand(4, 6) < 0.5] = -100
    labels[0] = -100  # a row without a target counts nothing
    whole = NextToken()(Table(logits), language_batch(labels.tolist()))
    parts = [NextToken()(Table(logits[i : i + 1]), language_batch(labels[i : i + 1].tolist())) for i in range(4)]
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum)
    assert sum(part.weight.item() for part in parts) == whole.weight.item()
    assert parts[0].weight.item() == 0
    assert parts[0].loss_sum.item() == 0


def test_the_loss_has_a_gradient_and_the_weight_has_none():
    logits = torch.randn(2, 4, 5, requires_grad=True)
    result = NextToken()(Table(logits), language_batch([[0, 1, 2, 3], [-100, -100, 4, -100]]))
    result.loss_sum.backward()
    assert not result.weight.requires_grad
    # rows of the gradient that predict something: three of the first row, one of the second
    assert (logits.grad.abs().sum(-1) > 0).tolist() == [[True] * 3 + [False], [False, True, False, False]]


def test_next_token_reads_language_batches_whose_rows_are_independent():
    assert NextToken.batch_type is LanguageBatch
    assert not issubclass(PairBatch, NextToken.batch_type)
    assert not NextToken.whole_batch


def test_the_mean_over_a_micro_batch_weighs_one_whatever_its_length():
    batch = language_batch([[-100, 4, 5, 6], [-100, 7, -100, -100]])
    logits = torch.randn(2, 4, 9)
    tokens, mean = NextToken()(Table(logits), batch), NextToken(mean="micro_batch")(Table(logits), batch)
    assert tokens.weight == 4
    assert mean.weight == 1
    torch.testing.assert_close(mean.loss_sum, tokens.loss_sum / 4)


def test_an_unknown_mean_is_an_error():
    with pytest.raises(ValueError, match="mean: got 'rows', wanted 'tokens' or 'micro_batch'"):
        NextToken(mean="rows")
