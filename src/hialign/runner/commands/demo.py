"""``hialign demo``: two ways to train the embedded world's model, side by side, on a laptop, without downloads."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hialign.evaluation.report import side_by_side
from hialign.runner import settings

USAGE = "hialign demo [output=runs] [seed=0] [steps=160] [scenes=100]"
ABOUT = """\
From one small pretrained model, LLaVA's two stages and hierarchical training (an inner step after each outer one) train
the same parts on equal numbers of outer samples. Both then describe scenes that they have not seen: of `test`, where
things lie beside what they lay beside in training, and of `counterfactual`, where they do not.
steps= is the length of the second stage, the first has half of it; scenes= is how many of each split are shown."""
ARMS = {
    "llava": (
        *(f"stages.{stage}.train.vision=full" for stage in ("pretrain", "finetune")),
        *(f"+stages.{stage}.part_lr.vision=2e-4" for stage in ("pretrain", "finetune")),
    ),
    "hierarchical": ("solver=alternating", "solver.inner_steps=1"),
}
CAPTIONS, ZERO_SHOT = "tabletop_captions", "tabletop_zero_shot"
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
    "retrieval/clip/image_to_text/recall@1": "R@1 image to caption, CLIP towers",
    "seconds": "seconds of training",
}
NUMBERS = {"seed": (0, 0), "steps": (160, 2), "scenes": (100, 3)}  # default, and the least that makes sense
SHOWN = 3  # counterfactual scenes of which captions are printed and drawn


def main() -> int:
    """Runs the commands that a user would type, and prints them; returns the exit code of the first that fails."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {USAGE}\n\n{ABOUT}")
        return 0
    given = settings.read("demo", sys.argv[1:], optional=("output", "seed", "steps", "scenes"), usage=USAGE)
    numbers = {name: _number(given, name, *limits) for name, limits in NUMBERS.items()}
    output, name, began = given.get("output", "runs"), time.strftime("demo-%Y%m%d-%H%M%S"), time.monotonic()
    print(ABOUT.partition("\nsteps=")[0], flush=True)
    for command in _commands(output, name, **numbers):
        print(f"\n$ hialign {' '.join(command)}", flush=True)
        code = _run([sys.executable, "-m", "hialign", *command])
        if code:
            return code
    _show({arm: Path(output) / arm / name for arm in ARMS}, Path(output) / name)
    print(f"this took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _number(given: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}: got {text!r}, wanted a whole number from {least} up")
    return int(text)


def _commands(output: str, name: str, *, seed: int, steps: int, scenes: int) -> list[list[str]]:
    """For each arm what trains it and what asks it; all but the arm's own words is the same for both."""
    commands = []
    length = (f"stages.pretrain.steps={steps // 2}", f"stages.finetune.steps={steps}")
    asked = (f"benchmark=[{CAPTIONS},{ZERO_SHOT},retrieval]", f"benchmark.{CAPTIONS}.size={scenes}", "batch_size=100")
    for arm, own in ARMS.items():
        chosen = (f"experiment={arm}", "data=tabletop", "model=tabletop", *own, *length)
        commands.append(["train", *chosen, f"seed={seed}", f"output={output}", f"name={name}"])
        commands.append(["evaluate", f"run={output}/{arm}/{name}", *asked])
    return commands


def _run(command: list[str]) -> int:
    """The exit code of ``command``; Ctrl-C is the command's own affair, which then saves what it has."""
    running = subprocess.Popen(command)
    while True:
        try:
            return running.wait()
        except KeyboardInterrupt:  # a terminal sent it to the command too
            continue


def _show(runs: Mapping[str, Path], folder: Path) -> None:
    """Prints table and captions; writes both, as ``demo.md`` and ``figure.png``, and the numbers, into ``folder``."""
    from hialign.evaluation.figure import draw, examples

    scores = {arm: _scores(run) for arm, run in runs.items()}
    shown = examples({arm: run / "answers" / f"{CAPTIONS}.jsonl" for arm, run in runs.items()}, SHOWN)
    lines = [side_by_side(scores, ROWS), "", "Captions of scenes of `counterfactual`, *what is not there* marked:", ""]
    for one in shown:
        lines += [f"- {one.truth}"] + [f"  - {arm}: {text}" for arm, text in one.captions.items()]
    folder.mkdir(parents=True)
    (folder / "demo.md").write_text("\n".join(lines) + "\n")
    (folder / "scores.json").write_text(json.dumps({"arms": scores}, indent=1) + "\n")
    draw(scores, shown, folder / "figure.png")
    print("\n" + "\n".join(lines))
    print(f"\nwritten to {folder}: demo.md, scores.json, figure.png")


def _scores(run: Path) -> dict[str, float]:
    """The run's scores by ``ROWS``' keys; its seconds of training are those of its steps."""
    benchmarks = json.loads((run / "scores.json").read_text())
    flat = {
        f"{benchmark}/{name}": value for benchmark, numbers in benchmarks.items() for name, value in numbers.items()
    }
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key: flat[key] for key in ROWS if key in flat} | {"seconds": sum(step["seconds"] for step in steps)}
