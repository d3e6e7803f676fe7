"""The demo's picture: scores side by side, and what is said of a few scenes."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hialign.evaluation.report import HIGH, LOW, NO_NUMBER, Numbers
from hialign.evaluation.tabletop import SEED
from hialign.tabletop.language import Style, describe, mark
from hialign.tabletop.render import image
from hialign.tabletop.world import KINDS, Scene, sample, scene_id

SPLIT = "counterfactual"
PANELS = (  # what a panel shows, of which scores, for which groups of bars
    ("things found (recall)", "tabletop_captions/{}/recall", ("test", "counterfactual")),
    ("made-up mentions (CHAIR-i)", "tabletop_captions/{}/chair_i", ("test", "counterfactual")),
    ("captions with one (CHAIR-s)", "tabletop_captions/{}/chair_s", ("test", "counterfactual")),
)
COLOURS = ("#4477aa", "#ee7733", "#228833", "#aa3377")
WIDTH, LINE, LETTER = 44, 11.5, 4.82  # letters a line; points from line to line and from letter to letter


@dataclass(frozen=True)
class Example:
    """A scene, its true caption, and what each model says of it, with what is not there in asterisks."""

    scene: Scene
    truth: str
    captions: Mapping[str, str]


def examples(answers: Mapping[str, Path], number: int) -> list[Example]:
    """The first ``number`` scenes of the counterfactual split, with the answers in each model's file of captions."""
    said = {
        model: {row["id"]: row["answer"] for row in map(json.loads, file.read_text().splitlines())}
        for model, file in answers.items()
    }
    found = []
    for index in range(number):
        scene = sample(SPLIT, index, seed=SEED)
        wrong = set(KINDS) - scene.kinds
        captions = {model: mark(texts[scene_id(SPLIT, index)], wrong) for model, texts in said.items()}
        found.append(Example(scene, describe(scene, Style()), captions))
    return found


def draw(scores: Mapping[str, Numbers], shown: Sequence[Example], file: Path) -> None:
    """Writes the picture: a row of panels with bars, and under it the scenes with their captions."""
    from matplotlib import rc_context

    with rc_context({"text.hinting": "no_hinting"}):  # letters at their true widths: words stand side by side
        figure(scores, shown).savefig(file)


def figure(scores: Mapping[str, Numbers], shown: Sequence[Example]) -> Any:
    """The picture. A bar's whisker is the score's 95 % interval; a score that is None has a dash for a bar."""
    from matplotlib.figure import Figure

    whole = Figure(figsize=(12, 7.2), dpi=110, layout="constrained")
    above, below = cast(Any, whole.subfigures(2, 1, height_ratios=(1, 1.25)))  # an array, whatever its stubs say
    for axes, panel in zip(above.subplots(1, len(PANELS)), PANELS, strict=True):
        bars = _bars(axes, scores, *panel)
    title = "one seed each; lines are 95 % intervals over scenes"
    above.legend(bars, list(scores), loc="outside upper center", ncols=len(scores), frameon=False, title=title)
    for axes, example in zip(below.subplots(1, len(shown)), shown, strict=True):
        _scene(axes, example, list(scores))
    return whole


def _bars(axes: Any, scores: Mapping[str, Numbers], title: str, key: str, groups: Sequence[str]) -> list[Any]:
    """Draws a panel; its bars by model, for the legend."""
    width, drawn = 0.8 / len(scores), []
    for number, numbers in enumerate(scores.values()):
        places = [group + width * (number - (len(scores) - 1) / 2) for group in range(len(groups))]
        values = [numbers[key.format(group)] for group in groups]
        heights = [math.nan if value is None else value for value in values]
        drawn.append(axes.bar(places, heights, 0.94 * width, color=COLOURS[number]))
        for place, value, group in zip(places, values, groups, strict=True):
            ends = [numbers.get(f"{key.format(group)}{end}") for end in (LOW, HIGH)]
            if value is not None and None not in ends:
                axes.plot([place, place], ends, color="#222222", linewidth=1)
            top = max([end for end in (value, *ends) if end is not None], default=0.0)
            text = NO_NUMBER if value is None else f"{value:.2f}"
            axes.annotate(text, (place, top), (0, 2), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 1.1)
    axes.set_title(title, fontsize=10.5)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def _scene(axes: Any, example: Example, models: Sequence[str]) -> None:
    """The scene's picture, and under it what is true and what each model says, made-up words in red."""
    axes.imshow(image(example.scene), aspect="equal", interpolation="nearest")
    axes.set_axis_off()
    row = 0
    for name, text, colour in [("truth", example.truth, "#222222")] + [
        (model, example.captions[model], COLOURS[number]) for number, model in enumerate(models)
    ]:
        for line in textwrap.wrap(f"{name}: {text}", WIDTH):
            _line(axes, line, row, colour)
            row += 1


def _line(axes: Any, line: str, row: int, colour: str) -> None:
    place = 0
    for word in re.split(r"(\*\w+\*)", line):
        made_up = word.startswith("*")
        axes.annotate(
            word,
            (0, 0),
            (LETTER * place - 60, -14 - LINE * row),
            xycoords="axes fraction",
            textcoords="offset points",
            family="monospace",
            fontsize=8,
            color="#cc0000" if made_up else colour,
            weight="bold" if made_up else "normal",
            annotation_clip=False,
        )
        place += len(word)
