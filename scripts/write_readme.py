"""Puts a demo's table and figure on the README's first screen: python scripts/write_readme.py runs/demo-DATE

The numbers are kept in docs/demo.json and the figure in docs/demo.png, both from the demo's folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from hialign.evaluation.report import side_by_side
from hialign.runner.commands.demo import ROWS

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- made by scripts/write_readme.py -->", "<!-- end -->"


def block(arms: dict[str, dict[str, float]]) -> str:
    """What stands between the marks."""
    figure = "![The demo: scores, and captions of three scenes](docs/demo.png)"
    return f"{BEGIN}\n{side_by_side(arms, ROWS)}\n\n{figure}\n{END}"


def main() -> None:
    """Copies the demo's numbers and figure, and writes the README anew."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "scores.json").is_file():
        sys.exit(f"{__doc__}\ngot {sys.argv[1:]}, wanted one folder with scores.json and figure.png")
    demo, docs, readme = Path(sys.argv[1]), ROOT / "docs", ROOT / "README.md"
    docs.mkdir(exist_ok=True)
    shutil.copy(demo / "scores.json", docs / "demo.json")
    shutil.copy(demo / "figure.png", docs / "demo.png")
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(before + block(json.loads((docs / "demo.json").read_text())["arms"]) + after)


if __name__ == "__main__":
    main()
