"""Drawn pictures are what their captions say, the same for the same seed, and read as Flickr8k."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from hialign.data import flickr8k, load_image

Draw = Callable[..., Path]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, draw_captioned: Draw) -> Path:
    return draw_captioned(tmp_path_factory.mktemp("drawn") / "new", 40, seed=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def said(drawing: ModuleType) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """Colour, shape and place of an image's captions, which must agree."""

    def read(captions: tuple[str, ...]) -> tuple[str, ...]:
        choices = (drawing.COLOURS, drawing.SHAPES, drawing.PLACES)
        (fact,) = {
            tuple(next(word for word in words if word in caption.split()) for words in choices) for caption in captions
        }
        return fact

    return read


def test_drawn_pictures_are_read_as_flickr8k(drawn: Path, drawing: ModuleType) -> None:
    data = flickr8k(str(drawn), holdout=0.0)
    assert len(data.records) == 40
    assert data.skipped == ()
    for record in data.records:
        assert len(record.captions) == len(drawing.SENTENCES)
        assert load_image(record).size == (96, 96)


def test_each_picture_shows_the_colour_and_place_that_its_captions_name(
    drawn: Path, drawing: ModuleType, said: Callable[..., tuple[str, ...]]
) -> None:
    for record in flickr8k(str(drawn), holdout=0.0).records:
        colour, _, place = said(record.captions)
        painted = (np.asarray(load_image(record)) == drawing.COLOURS[colour]).all(axis=-1)
        assert painted.sum() > 100, record.id
        assert abs(np.nonzero(painted)[1].mean() - drawing.PLACES[place]) < 7, record.id
        for other in set(drawing.COLOURS) - {colour}:
            assert not (np.asarray(load_image(record)) == drawing.COLOURS[other]).all(axis=-1).any()


def test_each_picture_shows_the_shape_that_its_captions_name(
    drawn: Path, drawing: ModuleType, said: Callable[..., tuple[str, ...]]
) -> None:
    """By the share of its bounding box that is painted: a square fills it, a circle pi/4, a triangle half."""
    for record in flickr8k(str(drawn), holdout=0.0).records:
        colour, shape, _ = said(record.captions)
        rows, columns = np.nonzero((np.asarray(load_image(record)) == drawing.COLOURS[colour]).all(axis=-1))
        share = len(rows) / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
        low, high = {"square": (0.99, 1), "circle": (0.7, 0.87), "triangle": (0.4, 0.62)}[shape]
        assert low <= share <= high, (record.id, shape, share)


def test_colours_shapes_and_places_all_come_and_in_many_combinations(
    drawn: Path, drawing: ModuleType, said: Callable[..., tuple[str, ...]]
) -> None:
    facts = {said(record.captions) for record in flickr8k(str(drawn), holdout=0.0).records}
    for words, place in ((drawing.COLOURS, 0), (drawing.SHAPES, 1), (drawing.PLACES, 2)):
        assert {fact[place] for fact in facts} == set(words)
    assert len(facts) > 15


def test_the_seed_decides_everything(drawn: Path, tmp_path: Path, draw_captioned: Draw) -> None:
    again = draw_captioned(tmp_path / "again", 40, seed=0)
    assert contents(again) == contents(drawn)
    other = draw_captioned(tmp_path / "other", 40, seed=1)
    assert contents(other) != contents(drawn)


def test_drawing_leaves_the_global_generator_alone(tmp_path: Path, draw_captioned: Draw) -> None:
    before = np.random.get_state()[1].copy()
    draw_captioned(tmp_path, 2, seed=0)
    assert (np.random.get_state()[1] == before).all()


def test_drawing_again_into_the_folder_gives_the_same_data_set(tmp_path: Path, draw_captioned: Draw) -> None:
    draw_captioned(tmp_path, 3, seed=0)
    first = contents(tmp_path)
    draw_captioned(tmp_path, 3, seed=0)
    assert contents(tmp_path) == first
    Image.open(tmp_path / "images" / "00002.png").verify()
