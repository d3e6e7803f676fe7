"""What is asked of scenes is balanced and true, and answers are counted where they belong."""

from __future__ import annotations

import pytest

from hialign.benchmarks import pope
from hialign.tabletop.asked import (
    ATTRIBUTES,
    lone_scenes,
    pope_questions,
    pope_scores,
    prompts,
    topic_questions,
    topic_scores,
)
from hialign.tabletop.language import TOPICS
from hialign.tabletop.world import KINDS, PARTNER, sample

SPLITS = ("test", "counterfactual")


def scene(one):
    return sample(one.split, one.index, seed=1)


@pytest.mark.parametrize("split", SPLITS)
def test_pope_asks_as_often_after_what_is_there_as_after_what_is_not(split: str):
    asked = pope_questions(split, 40, seed=1)
    for category in pope.CATEGORIES:
        members = [one for one in asked if f"{split}/{category}" in one.groups]
        assert sum(one.answer == "yes" for one in members) * 2 == len(members)
    for one in asked:
        kind = one.id.partition("/")[2]
        assert (one.answer == "yes") == (kind in scene(one).kinds)
        assert kind in one.text
    assert len({one.id for one in asked}) == len(asked)


def test_adversarial_questions_ask_after_the_partner_that_is_missing():
    for one in pope_questions("counterfactual", 40, seed=1):
        kind = one.id.partition("/")[2]
        first = list(dict.fromkeys(thing.kind for thing in scene(one).things))[:3]
        if PARTNER[kind] in first:
            assert one.answer == "no"
            assert "counterfactual/adversarial" in one.groups


def test_popular_questions_ask_after_the_most_frequent_kinds():
    for one in pope_questions("test", 40, seed=1):
        kind = one.id.partition("/")[2]
        absent = [other for other in KINDS if other not in scene(one).kinds]
        asked = min(3, len(scene(one).kinds))
        assert ("test/popular" in one.groups) == (kind in absent[:asked] or one.answer == "yes")


def test_pope_scores_the_truth_with_one_and_a_yes_to_all_with_half():
    asked = pope_questions("test", 20, seed=1)
    truth = pope_scores(asked, {one.id: one.answer for one in asked})
    assert {truth[f"test/{way}/{name}"] for way in pope.CATEGORIES for name in ("accuracy", "f1")} == {1.0}
    always = pope_scores(asked, {one.id: "yes" for one in asked})
    assert {always[f"test/{way}/accuracy"] for way in pope.CATEGORIES} == {0.5}
    assert {always[f"test/{way}/yes_ratio"] for way in pope.CATEGORIES} == {1.0}


def test_topics_are_scored_apart_and_forms_of_an_answer_are_one():
    asked = [one for split in SPLITS for one in topic_questions(split, 30, seed=1)]
    answers = {one.id: f" {one.answer.upper()}. " if "/colour" in one.id else one.answer for one in asked}
    right = topic_scores(asked, answers)
    assert list(right) == [f"{split}/{topic}" for split in sorted(SPLITS) for topic in (*TOPICS, "all")]
    assert set(right.values()) == {1.0}
    wrong = topic_scores(asked, {name: "x" if "/colour" in name else text for name, text in answers.items()})
    assert (wrong["test/colour"], wrong["test/place"]) == (0.0, 1.0)
    count = {topic: sum(one.id.endswith(topic) for one in asked if one.split == "test") for topic in TOPICS}
    assert wrong["test/all"] == pytest.approx(1 - count["colour"] / sum(count.values()))


def test_lone_things_are_of_every_kind_and_each_prompt_names_one_of_all():
    scenes = lone_scenes(300, seed=1)
    assert all(len(scene.things) == 1 for scene in scenes)
    for name, values in ATTRIBUTES.items():
        assert {getattr(scene.things[0], name) for scene in scenes} == set(values)
    assert len(set(prompts())) == len(prompts()) == 12 * 8 * 9
    assert lone_scenes(5, seed=1) == scenes[:5]
    assert lone_scenes(5, seed=2) != scenes[:5]
