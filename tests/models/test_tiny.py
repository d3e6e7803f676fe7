"""tiny and its tokenizer."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from hialign.models import Model, count, set_trainable, tiny
from hialign.models.parts import make_projector_linear
from hialign.models.tokenizer import SPECIAL, tiny_tokenizer


def weights(model: Model) -> dict[str, torch.Tensor]:
    return dict(model.root.named_parameters())


def test_tiny_has_a_llava_of_about_a_million_parameters(model):
    assert 0.95e6 < sum(p.numel() for p in model.root.llava.parameters()) < 1.05e6


def test_the_same_seed_gives_the_same_weights_whatever_the_global_generator_says(model):
    torch.manual_seed(123)
    again = tiny(seed=0)
    assert weights(again).keys() == weights(model).keys()
    assert all(torch.equal(tensor, weights(model)[name]) for name, tensor in weights(again).items())


def test_another_seed_gives_other_weights_in_every_part(model):
    other = weights(tiny(seed=1))
    drawn = [name for name, tensor in weights(model).items() if tensor.dim() > 1]
    assert len(drawn) > 50
    assert not [name for name in drawn if torch.equal(other[name], weights(model)[name])]


def test_no_global_generator_is_touched():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = states()
    tiny(seed=7)
    assert states() == before


def test_settings_decide_the_shapes():
    made = tiny(seed=0, image_size=32, patch_size=16, vocabulary=600, width=64, layers=2, temperature=0.2)
    config = made.root.llava.config
    assert made.num_image_tokens == 4
    assert (config.text_config.hidden_size, config.vision_config.hidden_size) == (64, 48)
    assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (2, 2)
    assert made.root.llava.get_input_embeddings().weight.shape == (600, 64)
    assert made.root.temperature.item() == pytest.approx(0.2)
    assert made.root.temperature.shape == (1,)


def test_an_unknown_projector_is_an_error():
    with pytest.raises(ValueError, match="projector: got 'mlp', wanted one of mlp2x_gelu, linear"):
        tiny(seed=0, projector="mlp")


def test_the_default_projector_is_two_layers_around_a_gelu(model):
    projector = model.root.llava.model.multi_modal_projector
    states = torch.randn(2, 5, 96)
    hidden = torch.nn.functional.gelu(states @ projector.linear_1.weight.T + projector.linear_1.bias)
    by_hand = hidden @ projector.linear_2.weight.T + projector.linear_2.bias
    torch.testing.assert_close(projector(states), by_hand)
    assert torch.equal(
        tiny(seed=0, projector="mlp2x_gelu").root.llava.model.multi_modal_projector(states), projector(states)
    )


@pytest.fixture(scope="module")
def linear() -> Model:
    return tiny(seed=0, projector="linear")


def test_a_linear_projector_is_exactly_one_linear_map(linear):
    projector = linear.root.llava.model.multi_modal_projector
    torch.nn.init.normal_(projector.linear_1.bias)  # it starts at zero
    states = torch.randn(2, 5, 96)
    # the identity multiplies by one and adds zeros: nothing is rounded
    assert torch.equal(projector(states), projector.linear_1(states))
    matrix = projector(torch.eye(96)) - projector(torch.zeros(1, 96))  # (96, 128): the images of the unit vectors
    torch.testing.assert_close(projector(states), states @ matrix + projector(torch.zeros(1, 96)))
    torch.testing.assert_close(matrix, projector.linear_1.weight.T)


def test_a_trained_second_layer_becomes_the_identity():
    root = tiny(seed=0).root
    second = root.llava.model.multi_modal_projector.linear_2
    torch.nn.init.normal_(second.bias)
    make_projector_linear(root)
    states = torch.randn(2, 128)
    assert torch.equal(second(states), states)


def test_the_identity_of_a_linear_projector_never_trains(linear):
    set_trainable(linear.root, {"projector": "full", "llm": "full"})
    parts = {part.part: part for part in count(linear.root)}
    assert parts["projector"].total - parts["projector"].trainable == 128 * 128 + 128
    projector = linear.root.llava.model.multi_modal_projector
    projector(torch.randn(2, 96)).sum().backward()
    assert projector.linear_1.weight.grad is not None
    assert projector.linear_2.weight.grad is None
    assert projector.linear_2.bias.grad is None


TEXTS = (
    "a red cup on the table",
    "the children's ball isn't here, it's theirs!",
    "a café in málaga; naïve façades",
    "three dogs (two brown) at 12:30 ... really?",
    "„straße“ — 東京 🐕",
    "x",
)


@pytest.mark.parametrize("text", TEXTS)
def test_ordinary_text_survives_the_tokenizer_up_to_spaces(model, text: str):
    tokenizer = model.processor.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids)
    assert back.replace(" ", "") == text.replace(" ", "")
    assert (
        tokenizer(back, add_special_tokens=False)["input_ids"] == ids
    )  # so what a model says can be learnt from again
    assert all(len(SPECIAL) <= i < len(tokenizer) for i in ids)


def test_words_of_plain_text_come_back_with_their_spaces(model):
    tokenizer = model.processor.tokenizer
    text = "two small dogs in málaga sit near a window"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


def test_a_row_begins_with_the_start_token_as_in_training(model):
    tokenizer = model.processor.tokenizer
    assert tokenizer("a cup")["input_ids"] == [
        tokenizer.bos_token_id,
        *tokenizer("a cup", add_special_tokens=False)["input_ids"],
    ]


def test_text_is_lower_cased_and_composed(model):
    tokenizer = model.processor.tokenizer
    assert tokenizer("A Red CUP")["input_ids"] == tokenizer("a red cup")["input_ids"]
    assert tokenizer("cafe\u0301")["input_ids"] == tokenizer("caf\u00e9")["input_ids"]


def test_more_merges_give_fewer_tokens():
    text = "a photograph of children playing football"
    lengths = [len(tiny_tokenizer(size)(text, add_special_tokens=False)["input_ids"]) for size in (516, 2048, 8192)]
    assert lengths[0] == len(text.replace(" ", ""))  # no merge: one letter each
    assert lengths[0] > lengths[1] > lengths[2]


@pytest.mark.parametrize("size", [516, 2048])
def test_the_vocabulary_has_the_size_that_was_asked_for(size: int):
    assert len(tiny_tokenizer(size)) == size
    assert sorted(tiny_tokenizer(size).get_vocab().values()) == list(range(size))


@pytest.mark.parametrize("size", [515, 10**7])
def test_a_vocabulary_outside_its_bounds_is_an_error(size: int):
    with pytest.raises(ValueError, match=f"vocabulary: got {size}, wanted between 516 and "):
        tiny_tokenizer(size)


def test_special_tokens_are_single_ids_of_their_own(model):
    tokenizer = model.processor.tokenizer
    ids = [tokenizer(token, add_special_tokens=False)["input_ids"] for token in SPECIAL.values()]
    assert ids == [
        [tokenizer.pad_token_id],
        [tokenizer.image_token_id],
        [tokenizer.bos_token_id],
        [tokenizer.eos_token_id],
    ]
    assert len({i for row in ids for i in row}) == len(SPECIAL)
    assert tokenizer("a <image>cup")["input_ids"][2] == tokenizer.image_token_id
    assert model.root.llava.config.image_token_index == tokenizer.image_token_id


def test_the_end_token_is_not_2_because_the_text_tower_would_read_the_highest_id_instead(model, make_tokens):
    # Hugging Face takes an end token of 2 for a sign of an old, wrong config
    tokenizer, tower = model.clip_tokenizer, model.root.alignment.text
    assert tokenizer.eos_token_id != 2
    assert tower.config.eos_token_id == tokenizer.eos_token_id
    caption = make_tokens([[tokenizer.bos_token_id, 900, 50, tokenizer.eos_token_id]])
    output = tower(input_ids=caption.ids, attention_mask=caption.mask)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 3])

    trap = type(tower)(type(tower.config)(**{**tower.config.to_dict(), "eos_token_id": 2})).eval()
    ids = torch.tensor([[1, 900, 50, 2]])
    output = trap(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 1])  # at 900, not at the end
