"""``hialign demo``: two ways to train the embedded world's model, side by side, on a laptop, without downloads."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hialign.evaluation.report import HIGH, LOW, Numbers, side_by_side
from hialign.runner import names, settings

USAGE = "hialign demo [output=runs] [seed=0] [steps=160] [scenes=100]"
ABOUT = """\
From one small pretrained model, LLaVA's two stages and hierarchical training (an inner step after each outer one) train
the same parts on equal numbers of outer samples. Both then describe scenes that they have not seen: of `test`, where
things lie beside what they lay beside in training, and of `counterfactual`, where they do not.
steps= is the length of the second stage, the first has half of it; scenes= is how many of each split are shown.
Stopped with Ctrl-C, the same command goes on where it was."""
ARMS = {
    "llava": (
        *(f"stages.{stage}.train.vision=full" for stage in ("pretrain", "finetune")),
        *(f"+stages.{stage}.part_lr.vision=2e-4" for stage in ("pretrain", "finetune")),
    ),
    "hierarchical": ("solver=alternating", "solver.inner_steps=1"),
}
CAPTIONS, ZERO_SHOT = "tabletop_captions", "tabletop_zero_shot"
R1 = "retrieval/clip/image_to_text/recall@1"
ROWS = {  # where scores.json has it: what the table calls it
    f"{CAPTIONS}/test/recall": "things found, test",
    f"{CAPTIONS}/counterfactual/recall": "things found, counterfactual",
    f"{CAPTIONS}/test/chair_i": "CHAIR-i, test",
    f"{CAPTIONS}/counterfactual/chair_i": "CHAIR-i, counterfactual",
    f"{CAPTIONS}/test/chair_s": "CHAIR-s, test",
    f"{CAPTIONS}/counterfactual/chair_s": "CHAIR-s, counterfactual",
    f"{CAPTIONS}/test/colour_recall": "colours named, test",
    f"{CAPTIONS}/test/place_recall": "places named, test",
    f"{ZERO_SHOT}/kind": "zero-shot kind, CLIP towers",
    R1: "R@1 image to caption, CLIP towers",
    "seconds": "seconds of training",
}
NUMBERS = {"seed": (0, 0), "steps": (160, 2), "scenes": (100, 3)}  # default, and the least that makes sense
SHOWN = 3  # counterfactual scenes of which captions are printed and drawn
BEGUN = "begun.json"  # what a demo was asked for, and of which code: there from its first moment


def main() -> int:
    """Runs the commands that a user would type, and prints them; returns the exit code of the first that fails."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {USAGE}\n\n{ABOUT}")
        return 0
    given = settings.read("demo", sys.argv[1:], optional=("output", "seed", "steps", "scenes"), usage=USAGE)
    numbers = {name: _number(given, name, *limits) for name, limits in NUMBERS.items()}
    output, began = given.get("output", "runs"), time.monotonic()
    print(ABOUT.partition("\nsteps=")[0], flush=True)
    folder, doing = _begin(Path(output), numbers), "at its beginning"
    try:
        for command in _commands(output, folder.name, **numbers):
            doing = f"in `hialign {' '.join(command)}`"
            print(f"\n$ hialign {' '.join(command)}", flush=True)
            if code := _run(command):
                return _stopped(doing, code)
        doing = "at the table"
        _show({arm: Path(output) / arm / folder.name for arm in ARMS}, folder, numbers)
    except KeyboardInterrupt:
        return _stopped(doing, 130)
    print(f"this took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _number(given: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}: got {text!r}, wanted a whole number from {least} up")
    return int(text)


def _begin(output: Path, numbers: Mapping[str, int]) -> Path:
    """The demo's folder: one that was begun with these numbers by this code and is not done, or else a new one.

    Its name is the arms' too, so that they go on from their checkpoints, or are done.
    """
    made_by = names.provenance()
    begun = {**numbers, "commit": made_by["commit"], "versions": made_by["versions"]}
    for file in sorted(output.glob(f"demo-*/{BEGUN}"), reverse=True):
        if not (file.parent / "scores.json").is_file() and json.loads(file.read_text()) == begun:
            print(f"\ngoing on with {file.parent}, which was begun and not finished", flush=True)
            return file.parent
    folder = output / time.strftime("demo-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    (folder / f"{BEGUN}.partial").write_text(json.dumps(begun, indent=1) + "\n")
    (folder / f"{BEGUN}.partial").replace(folder / BEGUN)
    return folder


def _commands(output: str, name: str, *, seed: int, steps: int, scenes: int) -> list[list[str]]:
    """For each arm what trains it and what asks it; all but the arm's own words is the same for both."""
    commands = []
    length = tuple(f"stages.{stage}.steps={number}" for stage, number in _steps(steps).items())
    asked = (f"benchmark=[{CAPTIONS},{ZERO_SHOT},retrieval]", f"benchmark.{CAPTIONS}.size={scenes}", "batch_size=100")
    for arm, own in ARMS.items():
        chosen = (f"experiment={arm}", "data=tabletop", "model=tabletop", *own, *length)
        commands.append(["train", *chosen, f"seed={seed}", f"output={output}", f"name={name}", "resume=auto"])
        commands.append(["evaluate", f"run={output}/{arm}/{name}", *asked])
    return commands


def _steps(steps: int) -> dict[str, int]:
    return {"pretrain": steps // 2, "finetune": steps}


def _run(command: list[str]) -> int:
    """The exit code of ``hialign command``; Ctrl-C is the command's own affair, which then saves what it has."""
    running = subprocess.Popen([sys.executable, "-u", "-m", "hialign", *command])  # -u: a pipe too gets lines at once
    while True:
        try:
            return running.wait()
        except KeyboardInterrupt:  # a terminal sent it to the command too
            continue


def _stopped(doing: str, code: int) -> int:
    """The exit code, after saying how to go on."""
    again = " ".join(["hialign demo", *sys.argv[1:]])
    print(
        f"\nhialign demo: stopped {doing} (exit code {code}); `{again}` goes on and does nothing twice", file=sys.stderr
    )
    return code


def _show(runs: Mapping[str, Path], folder: Path, numbers: Mapping[str, int]) -> None:
    """Prints table and captions; writes both, as ``demo.md`` and ``figure.png``, and the numbers, into ``folder``."""
    from hialign.evaluation.figure import draw, examples

    arms = {arm: _rows(run, _flat(run)) for arm, run in runs.items()}
    setup = {**numbers, "steps": _steps(numbers["steps"]), **_sizes(next(iter(runs.values())))}
    shown = examples({arm: run / "answers" / f"{CAPTIONS}.jsonl" for arm, run in runs.items()}, SHOWN)
    lines = [summary(setup, arms), "", "Captions of scenes of `counterfactual`, *what is not there* marked:", ""]
    for one in shown:
        lines += [f"- {one.truth}"] + [f"  - {arm}: {text}" for arm, text in one.captions.items()]
    (folder / "demo.md").write_text("\n".join(lines) + "\n")
    draw(arms, shown, folder / "figure.png")
    (folder / "scores.json").write_text(json.dumps({"setup": setup, "arms": arms}, indent=1) + "\n")  # last: it is done
    print("\n" + "\n".join(lines))
    print(f"\nwritten to {folder}: demo.md, scores.json, figure.png")


def summary(setup: Mapping[str, Any], arms: Mapping[str, Numbers]) -> str:
    """The table in markdown, and what its numbers rest on."""
    steps = " + ".join(str(number) for number in setup["steps"].values())
    told = (
        f"One seed ({setup['seed']}), {steps} steps of training; {setup['scenes']} scenes of each split, "
        f"{setup['zero_shot_scenes']} for zero-shot, {setup['retrieval_images']} images for R@1. In brackets 95 % "
        "intervals over scenes (bootstrap) or images (Wilson): they are about other scenes shown to the same two "
        "models, and say nothing of another seed of training. Seconds depend on what else the machine did."
    )
    return f"{side_by_side(arms, ROWS)}\n\n{textwrap.fill(told, 120, break_on_hyphens=False)}"


def _sizes(run: Path) -> dict[str, int]:
    """How much was shown besides the scenes that were described; the same to all arms."""
    benchmarks = json.loads((run / "scores.json").read_text())
    return {
        "zero_shot_scenes": round(benchmarks[ZERO_SHOT]["scenes"]),
        "retrieval_images": round(benchmarks["retrieval"]["images"]),
    }


def _rows(run: Path, found: Numbers) -> dict[str, float | None]:
    """The table's numbers with the ends of their intervals; a ValueError names those that are not there."""
    lacking = [key for key in ROWS if key not in found]
    if lacking:
        raise ValueError(f"demo: {run / 'scores.json'} has no {', '.join(lacking)}; the table needs all of its rows")
    return {key: found[key] for row in ROWS for key in (row, f"{row}{LOW}", f"{row}{HIGH}") if key in found}


def _flat(run: Path) -> dict[str, float | None]:
    """All scores of the run by ``benchmark/name``; its seconds of training are those of its steps."""
    from hialign.benchmarks.intervals import wilson

    benchmarks = json.loads((run / "scores.json").read_text())
    flat = {
        f"{benchmark}/{name}": value
        for benchmark, found in benchmarks.items()
        for name, value in found.items()
        if name != "model"
    }
    if flat.get(R1) is not None:
        flat[f"{R1}{LOW}"], flat[f"{R1}{HIGH}"] = wilson(flat[R1], int(flat["retrieval/images"]))
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {**flat, "seconds": sum(step["seconds"] for step in steps)}
