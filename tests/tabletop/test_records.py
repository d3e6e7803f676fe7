"""The world as data sets: lazy, seeded, biased as asked, and read by the loader as any other."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from transformers import CLIPImageProcessor

from hialign.data import LanguageCollator, Loader, PairCollator, load_image
from hialign.data.vqa import SHORT_ANSWER
from hialign.tabletop import captions, instruct, vqa
from hialign.tabletop.language import DESCRIBE, mentions
from hialign.tabletop.render import PIXELS, render
from hialign.tabletop.tokenizer import tokenizer
from hialign.tabletop.world import sample

MAKERS = (captions, vqa, instruct)


@pytest.fixture(scope="module")
def words():
    return tokenizer()


@pytest.fixture(scope="module")
def images():
    return CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS})


@pytest.mark.parametrize("make", MAKERS)
def test_records_are_made_by_index_whatever_the_size(make):
    small, huge = make("train", 10, seed=2).records, make("train", 10**9, seed=2).records
    assert small[7].id == huge[7].id
    assert said(small[7]) == said(huge[7])
    assert small[-1] == small[9]
    assert [record.id for record in small[2:5]] == [small[i].id for i in (2, 3, 4)]
    assert len({record.id for record in small}) == len(small) == 10
    with pytest.raises(IndexError):
        small[10]


def said(record):
    return tuple(record.captions if hasattr(record, "captions") else record.turns)


@pytest.mark.parametrize("make", MAKERS)
def test_ids_are_read_without_making_a_scene(make, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a scene was made")

    monkeypatch.setattr("hialign.tabletop.records.sample", refuse)
    records = make("train", 50).records
    assert len([record.id for record in records]) == 50
    with pytest.raises(AssertionError, match="a scene was made"):
        said(records[0])


@pytest.mark.parametrize("make", MAKERS)
def test_a_record_is_the_same_in_a_worker_process(make):
    record = make("val", 3).records[2]
    copy = pickle.loads(pickle.dumps(record))
    assert copy == record
    assert said(copy) == said(record)
    assert copy.images[0].read() == record.images[0].read()


def test_the_image_of_a_record_is_its_scenes_picture():
    record = captions("test", 5, seed=4, noise=0.2).records[3]
    scene = sample("test", 3, seed=4)
    assert np.array_equal(np.asarray(load_image(record)), render(scene, noise=0.2))
    assert str(record.images[0]) == "tabletop scene test-0000003 of seed 4"


def test_captions_are_true_and_the_first_is_plain():
    records = captions("train", 60, seed=1, paraphrase=1.0).records
    for index, record in enumerate(records):
        there = Counter(thing.kind for thing in sample("train", index, seed=1).things)
        assert all(Counter(mention.kind for mention in mentions(text)) == there for text in record.captions)
        assert record.captions[0].startswith("there is ")
        assert len(set(record.captions)) == len(record.captions)
    assert {len(record.captions) for record in records} >= {2, 3}
    assert all(len(record.captions) == 1 for record in captions("train", 9, captions=1).records)


def test_questions_carry_llavas_prompt_and_the_positive_bias():
    def share(bias):
        records = vqa("train", 800, positive_bias=bias).records
        asked = [r.turns[0] for r in records if r.turns[0].question.startswith("<image>\nis there a")]
        assert len(asked) > 100
        return np.mean([turn.answer == "yes" for turn in asked])

    assert all(r.turns[0].question.endswith(f"?\n{SHORT_ANSWER}") for r in vqa("train", 20).records)
    assert share(0.0) == 0
    assert abs(share(0.7) - 0.7) < 0.1
    assert share(1.0) == 1


def test_instruct_mixes_descriptions_and_questions():
    records = instruct("train", 400, captioned=0.25).records
    described = [r for r in records if r.turns[0].question == f"<image>\n{DESCRIBE}"]
    assert abs(len(described) / 400 - 0.25) < 0.07
    assert {len(r.turns) for r in records} == {1, 2, 3, 4, 5, 6}
    assert all(r.turns[0].question.startswith("<image>\n") for r in records)
    assert not any("<image>" in turn.question for r in records for turn in r.turns[1:])


def test_the_loader_reads_them_in_every_template_and_goes_on_where_it_was(words, images):
    for data, template in (
        (captions("train", 12), "plain_eos"),
        (vqa("train", 12), "chat"),
        (instruct("train", 12), "v1"),
    ):
        collator = LanguageCollator(
            words, images, image_token_id=words.image_token_id, num_image_tokens=9, template=template
        )

        def loader(workers=0, data=data, collator=collator):
            return Loader(
                data, collator, batch_size=4, micro_batch_size=4, seed=0, workers=workers, on_skip=pytest.fail
            )

        first = loader()
        first.next()
        state, (second,) = first.state_dict(), first.next()
        again = loader(workers=1)
        again.load_state_dict(state)
        (resumed,) = again.next()
        again.close()
        assert second.records == resumed.records
        assert second.pixel_values.equal(resumed.pixel_values)
        assert second.text.ids.equal(resumed.text.ids)
        assert second.pixel_values.shape == (4, 3, PIXELS, PIXELS)
        assert (second.text.labels != -100).any(dim=1).all()


def test_pairs_fit_the_text_tower(words, images):
    collator = PairCollator(words, words, images, max_length=77)
    rng = np.random.default_rng(0)
    items = [collator.encode(record, rng) for record in captions("train", 100, paraphrase=1.0).records]
    assert max(len(item.clip_caption) for item in items) < 77  # nothing was cut


def test_the_end_of_an_answer_prompt_is_tokenised_as_in_a_row(words, images):
    """Else generation would start from tokens that training never showed."""
    record = captions("val", 3).records[0]
    for template in ("plain_eos", "chat"):
        collator = LanguageCollator(
            words, images, image_token_id=words.image_token_id, num_image_tokens=9, template=template
        )
        row = collator.row(record, record.captions[0], collator.pixels(record)[0])
        prompt = collator.prompt().ids[0].tolist()
        assert row.ids[: len(prompt)] == prompt
        assert row.labels[len(prompt)] != -100
        assert set(row.labels[: len(prompt)]) == {-100}


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (captions, {"split": "tests"}),
        (captions, {"captions": 0}),
        (captions, {"paraphrase": 2.0}),
        (captions, {"noise": -0.1}),
        (vqa, {"positive_bias": 1.1}),
        (vqa, {"cooccurrence": -1.0}),
        (instruct, {"captioned": 1.5}),
        (instruct, {"seed": -1}),
    ],
)
def test_a_knob_out_of_range_is_named_when_the_set_is_made(make, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name}="):
        make(**{"split": "train", "size": 5, **wrong})
