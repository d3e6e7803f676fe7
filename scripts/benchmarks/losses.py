"""Time and peak memory of the losses beside what others use: python scripts/benchmarks/losses.py

Writes docs/benchmarks/losses.json, and losses.md from it. Every competitor is a process of its own, which makes its
inputs once and then runs forward and backward each time it is told to. Competitors take turns, A B C A B C ..., so that
a busy moment of the machine hits all of them; a time beside another is the median of the turns' ratios. On a machine
that others use too, --threads 1 compares processor times. Memory is the process's peak less what it held when its
inputs were there and all code had run once on small inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hialign import losses

Loss = Callable[..., Tensor]  # takes a case's inputs by name
ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
PACKAGES = ("torch", "open_clip_torch", "pytorch-metric-learning", "trl")


# Competitors: functions that import what they need and return a loss, which takes a case's inputs by name.


def clip_loss() -> Loss:
    """open_clip's loss; its models normalise before they call it."""
    from open_clip import ClipLoss

    theirs = ClipLoss()
    return lambda images, texts, scale: theirs(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)


def naive_symmetric(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Normalise, multiply once, two cross-entropies."""
    scores = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def naive_one_way(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Normalise, multiply, one cross-entropy."""
    scores = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def ntxent() -> Loss:
    """pytorch-metric-learning's loss of queries against keys as its references."""
    from pytorch_metric_learning.losses import NTXentLoss

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        own = torch.arange(len(images), device=images.device)
        # A copy: with the same labels on both sides it takes the keys for the queries, and leaves out the pairs (i, i).
        return NTXentLoss(temperature=1 / scale.item())(images, own, ref_emb=texts, ref_labels=own.clone())

    return loss


def logits_then_gather(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """All logits, log_softmax, gather."""
    return -F.linear(hidden[:, :-1], weight).log_softmax(-1).gather(-1, labels[:, 1:, None]).sum()


def logits_then_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """All logits, cross_entropy."""
    logits = F.linear(hidden[:, :-1], weight)
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def logits_then_kl(hidden: Tensor, weight: Tensor, reference: Tensor) -> Tensor:
    """All logits of both, log_softmax of both, kl_div."""
    policy, other = (F.linear(states[:, :-1], weight).log_softmax(-1) for states in (hidden, reference))
    return F.kl_div(policy, other, reduction="sum", log_target=True)


def trl_selective() -> Loss:
    """TRL's log_softmax and gather in one, on all logits."""
    from trl.trainer.utils import selective_log_softmax

    return lambda hidden, weight, labels: -selective_log_softmax(F.linear(hidden[:, :-1], weight), labels[:, 1:]).sum()


def trl_chunked() -> Loss:
    """What TRL's trainers put in place of the head: tiles of the vocabulary, made again in the backward pass."""
    from trl.kernels import ChunkedLogProbFunction

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        states, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        # Their own tile of the vocabulary; none of the outputs that they log.
        return -ChunkedLogProbFunction.apply(states, weight, None, targets, 1.0, 32768, None, 1.0, ())[0].sum()

    return loss


COMPETITORS: dict[str, Callable[[], Loss]] = {
    "symmetric_info_nce": lambda: (
        lambda images, texts, scale: losses.symmetric_info_nce(images, texts, logit_scale=scale)
    ),
    "symmetric_info_nce_chunked": lambda: (
        lambda images, texts, scale: losses.symmetric_info_nce_chunked(images, texts, logit_scale=scale)
    ),
    "open_clip ClipLoss": clip_loss,
    "matrix, two cross-entropies": lambda: naive_symmetric,
    "info_nce": lambda: lambda images, texts, scale: losses.info_nce(images, texts, logit_scale=scale),
    "info_nce_chunked": lambda: lambda images, texts, scale: losses.info_nce_chunked(images, texts, logit_scale=scale),
    "matrix, cross-entropy": lambda: naive_one_way,
    "pytorch-metric-learning NTXentLoss": ntxent,
    "chunked_token_logps": lambda: (
        lambda hidden, weight, labels: -losses.chunked_token_logps(hidden, weight, labels).sum()
    ),
    "logits, log_softmax, gather": lambda: logits_then_gather,
    "TRL selective_log_softmax": trl_selective,
    "TRL fused head": trl_chunked,
    "chunked_next_token": lambda: (
        lambda hidden, weight, labels: losses.chunked_next_token(hidden, weight, labels, reduction="sum")
    ),
    "logits, cross_entropy": lambda: logits_then_cross_entropy,
    "chunked_token_kl": lambda: (
        lambda hidden, weight, labels, reference: losses.chunked_token_kl(
            hidden, weight, reference, labels, reduction="sum"
        )
    ),
    "logits, log_softmax, kl_div": lambda: (
        lambda hidden, weight, labels, reference: logits_then_kl(hidden, weight, reference)
    ),
}


# Cases: sizes, and who takes part.


@dataclass(frozen=True)
class Target:
    """How many times what the least of the others needs, of time or memory, ours is to need at most."""

    what: str  # "time" or "memory"
    ours: str
    others: tuple[str, ...]
    most: float


@dataclass(frozen=True)
class Case:
    """What is measured: competitors, how often each runs, the inputs' sizes, and what is aimed at."""

    name: str
    kind: str
    competitors: tuple[str, ...]  # ours first
    turns: int
    rows: int  # pairs of embeddings, or tokens
    dim: int = 512
    vocab: int = 0  # 0: pairs of embeddings
    trained: bool = False  # the head
    reference: bool = False  # a second model's hidden states
    targets: tuple[Target, ...] = ()

    @property
    def title(self) -> str:
        """What it is, with its sizes."""
        if not self.vocab:
            return f"{self.kind}, {self.rows:,} pairs of width {self.dim}"
        head = f"{'trained' if self.trained else 'frozen'} head of {self.vocab:,} x {self.dim:,}"
        return f"{self.kind}, {self.rows:,} tokens, {head}"

    def inputs(self, device: str) -> dict[str, Tensor]:
        """Made anew from one seed."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        if not self.vocab:
            scale = torch.tensor(1 / 0.07, device=device)
            made = {"images": normal(self.rows, self.dim), "texts": normal(self.rows, self.dim), "scale": scale}
            return {name: tensor.requires_grad_() for name, tensor in made.items()}
        made = {
            "hidden": normal(1, self.rows, self.dim).requires_grad_(),
            "weight": normal(self.vocab, self.dim).div_(self.dim**0.5).requires_grad_(self.trained),
            "labels": torch.randint(self.vocab, (1, self.rows), generator=generator).to(device),
        }
        return {**made, "reference": normal(1, self.rows, self.dim)} if self.reference else made


PAIRS = ("symmetric_info_nce", "symmetric_info_nce_chunked", "open_clip ClipLoss", "matrix, two cross-entropies")
ONE_WAY = ("info_nce", "info_nce_chunked", "matrix, cross-entropy", "pytorch-metric-learning NTXentLoss")
LOGPS = ("chunked_token_logps", "logits, log_softmax, gather", "TRL selective_log_softmax", "TRL fused head")
NEXT = ("chunked_next_token", "logits, cross_entropy", "TRL fused head")
KL = ("chunked_token_kl", "logits, log_softmax, kl_div")


def pairs(rows: int, turns: int) -> Case:
    """CLIP's loss. The chunked form is for what does not fit, so that its targets are those of the largest batch."""
    targets = [Target("time", PAIRS[0], PAIRS[2:], 1.05)]
    if rows >= 16_384:
        targets += [Target("memory", PAIRS[1], PAIRS[2:3], 1 / 8), Target("time", PAIRS[1], PAIRS[2:3], 1.15)]
    return Case(f"symmetric-{rows}", "InfoNCE both ways", PAIRS, turns, rows, targets=tuple(targets))


def logps(vocab: int, trained: bool, turns: int) -> Case:
    """The log-probabilities of one row's tokens."""
    targets = (
        Target("memory", LOGPS[0], LOGPS[1:2], 1 / 6),
        Target("time", LOGPS[0], LOGPS[1:2], 1.4 if trained else 1.1),
    )
    name = f"logps-{vocab}-{'trained' if trained else 'frozen'}"
    competitors = LOGPS if vocab < 100_000 else LOGPS[:3]  # the fourth is slow without a GPU
    return Case(name, "log-probabilities", competitors, turns, 2048, 1024, vocab, trained, targets=targets)


CASES = (
    Case("one-way-512", "InfoNCE one way", ONE_WAY, 7, 512, targets=(Target("time", ONE_WAY[0], ONE_WAY[2:], 1.05),)),
    pairs(1024, turns=41),
    pairs(4096, turns=7),
    pairs(16_384, turns=3),
    Case("symmetric-32768", "InfoNCE both ways", PAIRS[1:2], 1, 32_768),
    logps(32_000, trained=False, turns=3),
    logps(32_000, trained=True, turns=3),
    logps(128_256, trained=False, turns=3),
    logps(128_256, trained=True, turns=3),
    Case("next-token-32000", "next token's sum", NEXT, 3, 2048, 1024, 32_000, trained=True),
    Case("kl-32000", "divergence", KL, 3, 2048, 1024, 32_000, reference=True),
)


def small(case: Case) -> Case:
    """The same at sizes that take no time: to try the script, and to run all code once before memory is read."""
    return replace(case, turns=2, rows=8, dim=4, vocab=min(case.vocab, 16))


# One competitor's process.


def serve(case: Case, competitor: str, device: str) -> None:
    """Says that the inputs are there, then answers each line that comes in with the numbers of one run."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(**numbers: Any) -> None:
        print(json.dumps(numbers), file=answers)

    try:
        loss = COMPETITORS[competitor]()
    except ModuleNotFoundError as error:
        answer(absent=error.name)
        return
    run(loss, small(case).inputs(device), device)
    inputs = case.inputs(device)
    before = held(device)
    answer()
    for _ in sys.stdin:
        numbers = run(loss, inputs, device)
        # The size of the weight is that of its gradient, which no name here may hold into the next turn.
        kept = inputs["weight"].numel() * inputs["weight"].element_size() if case.trained else 0
        answer(**numbers, peak_mib=max(0, peak(device) - before - kept) / MIB)


def run(loss: Loss, inputs: dict[str, Tensor], device: str) -> dict[str, float]:
    """Forward and backward, from leaves without gradients."""
    for tensor in inputs.values():
        tensor.grad = None
    wait(device)
    start, cpu = time.perf_counter(), time.process_time()
    value = loss(**inputs)
    value.backward()
    wait(device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    grads = [tensor.grad.norm().item() for tensor in inputs.values() if tensor.grad is not None and tensor.dim() > 1]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "loss": value.item(), "slope": sum(grads)}


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def held(device: str) -> int:
    """Bytes that are held now; the peak counts from here on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident
    return peak(device)


def peak(device: str) -> int:
    """The most bytes that were held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac


# The process that gives the turns.


def measured(case: Case, options: list[str], by: str) -> dict[str, Any]:
    """A case's results: for each competitor the numbers of every turn, or what is not installed."""
    command = [sys.executable, __file__, *options, "--serve", case.name]
    workers = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in case.competitors
    }
    results: dict[str, Any] = {name: ask(worker, case, name) for name, worker in workers.items()}
    present = [name for name in workers if "absent" not in results[name]]
    for turn in range(case.turns):
        for name in present:
            for key, value in ask(workers[name], case, name, go=True).items():
                results[name].setdefault(key, []).append(value)
        if turn == 0:
            check_agreement(case, {name: results[name] for name in present})
    for worker in workers.values():
        worker.communicate()
    return {"name": case.name, "title": case.title, "results": results, "targets": judged(case, results, by)}


def ask(worker: subprocess.Popen[str], case: Case, name: str, *, go: bool = False) -> dict[str, Any]:
    """A worker's next answer, after one more run where it is to go."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if go:
        print("go", file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"{case.name}: {name} ended with {worker.wait()} before it answered; its error is above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def check_agreement(case: Case, results: dict[str, Any]) -> None:
    """Raise where two competitors do not compute the same: their times would mean nothing beside each other."""
    ours = case.competitors[0]
    for name, numbers in results.items():
        for key in ("loss", "slope"):
            mine, theirs = results[ours][key][0], numbers[key][0]
            if abs(mine - theirs) > 1e-3 * abs(mine):
                raise RuntimeError(f"{case.name}: the {key} is {theirs} by {name} and {mine} by {ours}, wanted one")


def judged(case: Case, results: dict[str, Any], by: str) -> list[dict[str, Any]]:
    """The case's targets with what was measured; one whose others are all absent is measured as None."""
    found = []
    for target in case.targets:
        key = {"time": by, "memory": "peak_mib"}[target.what]
        others = {name: results[name][key] for name in target.others if key in results[name]}
        least = min(others, key=lambda name: statistics.median(others[name]), default=None)
        value = None if least is None else beside(results[target.ours][key], others[least])
        found.append({"what": target.what, "ours": target.ours, "other": least, "most": target.most, "measured": value})
    return found


def beside(ours: list[float], theirs: list[float]) -> float | None:
    """The median over the turns of ours / theirs; None where theirs is nothing."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True)) if all(theirs) else None


def machine(device: str) -> dict[str, Any]:
    """What ran it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    installed = {package.name: package.version for package in metadata.distributions()}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {"Python": platform.python_version(), **{name: installed.get(name) for name in PACKAGES}},
    }


# What is written.


def markdown(report: dict[str, Any]) -> str:
    """The report to read."""
    of = report["machine"]
    packages = ", ".join(f"{name} {version or 'not installed'}" for name, version in of["packages"].items())
    threads = "1 thread" if of["threads"] == 1 else f"{of['threads']} threads"
    who = f"{of['device']}: {of['cpu']}, {of['cores']} cores, {threads}, {of['system']}. {packages}."
    lines = [
        *("# The losses, measured", ""),
        "Written by `python scripts/benchmarks/losses.py` from [losses.json](losses.json), which holds every turn.",
        *("", who, ""),
        *(["**Tiny sizes: the script was tried, and nothing is measured.**", ""] if report["quick"] else []),
        *(
            paragraphs(EXPLAINED.format(time=TIMES[report["by"]])),
            "",
            "## Targets",
            "",
            "| target | measured | |",
            "|---|--:|---|",
        ),
        *(line for case in report["cases"] for line in target_rows(case, report["quick"])),
        *("", "## Measured", "", "| | time | beside | memory |", "|---|--:|--:|--:|"),
        *(line for case in report["cases"] for line in rows(case, report["by"])),
    ]
    return "\n".join(lines) + "\n"


TIMES = {
    "seconds": "what a clock on the wall shows",
    "cpu_seconds": "processor time of the one thread (other work on the machine leaves it nearly alone)",
}
EXPLAINED = """Forward and backward together, in float32, from leaves without gradients. Each competitor is a process of
its own. They take turns, so that a busy moment hits all alike. Time is {time}, the median of the turns; "beside" is the
median of the turns' ratios to hialign's time, the first row of its case: above 1 is slower than hialign. Memory is the
process's peak above what it held with its inputs; the gradient of a head's weight is not counted, that of embeddings
and hidden states is. All of a case gave the same loss and gradients.

Embeddings are normalised within what is timed, by open_clip's and the matrix forms as by hialign's. Every token has a
label. "TRL fused head" is what TRL's trainers put in the head's place (`ChunkedLogProbFunction`). Without a GPU it runs
in plain torch, and it is left out at the wider vocabulary to save time."""


def paragraphs(text: str) -> str:
    """The text in lines of one length."""
    return "\n\n".join(textwrap.fill(part, width=120) for part in text.split("\n\n"))


def target_rows(case: dict[str, Any], quick: bool) -> list[str]:
    """The lines of one case's targets."""
    lines = []
    for target in case["targets"]:
        value, most = target["measured"], target["most"]
        least = f"1/{1 / most:.0f}" if most < 1 else f"{most:.2f}x"
        wanted = f"{case['title']}: {target['what']} of `{target['ours']}` at most {least} of that of {target['other']}"
        if value is None or quick:
            lines.append(f"| {wanted} | - | not measured |")
        else:
            share = f"1/{1 / value:.1f}" if most < 1 else f"{value:.2f}x"
            lines.append(f"| {wanted} | {share} | {'reached' if value <= most else '**missed**'} |")
    return lines


def rows(case: dict[str, Any], by: str) -> list[str]:
    """The lines of one case: who, seconds, beside the first, MiB."""
    results, (ours, *_) = case["results"], case["results"].values()
    turns = len(ours["seconds"])
    lines = [f"| **{case['title']}** ({turns} {'turn' if turns == 1 else 'turns'}) | | | |"]
    for name, of in results.items():
        if "absent" in of:
            lines.append(f"| {name} | {of['absent']} is not installed | | |")
        else:
            ratio = beside(of[by], ours[by])
            seconds, mib = statistics.median(of[by]), statistics.median(of["peak_mib"])
            shown = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
            lines.append(f"| {name} | {shown} | {ratio:.2f} | {mib:,.0f} MiB |")
    return lines


def arguments() -> tuple[argparse.Namespace, list[Case]]:
    """What was asked for, and the cases that it means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the cases whose name has this in it: " + ", ".join(case.name for case in CASES))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: try the script in seconds")
    parser.add_argument("--out", type=Path, help="folder; without it docs/benchmarks, which only a whole run may write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--serve", nargs=2, metavar=("CASE", "COMPETITOR"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    cases = [small(case) if settings.quick else case for case in CASES]
    chosen = [case for case in cases if settings.only is None or settings.only in case.name]
    if settings.serve:
        return settings, [next(case for case in cases if case.name == settings.serve[0])]
    if not chosen:
        parser.error(f"--only={settings.only} is in no case's name; they are {', '.join(case.name for case in CASES)}")
    if settings.out is None and (settings.quick or len(chosen) < len(CASES)):
        parser.error("--quick and --only need --out: a part would take the place of the whole in docs/benchmarks")
    return settings, chosen


def main() -> None:
    """Measures, prints as it goes, and writes both files."""
    settings, cases = arguments()
    torch.set_num_threads(settings.threads)
    if settings.serve:
        serve(cases[0], settings.serve[1], settings.device)
        return
    by = "cpu_seconds" if settings.device == "cpu" and settings.threads == 1 else "seconds"
    report: dict[str, Any] = {"machine": machine(settings.device), "by": by, "quick": settings.quick, "cases": []}
    options = ["--device", settings.device, "--threads", str(settings.threads), *["--quick"] * settings.quick]
    for number, case in enumerate(cases, 1):
        print(f"{number}/{len(cases)} {case.title}", flush=True)
        report["cases"].append(measured(case, options, by))
        print("\n".join(rows(report["cases"][-1], by)[1:]), flush=True)
    out = settings.out or ROOT / "docs" / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    (out / "losses.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "losses.md").write_text(markdown(report))
    print(f"wrote {out / 'losses.md'}")


if __name__ == "__main__":
    main()
