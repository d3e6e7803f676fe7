"""Captions say what is there, answers are right, wrong captions are wrong in what they are meant to be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hialign.tabletop.language import (
    CHANGES,
    FORMS,
    NUMBERS,
    PLURALS,
    TOPICS,
    Mention,
    Style,
    alter,
    caption,
    describe,
    existence_question,
    hallucinated,
    mentions,
    mistaken,
    preference,
    question,
)
from hialign.tabletop.world import COLOURS, KINDS, PARTNER, PLACES, Scene, Thing, above, left_of, sample

SCENES = [sample(split, index, seed=0) for split in ("train", "counterfactual") for index in range(150)]


def claims(text):
    return Counter((m.kind, m.colour, m.size or "large", m.state or "whole", m.place) for m in mentions(text))


def truth(scene):
    return Counter((t.kind, t.colour, t.size, t.state, t.place) for t in scene.things)


def test_a_plain_caption_by_hand():
    things = (Thing("apple", "red", "small", "top left", "broken"), Thing("knife", "blue", "large", "bottom", "whole"))
    scene = Scene(things, (0, 0, 0))
    assert describe(scene, Style()) == (
        "there is a small broken red apple at the top left and a blue knife at the bottom."
    )
    counted = (
        "there are two things on the table: a blue knife in the bottom and a small broken red apple in the top left."
    )
    assert describe(scene, Style(FORMS[-1], "in", tuple(range(9))[::-1])) == counted
    assert describe(Scene(things[1:], (0, 0, 0)), Style(FORMS[-1])) == (
        "there is one thing on the table: a blue knife at the bottom."
    )


@pytest.mark.parametrize("paraphrase", [0.0, 1.0])
def test_mentions_of_a_true_caption_are_exactly_what_is_there(paraphrase):
    for scene in SCENES:
        rng = scene.rng(7)
        for _ in range(3):
            assert claims(caption(scene, rng, paraphrase=paraphrase)) == truth(scene)


def test_mentions_are_read_off_other_words_too():
    text = "Two broken KNIVES and a red  cup, no forks;\nthe glasses on the top right. cupboards, a topping"
    assert mentions(text) == (
        Mention("knife", 2, state="broken"),
        Mention("cup", 1, colour="red"),
        Mention("glass", 1, place="top right"),
    )
    assert mentions("nothing is there") == ()


def test_paraphrase_is_how_often_a_caption_is_not_the_plain_one():
    said = {p: [caption(s, s.rng(7), paraphrase=p) for s in SCENES] for p in (0.0, 0.5, 1.0)}
    plain = said[0.0]
    assert all(text.startswith("there is ") and " at the " in text for text in plain)
    same = [np.mean([a == b for a, b in zip(plain, said[p], strict=True)]) for p in (0.5, 1.0)]
    assert 0.4 < same[0] < 0.75
    assert same[1] < 0.3


def test_answers_are_right_on_every_topic():
    asked = Counter()
    for scene in SCENES:
        rng = scene.rng(8)
        for topic in TOPICS:
            q = question(scene, topic, rng)
            if q is None:
                continue
            asked[topic] += 1
            assert q.topic == topic
            assert q.answer == answer_by_reading(scene, q)
    assert set(asked) == set(TOPICS)
    assert asked["existence"] == asked["count"] == len(SCENES)


def answer_by_reading(scene, q):
    """The answer as it follows from the words of the question, and nothing else that made it."""
    words = q.text.rstrip("?").split()
    things = {thing.kind: thing for thing in scene.things}
    if q.topic == "existence":
        return "yes" if words[3] in things else "no"
    if q.topic == "count":
        kind = next(kind for kind in KINDS if PLURALS[kind] == words[2])
        return NUMBERS[sum(thing.kind == kind for thing in scene.things)]
    if q.topic in ("colour", "place"):
        return getattr(things[words[-1]], q.topic)
    one, other = things[words[2]], things[words[-1]]
    return "yes" if (left_of if "left" in words else above)(one, other) else "no"


def test_a_question_after_one_thing_is_only_asked_where_its_kind_tells_which():
    twins = Scene(tuple(Thing("cup", "red", "large", place, "whole") for place in ("top", "left")), (0, 0, 0))
    rng = np.random.default_rng(0)
    assert [question(twins, topic, rng) for topic in ("colour", "place", "relation")] == [None] * 3
    counted = question(twins, "count", rng)
    assert (counted.text, counted.answer) == ("how many cups are there?", "two")


@pytest.mark.parametrize("bias", [0.0, 0.7, 1.0])
def test_positive_bias_is_the_share_of_yes(bias):
    answers = [question(scene, "existence", scene.rng(9), positive_bias=bias).answer for scene in SCENES]
    assert abs(answers.count("yes") / len(answers) - bias) < 0.08


def test_existence_is_asked_in_popes_words():
    assert existence_question("cup") == "is there a cup in the image?"
    assert existence_question("apple") == "is there an apple in the image?"


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_caption_is_wrong_by_the_change_it_is_named_after(change):
    for scene in SCENES:
        wrong, right = claims(hallucinated(scene, change, scene.rng(3), paraphrase=1.0)), truth(scene)
        added, lost = wrong - right, right - wrong
        assert added.total() == 1
        assert lost.total() == (change not in ("count", "partner"))
        (new,) = added
        if change == "count":
            assert new[0] in scene.kinds
        elif change == "partner":
            assert new[0] not in scene.kinds
            if any(PARTNER[kind] not in scene.kinds for kind in scene.kinds):
                assert PARTNER[new[0]] in scene.kinds
        else:
            (old,) = lost
            differs = [name for name, a, b in zip(NAMES, old, new, strict=True) if a != b]
            assert differs == ["kind" if change == "object" else change]
            if change == "object":
                assert new[0] not in scene.kinds


NAMES = ("kind", "colour", "size", "state", "place")


def test_the_two_sides_of_a_preference_differ_in_the_change_alone():
    for scene in SCENES:
        pair = preference(scene, "colour", scene.rng(4), paraphrase=1.0)
        words = list(zip(pair.chosen.split(), pair.rejected.split(), strict=True))
        differ = [(a, b) for a, b in words if a != b and {a, b} != {"a", "an"}]
        assert len(differ) == 1
        assert claims(pair.chosen) == truth(scene)


@pytest.mark.parametrize("change", ["object", "colour", "place"])
def test_the_phrases_of_a_preference_are_the_words_that_differ(change):
    for scene in SCENES:
        pair = preference(scene, change, scene.rng(4), paraphrase=1.0)
        right, wrong = (text[s:e] for text, (s, e) in zip((pair.chosen, pair.rejected), pair.phrases, strict=True))
        assert right != wrong
        said = {"object": KINDS, "colour": COLOURS, "place": PLACES}[change]
        for text, words in ((pair.chosen, right), (pair.rejected, wrong)):
            assert any(one.endswith(words.split()[-1]) for one in said)
            assert words.removeprefix("a ").removeprefix("an ") in " ".join(said)
            assert f" {words}" in f" {text}"
        if change != "place":  # then the order may differ, else nothing but the phrase does
            (start, end), (other_start, other_end) = pair.phrases
            assert pair.chosen[:start] == pair.rejected[:other_start]
            assert pair.chosen[end:] == pair.rejected[other_end:]


def test_a_phrase_is_whole_where_one_is_the_beginning_of_the_other():
    scene = Scene((Thing("cup", "red", "large", "top", "whole"),), (0, 0, 0))
    moved = next(
        pair
        for seed in range(100)
        if (pair := preference(scene, "place", np.random.default_rng(seed))).rejected.endswith("top left.")
    )
    spans = zip((moved.chosen, moved.rejected), moved.phrases, strict=True)
    assert [text[start:end] for text, (start, end) in spans] == ["top", "top left"]


@pytest.mark.parametrize("change", ["count", "partner"])
def test_what_is_only_said_besides_is_no_phrase(change):
    assert preference(SCENES[0], change, SCENES[0].rng(4)).phrases is None


def test_a_mistaken_answer_is_a_wrong_one_of_the_same_kind():
    for scene in SCENES[:100]:
        for topic in TOPICS:
            asked = question(scene, topic, scene.rng(8))
            if asked is None:
                continue
            wrong = mistaken(asked, scene.rng(9))
            assert wrong != asked.answer
            assert wrong in {"count": NUMBERS, "colour": COLOURS, "place": PLACES}.get(topic, ("yes", "no"))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda scene, rng: question(scene, "colours", rng), "topic='colours'"),
        (lambda scene, rng: question(scene, "count", rng, positive_bias=2), "positive_bias=2"),
        (lambda scene, rng: alter(scene, "size", rng), "change='size'"),
        (lambda scene, rng: caption(scene, rng, paraphrase=-1), "paraphrase=-1"),
        (lambda scene, rng: describe(Scene((), (0, 0, 0)), Style()), "empty"),
    ],
)
def test_what_cannot_be_said_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call(SCENES[0], np.random.default_rng(0))
