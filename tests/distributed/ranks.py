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
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hialign import cli, distributed
from hialign.batch import Batch
from hialign.data import Loader, flickr8k
from hialign.models import part_of, set_trainable, tiny
from hialign.objectives import Contrastive, NextToken, Result
from hialign.runner.assemble import collator
from hialign.solvers import (
    Alternating,
    ConstrainedDual,
    DynamicBarrier,
    ImplicitTangent,
    Joint,
    Single,
    ValuePenalty,
)
from hialign.training import (
    LevelRun,
    Logs,
    NonFinite,
    Optimisation,
    Preempted,
    Stage,
    Training,
    TrainingOracle,
    latest,
    probe,
)
from hialign.training.diagnostics import Watch
from hialign.training.optim import adamw
from hialign.training.sharded import dots

STEPS = 3
SOLVERS = {
    "joint": lambda: Joint(0.5),
    "alternating": lambda: Alternating(inner_steps=2, half_life=2.0),
    "dynamic_barrier": lambda: DynamicBarrier(ema=0.5),
    "constrained_dual": lambda: ConstrainedDual(rate=0.5),
    "value_penalty": ValuePenalty,
    "cached": DynamicBarrier,  # on two processes in micro-batches, on one as a whole
    "fp32": DynamicBarrier,
}
SHARDED = {
    "dynamic_barrier": lambda: DynamicBarrier(ema=0.5),
    "constrained_dual": lambda: ConstrainedDual(best=0.5, rate=0.5),
    "value_penalty": ValuePenalty,
    "implicit_tangent": lambda: ImplicitTangent(difference=1e-5, steps=3),
}
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


class Noted:
    """A solver beside which each rank writes down the weights that it computed."""

    def __init__(self, solver):
        self.solver, self.weights = solver, []
        self.two_level, self.requires = True, solver.requires
        self.state_dict, self.load_state_dict = solver.state_dict, solver.load_state_dict

    def step(self, oracle):
        self.solver.step(oracle)
        self.weights += oracle.numbers.get("weight", [])


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


def train(
    folder, drawn, solver, *, outer=None, pairs=("clip", "projector"), inner_rows=None, double=False, resume=False
):
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
        levels["inner"] = level(Contrastive(pairs), inner_rows or rows)
    stage = Stage("only", levels, solver, Optimisation(STEPS, weight_decay=0.1), rates, part_of)
    found = latest(folder, ["only"]) if resume else None
    torch.manual_seed((99 if resume else 1) + distributed.rank())
    with Logs(folder, [], {}, main=distributed.is_main(), after=found.step if found else 0) as logs:
        cpu = torch.device("cpu")
        Training(model.root, [stage], folder, logs, cpu, save_every=2, diagnose_every=2).run(found)
    torch.save(model.root.state_dict(), folder / f"weights-{distributed.rank()}.pt")


def told(folder, error):
    """Notes what this rank was told."""
    note = {"kind": type(error).__name__, "says": str(error)}
    (folder / f"told-{distributed.rank()}.json").write_text(json.dumps(note))


def compare(out, drawn):
    for name, solver in SOLVERS.items():
        noted = Noted(solver())
        split = 2 if name == "cached" and distributed.active() else None
        train(out / name, drawn, noted, double=name != "fp32", inner_rows=split)
        (out / name / f"solver-weights-{distributed.rank()}.json").write_text(json.dumps(noted.weights))


class Rows(Batch):
    """Numbers, and what each level wants of them."""

    def __init__(self, x, inner, outer):
        object.__setattr__(self, "records", tuple(f"r{i}" for i in range(len(x))))
        for name, value in (("x", x), ("inner", inner), ("outer", outer)):
            object.__setattr__(self, name, value)

    def to(self, device):
        return self


class Share:
    """A stream of this process's half of 8 rows; other ones in every step."""

    def __init__(self):
        self.step = 0

    def next(self):
        batch, self.step = self.peek(), self.step + 1
        return [batch]

    def peek(self):
        generator = torch.Generator().manual_seed(self.step)
        whole = [torch.randn(8, dim, generator=generator, dtype=torch.float64) for dim in (6, 4, 3)]
        rows = 8 // distributed.world_size()
        mine = slice(distributed.rank() * rows, (distributed.rank() + 1) * rows)
        return Rows(*(tensor[mine] for tensor in whole))


class Small(nn.Module):
    """A layer that both levels read, with a number of rows that two ranks cannot share equally, and one for each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(6, 5, dtype=torch.float64)
        self.inner = nn.Linear(5, 4, dtype=torch.float64)
        self.outer = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, objective, batch):
        return objective(self, batch)


class Fitted:
    """Half the squared distance between a level's head on the shared layer and what the level wants, summed."""

    batch_type, whole_batch, bounded = Rows, False, False

    def __init__(self, level):
        self.level = level

    def __call__(self, root, batch):
        out = getattr(root, self.level)(torch.tanh(root.shared(batch.x)))
        return Result((out - getattr(batch, self.level)).square().sum() / 2, torch.tensor(float(len(out))))


def fit(solver):
    """Three steps on ``Small``, cut over the ranks where there are two: what was logged, and the whole parameters."""
    root = Small()
    if distributed.active():
        mesh = init_device_mesh("cpu", (distributed.world_size(),))
        for module in (root.shared, root):
            fully_shard(module, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in root.parameters())
    levels = {level: LevelRun(Fitted(level), {"rows": Share()}) for level in ("inner", "outer")}
    optimisation = Optimisation(STEPS, clip=0.0)
    stage = Stage("only", levels, solver, optimisation, dict, str)
    cpu = torch.device("cpu")
    parameters = dict(root.named_parameters())
    groups = probe(root, stage, "fp32", cpu)[0]
    assert {name.split(".")[0]: group for name, group in groups.items()} == {g: g for g in ("inner", "shared", "outer")}
    optimizer = adamw(parameters, dict.fromkeys(parameters, 1e-2), optimisation)
    settings = {"total_steps": STEPS, "clip": 0.0, "precision": "fp32", "device": cpu}
    oracle = TrainingOracle(root, levels, optimizer, groups, schedule=lambda progress: 1.0, **settings)
    logged = []
    for oracle.step in range(STEPS):
        watch = Watch(oracle)
        solver.step(oracle)
        logged.append(oracle.take_numbers() | watch.read(None))
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in parameters.items()}
    return {"logged": logged, "weights": {name: p.detach() for name, p in whole.items()}}


def multiply():
    """Inner products of parameters of which only some are cut over the ranks."""
    root = Small()
    if distributed.active():
        fully_shard(root.shared, mesh=init_device_mesh("cpu", (distributed.world_size(),)))
    values = {name: p.detach() for name, p in root.named_parameters()}
    assert {isinstance(value, DTensor) for value in values.values()} == {False, distributed.active()}
    only = {name: value for name, value in values.items() if name.startswith("outer")}
    return dots([(values, values), (values, only), (only, {})], torch.device("cpu"))


def shard(out, drawn):
    seen = {name: fit(solver()) for name, solver in SHARDED.items()} | {"dots": multiply()}
    torch.save(seen, out / f"sharded-{distributed.rank()}.pt")


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
    for case in (compare, shard, stop_and_resume, not_finite):
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
