"""Drawn pictures with captions, in Flickr8k's layout, where a test wants photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200), "yellow": (220, 200, 40)}
SHAPES = ("circle", "square", "triangle")
PLACES = {"left": 16, "middle": 48, "right": 80}  # x of the centre in a picture of 96 pixels
SENTENCES = (
    "A {colour} {shape} on the {place} .",
    "There is a {colour} {shape} on the {place} .",
    "On the {place} is a {shape} that is {colour} .",
)


def draw_captioned(folder: Path, num_images: int, *, seed: int) -> Path:
    """Writes ``images/`` and ``captions.txt``, three captions an image, into ``folder``; returns it.

    Each picture has one shape, so that colour, shape and place are all that there is to know of it.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "captions.txt").open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["image", "caption"])
        for number in range(num_images):
            name = f"{number:05d}.png"
            colour, shape, place = (str(rng.choice(list(choices))) for choices in (COLOURS, SHAPES, PLACES))
            _picture(colour, shape, place, rng).save(folder / "images" / name)
            rows.writerows([name, s.format(colour=colour, shape=shape, place=place)] for s in SENTENCES)
    return folder


def _picture(colour: str, shape: str, place: str, rng: np.random.Generator) -> Image.Image:
    background = tuple(int(level) for level in rng.integers(90, 160, size=3))
    image = Image.new("RGB", (96, 96), background)
    x, y, radius = PLACES[place] + int(rng.integers(-4, 5)), 48 + int(rng.integers(-16, 17)), int(rng.integers(9, 15))
    box = (x - radius, y - radius, x + radius, y + radius)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=COLOURS[colour])
    return image
