"""Fine-tunes the world's base model as LLaVA is, and counts what it makes up: python scripts/measure_tabletop.py

Each seed is a run of `hialign train experiment=llava`, on captions with the default biases; then greedy captions of
scenes of `test` and `counterfactual`, and of the same scenes with each other's images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from hialign.benchmarks.intervals import mean95
from hialign.tabletop.chair import Chair, chair
from hialign.tabletop.render import NOISE
from hialign.tabletop.world import COOCCURRENCE, sample, scene_id


def main() -> None:
    """Trains, has captions written, prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of numbers.json")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="with commas between")
    parser.add_argument("--number", type=int, default=300, help="scenes of each split")
    parser.add_argument("--scenes-seed", type=int, default=0, help="of the scenes that are described")
    parser.add_argument("--val", action="store_true", help="scenes of val and val_counterfactual: to choose by")
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("override", nargs="*", help="for hialign train, such as stages.finetune.steps=500")
    settings = parser.parse_args()
    rows = []
    for seed in settings.seeds:
        answers = _answers(settings, _trained(settings, seed))
        found = {name: _chair(answers, settings, *how) for name, how in _CASES.items()}
        rows.append({name: numbers.numbers() for name, numbers in found.items()})
        print(f"seed {seed}:")
        for name, numbers in found.items():
            print("  " + f"{name:24}" + "  ".join(f"{key} {value:.3f}" for key, value in numbers.numbers().items()))
        settings.out.joinpath("numbers.json").write_text(json.dumps(rows, indent=1) + "\n")
    summary = _summary(rows)
    settings.out.joinpath("summary.md").write_text(summary + "\n")
    print(summary)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


_CASES = {
    "test": ("test", False),
    "counterfactual": ("counterfactual", False),
    "test shuffled": ("test", True),
    "counterfactual shuffled": ("counterfactual", True),
}


def _hialign(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "hialign", *command], check=True)


def _trained(settings: argparse.Namespace, seed: int) -> Path:
    """The folder of a run, which is trained unless it is done."""
    chosen = ("experiment=llava", "data=tabletop", "model=tabletop", f"data.noise={settings.noise}", *settings.override)
    _hialign("train", *chosen, f"seed={seed}", f"name=seed{seed}", f"output={settings.out}", "resume=auto")
    return settings.out / "llava" / f"seed{seed}"


def _answers(settings: argparse.Namespace, run: Path) -> dict[str, str]:
    """The run's greedy captions by the scenes' ids."""
    name = "tabletop_captions"
    how = {"size": settings.number, "seed": settings.scenes_seed, "cooccurrence": COOCCURRENCE}
    how["splits"] = f"[{','.join(_splits(settings).values())}]"
    asked = [f"benchmark.{name}.{key}={value}" for key, value in how.items()]
    _hialign("evaluate", f"run={run}", f"benchmark=[{name}]", *asked)
    rows = map(json.loads, (run / "answers" / f"{name}.jsonl").read_text().splitlines())
    return {row["id"]: row["answer"] for row in rows}


def _splits(settings: argparse.Namespace) -> dict[str, str]:
    """The splits that are described, by what the numbers are called after."""
    return {split: _CHOOSE_BY[split] if settings.val else split for split in _CHOOSE_BY}


_CHOOSE_BY = {"test": "val", "counterfactual": "val_counterfactual"}


def _chair(answers: dict[str, str], settings: argparse.Namespace, split: str, shuffled: bool) -> Chair:
    """What the captions claim; ``shuffled`` gives each scene the caption, and so the image, of the next."""
    split = _splits(settings)[split]
    texts = [answers[scene_id(split, index)] for index in range(settings.number)]
    texts = texts[1:] + texts[:1] if shuffled else texts
    scenes = [sample(split, index, seed=settings.scenes_seed) for index in range(settings.number)]
    return chair(zip(texts, scenes, strict=True))


def _summary(rows: list[dict[str, dict[str, float]]]) -> str:
    """The measured numbers as markdown, with a 95 % interval over the seeds where there are several."""

    def gap(key: str) -> list[float]:
        return [row["counterfactual"][key] - row["test"][key] for row in rows]

    shuffling = [row["test"]["recall"] - row["test shuffled"]["recall"] for row in rows]
    lines = [
        "`experiment=llava` from the base model, by `recipe/llava_tabletop.yaml`; greedy captions.",
        "",
        f"| | mean of {len(rows)} seeds | each |",
        "|---|---|---|",
        *(_line(f"{key}, {name}", [row[name][key] for row in rows]) for name in _CASES for key in _KEYS),
        _line("gap in CHAIR-i, counterfactual - test", gap("chair_i")),
        _line("gap in CHAIR-s, counterfactual - test", gap("chair_s")),
        _line("recall lost by shuffling, test", shuffling),
    ]
    return "\n".join(lines)


_KEYS = ("recall", "chair_i", "chair_s")


def _line(name: str, values: list[float]) -> str:
    found = mean95(values)
    half = "" if found["half"] is None else f" +- {found['half']:.3f}"
    return f"| {name} | {found['mean']:.3f}{half} | {', '.join(f'{value:.3f}' for value in values)} |"


if __name__ == "__main__":
    main()
