"""Collators: every id, mask and label by hand, with the tokenizer of conftest."""

import pickle

import numpy as np
import pytest
import torch

from hialign.batch import LanguageBatch, PairBatch
from hialign.data import BadRecord, CaptionedImage, LanguageCollator, PairCollator

RNG = np.random.default_rng  # a fresh one for each item


@pytest.fixture
def record(tmp_path, write_image):
    def make(*captions, name="1"):
        return CaptionedImage(name, write_image(tmp_path / f"{name}.jpg", seed=int(name)), captions)

    return make


@pytest.fixture
def language(tokenizer, image_processor):
    return LanguageCollator(tokenizer, image_processor, image_token_id=3, num_image_tokens=2, max_length=8)


@pytest.fixture
def pairs(tokenizer, clip_tokenizer, image_processor):
    return PairCollator(tokenizer, clip_tokenizer, image_processor, max_length=4)


def test_a_language_batch_is_what_was_written_by_hand(language, record):
    items = [
        language.encode(record("a red cup "), RNG(0)),
        language.encode(record(" the table", name="2"), RNG(0)),
    ]
    batch = language.collate(items)
    assert isinstance(batch, LanguageBatch)
    assert batch.records == ("1", "2")
    assert batch.pixel_values.shape == (2, 3, 8, 8)
    assert batch.text.ids.tolist() == [[1, 3, 3, 5, 6, 7, 2], [1, 3, 3, 9, 10, 2, 0]]
    assert batch.text.mask.tolist() == [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]]
    assert batch.text.labels.tolist() == [[-100, -100, -100, 5, 6, 7, 2], [-100, -100, -100, 9, 10, 2, -100]]
    assert batch.text.ids.dtype == batch.text.mask.dtype == batch.text.labels.dtype == torch.int64


def test_the_pixels_are_those_of_the_image_processor(language, image_processor, record):
    from PIL import Image

    one = record("a cup")
    with Image.open(one.image) as image:
        wanted = image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(language.encode(one, RNG(0)).pixel_values, wanted[None], rtol=0, atol=0)


def test_a_prompt_is_how_every_row_begins(language, record):
    prompt = language.prompt(2)
    assert prompt.ids.tolist() == [[1, 3, 3], [1, 3, 3]]
    assert prompt.mask.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert prompt.labels.tolist() == [[-100] * 3] * 2
    assert language.encode(record("a cup"), RNG(0)).ids[:3] == prompt.ids[0].tolist()


def test_a_row_that_just_fits_is_kept_and_a_longer_one_is_named(language, record):
    assert len(language.encode(record("a red cup on"), RNG(0)).ids) == 8
    with pytest.raises(BadRecord, match=r"1\.jpg: 1: 3 prompt \+ 6 caption tokens are more than max_length=8; raise"):
        language.encode(record("a red cup on the"), RNG(0))


def test_an_image_token_or_nothing_in_a_caption_is_a_bad_record(language, record):
    with pytest.raises(BadRecord, match="contains the image token, id 3"):
        language.encode(record("a <image> cup"), RNG(0))
    with pytest.raises(BadRecord, match="has no tokens"):
        language.encode(record("  "), RNG(0))


def test_a_pair_batch_is_what_was_written_by_hand(pairs, record):
    items = [pairs.encode(record(" red cup"), RNG(0)), pairs.encode(record("a", name="2"), RNG(0))]
    batch = pairs.collate(items)
    assert isinstance(batch, PairBatch)
    assert batch.records == ("1", "2")
    assert batch.pixel_values.shape == (2, 3, 8, 8)
    assert batch.caption.ids.tolist() == [[1, 6, 7, 2], [1, 5, 2, 0]]
    assert batch.caption.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.clip_caption.ids.tolist() == [[3, 1, 2, 4], [3, 0, 4, 4]]
    assert batch.clip_caption.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    for tokens in (batch.caption, batch.clip_caption):
        assert (tokens.labels == -100).all()
        assert tokens.labels.shape == tokens.ids.shape


def test_a_clip_caption_is_cut_and_keeps_its_end(pairs, record):
    item = pairs.encode(record("a red cup on"), RNG(0))
    assert item.clip_caption == [3, 0, 1, 4]
    assert item.caption == [1, 5, 6, 7, 8, 2]


def test_the_generator_chooses_the_caption_evenly(language, record):
    one = record("a", "red", "cup")
    chosen = [language.encode(one, RNG(seed)).ids[3] for seed in range(150)]
    assert chosen == [language.encode(one, RNG(seed)).ids[3] for seed in range(150)]
    assert all(30 < chosen.count(token) < 70 for token in (5, 6, 7))


def test_tokens_that_are_needed_but_missing_are_named(tokenizer, clip_tokenizer, image_processor, record):
    lacking = pickle.loads(pickle.dumps(tokenizer))
    lacking.pad_token = None
    with pytest.raises(ValueError, match=r"tokenizer has no pad_token; set tokenizer.pad_token"):
        LanguageCollator(lacking, image_processor, image_token_id=3, num_image_tokens=2)
    with pytest.raises(ValueError, match="clip_tokenizer has no pad_token"):
        PairCollator(tokenizer, lacking, image_processor)
    with pytest.raises(ValueError, match="max_length=2"):
        PairCollator(tokenizer, clip_tokenizer, image_processor, max_length=2)


def test_a_tokenizer_without_bos_gives_rows_without_it(tokenizer, image_processor, record):
    lacking = pickle.loads(pickle.dumps(tokenizer))
    lacking.bos_token = None
    collator = LanguageCollator(lacking, image_processor, image_token_id=3, num_image_tokens=2)
    assert collator.encode(record("cup"), RNG(0)).ids == [3, 3, 7, 2]
    assert collator.prompt().ids.tolist() == [[3, 3]]


def test_collators_can_be_sent_to_workers(language, pairs, record):
    for collator in (language, pairs):
        again = pickle.loads(pickle.dumps(collator))
        before, after = collator.encode(record("a", "cup"), RNG(0)), again.encode(record("a", "cup"), RNG(0))
        assert torch.equal(before.pixel_values, after.pixel_values)
