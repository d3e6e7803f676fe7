"""``hialign data hallucinate``: captions that are wrong in one phrase, which is known."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from hialign.data import CaptionedImage, Dataset, Hallucinated, Left, layouts
from hialign.files import write_json
from hialign.runner import schema
from hialign.runner.build import build
from hialign.runner.told import told

DONE = "summary.json"  # the last file to be written


def main() -> None:
    """Composes the config from the command line and writes the captions."""
    schema.register()
    _composed()


@hydra.main(version_base="1.3", config_path="pkg://hialign.configs", config_name="hallucinate")
def _composed(config: DictConfig) -> None:
    with told("data hallucinate"):
        run(config)


def run(config: DictConfig) -> dict[str, Any]:
    """Writes the captions as our jsonl, as HACL's and as HALVA's json; returns the summary, which it prints."""
    _refuse_missing(config)
    if config.sample < 0:
        raise ValueError(f"sample: got {config.sample}, wanted 0 or more")
    out = Path(config.out)
    if (out / DONE).exists():
        raise ValueError(f"out={out}: holds captions that are done; name a new folder, or remove it")
    dataset = _captioned(config)
    out.mkdir(parents=True, exist_ok=True)
    writer = build(config.writer, "writer", config.allow)
    total = sum(len(record.captions) for record in dataset.records)
    with tqdm(writer(dataset.records, seed=config.seed), "captions", total, unit="caption") as results:
        made, left = _parted(results)
    _write(made, left, config, dataset, out)
    summary = _summary(config, dataset, made, left)
    write_json(out / DONE, summary)
    _show(made, config.sample, config.seed)
    _tell(summary, out)
    return summary


def _write(
    made: Sequence[Hallucinated], left: Sequence[Left], config: DictConfig, dataset: Dataset[CaptionedImage], out: Path
) -> None:
    names = _image_names(made, config, out)
    ours = [layouts.everything(m, names[m.record.id]) for m in made]
    hacl = [layouts.hacl(m, names[m.record.id], question=config.question, dataset=dataset.name) for m in made]
    halva = [layouts.halva(m, names[m.record.id], question=config.question) for m in made]
    without = [{"id": x.record.id, "number": x.number, "caption": x.caption, "why": x.why} for x in left]
    _write_lines(out / "hallucinated.jsonl", ours)
    _write_lines(out / "left.jsonl", without)
    write_json(out / "hacl.json", hacl)
    write_json(out / "halva.json", halva)


def _refuse_missing(config: DictConfig) -> None:
    """A ValueError for the first key that has to be given and is not."""
    if OmegaConf.is_missing(config, "out"):
        raise ValueError("out: not given; wanted a new folder, as in out=hallucinated")
    if OmegaConf.is_missing(config, "data"):
        raise ValueError("data: not chosen; wanted data=NAME data.root=FOLDER, `hialign configs data` lists them")
    missing = [f"writer.{key}" for key in sorted(OmegaConf.missing_keys(config.writer))]
    if OmegaConf.is_missing(config.data, "root"):
        missing.insert(0, "data.root")
    if missing:
        raise ValueError(f"{missing[0]}: not given; set {missing[0]}=...")


def _captioned(config: DictConfig) -> Dataset[CaptionedImage]:
    """The data set of the chosen role; a ValueError when its captions cannot be changed."""
    if config.role not in config.data or OmegaConf.is_missing(config.data, config.role):
        raise ValueError(f"role={config.role}: the data have no such role; wanted one with captions, such as pairs")
    dataset = build(config.data[config.role], f"data.{config.role}", config.allow)
    if not isinstance(dataset, Dataset):
        raise ValueError(f"data.{config.role}: a {type(dataset).__name__}; wanted a set that is not streamed or mixed")
    if not isinstance(dataset.records[0], CaptionedImage):
        kind = type(dataset.records[0]).__name__
        raise ValueError(f"data.{config.role}: holds {kind} records; wanted captioned images, such as role=pairs")
    for skipped in dataset.skipped:
        print(f"skipped {skipped.record} of {skipped.file}: {skipped.problem}", file=sys.stderr)
    return dataset


def _parted(results: Iterable[Hallucinated | Left]) -> tuple[list[Hallucinated], list[Left]]:
    made: list[Hallucinated] = []
    left: list[Left] = []
    for result in results:
        if isinstance(result, Hallucinated):
            made.append(result)
        else:
            left.append(result)
    return made, left


def _image_names(made: Sequence[Hallucinated], config: DictConfig, out: Path) -> dict[str, str]:
    """Record's id -> its image's path from the data's root, or its whole path when it lies elsewhere.

    An image that is no file, but a cell of a table, is written to ``out``/images and is named from ``out``.
    """
    root = os.path.abspath(str(config.data.get("root") or "."))
    names: dict[str, str] = {}
    for number, record in enumerate({m.record.id: m.record for m in made}.values()):
        if isinstance(record.image, Path):
            path = os.path.abspath(record.image)
            inside = path.startswith(os.path.join(root, ""))
            names[record.id] = os.path.relpath(path, root) if inside else path
            continue
        (out / "images").mkdir(exist_ok=True)
        names[record.id] = f"images/{number:06d}"
        (out / names[record.id]).write_bytes(record.image.read())
    return names


def _write_lines(file: Path, entries: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries), encoding="utf-8")


def _summary(
    config: DictConfig, dataset: Dataset[CaptionedImage], made: Sequence[Hallucinated], left: Sequence[Left]
) -> dict[str, Any]:
    return {
        "data": dataset.name,
        "captions": len(made) + len(left),
        "made": len(made),
        "kinds": dict(Counter(change.kind for m in made for change in m.changes).most_common()),
        "left": dict(Counter(x.why for x in left).most_common()),
        "skipped": len(dataset.skipped),
        "config": OmegaConf.to_container(config, resolve=False),
    }


def _show(made: Sequence[Hallucinated], count: int, seed: int) -> None:
    """Prints some of them, with what changed in brackets."""
    for m in random.Random(seed).sample(list(made), min(count, len(made))):
        text = m.caption
        for change in reversed(m.changes):
            (start, end), new = change.span, m.text[slice(*change.hallucinated_span)]
            text = f"{text[:start]}[{text[start:end]} -> {new}]{text[end:]}"
        print(f"{'+'.join(change.kind for change in m.changes):<10} {text}")


def _tell(summary: dict[str, Any], out: Path) -> None:
    share = summary["made"] / summary["captions"]
    print(f"{summary['made']} of {summary['captions']} captions ({share:.1%}): {summary['kinds']}")
    for why, count in summary["left"].items():
        print(f"  {count} left out: {why}")
    print(f"written to {out}: hallucinated.jsonl, hacl.json, halva.json, left.jsonl, {DONE}")
