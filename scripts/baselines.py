"""The published baselines on Tabletop, beside where they start and two controls: python scripts/baselines.py

For each seed a model is trained as LLaVA is, and each method of preference goes on from it, all by the same numbers of
steps and rows. HACL is a way to pretrain: a run of its own from the base model. The controls go on from the same start:
on more of what it was trained on, once at the methods' learning rate and once at the start's own; and on the chosen
answers of the records whose pairs the methods compare. What is reported is counterfactual, which nothing was chosen
by. Writes baselines.json, baselines.png and baselines.md.

Runs that are done are not run again: the same command goes on where it was stopped. After each seed the files are
written, with what there is so far.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pareto import COLOURS, ROOT, base_digest, commits, done_before, made_by, this_machine, typed, with_half

from hialign.benchmarks.intervals import T95, mean95

CHAIR, POPE, VQA = "tabletop_captions/counterfactual", "tabletop_pope/counterfactual", "tabletop_vqa/counterfactual"
MEASURES = {  # how the tables call it, and where scores.json has it
    "chair_i": ("CHAIR-i", f"{CHAIR}/chair_i"),
    "chair_s": ("CHAIR-s", f"{CHAIR}/chair_s"),
    "recall": ("recall", f"{CHAIR}/recall"),
    "mentions": ("mentions", f"{CHAIR}/mentions"),
    "adversarial": ("POPE adversarial", f"{POPE}/adversarial/accuracy"),
    "popular": ("popular", f"{POPE}/popular/accuracy"),
    "random": ("random", f"{POPE}/random/accuracy"),
    "yes": ("yes ratio", f"{POPE}/adversarial/yes_ratio"),
    "vqa": ("VQA", f"{VQA}/all"),
    "loss": ("caption loss", "captions/loss"),
}
WATCHED = ("loss", "chosen_reward", "rejected_reward", "accuracy", "chosen_logp", "rejected_logp", "phrase_margin")
PANELS = (("chair_i", "recall"), ("adversarial", "vqa"))
TENTH = 10  # a run's first and last share, of which the training's numbers are means


@dataclass(frozen=True)
class Arm:
    """What is compared: ``words`` of `hialign train` that say how it differs; ``goes_on`` from the seed's start.

    ``told`` is what the text says of it where the name does not.
    """

    name: str
    experiment: str
    words: tuple[str, ...] = ()
    goes_on: bool = True
    told: str = ""

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-").replace(",", "")


INSTRUCTED = ("outer=instruct", "stages.finetune.template=chat")  # it is to answer questions, as LLaVA does
START = Arm("start", "llava", INSTRUCTED, goes_on=False, told="LLaVA's two stages, the second with questions too")
# experiment=dpo with another outer level: the same parts, steps, rows and rate as the methods of preference have
MORE = Arm("trained on", "dpo", ("outer=instruct",), told="more of the start's own data, at dpo's learning rate")
ARMS = (
    START,
    MORE,
    Arm("chosen answers", "dpo", ("outer=chosen",), told="supervised fine-tuning on the chosen answers of dpo's pairs"),
    *(Arm(name, name) for name in ("dpo", "chip", "halva")),
    Arm("hacl", "hacl", INSTRUCTED, goes_on=False, told="the start's two stages, with HACL's contrast in the first"),
    Arm(
        "trained on, full rate",
        "dpo",
        ("outer=instruct", "stages.prefer.lr=1.5e-3"),
        told="more of the start's own data, at its own learning rate",
    ),
)
FURTHER = tuple(Arm(name, name) for name in ("mdpo", "tdpo", "ddpo"))


def main() -> None:
    """Trains and scores what is missing, seed after seed, FURTHER arms last; writes the comparison after each seed."""
    settings = _settings()
    typed_here = " ".join(["python scripts/baselines.py", *sys.argv[1:]])  # the runs have arguments of their own
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    groups = (ARMS,) if settings.short else (ARMS, FURTHER)
    total = len(settings.seeds) * sum(map(len, groups))
    for arms, seed in product(groups, settings.seeds):
        for arm in arms:
            rows.append(score(arm, seed, settings))
            minutes = (time.monotonic() - began) / 60
            print(f"{len(rows)}/{total} {arm.name}, seed {seed}: {minutes:.1f} min", flush=True)
        told = _write(rows, settings, typed_here)
    print(f"\n{told}\nwritten to {settings.docs}: baselines.json, baselines.png, baselines.md")


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of baselines.{json,png,md}")
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--short", action="store_true", help=f"without {', '.join(arm.name for arm in FURTHER)}")
    parser.add_argument("--quick", action="store_true", help="one seed, two steps, four scenes: does it work?")
    settings = parser.parse_args()
    if settings.quick:
        settings.seeds = settings.seeds[:1]
    if not 1 <= len(set(settings.seeds)) == len(settings.seeds) <= max(T95):
        parser.error(f"--seeds: got {settings.seeds}, wanted 1 to {max(T95)} different numbers, with commas between")
    return settings


def score(arm: Arm, seed: int, settings: argparse.Namespace) -> dict[str, Any]:
    """One run's row, trained and scored unless that was done."""
    folder = settings.out / arm.experiment / f"{arm.slug}_seed-{seed}"
    start = settings.out / START.experiment / f"{START.slug}_seed-{seed}"
    words = train_words(arm, seed, start, quick=settings.quick)
    file, log = (folder.parent / f"{folder.name}.{end}" for end in ("json", "log"))
    key = {"train": list(words), "evaluate": list(_evaluate(settings.quick)), "base": base_digest()}
    if (found := done_before(folder, file, key)) is not None:
        return found
    typed(("train", *words, f"output={settings.out}", f"name={folder.name}", "resume=auto"), log)
    typed(("evaluate", f"run={folder}", *_evaluate(settings.quick)), log)
    row = {
        "arm": asdict(arm),
        "seed": seed,
        "command": f"hialign train {' '.join(words)}".replace(str(settings.out), "RUNS"),
        **read(folder),
        "made_by": made_by(folder),
    }
    file.write_text(json.dumps({"key": key, "row": row}, indent=1) + "\n")
    return row


def train_words(arm: Arm, seed: int, start: Path, *, quick: bool = False) -> tuple[str, ...]:
    """The words of `hialign train` but for where the run is written; ``start`` is the seed's starting run."""
    stages = ("prefer",) if arm.goes_on else ("pretrain", "finetune")
    few = tuple(f"stages.{stage}.{key}" for stage in stages for key in ("steps=2", "batch_size=4")) if quick else ()
    whence = (f"model.from_run={start}",) if arm.goes_on else ()
    return (
        f"experiment={arm.experiment}",
        "data=tabletop",
        "model=tabletop",
        *arm.words,
        *few,
        *whence,
        f"seed={seed}",
    )


def _evaluate(quick: bool) -> tuple[str, ...]:
    names = ("tabletop_captions", "tabletop_pope", "tabletop_vqa")
    asked = tuple(f"benchmark.{name}.splits=[counterfactual]" for name in names[1:])
    few = tuple(f"benchmark.{name}.size=4" for name in names) if quick else ()
    return (f"benchmark=[{','.join(names)},captions]", *asked, "batch_size=100", "device=cpu", *few)


def read(run: Path) -> dict[str, Any]:
    """What a run's folder says: all its scores, and its last stage's training at the beginning and at the end."""
    scores = json.loads((run / "scores.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == lines[-1]["stage"]]
    part = max(1, len(steps) // TENTH)
    named = {name: f"outer_{name}" for name in WATCHED if f"outer_{name}" in steps[-1]}
    return {
        "scores": {f"{benchmark}/{name}": n for benchmark, found in scores.items() for name, n in found.items()},
        "training": {
            name: [statistics.fmean(step[key] for step in some) for some in (steps[:part], steps[-part:])]
            for name, key in named.items()
        },
        "steps": len(steps),
        "seconds": sum(line["seconds"] for line in lines),
    }


def _write(rows: Sequence[Mapping[str, Any]], settings: argparse.Namespace, command: str) -> str:
    """Writes the three files; returns the text."""
    result = compare(rows) | {
        "command": command.replace(str(settings.out), "RUNS").replace(str(settings.docs), "DOCS"),
        "made_by": commits(rows),
        "machine": this_machine(),
    }
    settings.docs.mkdir(parents=True, exist_ok=True)
    (settings.docs / "baselines.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, settings.docs / "baselines.png")
    told = text(result)
    (settings.docs / "baselines.md").write_text(told)
    return told


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All runs; of each arm its means with intervals, and its differences, seed by seed, to the start and to MORE."""
    names = list(dict.fromkeys(_name(row) for row in rows))
    values = {name: {key: _values(rows, name, key) for key in MEASURES} for name in names}
    arms = [
        {
            "name": name,
            "seeds": len(values[name]["chair_i"]),
            "scores": {key: mean95(list(seeds.values())) for key, seeds in values[name].items()},
            "differences": {
                other: {key: mean95(_less(values[name][key], values[other][key])) for key in MEASURES}
                for other in (START.name, MORE.name)
                if other != name
            },
            "training": _training([row for row in rows if _name(row) == name]),
        }
        for name in names
    ]
    return {"seeds": sorted({row["seed"] for row in rows}), "arms": arms, "runs": list(rows)}


def _values(rows: Sequence[Mapping[str, Any]], name: str, key: str) -> dict[int, float]:
    return {row["seed"]: row["scores"][MEASURES[key][1]] for row in rows if _name(row) == name}


def _less(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """The differences of what has the same seed, and so the same start."""
    return [one[seed] - other[seed] for seed in sorted(one)]


def _training(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The means over seeds of what was watched, at the beginning and at the end."""
    return {
        name: [statistics.fmean(row["training"][name][end] for row in rows) for end in (0, 1)]
        for name in rows[0]["training"]
    }


def _name(row: Mapping[str, Any]) -> str:
    return str(row["arm"]["name"])


def text(result: Mapping[str, Any]) -> str:
    """The comparison as markdown, every number of it from the runs."""
    seeds, names = len(result["seeds"]), [arm["name"] for arm in result["arms"]]
    spread = "one seed, so without an interval" if seeds == 1 else f"means of {seeds} seeds, +- 95 % of them"
    lines = [
        "# The published baselines on Tabletop",
        "",
        f"Made by `{result['command']}`; all numbers are in `baselines.json`, each run's command among them.",
        "",
        "![Made-up mentions against recall, and POPE against VQA](baselines.png)",
        "",
        f"{spread[0].upper()}{spread[1:]}. All but `start` and `hacl` go on from the start of their seed, by as many "
        "steps and rows as each other:",
        "",
        *(f"- `{arm.name}`: {arm.told}" for arm in (*ARMS, *FURTHER) if arm.told and arm.name in names),
        "",
        "Captions and questions are those of 300 scenes of counterfactual, where partners never meet. CHAIR-i is the "
        "share of made-up mentions, CHAIR-s that of captions with any, recall what captions find of what is there, "
        "mentions how many things a caption names. The yes ratio is that of the adversarial questions, half of whose "
        "answers are yes; the caption loss, in nats a token, is that of the captions of 300 scenes of val behind the "
        "image alone, without the question that training has. All pairs are of the biased train split. Of their wrong "
        "captions two in five name one thing more than the right one and none names fewer, so that pairs also teach to "
        "say less.",
        "",
        *_table(result["arms"], lambda arm: arm["scores"], MEASURES),
    ]
    for other, title in ((START.name, "the start"), (MORE.name, "the start trained on")):
        shown = [arm for arm in result["arms"] if other in arm["differences"]]
        lines += ["", f"## Less {title}", "", "Differences seed by seed; * where the interval leaves out zero.", ""]
        lines += _table(shown, lambda arm, other=other: arm["differences"][other], MEASURES, starred=True)
    return "\n".join([*lines, "", *_trained(result["arms"]), "", *_found(result)]) + "\n"


def _table(
    arms: Sequence[Mapping[str, Any]], cells: Any, measures: Mapping[str, tuple[str, str]], *, starred: bool = False
) -> list[str]:
    lines = ["| | " + " | ".join(head for head, _ in measures.values()) + " |", "|---" + "|---:" * len(measures) + "|"]
    most = max(arm["seeds"] for arm in arms)
    for arm in arms:
        values = [cells(arm)[key] for key in measures]
        shown = [with_half(value, 3) + (" *" if starred and clear(value) else "") for value in values]
        lines.append(f"| {called(arm, most)} | " + " | ".join(shown) + " |")
    return lines


def called(arm: Mapping[str, Any], most: int) -> str:
    """The arm's name, with the number of its seeds where others have more."""
    return str(arm["name"]) + (f" ({arm['seeds']} of {most} seeds)" if arm["seeds"] < most else "")


def clear(value: Mapping[str, Any]) -> bool:
    """Whether the 95 % interval leaves out zero; never without an interval."""
    return value["half"] is not None and abs(value["mean"]) > value["half"]


def _trained(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of what training itself said."""
    heads = [name for name in WATCHED if any(name in arm["training"] for arm in arms)]
    lines = [
        "## In training",
        "",
        "Means of the last stage's first tenth of steps -> of its last: losses as the method defines them, rewards and "
        "log-probabilities in nats an answer.",
        "",
        "| | " + " | ".join(name.replace("_", " ") for name in heads) + " |",
        "|---" + "|---:" * len(heads) + "|",
    ]
    for arm in arms:
        ends = [arm["training"].get(name) for name in heads]
        lines.append(f"| {arm['name']} | " + " | ".join(f"{e[0]:.3f} -> {e[1]:.3f}" if e else "" for e in ends) + " |")
    return lines


def _found(result: Mapping[str, Any]) -> list[str]:
    """Which arms are better and worse than the start, and than the start trained on, in words made of the numbers."""
    lines = ["## Who makes up less, and at what cost", ""]
    for other in (START.name, MORE.name):
        for key in ("chair_i", "chair_s", "recall", "adversarial"):
            sign = -1 if key.startswith("chair") else 1
            gains = {
                arm["name"]: arm["differences"][other][key] for arm in result["arms"] if other in arm["differences"]
            }
            better = [name for name, gain in gains.items() if sign * gain["mean"] > 0 and clear(gain)]
            worse = [name for name, gain in gains.items() if sign * gain["mean"] < 0 and clear(gain)]
            lines.append(
                f"- {MEASURES[key][0]} against `{other}`: better by more than the interval: "
                f"{', '.join(better) or 'none'}; worse: {', '.join(worse) or 'none'}; the others within it."
            )
    if len(result["made_by"]) > 1:
        listed = "; ".join(f"{name}: {runs}" for name, runs in result["made_by"].items())
        lines += ["", f"**Not all runs were made by the same code.** Runs by commit: {listed}."]
    return lines


def draw(result: Mapping[str, Any], file: Path) -> None:
    """A panel a pair of measures, a point an arm; the better is at the top left, then at the top right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), dpi=110, layout="constrained")
    for axes, (x, y) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for number, arm in enumerate(result["arms"]):
            point = arm["scores"]
            axes.errorbar(
                point[x]["mean"],
                point[y]["mean"],
                xerr=point[x]["half"],
                yerr=point[y]["half"],
                fmt="os^D"[number // len(COLOURS)],
                color=COLOURS[number % len(COLOURS)],
                elinewidth=0.6,
                label=arm["name"],
            )
        axes.set_xlabel(f"{MEASURES[x][0]}, counterfactual")
        axes.set_ylabel(f"{MEASURES[y][0]}, counterfactual")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(file)


if __name__ == "__main__":
    main()
