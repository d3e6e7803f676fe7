"""hacl against recorded values, numbers by hand, a slow loop and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hialign.losses import hacl, info_nce, symmetric_info_nce


def sines(a: float, b: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.sin(a * torch.arange(12, dtype=torch.float64) + b).reshape(3, 4).to(dtype)


IMAGES, CAPTIONS, HALLUCINATED = sines(1.1, 0.2), sines(1.7, 0.4), sines(1.3, 0.3)
# spec/baselines.md, section 8: temperature, no hallucination, form "released", form "paper"; None where not recorded
TO_IMAGES = {0.07: 6.7700782228, 0.5: 1.3051437336}
TO_CAPTIONS = {
    (0.07, None): 1.4359792272,
    (0.07, "released"): 10.7378068446,
    (0.5, None): 0.8603393314,
    (0.5, "released"): 2.2078695444,
    (0.5, "paper"): 1.6666454313,
}
MEANS = {
    (0.07, None): 4.1030287250,
    (0.07, "released"): 8.7539425337,
    (0.5, None): 1.0827415325,
    (0.5, "released"): 1.7565066390,
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("temperature", "form"), TO_CAPTIONS)
def test_hacl_is_what_was_recorded(temperature: float, form: str | None, dtype: torch.dtype, tolerance: float):
    images, captions, hallucinated = (t.to(dtype) for t in (IMAGES, CAPTIONS, HALLUCINATED))
    negatives = {None: None, "released": hallucinated, "paper": hallucinated[:, None]}[form]
    forth = info_nce(images, captions, temperature=temperature, negatives=negatives)
    back = info_nce(captions, images, temperature=temperature)
    assert forth.item() == pytest.approx(TO_CAPTIONS[temperature, form], rel=tolerance)
    assert back.item() == pytest.approx(TO_IMAGES[temperature], rel=tolerance)
    mean = MEANS.get((temperature, form), (TO_CAPTIONS[temperature, form] + TO_IMAGES[temperature]) / 2)
    given = None if form is None else hallucinated
    loss = hacl(images, captions, given, temperature=temperature, form=form or "paper")
    assert loss.item() == pytest.approx(mean, rel=tolerance)


def test_hacl_by_hand():
    """One pair at cosine 1 and its hallucination at .6, temperature 1: (log(1 + e^-.4) + 0) / 2."""
    images, hallucinated = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    for form in ("paper", "released"):  # of one pair, the batch's hallucinations are its own
        loss = hacl(images, images, hallucinated, temperature=1.0, form=form)
        assert loss.item() == pytest.approx(math.log1p(math.exp(-0.4)) / 2)


def slow(images: Tensor, captions: Tensor, hallucinated: Tensor, form: str, temperature: float) -> float:
    def score(a: Tensor, b: Tensor) -> float:
        return math.exp(float(a @ b / a.norm() / b.norm()) / temperature)

    total = 0.0
    for i in range(len(images)):
        met = [hallucinated[i]] if form == "paper" else list(hallucinated)
        own = score(images[i], captions[i])
        forth = sum(score(images[i], caption) for caption in captions) + sum(score(images[i], h) for h in met)
        back = sum(score(image, captions[i]) for image in images)
        total += (math.log(forth / own) + math.log(back / own)) / 2
    return total / len(images)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_hacl_equals_a_slow_loop(form: str):
    loss = hacl(IMAGES, CAPTIONS, HALLUCINATED, temperature=0.2, form=form)
    assert loss.item() == pytest.approx(slow(IMAGES, CAPTIONS, HALLUCINATED, form, 0.2), rel=1e-12)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_hacl_without_hallucinated_captions_is_clips_loss(form: str):
    assert torch.equal(hacl(IMAGES, CAPTIONS, form=form), symmetric_info_nce(IMAGES, CAPTIONS))


def test_the_released_form_has_more_negatives_so_it_is_never_lower():
    paper, released = (
        hacl(IMAGES, CAPTIONS, HALLUCINATED, form=form, reduction="none") for form in ("paper", "released")
    )
    assert bool((released > paper).all())


def test_hallucinated_captions_are_pushed_from_images_and_captions_never_meet_them():
    captions, hallucinated = CAPTIONS.clone().requires_grad_(), HALLUCINATED.clone().requires_grad_()
    hacl(IMAGES, captions, hallucinated, temperature=0.5).backward()
    # the gradient of a hallucinated caption is a multiple of its image, less what changes its length alone
    assert hallucinated.grad is not None
    unit = hallucinated.detach() / hallucinated.detach().norm(dim=1, keepdim=True)
    image = IMAGES / IMAGES.norm(dim=1, keepdim=True)
    across = image - (image * unit).sum(dim=1, keepdim=True) * unit
    cosines = torch.cosine_similarity(hallucinated.grad, across)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


@pytest.mark.parametrize("form", ["paper", "released"])
def test_hacl_is_unchanged_when_split_over_ranks(form: str):
    """The released code takes the first columns on every rank, which the second and third rank would tell."""
    images, captions, hallucinated = (torch.cat([t, t.roll(1, 1), -t]) for t in (IMAGES, CAPTIONS, HALLUCINATED))
    gathered = {"all_images": images, "all_captions": captions, "all_hallucinated": hallucinated}

    def part(rank: int, offset: int) -> Tensor:
        rows = slice(3 * rank, 3 * rank + 3)
        return hacl(images[rows], captions[rows], hallucinated[rows], **gathered, offset=offset, form=form)

    whole = hacl(images, captions, hallucinated, form=form)
    torch.testing.assert_close(torch.stack([part(rank, 3 * rank) for rank in range(3)]).mean(), whole)
    for rank in (1, 2):
        assert abs(part(rank, 0) - part(rank, 3 * rank)) > 0.1


def test_queues_and_hallucinated_captions_go_together():
    old = {"image_queue": sines(0.7, 0.1), "caption_queue": sines(0.9, 0.5)}
    loss = hacl(IMAGES, CAPTIONS, HALLUCINATED, form="released", **old)
    forth = info_nce(IMAGES, CAPTIONS, negatives=HALLUCINATED, queue=old["caption_queue"])
    back = info_nce(CAPTIONS, IMAGES, queue=old["image_queue"])
    torch.testing.assert_close(loss, (forth + back) / 2)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_gradients_are_those_of_finite_differences(form: str):
    leaves = [t.clone().requires_grad_() for t in (IMAGES, CAPTIONS, HALLUCINATED)]
    scale = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda i, t, h, s: hacl(i, t, h, logit_scale=s, form=form, reduction="none"), (*leaves, scale)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["paper", "released"])
def test_values_and_gradients_are_finite_at_scores_of_1e4(form: str, dtype: torch.dtype):
    for sign in (1, -1):
        leaves = [t.to(dtype).requires_grad_() for t in (IMAGES, sign * IMAGES, -sign * IMAGES)]
        loss = hacl(*leaves, temperature=1e-4, form=form)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "official"}, "hacl: form='official', wanted 'paper' or 'released'"),
        ({"hallucinated": torch.ones(2, 4)}, r"images \(3, 4\) and hallucinated \(2, 4\) do not fit, wanted as many"),
        ({"hallucinated": torch.ones(3, 5)}, r"images \(3, 4\) and hallucinated \(3, 5\)"),
        ({"hallucinated": None, "all_hallucinated": torch.ones(6, 4)}, "all_hallucinated is given without"),
        ({"captions": torch.ones(2, 4)}, r"hacl: images \(3, 4\) and captions \(2, 4\)"),
        ({"all_captions": torch.ones(6, 4)}, "one of all_images and all_captions is given"),
        ({"caption_queue": torch.ones(6, 5)}, r"caption_queue \(6, 5\)"),
        ({"offset": 1}, "hacl: offset=1 .* outside the 3 captions"),
        ({"temperature": -1.0}, "hacl: temperature=-1.0"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str):
    fitting = dict.fromkeys(("images", "captions", "hallucinated"), torch.ones(3, 4))
    with pytest.raises(ValueError, match=message):
        hacl(**fitting | change)
