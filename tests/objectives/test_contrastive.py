"""Contrastive on a stand-in for the model, and HACL on a small one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hialign.batch import HallucinatedBatch, PairBatch, Tokens
from hialign.losses import hacl, info_nce_floor
from hialign.models import tiny
from hialign.objectives import Contrastive, Hacl


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


def test_a_fixed_temperature_is_the_losss_and_the_floors_whatever_the_models_is():
    records = ("a", "b", "c", "d")
    table = random_table(("clip",), rows=4, temperature=0.5)
    result = Contrastive(["clip"], temperature=0.2)(table, pair_batch(*records))
    assert result.loss_sum.item() / 4 == pytest.approx(slow(table.images["clip"], table.texts["clip"], 0.2, records))
    assert float(result.numbers["floor"]) == pytest.approx(float(info_nce_floor(4, torch.tensor([0.2]))), rel=1e-6)
    result.loss_sum.backward()
    assert table.temperature.grad is None


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


def padded(rows: list[list[int]]) -> Tokens:
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return Tokens(ids=ids, mask=mask, labels=torch.full_like(ids, -100))


@pytest.mark.parametrize("form", ["paper", "released"])
def test_hacl_is_its_loss_on_states_of_separate_forward_passes(form: str):
    """Each image and each caption alone, as transformers reads it; the last state is where the end token stands.

    The temperature is HACL's own, not the model's.
    """
    model = tiny(seed=0, width=32, layers=2, image_size=32, patch_size=16, temperature=0.2)
    llava, end = model.root.llava, model.processor.tokenizer.eos_token_id
    image = [llava.config.image_token_index] * model.num_image_tokens + [end]
    captions = [[2, 1000, 1001, end], [2, 1002, end], [2, 1003, 1004, 1005, end]]
    wrong = [[2, 1010, end], [2, 1011, 1012, 1013, 1014, end], [2, 1015, end]]
    pixels = torch.randn(3, 3, 32, 32)
    batch = HallucinatedBatch(
        records=("a", "b", "c"),
        pixel_values=pixels,
        caption=padded(captions),
        clip_caption=None,
        hallucinated=padded(wrong),
        clip_hallucinated=None,
    )

    def read(side: str, ids: list[int], **pictures: Tensor) -> Tensor:
        states = llava(input_ids=torch.tensor([ids]), output_hidden_states=True, **pictures).hidden_states[-1][0, -1]
        return model.root.alignment.heads[f"llm_{side}"](states)

    images = torch.stack([read("image", image, pixel_values=pixels[row : row + 1]) for row in range(3)])
    texts, hallucinated = (torch.stack([read("text", ids) for ids in rows]) for rows in (captions, wrong))
    expected = 3 * hacl(images, texts, hallucinated, form=form, temperature=0.07)
    result = model.root(Hacl(form=form), batch)
    torch.testing.assert_close(result.loss_sum, expected, rtol=1e-4, atol=1e-5)
    assert result.weight.item() == 3


class Held:
    """Embeddings of a batch of images, captions and hallucinated captions, and a model's temperature."""

    temperature = torch.tensor([0.5])

    def __init__(self, rows: int) -> None:
        self.images, self.texts, self.wrong = (
            torch.randn(rows, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)
        )

    @property
    def embeddings(self) -> dict[str, Tensor]:
        return {"image/llm": self.images, "text/llm": self.texts, "hallucinated/llm": self.wrong}


def mean_loss(objective: Hacl, batch: Held, records: str) -> float:
    return objective.loss(batch, batch.embeddings, tuple(records)).loss_sum.item() / len(records)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_queue_holds_the_last_rows_of_earlier_batches_which_get_no_gradient(form: str):
    objective, batches = Hacl(form=form, queue=4), [Held(3) for _ in range(3)]
    for number, (batch, records) in enumerate(zip(batches, ("abc", "def", "ghi"), strict=True)):
        objective.remember()
        queues = {}
        if number:
            queues = {
                "image_queue": torch.cat([before.images for before in batches[:number]])[-4:],
                "caption_queue": torch.cat([before.texts for before in batches[:number]])[-4:],
            }
        rows = batch.images, batch.texts, batch.wrong
        expected = hacl(*rows, form=form, temperature=0.07, **queues)
        result = objective.loss(batch, batch.embeddings, tuple(records))
        torch.testing.assert_close(result.loss_sum / 3, expected)
        assert result.numbers["queued"] == min(4, 3 * number)
        earlier = [before.images for before in batches[:number]]
        slopes = torch.autograd.grad(result.loss_sum, [batch.images, *earlier], allow_unused=True)
        assert [slope is not None for slope in slopes] == [True, *[False] * number]


def test_a_batch_looked_at_again_or_in_part_meets_the_same_queue_and_is_remembered_as_first_seen():
    objective, first, second, other = Hacl(queue=8), Held(4), Held(4), Held(4)
    mean_loss(objective, other, "wxyz")  # a probe, before training
    objective.remember()
    assert mean_loss(objective, first, "abcd") == pytest.approx(mean_loss(Hacl(), first, "abcd"))
    objective.remember()
    seen = [mean_loss(objective, batch, "efgh") for batch in (second, other, second)]  # the other: at other weights
    mean_loss(objective, Held(2), "ef")
    assert (seen[0], seen[0] == seen[1]) == (seen[2], False)
    objective.remember()
    torch.testing.assert_close(
        objective.earlier.beside("image/llm", first.images[:0])[:8], torch.cat([first.images, second.images])
    )


def test_a_queued_row_of_the_same_record_is_no_negative():
    batch, again = Held(3), Held(3)
    objective = Hacl(queue=3)
    objective.remember()
    mean_loss(objective, batch, "abc")
    objective.remember()
    assert mean_loss(objective, again, "abc") < mean_loss(objective, again, "xyz")
    same = torch.cat([torch.eye(3), torch.eye(3)], dim=1).bool()
    expected = hacl(
        again.images,
        again.texts,
        again.wrong,
        all_images=torch.cat([again.images, batch.images]),
        all_captions=torch.cat([again.texts, batch.texts]),
        same=same,
        temperature=0.07,
    )
    assert mean_loss(objective, again, "abc") == pytest.approx(expected.item())


def test_a_saved_queue_goes_on_with_the_batch_that_waits():
    objective, again, batches = Hacl(queue=4), Hacl(queue=4), [Held(3) for _ in range(3)]
    for batch, records in zip(batches[:2], ("abc", "def"), strict=True):
        objective.remember()
        mean_loss(objective, batch, records)
    again.load_state_dict(objective.state_dict())
    mean_loss(again, Held(3), "uvw")  # a probe leaves what waits as it is
    for one in (objective, again):
        one.remember()
    assert mean_loss(objective, batches[2], "ghi") == mean_loss(again, batches[2], "ghi")
    assert len(again.earlier) == 4


def test_without_a_queue_nothing_is_kept_and_less_than_none_is_refused():
    objective, batch = Hacl(), Held(3)
    for _ in range(2):
        objective.remember()
        assert "queued" not in objective.loss(batch, batch.embeddings, tuple("abc")).numbers
    assert objective.state_dict() == {"queues": {}, "waiting": {}}
    with pytest.raises(ValueError, match="queue: got -1, wanted 0 for none"):
        Hacl(queue=-1)
