"""The base model's folder: weights, training curves and a model card that says how it came to be."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from hialign.models import Model, count, save
from hialign.tabletop import pretrain
from hialign.tabletop.render import NOISE

CURVES = ("language.csv", "reading1.csv", "reading2.csv", "towers.csv", "answering.csv")
_SAID = {
    "r1_i2t_even": "R@1, caption of an image, 300 scenes with independent kinds",
    "r1_t2i_even": "R@1, image of a caption, the same",
    "r1_i2t_val": "R@1, caption of an image, 300 scenes of `val`",
    "r1_t2i_val": "R@1, image of a caption, the same",
    "zero_shot_kind": "zero-shot, which of 12 kinds a lone thing is",
    "zero_shot_colour": "zero-shot, which of 8 colours it has",
    "zero_shot_place": "zero-shot, which of 9 places it is in",
    "probe_kind": "linear probe of the tokens that the language model gets, the kind of each thing",
    "probe_empty": "the same, that nothing is in an empty place",
    "loss_val": "language model without images, nats a token of plain captions of `val`",
    "loss_val_counterfactual": "the same of `val_counterfactual`",
}


def write_base(
    model: Model,
    folder: Path,
    curves: Path,
    scores: Mapping[str, float],
    *,
    seed: int,
    command: str,
    minutes: float | None,
) -> None:
    """Saves the model, the curves and the scores into ``folder``, in place of what was there, with a card.

    ``minutes`` is how long all of it took, None where it was taken up again after a kill.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(model, folder)
    for name in CURVES:
        shutil.copy(curves / name, folder / name)
    draw_curves(folder)
    facts = {
        "seed": seed,
        "command": command,
        "minutes": None if minutes is None else round(minutes, 1),
        "towers": asdict(pretrain.TOWERS),
        "language": asdict(pretrain.LANGUAGE),
        "reading": asdict(pretrain.READING),
        "answering": asdict(pretrain.ANSWERING),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "scores": {key: round(value, 4) for key, value in scores.items()},
    }
    (folder / "made_by.json").write_text(json.dumps(facts, indent=2) + "\n")
    (folder / "README.md").write_text(_card(model, scores, command))


_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")


def draw_curves(folder: Path) -> None:
    """Writes ``curves.png``: the losses of the folder's training curves, a panel each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(CURVES))
    for axes, name in zip(panels, CURVES, strict=True):
        with (folder / name).open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        for loss in rows[0]:
            if loss != "step":
                axes.plot([row["step"] for row in rows], [row[loss] for row in rows], label=loss)
        axes.set_title(name.removesuffix(".csv"))
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    panels[0].set_ylabel("loss, mean of 50 steps")
    figure.savefig(folder / "curves.png")


def _card(model: Model, scores: Mapping[str, float], command: str) -> str:
    parts = "\n".join(f"| {row.part} | {row.total:,} |" for row in count(model.root))
    numbers = "\n".join(f"| {_SAID[key]} | {value:.3f} |" for key, value in scores.items())
    towers, language = pretrain.TOWERS, pretrain.LANGUAGE
    reading, answering = pretrain.READING, pretrain.ANSWERING
    return f"""# The base model of the embedded world

A Llava of {sum(row.total for row in count(model.root)):,} parameters that has learnt to see and to speak, each by
itself: what fine-tuning starts from. Its projector is random, `hialign.tabletop.base(seed=...)` draws it anew.

Made by `{command}`; `made_by.json` holds seed, lengths and versions, `*.csv` the training curves.

![Training curves](curves.png)

- Image and text tower: {towers.steps} steps of {towers.batch_size} pictures, contrast of pictures with captions and of
  places with phrases, on scenes whose kinds are independent of each other. A quarter of the pictures are twins of
  others that differ in one thing.
- Language model: {language.steps} steps of {language.batch_size} rows of the world's own biased text: captions,
  questions and answers, some of them with notes of what lies on the table, which leave things out. Then twice
  {reading.steps} steps on rows as fine-tuning has them, where each image token is the sum of the words for what is in
  its place, and {answering.steps} more, half of each batch captions and half conversations of up to six questions, of
  which only the answers are to be predicted.

| part | parameters |
|---|---|
{parts}

| score, at noise {NOISE} | |
|---|---|
{numbers}

It knows the words of one small world and is of no use outside of it.
"""
