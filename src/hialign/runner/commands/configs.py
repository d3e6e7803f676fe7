"""``hialign configs``: what can be chosen, with each file's own first comment."""

from __future__ import annotations

import sys
from importlib.resources import files
from importlib.resources.abc import Traversable


def main() -> None:
    """Prints every group, or those named on the command line."""
    root = files("hialign.configs")
    groups = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("_"))
    wanted = [name for name in sys.argv[1:] if not name.startswith("-")] or groups
    for group in wanted:
        if group not in groups:
            raise ValueError(f"configs: no group {group!r}; the groups are {', '.join(groups)}")
        print(group)
        for entry in sorted(root.joinpath(group).iterdir(), key=lambda entry: entry.name):
            print(f"  {entry.name.removesuffix('.yaml'):<22} {_purpose(entry)}")


def _purpose(entry: Traversable) -> str:
    comments = [line for line in entry.read_text().splitlines() if line.startswith("# ")]
    return next((line.removeprefix("# ") for line in comments if not line.startswith("# @package")), "")
