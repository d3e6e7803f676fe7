"""Gradients of either level: batches, accumulation, precision, ranks and clipping, hidden from the solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hialign import distributed
from hialign.batch import Batch
from hialign.objectives import Result
from hialign.solvers import Gradients, Group, Level, aligned_rate, assign_groups, axpy
from hialign.training import sharded
from hialign.training.cached import Cacheable, cached_backward
from hialign.training.stage import LevelRun, Remembering, Stage

PRECISIONS = ("fp32", "bf16")
RandomState = tuple[Tensor, list[Tensor]]  # of the processor, and of the other device where there is one


class NonFinite(ValueError):
    """A loss or a gradient became infinite or not a number."""


class TrainingOracle:
    """The ``Oracle`` of a stage on a model; one ``step`` of a solver may ask it for any number of gradients.

    Over several processes every rank has its own rows of each batch, and holds the whole model or, under FSDP2's
    ``fully_shard``, a part of it. Losses and weights are added over micro-batches and ranks and divided once, so a step
    does not depend on how its batch was split.

    ``outer_read`` names the parameters of the group ``outer`` that the inner loss reads all the same.
    """

    def __init__(
        self,
        root: nn.Module,
        levels: Mapping[Level, LevelRun],
        optimizer: torch.optim.Optimizer,
        groups: Mapping[str, Group],
        *,
        outer_read: Collection[str] = (),
        total_steps: int,
        schedule: Callable[[float], float],
        clip: float,
        precision: str,
        device: torch.device,
    ) -> None:
        self.root, self.levels, self.optimizer, self.groups = root, levels, optimizer, groups
        self.outer_read = frozenset(outer_read)
        self.inner_depends_on_outer = bool(outer_read)
        self.step, self.total_steps = 0, total_steps
        self.floor: float | None = None
        self.losses: dict[Level, float] = {}
        self.batches: dict[tuple[Level, str], list[Batch]] = {}  # each stream's last
        self.draws: dict[tuple[Level, str], RandomState] = {}  # where the random numbers stood as it came
        self.schedule, self.clip, self.precision, self.device = schedule, clip, precision, device
        self.parameters = {name: p for name, p in root.named_parameters() if name in groups}
        self.numbers: dict[str, list[float]] = {}
        self.records: list[str] = []  # of the level's batch at hand, for errors
        sharded.add_up_gradients(root)

    @property
    def rate(self) -> float:
        """The largest learning rate of a shared parameter at this step; of an inner one, where none is shared."""
        rates = ((group["params"], group["base_lr"]) for group in self.optimizer.param_groups)
        largest = aligned_rate(self.parameters, self.groups, rates)
        return float(largest * self.schedule((self.step + 0.5) / self.total_steps))

    def grads(self, level: Level, *, at: Gradients | None = None, again: bool = False) -> Gradients:
        """The level's gradient over its next batch, or once more its last, its streams' means added up.

        What is logged is of the present parameters alone: with ``at`` nothing is. ``again`` is the same function of the
        parameters as before: dropout draws what it drew, and the random state stays where it is.
        """
        if at is None:
            floor, self.floor = self.floor, None
            gradient = self._grads(level, again=again)
            self.floor = self.floor if level == "inner" else floor
            return gradient
        kept = self.numbers, self.losses, self.floor
        self.numbers, self.losses = {}, {}
        try:
            with sharded.held_at(self.parameters, at):
                return self._grads(level, again=again)
        finally:
            self.numbers, self.losses, self.floor = kept

    def _grads(self, level: Level, *, again: bool) -> Gradients:
        total: Gradients = {}
        loss = 0.0
        self.records = []
        for name in self.levels[level].streams:
            with self._batches(level, name, again=again) as batches:
                mean, gradient = self._stream_grads(level, batches)
            total = axpy(1.0, gradient, total) if total else gradient
            loss += mean
        norm = sharded.norm(total.values())
        if not math.isfinite(norm):
            records = [record for rank in distributed.all_objects(self.records) for record in rank]
            raise NonFinite(
                f"the {level} loss's gradient is not finite in step {self.step + 1}; records of its batch: "
                f"{', '.join(records[:64])}"
            )
        self.losses[level] = loss
        self.log(**{f"{level}_loss": loss, f"{level}_grad_norm": norm})
        return total

    @contextmanager
    def _batches(self, level: Level, name: str, *, again: bool) -> Iterator[list[Batch]]:
        """The stream's next micro-batches; or its last ones, while random numbers come as they did then."""
        key = (level, name)
        if not again:
            if isinstance(objective := self.levels[level].objective, Remembering):
                objective.remember()
            self.batches[key], self.draws[key] = self.levels[level].streams[name].next(), _random_state(self.device)
            yield self.batches[key]
            return
        if key not in self.batches:
            raise ValueError(f"{level} level: got again=True before any gradient; wanted one without it first")
        with torch.random.fork_rng(devices=_random_devices(self.device)):
            _set_random_state(self.draws[key], self.device)
            yield self.batches[key]

    def _stream_grads(self, level: Level, batches: list[Batch]) -> tuple[float, Gradients]:
        """The mean loss and its gradient over the micro-batches of all ranks."""
        objective = self.levels[level].objective
        if len(batches) > 1 and objective.whole_batch:
            if not isinstance(objective, Cacheable):
                raise ValueError(
                    f"{level} level: got {len(batches)} micro-batches, and {type(objective).__name__} sees its rows as "
                    "each other's negatives and has no embed and loss to be split by; give it the batch as one"
                )
            results = [cached_backward(objective, batches, self._read, self.device)]
        else:
            results = []
            for batch in batches:
                results.append(self._read(objective, batch))
                results[-1].loss_sum.backward()
        self.records += [record for batch in batches for record in batch.records]
        mean, weight = self._join(level, batches, results)
        gradient = self._take(level)
        torch._foreach_div_(list(gradient.values()), weight)
        return mean, gradient

    def _read(self, reader: Callable[[Any, Batch], Any], batch: Batch) -> Any:
        return read(self.root, reader, batch, self.precision, self.device)

    def loss(self, level: Level) -> float:
        """The level's loss at the present parameters, as last seen."""
        return self.losses[level]

    def values(self, *groups: Group) -> Gradients:
        """Copies of these groups' parameters."""
        return {name: p.detach().clone() for name, p in self.parameters.items() if self.groups[name] in groups}

    def dots(self, *pairs: tuple[Gradients, Gradients]) -> list[float]:
        """Inner products, all with one transfer; what every rank holds whole counts once."""
        return sharded.dots(pairs, self.device)

    def move(self, direction: Gradients) -> None:
        """Adds ``direction`` to the parameters, past the optimiser."""
        if not math.isfinite(sharded.norm(direction.values())):
            raise NonFinite(f"the solver's own step is not finite in step {self.step + 1}")
        with torch.no_grad():
            for name, tensor in direction.items():
                self.parameters[name].add_(tensor)

    def _join(self, level: Level, batches: list[Batch], results: list[Result]) -> tuple[float, float]:
        """The mean loss and the total weight over micro-batches and ranks; logs the objective's numbers."""
        names = sorted(results[0].numbers)
        rows = [_row(result, names) for result in results]
        loss_sum, weight, *numbers = distributed.sum_(torch.stack(rows).sum(dim=0)).tolist()
        if not math.isfinite(loss_sum):
            self._complain(level, batches, results)
        if weight == 0:
            raise ValueError(f"{level} level: no row of this step's batch has anything to predict; check the data")
        means = {name: value / weight for name, value in zip(names, numbers, strict=True)}
        if "floor" in means:
            self.floor = means["floor"] + (self.floor or 0.0)  # the level's loss is the sum over its streams
        self.log(**{f"{level}_{name}": value for name, value in means.items()})
        return loss_sum / weight, weight

    def _complain(self, level: Level, batches: list[Batch], results: list[Result]) -> None:
        whole = len(results) < len(batches)  # one loss of all of them
        bad = (
            [batch.records for batch in batches]
            if whole
            else [b.records for b, r in zip(batches, results, strict=True) if not torch.isfinite(r.loss_sum).item()]
        )
        records = [record for rank in distributed.all_objects(bad) for names in rank for record in names]
        raise NonFinite(
            f"{level} loss is not finite in step {self.step + 1}; records of its batch: {', '.join(records[:64])}"
        )

    def _take(self, level: Level) -> Gradients:
        """The accumulated gradient of what the level reaches, moved out and added up over the ranks.

        A parameter that this batch did not reach brings zeros: another rank's batch may have, and all ranks must
        bring the same list. Shards were added up by the backward pass itself.
        """
        also = self.outer_read if level == "inner" else ()
        mine = {n: p for n, p in self.parameters.items() if self.groups[n] in (level, "shared") or n in also}
        strangers = [name for name, p in self.parameters.items() if p.grad is not None and name not in mine]
        if strangers:
            raise ValueError(
                f"{level} level: this batch reaches {', '.join(strangers[:4])}, which the stage's first batch did not, "
                "so that they are in no group of this level; mix kinds of records within a batch, or freeze the part"
            )
        moved = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in mine.items()}
        for parameter in mine.values():
            parameter.grad = None
        local = {name: g for name, g in moved.items() if not sharded.is_distributed(g)}
        if distributed.active() and local:
            flat = distributed.sum_(torch.cat([g.reshape(-1) for g in local.values()]))
            parts = flat.split([g.numel() for g in local.values()])
            moved |= {n: part.view_as(g) for (n, g), part in zip(local.items(), parts, strict=True)}
        return moved

    def apply(self, direction: Gradients, *, progress: float | None = None, scale: float = 1.0) -> None:
        """Clips, then makes one optimiser step at ``scale`` times the schedule's learning rate."""
        if not direction:
            raise ValueError(
                "the solver's step moves no parameter: every one that trains is shared, and the solver leaves those; "
                "train a part that only the outer loss reaches"
            )
        factor = scale * self.schedule((self.step + 0.5) / self.total_steps if progress is None else progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._clip(direction)
        for name, gradient in direction.items():
            self.parameters[name].grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.log(lr_factor=factor)

    def _clip(self, direction: Gradients) -> None:
        """Scales what the inner level reaches, and the rest, each to a norm of at most ``clip``."""
        for label, belongs in (("aligned", ("inner", "shared")), ("outer", ("outer",))):
            tensors = [g for name, g in direction.items() if self.groups[name] in belongs]
            if not tensors:
                continue
            norm = sharded.norm(tensors)
            if not math.isfinite(norm):
                raise NonFinite(f"the gradient of the {label} parameters is not finite in step {self.step + 1}")
            factor = self.clip / norm if self.clip and norm > self.clip else 1.0
            if factor < 1:
                torch._foreach_mul_(tensors, factor)
            self.log(**{f"{label}_update_norm": norm, f"{label}_clip_factor": factor})

    def group_of(self, name: str) -> Group:
        """The group that the probe found for the parameter."""
        return self.groups[name]

    def forget(self, group: Group) -> None:
        """Drops a group's moments."""
        for name, parameter in self.parameters.items():
            if self.groups[name] == group:
                self.optimizer.state.pop(parameter, None)

    def log(self, **numbers: float) -> None:
        """Collects numbers of this step; what comes more than once is averaged."""
        for name, value in numbers.items():
            self.numbers.setdefault(name, []).append(value)

    def take_numbers(self) -> dict[str, float]:
        """This step's numbers; the next step begins with none."""
        row = {name: sum(values) / len(values) for name, values in self.numbers.items()}
        self.numbers = {}
        return row


def read(
    root: nn.Module, reader: Callable[[Any, Batch], Any], batch: Batch, precision: str, device: torch.device
) -> Any:
    """What ``reader``, an objective for one, makes of the model and a micro-batch, under ``precision``."""
    with autocast(precision, device):
        return root(reader, batch.to(device))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context that a forward pass runs in."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, wanted one of {', '.join(PRECISIONS)}")
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def probe(
    root: nn.Module, stage: Stage, precision: str, device: torch.device
) -> tuple[dict[str, Group], frozenset[str]]:
    """Each trainable parameter's group, found by one backward pass of each level on its next batch; and the ``outer``
    ones that the inner loss reads.

    A parameter belongs to a level if a graph reaches it, be its gradient zero or not. Neither weights, random state nor
    data positions change. Parameters that no level reaches have no group.
    """
    trainable = {name: p for name, p in root.named_parameters() if p.requires_grad}
    reached = {level: _reached(root, run, trainable, precision, device) for level, run in stage.levels.items()}
    try:
        groups = assign_groups(trainable, reached, stage.part_of, outer_parts=stage.inner_depends_on_outer)
    except ValueError as error:
        key = "" if str(error).startswith("inner_depends_on_outer:") else "train: "
        raise ValueError(f"stages.{stage.name}.{key}{error}") from error
    return groups, frozenset(name for name in reached.get("inner", ()) if groups[name] == "outer")


def _reached(
    root: nn.Module, level: LevelRun, trainable: Mapping[str, Tensor], precision: str, device: torch.device
) -> set[str]:
    with torch.random.fork_rng(devices=_random_devices(device)):
        for stream in level.streams.values():
            result: Result = read(root, level.objective, stream.peek(), precision, device)
            if result.loss_sum.requires_grad:
                result.loss_sum.backward()
    flags = torch.tensor([p.grad is not None for p in trainable.values()], dtype=torch.int32, device=device)
    for parameter in trainable.values():
        parameter.grad = None
    hit = distributed.max_(flags).tolist()
    return {name for name, was_hit in zip(trainable, hit, strict=True) if was_hit}


def _row(result: Result, names: list[str]) -> Tensor:
    """What is added up over micro-batches and ranks: the loss, its weight, and each number times the weight."""
    weight = result.weight.double()
    numbers = [weight * torch.as_tensor(result.numbers[name]).to(weight) for name in names]
    return torch.stack([result.loss_sum.detach().double(), weight, *numbers])


def _random_devices(device: torch.device) -> list[torch.device]:
    """Those besides the processor that draw random numbers of their own."""
    return [device] if device.type == "cuda" else []


def _random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in _random_devices(device)]


def _set_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    for own, d in zip(state[1], _random_devices(device), strict=True):
        torch.cuda.set_rng_state(own, d)
