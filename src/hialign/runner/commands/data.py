"""``hialign data``: data that is made of other data."""

from __future__ import annotations

import importlib
import sys

TABLE = {  # name -> (module with a main, one line of help)
    "hallucinate": ("hialign.runner.commands.hallucinate", "hallucinated captions of a set, for HACL and HALVA"),
    "pope": ("hialign.runner.commands.pope", "POPE's questions, from COCO's annotations or a detector's objects"),
}


def main() -> None:
    """Runs the command that the command line names; its other arguments are that command's."""
    name = next((argument for argument in sys.argv[1:] if argument in TABLE), None)
    if name is None:
        lines = "\n".join(f"  hialign data {name:<11}   {line}" for name, (_, line) in TABLE.items())
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(lines)
            return
        given = repr(sys.argv[1]) if len(sys.argv) > 1 else "nothing"
        raise ValueError(f"data: got {given}, wanted one of:\n{lines}")
    sys.argv.remove(name)
    sys.argv[0] += f" {name}"
    importlib.import_module(TABLE[name][0]).main()
