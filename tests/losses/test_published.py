"""The preference losses against what the released codes return on fixed inputs.

The inputs are sines, so that anyone can make them. The numbers come from the authors' functions, run as they are
(CHiP@e7f5193, HALVA@059b086), or from the papers' formulas where no released function isolates a term.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hialign.losses import (
    changed_token_weights,
    chip,
    cross_modal_dpo,
    ddpo,
    dpo,
    halva,
    mdpo,
    phrase_sums,
    sequence_logps,
    tdpo,
    token_kl,
    token_logps,
)

PROMPT, CHOSEN, REJECTED = [1, 3, 4], [5, 6, 7, 8, 9, 10, 11, 2], [5, 6, 7, 12, 9, 10, 11, 2]
EXACT = {"rel": 0, "abs": 1e-9}


def sines(shape: tuple[int, ...], step: float, start: float, scale: float = 1.0) -> Tensor:
    count = torch.tensor(shape).prod().item()
    return (scale * torch.sin(step * torch.arange(count, dtype=torch.float64) + start)).reshape(shape)


def labels(answer: list[int]) -> Tensor:
    return torch.tensor([[-100] * len(PROMPT) + answer])


class Pair:
    """One pair's logps, weights and divergences; the corrupted image is the third row of the policy's logits."""

    def __init__(self) -> None:
        policy, reference = sines((3, 11, 13), 0.7, 0.1, 2), sines((2, 11, 13), 0.83, 0.3, 2)
        noised = sines((2, 11, 13), 0.9, 0.2, 2)
        self.labels = labels(CHOSEN), labels(REJECTED)
        chosen, rejected = self.labels
        self.policy = token_logps(policy[:1], chosen), token_logps(policy[1:2], rejected)
        self.reference = token_logps(reference[:1], chosen), token_logps(reference[1:], rejected)
        self.corrupted = token_logps(policy[2:], chosen), token_logps(noised[:1], chosen)
        self.weights = changed_token_weights(chosen, rejected, gamma=4.0)
        self.kl = (
            sequence_logps(token_kl(policy[:1], reference[:1], chosen), chosen),
            sequence_logps(token_kl(policy[1:2], reference[1:], rejected), rejected),
        )

    def sums(self, *, corrupted: bool) -> tuple[Tensor, ...]:
        chosen, rejected = self.labels
        policy, reference = self.policy, self.reference
        pairs = [(policy[0], chosen), (policy[1], rejected), (reference[0], chosen), (reference[1], rejected)]
        if corrupted:
            pairs.insert(2, (self.corrupted[0], chosen))
            pairs.append((self.corrupted[1], chosen))
        return tuple(sequence_logps(logps, of) for logps, of in pairs)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


def test_the_logps_and_divergences_are_those_of_the_released_code(pair: Pair):
    policy_chosen, policy_rejected, policy_corrupted, *reference = pair.sums(corrupted=True)
    near = {"rel": 0, "abs": 5e-7}  # printed with six places
    assert policy_chosen.item() == pytest.approx(-25.605593, **near)
    assert policy_rejected.item() == pytest.approx(-26.697630, **near)
    assert policy_corrupted.item() == pytest.approx(-25.472667, **near)
    assert [value.item() for value in reference] == pytest.approx([-28.020093, -25.843626, -25.175862], **near)
    assert [value.item() for value in pair.kl] == pytest.approx([11.848447, 12.566479], **near)


def test_one_token_differs(pair: Pair):
    for weights in pair.weights:
        assert weights[0].tolist() == [0, 0, 1, 1, 1, 4, 1, 1, 1, 1]


def test_dpo_and_tdpo(pair: Pair):
    sums = pair.sums(corrupted=False)
    assert dpo(*sums).item() == pytest.approx(0.5430168165, **EXACT)
    assert dpo(*sums, beta=0.5).item() == pytest.approx(0.1782283222, **EXACT)
    assert tdpo(*sums, *pair.kl, alpha=0.1).item() == pytest.approx(0.5460316993, **EXACT)
    assert tdpo(*sums, *pair.kl, alpha=0.5).item() == pytest.approx(0.5582170252, **EXACT)


def test_ddpo(pair: Pair):
    weights = changed_token_weights(*pair.labels)
    assert ddpo(*pair.policy, *pair.reference, *weights).item() == pytest.approx(0.3047138641, **EXACT)


def test_mdpo(pair: Pair):
    assert mdpo(*pair.sums(corrupted=True)).item() == pytest.approx(1.6894514710, **EXACT)


def test_cross_modal_dpo(pair: Pair):
    sums = pair.sums(corrupted=True)
    assert cross_modal_dpo(*sums, beta=0.1, form="released").item() == pytest.approx(0.4382038255, **EXACT)
    paper = 0.1782283222 + 0.2293474603  # the response's term and the image's
    assert cross_modal_dpo(*sums).item() == pytest.approx(paper, **EXACT)


def test_chip_of_the_paper_and_each_of_its_terms(pair: Pair):
    logps = *pair.policy, *pair.reference
    assert chip(*logps, *pair.corrupted, *pair.weights, *pair.kl).item() == pytest.approx(1.4111642823, **EXACT)
    answers = 0.1782283222
    images = chip(*logps, *pair.corrupted).item() - answers
    assert images == pytest.approx(0.2293474603, **EXACT)
    segments = chip(*logps, chosen_weights=pair.weights[0], rejected_weights=pair.weights[1], lam=1.0).item() - answers
    assert segments == pytest.approx(0.3464966980, **EXACT)
    tokens = chip(*logps, chosen_kl=pair.kl[0], rejected_kl=pair.kl[1], gamma=1.0).item() - answers
    assert tokens == pytest.approx(-0.3590159412, **EXACT)


def test_chip_as_released_with_and_without_its_bug(pair: Pair):
    everything = *pair.policy, *pair.reference, *pair.corrupted, *pair.weights, *pair.kl
    fixed = chip(*everything, beta=0.1, form="released")
    assert fixed.item() == pytest.approx(0.0355183356, **EXACT)
    bug = chip(*everything, beta=0.1, form="released_bug")
    assert bug.item() == pytest.approx(20.9307090182, **EXACT)


def test_chip_as_released_with_single_switches_on(pair: Pair):
    logps = *pair.policy, *pair.reference
    released = {"beta": 0.1, "form": "released"}
    weights = {"chosen_weights": pair.weights[0], "rejected_weights": pair.weights[1]}
    assert chip(*logps, **weights, **released).item() == pytest.approx(0.1343224045, **EXACT)
    assert chip(*logps, *pair.corrupted, **released).item() == pytest.approx(0.4382038255, **EXACT)
    kl = {"chosen_kl": pair.kl[0], "rejected_kl": pair.kl[1]}
    assert chip(*logps, **kl, **released).item() == pytest.approx(0.5460316993, **EXACT)


@pytest.fixture(scope="module")
def phrases() -> tuple[Tensor, ...]:
    chosen, rejected = -sines((2, 7), 1.3, 0.2).abs(), -sines((2, 7), 0.9, 0.5).abs()
    chosen_phrases = torch.tensor([[0, 1, 1, 0, 2, 0, 0], [0, 0, 1, 0, 0, 0, 0]])
    rejected_phrases = torch.tensor([[0, 1, 0, 2, 2, 2, 0], [0, 1, 1, 1, 0, 0, 0]])
    return chosen, rejected, chosen_phrases, rejected_phrases


def test_phrase_sums(phrases: tuple[Tensor, ...]):
    chosen, rejected, chosen_phrases, rejected_phrases = phrases
    expected = [-1.3324831368, -0.7727644876, -0.6181371122, 0.0]
    assert phrase_sums(chosen, chosen_phrases).flatten().tolist() == pytest.approx(expected, **EXACT)
    expected = [-0.9854497300, -1.8355755292, -1.7977164522, 0.0]
    assert phrase_sums(rejected, rejected_phrases).flatten().tolist() == pytest.approx(expected, **EXACT)


def test_halva_over_real_and_over_padded_cells(phrases: tuple[Tensor, ...]):
    assert halva(*phrases, alpha=0.0).item() == pytest.approx(0.4821475998, **EXACT)
    cells = [0.8816429669, 0.2967532617, 0.2680465708, 0.6931471806]  # the last is log 2: a phrase that is not there
    padded = halva(*phrases, alpha=0.0, cells="padded").item()
    assert padded == pytest.approx(sum(cells) / 4, **EXACT)
    assert padded == pytest.approx(0.5348974995, rel=0, abs=1e-8)  # the released code takes this mean in float32
    losses = halva(*phrases, alpha=0.0, details=True).losses
    assert losses.tolist() == pytest.approx([0.8816429669 + 0.2967532617, 0.2680465708], **EXACT)


def test_halva_with_either_divergence(phrases: tuple[Tensor, ...]):
    # The mask and the target stand at the logits' own places, so a place is added in front of one and behind the other.
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    target = (torch.arange(14) % 11).reshape(2, 7).masked_fill(~mask, -100)
    anchor_labels = torch.cat([torch.full((2, 1), -100), target], dim=1)
    policy, reference = (
        torch.cat([sines((2, 7, 11), step, start, 2), torch.zeros(2, 1, 11)], dim=1)
        for step, start in ((0.7, 0.1), (0.83, 0.3))
    )
    divergences = token_kl(policy, reference, mask)
    assert (divergences.sum() / 2).item() == pytest.approx(4.2669206462, **EXACT)
    released = halva(*phrases, divergences=divergences, cells="padded")
    assert released.item() == pytest.approx(2.2416657535, rel=0, abs=1e-8)  # float32, as above
    anchors = {
        "policy_anchor": token_logps(policy, anchor_labels),
        "reference_anchor": token_logps(reference, anchor_labels),
    }
    target_only = halva(*phrases, **anchors, kl="target", alpha=1.0).item() - halva(*phrases, alpha=0.0).item()
    assert target_only == pytest.approx(0.4857815162, **EXACT)
