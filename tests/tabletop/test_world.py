"""Scenes: what they depend on, and that the knobs turn what they are named after."""

from __future__ import annotations

from collections import Counter

import pytest

from hialign.tabletop.world import APART, KINDS, PARTNER, PLACES, SPLITS, above, left_of, sample

NUMBER = 600


def scenes(split="train", *, seed=0, cooccurrence=0.8):
    return [sample(split, index, seed=seed, cooccurrence=cooccurrence) for index in range(NUMBER)]


def share_with_partner(scenes):
    met = [PARTNER[thing.kind] in scene.kinds for scene in scenes for thing in scene.things]
    return sum(met) / len(met)


def test_a_scene_depends_on_seed_split_and_index_alone():
    forwards = [sample("val", index, seed=3) for index in range(20)]
    backwards = [sample("val", index, seed=3) for index in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert len({scene.things for scene in forwards}) == 20
    assert forwards != [sample("val", index, seed=4) for index in range(20)]
    assert [s.things for s in forwards] != [sample("test", index, seed=3).things for index in range(20)]


def test_partners_pair_all_kinds():
    assert set(PARTNER) == set(KINDS)
    assert all(PARTNER[PARTNER[kind]] == kind != PARTNER[kind] for kind in KINDS)


def test_things_stand_in_reading_order_one_a_place():
    for scene in scenes():
        places = [PLACES.index(thing.place) for thing in scene.things]
        assert places == sorted(set(places))
        assert {*scene.free, *(thing.place for thing in scene.things)} == set(PLACES)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_cooccurrence_is_how_often_a_thing_brings_its_partner(split):
    shares = [share_with_partner(scenes(split, cooccurrence=c)) for c in (0.0, 0.4, 0.8, 1.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert shares[2] > 0.75
    # a stranger is an anchor as any other may be, but with certainty everyone has a partner
    assert shares[3] == 1.0


@pytest.mark.parametrize("split", APART)
def test_partners_never_meet_in_the_counterfactual_splits(split):
    assert share_with_partner(scenes(split)) == 0
    assert scenes(split, cooccurrence=0.1) == scenes(split, cooccurrence=0.9)


def test_the_counterfactual_splits_hold_the_kinds_as_often_as_test_does():
    """What differs is who stands beside whom, not what is seen."""
    test, apart = (Counter(t.kind for s in scenes(split) for t in s.things) for split in ("test", "counterfactual"))
    for kind in KINDS:
        assert abs(test[kind] / test.total() - apart[kind] / apart.total()) < 0.04


def test_popular_kinds_are_not_just_any():
    counts = Counter(thing.kind for scene in scenes() for thing in scene.things)
    assert counts["cup"] > 2.5 * counts["bottle"]
    assert set(counts) == set(KINDS)


def test_without_cooccurrence_kinds_are_even_and_independent():
    free = scenes(cooccurrence=None)
    counts = Counter(thing.kind for scene in free for thing in scene.things)
    assert max(counts.values()) < 1.5 * min(counts.values())
    with_cup = [scene for scene in free if "cup" in scene.kinds]
    beside = [kind for scene in with_cup for kind in scene.kinds - {"cup"}]
    assert abs(beside.count("spoon") / len(beside) - 1 / 11) < 0.05


def test_kinds_repeat_so_that_there_is_something_to_count():
    assert {scene.count(thing.kind) for scene in scenes() for thing in scene.things} >= {1, 2}


def test_relations_follow_from_places():
    by_place = {thing.place: thing for scene in scenes() for thing in scene.things}
    one, other = by_place["top left"], by_place["middle"]
    assert left_of(one, other)
    assert above(one, other)
    assert not left_of(other, one)
    assert not left_of(by_place["top"], by_place["bottom"])
    assert not above(by_place["left"], by_place["right"])


@pytest.mark.parametrize(
    ("split", "index", "seed", "cooccurrence", "named"),
    [
        ("training", 0, 0, 0.8, "split='training'"),
        ("train", -1, 0, 0.8, "index=-1"),
        ("train", 0, -1, 0.8, "seed=-1"),
        ("train", 0, 0, 1.2, "cooccurrence=1.2"),
    ],
)
def test_what_no_scene_can_be_made_of_is_named(split, index, seed, cooccurrence, named):
    with pytest.raises(ValueError, match=named):
        sample(split, index, seed=seed, cooccurrence=cooccurrence)


def test_no_split_shares_a_scene_with_another():
    seen = Counter(scene for split in SPLITS for scene in {s.things for s in scenes(split) if len(s.things) > 3})
    assert seen.total() - len(seen) < 3  # by chance
