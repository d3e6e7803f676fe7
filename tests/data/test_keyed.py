"""Names of rows and images, and batches that bring along what a cache has under them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from hialign.data import (
    BadRecord,
    CachedCollator,
    CaptionedImage,
    Dataset,
    KeyedCollator,
    LanguageCollator,
    Loader,
    PreferenceCollator,
)
from hialign.data.collate import AnswerRow, LanguageItem
from hialign.data.collate_preferences import PreferenceItem

PLACEHOLDERS = {"image_token_id": 3, "num_image_tokens": 1}


class Store:
    """A cache in memory."""

    def __init__(self, entries, *, broken=False):
        self.entries, self.broken = entries, broken

    def find(self, key):
        if self.broken:
            raise ValueError("shard 7 is damaged; delete it")
        return self.entries.get(key)

    def none_of(self, name):
        return torch.zeros(0, 4, 6)


@pytest.fixture
def language(tokenizer, image_processor):
    return LanguageCollator(tokenizer, image_processor, **PLACEHOLDERS)


@pytest.fixture
def preferences(tokenizer, image_processor):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return PreferenceCollator(tokenizer, image_processor, template="v1", **PLACEHOLDERS)


def pixels(seed, images=1):
    return torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def text(record="a", *, seed=0, images=1, ids=(1, 3, 5, 6)):
    labels = [-100] * (len(ids) - 2) + list(ids[-2:])
    return LanguageItem(record, pixels(seed, images), list(ids), labels)


def preference(*, seed=0, corrupted=None, chosen=(5, 6), rejected=(7,)):
    rows = [AnswerRow([1, 3, *answer], [-100, -100, *answer], []) for answer in (chosen, rejected)]
    return PreferenceItem("p", pixels(seed), corrupted, *rows, 2)


def names(collator, *items):
    return KeyedCollator(collator).collate([(item, False) for item in items])


def test_a_text_row_has_its_name_by_pixels_ids_and_labels(language):
    plain = text()
    others = [
        text(seed=1),
        text(ids=(1, 3, 5, 7)),
        replace(plain, labels=[-100, -100, -100, 6]),
        text(images=2),
    ]
    found = names(language, plain, *others, text("another record")).rows["text"]
    assert len(set(found)) == 5
    assert found[0] == found[-1]  # padding and the record's id say nothing of what a model reads


def test_images_have_names_of_their_own_in_row_order(language):
    found = names(language, text(images=2), text(seed=4), text(images=1)).images["pixel_values"]
    assert len(found) == 4
    assert found[0] == found[3] != found[1]


def test_the_sides_of_a_preference_have_different_names_and_only_one_hangs_on_the_corruption(preferences):
    noise = [pixels(8), pixels(9)]
    one, other = (preference(corrupted=made) for made in noise)
    keyed = names(preferences, one, other)
    assert keyed.rows.keys() == {"chosen", "rejected", "corrupted"}
    assert len(set(keyed.rows["chosen"])) == len(set(keyed.rows["rejected"])) == 1
    assert len(set(keyed.rows["corrupted"])) == 2
    assert len({side[0] for side in keyed.rows.values()}) == 3
    assert len(set(keyed.images["corrupted_pixel_values"])) == 2
    alike = names(preferences, preference(chosen=(7,), rejected=(7, 5)))
    assert alike.rows["chosen"][0] != names(preferences, preference(rejected=(7,))).rows["rejected"][0]


def test_what_a_draw_decides_is_noted(language, write_image, tmp_path):
    path = write_image(tmp_path / "1.jpg")
    keyed = KeyedCollator(language)
    drawn = keyed.encode(CaptionedImage("1", path, ("a red", "a cup")), np.random.default_rng(0))
    assert keyed.collate([drawn]).drawn
    assert not keyed.collate([(drawn[0], False)]).drawn


def test_what_the_cache_has_comes_along_row_behind_row(preferences):
    items = [preference(), preference(seed=1, chosen=(5, 6, 7))]
    keyed = names(preferences, *items)
    entries = {
        key: {"logps": torch.full((count,), value), "states": torch.full((count, 4), value)}
        for side, counts in (("chosen", (2, 3)), ("rejected", (1, 1)))
        for key, count, value in zip(keyed.rows[side], counts, (0.5, 0.25), strict=True)
    }
    wanted = ("chosen_logps", "rejected_logps", "chosen_states")
    collator = CachedCollator(preferences, "cache", reference=Store(entries), names=wanted)
    batch = collator.collate(items)
    assert set(batch.reference) == set(wanted)
    assert batch.reference["chosen_logps"].tolist() == [0.5, 0.5, 0.25, 0.25, 0.25]
    assert batch.reference["rejected_logps"].tolist() == [0.5, 0.25]
    assert batch.reference["chosen_states"].shape == (5, 4)
    assert batch.pixel_values.dim() == 4
    moved = batch.to("meta")
    assert moved.reference["chosen_states"].is_meta


def test_features_take_the_images_place(language):
    items = [text(images=2), text(seed=5)]
    keys = names(language, *items).images["pixel_values"]
    store = Store({key: {"features": torch.full((1, 4, 6), float(place))} for place, key in enumerate(keys)})
    batch = CachedCollator(language, "cache", features=store).collate(items)
    assert batch.pixel_values[:, 0, 0].tolist() == [0, 1, 2]
    assert batch.reference is None
    bare = CachedCollator(language, "cache", features=store).collate([text(images=0, ids=(1, 5, 6))])
    assert bare.pixel_values.shape == (0, 4, 6)


@pytest.mark.parametrize("store", [Store({}), Store({}, broken=True)])
def test_what_the_cache_lacks_is_refused_by_record_and_never_skipped(language, write_image, tmp_path, store):
    records = [CaptionedImage(f"r{n}", write_image(tmp_path / f"{n}.jpg", n), ("a red",)) for n in range(3)]
    loader = Loader(
        Dataset("some", records, on_error="skip"),
        CachedCollator(language, "here/cache", features=store),
        batch_size=1,
        micro_batch_size=1,
        seed=0,
        on_skip=lambda skipped: pytest.fail("skipped"),
    )
    what = "shard 7 is damaged; delete it; .*resume=auto" if store.broken else "not in the cache as this run reads it"
    with pytest.raises(BadRecord, match=rf"here/cache: r\d: .*{what}"):
        loader.next()
