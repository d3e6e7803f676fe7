"""CHAIR by hand, and on captions whose truth is known."""

from __future__ import annotations

import pytest

from hialign.tabletop.chair import Chair, chair
from hialign.tabletop.language import caption, hallucinated
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
    with pytest.raises(ValueError, match="no caption"):
        chair([])
