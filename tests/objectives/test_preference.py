"""Preference objectives: answers that share their prompt, the reference, and equality with the losses themselves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from hialign.batch import LanguageBatch, PreferenceBatch, Tokens
from hialign.losses import (
    changed_token_weights,
    chip,
    ddpo,
    dpo,
    mdpo,
    sequence_logps,
    tdpo,
    token_kl,
    token_logps,
)
from hialign.models import tiny
from hialign.objectives import Halva, Preference
from hialign.objectives.preference import tail

LOSSES = {
    "dpo": partial(dpo, beta=0.3),
    "ipo": partial(dpo, kind="ipo"),
    "ddpo": ddpo,
    "tdpo": tdpo,
    "mdpo": mdpo,
    "chip": partial(chip, form="released", beta=0.1),
    "chip_paper": chip,
}


@pytest.fixture(scope="module")
def model():
    return tiny(seed=0, width=32, layers=2, image_size=32, patch_size=16)


def padded(rows, fill):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


def tokens(rows, starts):
    """Tokens of rows of ids, the labels from ``starts`` on."""
    ids = padded(rows, 0)
    mask = padded([[1] * len(row) for row in rows], 0)
    labels = padded([[-100] * start + row[start:] for row, start in zip(rows, starts, strict=True)], -100)
    return Tokens(ids=ids, mask=mask, labels=labels)


def make_batch(model, *, corrupted=True, images=(1, 1, 2), seed=0):
    """Three rows of different prompts and answers; the second's answers begin alike, the third has two images."""
    generator = torch.Generator().manual_seed(seed)
    image = model.processor.tokenizer.convert_tokens_to_ids(model.processor.image_token)
    patches = model.num_image_tokens

    def words(count):
        return (1000 + torch.randint(200, (count,), generator=generator)).tolist()

    prompts = [[2, *[image] * patches * number, *words(3 + number)] for number in images]
    first = words(4)
    answers = [
        (words(5), words(2)),
        ([*first, *words(3)], [*first, *words(1)]),
        (words(1), words(6)),
    ]
    starts = [len(prompt) for prompt in prompts]
    pixels = torch.randn(sum(images), 3, 32, 32, generator=generator)
    sides = [tokens([p + a[side] for p, a in zip(prompts, answers, strict=True)], starts) for side in (0, 1)]
    phrases = [
        padded([[0] * s + [1] + [0] * (len(a[k]) - 1) for s, a in zip(starts, answers, strict=True)], 0) for k in (0, 1)
    ]
    return PreferenceBatch(
        records=("a", "b", "c"),
        pixel_values=pixels,
        corrupted_pixel_values=torch.randn(pixels.shape, generator=generator) if corrupted else None,
        chosen=sides[0],
        rejected=sides[1],
        starts=torch.tensor(starts),
        chosen_phrases=phrases[0],
        rejected_phrases=phrases[1],
    )


@pytest.fixture
def trained(model):
    """The model a little away from its reference."""
    before = {name: p.detach().clone() for name, p in model.root.named_parameters()}
    for parameter in model.root.parameters():
        parameter.requires_grad_(True)
    model.root.keep_reference({name for name, _ in model.root.named_parameters()})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.root.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    yield model
    with torch.no_grad():
        for name, parameter in model.root.named_parameters():
            parameter.copy_(before[name])
            parameter.grad = None


def gradients(root, objective, batch):
    root.zero_grad()
    result = root(objective, batch)
    result.loss_sum.backward()
    return result, {n: p.grad.clone() for n, p in root.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", LOSSES)
def test_a_shared_prompt_changes_neither_loss_nor_gradient(trained, name):
    batch = make_batch(trained)
    shared, one = gradients(trained.root, Preference(LOSSES[name]), batch)
    apart, other = gradients(trained.root, Preference(LOSSES[name], shared_prefix=False), batch)
    torch.testing.assert_close(shared.loss_sum, apart.loss_sum, rtol=1e-5, atol=1e-5)
    assert one.keys() == other.keys()
    for key, gradient in one.items():
        scale = max(1.0, other[key].norm().item())
        assert (gradient - other[key]).norm() < 1e-5 * scale, key
    torch.testing.assert_close(dict(shared.numbers), dict(apart.numbers), rtol=1e-4, atol=1e-4)


def plain(root, batch):
    """What the losses need, from a forward pass of each side as transformers has it."""

    def read(pixels, side):
        images = {} if pixels is None or not len(pixels) else {"pixel_values": pixels}
        logits = root.llava(input_ids=side.ids, attention_mask=side.mask, **images).logits
        return logits, token_logps(logits, side.labels)

    found = {}
    for model in ("reference", "policy"):
        with root.reference() if model == "reference" else torch.enable_grad():
            found[model] = {
                "chosen": read(batch.pixel_values, batch.chosen),
                "rejected": read(batch.pixel_values, batch.rejected),
                "corrupted": read(batch.corrupted_pixel_values, batch.chosen),
            }
    return found


def given(root, batch, *, gamma):
    """Every argument that a loss of preference has, by its name: per token, and as sums under ``by_row``."""
    found = plain(root, batch)
    labels = {
        "chosen": batch.chosen.labels,
        "rejected": batch.rejected.labels,
        "corrupted": batch.chosen.labels,
    }
    by_token = {f"{model}_{side}": found[model][side][1] for model in found for side in labels}
    by_row = {name: sequence_logps(logps, labels[name.split("_")[1]]) for name, logps in by_token.items()}
    weights = changed_token_weights(labels["chosen"], labels["rejected"], gamma=gamma)
    rest = dict(zip(("chosen_weights", "rejected_weights"), weights, strict=True))
    for side in ("chosen", "rejected"):
        rest[f"{side}_kl"] = token_kl(found["policy"][side][0], found["reference"][side][0], labels[side]).sum(-1)
    return by_token | rest, by_row | rest


PAIR = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
IMAGES = ("policy_corrupted", "reference_corrupted")
WEIGHTS, KLS = ("chosen_weights", "rejected_weights"), ("chosen_kl", "rejected_kl")
READS = {  # whether a loss reads single tokens, and which arguments it has
    "dpo": (False, PAIR),
    "ipo": (False, PAIR),
    "ddpo": (True, PAIR + WEIGHTS),
    "tdpo": (False, PAIR + KLS),
    "mdpo": (False, PAIR + IMAGES),
    "chip": (True, PAIR + IMAGES + WEIGHTS + KLS),
    "chip_paper": (True, PAIR + IMAGES + WEIGHTS + KLS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_baseline_is_its_loss_on_logits_of_separate_forward_passes(trained, name):
    batch = make_batch(trained)
    by_token, names = READS[name]
    found = given(trained.root, batch, gamma=4.0)[0 if by_token else 1]
    expected = LOSSES[name](**{argument: found[argument] for argument in names}, reduction="sum")
    result = trained.root(Preference(LOSSES[name], changed=4.0), batch)
    torch.testing.assert_close(result.loss_sum, expected, rtol=1e-4, atol=1e-5)
    assert result.weight.item() == 3
    # the test could tell: the loss at the start is another one
    assert (expected - at_the_start(trained, LOSSES[name], batch)).abs() > 1e-3


def at_the_start(model, loss, batch):
    """The same objective where the policy still is the reference."""
    with model.root.reference() as start:
        return Preference(loss, changed=4.0)(start, batch).loss_sum


@pytest.mark.parametrize("images", [(0, 0, 0), (0, 1, 2)])
def test_rows_of_text_alone_are_read_as_by_separate_forward_passes(trained, images):
    """Also beside rows with images: theirs must not slip into the wrong row."""
    batch = make_batch(trained, corrupted=False, images=images)
    found = given(trained.root, batch, gamma=4.0)
    for name in ("dpo", "ddpo", "tdpo"):
        by_token, names = READS[name]
        wanted = LOSSES[name](
            **{argument: found[0 if by_token else 1][argument] for argument in names}, reduction="sum"
        )
        for shared in (True, False):
            objective = Preference(LOSSES[name], changed=4.0, shared_prefix=shared)
            torch.testing.assert_close(trained.root(objective, batch).loss_sum, wanted, rtol=1e-4, atol=1e-5)


def test_at_the_start_every_margin_is_zero(model):
    model.root.keep_reference({name for name, _ in model.root.named_parameters()})
    result = model.root(Preference(LOSSES["dpo"]), make_batch(model))
    assert result.loss_sum.item() / result.weight.item() == pytest.approx(0.693147, abs=1e-5)
    assert result.numbers["chosen_reward"] == pytest.approx(0, abs=1e-5)


def test_leaving_the_reference_gives_the_policy_back_bit_for_bit(trained):
    before = {name: p.detach().clone() for name, p in trained.root.named_parameters()}
    with pytest.raises(KeyError), trained.root.reference():
        raise KeyError("in the middle")
    assert trained.root.training
    assert all(torch.equal(before[name], p) for name, p in trained.root.named_parameters())


def test_a_loss_that_wants_a_corrupted_image_says_that_the_data_have_none(trained):
    with pytest.raises(ValueError, match="corrupted image, and the batch has none; set the stage's corrupt"):
        trained.root(Preference(LOSSES["mdpo"]), make_batch(trained, corrupted=False))


def test_without_its_terms_chip_is_dpo(trained):
    batch = make_batch(trained, corrupted=False)
    bare = trained.root(Preference(partial(chip, beta=0.3), terms=[]), batch)
    torch.testing.assert_close(bare.loss_sum, trained.root(Preference(LOSSES["dpo"]), batch).loss_sum)


def test_a_term_that_the_loss_does_not_have_is_named(model):
    with pytest.raises(ValueError, match="terms: got images, wanted some of reference"):
        Preference(dpo, terms=["images"])


def test_only_the_printed_token_term_is_unbounded_and_only_image_terms_need_another_image():
    made = {name: Preference(loss) for name, loss in LOSSES.items()}
    assert [name for name, objective in made.items() if objective.unbounded] == ["chip_paper"]
    assert [name for name, objective in made.items() if objective.needs_corrupted] == ["mdpo", "chip", "chip_paper"]
    for bounded in (Preference(chip, terms=["images"]), Preference(partial(chip, gamma=0.0))):
        assert bounded.unbounded == ""


def test_reference_free_dpo_asks_for_no_reference():
    objective = Preference(dpo, terms=[])
    assert not objective.needs_reference
    assert objective.asked == ["policy_chosen", "policy_rejected"]


def test_halva_counts_pairs_of_phrases_and_answers(trained):
    batch = make_batch(trained)
    objective = Halva(alpha=0.5)
    phrases = trained.root(objective, batch)
    assert phrases.weight.item() == 3
    apart = trained.root(Halva(alpha=0.5, shared_prefix=False), batch)
    torch.testing.assert_close(phrases.loss_sum, apart.loss_sum, rtol=1e-5, atol=1e-5)
    found = plain(trained.root, batch)
    by_hand = [
        torch.nn.functional.softplus(
            found["policy"]["rejected"][1][row, start - 1] - found["policy"]["chosen"][1][row, start - 1]
        )
        for row, start in enumerate(batch.starts.tolist())
    ]
    torch.testing.assert_close(phrases.loss_sum, torch.stack(by_hand).sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kl", ["vocabulary", "target"])
def test_halvas_anchor_is_the_divergence_of_logits_of_separate_forward_passes(trained, kl):
    batch = make_batch(trained)
    clean = LanguageBatch(records=batch.records, pixel_values=batch.pixel_values, text=batch.chosen)
    found = plain(trained.root, batch)
    policy, reference = found["policy"]["chosen"], found["reference"]["chosen"]
    if kl == "vocabulary":
        expected = token_kl(policy[0], reference[0], batch.chosen.labels).sum()
    else:
        kept = batch.chosen.labels[:, 1:] != -100
        expected = (reference[1].exp() * (reference[1] - policy[1]))[kept].sum()
    result = trained.root(Halva(alpha=0.5, kl=kl), clean)
    torch.testing.assert_close(result.loss_sum, 0.5 * expected, rtol=1e-4, atol=1e-5)
    assert result.weight.item() == 3


def test_tail_is_what_lies_behind_the_prompt():
    rows = tokens([[7, 8, 1, 2, 3], [9, 4]], [2, 1])
    assert tail(rows.labels, torch.tensor([2, 1]), rows, fill=-100).tolist() == [[-100, 1, 2, 3], [-100, 4, -100, -100]]
    assert tail(rows.ids.unsqueeze(-1), torch.tensor([2, 1]), rows).squeeze(-1).tolist() == [[8, 1, 2, 3], [9, 4, 4, 4]]


def test_in_bf16_the_policy_computes_with_its_own_weights(trained):
    """Autocast keeps its casts by parameter: those of the reference must not serve the policy."""
    batch = make_batch(trained)
    exact = trained.root.text_states(batch.pixel_values, batch.chosen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with trained.root.reference() as reference:
            there = reference.text_states(batch.pixel_values, batch.chosen)
        here = trained.root.text_states(batch.pixel_values, batch.chosen)
    assert (here - exact).abs().mean() < 0.25 * (there - exact).abs().mean()


def test_the_released_rule_sees_the_prompt(trained):
    """A common beginning of one word is no block of three by itself, and it is one behind a common prompt."""
    prompt, answers = [2, 1000, 1001, 1002], ([1500, 1501, 1502, 1503, 1504], [1500, 1600, 1502, 1503, 1504])
    sides = [tokens([prompt + answer], [4]) for answer in answers]
    none = torch.zeros(0, 3, 32, 32)
    batch = PreferenceBatch(
        records=("a",),
        pixel_values=none,
        corrupted_pixel_values=None,
        chosen=sides[0],
        rejected=sides[1],
        starts=torch.tensor([4]),
        chosen_phrases=None,
        rejected_phrases=None,
    )
    labels = [tail(side.labels, batch.starts, side, fill=-100) for side in sides]
    weights = Preference(LOSSES["chip"], changed=4.0, rule="released")._weights(batch, *labels)
    assert weights["chosen_weights"].tolist() == [[1, 4, 1, 1, 1]]
    assert weights["rejected_weights"].tolist() == [[1, 4, 1, 1, 1]]


def test_a_reference_of_new_adapters_is_the_model_without_them(model):
    from hialign.models import Lora, add_lora

    adapted = tiny(seed=0, width=32, layers=2, image_size=32, patch_size=16)
    add_lora(adapted.root, {"llm"}, Lora(rank=2, alpha=4, dropout=0.5), seed=0)
    names = {name for name, _ in adapted.root.named_parameters() if ".lora_" in name}
    adapted.root.keep_reference(names)
    assert adapted.root._reference == {}  # nothing is copied
    with torch.no_grad():
        for name, parameter in adapted.root.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.3)
    batch = make_batch(adapted)
    with adapted.root.reference() as reference:
        there = reference.text_states(batch.pixel_values, batch.chosen)
    with torch.no_grad():
        plain_states = model.root.text_states(batch.pixel_values, batch.chosen)
        moved = adapted.root.text_states(batch.pixel_values, batch.chosen)
    torch.testing.assert_close(there, plain_states, rtol=1e-5, atol=1e-5)
    assert (moved - there).abs().max() > 0.1
    assert all(p.requires_grad for n, p in adapted.root.named_parameters() if ".lora_" in n)


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_batch_brings_of_the_reference_serves_as_the_reference(trained, monkeypatch, name):
    objective, batch = Preference(LOSSES[name]), make_batch(trained)
    live, expected = gradients(trained.root, objective, batch)
    with trained.root.reference() as reference:
        told = objective.read_reference(reference, batch)
    assert tuple(told) == objective.reference_reads[PreferenceBatch]
    targets = {"chosen": 5 + 7 + 1, "rejected": 2 + 5 + 6, "corrupted": 5 + 7 + 1}  # the answers' tokens, by hand
    assert all(len(values) == targets[key.rpartition("_")[0]] for key, values in told.items())
    monkeypatch.setattr(trained.root, "_reference", None)  # to ask for it would now be an error
    cached, found = gradients(trained.root, objective, replace(batch, reference=told))
    assert torch.equal(cached.loss_sum, live.loss_sum)
    assert all(torch.equal(found[key], gradient) for key, gradient in expected.items())


@pytest.mark.parametrize("kl", ["vocabulary", "target"])
def test_halvas_anchor_takes_what_its_batch_brings(trained, kl):
    objective, batch = Halva(kl=kl), make_batch(trained)
    clean = LanguageBatch(records=batch.records, pixel_values=batch.pixel_values, text=batch.chosen)
    live = trained.root(objective, clean)
    with trained.root.reference() as reference:
        told = objective.read_reference(reference, clean)
    assert tuple(told) == objective.reference_reads[LanguageBatch]
    assert live.loss_sum.item() > 0
    assert torch.equal(trained.root(objective, replace(clean, reference=told)).loss_sum, live.loss_sum)


def test_which_answers_of_the_reference_a_loss_reads():
    def reads(name, **settings):
        return Preference(LOSSES[name], **settings).reference_reads[PreferenceBatch]

    assert reads("dpo") == ("chosen_logps", "rejected_logps")
    assert reads("mdpo") == ("chosen_logps", "rejected_logps", "corrupted_logps")
    assert set(reads("chip")) == {*reads("mdpo"), "chosen_states", "rejected_states"}
    assert reads("dpo", terms=[]) == ()


def test_without_the_whole_reference_its_head_is_kept_alone(model):
    root = model.root
    head, before = root.head[0], root.head[0].detach().clone()  # tied to the embeddings, by whose name it goes
    root.keep_reference({name for name, _ in root.named_parameters()}, whole=False)
    with torch.no_grad():
        head.add_(1.0)
    kept, bias = root.reference_head
    assert bias is None
    assert torch.equal(kept, before)
    with pytest.raises(ValueError, match="reference: none is kept, or its output layer alone"), root.reference():
        pass
    with torch.no_grad():
        head.copy_(before)
    root.keep_reference((), whole=False)  # a head that does not train needs no copy
    assert root.reference_head[0].data_ptr() == head.data_ptr()
