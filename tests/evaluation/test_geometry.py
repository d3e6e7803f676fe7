"""Geometry against numbers by hand, slow loops, the official fixtures, and embeddings that collapsed."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hialign.evaluation import geometry
from hialign.evaluation.geometry import (
    alignment,
    centred_gap,
    effective_rank,
    modality_gap,
    retrieval,
    summary,
    uniformity,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "clip"


def fixture(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / name).read_text())
    return content


def random_captions(
    *, images: int = 7, texts: int = 17, dim: int = 5, seed: int = 0, levels: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Every image has a caption; ``levels`` rounds the embeddings so coarsely that scores tie."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, dim, generator=generator) for rows in (images, texts))
    if levels:
        a, b = ((rows * levels).round() for rows in (a, b))
    owners = torch.cat([torch.arange(images), torch.randint(images, (texts - images,), generator=generator)])
    return a, b, owners[torch.randperm(texts, generator=generator)]


def slow_ranks(images: Tensor, texts: Tensor, image_of_text: Tensor) -> tuple[list[int], list[int]]:
    """Ranks by sorting, wrong candidates first among equals; images' ranks, then texts'."""
    scores = F.normalize(texts.double(), dim=-1) @ F.normalize(images.double(), dim=-1).T
    scores = scores.round(decimals=10)
    owners = image_of_text.tolist()
    by_image, by_text = [], []
    for j in range(len(images)):
        order = sorted((-float(scores[i, j]), owners[i] == j) for i in range(len(texts)))
        by_image.append(1 + [right for _, right in order].index(True))
    for i, owner in enumerate(owners):
        order = sorted((-float(scores[i, j]), j == owner) for j in range(len(images)))
        by_text.append(1 + [right for _, right in order].index(True))
    return by_image, by_text


def test_retrieval_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.2]])
    # Text 2 shows image 1 but lies nearer to image 0, where it comes after text 0.
    result = retrieval(images, texts, torch.tensor([0, 1, 1]), ks=(1, 2))
    assert result == {
        "image_to_text/median_rank": 1.0,
        "image_to_text/recall@1": 1.0,
        "image_to_text/chance@1": pytest.approx((1 / 3 + 2 / 3) / 2),
        "image_to_text/recall@2": 1.0,
        "image_to_text/chance@2": pytest.approx((2 / 3 + 1) / 2),
        "text_to_image/median_rank": 1.0,
        "text_to_image/recall@1": pytest.approx(2 / 3),
        "text_to_image/chance@1": 0.5,
        "text_to_image/recall@2": 1.0,
        "text_to_image/chance@2": 1.0,
    }


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("seed", range(4))
def test_retrieval_equals_a_slow_sort(seed: int, levels: int | None):
    images, texts, owners = random_captions(images=6, texts=16, seed=seed, levels=levels)
    by_image, by_text = slow_ranks(images, texts, owners)
    result = retrieval(images, texts, owners, ks=(1, 3))
    for direction, ranks in (("image_to_text", by_image), ("text_to_image", by_text)):
        assert result[f"{direction}/median_rank"] == median(ranks)
        for k in (1, 3):
            assert result[f"{direction}/recall@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))


def test_retrieval_equals_clip_benchmark_with_several_captions():
    case = fixture("retrieval_multi_caption.json")
    images, texts = torch.tensor(case["image_embeddings"]), torch.tensor(case["text_embeddings"])
    result = retrieval(images, texts, torch.tensor(case["text_image_index"]))
    for k in (1, 5, 10):  # CLIP_benchmark names a direction by what it finds
        assert result[f"text_to_image/recall@{k}"] == pytest.approx(
            case["expected"][f"image_retrieval_recall@{k}"], abs=1e-6
        )
        assert result[f"image_to_text/recall@{k}"] == pytest.approx(
            case["expected"][f"text_retrieval_recall@{k}"], abs=1e-6
        )


def test_retrieval_differs_from_open_clip_only_where_scores_tie():
    case = fixture("open_clip_paired_retrieval.json")
    images, texts = torch.tensor(case["image_features"]), torch.tensor(case["text_features"])
    result = retrieval(images, texts, torch.arange(len(images)))
    scores = F.normalize(images.double(), dim=-1) @ F.normalize(texts.double(), dim=-1).T
    for direction, table in (("image_to_text", scores), ("text_to_image", scores.T)):
        right = table.diagonal()[:, None]
        tied = (table - right).abs() < 1e-9
        theirs = 1 + ((table > right) & ~tied).sum(1) + tied.tril(-1).sum(1)  # a tie goes to the earlier row
        ours = theirs + tied.triu(1).sum(1)
        assert median(theirs.tolist()) // 1 == case["expected"][f"{direction}_median_rank"]
        assert (ours > theirs).any()
        assert result[f"{direction}/median_rank"] == median(ours.tolist())
        for k in (1, 5, 10):
            assert (theirs <= k).double().mean() == pytest.approx(case["expected"][f"{direction}_R@{k}"])
            assert result[f"{direction}/recall@{k}"] == pytest.approx((ours <= k).double().mean())


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_do_not_change_retrieval(chunk: int):
    images, texts, owners = random_captions(levels=1)
    assert retrieval(images, texts, owners, chunk=chunk) == retrieval(images, texts, owners)


@settings(max_examples=20, deadline=None, database=None)
@given(image_order=st.permutations(range(5)), text_order=st.permutations(range(9)), seed=st.integers(0, 1000))
def test_the_order_of_rows_does_not_count(image_order: list[int], text_order: list[int], seed: int):
    images, texts, owners = random_captions(images=5, texts=9, seed=seed, levels=1)
    moved = torch.tensor(image_order).argsort()[owners[text_order]]
    shuffled = retrieval(images[image_order], texts[text_order], moved)
    assert shuffled == pytest.approx(retrieval(images, texts, owners))


def test_chance_is_what_random_orders_score():
    owners = torch.tensor([0, 0, 0, 1, 2, 2])
    result = retrieval(*random_captions(images=3, texts=6)[:2], owners, ks=(1, 2, 3))
    for k in (1, 2, 3):
        # All draws of k texts, for each image in turn.
        draws = [set(owners[list(d)].tolist()) for d in itertools.combinations(range(6), k)]
        found = [image in draw for draw in draws for image in range(3)]
        assert result[f"image_to_text/chance@{k}"] == pytest.approx(sum(found) / len(found))
        assert result[f"text_to_image/chance@{k}"] == pytest.approx(k / 3)


def test_unrelated_embeddings_score_near_chance():
    images, texts, _ = random_captions(images=400, texts=2000, dim=32)
    result = retrieval(images, texts, torch.arange(2000) % 400, ks=(10,))
    for direction, draws in (("image_to_text", 400), ("text_to_image", 2000)):
        chance = result[f"{direction}/chance@10"]
        error = math.sqrt(chance * (1 - chance) / draws)
        assert abs(result[f"{direction}/recall@10"] - chance) < 5 * error


@pytest.mark.parametrize("collapse", ["both", "images", "texts", "zeros"])
def test_collapsed_embeddings_score_no_more_than_chance(collapse: str):
    images, texts, owners = random_captions(images=37, texts=111, dim=19)
    if collapse in ("both", "images"):
        images = images[:1].expand_as(images)
    if collapse in ("both", "texts"):
        texts = texts[:1].expand_as(texts)
    if collapse == "zeros":
        images, texts = torch.zeros_like(images), torch.zeros_like(texts)
    result = retrieval(images, texts, owners, ks=(1,), chunk=10)
    if collapse in ("both", "zeros"):
        assert result["image_to_text/recall@1"] == result["text_to_image/recall@1"] == 0.0
    else:  # the side that still differs picks one winner for all
        assert result["image_to_text/recall@1"] <= 1 / 37 + 1e-9
        assert result["text_to_image/recall@1"] <= owners.bincount().max() / 111 + 1e-9


def test_a_k_beyond_the_candidates_is_left_out_of_its_direction_only():
    result = retrieval(*random_captions(images=4, texts=9), ks=(1, 5, 10))
    recalls = sorted(key for key in result if "recall" in key)
    assert recalls == ["image_to_text/recall@1", "image_to_text/recall@5", "text_to_image/recall@1"]
    assert {key.replace("recall", "chance") for key in recalls} <= result.keys()


def test_perfect_orthonormal_pairs_are_found_without_a_gap():
    images = torch.eye(6)
    result = summary(images, images.repeat(2, 1), torch.arange(6).repeat(2))
    for direction in ("image_to_text", "text_to_image"):
        assert result[f"{direction}/recall@1"] == 1.0
        assert result[f"{direction}/median_rank"] == 1.0
    assert result["modality_gap"] == pytest.approx(0, abs=1e-12)
    assert result["alignment"] == pytest.approx(0, abs=1e-12)
    assert result["image/uniformity"] == pytest.approx(-4)  # every distance is sqrt(2)
    assert result["image/effective_rank"] == pytest.approx(6)
    # Six of the 66 pairs of texts coincide, the others are sqrt(2) apart.
    assert result["text/uniformity"] == pytest.approx(math.log((6 + 60 * math.exp(-4)) / 66))
    assert result["text/effective_rank"] == pytest.approx(6)


def test_summary_pairs_each_text_with_its_image():
    images, texts, owners = random_captions()
    result = summary(images, texts, owners)
    assert result["alignment"] == alignment(images[owners], texts)
    assert result["centred_gap"] == centred_gap(images[owners], texts)
    assert result["modality_gap"] == modality_gap(images, texts)
    assert result["image/uniformity"] == uniformity(images) != uniformity(texts) == result["text/uniformity"]
    assert result["image/effective_rank"] == effective_rank(images)
    assert result["text/effective_rank"] == effective_rank(texts)
    assert retrieval(images, texts, owners).items() <= result.items()


def test_modality_gap_by_hand():
    a, b = torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[0.0, -1.0]])
    assert modality_gap(a, b) == pytest.approx(math.hypot(0.5, 1.5))
    assert modality_gap(torch.ones(3, 4), -torch.ones(2, 4)) == pytest.approx(2)


def test_centred_gap_by_hand():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert centred_gap(a, b) == pytest.approx(math.sqrt(2))  # both centroids are (1/2, 1/2)
    assert modality_gap(a, b) == pytest.approx(0)


def test_a_cloud_that_is_moved_as_a_whole_has_no_centred_gap():
    circle = torch.tensor([[0.6, 0.0], [0.0, 0.6], [-0.6, 0.0]])
    above, below = (F.pad(circle, (0, 1), value=height) for height in (0.8, -0.8))
    assert centred_gap(above, below) == pytest.approx(0, abs=1e-6)
    assert modality_gap(above, below) == pytest.approx(1.6)


def test_alignment_by_hand():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert alignment(a, b) == pytest.approx((2 + 0) / 2)
    assert alignment(a, -a) == pytest.approx(4)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_uniformity_equals_a_slow_loop(chunk: int):
    rows = random_captions()[1]
    points = F.normalize(rows.double(), dim=-1)
    terms = [
        math.exp(-3 * float((points[i] - points[j]).square().sum()))
        for i in range(len(points))
        for j in range(len(points))
        if i != j
    ]
    assert uniformity(rows, t=3.0, chunk=chunk) == pytest.approx(math.log(sum(terms) / len(terms)))


def test_uniformity_survives_a_large_t():
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), t=1000.0) == pytest.approx(-4000)


def test_a_collapsed_set_has_uniformity_zero_and_rank_one():
    rows = torch.arange(1.0, 5.0)[:, None] * torch.ones(4, 8)
    assert uniformity(rows) == pytest.approx(0, abs=1e-12)
    assert effective_rank(rows) == pytest.approx(1)
    assert effective_rank(torch.zeros(4, 8)) == 0.0


def test_effective_rank_by_hand():
    # Rows e1, e1, e2: singular values sqrt(2) and 1.
    p = math.sqrt(2) / (1 + math.sqrt(2))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert effective_rank(torch.tensor([[4.0, 0.0], [1.0, 0.0], [0.0, 2.0]])) == pytest.approx(math.exp(entropy))


def test_half_embeddings_measure_as_their_float64_copies():
    images, texts, owners = random_captions()
    images, texts = images.bfloat16(), (1e4 * texts).bfloat16()
    assert summary(images, texts, owners) == summary(images.double(), texts.double(), owners)


def test_rotations_change_nothing():
    images, texts, owners = random_captions()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    turned = summary(images.double() @ turn, texts.double() @ turn, owners)
    assert turned == pytest.approx(summary(images, texts, owners))


def test_no_block_of_scores_is_larger_than_the_chunk(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    slices = geometry._slices

    def spy(length: int, chunk: int) -> Any:
        seen.append((length, chunk))
        return slices(length, chunk)

    monkeypatch.setattr(geometry, "_slices", spy)
    images, texts, owners = random_captions()
    retrieval(images, texts, owners, chunk=4)
    # texts twice (their own scores, then the blocks), images once for each of the five blocks of texts
    assert seen == [(17, 4), (17, 4)] + [(7, 4)] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": torch.ones(4, 2)}, r"images \(2, 3\) and texts \(4, 2\)"),
        ({"images": torch.ones(2, 5, 3)}, r"images \(2, 5, 3\)"),
        ({"image_of_text": torch.tensor([0, 1, 1])}, r"image_of_text is torch.int64 \(3,\)"),
        ({"image_of_text": torch.tensor([0.0, 1.0, 1.0, 0.0])}, "image_of_text is torch.float32"),
        ({"image_of_text": torch.tensor([0, 1, 1, 2])}, "image_of_text names image 2, wanted 0 to 1"),
        ({"image_of_text": torch.tensor([0, 1, 1, -1])}, "image_of_text names image -1"),
        ({"image_of_text": torch.tensor([0, 0, 0, 0])}, r"image_of_text names 1 of 2 images \(not 1\)"),
        ({"images": torch.tensor([[1.0, math.nan, 0.0], [1.0, 1.0, 1.0]])}, "images has NaN .* in 1 of 2 rows"),
        ({"texts": torch.full((4, 3), math.inf)}, "texts has NaN or infinity in 4 of 4 rows"),
        ({"ks": (0, 1)}, r"ks=\(0, 1\)"),
        ({"chunk": 0}, "chunk=0"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str):
    arguments = {
        "images": torch.ones(2, 3),
        "texts": torch.ones(4, 3),
        "image_of_text": torch.tensor([0, 0, 1, 1]),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        retrieval(**arguments)


def test_sets_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"modality_gap: a \(2, 3\) and b \(2, 4\)"):
        modality_gap(torch.ones(2, 3), torch.ones(2, 4))
    for paired in (alignment, centred_gap):
        with pytest.raises(ValueError, match=f"{paired.__name__}: a has 2 rows and b 3"):
            paired(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="uniformity: a has 1 rows"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"a has shape \(0, 3\)"):
        effective_rank(torch.ones(0, 3))


def test_the_median_of_an_even_number_of_ranks_lies_between_the_middle_two():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # The second text lies nearer to the first image: ranks 1 and 2.
    result = retrieval(images, torch.tensor([[1.0, 0.1], [1.0, 0.2]]), torch.tensor([0, 1]))
    assert result["text_to_image/median_rank"] == 1.5
