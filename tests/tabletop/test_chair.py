"""CHAIR by hand, and on captions whose truth is known."""

from __future__ import annotations

import pytest

from hialign.tabletop.chair import Chair, attribute_counts, attributes, chair, chair_counts
from hialign.tabletop.language import caption, hallucinated, mark
from hialign.tabletop.world import Scene, Thing, sample

CUP = Thing("cup", "red", "large", "top", "whole")
PEN = Thing("pen", "blue", "large", "left", "whole")


def test_chair_by_hand():
    """Six mentions, two wrong (one a partner) in one of two captions; three of four kinds found."""
    pairs = [
        ("a cup, a cup, a spoon and a lamp", Scene((CUP, PEN), (0, 0, 0))),
        ("a cup and a pen", Scene((CUP, PEN), (0, 0, 1))),
    ]
    assert chair(pairs) == Chair(chair_i=2 / 6, chair_s=1 / 2, recall=3 / 4, partner=1 / 2, mentions=3.0)


def test_true_captions_hallucinate_nothing_and_find_everything():
    scenes = [sample("test", index, seed=0) for index in range(50)]
    found = chair((caption(scene, scene.rng(1), paraphrase=1.0), scene) for scene in scenes)
    assert (found.chair_i, found.chair_s, found.recall) == (0.0, 0.0, 1.0)


def test_an_added_partner_is_counted_once_a_caption():
    scenes = [sample("counterfactual", index, seed=0) for index in range(50)]
    found = chair((hallucinated(scene, "partner", scene.rng(1)), scene) for scene in scenes)
    assert (found.chair_s, found.recall, found.partner) == (1.0, 1.0, 1.0)
    assert found.chair_i == pytest.approx(50 / (50 + sum(len(scene.things) for scene in scenes)))


def test_a_model_that_names_nothing_has_no_recall():
    assert chair([("nothing to see", Scene((CUP,), (0, 0, 0)))]) == Chair(0.0, 0.0, 0.0, 0.0, 0.0)


def test_no_caption_is_an_error():
    with pytest.raises(ValueError, match="chair: no caption"):
        chair([])
    with pytest.raises(ValueError, match="attributes: no caption"):
        attributes([])


@pytest.mark.parametrize("counts", [chair_counts, attribute_counts])
def test_counts_of_captions_add_up_to_the_shares_of_their_set(counts):
    """Sums first, then the share: a caption with more to count weighs more."""
    scenes = [sample("test", index, seed=0) for index in range(20)]
    pairs = [(hallucinated(scene, "partner", scene.rng(1)), scene) for scene in scenes]
    whole = {**chair(pairs).numbers(), **attributes(pairs)}
    parts = [counts(text, scene) for text, scene in pairs]
    for name in parts[0]:
        hits, number = (sum(one[name][i] for one in parts) for i in (0, 1))
        assert whole[name] == (hits / number if number else 0.0)


def test_a_negation_that_is_not_the_world_s_is_misread_as_the_docstring_says():
    assert chair([("a table without a cup", Scene((PEN,), (0, 0, 0)))]).chair_i == 1.0
    assert chair([("a table with no cup", Scene((PEN,), (0, 0, 0)))]).chair_i == 0.0


def test_attributes_by_hand():
    """A red cup is said to be red at the left; a blue pen is said twice, once blue, once green; nothing is small."""
    said = "a red cup at the left, a blue pen at the left and a green pen"
    numbers = attributes([(said, Scene((CUP, PEN), (0, 0, 0)))])
    assert numbers["colour_recall"] == 1.0
    assert numbers["colour_precision"] == pytest.approx(2 / 3)
    assert (numbers["place_recall"], numbers["place_precision"]) == (0.5, 0.5)
    assert numbers["size_recall"] == numbers["state_precision"] == 0.0


def test_attributes_of_true_captions_are_all_said_and_all_true():
    scenes = [sample("test", index, seed=0) for index in range(50)]
    numbers = attributes((caption(scene, scene.rng(1), paraphrase=1.0), scene) for scene in scenes)
    assert set(numbers.values()) == {1.0}


def test_attributes_of_made_up_kinds_count_neither_way():
    numbers = attributes([("a red cup at the top and a blue lamp at the left", Scene((CUP,), (0, 0, 0)))])
    assert (numbers["colour_recall"], numbers["colour_precision"], numbers["place_precision"]) == (1.0, 1.0, 1.0)


def test_made_up_kinds_are_marked_where_they_stand():
    assert mark("There is a red cup, two small SPOONS and no lamp.", {"spoon", "lamp"}) == (
        "there is a red cup, two small *spoons* and no lamp."
    )
    assert mark("a cup and a cupboard", {"cup"}) == "a *cup* and a cupboard"
