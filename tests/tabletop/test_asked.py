"""What is asked of scenes is balanced and true, and answers are counted where they belong."""

from __future__ import annotations

from collections import Counter

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
from hialign.tabletop.world import KINDS, PAIRS, PARTNER, sample

SPLITS = ("test", "counterfactual")


def scene(one):
    return sample(one.split, one.index, seed=1)


def scenes(split, size):
    return [sample(split, index, seed=1) for index in range(size)]


@pytest.mark.parametrize("split", SPLITS)
def test_pope_asks_as_often_after_what_is_there_as_after_what_is_not(split: str):
    asked = pope_questions(split, scenes(split, 40))
    for category in pope.CATEGORIES:
        members = [one for one in asked if f"{split}/{category}" in one.groups]
        assert sum(one.answer == "yes" for one in members) * 2 == len(members)
    for one in asked:
        kind = one.id.partition("/")[2]
        assert (one.answer == "yes") == (kind in scene(one).kinds)
        assert kind in one.text
    assert len({one.id for one in asked}) == len(asked)


def test_adversarial_questions_ask_after_the_partner_that_is_missing():
    for one in pope_questions("counterfactual", scenes("counterfactual", 40)):
        kind = one.id.partition("/")[2]
        first = list(dict.fromkeys(thing.kind for thing in scene(one).things))[:3]
        if PARTNER[kind] in first:
            assert one.answer == "no"
            assert "counterfactual/adversarial" in one.groups


def test_popular_questions_ask_after_the_most_frequent_kinds():
    for one in pope_questions("test", scenes("test", 40)):
        kind = one.id.partition("/")[2]
        absent = [other for other in KINDS if other not in scene(one).kinds]
        asked = min(3, len(scene(one).kinds))
        assert ("test/popular" in one.groups) == (kind in absent[:asked] or one.answer == "yes")


def test_in_training_a_kind_is_met_most_with_its_partner_and_then_with_the_most_frequent_kinds():
    """Counted over many scenes, both of a pair together, it is the order that the adversarial way takes as known."""
    together = Counter()
    for index in range(20_000):
        kinds = sample("train", index, seed=0).kinds
        together.update((one, other) for one in kinds for other in kinds if one != other)
    for kind in KINDS:
        assert max(KINDS, key=lambda other: together[kind, other]) == PARTNER[kind]
        others = [pair for *pair, _ in PAIRS if kind not in pair]
        met = [sum(together[kind, other] for other in pair) for pair in others]
        assert met == sorted(met, reverse=True), kind


@pytest.mark.parametrize(("split", "told"), [("test", 0.98), ("counterfactual", 0.43)])
def test_how_far_adversarial_is_popular_is_scored_and_as_the_docstring_says(split: str, told: float):
    asked = pope_questions(split, scenes(split, 300))
    found = pope_scores(asked, {one.id: "yes" for one in asked})[f"{split}/adversarial/as_popular"]
    absent = {
        way: {one.id for one in asked if one.answer == "no" and f"{split}/{way}" in one.groups}
        for way in ("popular", "adversarial")
    }
    assert found == len(absent["popular"] & absent["adversarial"]) / len(absent["adversarial"])
    assert round(found, 2) == told
    assert f"{told * 100:.0f} %" in pope_questions.__doc__


def test_pope_scores_the_truth_with_one_and_a_yes_to_all_with_half():
    asked = pope_questions("test", scenes("test", 20))
    truth = pope_scores(asked, {one.id: one.answer for one in asked})
    assert {truth[f"test/{way}/{name}"] for way in pope.CATEGORIES for name in ("accuracy", "f1")} == {1.0}
    always = pope_scores(asked, {one.id: "yes" for one in asked})
    assert {always[f"test/{way}/accuracy"] for way in pope.CATEGORIES} == {0.5}
    assert {always[f"test/{way}/yes_ratio"] for way in pope.CATEGORIES} == {1.0}


def test_topics_are_scored_apart_and_forms_of_an_answer_are_one():
    asked = [one for split in SPLITS for one in topic_questions(split, scenes(split, 30))]
    answers = {one.id: f" {one.answer.upper()}. " if "/colour" in one.id else one.answer for one in asked}
    right = topic_scores(asked, answers)
    groups = [f"{split}/{topic}" for split in sorted(SPLITS) for topic in (*TOPICS, "all")]
    assert list(right) == [name for group in groups for name in (group, f"{group}/most_frequent")]
    assert {right[group] for group in groups} == {1.0}
    wrong = topic_scores(asked, {name: "x" if "/colour" in name else text for name, text in answers.items()})
    assert (wrong["test/colour"], wrong["test/place"]) == (0.0, 1.0)
    count = {topic: sum(one.id.endswith(topic) for one in asked if one.split == "test") for topic in TOPICS}
    assert wrong["test/all"] == pytest.approx(1 - count["colour"] / sum(count.values()))


@pytest.mark.parametrize("split", SPLITS)
def test_as_many_existence_questions_are_answered_yes_as_no(split: str):
    answers = Counter(one.answer for one in topic_questions(split, scenes(split, 40)) if "/existence" in one.id)
    assert answers == {"yes": 20, "no": 20}


def test_more_scenes_add_questions_and_change_none():
    assert topic_questions("test", scenes("test", 15)) == [
        one for one in topic_questions("test", scenes("test", 40)) if one.index < 15
    ]


@pytest.mark.parametrize("topic", TOPICS)
def test_the_floor_is_what_the_best_of_constant_answers_gets(topic: str):
    asked = topic_questions("test", scenes("test", 40))
    always = [
        topic_scores(asked, {one.id: answer for one in asked})[f"test/{topic}"]
        for answer in {one.answer for one in asked}
    ]
    assert topic_scores(asked, {one.id: "x" for one in asked})[f"test/{topic}/most_frequent"] == max(always)


def test_the_floor_of_all_answers_each_topic_with_its_own_most_frequent_answer():
    asked = topic_questions("test", scenes("test", 40))
    best = {
        topic: Counter(one.answer for one in asked if one.id.endswith(topic)).most_common(1)[0][0] for topic in TOPICS
    }
    found = topic_scores(asked, {one.id: best[one.id.partition("/")[2]] for one in asked})
    assert found["test/all"] == found["test/all/most_frequent"]


def test_lone_things_are_of_every_kind_and_each_prompt_names_one_of_all():
    tables = lone_scenes(300, seed=1)
    assert all(len(table.things) == 1 for table in tables)
    for name, values in ATTRIBUTES.items():
        assert {getattr(table.things[0], name) for table in tables} == set(values)
    assert len(set(prompts())) == len(prompts()) == 12 * 8 * 9
    assert lone_scenes(5, seed=1) == tables[:5]
    assert lone_scenes(5, seed=2) != tables[:5]
