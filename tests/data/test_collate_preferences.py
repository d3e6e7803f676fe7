"""Preference and hallucinated batches: ids, labels, starts and phrases by hand, and what is refused by name."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hialign.batch import HallucinatedBatch, PreferenceBatch
from hialign.data import (
    Answer,
    BadRecord,
    Dataset,
    HallucinatedCollator,
    HallucinatedImage,
    Loader,
    Preference,
    PreferenceCollator,
    Turn,
)
from hialign.data.corrupt import KINDS, noised

RNG = np.random.default_rng
CHAT = (  # <s> q question a answer </s>, and so on
    "{{ '<s> ' }}{% for m in messages %}{{ 'q ' if m['role'] == 'user' else 'a ' }}{{ m['content'] + ' ' }}"
    "{{ '</s> ' if m['role'] == 'assistant' }}{% endfor %}"
)
WORDS = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "q", "a", "what", "red", "cup", "dog", "on", "table", "two"]


@pytest.fixture(scope="module")
def words():
    """<s> 1, </s> 2, <image> 3, q 5, a 6, what 7, red 8, cup 9, dog 10, on 11, table 12, two 13."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    fast.chat_template = CHAT
    return fast


@pytest.fixture
def collator(words, image_processor):
    def make(**changes):
        settings = {"image_token_id": 3, "num_image_tokens": 2, "max_length": 24, "template": "chat"} | changes
        return PreferenceCollator(words, image_processor, **settings)

    return make


@pytest.fixture
def record(tmp_path, write_image):
    """A function: chosen, rejected -> a record; a text or an Answer each, ``images`` pictures of its own number."""

    def make(chosen="red cup", rejected="dog", *, name="1", images=1, turns=None):
        paths = tuple(write_image(tmp_path / f"{name}-{i}.jpg", seed=int(name) + 10 * i) for i in range(images))
        turns = turns or (Turn("<image>\n" * images + "what", ""),)
        answers = tuple(a if isinstance(a, Answer) else Answer(a) for a in (chosen, rejected))
        return Preference(name, paths, turns, answers)

    return make


def test_a_batch_is_what_was_written_by_hand(collator, record):
    collate = collator()
    batch = collate.collate(
        [collate.encode(record(), RNG(0)), collate.encode(record("cup", "two dog on table", name="2"), RNG(0))]
    )
    assert isinstance(batch, PreferenceBatch)
    assert batch.records == ("1", "2")
    prompt = [1, 5, 3, 3, 7, 6]
    assert batch.chosen.ids.tolist() == [[*prompt, 8, 9, 2], [*prompt, 9, 2, 0]]
    assert batch.rejected.ids.tolist() == [[*prompt, 10, 2, 0, 0, 0], [*prompt, 13, 10, 11, 12, 2]]
    assert batch.chosen.labels.tolist() == [[-100] * 6 + [8, 9, 2], [-100] * 6 + [9, 2, -100]]
    assert batch.chosen.mask.tolist() == [[1] * 9, [1] * 8 + [0]]
    assert batch.rejected.mask.sum(dim=1).tolist() == [8, 11]
    assert batch.starts.tolist() == [6, 6]
    assert batch.starts.dtype == batch.chosen.ids.dtype == torch.int64
    assert batch.pixel_values.shape == (2, 3, 8, 8)
    assert (batch.corrupted_pixel_values, batch.chosen_phrases, batch.rejected_phrases) == (None, None, None)
    assert batch.to("meta").starts.device.type == "meta"


def test_labels_are_on_the_last_answer_alone_and_both_sides_begin_alike(collator, record):
    turns = (Turn("<image>\nwhat", "red"), Turn("on", ""))
    item = collator().encode(record("two cup", "two dog", turns=turns), RNG(0))
    assert item.chosen.ids == [1, 5, 3, 3, 7, 6, 8, 2, 5, 11, 6, 13, 9, 2]
    assert item.start == 11  # the answers' common "two" is behind it
    assert item.chosen.labels == [-100] * 11 + [13, 9, 2]
    assert item.chosen.ids[: item.start] == item.rejected.ids[: item.start]


def test_v1_holds_the_same_in_its_own_words(words, record, image_processor, collator):
    item = collator(template="v1", max_length=100).encode(record(), RNG(0))
    assert item.chosen.ids[-3:] == item.chosen.labels[-3:] == [8, 9, 2]
    assert set(item.chosen.labels[:-3]) == {-100}
    assert item.start == len(item.chosen.ids) - 3
    assert item.chosen.ids.count(3) == 2


def joining():
    """A tokenizer that joins the prompt's last character with an answer's first: ":" and "(" are one token."""
    pieces = [*"<>s/:(abcdefghijklmnopqrtuvwxyz.,' \n'ASITURENO", ":("]
    inner = Tokenizer(models.BPE({p: i for i, p in enumerate(dict.fromkeys(pieces))}, [(":", "(")]))
    fast = PreTrainedTokenizerFast(tokenizer_object=inner)
    fast.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}"
        "{{ '</s>' if m['role'] == 'assistant' }}{% endfor %}"
    )
    return fast


def test_a_token_that_joins_the_prompt_with_an_answer_is_behind_the_start(record, image_processor):
    tokenizer = joining()
    image = tokenizer.convert_tokens_to_ids("<image>")
    collate = PreferenceCollator(
        tokenizer, image_processor, image_token_id=image, num_image_tokens=1, max_length=99, template="chat"
    )
    item = collate.encode(record("(a", "b"), RNG(0))
    joined, colon = (tokenizer.convert_tokens_to_ids(token) for token in (":(", ":"))
    assert item.chosen.ids[item.start] == joined == item.chosen.labels[item.start]
    assert (item.rejected.ids[item.start], item.rejected.labels[item.start]) == (colon, -100)
    assert item.chosen.ids[: item.start] == item.rejected.ids[: item.start]
    assert item.rejected.labels[item.start + 1] == tokenizer.convert_tokens_to_ids("b")


def test_rows_may_have_several_images_or_none(collator, record):
    collate = collator()
    items = [collate.encode(record(name="1", images=0), RNG(0)), collate.encode(record(name="2", images=2), RNG(0))]
    batch = collate.collate(items)
    assert batch.pixel_values.shape == (2, 3, 8, 8)
    assert (batch.chosen.ids == 3).sum(dim=1).tolist() == [0, 4]
    assert batch.starts.tolist() == [4, 8]


def test_a_set_without_images_has_a_batch_without_them(collator, record):
    collate = collator()
    batch = collate.collate([collate.encode(record(name=str(i), images=0), RNG(0)) for i in range(2)])
    assert batch.pixel_values.shape == (0, 3, 8, 8)
    assert batch.corrupted_pixel_values is None


MANY = " ".join(["red"] * 30)


@pytest.mark.parametrize(
    ("made", "settings", "problem"),
    [
        ({"rejected": ""}, {}, "1: rejected is empty; mend the record"),
        ({"rejected": "red  cup"}, {}, "1: chosen and rejected are the same: 'red cup'"),
        ({"chosen": "fig", "rejected": "kiwi"}, {}, "1: chosen and rejected are the same to the tokenizer"),
        ({"rejected": MANY}, {}, "of 37 tokens of rejected the answer's end lies behind max_length=24; raise"),
        ({"images": 12}, {}, "of 31 tokens of chosen some of an image lie behind max_length=24"),
        ({"turns": (Turn("what", ""),)}, {}, "0 placeholders <image> and 1 images"),
        ({"images": 0}, {"corrupt": "noise"}, "a preference without an image: 1: it has no image, and corrupt='noise'"),
        ({}, {"phrases": True}, "0 phrases in chosen and 0 in rejected"),
    ],
)
def test_what_cannot_be_set_against_each_other_is_refused_by_name(collator, record, made, settings, problem):
    with pytest.raises(BadRecord, match=problem):
        collator(**settings).encode(record(**made), RNG(0))


def test_phrases_are_in_the_tokens_that_touch_their_characters(collator, record):
    chosen = Answer("red cup on table", ((0, 7), (11, 16)))
    rejected = Answer("dog on two table", ((0, 3), (7, 10)))
    collate = collator(phrases=True)
    batch = collate.collate(
        [
            collate.encode(record(chosen, rejected), RNG(0)),
            collate.encode(record(Answer("cup", ((0, 2),)), Answer("dog", ((1, 3),)), name="2"), RNG(0)),
        ]
    )
    zeros = [0] * 6
    assert batch.chosen_phrases.tolist() == [[*zeros, 1, 1, 0, 2, 0], [*zeros, 1, 0, 0, 0, 0]]
    assert batch.rejected_phrases.tolist() == [[*zeros, 1, 0, 2, 0, 0], [*zeros, 1, 0, 0, 0, 0]]
    assert batch.chosen_phrases.shape == batch.chosen.ids.shape
    assert batch.chosen_phrases.dtype == torch.int64


@pytest.mark.parametrize(
    ("chosen", "rejected", "problem"),
    [
        (Answer("red cup", ((0, 3), (4, 7))), Answer("dog", ((0, 3),)), "2 phrases in chosen and 1 in rejected"),
        (Answer("red cup", ((0, 3),)), Answer("dog"), "1 phrases in chosen and 0 in rejected"),
        (
            Answer("red cup", ((0, 1), (1, 3))),
            Answer("dog on", ((0, 3), (4, 6))),
            "phrase 1 of chosen has no token of its own",
        ),
    ],
)
def test_phrases_that_do_not_match_are_refused_by_name(collator, record, chosen, rejected, problem):
    with pytest.raises(BadRecord, match=problem):
        collator(phrases=True).encode(record(chosen, rejected), RNG(0))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("other", "crop")])
def test_every_image_of_a_row_is_corrupted_as_its_generator_decides(collator, record, kind):
    collate, row = collator(corrupt=kind), record(images=2)
    one, same, other = (collate.encode(row, RNG(seed)) for seed in (1, 1, 2))
    assert one.corrupted.shape == one.pixel_values.shape == (2, 3, 8, 8)
    assert torch.equal(one.corrupted, same.corrupted)
    assert torch.equal(one.corrupted, other.corrupted) == (kind == "grey")
    assert torch.equal(one.pixel_values, other.pixel_values)  # the true image is what it was
    batch = collate.collate([one, collate.encode(record(name="2"), RNG(0))])
    assert batch.corrupted_pixel_values.shape == batch.pixel_values.shape == (3, 3, 8, 8)


def test_a_crop_of_a_large_image_is_of_the_image_and_one_that_cuts_nothing_off_is_refused(collator, record, tmp_path):
    picture = Image.fromarray(RNG(0).integers(0, 256, size=(400, 400, 3), dtype=np.uint8))
    picture.save(tmp_path / "large.png")
    large = replace(record(), images=(tmp_path / "large.png",))
    one, other = (collator(corrupt="crop").encode(large, RNG(seed)).corrupted for seed in (1, 2))
    assert one.shape == (1, 3, 8, 8)
    assert not torch.equal(one, other)
    with pytest.raises(BadRecord, match="1: corrupt='crop' leaves image 1 of 1 as it is; use another"):
        collator(corrupt="crop").encode(record(), RNG(0))


def test_noise_is_on_the_normalised_pixels(collator, record):
    item = collator(corrupt="noise", noise_step=700).encode(record(), RNG(4))
    torch.testing.assert_close(item.corrupted[0], noised(item.pixel_values[0], RNG(4), step=700))


def test_another_records_image_is_never_the_records_own(collator, record):
    records = [record(name=str(i)) for i in (1, 2, 3)]
    records.append(Preference("4", records[0].images, records[0].turns, records[0].answers))  # the first one's picture
    collate = collator(corrupt="other", others=Dataset("all", records))
    plain = [collate.encode(one, RNG(0)).pixel_values[0] for one in records]
    drawn = [collate.encode(records[0], RNG(seed)).corrupted[0] for seed in range(20)]
    seen = [{i for i in range(3) if torch.equal(image, plain[i])} for image in drawn]
    assert set.union(*seen) == {1, 2}
    with pytest.raises(BadRecord, match="1: 20 records by chance show no other image"):
        collator(corrupt="other", others=Dataset("same", [records[0], records[3]])).encode(records[0], RNG(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "plain_eos"}, "template='plain_eos': two answers need their question; use template=v1 or chat"),
        ({"corrupt": "blur"}, "corrupt='blur': wanted one of noise, zoom"),
        ({"noise_step": 1000}, "noise_step=1000: wanted 0 <= noise_step < 1000"),
        ({"corrupt": "other"}, "corrupt='other' with others=None"),
    ],
)
def test_settings_that_make_no_sense_are_refused(collator, settings, message):
    with pytest.raises(ValueError, match=message):
        collator(**settings)


def test_the_corrupted_image_belongs_to_the_record_and_the_epoch_whoever_makes_it(collator, record):
    """Else policy and reference would see different ones, or a resumed run others than the run it goes on with."""
    records = [record(name=str(i)) for i in range(1, 5)]
    collate = collator(corrupt="noise")

    def seen(workers=0, micro_batch_size=4, steps=2):
        loader = Loader(
            Dataset("some", records),
            pickle.loads(pickle.dumps(collate)),
            batch_size=4,
            micro_batch_size=micro_batch_size,
            seed=3,
            workers=workers,
            on_skip=pytest.fail,
        )
        images = {}
        for epoch in range(steps):
            for batch in loader.next():
                for name, image in zip(batch.records, batch.corrupted_pixel_values, strict=True):
                    images[epoch, name] = image
        loader.close()
        return images

    one = seen()
    assert len(one) == 8
    for other in (seen(), seen(micro_batch_size=1), seen(workers=1)):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(one[0, "1"], one[1, "1"])
    assert not torch.equal(one[0, "1"], one[0, "2"])


def test_a_bad_preference_is_skipped_and_reported_as_any_record(collator, record):
    records = [record(name="1"), record("fig", "kiwi", name="2"), record(name="3")]
    skipped = []
    data = Dataset("some", records, on_error="skip")
    loader = Loader(data, collator(), batch_size=2, micro_batch_size=2, seed=0, on_skip=skipped.append)
    for _ in range(3):
        assert "2" not in loader.next()[0].records
    assert [one.record for one in skipped] == ["2"]


def test_rows_of_like_length_come_together(collator, record):
    records = [record(" ".join(["red"] * (1 + i % 2 * 8)), "dog", name=str(i)) for i in range(8)]
    loader = Loader(
        Dataset("some", records),
        collator(),
        batch_size=4,
        micro_batch_size=4,
        seed=0,
        group_by_length=True,
        on_skip=pytest.fail,
    )
    for _ in range(2):
        assert len(set(loader.next()[0].chosen.mask.sum(dim=1).tolist())) == 1


@pytest.fixture
def hallucinated(tokenizer, clip_tokenizer, image_processor):
    return HallucinatedCollator(tokenizer, clip_tokenizer, image_processor, max_length=4)


@pytest.fixture
def wrong(tmp_path, write_image):
    def make(captions, others, name="1"):
        return HallucinatedImage(name, write_image(tmp_path / f"{name}.jpg", seed=int(name)), captions, others)

    return make


def test_a_hallucinated_batch_is_what_was_written_by_hand(hallucinated, wrong):
    items = [
        hallucinated.encode(wrong(("a red cup",), ("a table",)), RNG(0)),
        hallucinated.encode(wrong(("cup",), (" on the table ",), name="2"), RNG(0)),
    ]
    batch = hallucinated.collate(items)
    assert isinstance(batch, HallucinatedBatch)
    assert batch.records == ("1", "2")
    assert batch.caption.ids.tolist() == [[1, 5, 6, 7, 2], [1, 7, 2, 0, 0]]
    assert batch.hallucinated.ids.tolist() == [[1, 5, 10, 2, 0], [1, 8, 9, 10, 2]]
    assert batch.clip_hallucinated.ids.tolist() == [[3, 0, 5, 4], [3, 5, 5, 4]]
    assert batch.pixel_values.shape == (2, 3, 8, 8)
    assert batch.to("meta").hallucinated.ids.device.type == "meta"


def test_without_a_text_tower_there_is_no_second_vocabulary(tokenizer, image_processor, wrong):
    collate = HallucinatedCollator(tokenizer, None, image_processor)
    batch = collate.collate([collate.encode(wrong(("cup",), ("table",)), RNG(0))])
    assert (batch.clip_caption, batch.clip_hallucinated) == (None, None)


def test_each_caption_goes_with_its_own_hallucination(hallucinated, wrong):
    one = wrong(("cup", "red"), ("table", "the"))
    pairs = set()
    for seed in range(20):
        item = hallucinated.encode(one, RNG(seed))
        pairs.add((item.pair.caption[1], item.hallucinated[0][1]))
    assert pairs == {(7, 10), (6, 9)}


def test_a_hallucination_that_is_missing_or_the_caption_is_refused(hallucinated, wrong):
    with pytest.raises(BadRecord, match="2 captions and 1 hallucinated ones"):
        hallucinated.encode(wrong(("cup", "red"), ("table",)), RNG(0))
    with pytest.raises(BadRecord, match="'kiwi' is the caption to the tokenizer"):
        hallucinated.encode(wrong(("fig",), ("kiwi",)), RNG(0))
