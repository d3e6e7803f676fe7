"""The world as data sets: lazy, seeded, biased as asked, and read by the loader as any other."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import CLIPImageProcessor

from hialign.data import (
    HallucinatedCollator,
    LanguageCollator,
    Loader,
    PairCollator,
    PreferenceCollator,
    load_image,
)
from hialign.data.vqa import SHORT_ANSWER
from hialign.tabletop import captions, hallucinations, instruct, preferences, vqa
from hialign.tabletop.language import CHANGES, DESCRIBE, mentions
from hialign.tabletop.render import PIXELS, render
from hialign.tabletop.tokenizer import tokenizer
from hialign.tabletop.world import PARTNER, sample

MAKERS = (captions, vqa, instruct, preferences, hallucinations)


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
    fields = ("captions", "hallucinated", "turns", "answers")
    return tuple(tuple(getattr(record, field)) for field in fields if hasattr(record, field))


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


def claims(text):
    return Counter((m.kind, m.colour, m.size, m.state, m.place) for m in mentions(text))


def test_the_chosen_caption_is_true_of_the_splits_own_scene_and_the_rejected_one_is_not():
    kinds = Counter()
    for index, record in enumerate(preferences("train", 200, seed=3, captioned=1.0).records):
        assert record.turns[0].question == f"<image>\n{DESCRIBE}"
        there = Counter(thing.kind for thing in sample("train", index, seed=3).things)
        chosen, rejected = (claims(answer.text) for answer in record.answers)
        assert Counter(kind for kind, *_ in chosen.elements()) == there
        assert (rejected - chosen).total() == 1
        kinds[len(record.chosen.phrases), len(record.rejected.phrases)] += 1
    assert set(kinds) == {(0, 0), (1, 1)}


def test_short_answers_of_preferences_are_right_and_wrong_ones_under_the_positive_bias():
    def asked(bias):
        records = preferences("train", 800, captioned=0.0, positive_bias=bias).records
        assert all(record.chosen.text != record.rejected.text for record in records)
        assert all(record.turns[0].question.endswith(f"?\n{SHORT_ANSWER}") for record in records[:20])
        found = [r for r in records if r.turns[0].question.startswith("<image>\nis there a")]
        assert len(found) > 100
        for index, record in ((int(r.id[-7:]), r) for r in found):
            kind = record.turns[0].question.split()[4]
            assert record.chosen.text == ("yes" if kind in sample("train", index, seed=0).kinds else "no")
            assert {record.chosen.text, record.rejected.text} == {"yes", "no"}
            assert record.rejected.phrases == ((0, len(record.rejected.text)),)
        return np.mean([record.chosen.text == "yes" for record in found])

    assert abs(asked(0.7) - 0.7) < 0.1
    assert asked(1.0) == 1


def test_preferences_share_of_descriptions_is_as_asked():
    described = [r.turns[0].question.endswith(DESCRIBE) for r in preferences("train", 400, captioned=0.25).records]
    assert abs(np.mean(described) - 0.25) < 0.07


def test_every_record_of_phrases_has_one_on_both_sides():
    records = preferences("train", 200, changes=["object", "colour", "place"]).records
    assert all(len(record.chosen.phrases) == len(record.rejected.phrases) == 1 for record in records)


def test_a_hallucinated_caption_is_wrong_and_in_the_words_of_its_own():
    for index, record in enumerate(hallucinations("train", 60, seed=1, paraphrase=1.0).records):
        there = Counter(thing.kind for thing in sample("train", index, seed=1).things)
        assert len(record.captions) == len(record.hallucinated) == len(set(record.captions))
        for right, wrong in zip(record.captions, record.hallucinated, strict=True):
            assert Counter(kind for kind, *_ in claims(right).elements()) == there
            assert (claims(wrong) - claims(right)).total() == 1
        assert record.captions[0].startswith("there is ")


def test_partners_are_met_in_preferences_as_often_as_in_captions():
    """The scenes are the same: a method that is given them learns of no other world."""

    def met(texts):
        kinds = [{mention.kind for mention in mentions(text)} for text in texts]
        return np.mean([PARTNER[kind] in there for there in kinds for kind in there])

    caption = met([record.captions[0] for record in captions("train", 300).records])
    chosen = met([record.chosen.text for record in preferences("train", 300, captioned=1.0).records])
    right = met([record.captions[0] for record in hallucinations("train", 300).records])
    assert caption == chosen == right > 0.8


@pytest.mark.parametrize("make", [preferences, hallucinations])
@pytest.mark.parametrize("split", ["counterfactual", "val_counterfactual"])
def test_pairs_of_a_world_without_the_bias_are_refused(make, split):
    with pytest.raises(ValueError, match=f"split='{split}': partners never meet there.*wanted train"):
        make(split, 10)


def test_all_training_roles_of_the_yaml_show_one_biased_world():
    file = Path(__file__).resolve().parents[2] / "configs" / "data" / "tabletop.yaml"
    tree = yaml.safe_load(file.read_text())
    made = {role: node for role, node in tree.items() if isinstance(node, dict) and role != "heldout"}
    assert set(made) == {"caption", "instruct", "vqa", "hallucinated", "preference", "phrases"}
    assert tree["reference"] == "${data.instruct}"
    for node in made.values():
        assert (node["split"], node["seed"], node["cooccurrence"], node["noise"]) == (
            "train",
            "${data.world_seed}",
            "${data.cooccurrence}",
            "${data.noise}",
        )
        assert node.get("positive_bias", "${data.positive_bias}") == "${data.positive_bias}"
    assert "positive_bias" in made["preference"]


def test_the_loader_makes_preference_and_hallucinated_batches_of_them(words, images):
    settings = {"image_token_id": words.image_token_id, "num_image_tokens": 9}
    changes = ["object", "colour", "place"]
    for collator, data in (
        (PreferenceCollator(words, images, template="chat", corrupt="noise", **settings), preferences("train", 24)),
        (
            PreferenceCollator(words, images, template="v1", phrases=True, **settings),
            preferences("train", 24, changes=changes),
        ),
        (HallucinatedCollator(words, words, images), hallucinations("train", 24)),
    ):
        loader = Loader(data, collator, batch_size=8, micro_batch_size=8, seed=0, on_skip=pytest.fail)
        for _ in range(3):
            (batch,) = loader.next()
            assert batch.pixel_values.shape == (8, 3, PIXELS, PIXELS)
        if isinstance(collator, PreferenceCollator):
            for side in (batch.chosen, batch.rejected):
                first = [(row != -100).nonzero()[0].item() for row in side.labels]
                assert first == batch.starts.tolist()  # each of the world's words is a token of its own
            for row, start in enumerate(batch.starts.tolist()):
                assert batch.chosen.ids[row, :start].equal(batch.rejected.ids[row, :start])
        if batch.records and getattr(batch, "chosen_phrases", None) is not None:
            assert (batch.chosen_phrases.amax(dim=1) == 1).all()
            phrase = [
                words.decode(ids[marks == 1]).strip()
                for ids, marks in zip(batch.chosen.ids, batch.chosen_phrases, strict=True)
            ]
            texts = {r.id: [r.chosen.text[start:end] for start, end in r.chosen.phrases] for r in data.records}
            assert [[one] for one in phrase] == [texts[name] for name in batch.records]


def test_hallucinated_captions_fit_the_text_tower(words, images):
    collator = HallucinatedCollator(words, words, images)
    rng = np.random.default_rng(0)
    items = [collator.encode(record, rng) for record in hallucinations("train", 100, paraphrase=1.0).records]
    assert max(len(item.hallucinated[1]) for item in items) < 77  # nothing was cut


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
        (preferences, {"changes": ["size"]}),
        (preferences, {"changes": []}),
        (hallucinations, {"changes": [*CHANGES, "size"]}),
        (hallucinations, {"captions": 0}),
        (instruct, {"seed": -1}),
    ],
)
def test_a_knob_out_of_range_is_named_when_the_set_is_made(make, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name}="):
        make(**{"split": "train", "size": 5, **wrong})
