"""``hialign demo``: train on two levels and evaluate, on a laptop, without downloads."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from hialign.data import draw_captioned
from hialign.runner import settings

USAGE = "hialign demo [photos=FOLDER] [output=runs]"
NUM_DRAWN = 800


def main() -> int:
    """Runs the commands that a user would type, and prints them; returns the exit code of the first that fails."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {USAGE}\n\nphotos= is a folder in Flickr8k's layout; without it, pictures are drawn.")
        return 0
    given = settings.read("demo", sys.argv[1:], optional=("photos", "output"), usage=USAGE)
    output = Path(given.get("output", "runs"))
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    root = _photographs(given.get("photos"), output)
    run = output / "hierarchical" / name
    commands = [
        ["train", "experiment=hierarchical", "data=flickr8k", f"data.root={root}", f"output={output}", f"name={name}"],
        ["evaluate", f"run={run}"],
    ]
    for command in commands:
        print(f"\n$ hialign {' '.join(command)}", flush=True)
        code = _run([sys.executable, "-m", "hialign", *command])
        if code:
            return code
    print(
        "\nThis was a model of a million parameters that began with random weights: it shows that the parts work\n"
        "together, from files over two levels of training to scores. It is no result."
    )
    return 0


def _run(command: list[str]) -> int:
    """The exit code of ``command``; Ctrl-C is the command's own affair, which then saves what it has."""
    running = subprocess.Popen(command)
    while True:
        try:
            return running.wait()
        except KeyboardInterrupt:  # a terminal sent it to the command too
            continue


def _photographs(folder: str | None, output: Path) -> Path:
    if folder:
        return Path(folder)
    drawn = output / "drawn"
    print(f"no photographs given (photos=FOLDER): drawing {NUM_DRAWN} pictures into {drawn}", flush=True)
    return draw_captioned(drawn, NUM_DRAWN, seed=0)
