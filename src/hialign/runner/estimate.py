"""What a stage of a composed config would take: operations, memory on each GPU, the split that fits, time, caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import DictConfig

from hialign.models import Lora, Root, part_of
from hialign.objectives import Contrastive, Objective
from hialign.runner.build import build
from hialign.runner.shapes import passes_of, reached_by, shapes_of
from hialign.solvers import Group, Level, Single, Solver, assign_groups
from hialign.training.cost import (
    Asked,
    Flops,
    Lengths,
    Pass,
    Shapes,
    added,
    asked,
    cache_pays,
    feature_bytes,
    flops,
    reference_bytes,
    scaled,
    similarity,
)
from hialign.training.memory import (
    GIB,
    Activations,
    Bytes,
    Items,
    Layout,
    Parameters,
    Reading,
    activations,
    fullest,
    moments,
)

RESERVED = 2 * GIB  # for the driver's context and the workspaces of its libraries
LOST = 0.05  # of the rest, between the allocator's blocks


@dataclass(frozen=True)
class Hardware:
    """The GPUs, and how much of them training makes use of."""

    gpus: int = 1
    gpu_memory: float = 80.0  # GiB of each
    mfu: float = 0.4  # share of the peak that a step's operations get
    peak_flops: float = 989e12  # dense bfloat16, each: an H100 SXM by its data sheet
    sharded: bool = False

    @property
    def usable(self) -> float:
        """Bytes of a GPU that tensors may take."""
        return (self.gpu_memory * GIB - RESERVED) * (1 - LOST)


@dataclass(frozen=True)
class StreamPlan:
    """A stream of a level: its objective, what its rows are like, and how many there are."""

    level: Level
    name: str
    objective: Objective
    tokens: Lengths  # of a row, on average
    longest: Lengths
    records: float | None
    source: str  # where the number of records comes from


@dataclass(frozen=True)
class StagePlan:
    """A stage in numbers; what it takes follows from them."""

    name: str
    streams: tuple[StreamPlan, ...]
    solver: Solver
    asks: Asked
    shapes: Shapes
    held: Parameters
    frozen: float  # parameters of the Llava that no stage trains: `dtype` is theirs
    size: Bytes
    hardware: Hardware
    rows: Mapping[Level, int]  # of a step, over all GPUs
    micro: Mapping[Level, int]  # of one GPU at a time, as configured
    steps: int | None
    epochs: float
    adapters_off: bool
    diagnosed: int  # steps between measurements of a step; 0: none
    trained: Mapping[str, int] = field(default_factory=dict)  # parameters that train, by part

    def share(self, level: Level) -> int:
        """Rows of a step on one GPU."""
        return self.rows[level] // self.hardware.gpus

    def of(self, level: Level) -> tuple[StreamPlan, ...]:
        """The level's streams."""
        return tuple(stream for stream in self.streams if stream.level == level)

    def levels(self) -> tuple[Level, ...]:
        """Those that the stage has."""
        return tuple(self.rows)

    def passes(self, stream: StreamPlan, rows: int, *, longest: bool = False) -> list[Pass]:
        """What the stream's objective runs for so many rows."""
        tokens = stream.longest if longest else stream.tokens
        return passes_of(stream.objective, stream.name, self.shapes, rows, tokens, adapters_off=self.adapters_off)


# --- operations and time ----------------------------------------------------------------------------------------------


def gradient_flops(plan: StagePlan, level: Level) -> dict[str, dict[str, Flops]]:
    """Operations of one gradient of the level over all GPUs, by pass and part."""
    found: dict[str, dict[str, Flops]] = {}
    for stream in plan.of(level):
        rows = plan.rows[level]
        for run in plan.passes(stream, rows):
            found[run.name] = added([found.get(run.name, {}), flops(plan.shapes, run)])
        if not isinstance(stream.objective, Contrastive):
            continue
        if plan.micro[level] < plan.share(level):  # every micro-batch is embedded once more, without a graph
            ahead = [flops(plan.shapes, replace(run, grad=False)) for run in plan.passes(stream, rows)]
            found["embedding ahead"] = added(ahead)
        wrong = any(run.name == "hallucinated captions" for run in plan.passes(stream, 1))
        each = similarity(plan.share(level), rows, plan.shapes.embed, len(stream.objective.pairs), hallucinated=wrong)
        found["similarities"] = {"loss": each.times(plan.hardware.gpus)}
    return found


def step_flops(plan: StagePlan) -> dict[str, dict[str, Flops]]:
    """Operations of an optimiser step over all GPUs, by level and pass, then by part; the diagnosis included."""
    found = {}
    for level in plan.levels():
        times = plan.asks.outer if level == "outer" else plan.asks.inner
        if level == "inner" and plan.diagnosed:
            times += 5 / plan.diagnosed
        for name, parts in gradient_flops(plan, level).items():
            found[f"{level}: {name}" if len(plan.rows) > 1 else name] = scaled(parts, times)
    return found


def total_flops(costs: Mapping[str, Mapping[str, Flops]]) -> Flops:
    """Of all passes and parts."""
    return sum((cost for parts in costs.values() for cost in parts.values()), Flops())


def seconds(plan: StagePlan, operations: float) -> float:
    """That so many operations take on all GPUs at the stated share of their peak."""
    machine = plan.hardware
    return operations / (machine.gpus * machine.peak_flops * machine.mfu)


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(plan: StagePlan, micro: Mapping[Level, int]) -> dict[str, Items]:
    """Bytes on each GPU by moment and item, with so many rows of each level at a time."""
    levels = {}
    for level in plan.levels():
        each = [_left(plan, stream, micro[level]) for stream in plan.of(level)]
        largest = max(each, key=lambda one: one.saved + max(one.layer, one.logits))
        count = -(-plan.share(level) // micro[level])
        whole = any(stream.objective.whole_batch for stream in plan.of(level))
        levels[str(level)] = Reading(largest, 1 if whole and count == 1 else count, len(each))
    layout = Layout(plan.hardware.gpus, plan.hardware.sharded)
    watched = bool(plan.diagnosed) and "inner" in plan.rows
    return moments(plan.held, levels, plan.asks, layout, plan.size, diagnosed=watched)


def _left(plan: StagePlan, stream: StreamPlan, rows: int) -> Activations:
    runs = plan.passes(stream, rows, longest=True)
    return sum((activations(plan.shapes, run, plan.size) for run in runs), Activations())


def splits(plan: StagePlan) -> dict[Level, int | None]:
    """For each level the most rows at a time that fit and divide its share; None where not even one does."""
    found: dict[Level, int | None] = {}
    for level in plan.levels():
        fitting = [size for size in _divisors(plan.share(level)) if _fits(plan, level, size)]
        found[level] = max(fitting, default=None)
    return found


def _fits(plan: StagePlan, level: Level, size: int) -> bool:
    return need(plan, level, size)[1] <= plan.hardware.usable


def need(plan: StagePlan, level: Level, size: int) -> tuple[str, float]:
    """The fullest moment with ``size`` of the level's rows at a time, and its bytes: the level's or the optimiser's."""
    least: dict[Level, int] = {other: 1 for other in plan.levels()}
    found = memory(plan, least | {level: size})
    mine = {moment: items for moment, items in found.items() if moment.startswith(level) or "optimizer" in moment}
    moment, items = fullest(mine)
    return moment, sum(items.values())


def taken(tensors: float) -> float:
    """Bytes of a GPU that so many bytes of tensors take, the reserve included."""
    return tensors / (1 - LOST) + RESERVED


def remedies(plan: StagePlan) -> list[str]:
    """What would make the smallest split fit: each change that does alone, else all of them together, else none."""
    ways = _ways(plan)
    alone = [text for text, changed in ways if _least(changed) <= changed.hardware.usable]
    if alone:
        return alone
    together, texts = plan, []
    for text, _ in ways:
        together = dict(_ways(together)).get(text, together)
        texts.append(text)
        if _least(together) <= together.hardware.usable:
            return [" with ".join(texts)]
    return []


def least_memory(plan: StagePlan) -> float:
    """Bytes of a GPU that the smallest split takes, the reserve included."""
    return taken(_least(plan))


def _least(plan: StagePlan) -> float:
    return sum(fullest(memory(plan, dict.fromkeys(plan.levels(), 1)))[1].values())


def _ways(plan: StagePlan) -> list[tuple[str, StagePlan]]:
    machine = plan.hardware
    ways: list[tuple[str, StagePlan]] = []
    if not plan.shapes.llm.checkpointed:
        stacks = {name: replace(getattr(plan.shapes, name), checkpointed=True) for name in ("llm", "vision")}
        shapes = replace(plan.shapes, **stacks)
        ways.append(("trainer.gradient_checkpointing=true", replace(plan, shapes=shapes)))
    if plan.frozen and plan.size.llm == plan.size.vision == 4 and plan.shapes.llm.mode != "full":
        held = replace(plan.held, weights=plan.held.weights - 2.0 * plan.frozen)
        half = replace(plan, held=held, size=Bytes(compute=2, llm=2, vision=plan.size.vision))
        ways.append(("model.dtype=bf16 trainer.precision=bf16", half))
    if machine.gpus > 1 and not machine.sharded:
        ways.append(("sharding=fsdp", replace(plan, hardware=replace(machine, sharded=True))))
    for gpus in (2**power for power in range(1, 11)):
        even = all(rows % gpus == 0 for rows in plan.rows.values())
        more = replace(plan, hardware=replace(machine, gpus=gpus, sharded=True))
        if gpus > machine.gpus and even and _least(more) <= machine.usable:
            return [*ways, (f"gpus={gpus} sharding=fsdp", more)]
    return ways


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


# --- caches -----------------------------------------------------------------------------------------------------------


def caches(plan: StagePlan, before: Sequence[StagePlan]) -> list[str]:
    """Of each cache that the stage could have, whether it pays; empty where it could have none.

    Outer levels have some. ``before`` are the run's earlier stages: the reference is the model that the first one
    starts from, and a tower that one of them trains says something else in each.
    """
    found = []
    epochs, gpus, each = plan.epochs, plan.hardware.gpus, plan.size.compute
    tower_rests = not any(one.shapes.vision.trains for one in (*before, plan))
    for stream in plan.of("outer"):
        if stream.records is None:
            continue
        rows = round(stream.records)
        per_row = plan.passes(stream, 1)
        kept = [run for run in per_row if "reference" in run.name and "corrupted" not in run.name]
        if kept and not before:
            saved = sum(cost.total for run in kept for cost in flops(plan.shapes, run).values()) * rows
            names = [name for read in getattr(stream.objective, "reference_reads", {}).values() for name in read]
            width = plan.shapes.llm.width if any(name.endswith("_states") for name in names) else 0
            answers = 1 if any(name.startswith("text_") for name in names) else 2
            size = reference_bytes(answers * rows, stream.tokens.answer, width, each)
            pays = cache_pays(size, seconds(plan, saved), epochs, gpus=gpus)
            found.append(f"reference states of {stream.name}: {_said(pays)}")
        images = stream.tokens.images if any(run.images for run in per_row) else 0
        if images and tower_rests:
            towers = [flops(plan.shapes, run).get("vision", Flops()) for run in per_row if "corrupted" not in run.name]
            drawn = epochs if any("corrupted" in run.name for run in per_row) else 0  # other ones in each epoch
            size = feature_bytes(
                round(rows * images * (1 + drawn)), plan.shapes.image_tokens, plan.shapes.vision.width, each
            )
            saved = sum(tower.total for tower in towers) * rows
            pays = cache_pays(size, seconds(plan, saved), epochs, gpus=gpus)
            found.append(f"features of {stream.name}: {_said(pays)}")
    return found


def _said(pays: tuple[bool, str]) -> str:
    return f"{'pays' if pays[0] else 'does not pay'}: {pays[1]}"


# --- from the config --------------------------------------------------------------------------------------------------


def plan_stage(
    config: DictConfig,
    name: str,
    root: Root,
    streams: Sequence[StreamPlan],
    trained_anywhere: set[str],
    hardware: Hardware,
) -> StagePlan:
    """The stage called ``name`` on ``root``, in which its parts are already set to train."""
    node, path = config.stages[name], f"stages.{name}"
    modes = {str(part): str(mode) for part, mode in node.train.items()}
    checkpointed = bool(config.trainer.gradient_checkpointing)
    shapes = shapes_of(root, modes, Lora(**config.lora), checkpointed=checkpointed)
    groups = _groups(node, root, shapes, streams, path)
    solver, rows = _solver(config, name), _rows(node)
    first = next(stream for stream in streams if stream.level == "outer")
    steps, epochs = _length(node, first.records)
    compares = any(getattr(stream.objective, "needs_reference", False) for stream in streams)
    named = dict(root.named_parameters())
    return StagePlan(
        name=name,
        streams=tuple(streams),
        solver=solver,
        asks=asked(solver, depends=bool(node.inner_depends_on_outer)),
        shapes=shapes,
        held=parameters_of(root, groups, shapes, config.trainer.precision, compares=compares),
        frozen=sum(p.numel() for n, p in named.items() if n.startswith("llava.") and n not in trained_anywhere),
        size=bytes_of(root, config.trainer.precision),
        hardware=hardware,
        rows=rows,
        micro={level: _micro(node, level, count, hardware.gpus, path) for level, count in rows.items()},
        steps=steps,
        epochs=epochs,
        adapters_off=True,  # a run's adapters have learnt nothing when its reference is taken
        diagnosed=config.trainer.diagnose_every if node.inner is not None else 0,
        trained={part: sum(named[n].numel() for n in groups if part_of(n) == part) for part in map(str, modes)},
    )


def _groups(node: DictConfig, root: Root, shapes: Shapes, streams: Sequence[StreamPlan], path: str) -> dict[str, Group]:
    """The group of every parameter that trains; a run finds it by its first batches."""
    objectives: dict[Level, Objective] = {stream.level: stream.objective for stream in streams}
    outer_parts = {str(part) for part in node.inner_depends_on_outer}
    names = [name for name, parameter in root.named_parameters() if parameter.requires_grad]
    try:
        groups = assign_groups(names, reached_by(objectives, root, shapes), part_of, outer_parts=outer_parts)
    except ValueError as error:
        raise ValueError(f"{path}.train: {error}") from error
    if not groups:
        raise ValueError(f"{path}.train: no loss reaches a parameter that trains; let more parts train")
    return groups


def _rows(node: DictConfig) -> dict[Level, int]:
    rows: dict[Level, int] = {"outer": node.batch_size}
    return rows if node.inner is None else {**rows, "inner": node.inner_batch_size or node.batch_size}


def _solver(config: DictConfig, stage: str) -> Solver:
    node = config.stages[stage]
    if node.inner is None:
        return Single()
    own, path = (config.solver, "solver") if node.solver is None else (node.solver, f"stages.{stage}.solver")
    solver: Solver = build(own, path, config.allow)
    return solver


def _length(node: DictConfig, records: float | None) -> tuple[int | None, float]:
    """Steps, and epochs of the first stream; without a number of records the steps are not known."""
    if node.steps is not None:
        return int(node.steps), node.steps * node.batch_size / records if records else 1.0
    steps = None if records is None else max(1, round(node.epochs * records / node.batch_size))
    return steps, float(node.epochs)


def _micro(node: DictConfig, level: Level, rows: int, gpus: int, path: str) -> int:
    """The configured rows at a time, as ``hialign train`` would have them on so many GPUs."""
    prefix = "inner_" if level == "inner" else ""
    batch, key = f"{prefix}batch_size", f"{prefix}micro_batch_size"
    if rows % gpus:
        below = rows // gpus * gpus
        raise ValueError(
            f"{path}.{batch}: {rows} rows do not divide by gpus={gpus}; use {path}.{batch}="
            f"{f'{below} or ' if below else ''}{below + gpus}, or other gpus="
        )
    size = min(node[key] or rows // gpus, rows // gpus)
    if rows // gpus % size:
        raise ValueError(f"{path}.{key}: {size} does not divide the {rows // gpus} rows of a GPU; use a divisor")
    return int(size)


def bytes_of(root: Root, precision: str) -> Bytes:
    llava: Any = root.llava
    vision = next(llava.model.vision_tower.parameters()).element_size()
    return Bytes(2 if precision == "bf16" else 4, llava.get_input_embeddings().weight.element_size(), vision)


def parameters_of(
    root: Root, groups: Mapping[str, Group], shapes: Shapes, precision: str, *, compares: bool
) -> Parameters:
    named = dict(root.named_parameters())
    tensors = [*named.values(), *root.buffers()]
    counts = dict.fromkeys(("outer", "shared", "inner"), 0)
    for name, group in groups.items():
        counts[group] += named[name].numel()
    copied = [p for name, p in named.items() if p.requires_grad and ".lora_" not in name] if compares else []
    size = 2 if precision == "bf16" else 4
    layers = [name for name in named if ".layers." in name and name.startswith("llava.")]
    in_layers = sum(named[name].numel() for name in layers)
    language = sum(named[name].numel() for name in layers if ".language_model." in name)
    return Parameters(
        weights=float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)),
        reference=4.0 * sum(p.numel() for p in copied),
        outer=counts["outer"],
        shared=counts["shared"],
        inner=counts["inner"],
        largest=max(named[name].numel() for name in groups),
        layer=size * language / shapes.llm.layers,
        root=float(size * (sum(p.numel() for p in named.values()) - in_layers)),
    )
