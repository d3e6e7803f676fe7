"""What a solver's step costs, beside Betty and TorchOpt where they are installed: python scripts/benchmarks/solvers.py

Writes docs/benchmarks/solvers.json, and solvers.md from it. A step is counted in passes: one forward and backward of
the outer loss and one of the inner loss, on the same two batches. Every competitor is a process of its own. They take
turns, A B C A B C ..., so that a busy moment of the machine hits all of them, and a ratio is the median of the turns'.
Memory is the process's peak less what it held before its first step, parameters and batches included, all code having
run once on a small problem.

The inner loss aligns a tower's outputs with fixed targets (InfoNCE, through a head of its own); the outer one
classifies them (through another). Where the inner loss depends on the outer level, it sees its inputs through a gate
that the outer level owns: the case that Betty and TorchOpt are made for. Else their hypergradient is zero or an error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hialign.losses import info_nce
from hialign.solvers import (
    Alternating,
    ConstrainedDual,
    DynamicBarrier,
    ImplicitTangent,
    Joint,
    PCGrad,
    Solver,
    ValuePenalty,
)
from hialign.solvers.minimise import ClosureOracle

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
RATE = 1e-3
INNER_STEPS = 3  # of conjugate gradients, Neumann's series and the longer unrolled loop
Step = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """A tower of three layers, and how often it is measured."""

    name: str
    dim: int
    width: int
    batch: int = 128
    turns: int = 15
    steps: int = 3  # a turn


SIZES = {size.name: size for size in (Size("100k", 64, 256, steps=10), Size("5M", 512, 1792, turns=9, steps=1))}
SMALL = Size("small", 8, 16, batch=8, turns=2, steps=1)


class Inner(nn.Module):
    """The tower, and the head of the inner loss."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        widths = (size.dim, size.width, size.width, size.dim)
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.GELU())]
        self.tower, self.head = nn.Sequential(*layers[:-1]), nn.Linear(size.dim, size.dim)


class Outer(nn.Module):
    """The head of the outer loss, and the gate that the inner loss sees its inputs through."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.head, self.gate = nn.Linear(size.dim, 10), nn.Parameter(torch.ones(size.dim))


class Two:
    """Both losses, on a batch each that stays the same."""

    def __init__(self, size: Size, *, depends: bool) -> None:
        torch.manual_seed(0)
        self.inner_net, self.outer_net, self.depends = Inner(size), Outer(size), depends
        self.inner_batch, self.outer_batch, self.targets = torch.randn(3, size.batch, size.dim).unbind()
        self.labels = torch.randint(10, (size.batch,))

    def inner(self) -> Tensor:
        rows = self.inner_batch * self.outer_net.gate if self.depends else self.inner_batch
        return info_nce(self.inner_net.head(self.inner_net.tower(rows)), self.targets)

    def outer(self) -> Tensor:
        loss = F.cross_entropy(self.outer_net.head(self.inner_net.tower(self.outer_batch)), self.labels)
        # the task wants the gate to stay near one, so that both losses reach it
        return loss + (self.outer_net.gate - 1).square().mean() if self.depends else loss

    @property
    def parameters(self) -> dict[str, Tensor]:
        named = {"inner": self.inner_net, "outer": self.outer_net}
        every = {f"{net}.{name}": p for net, module in named.items() for name, p in module.named_parameters()}
        return every if self.depends else {name: p for name, p in every.items() if name != "outer.gate"}

    @property
    def aligned(self) -> int:
        """Bytes of a gradient of what the inner loss moves."""
        return sum(p.numel() * p.element_size() for p in self.inner_net.parameters())


# Competitors: each takes both losses and returns a step.


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=RATE)


def passes(two: Two, *losses: Callable[[], Tensor]) -> Step:
    """Forward and backward alone."""

    def step() -> None:
        for loss in losses:
            for parameter in two.parameters.values():
                parameter.grad = None
            loss().backward()

    return step


def alone(two: Two, loss: Callable[[], Tensor]) -> Step:
    """Plain training on one loss."""
    optimizer = torch.optim.SGD(two.parameters.values(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def ours(two: Two, solver: Solver) -> Step:
    """A solver's step on the two closures."""
    oracle = ClosureOracle(
        two.parameters,
        {"inner": two.inner, "outer": two.outer},
        10**6,
        torch.optim.SGD(two.parameters.values(), lr=RATE),
        lambda progress: 1.0,
        floor=0.0,
        outer_parts=("outer.gate",) if two.depends else (),
    )
    return lambda: solver.step(oracle)


def betty(two: Two, kind: str) -> Step:
    """One inner step and one outer step along the hypergradient."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    class Below(ImplicitProblem):
        def training_step(self, _: Any) -> Tensor:
            return two.inner()

    class Above(ImplicitProblem):
        def training_step(self, _: Any) -> Tensor:
            return two.outer()

    # the outer loss's graph serves its own gradient and the inner parameters'
    counts = {"cg_iterations": INNER_STEPS, "neumann_iterations": INNER_STEPS, "neumann_alpha": 0.1}
    above, below = (
        made(name, Config(type=kind, retain_graph=kept, **counts), net, sgd(net), None, [(0,)])
        for made, name, net, kept in (
            (Above, "above", two.outer_net, True),
            (Below, "below", two.inner_net, False),
        )
    )
    ways = {"u2l": {above: [below]}, "l2u": {below: [above]}}
    engine = Engine([above, below], EngineConfig(train_iters=1), ways)
    engine.train()

    def step() -> None:
        engine.global_step += 1
        engine.train_step()

    return step


def torchopt_unroll(two: Two, length: int) -> Step:
    """``length`` inner steps whose graph is kept, and the outer gradient through them."""
    import torchopt

    inner = torchopt.MetaSGD(two.inner_net, lr=RATE)
    optimizer = sgd(two.outer_net)

    def step() -> None:
        for _ in range(length):
            inner.step(two.inner())
        optimizer.zero_grad()
        two.outer().backward()
        optimizer.step()
        torchopt.stop_gradient(two.inner_net)
        torchopt.stop_gradient(inner)

    return step


@dataclass(frozen=True)
class Competitor:
    """A name of the table, whether the inner level depends on the outer one, and what makes its step."""

    name: str
    depends: bool
    build: Callable[[Two], Step]


COMPETITORS = {
    competitor.name: competitor
    for competitor in (
        Competitor("passes", False, lambda two: passes(two, two.outer, two.inner)),
        Competitor("outer alone", False, lambda two: alone(two, two.outer)),
        Competitor("inner alone", False, lambda two: alone(two, two.inner)),
        Competitor("Joint", False, lambda two: ours(two, Joint())),
        Competitor("DynamicBarrier", False, lambda two: ours(two, DynamicBarrier())),
        Competitor("ValuePenalty", False, lambda two: ours(two, ValuePenalty())),
        Competitor("ConstrainedDual", False, lambda two: ours(two, ConstrainedDual())),
        Competitor("Alternating, 1 inner step", False, lambda two: ours(two, Alternating(1))),
        Competitor("PCGrad", False, lambda two: ours(two, PCGrad())),
        Competitor("ImplicitTangent, 3 CG", False, lambda two: ours(two, ImplicitTangent(steps=INNER_STEPS))),
        Competitor("DynamicBarrier, 1 inner step", True, lambda two: ours(two, DynamicBarrier(inner_steps=1))),
        Competitor("ValuePenalty, 1 inner step", True, lambda two: ours(two, ValuePenalty(inner_steps=1))),
        Competitor("ImplicitTangent, 2 x 3 CG", True, lambda two: ours(two, ImplicitTangent(steps=INNER_STEPS))),
        Competitor("Betty darts", True, lambda two: betty(two, "darts")),
        Competitor("Betty cg, 3", True, lambda two: betty(two, "cg")),
        Competitor("Betty neumann, 3", True, lambda two: betty(two, "neumann")),
        Competitor("TorchOpt unroll, 1", True, lambda two: torchopt_unroll(two, 1)),
        Competitor("TorchOpt unroll, 3", True, lambda two: torchopt_unroll(two, 3)),
    )
}

QUICK = ("passes", "outer alone", "inner alone", "Joint", "DynamicBarrier", "Betty cg, 3")


# One competitor's process.


def serve(size: Size, competitor: Competitor) -> None:
    """Says that it is ready, then answers each line that comes in with the numbers of one turn."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        small = competitor.build(Two(SMALL, depends=competitor.depends))
        small(), small()
        two = Two(size, depends=competitor.depends)
        step = competitor.build(two)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        step()
    except Exception as error:  # a library that is absent or fails is a line of the table
        print(json.dumps({"failed": f"{type(error).__name__}: {error}".splitlines()[0]}), file=answers)
        return
    peak = (resident("VmHWM") - before) / MIB
    print(json.dumps({"peak_mib": peak, "gradient_mib": two.aligned / MIB}), file=answers)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(size.steps):
            step()
        print(json.dumps({"seconds": (time.perf_counter() - start) / size.steps}), file=answers)


def resident(line: str) -> int:
    """Bytes of this process that are or were in memory."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(entry.split()[1]) for entry in status if entry.startswith(f"{line}:"))


# The process that gives the turns.


def measured(size: Size, quick: bool) -> dict[str, Any]:
    """For each competitor its seconds by turn and peak, or why there are none."""
    # large tensors go back to the system when they are freed, else the peak would be one of malloc's habits
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    results: dict[str, Any] = {}
    workers = {}
    for name in QUICK if quick else COMPETITORS:
        command = [sys.executable, __file__, *(["--quick"] if quick else []), "--serve", size.name, name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        worker = subprocess.Popen(command, **pipes, text=True, env=environment)
        results[name] = answer(worker, name)
        if "failed" not in results[name]:
            workers[name] = worker
    for _ in range(size.turns):
        for name, worker in workers.items():
            print("go", file=worker.stdin, flush=True)
            results[name].setdefault("seconds", []).append(answer(worker, name)["seconds"])
    for worker in workers.values():
        worker.communicate()
    return results


def answer(worker: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """A worker's next line."""
    assert worker.stdout is not None
    if not (line := worker.stdout.readline()):
        raise RuntimeError(f"{name} ended with {worker.wait()} before it answered")
    found: dict[str, Any] = json.loads(line)
    return found


def beside(ours: list[float], *theirs: list[float]) -> float:
    """The median over the turns of our time over the sum of theirs."""
    return statistics.median(own / sum(other) for own, *other in zip(ours, *theirs, strict=True))


def targets(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What was wanted of the barrier, and what it has."""
    barrier, seconds = results["DynamicBarrier"], {name: r.get("seconds") for name, r in results.items()}
    memory = (barrier["peak_mib"] - results["outer alone"]["peak_mib"]) / barrier["gradient_mib"]
    both = beside(barrier["seconds"], seconds["inner alone"], seconds["outer alone"])
    return {
        "time over Joint's": {"wanted": 1.1, "measured": beside(barrier["seconds"], seconds["Joint"])},
        "time over inner alone + outer alone": {"wanted": 1.05, "measured": both},
        "memory beyond outer alone, in gradients of what the inner loss moves": {"wanted": 1.0, "measured": memory},
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": model, "cores": os.cpu_count(), "threads": 1, "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Of what was measured."""
    found = {}
    for package in ("torch", "betty-ml", "torchopt"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def markdown(report: dict[str, Any]) -> str:
    """The page."""
    where = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "# What a solver's step costs",
        "",
        f"Made by `{report['command']}` on {where['processor']} ({where['cores']} cores, one thread, Python "
        f"{where['python']}); {packages}.",
        "",
        "A pass is one forward and backward of each loss. Peak memory is above the parameters and batches. Where the",
        "inner loss depends on an outer gate, the solvers subtract the value function or solve for the hypergradient;",
        "Betty and TorchOpt estimate a hypergradient, which is another algorithm: costs are compared, not results.",
    ]
    for name, case in report["sizes"].items():
        results = case["results"]
        unit = results["passes"]["seconds"]
        lines += ["", f"## Tower of {name}", ""]
        lines += [
            f"A pass takes {1000 * statistics.median(unit):.2f} ms, a gradient of what the inner loss moves "
            f"{results['passes']['gradient_mib']:.1f} MiB.",
            "",
        ]
        lines += ["| step | passes | ms | peak MiB |", "|---|---|---|---|"]
        lines += [row(COMPETITORS[name], result, unit) for name, result in results.items()]
        lines += ["", "| target | wanted | measured |", "|---|---|---|"]
        for target, values in case["targets"].items():
            met = "" if values["measured"] <= values["wanted"] else ", **missed**"
            lines.append(f"| {target} | at most {values['wanted']:g} | {values['measured']:.3f}{met} |")
    return "\n".join(lines) + "\n"


def row(competitor: Competitor, result: dict[str, Any], unit: list[float]) -> str:
    """A competitor's line."""
    name = f"{competitor.name} (inner level depends)" if competitor.depends else competitor.name
    if "failed" in result:
        return f"| {name} | {result['failed'].replace('|', '/')} | | |"
    seconds = result["seconds"]
    return (
        f"| {name} | {beside(seconds, unit):.2f} | {1000 * statistics.median(seconds):.2f} | {result['peak_mib']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two turns: to try the script")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--serve", nargs=2, metavar=("SIZE", "COMPETITOR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = {"small": SMALL} if arguments.quick else SIZES
    if arguments.serve:
        size, name = arguments.serve
        torch.set_num_threads(1)
        return serve(sizes[size], COMPETITORS[name])
    if sys.platform != "linux":
        raise SystemExit("the peak of memory is read from /proc, which only Linux has")
    command = "python scripts/benchmarks/solvers.py" + (" --quick" if arguments.quick else "")
    report: dict[str, Any] = {"command": command, "machine": machine(), "versions": versions(), "sizes": {}}
    for name, size in sizes.items():
        results = measured(size, arguments.quick)
        report["sizes"][name] = {"results": results, "targets": targets(results)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "solvers.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "solvers.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
