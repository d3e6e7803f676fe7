"""What test_ranks.py runs under torchrun, all cases in one launch; the same functions run in one process as well.

torchrun --nproc-per-node 2 ranks.py OUT DRAWN
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path

import torch

from hialign import cli, distributed
from hialign.data import Loader, flickr8k
from hialign.models import part_of, set_trainable, tiny
from hialign.objectives import Contrastive, NextToken, Result
from hialign.runner.assemble import collator
from hialign.solvers import Alternating, Joint, Single
from hialign.training import LevelRun, Logs, NonFinite, Optimisation, Preempted, Stage, Training, latest

STEPS = 3
SOLVERS = {"joint": lambda: Joint(0.5), "alternating": lambda: Alternating(inner_steps=2, half_life=2.0)}
PARTS = ("vision", "projector", "llm", "text", "heads")
CLI = [
    *("experiment=hierarchical", "data=flickr8k", "trainer.device=cpu"),
    *(f"stages.{stage}.steps=2" for stage in ("pretrain", "finetune")),
    *(f"stages.{stage}.{key}=8" for stage in ("pretrain", "finetune") for key in ("batch_size", "inner_batch_size")),
    *("model.width=32", "model.layers=2", "model.image_size=32", "model.patch_size=16"),
]


class Shaken(NextToken):
    """Next tokens, with a factor drawn from the global generator as dropout draws its masks."""

    def __call__(self, parts, batch):
        result = super().__call__(parts, batch)
        return Result(result.loss_sum * (0.5 + torch.rand(())), result.weight)


class Spoilt(NextToken):
    """In step ``at`` of rank 1 alone, an infinite loss, or a finite one with a gradient that is not."""

    def __init__(self, what, at):
        super().__init__()
        self.what, self.at, self.calls = what, at, 0

    def __call__(self, parts, batch):
        self.calls += 1
        result = super().__call__(parts, batch)
        if distributed.rank() != 1 or self.calls != self.at + 1:  # the probe is call 1
            return result
        if self.what == "loss":
            return Result(result.loss_sum * math.inf, result.weight)
        return Result(result.loss_sum + (0 * result.loss_sum).sqrt(), result.weight)


class Signalled:
    """A solver that sends a signal to rank 1 alone in step ``at``."""

    def __init__(self, solver, at):
        self.solver, self.at = solver, at
        self.two_level, self.requires = True, solver.requires
        self.state_dict, self.load_state_dict = solver.state_dict, solver.load_state_dict

    def step(self, oracle):
        if oracle.step + 1 == self.at and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        self.solver.step(oracle)


def train(folder, drawn, solver, *, outer=None, pairs=("clip", "projector"), double=False, resume=False, save_every=2):
    """Trains one stage on this process's share of each batch of 8; writes the weights of every rank beside it."""
    if distributed.is_main():
        folder.mkdir(exist_ok=True)
    distributed.barrier()
    model = tiny(seed=0, width=32, layers=2, image_size=32, patch_size=16)
    if double:
        model.root.double()
    data = flickr8k(str(drawn))
    rows = 8 // distributed.world_size()

    def level(objective, micro_batch_size):
        stream = Loader(
            data,
            collator(objective.batch_type, model),
            batch_size=8,
            micro_batch_size=micro_batch_size,
            seed=3,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            on_skip=print,
        )
        return LevelRun(objective, {"only": stream})

    def rates():
        set_trainable(model.root, dict.fromkeys(PARTS, "full"))
        return {name: 1e-3 for name, p in model.root.named_parameters() if p.requires_grad}

    levels = {"outer": level(outer or NextToken(), 4)}
    if pairs:
        levels["inner"] = level(Contrastive(pairs), rows)
    stage = Stage("only", levels, solver, Optimisation(STEPS, weight_decay=0.1), rates, part_of)
    found = latest(folder, ["only"]) if resume else None
    torch.manual_seed((99 if resume else 1) + distributed.rank())
    with Logs(folder, [], {}, main=distributed.is_main(), after=found.step if found else 0) as logs:
        cpu = torch.device("cpu")
        Training(model.root, [stage], folder, logs, cpu, save_every=save_every).run(found)
    torch.save(model.root.state_dict(), folder / f"weights-{distributed.rank()}.pt")


def told(folder, error):
    """Notes what this rank was told."""
    note = {"kind": type(error).__name__, "says": str(error)}
    (folder / f"told-{distributed.rank()}.json").write_text(json.dumps(note))


def compare(out, drawn):
    for name, solver in SOLVERS.items():
        train(out / name, drawn, solver(), double=True)


def stop_and_resume(out, drawn):
    train(out / "whole", drawn, SOLVERS["alternating"](), outer=Shaken())
    try:
        train(out / "stopped", drawn, Signalled(SOLVERS["alternating"](), 2), outer=Shaken())
    except Preempted as error:
        told(out / "stopped", error)
    train(out / "stopped", drawn, SOLVERS["alternating"](), outer=Shaken(), resume=True)


def not_finite(out, drawn):
    for what in ("loss", "gradient"):
        try:
            train(out / what, drawn, Single(), outer=Spoilt(what, 2), pairs=())
        except NonFinite as error:
            told(out / what, error)


def command(out, drawn, name="cli"):
    seed = distributed.rank()  # every rank builds another model; all train the first one's
    return cli.main(["train", *CLI, f"output={out}", f"name={name}", f"data.root={drawn}", f"model.seed={seed}"])


def main():
    signal.alarm(100)  # ends this rank if the others keep it waiting: nobody else would
    out, drawn = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    distributed.start(cpu=True)
    for case in (compare, stop_and_resume, not_finite):
        case(out, drawn)
    # a command leaves the process group at its end, and gloo does not reliably join another in the same launch
    left = []
    distributed.stop = lambda: left.append(distributed.barrier())
    assert command(out, drawn) == 0
    (out / f"through-{distributed.rank()}").write_text(f"left the group {len(left)} times")
    signal.alarm(30)
    sys.exit(command(out, drawn.with_name("broken"), "broken"))  # the rank that meets the broken image ends the other


if __name__ == "__main__":
    main()
