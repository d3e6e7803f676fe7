"""``hialign export``: a run's model as a folder that plain transformers loads."""

from __future__ import annotations

import sys
from pathlib import Path

from hialign.runner.assemble import load_run, save_whole

USAGE = "hialign export run=RUN_FOLDER out=FOLDER"


def main() -> None:
    """Reads ``run=`` and ``out=`` from the command line and writes the folder."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {USAGE}\n\nWrites the run's model (of a run under way: its last checkpoint) as a Llava folder.")
        return
    settings = _settings(sys.argv[1:])
    out = Path(settings["out"])
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out}: the folder is not empty; name a new one")
    model = load_run(Path(settings["run"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_whole(model, out)
    print(f'wrote {out}; load it with AutoModelForImageTextToText.from_pretrained("{out}")')


def _settings(arguments: list[str]) -> dict[str, str]:
    pairs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if set(pairs) != {"run", "out"} or len(pairs) < len(arguments):
        raise ValueError(f"export: got {' '.join(arguments) or 'nothing'}, wanted run=... and out=..., as in: {USAGE}")
    return pairs
