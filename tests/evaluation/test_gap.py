"""The alignment gap lies between its bounds, depends on the batches and on nothing else, and says what it rests on."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hialign.batch import PairBatch, Tokens
from hialign.data import CaptionedImage, Dataset, LanguageCollator, flickr8k
from hialign.data.collate import PairItem
from hialign.evaluation.gap import AlignmentGap, gap_numbers, inner_losses, kkt_residual
from hialign.evaluation.subject import Subject
from hialign.losses import info_nce_floor
from hialign.models import Model, save, tiny
from hialign.objectives import NextToken

STEP = 8  # grey levels between two images


@dataclass(frozen=True)
class Grey:
    """An image that is a number."""

    number: int

    def read(self) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (4, 4), (STEP * self.number,) * 3).save(file, "ppm")
        return file.getvalue()


class Plain:
    """An image processor that leaves images as they are."""

    def __call__(self, *, images: list[Image.Image], return_tensors: str) -> dict[str, Tensor]:
        arrays = [np.asarray(image, dtype=np.float32) / 255 for image in images]
        return {"pixel_values": torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2)}


class Numbered:
    """A pair collator for captions that are a number and a word: the number is the one token."""

    def row(self, record: CaptionedImage, caption: str, pixel_values: Tensor) -> PairItem:
        return PairItem(record.id, pixel_values, [int(caption.split()[0])], [0])

    def collate(self, items: list[PairItem]) -> PairBatch:
        ids = torch.tensor([item.caption for item in items])
        text = Tokens(ids=ids, mask=torch.ones_like(ids), labels=torch.full_like(ids, -100))
        return PairBatch(
            records=tuple(item.record for item in items),
            pixel_values=torch.stack([item.pixel_values for item in items]),
            caption=text,
            clip_caption=text,
        )


class Placed(nn.Module):
    """A root whose embeddings are the rows of two tables; every next token is as likely as any other."""

    temperature = torch.tensor([0.5])

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.images, self.texts = images, texts

    def forward(self, reader: Callable[[Any, Any], Any], batch: Any) -> Any:
        assert not self.training
        return reader(self, batch)

    def image_embeddings(self, pixel_values: Tensor, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        numbers = (pixel_values.mean(dim=(1, 2, 3)) * 255 / STEP).round().long()
        return {pair: self.images[numbers] for pair in pairs}

    def text_embeddings(self, caption: Tokens, clip_caption: Tokens, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        return {pair: self.texts[caption.ids[:, 0]] for pair in pairs}

    def next_token_logits(self, pixel_values: Tensor, text: Tokens) -> Tensor:
        return torch.zeros(*text.ids.shape, 10_000)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny(seed=0, width=32, layers=2, image_size=32)


@pytest.fixture
def placed(make_subject: Callable[..., Subject], model: Model) -> Callable[..., Subject]:
    """A subject whose held-out images, by their numbers, have the embeddings of two tables."""

    def make(images: Tensor, texts: Tensor, numbers: Sequence[int], *, batch_size: int = 5) -> Subject:
        records = [CaptionedImage(f"{i}", Grey(n), (f"{n} word", "no such")) for i, n in enumerate(numbers)]
        subject = make_subject(model, lambda: Dataset("numbers", records), batch_size=batch_size)
        language = LanguageCollator(
            subject.language.tokenizer,
            Plain(),
            image_token_id=subject.language.image_token_id,
            num_image_tokens=subject.language.num_image_tokens,
        )
        root: Any = Placed(images, texts)
        pairs: Any = Numbered()
        return replace(subject, model=replace(model, root=root), language=language, pairs=pairs)

    return make


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_captioned: Callable[..., Path]) -> Path:
    return draw_captioned(tmp_path_factory.mktemp("drawn"), 7, seed=0)


@pytest.fixture
def subject(make_subject: Callable[..., Subject], model: Model, pictures: Path) -> Subject:
    """A random model and seven pictures."""
    return make_subject(model, lambda: flickr8k(str(pictures), holdout=0.0), batch_size=4)


def tables(rows: int = 12, dim: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).unbind()
    return images, texts


def slow_loss(images: Tensor, texts: Tensor, batches: Sequence[Sequence[int]], tau: float) -> float:
    """One row and one direction at a time."""
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    losses = []
    for batch in batches:
        for one, other in ((images, texts), (texts, images)):
            for i in batch:
                scores = [float(one[i] @ other[j]) / tau for j in batch]
                losses.append(math.log(sum(map(math.exp, scores))) - float(one[i] @ other[i]) / tau)
    return sum(losses) / len(losses)


def test_gap_numbers_by_hand() -> None:
    numbers = gap_numbers(1.0, 8, 0.5)  # log(1 + 7 exp(-8 / 7 / 0.5)) = 0.5376, log 8 = 2.0794
    assert numbers == pytest.approx(
        {"loss": 1.0, "floor": 0.5376, "chance": 2.0794, "gap_hi": 0.4624, "rho": 0.4624 / 1.5418}, abs=1e-4
    )
    assert gap_numbers(3.0, 8, 0.5, pairs=2)["gap_hi"] == pytest.approx(3.0 - 2 * 0.5376, abs=1e-4)


def test_the_loss_is_a_slow_loop_s_mean_over_full_batches(placed: Callable[..., Subject]) -> None:
    images, texts = tables()
    subject = placed(images, texts, range(11))
    scores = AlignmentGap(batch_size=4, parts=[])(subject)
    slow = slow_loss(images, texts, ((0, 1, 2, 3), (4, 5, 6, 7)), 0.5)
    assert scores["clip/loss"] == scores["projector/loss"] == pytest.approx(slow, rel=1e-9)
    assert scores["loss"] == pytest.approx(2 * slow, rel=1e-9)
    assert (scores["batches"], scores["left_out"], scores["batch_size"]) == (2, 3, 4)
    assert scores["outer_loss"] == pytest.approx(math.log(10_000))
    given = AlignmentGap(batch_size=4, temperature=0.2, parts=[])(subject)
    assert given["clip/loss"] == pytest.approx(slow_loss(images, texts, ((0, 1, 2, 3), (4, 5, 6, 7)), 0.2), rel=1e-9)
    assert given["temperature"] == 0.2
    assert given["clip/floor"] == pytest.approx(float(info_nce_floor(4, 0.2)))


def test_a_simplex_attains_the_floor(placed: Callable[..., Subject]) -> None:
    simplex = torch.eye(4, dtype=torch.float64) - 0.25
    scores = AlignmentGap(batch_size=4, parts=[])(placed(simplex, simplex, [0, 1, 2, 3, 3, 1, 0, 2]))
    assert scores["gap_hi"] == pytest.approx(0, abs=1e-12)
    assert scores["rho"] == pytest.approx(0, abs=1e-12)
    assert scores["floor"] == pytest.approx(2 * math.log(1 + 3 * math.exp(-8 / 3)))


def test_no_embeddings_lie_below_the_floor(placed: Callable[..., Subject]) -> None:
    for seed in range(20):
        table = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert float(AlignmentGap(batch_size=3, parts=[])(placed(table, table, range(6)))["gap_hi"]) > 0


def test_a_constant_embedding_is_at_chance(placed: Callable[..., Subject]) -> None:
    same = torch.ones(8, 3, dtype=torch.float64)
    scores = AlignmentGap(batch_size=4, parts=[])(placed(same, same, range(8)))
    assert scores["loss"] == pytest.approx(scores["chance"]) == pytest.approx(2 * math.log(4))
    assert scores["rho"] == pytest.approx(1)
    assert scores["clip/rho"] == pytest.approx(1)


def test_the_order_of_batches_and_in_a_batch_does_not_matter_but_what_is_in_one_does(
    placed: Callable[..., Subject],
) -> None:
    def loss(numbers: list[int], read: int = 5) -> float:
        return inner_losses(placed(*tables(), numbers, batch_size=read), ("clip",), 3, 0.5)["clip"]

    first = loss([0, 1, 2, 3, 4, 5])
    assert loss([3, 4, 5, 0, 1, 2]) == pytest.approx(first, rel=1e-12)
    assert loss([2, 0, 1, 4, 3, 5]) == pytest.approx(first, rel=1e-12)
    assert loss([0, 1, 2, 3, 4, 5], read=1) == first
    assert loss([0, 1, 3, 2, 4, 5]) != pytest.approx(first, rel=1e-3)


def test_captions_that_a_batch_has_twice_are_counted(placed: Callable[..., Subject]) -> None:
    subject = placed(*tables(), [1, 1, 1, 2, 3, 4, 5, 1])
    assert AlignmentGap(batch_size=4, parts=[])(subject)["repeated_captions"] == 3  # the last has its batch to itself


@pytest.mark.parametrize(
    ("inner", "residual", "weight", "cosine"),
    [
        ((-2.0, 0.0), 0.0, 0.5, -1.0),
        ((-1.0, 1.0), math.sqrt(0.5), 0.5, -math.sqrt(0.5)),
        ((1.0, 1.0), 1.0, 0.0, math.sqrt(0.5)),
        ((0.0, 3.0), 1.0, 0.0, 0.0),
        ((0.0, 0.0), 1.0, 0.0, 0.0),
    ],
)
def test_the_residual_by_hand(inner: tuple[float, float], residual: float, weight: float, cosine: float) -> None:
    found = kkt_residual({"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor(inner)})
    assert found == pytest.approx({"kkt_residual": residual, "kkt_weight": weight, "cosine": cosine}, abs=1e-7)


def test_the_residual_is_the_least_over_a_grid_of_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        outer, inner = (
            {"a": torch.randn(3, generator=generator), "b": torch.randn(2, generator=generator)} for _ in "ab"
        )
        a, b = (torch.cat(list(gradient.values())) for gradient in (outer, inner))
        slow = min(float((a + w * b).norm() / a.norm()) for w in torch.linspace(0, 20, 20001))
        assert kkt_residual(outer, inner)["kkt_residual"] == pytest.approx(slow, abs=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_diverged_has_no_residual(bad: float) -> None:
    found = kkt_residual({"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor([bad, 1.0])})
    assert all(math.isnan(number) for number in found.values())


def test_the_gradients_are_those_of_the_means_over_all_batches(subject: Subject) -> None:
    """Against one backward pass of each level's whole loss, and the model is left as it was."""
    root, tau = subject.model.root, subject.model.root.temperature.item()
    for parameter in root.llava.lm_head.parameters():
        parameter.requires_grad_(False)
    before = {name: p.requires_grad for name, p in root.named_parameters()}
    root.train()
    scores = AlignmentGap(batch_size=3, parts=["vision", "projector"])(subject)
    assert root.training
    assert {name: p.requires_grad for name, p in root.named_parameters()} == before
    assert all(p.grad is None for p in root.parameters())

    root.eval()
    records = subject.heldout().records[:6]
    pixels = [subject.language.pixels(record)[0] for record in records]
    rows = list(zip(records, pixels, strict=True))
    inner = torch.zeros((), dtype=torch.float64)
    for start in (0, 3):
        batch = subject.pairs.collate([subject.pairs.row(r, r.captions[0], p) for r, p in rows[start : start + 3]])
        images = root.image_embeddings(batch.pixel_values, ("clip", "projector"))
        texts = root.text_embeddings(batch.caption, batch.clip_caption, ("clip", "projector"))
        for pair in images:
            scores_of_pair = F.normalize(images[pair], dim=-1) @ F.normalize(texts[pair], dim=-1).T / tau
            for table in (scores_of_pair, scores_of_pair.T):
                inner = inner + F.cross_entropy(table, torch.arange(3)) / 4
    result = NextToken()(root, subject.language.collate([subject.language.row(r, r.captions[0], p) for r, p in rows]))
    outer = result.loss_sum / result.weight
    parts = ("vision_tower", "multi_modal_projector")
    shared = [p for name, p in root.named_parameters() if any(part in name for part in parts)]
    one, other = (torch.autograd.grad(loss, shared, allow_unused=True) for loss in (outer, inner))
    both = [(a.flatten(), b.flatten()) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    assert len(both) < len(
        shared
    )  # what lies behind the layer that the language model reads is no one's but the inner's
    task, alignment = (torch.cat(side).double() for side in zip(*both, strict=True))
    cosine = F.cosine_similarity(task, alignment, dim=0)
    assert scores["loss"] == pytest.approx(inner.item(), rel=1e-5)
    assert scores["outer_loss"] == pytest.approx(outer.item(), rel=1e-5)
    assert scores["cosine"] == pytest.approx(cosine.item(), abs=1e-4)
    assert scores["kkt_residual"] == pytest.approx(math.sqrt(1 - min(cosine.item(), 0) ** 2), abs=1e-4)


def test_the_weight_is_one_between_mean_losses_and_does_not_depend_on_how_many_batches_there_are(
    subject: Subject,
) -> None:
    records = subject.heldout().records[:3]
    gap = AlignmentGap(pairs=["projector"], batch_size=3, parts=["projector"])
    once, twice = (
        gap(replace(subject, heldout=lambda n=n: Dataset("some", records * n)))["kkt_weight"] for n in (1, 2)
    )
    assert twice == pytest.approx(once, rel=1e-5)

    root = subject.model.root.eval()
    rows = [(record, subject.language.pixels(record)[0]) for record in records]
    pairs = subject.pairs.collate([subject.pairs.row(r, r.captions[0], p) for r, p in rows])
    image = root.image_embeddings(pairs.pixel_values, ("projector",))["projector"]
    text = root.text_embeddings(pairs.caption, pairs.clip_caption, ("projector",))["projector"]
    table = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T / root.temperature.item()
    inner = (F.cross_entropy(table, torch.arange(3)) + F.cross_entropy(table.T, torch.arange(3))) / 2
    result = NextToken()(root, subject.language.collate([subject.language.row(r, r.captions[0], p) for r, p in rows]))
    parameters = list(root.llava.model.multi_modal_projector.parameters())
    g_task, g_inner = (
        torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, parameters)])
        for loss in (result.loss_sum / result.weight, inner)
    )
    assert g_task @ g_inner < 0
    assert once == pytest.approx(-(g_task @ g_inner / g_inner.square().sum()).item(), rel=1e-3)


def test_without_a_reference_there_is_no_lower_gap_and_it_is_said(
    placed: Callable[..., Subject], capsys: pytest.CaptureFixture[str]
) -> None:
    scores = AlignmentGap(batch_size=4, parts=[])(placed(*tables(), range(12)))
    assert not [name for name in scores if "gap_lo" in name and name != "no_gap_lo"]
    assert "no reference= was given" in str(scores["no_gap_lo"])
    assert str(scores["no_gap_lo"]) in capsys.readouterr().out


def test_a_reference_run_is_measured_on_the_same_batches_and_its_provenance_stored(
    subject: Subject, tmp_path: Path
) -> None:
    other = tiny(seed=1, width=32, layers=2, image_size=32)
    save(other, tmp_path / "run" / "model")
    alone = AlignmentGap(batch_size=3, temperature=0.3, parts=[])
    its_own = alone(replace(subject, model=other))["loss"]
    scores = AlignmentGap(batch_size=3, temperature=0.3, parts=[], reference=[str(tmp_path / "run"), 5.0])(subject)
    assert scores["loss"] == alone(subject)["loss"] != its_own
    assert scores["reference/1/from"] == str(tmp_path / "run")
    assert scores["reference/1/loss"] == pytest.approx(its_own)
    assert "measured on these batches at this temperature" in str(scores["reference/1/how"])
    assert (scores["reference/2/from"], scores["reference/2/loss"]) == ("a number", 5.0)
    assert "not checked" in str(scores["reference/2/how"])
    assert scores["best_known"] == min(float(its_own), 5.0)
    assert scores["gap_lo"] == pytest.approx(float(scores["loss"]) - float(scores["best_known"]))


def test_a_model_that_beats_its_reference_has_a_gap_below_zero(placed: Callable[..., Subject]) -> None:
    scores = AlignmentGap(batch_size=4, parts=[], reference=[9.0])(placed(*tables(), range(12)))
    assert float(scores["gap_lo"]) < 0
    assert scores["gap_lo"] == pytest.approx(float(scores["loss"]) - 9.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "batch_size: got 1, wanted 2 or more"),
        ({"temperature": 0.0}, "temperature: got 0.0, wanted a number above 0"),
        ({"parts": ["tower"]}, r"parts: got \['tower'\], wanted a list of vision"),
        ({"parts": "vision"}, "parts: got 'vision'"),
        ({"pairs": ["clip", "clip"]}, "pairs: got"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignmentGap(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 8}, "batch_size: 8, and the held-out images of .*, 7 of them, do not fill one batch"),
        ({"reference": ["runs/none"]}, "reference: runs/none has no model/"),
        ({"reference": [1e-9], "temperature": 0.5}, "reference: got 1e-09, and no inner loss of 2 pairs lies below"),
        ({"reference": [math.nan]}, "reference: got nan"),
        ({"pairs": ["clip"], "parts": ["projector"]}, "parts: no parameter of projector is read by both"),
        ({"pairs": ["clip"], "parts": ["projector", "text"]}, "parts: no parameter of projector, text is read by both"),
    ],
)
def test_what_cannot_be_measured_is_refused(subject: Subject, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignmentGap(**{"batch_size": 3, **settings})(subject)


def test_another_data_set_takes_the_place_of_the_held_out_one(subject: Subject) -> None:
    heldout = subject.heldout()
    some = Dataset("some", heldout.records[3:6])
    one = AlignmentGap(batch_size=3, parts=[], data=some)(replace(subject, heldout=lambda: pytest.fail("was read")))
    assert one["data"] == "some"
    assert one["loss"] == AlignmentGap(batch_size=3, parts=[])(replace(subject, heldout=lambda: some))["loss"]
