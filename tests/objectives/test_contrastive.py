"""Contrastive on a stand-in for the model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hialign.batch import PairBatch, Tokens
from hialign.objectives import Contrastive


class Table:
    """Parts that answer with the embeddings they hold, by pair."""

    def __init__(self, images: dict[str, Tensor], texts: dict[str, Tensor], temperature: float = 0.5) -> None:
        self.images, self.texts = images, texts
        self.temperature = torch.tensor([temperature], requires_grad=True)
        self.asked: list[tuple[str, ...]] = []

    def image_embeddings(self, pixel_values: Tensor, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        self.asked.append(pairs)
        return {pair: self.images[pair] for pair in pairs}

    def text_embeddings(self, caption: Tokens, clip_caption: Tokens, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        self.asked.append(pairs)
        return {pair: self.texts[pair] for pair in pairs}


def random_table(pairs: tuple[str, ...], *, rows: int, dim: int = 4, **settings: float) -> Table:
    def embeddings() -> dict[str, Tensor]:
        return {pair: torch.randn(rows, dim, dtype=torch.float64, requires_grad=True) for pair in pairs}

    return Table(embeddings(), embeddings(), **settings)


def pair_batch(*records: str) -> PairBatch:
    ids = torch.ones(len(records), 2, dtype=torch.int64)
    tokens = Tokens(ids=ids, mask=ids, labels=-100 * ids)
    return PairBatch(
        records=records, pixel_values=torch.rand(len(records), 3, 2, 2), caption=tokens, clip_caption=tokens
    )


def slow(images: Tensor, texts: Tensor, temperature: float, records: tuple[str, ...]) -> float:
    """Mean of both directions; another row of the same record is left out."""
    scores = (F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T / temperature).tolist()
    total = 0.0
    for i, record in enumerate(records):
        others = [j for j, other in enumerate(records) if j == i or other != record]
        total += math.log(sum(math.exp(scores[i][j]) for j in others)) - scores[i][i]
        total += math.log(sum(math.exp(scores[j][i]) for j in others)) - scores[i][i]
    return total / 2 / len(records)


def test_contrastive_by_hand():
    # cosines [[1, .6], [0, .8]] at temperature .5
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    result = Contrastive(["clip"])(Table({"clip": images}, {"clip": texts}), pair_batch("a", "b"))
    to_text = math.log(1 + math.exp(-0.8)) + math.log(1 + math.exp(-1.6))
    to_image = math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(-0.4))
    assert result.loss_sum.item() == pytest.approx((to_text + to_image) / 2, rel=1e-6)
    assert result.weight.item() == 2


@pytest.mark.parametrize("pairs", [("clip",), ("clip", "projector"), ("llm", "clip", "projector")])
def test_the_loss_is_the_sum_over_pairs_of_the_mean_of_both_directions(pairs: tuple[str, ...]):
    table, records = random_table(pairs, rows=5), ("a", "b", "c", "d", "e")
    result = Contrastive(pairs)(table, pair_batch(*records))
    losses = {pair: slow(table.images[pair], table.texts[pair], 0.5, records) for pair in pairs}
    assert result.loss_sum.item() / result.weight.item() == pytest.approx(sum(losses.values()), rel=1e-6)
    assert table.asked == [pairs, pairs]  # each side of the model runs once for all pairs


def test_each_pairs_loss_is_logged_without_a_graph():
    pairs, records = ("clip", "llm"), ("a", "b", "c")
    table = random_table(pairs, rows=3)
    result = Contrastive(pairs)(table, pair_batch(*records))
    assert set(result.numbers) == {"clip_loss", "llm_loss", "floor"}
    for pair in pairs:
        number = result.numbers[f"{pair}_loss"]
        assert number.item() == pytest.approx(slow(table.images[pair], table.texts[pair], 0.5, records), rel=1e-6)
        assert not number.requires_grad


def test_a_lone_pair_is_not_logged_twice():
    assert set(Contrastive(["llm"])(random_table(("llm",), rows=3), pair_batch("a", "b", "c")).numbers) == {"floor"}


def test_the_floor_is_reached_by_a_simplex_and_is_the_sum_over_pairs():
    corners = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]], dtype=torch.float64)
    pairs = ("clip", "projector")
    sides = dict.fromkeys(pairs, corners)
    result = Contrastive(pairs)(Table(sides, sides), pair_batch("a", "b", "c"))
    by_hand = 2 * math.log(1 + 2 * math.exp(-1.5 / 0.5))  # the cosines are 1 and -1/2
    assert float(result.numbers["floor"]) == pytest.approx(by_hand, rel=1e-6)
    assert result.loss_sum.item() / 3 == pytest.approx(by_hand, rel=1e-6)


def test_no_embeddings_come_below_the_floor():
    for seed in range(50):
        torch.manual_seed(seed)
        result = Contrastive(("clip",))(random_table(("clip",), rows=4), pair_batch("a", "b", "c", "d"))
        assert result.loss_sum.item() / 4 >= float(result.numbers["floor"]) > 0


def test_the_floor_is_0_where_a_record_comes_twice_since_it_has_fewer_negatives():
    result = Contrastive(("clip",))(random_table(("clip",), rows=3), pair_batch("a", "b", "a"))
    assert float(result.numbers["floor"]) == 0


def test_one_row_alone_has_no_floor():
    assert not Contrastive(("clip",))(random_table(("clip",), rows=1), pair_batch("a")).numbers


def test_a_record_that_is_twice_in_a_batch_is_no_false_negative_of_itself():
    pairs, records = ("clip", "projector"), ("a", "b", "a", "c", "a")
    table = random_table(pairs, rows=5)
    result = Contrastive(pairs)(table, pair_batch(*records))
    masked = sum(slow(table.images[pair], table.texts[pair], 0.5, records) for pair in pairs)
    assert result.loss_sum.item() / 5 == pytest.approx(masked, rel=1e-6)
    unmasked = sum(slow(table.images[pair], table.texts[pair], 0.5, tuple("abcde")) for pair in pairs)
    assert masked < unmasked - 0.1  # the numbers could tell the two apart


def test_the_same_record_alone_pulls_but_never_pushes():
    table = random_table(("clip",), rows=3)
    result = Contrastive(["clip"])(table, pair_batch("a", "a", "a"))
    assert result.loss_sum.item() == 0  # there is no negative in the batch


def test_gradients_are_those_of_clips_symmetric_cross_entropy():
    table = random_table(("clip",), rows=4)
    leaves = [table.images["clip"], table.texts["clip"], table.temperature]
    logits = F.normalize(leaves[0], dim=1) @ F.normalize(leaves[1], dim=1).T / table.temperature
    rows = torch.arange(4)
    clips = 4 * (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    theirs = torch.autograd.grad(clips, leaves)
    ours = torch.autograd.grad(Contrastive(["clip"])(table, pair_batch(*"abcd")).loss_sum, leaves)
    torch.testing.assert_close(ours, theirs)


def test_gradients_reach_both_sides_and_the_temperature():
    table = random_table(("clip", "projector"), rows=4)
    Contrastive()(table, pair_batch(*"abcd")).loss_sum.backward()
    leaves = [*table.images.values(), *table.texts.values(), table.temperature]
    assert all(leaf.grad is not None and bool((leaf.grad != 0).all()) for leaf in leaves)


def test_contrastive_reads_whole_batches_of_pairs():
    assert Contrastive.batch_type is PairBatch
    assert Contrastive.whole_batch
    assert Contrastive().pairs == ("clip", "projector")


@pytest.mark.parametrize("pairs", [["clap"], ["clip", "clip"], [], ["clip", "vision"]])
def test_unknown_repeated_or_no_pairs_are_an_error(pairs: list[str]):
    with pytest.raises(ValueError, match="wanted a list of one or more, each once, of clip, projector, llm"):
        Contrastive(pairs)


def test_a_fixed_temperature_takes_the_place_of_the_models():
    table = random_table(("clip",), rows=3)  # whose own is 0.5
    batch = pair_batch("a", "b", "c")
    result = Contrastive(["clip"], temperature=0.07)(table, batch)
    wanted = slow(table.images["clip"], table.texts["clip"], 0.07, batch.records)
    assert (result.loss_sum / result.weight).item() == pytest.approx(wanted)
    result.loss_sum.backward()
    assert table.temperature.grad is None
