"""Scenes to pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from hialign.tabletop.world import SIDE, Scene

CELL = 24  # pixels of a place's side
PIXELS = SIDE * CELL
NOISE = 0.5
_FINE = 8  # masks are drawn this much larger and scaled down, for soft edges
_RGB = {
    name: np.asarray(rgb * CELL, dtype=np.float32)  # a cell's row
    for name, rgb in {
        "red": (205, 35, 40),
        "orange": (240, 135, 25),
        "yellow": (240, 220, 50),
        "green": (40, 150, 60),
        "blue": (45, 85, 215),
        "purple": (145, 60, 175),
        "white": (245, 245, 245),
        "black": (20, 20, 25),
    }.items()
}
_CRUMBS = tuple(
    np.asarray([r, g, b] * 2, dtype=np.float32) for r in (20, 130, 240) for g in (20, 130, 240) for b in (20, 130, 240)
)
_PURPOSE = 1


def render(scene: Scene, *, noise: float = NOISE) -> np.ndarray:
    """The scene's picture, (PIXELS, PIXELS, 3), uint8, always the same for the same scene.

    ``noise`` from 0 to 1 is how hard it is to read: grain, faint things, crumbs and stains on the table.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise={noise}: wanted a number in [0, 1]")
    rng = scene.rng(_PURPOSE)
    draw = iter(rng.random(128).tolist())
    brightness = 95 + 70 * next(draw)
    table = [brightness + 36 * next(draw) - 18 for _ in range(3)]
    # rows of pixels * channels: numpy is several times slower where its inner loop is over three channels
    picture = np.empty((PIXELS, PIXELS * 3), dtype=np.float32)
    picture[:] = np.asarray(table * PIXELS, dtype=np.float32)
    _clutter(picture, draw, noise)
    for thing in scene.things:
        row, column = thing.cell
        moved = int(5 * next(draw)) - 2, int(5 * next(draw)) - 2
        mask = _mask(thing.kind, thing.size, thing.state, moved) * np.float32(1 - noise * next(draw) ** 2)
        cell = picture[row * CELL : (row + 1) * CELL, 3 * column * CELL : 3 * (column + 1) * CELL]
        cell += mask * (_RGB[thing.colour] - cell)
    grain = np.frombuffer(rng.bytes(picture.size), dtype=np.uint8).reshape(picture.shape).astype(np.float32)
    grain -= 127.5
    grain *= 0.5 * noise
    picture += grain
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8).reshape(PIXELS, PIXELS, 3)


def image(scene: Scene, *, noise: float = NOISE) -> Image.Image:
    """The same as a Pillow image."""
    return Image.fromarray(render(scene, noise=noise))


def _clutter(picture: np.ndarray, draw: Iterator[float], noise: float) -> None:
    """Puts stains, large and pale, and crumbs, tiny and of any colour, on the table."""
    for _ in range(int(6 * noise * next(draw) + 0.5)):
        y, x, high, wide = (int(PIXELS * next(draw)) for _ in range(4))
        picture[y : y + 6 + high // 5, 3 * x : 3 * (x + 6 + wide // 5)] += np.float32(60 * next(draw) - 30)
    for _ in range(int(20 * noise * next(draw) + 0.5)):
        y, x = (int((PIXELS - 2) * next(draw)) for _ in range(2))
        picture[y : y + 2, 3 * x : 3 * x + 6] = _CRUMBS[int(len(_CRUMBS) * next(draw))]


@cache
def _mask(kind: str, size: str, state: str, moved: tuple[int, int]) -> np.ndarray:
    """How much of each pixel of a cell a thing covers, 0 to 1, once a channel, (CELL, CELL * 3).

    ``moved`` is how many pixels down and to the right of the middle it lies.
    """
    side = CELL * _FINE
    sheet = Image.new("L", (side, side), 0)
    pen = _Pen(ImageDraw.Draw(sheet), side / 2, (side / 2 - 2 * _FINE) * (1.0 if size == "large" else 0.65))
    _SHAPES[kind](pen)
    if state == "broken":
        pen.line((-1, 0.45, 1, -0.45), 0.22, fill=0)
    small = np.asarray(sheet.resize((CELL, CELL), Image.Resampling.BOX), dtype=np.float32) / 255
    return np.roll(small, moved, axis=(0, 1)).repeat(3, axis=1)


class _Pen:
    """Draws in coordinates from -1 to 1, x to the right and y down."""

    def __init__(self, draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
        self.draw, self.middle, self.radius = draw, middle, radius

    def _at(self, numbers: tuple[float, ...]) -> list[float]:
        return [self.middle + self.radius * number for number in numbers]

    def box(self, *corners: float, fill: int = 255) -> None:
        self.draw.rectangle(self._at(corners), fill=fill)

    def disc(self, *corners: float, fill: int = 255) -> None:
        self.draw.ellipse(self._at(corners), fill=fill)

    def area(self, *corners: float, fill: int = 255) -> None:
        self.draw.polygon(self._at(corners), fill=fill)

    def line(self, ends: tuple[float, ...], width: float, *, fill: int = 255) -> None:
        self.draw.line(self._at(ends), fill=fill, width=round(width * self.radius))


def _cup(pen: _Pen) -> None:
    pen.disc(0.1, -0.4, 1, 0.5)
    pen.disc(0.35, -0.15, 0.75, 0.25, fill=0)
    pen.box(-0.9, -0.7, 0.5, 0.8)


def _spoon(pen: _Pen) -> None:
    pen.disc(-0.45, -1, 0.45, 0.15)
    pen.line((0, 0, 0, 1), 0.22)


def _plate(pen: _Pen) -> None:
    pen.disc(-1, -1, 1, 1)
    pen.disc(-0.66, -0.66, 0.66, 0.66, fill=0)
    pen.disc(-0.4, -0.4, 0.4, 0.4)


def _fork(pen: _Pen) -> None:
    for x in (-0.55, 0.0, 0.55):
        pen.line((x, -1, x, -0.1), 0.26)
    pen.box(-0.68, -0.3, 0.68, 0.0)
    pen.line((0, 0, 0, 1), 0.28)


def _book(pen: _Pen) -> None:
    pen.area(-1, -0.5, -0.1, -0.8, -0.1, 0.6, -1, 0.9)
    pen.area(1, -0.5, 0.1, -0.8, 0.1, 0.6, 1, 0.9)


def _pen(pen: _Pen) -> None:
    pen.line((-0.85, 0.85, 0.85, -0.85), 0.38)


def _lamp(pen: _Pen) -> None:
    pen.area(-0.4, -1, 0.4, -1, 0.95, 0.0, -0.95, 0.0)
    pen.line((0, 0, 0, 0.9), 0.2)
    pen.box(-0.6, 0.75, 0.6, 1)


def _clock(pen: _Pen) -> None:
    pen.disc(-1, -1, 1, 1)
    pen.line((0, 0.12, 0, -0.75), 0.24, fill=0)
    pen.line((-0.1, 0, 0.6, 0), 0.24, fill=0)


def _apple(pen: _Pen) -> None:
    pen.disc(-0.9, -0.45, 0.2, 1)
    pen.disc(-0.2, -0.45, 0.9, 1)
    pen.line((0, -0.2, 0.35, -1), 0.22)


def _knife(pen: _Pen) -> None:
    pen.area(-1, -0.1, -0.7, -0.4, 0.3, -0.4, 0.3, 0.3, -0.7, 0.3)
    pen.box(0.3, -0.2, 1, 0.1)


def _bottle(pen: _Pen) -> None:
    pen.box(-0.22, -1, 0.22, -0.3)
    pen.area(-0.22, -0.5, 0.22, -0.5, 0.6, -0.05, 0.6, 1, -0.6, 1, -0.6, -0.05)


def _glass(pen: _Pen) -> None:
    pen.area(-0.85, -1, 0.85, -1, 0, 0.25)
    pen.line((0, 0, 0, 0.9), 0.2)
    pen.box(-0.5, 0.8, 0.5, 1)


_SHAPES = {
    "cup": _cup,
    "spoon": _spoon,
    "plate": _plate,
    "fork": _fork,
    "book": _book,
    "pen": _pen,
    "lamp": _lamp,
    "clock": _clock,
    "apple": _apple,
    "knife": _knife,
    "bottle": _bottle,
    "glass": _glass,
}
