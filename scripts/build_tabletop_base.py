"""Builds the world's base model: python scripts/build_tabletop_base.py --work FOLDER --out FOLDER

What is done so far is kept in --work: started again after a kill, it goes on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hialign.tabletop import pretrain
from hialign.tabletop.model import untrained


def main() -> None:
    """Pretrains the parts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and curves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    settings.work.mkdir(parents=True, exist_ok=True)
    model = untrained(seed=settings.seed)
    common = {"seed": settings.seed, "folder": settings.work, "say": lambda line: print(line, flush=True)}
    pretrain.pretrain_language(model, pretrain.LANGUAGE, **common)
    pretrain.pretrain_towers(model, pretrain.TOWERS, **common)


if __name__ == "__main__":
    main()
