"""Collators: every id, mask and label by hand, with the tokenizer of conftest."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from hialign.batch import LanguageBatch, PairBatch
from hialign.data import BadRecord, CaptionedImage, Conversation, LanguageCollator, PairCollator, Turn

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


@pytest.fixture
def added(tokenizer):
    """The tokenizer of conftest with <image> an added token, as templates want it, and a chat template."""
    own = pickle.loads(pickle.dumps(tokenizer))
    own.add_special_tokens({"additional_special_tokens": ["<image>"]})
    own.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
    return own


@pytest.fixture
def talk(tmp_path, write_image):
    """A function: name, number of images, (question, answer)s -> a conversation."""

    def make(name, images, *turns):
        paths = [write_image(tmp_path / f"{name}-{i}.jpg", seed=i) for i in range(images)]
        return Conversation(name, tuple(paths), tuple(Turn(*turn) for turn in turns))

    return make


def templated(added, image_processor, template, **settings):
    return LanguageCollator(added, image_processor, image_token_id=3, num_image_tokens=2, template=template, **settings)


SYSTEM = [4, 4, 4, 5, *[4] * 16, 9, 4, 4]  # v1's system prompt: of its words only "a" and "the" are known


def test_the_four_templates_by_hand(added, image_processor, talk):
    one = talk("1", 1, ("<image>\nthe table", "a red cup"))
    rows = {t: templated(added, image_processor, t).encode(one, RNG(0)) for t in ("plain_eos", "plain", "v1", "chat")}
    assert rows["plain_eos"].ids == [1, 3, 3, 5, 6, 7, 2]
    assert rows["plain_eos"].labels == [-100, -100, -100, 5, 6, 7, 2]
    assert rows["plain"].ids == [1, 3, 3, 5, 6, 7]  # this tokenizer drops the line end
    assert rows["plain"].labels == [-100, -100, -100, 5, 6, 7]
    assert rows["v1"].ids == [1, *SYSTEM, 4, 3, 3, 9, 10, 4, 5, 6, 7, 2]
    assert rows["v1"].labels == [-100] * 30 + [5, 6, 7, 2]
    assert rows["chat"].ids == [4, 4, 3, 3, 9, 10, 2, 4, 4, 5, 6, 7, 2]
    assert rows["chat"].labels == [-100] * 9 + [5, 6, 7, 2]


def test_rows_with_no_image_one_and_two_make_one_batch(added, image_processor, talk):
    collator = templated(added, image_processor, "chat")
    records = [
        talk("one", 1, ("<image> on", "a")),
        talk("none", 0, ("red", "cup"), ("on", "the")),
        talk("two", 2, ("<image> on <image>", "table")),
    ]
    items = [collator.encode(record, RNG(0)) for record in records]
    batch = collator.collate(items)
    assert batch.records == ("one", "none", "two")
    assert batch.pixel_values.shape == (3, 3, 8, 8)
    assert batch.text.ids.tolist() == [
        [4, 4, 3, 3, 8, 2, 4, 4, 5, 2, 0, 0, 0, 0, 0, 0],
        [4, 4, 6, 2, 4, 4, 7, 2, 4, 4, 8, 2, 4, 4, 9, 2],
        [4, 4, 3, 3, 8, 3, 3, 2, 4, 4, 10, 2, 0, 0, 0, 0],
    ]
    assert [[i for i in row if i != -100] for row in batch.text.labels.tolist()] == [[5, 2], [7, 2, 9, 2], [10, 2]]
    wanted = [collator.pixels(record) for record in (records[0], records[2])]
    assert torch.equal(batch.pixel_values, torch.cat(wanted))
    alone = collator.collate([items[1]])
    assert alone.pixel_values.shape == (0, 3, 8, 8)
    assert alone.pixel_values.dtype == torch.float32


def test_a_captioned_image_goes_through_every_template_and_begins_with_its_prompt(added, image_processor, record):
    for template in ("plain_eos", "plain", "v1", "chat"):
        collator = templated(added, image_processor, template)
        item, prompt = collator.encode(record("a red cup"), RNG(0)), collator.prompt(2)
        start = item.labels.index(5)
        assert prompt.ids.tolist() == [item.ids[:start]] * 2
        assert item.labels[:start] == [-100] * start
        assert item.ids[start : start + 3] == item.labels[start : start + 3] == [5, 6, 7]


def test_a_conversation_is_cut_on_the_right_and_a_caption_is_not(added, image_processor, talk, record):
    turns = [("<image> on", "a red"), ("the", "cup")]
    whole = templated(added, image_processor, "chat").encode(talk("1", 1, *turns), RNG(0))
    assert whole.ids == [4, 4, 3, 3, 8, 2, 4, 4, 5, 6, 2, 4, 4, 9, 2, 4, 4, 7, 2]
    for length in (9, 10, 14, 18):
        cut = templated(added, image_processor, "chat", max_length=length).encode(talk("1", 1, *turns), RNG(0))
        assert (cut.ids, cut.labels) == (whole.ids[:length], whole.labels[:length])
    with pytest.raises(BadRecord, match=r"of 19 tokens none that is to be predicted lies before max_length=8; raise"):
        templated(added, image_processor, "chat", max_length=8).encode(talk("1", 1, *turns), RNG(0))
    later = talk("1", 1, ("on", "a red"), ("<image> the", "cup"))
    with pytest.raises(BadRecord, match=r"1-0.jpg: 1: of 19 tokens some of an image lie behind max_length=12"):
        templated(added, image_processor, "chat", max_length=12).encode(later, RNG(0))
    for template in ("plain", "v1", "chat"):
        with pytest.raises(BadRecord, match=r"caption tokens are more than max_length=5; raise max_length"):
            templated(added, image_processor, template, max_length=5).encode(record("a red cup on the"), RNG(0))


def test_conversations_that_a_template_cannot_hold_are_bad_records(added, image_processor, talk):
    two = talk("2", 1, ("<image>", "a"), ("the", "cup"))
    text = talk("3", 0, ("the", "cup"))
    for template in ("plain", "plain_eos"):
        for bad in (two, text):
            with pytest.raises(BadRecord, match=f"template {template} holds"):
                templated(added, image_processor, template).encode(bad, RNG(0))
    for template in ("plain", "v1", "chat"):
        collator = templated(added, image_processor, template)
        with pytest.raises(BadRecord, match="a turn has no answer"):
            collator.encode(talk("4", 1, ("<image>", " ")), RNG(0))
        with pytest.raises(BadRecord, match=r"2 image tokens \(id 3\) in its text and 1 images"):
            collator.encode(talk("5", 1, ("<image>", "an <image>")), RNG(0))
    with pytest.raises(BadRecord, match="a conversation without an image: 6: 1 image tokens"):
        templated(added, image_processor, "v1").encode(talk("6", 0, ("<image>", "a")), RNG(0))


def test_a_template_that_the_tokenizer_does_not_serve_is_refused_at_once(tokenizer, added, image_processor):
    with pytest.raises(ValueError, match="template='vicuna': wanted"):
        templated(added, image_processor, "vicuna")
    with pytest.raises(ValueError, match="image_token_id=3 is no added token"):
        templated(tokenizer, image_processor, "v1")
    added.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="no token of its own"):
        templated(added, image_processor, "chat")
    added.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        templated(added, image_processor, "chat")


def test_an_image_in_memory_is_read_and_named(language, tmp_path, write_image):
    class Stored:
        def __init__(self, content):
            self.content = content

        def __str__(self):
            return "table.parquet"

        def read(self):
            return self.content

    path = write_image(tmp_path / "1.png")
    stored = CaptionedImage("1", Stored(path.read_bytes()), ("a cup",))
    assert torch.equal(
        language.encode(stored, RNG(0)).pixel_values,
        language.encode(CaptionedImage("1", path, ("a cup",)), RNG(0)).pixel_values,
    )
    with pytest.raises(BadRecord, match=r"table\.parquet: 7: the image cannot be read"):
        language.encode(CaptionedImage("7", Stored(path.read_bytes()[:60]), ("a cup",)), RNG(0))
