"""Builds the world's base model: python scripts/build_tabletop_base.py --work FOLDER

What is done so far is kept in --work: started again after a kill, it goes on from there. The model is written over the
packaged one, unless --out names another folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from hialign.tabletop import pretrain
from hialign.tabletop.card import write_base
from hialign.tabletop.model import FOLDER, untrained
from hialign.tabletop.scores import base_scores


def main() -> None:
    """Pretrains the parts, one after the other, scores and saves them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and curves")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    started, anew = time.monotonic(), not any(settings.work.glob("*.pt"))
    torch.set_num_threads(settings.threads)
    settings.work.mkdir(parents=True, exist_ok=True)
    model = untrained(seed=settings.seed)
    common: dict[str, Any] = {"seed": settings.seed, "folder": settings.work, "say": say}
    pretrain.pretrain_language(model, pretrain.LANGUAGE, **common)
    pretrain.pretrain_reading(model, pretrain.READING, **common)
    pretrain.pretrain_towers(model, pretrain.TOWERS, **common)
    pretrain.pretrain_answering(model, pretrain.ANSWERING, **common)
    scores = base_scores(model)
    for name, value in scores.items():
        say(f"{name}: {value:.3f}")
    command = f"python scripts/build_tabletop_base.py --work FOLDER --seed {settings.seed} --threads {settings.threads}"
    minutes = (time.monotonic() - started) / 60 if anew else None  # what came before a kill is not known
    write_base(model, settings.out, settings.work, scores, seed=settings.seed, command=command, minutes=minutes)


def say(line: str) -> None:
    """Prints the line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
