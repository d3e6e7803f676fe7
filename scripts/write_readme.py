"""Puts a demo's table and figure on the README's first screen: python scripts/write_readme.py runs/demo-DATE

The numbers are kept in docs/demo.json and the figure in docs/demo.png, both from the demo's folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from hialign.runner.commands.demo import summary

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- made by scripts/write_readme.py -->", "<!-- end -->"
FILES = {"scores.json": "demo.json", "figure.png": "demo.png"}  # of the demo's folder: what docs/ calls it


def block(demo: dict[str, Any]) -> str:
    """What stands between the marks, of a demo's ``scores.json``."""
    if lacking := {"setup", "arms"} - set(demo):
        raise ValueError(
            f"the demo's scores lack {', '.join(sorted(lacking))}; run `hialign demo` and this script anew"
        )
    figure = "![The demo: scores, and captions of three scenes](docs/demo.png)"
    return f"{BEGIN}\n{summary(demo['setup'], demo['arms'])}\n\n{figure}\n{END}"


def replaced(readme: str, new: str) -> str:
    """The README with ``new`` in place of what stands from mark to mark; a ValueError where it has not one of each."""
    for mark in (BEGIN, END):
        if readme.count(mark) != 1:
            raise ValueError(f"README.md: {mark} stands there {readme.count(mark)} times, wanted once; put it back")
    start, end = readme.index(BEGIN), readme.index(END)
    if end < start:
        raise ValueError(f"README.md: {END} stands before {BEGIN}, wanted behind it")
    return readme[:start] + new + readme[end + len(END) :]


def main() -> None:
    """Copies the demo's numbers and figure, and writes the README anew; nothing is written if something is amiss."""
    if len(sys.argv) != 2:
        sys.exit(f"{__doc__}\ngot {sys.argv[1:]}, wanted one folder")
    demo, docs, readme = Path(sys.argv[1]), ROOT / "docs", ROOT / "README.md"
    if lacking := [name for name in FILES if not (demo / name).is_file()]:
        sys.exit(f"{demo}: no {' and no '.join(lacking)} there; wanted the folder of a finished `hialign demo`")
    try:
        new = replaced(readme.read_text(), block(json.loads((demo / "scores.json").read_text())))
    except ValueError as error:
        sys.exit(f"write_readme: {error}")
    docs.mkdir(exist_ok=True)
    for name, kept in FILES.items():
        shutil.copy(demo / name, docs / kept)
    readme.write_text(new)


if __name__ == "__main__":
    main()
