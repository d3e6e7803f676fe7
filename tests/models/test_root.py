"""Root: what each loss reads and reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hialign.batch import Tokens
from hialign.models import Root, checkpoint_activations, part_of, tiny
from hialign.objectives import Contrastive, NextToken

ALL_PAIRS = ("clip", "projector", "llm")
WHAT = {
    "clip": Contrastive(["clip"]),
    "projector": Contrastive(["projector"]),
    "llm": Contrastive(["llm"]),
    "task": NextToken(),
}


@pytest.fixture(scope="module")
def trained() -> Root:
    """A model whose gradients the tests take; its weights stay as they are."""
    return tiny(seed=0).root


def gradients(root: Root, name: str, language_batch, pair_batch) -> dict[str, Tensor]:
    root.train()
    root.zero_grad(set_to_none=True)
    objective = WHAT[name] if name in WHAT else Contrastive(ALL_PAIRS)
    result = root(objective, language_batch if objective.batch_type is type(language_batch) else pair_batch)
    (result.loss_sum / result.weight).backward()
    return {name: p.grad.clone() for name, p in root.named_parameters() if p.grad is not None}


def count_runs(modules: list[nn.Module], work: Callable[[], object]) -> list[int]:
    """How often each module runs forward during ``work``."""
    runs = [0] * len(modules)

    def note(place: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            runs[place] += 1

        return hook

    hooks = [module.register_forward_pre_hook(note(place)) for place, module in enumerate(modules)]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    return runs


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ("clip", {"vision", "text", "heads", "temperature"}),
        ("projector", {"vision", "projector", "llm", "heads", "temperature"}),
        ("llm", {"vision", "projector", "llm", "heads", "temperature"}),
        ("task", {"vision", "projector", "llm"}),
    ],
)
def test_each_loss_reaches_its_parts_and_no_other(trained, language_batch, pair_batch, loss: str, parts: set[str]):
    reached = gradients(trained, loss, language_batch, pair_batch)
    assert {part_of(name) for name in reached} == parts
    # reached is not only a graph: each part also gets a gradient
    moved = {part_of(name) for name, gradient in reached.items() if bool((gradient != 0).any())}
    assert moved == parts


def test_of_the_llm_the_projector_pair_reaches_the_embedding_table_alone(trained, language_batch, pair_batch):
    reached = gradients(trained, "projector", language_batch, pair_batch)
    of_llm = {name for name in reached if part_of(name) == "llm"}
    assert of_llm == {"llava.model.language_model.embed_tokens.weight"}
    rows = reached[of_llm.pop()].abs().sum(dim=1).nonzero().flatten().tolist()
    assert rows == sorted(set(pair_batch.caption.ids[pair_batch.caption.mask == 1].tolist()))  # padding gets none


def test_the_llm_pair_reaches_every_layer_of_the_llm(trained, language_batch, pair_batch):
    reached = gradients(trained, "llm", language_batch, pair_batch)
    assert {n for n, _ in trained.named_parameters() if part_of(n) == "llm"} <= set(reached)


def test_only_the_clip_pair_reaches_what_lies_behind_the_layer_that_the_llm_reads(trained, language_batch, pair_batch):
    behind = {"llava.model.vision_tower.encoder.layers.2.", "llava.model.vision_tower.post_layernorm."}
    for loss in WHAT:
        reached = {
            prefix for prefix in behind for n in gradients(trained, loss, language_batch, pair_batch) if prefix in n
        }
        assert reached == (behind if loss == "clip" else set()), loss


@pytest.mark.parametrize("pair", ALL_PAIRS)
def test_a_pair_reaches_its_own_heads_only(trained, language_batch, pair_batch, pair: str):
    heads = {n for n in gradients(trained, pair, language_batch, pair_batch) if part_of(n) == "heads"}
    assert heads == {f"alignment.heads.{pair}_{side}.weight" for side in ("image", "text")}


def test_forward_gives_what_the_objective_gives(model, pair_batch):
    seen = []
    assert model.root(lambda parts, batch: seen.append((parts, batch)) or "this", pair_batch) == "this"
    assert seen == [(model.root, pair_batch)]


def test_next_token_logits_are_those_of_the_llava(model, language_batch):
    text = language_batch.text
    with torch.no_grad():
        ours = model.root.next_token_logits(language_batch.pixel_values, text)
        output = model.root.llava(
            input_ids=text.ids, attention_mask=text.mask, pixel_values=language_batch.pixel_values, labels=text.labels
        )
    assert torch.equal(ours, output.logits)
    assert ours.shape == (*text.ids.shape, 2048)
    result = model.root(NextToken(), language_batch)
    torch.testing.assert_close(result.loss_sum / result.weight, output.loss)


def test_padding_of_a_row_of_text_does_not_change_its_logits(model, language_batch):
    text = language_batch.text
    with torch.no_grad():
        together = model.root.next_token_logits(language_batch.pixel_values, text)
        for row, length in enumerate(text.mask.sum(dim=1).tolist()):
            alone = Tokens(**{f: getattr(text, f)[row : row + 1, :length] for f in ("ids", "mask", "labels")})
            logits = model.root.next_token_logits(language_batch.pixel_values[row : row + 1], alone)
            torch.testing.assert_close(together[row, :length], logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pair", ALL_PAIRS)
@pytest.mark.parametrize("pad", [0, 3, 900])
def test_padding_does_not_change_a_captions_embedding(model, caption_ids, make_tokens, pair: str, pad: int):
    # 3 is the end token, with which CLIP's own tokenizer pads
    padded = make_tokens(caption_ids, pad=pad, length=20)
    with torch.no_grad():
        together = model.root.text_embeddings(padded, padded, (pair,))[pair]
        for row, ids in enumerate(caption_ids):
            alone = make_tokens([ids])
            torch.testing.assert_close(together[row], model.root.text_embeddings(alone, alone, (pair,))[pair][0])
    assert (together[0] - together[1]).norm() > 0.01  # captions do differ


def test_the_clip_pair_reads_the_end_token(model, caption_ids, make_tokens):
    alignment, tokens = model.root.alignment, make_tokens(caption_ids)
    with torch.no_grad():
        states = alignment.text(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        ends = [len(ids) - 1 for ids in caption_ids]
        assert len(set(ends)) == 3
        by_hand = (
            torch.stack([states[row, end] for row, end in enumerate(ends)]) @ alignment.heads["clip_text"].weight.T
        )
        torch.testing.assert_close(model.root.text_embeddings(tokens, tokens, ("clip",))["clip"], by_hand)


def test_the_projector_pairs_text_is_the_mean_embedding_of_the_tokens_without_padding(model, caption_ids, make_tokens):
    tokens = make_tokens(caption_ids, pad=900)
    table, head = model.root.llava.get_input_embeddings().weight, model.root.alignment.heads["projector_text"]
    by_hand = torch.stack([table[ids].mean(dim=0) for ids in caption_ids]) @ head.weight.T
    torch.testing.assert_close(model.root.text_embeddings(tokens, tokens, ("projector",))["projector"], by_hand)


def test_the_llm_pairs_text_is_the_last_state_of_the_llm_at_the_last_token(model, caption_ids, make_tokens):
    tokens, head = make_tokens(caption_ids), model.root.alignment.heads["llm_text"]
    with torch.no_grad():
        for row, ids in enumerate(caption_ids):
            states = model.root.llava.model.language_model(input_ids=torch.tensor([ids])).last_hidden_state
            ours = model.root.text_embeddings(tokens, tokens, ("llm",))["llm"][row]
            torch.testing.assert_close(ours, states[0, -1] @ head.weight.T)


def test_image_embeddings_are_read_where_the_llava_reads_its_images(model, pair_batch):
    llava, heads, pixels = model.root.llava, model.root.alignment.heads, pair_batch.pixel_values
    with torch.no_grad():
        ours = model.root.image_embeddings(pixels, ALL_PAIRS)
        tokens = torch.stack(list(llava.get_image_features(pixels).pooler_output))  # (batch, patches, width)
        assert tokens.shape == (3, model.num_image_tokens, 128)
        pooled = llava.model.vision_tower(pixels).pooler_output
        end = llava.get_input_embeddings().weight[model.processor.tokenizer.eos_token_id].expand(3, 1, -1)
        last = llava.model.language_model(inputs_embeds=torch.cat([tokens, end], dim=1)).last_hidden_state[:, -1]
        torch.testing.assert_close(ours["clip"], heads["clip_image"](pooled))
        torch.testing.assert_close(ours["projector"], heads["projector_image"](tokens.mean(dim=1)))
        torch.testing.assert_close(ours["llm"], heads["llm_image"](last))


@pytest.mark.parametrize("pairs", [*((pair,) for pair in ALL_PAIRS), ALL_PAIRS, ("projector", "clip")])
def test_embeddings_of_a_pair_do_not_depend_on_the_other_pairs(model, pair_batch, pairs: tuple[str, ...]):
    with torch.no_grad():
        every = model.root.image_embeddings(pair_batch.pixel_values, ALL_PAIRS)
        some = model.root.image_embeddings(pair_batch.pixel_values, pairs)
    assert tuple(some) == pairs
    for pair in pairs:
        assert some[pair].shape == (3, 64)
        torch.testing.assert_close(some[pair], every[pair])


@pytest.mark.parametrize(("pairs", "projector_runs"), [(("clip",), 0), (ALL_PAIRS, 1)])
def test_the_image_tower_runs_once_for_all_pairs_and_the_projector_only_if_one_reads_it(
    model, pair_batch, pairs: tuple[str, ...], projector_runs: int
):
    inner = model.root.llava.model
    with torch.no_grad():
        runs = count_runs(
            [inner.vision_tower, inner.multi_modal_projector],
            lambda: model.root.image_embeddings(pair_batch.pixel_values, pairs),
        )
    assert runs == [1, projector_runs]


@pytest.mark.parametrize("loss", ["task", "all pairs"])
def test_gradient_checkpointing_leaves_the_gradients_as_they_are(language_batch, pair_batch, loss: str):
    root = tiny(seed=0).root
    # inside a layer: transformers 5.23 checkpoints a layer's forward, so that the layer's own hooks run once
    layers = [
        root.llava.model.language_model.layers[0].self_attn,
        root.llava.model.vision_tower.encoder.layers[0].self_attn,
    ]
    plain = gradients(root, loss, language_batch, pair_batch)
    runs = count_runs(layers, lambda: gradients(root, loss, language_batch, pair_batch))
    checkpoint_activations(root)
    again: dict[str, Tensor] = {}
    rerun = count_runs(layers, lambda: again.update(gradients(root, loss, language_batch, pair_batch)))
    assert rerun == [2 * count for count in runs]  # it was on, in both
    assert again.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["task", "all pairs"])
def test_bf16_autocast_runs_finite_and_close_to_fp32(trained, language_batch, pair_batch, loss: str):
    exact = gradients(trained, loss, language_batch, pair_batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradients(trained, loss, language_batch, pair_batch)
    assert rounded.keys() == exact.keys()
    assert all(gradient.dtype == torch.float32 for gradient in rounded.values())
    assert all(bool(gradient.isfinite().all()) for gradient in rounded.values())
    ours, theirs = (torch.cat([g.flatten() for g in grads.values()]) for grads in (rounded, exact))
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.95
    assert not torch.equal(ours, theirs)  # bf16 was in use


def test_the_temperature_is_the_exponential_of_its_parameter_and_has_one_element(trained):
    assert trained.temperature.shape == (1,)  # FSDP refuses scalars
    assert trained.temperature.item() == pytest.approx(0.07)
    (gradient,) = torch.autograd.grad(trained.temperature.sum(), [trained.alignment.log_temperature])
    assert gradient.item() == pytest.approx(0.07)


def test_a_batch_without_images_gives_what_the_language_model_alone_gives_and_reaches_the_tower():
    root = tiny(seed=0, width=32, layers=2).root
    ids = torch.tensor([[2, 40, 41, 3], [2, 50, 51, 3]])
    text = Tokens(ids=ids, mask=torch.ones_like(ids), labels=ids)
    logits = root.next_token_logits(torch.empty(0, 3, 64, 64), text)
    torch.testing.assert_close(logits, root.llava(input_ids=ids, attention_mask=text.mask).logits)
    logits.sum().backward()
    for part in (root.llava.model.multi_modal_projector.linear_1, root.llava.model.vision_tower.pre_layrnorm):
        assert part.weight.grad is not None
        assert not part.weight.grad.any()


@pytest.mark.parametrize("method", ["next_token_logits", "text_states"])
def test_image_features_in_the_place_of_pixels_give_the_same_and_spare_the_tower(model, language_batch, method):
    root, pixels, text = model.root, language_batch.pixel_values, language_batch.text
    read: Any = getattr(root, method)
    found: list[Tensor] = []
    with torch.no_grad():
        features = root.image_features(pixels)
        assert features.shape == (len(pixels), model.num_image_tokens, root.llava.config.vision_config.hidden_size)
        runs = count_runs([root.llava.model.vision_tower], lambda: found.append(read(features, text)))
        assert runs == [0]
        assert torch.equal(found[0], read(pixels, text))
        bare = replace(text, ids=text.ids * 0 + 40)
        assert torch.equal(read(features[:0], bare), read(pixels[:0], bare))
