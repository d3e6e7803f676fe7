"""One token a word of the world, and no text that cannot be read."""

from __future__ import annotations

import pytest

from hialign.data.templates import V1_SYSTEM
from hialign.tabletop.language import DESCRIBE, FORMS, NUMBERS, PLURALS, TOPICS, caption, question
from hialign.tabletop.tokenizer import tokenizer
from hialign.tabletop.world import COLOURS, KINDS, SIZES, STATES, sample


@pytest.fixture(scope="module")
def words():
    return tokenizer()


def test_every_word_of_the_world_is_one_token_at_a_start_and_behind_a_space(words):
    for word in (*KINDS, *PLURALS.values(), *COLOURS, *SIZES, *STATES, *NUMBERS, "yes", "no"):
        assert len(words(word, add_special_tokens=False)["input_ids"]) == 1, word
        assert len(words(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word


def test_captions_and_questions_have_as_many_tokens_as_words_and_marks(words):
    for index in range(40):
        scene = sample("train", index, seed=0)
        rng = scene.rng(1)
        texts = [caption(scene, rng, paraphrase=1.0), DESCRIBE, V1_SYSTEM]
        texts += [q.text for topic in TOPICS if (q := question(scene, topic, rng)) is not None]
        for text in texts:
            pieces = (
                text.replace(":", " :")
                .replace(",", " ,")
                .replace(".", " .")
                .replace("?", " ?")
                .replace("'", " ' ")
                .split()
            )
            assert len(words(text, add_special_tokens=False)["input_ids"]) == len(pieces), text
    assert len(FORMS) > 1


@pytest.mark.parametrize("text", ["zebra crossing at 5 pm!", "grüße, 猫 ½", "tab\tand\nline", "redcup"])
def test_any_other_text_is_read_and_written_back(words, text):
    ids = words(text, add_special_tokens=False)["input_ids"]
    assert words.decode(ids, clean_up_tokenization_spaces=False) == text
    assert words.unk_token_id is None


def test_special_tokens_have_the_ids_that_the_text_tower_needs(words):
    assert words.eos_token_id != 2
    assert len({words.pad_token_id, words.bos_token_id, words.eos_token_id, words.image_token_id}) == 4
    assert words("a cup")["input_ids"][0] == words.bos_token_id
    assert words.image_token_id in words("<image>\na cup", add_special_tokens=False)["input_ids"]


def test_it_is_built_the_same_every_time(words):
    assert tokenizer().get_vocab() == words.get_vocab()


def test_the_chat_template_takes_texts_and_lists_of_parts(words):
    parts = [{"type": "image"}, {"type": "text", "text": "what is there?"}]
    texts = [
        words.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        for content in ("<image>\nwhat is there?", parts)
    ]
    assert texts == ["<s>user:\n<image>\nwhat is there?\nassistant:\n"] * 2
