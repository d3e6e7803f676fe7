"""Two levels against their weighted sum, on Tabletop: python scripts/pareto.py

Every arm trains the same parts from the same base model by `hialign train experiment=hierarchical` on equal numbers of
outer samples, and differs in its solver alone. First come the references, which follow the inner loss only: the budget
of constrained_dual is above theirs, since the proved floor is far below what real pairs reach. Settings are chosen by
val and val_counterfactual, what is reported is test and counterfactual. Writes pareto.json, pareto.png and pareto.md.

Runs that are done are not run again: the same command goes on where it was stopped. The comparison says so where its
runs were made by different commits.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hialign.benchmarks.intervals import T95, mean95

ROOT = Path(__file__).resolve().parent.parent
INNER_ONLY = "1e6"  # the weight at which a sum is its inner part, but for parameters that the inner loss does not reach
BUDGETED = "constrained_dual"
MEASURES = {  # what is read of a run: how the table calls it, and where scores.json has it, to choose by and to report
    "gap": ("gap, L - floor", "alignment/gap_hi", "tabletop_alignment/gap_hi"),
    "task": ("task loss", "alignment/outer_loss", "tabletop_alignment/outer_loss"),
    "chair": (
        "CHAIR-i, counterfactual",
        "tabletop_captions/val_counterfactual/chair_i",
        "tabletop_captions/counterfactual/chair_i",
    ),
    "recall": (
        "recall, counterfactual",
        "tabletop_captions/val_counterfactual/recall",
        "tabletop_captions/counterfactual/recall",
    ),
    "inner": ("inner loss", "alignment/loss", "tabletop_alignment/loss"),
    "residual": ("KKT residual", "", "tabletop_alignment/kkt_residual"),
}
PANELS = (("gap", "task"), ("gap", "chair"))  # of which the less is the better on both axes
COLOURS = ("#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#bbbb33")


@dataclass(frozen=True)
class Arm:
    """A solver with its settings; its steps are ``stretch`` times as many, so that it sees as many outer rows."""

    family: str
    setting: str
    overrides: tuple[str, ...]
    stretch: int = 1

    @property
    def name(self) -> str:
        return f"{self.family} {self.setting}"


@dataclass(frozen=True)
class Job:
    """A run: what a worker types to train and to score it."""

    arm: Arm
    seed: int
    folder: Path
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    base: str  # digest of the base model's weights


REFERENCE = Arm("reference", "inner loss only", ("solver=joint", f"solver.weight={INNER_ONLY}"))


def arms() -> list[Arm]:
    """Everything that is compared."""

    def several(family: str, key: str, values: Iterable[str]) -> list[Arm]:
        return [Arm(family, f"{key} {value}", (f"solver={family}", f"solver.{key}={value}")) for value in values]

    half = ("solver=sequential", "solver.fraction=0.5")  # half of its steps are inner ones
    return [
        *several("joint", "weight", ("0.01", "0.1", "1", "10", "100")),
        Arm("sequential", "fraction 0.5", half, stretch=2),
        *several("alternating", "inner_steps", ("1",)),
        *several("dynamic_barrier", "end", ("1e1", "1e2", "1e3")),
        *several("value_penalty", "end", ("1e1", "1e2", "1e3")),
        *several(BUDGETED, "budget", ("0.02", "0.1", "0.5")),
    ]


def _die_with(parent: int) -> None:
    """Ends this worker soon after its parent is gone: one that is killed could not say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def quick_arms() -> list[Arm]:
    """Two of them, for a look at whether all of this works."""
    return [arm for arm in arms() if arm.name in ("joint weight 1", "constrained_dual budget 0.1")]


def main() -> None:
    """Trains and scores what is missing, then writes the comparison."""
    settings = _settings()
    began = time.monotonic()
    chosen = quick_arms() if settings.quick else arms()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before a worker starts
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.jobs, spawn, _die_with, (os.getpid(),)) as pool:
        references = [_job(REFERENCE, seed, settings) for seed in settings.seeds]
        kinds = {arm.family: arm for arm in chosen}
        rows = _all(pool, score, references, "references")
        flops = dict(_all(pool, count, [(arm, settings.out, settings.steps) for arm in kinds.values()], "FLOPs"))
        best = min(row["val"]["inner"] for row in rows)
        rows += _all(
            pool, score, [_job(arm, seed, settings, best) for arm in chosen for seed in settings.seeds], "arms"
        )
    order = [arm.name for arm in (REFERENCE, *chosen)]
    rows.sort(key=lambda row: (order.index(_name(row)), row["seed"]))
    result = compare(rows, {**flops, REFERENCE.family: flops["joint"]}) | {
        "command": f"python scripts/pareto.py {' '.join(sys.argv[1:])}".strip(),
        "settings": {key: getattr(settings, key) for key in ("steps", "seeds", "scenes", "jobs", "device")},
        "machine": this_machine(),
    }
    settings.docs.mkdir(parents=True, exist_ok=True)
    (settings.docs / "pareto.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, settings.docs / "pareto.png")
    (settings.docs / "pareto.md").write_text(told := text(result))
    print(f"\n{told}\nwritten to {settings.docs}: pareto.json, pareto.png, pareto.md")
    print(f"this took {(time.monotonic() - began) / 60:.1f} minutes")


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pareto"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of pareto.{json,png,md}")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60, help="of the second stage; the first has half of it")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of the runs; FLOPs are counted on cpu"
    )
    parser.add_argument("--scenes", type=int, default=200, help="that are described, of each split")
    parser.add_argument("--quick", action="store_true", help="two arms, one seed, a few steps: does it work?")
    settings = parser.parse_args()
    if settings.quick:
        settings.seeds, settings.steps, settings.scenes = [0], 4, 4
    if settings.steps < 2 or settings.steps % 2:
        parser.error(f"--steps: got {settings.steps}, wanted an even number from 2 up: the first stage has half of it")
    if not 1 <= len(set(settings.seeds)) == len(settings.seeds) <= max(T95):
        parser.error(f"--seeds: got {settings.seeds}, wanted 1 to {max(T95)} different numbers, with commas between")
    if settings.scenes < 1 or settings.jobs < 1:
        parser.error(f"--scenes, --jobs: got {settings.scenes}, {settings.jobs}, wanted 1 or more")
    return settings


def _all(pool: ProcessPoolExecutor, work: Callable[[Any], Any], jobs: Sequence[Any], what: str) -> list[Any]:
    """What ``work`` returns for each job; says how far it is. After a failure no job is begun."""
    began, done = time.monotonic(), []
    futures = [pool.submit(work, job) for job in jobs]
    for future in as_completed(futures):
        try:
            done.append(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        print(f"{what} {len(done)}/{len(jobs)}, {time.monotonic() - began:.0f} s", flush=True)
    return done


def _job(arm: Arm, seed: int, settings: argparse.Namespace, best: float | None = None) -> Job:
    name = f"{arm.family}_{arm.setting.replace(' ', '-')}_seed-{seed}"
    folder = settings.out / "hierarchical" / name
    wanted = (f"solver.best={best:.6f}",) if arm.family == BUDGETED else ()
    evaluate = (
        "benchmark=[alignment,tabletop_alignment,tabletop_captions]",
        "benchmark.alignment.parts=[]",
        "benchmark.tabletop_captions.splits=[val_counterfactual,counterfactual]",
        f"benchmark.tabletop_captions.size={settings.scenes}",
        "batch_size=100",
    )
    train = (*_train(arm, settings.steps, seed), *wanted, f"trainer.device={settings.device}")
    return Job(arm, seed, folder, train, (*evaluate, f"device={settings.device}"), base_digest())


def _train(arm: Arm, steps: int, seed: int) -> tuple[str, ...]:
    """The words of `hialign train`, but for where the run is written."""
    lengths = (f"stages.pretrain.steps={steps // 2 * arm.stretch}", f"stages.finetune.steps={steps * arm.stretch}")
    return ("experiment=hierarchical", "model=tabletop", "data=tabletop", *arm.overrides, *lengths, f"seed={seed}")


def base_digest() -> str:
    """What tells the base model's weights from others."""
    from hialign.tabletop.model import FOLDER

    return hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()[:16]


def done_before(folder: Path, file: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run's row where ``file`` has it; else None, and ``file`` holds the key by which alone the run may go on.

    A ValueError for a run that was begun by another key.
    """
    found = json.loads(file.read_text()) if file.is_file() else {}
    if found and found["key"] != key:
        raise ValueError(f"{folder} was made otherwise: {found['key']}, wanted {key}; use another --out")
    if "row" in found:
        return dict(found["row"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"key": key}) + "\n")
    return None


def score(job: Job) -> dict[str, Any]:
    """In a worker: one run's row, trained and scored unless that was done."""
    key = {"train": list(job.train), "evaluate": list(job.evaluate), "base": job.base}
    file, log = (job.folder.parent / f"{job.folder.name}.{end}" for end in ("json", "log"))
    if (found := done_before(job.folder, file, key)) is not None:
        return found
    where = (f"output={job.folder.parent.parent}", f"name={job.folder.name}", "resume=auto")
    typed(("train", *job.train, *where), log)
    typed(("evaluate", f"run={job.folder}", *job.evaluate), log)
    scores = json.loads((job.folder / "scores.json").read_text())
    flat = {f"{benchmark}/{name}": n for benchmark, numbers in scores.items() for name, n in numbers.items()}
    steps = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    row = {
        "arm": asdict(job.arm),
        "seed": job.seed,
        "command": f"hialign train {' '.join(job.train)}",
        "val": {name: flat[val] for name, (_, val, _) in MEASURES.items() if val},
        "test": {name: flat[test] for name, (_, _, test) in MEASURES.items()},
        "floor": flat["tabletop_alignment/floor"],
        "outer_steps": sum("outer_loss" in step for step in steps),
        "seconds": sum(step["seconds"] for step in steps),
        "made_by": made_by(job.folder),
    }
    file.write_text(json.dumps({"key": key, "row": row}, indent=1) + "\n")
    return row


def made_by(run: Path) -> list[dict[str, Any]]:
    """The commits that trained a run, from its start over every time that it went on, and that which scores it now."""
    from hialign.runner.names import provenance

    trained = json.loads((run / "provenance.json").read_text())
    all_ = (trained, *trained.get("resumed", []), provenance())
    kept = [{key: one[key] for key in ("commit", "uncommitted_changes")} for one in all_]
    return [one for number, one in enumerate(kept) if one not in kept[:number]]


def count(task: tuple[Arm, Path, int]) -> tuple[str, float]:
    """In a worker: a family's FLOPs of training, from those of one step in the first stage and two in the second.

    A run of two and four steps against one of one and two: what both do besides cancels out. Attention is computed the
    long way, since the counter knows no other on the CPU.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    arm, out, steps = task
    file = out / "flops" / f"{arm.family}.json"
    key = {"overrides": list(arm.overrides), "base": base_digest()}
    if not file.is_file() or json.loads(file.read_text())["key"] != key:
        best = ("solver.best=0.0",) if arm.family == BUDGETED else ()  # it decides a weight, no product
        totals = []
        for length in (2, 4):
            name = f"{arm.family}-{length}-{os.getpid()}-{time.time_ns()}"
            command = ("train", *_train(arm, length, 0), *best, f"output={out / 'flops'}", f"name={name}")
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                typed((*command, "trainer.device=cpu"), out / "flops" / f"{arm.family}.log")
            totals.append(counter.get_total_flops())
        file.write_text(json.dumps({"key": key, "flops": totals[1] - totals[0]}) + "\n")
    return arm.family, json.loads(file.read_text())["flops"] * (steps // 2)


def typed(words: Sequence[str], log: Path) -> None:
    """Types a command of hialign in this process, where all imports are made; what it says goes into ``log``."""
    import torch

    from hialign import cli

    torch.set_num_threads(1)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        print(f"$ hialign {' '.join(words)}", flush=True)
        try:
            code: Any = cli.main(list(words))
        except SystemExit as stop:
            code = stop.code
        except Exception:
            traceback.print_exc()
            raise
    if code:
        raise RuntimeError(f"`hialign {' '.join(words)}` ended with {code}; {log} says why")


def this_machine() -> dict[str, Any]:
    """What ran it, without its name."""
    from hialign.runner.names import provenance

    cpus = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
    made = provenance()
    kept = {key: made[key] for key in ("time", "python", "versions", "commit", "uncommitted_changes")}
    return {"cpu": models[0] if models else platform.machine(), "cores": os.cpu_count(), "base": base_digest(), **kept}


def compare(rows: Sequence[Mapping[str, Any]], flops: Mapping[str, float]) -> dict[str, Any]:
    """All runs; for each arm its means with intervals; what val chooses in each family; the fronts on test."""
    points = []
    for name in dict.fromkeys(_name(row) for row in rows):
        mine = [row for row in rows if _name(row) == name]
        points.append(
            {
                "name": name,
                "family": mine[0]["arm"]["family"],
                "setting": mine[0]["arm"]["setting"],
                "val": {key: mean95([row["val"][key] for row in mine]) for key in mine[0]["val"]},
                "test": {key: mean95([row["test"][key] for row in mine]) for key in mine[0]["test"]},
                "outer_steps": mine[0]["outer_steps"],
                "flops": flops[mine[0]["arm"]["family"]],
                "seconds": mean95([row["seconds"] for row in mine]),
            }
        )
    compared = [point for point in points if point["family"] != REFERENCE.family]
    fronts = {f"{x}/{y}": front({p["name"]: _place(p, x, y) for p in compared}) for x, y in PANELS}
    least = min(rows, key=lambda row: row["test"]["inner"])
    return {
        "runs": list(rows),
        "arms": points,
        "chosen": choose(compared),
        "fronts": fronts,
        "dominated": {f"{x}/{y}": dominance(compared, rows, x, y) for x, y in PANELS},
        "made_by": commits(rows),
        "floor": rows[0]["floor"],
        "best_known": {"loss": least["test"]["inner"], "from": f"{_name(least)}, seed {least['seed']}"},
        "budget_above": min((row["val"]["inner"] for row in rows if _is_reference(row)), default=None),
    }


def commits(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many runs each commit took part in; ``unknown`` for runs that do not say."""
    found: Counter[str] = Counter()
    for row in rows:
        for made in row.get("made_by") or ({"commit": None, "uncommitted_changes": False},):
            name = made["commit"][:10] if made["commit"] else "unknown"
            found[name + (" with uncommitted changes" if made["uncommitted_changes"] else "")] += 1
    return dict(found)


def choose(points: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """In each family the setting that makes up least on val_counterfactual, the task loss on val deciding ties."""
    chosen = {}
    for family in dict.fromkeys(point["family"] for point in points):
        mine = [point for point in points if point["family"] == family]
        best = min(mine, key=lambda point: (point["val"]["chair"]["mean"], point["val"]["task"]["mean"]))
        chosen[family] = best["name"]
    return chosen


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether ``one`` is nowhere worse and somewhere better."""
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def front(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other one beats."""
    return [name for name, place in places.items() if not any(beats(other, place) for other in places.values())]


def dominance(
    points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], x: str, y: str
) -> list[dict[str, Any]]:
    """Each arm that a joint one beats or that beats a joint one, by means; and in how many of the seeds as well."""
    found = []
    joint = [point for point in points if point["family"] == "joint"]
    for point in (point for point in points if point["family"] != "joint"):
        for sum_ in joint:
            for better, worse in ((point, sum_), (sum_, point)):
                if beats(_place(better, x, y), _place(worse, x, y)):
                    places = [_places(rows, one["name"], x, y) for one in (better, worse)]
                    seeds = sum(beats(places[0][seed], places[1][seed]) for seed in places[0])
                    found.append(
                        {"better": better["name"], "worse": worse["name"], "seeds": seeds, "of": len(places[0])}
                    )
    return found


def _place(point: Mapping[str, Any], x: str, y: str) -> tuple[float, float]:
    return point["test"][x]["mean"], point["test"][y]["mean"]


def _places(rows: Sequence[Mapping[str, Any]], name: str, x: str, y: str) -> dict[int, tuple[float, float]]:
    return {row["seed"]: (row["test"][x], row["test"][y]) for row in rows if _name(row) == name}


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['arm']['family']} {row['arm']['setting']}"


def _is_reference(row: Mapping[str, Any]) -> bool:
    return bool(row["arm"]["family"] == REFERENCE.family)


def text(result: Mapping[str, Any]) -> str:
    """The comparison as markdown, every sentence of it made from the numbers."""
    points = {point["name"]: point for point in result["arms"]}
    settings, machine = result["settings"], result["machine"]
    chosen = set(result["chosen"].values())
    seeds = len(settings["seeds"])
    batches = points[next(iter(chosen))]["outer_steps"]
    best, floor = result["best_known"], result["floor"]
    lines = [
        "# Two levels against their weighted sum, on Tabletop",
        "",
        f"Made by `{result['command']}`; all numbers are in `pareto.json`.",
        "",
        "![Held-out contrastive gap against task loss and against made-up mentions](pareto.png)",
        "",
        f"Every arm trains the same parts on {batches} outer batches of 32, both stages together; {_seeds(seeds)}. "
        "The gap is the inner loss above its proved floor, summed over both pairs, and the task loss that of the next "
        "tokens, both on 320 scenes of test. CHAIR-i is the share of made-up mentions among greedy captions of "
        f"{settings['scenes']} scenes of counterfactual, recall what those captions find of what is there. Of each "
        "family * is the setting with the least CHAIR-i on val_counterfactual.",
        "",
        _table(result),
        "",
        "FLOPs are those of products, counted over steps of either stage and multiplied. Seconds are those of the "
        f"training steps alone, {settings['jobs']} runs at a time, one thread each, on {settings['device']}: "
        f"{machine['cores']} cores, {machine['cpu']}.",
        "",
        f"The best inner loss known on test is {best['loss']:.4f}, of {best['from']}; the proved floor is {floor:.2g}. "
        "An arm's distance to the best alignment lies between its gap and that less "
        f"{best['loss'] - floor:.4f}.",
    ]
    if result["budget_above"] is not None:
        lines += [
            "",
            f"The reference follows the inner loss only (joint with the weight {INNER_ONLY}). From the least that it "
            f"reached on val, {result['budget_above']:.4f}, and not from the floor, the budgets of {BUDGETED} are "
            "counted, and held against a running mean of the loss on training batches.",
        ]
    if len(result["made_by"]) > 1:
        listed = "; ".join(f"{name}: {runs}" for name, runs in result["made_by"].items())
        lines += [
            "",
            "**Not all runs were made by the same code**, so what differs between arms may be no solver's doing. Runs "
            f"by commit: {listed}. For runs of one commit use a new --out.",
        ]
    for x, y in PANELS:
        lines += ["", *_verdict(result, x, y)]
    return "\n".join(lines) + "\n"


def _seeds(number: int) -> str:
    return "means of one seed, so without an interval" if number == 1 else f"means of {number} seeds, +- 95 % of them"


def _table(result: Mapping[str, Any]) -> str:
    shown = ("gap", "task", "chair", "recall", "residual")
    heads = [MEASURES[key][0] for key in shown]
    lines = [
        "| | " + " | ".join(heads) + " | on a front | TFLOPs | seconds |",
        "|---" + "|---:" * 5 + "|---|---:|---:|",
    ]
    for point in result["arms"]:
        star = " *" if point["name"] in result["chosen"].values() else ""
        fronts = [MEASURES[name.split("/")[1]][0] for name, names in result["fronts"].items() if point["name"] in names]
        cells = [with_half(point["test"][key]) for key in shown]
        cells += ["; ".join(fronts), f"{point['flops'] / 1e12:.3g}", f"{point['seconds']['mean']:.0f}"]
        lines.append(f"| {point['name']}{star} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_half(value: Mapping[str, Any], digits: int = 4) -> str:
    """A mean of ``mean95`` with half of its interval, as a table shows it."""
    return f"{value['mean']:.{digits}f}" + (f" +- {value['half']:.{digits}f}" if value["half"] is not None else "")


def _verdict(result: Mapping[str, Any], x: str, y: str) -> list[str]:
    """Who is on the front, joint or not, and which arms beat which."""
    names = {"task": "task loss", "chair": "CHAIR-i on counterfactual"}
    families = {point["name"]: point["family"] for point in result["arms"]}
    on = result["fronts"][f"{x}/{y}"]
    joint = [name for name in on if families[name] == "joint"]
    others = [name for name in on if families[name] != "joint"]
    pairs = result["dominated"][f"{x}/{y}"]
    against = [pair for pair in pairs if families[pair["better"]] == "joint"]
    lines = [f"## The front of gap and {names[y]}", ""]
    lines += [
        f"On it by their means: joint: {', '.join(joint) or 'no setting'}; others: {', '.join(others) or 'none'}."
    ]
    for said, some in (("Joint beats on both axes", against), ("Another arm beats joint on both axes", None)):
        listed = some if some is not None else [pair for pair in pairs if pair not in against]
        lines += ["", f"{said} (in how many of the seeds as well):" if listed else f"{said}: nothing."]
        lines += [f"- {p['better']} beats {p['worse']}: {p['seeds']} of {p['of']}" for p in listed]
    return lines


def draw(result: Mapping[str, Any], file: Path) -> None:
    """A panel a pair of axes: joint as a line over its weights, chosen settings filled, the front as a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), dpi=110, layout="constrained")
    families = list(result["chosen"])
    for axes, (x, y) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for number, family in enumerate(families):
            _family(axes, result, family, COLOURS[number], x, y)
        reference = next((p for p in result["arms"] if p["family"] == REFERENCE.family), None)
        if reference:
            axes.plot(*_place(reference, x, y), "x", color="#555555", label="reference: inner loss only")
        on = sorted(_place(p, x, y) for p in result["arms"] if p["name"] in result["fronts"][f"{x}/{y}"])
        axes.step(*zip(*on, strict=True), where="post", color="#999999", lw=1, ls=":", label="front")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("held-out contrastive gap, L - floor (nats), test")
        axes.set_ylabel({"task": "held-out task loss (nats a token), test", "chair": "CHAIR-i, counterfactual"}[y])
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file)


def _family(axes: Any, result: Mapping[str, Any], family: str, colour: str, x: str, y: str) -> None:
    points = [point for point in result["arms"] if point["family"] == family]
    if family == "joint":
        axes.plot(*zip(*(_place(point, x, y) for point in points), strict=True), color=colour, lw=1)
    for point in points:
        chosen = point["name"] in result["chosen"].values()
        axes.errorbar(
            *_place(point, x, y),
            xerr=point["test"][x]["half"],
            yerr=point["test"][y]["half"],
            fmt="o",
            color=colour,
            mfc=colour if chosen else "white",
            elinewidth=0.6,
            label=family if chosen else None,
        )
        axes.annotate(
            point["setting"].split()[-1],
            _place(point, x, y),
            (4, 4),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )


if __name__ == "__main__":
    main()
