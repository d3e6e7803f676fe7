"""Pictures: the same for the same scene, and showing what the scene says they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hialign.tabletop.render import CELL, PIXELS, render
from hialign.tabletop.world import COLOURS, KINDS, PLACES, SIZES, STATES, Scene, Thing, sample


def alone(kind="cup", colour="red", size="large", place="middle", state="whole", key=(0, 0, 0)):
    return Scene((Thing(kind, colour, size, place, state),), key)


def test_a_picture_depends_on_its_scene_alone():
    first = [render(sample("train", index, seed=0)) for index in range(5)]
    render(sample("test", 9, seed=1))
    again = [render(sample("train", index, seed=0)) for index in reversed(range(5))]
    assert all(np.array_equal(one, other) for one, other in zip(first, again[::-1], strict=True))
    assert first[0].shape == (PIXELS, PIXELS, 3)
    assert first[0].dtype == np.uint8


@pytest.mark.parametrize("place", PLACES)
def test_a_thing_is_drawn_in_its_place_and_nowhere_else(place):
    thing = alone(place=place)
    empty = Scene((), thing.key)
    changed = np.abs(render(thing, noise=0.0).astype(int) - render(empty, noise=0.0)).sum(axis=2) > 0
    row, column = thing.things[0].cell
    inside = changed[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
    assert inside.sum() > 50
    assert changed.sum() == inside.sum()


def test_no_two_values_of_an_attribute_look_alike():
    def looks(values, name):
        return [render(alone(**{name: value}), noise=0.0).astype(float) for value in values]

    for name, values in {"kind": KINDS, "colour": COLOURS, "size": SIZES, "state": STATES}.items():
        pictures = looks(values, name)
        for number, one in enumerate(pictures):
            for other in pictures[:number]:
                assert np.abs(one - other).mean() > 0.5, name


def test_noise_makes_pictures_harder_to_read_and_none_makes_them_flat():
    scene = Scene((), (0, 0, 5))
    spread = [render(scene, noise=noise).std(axis=(0, 1)).mean() for noise in (0.0, 0.3, 0.9)]
    assert spread[0] == 0
    assert spread == sorted(spread)


def test_scenes_of_other_keys_lie_on_other_tables():
    scene = alone()
    other = replace(scene, key=(0, 0, 1))
    assert not np.array_equal(render(scene, noise=0.0), render(other, noise=0.0))


def test_noise_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"noise=1\.5"):
        render(alone(), noise=1.5)
