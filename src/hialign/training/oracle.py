"""Gradients of either level: batches, accumulation, precision, ranks and clipping, hidden from the solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hialign import distributed
from hialign.batch import Batch
from hialign.objectives import Result
from hialign.solvers import Gradients, Group, Level, assign_groups, axpy, local_dot, put
from hialign.training.cached import Cacheable, cached_backward
from hialign.training.stage import LevelRun, Stage, Stream

PRECISIONS = ("fp32", "bf16")


class NonFinite(ValueError):
    """A loss or a gradient became infinite or not a number."""


class TrainingOracle:
    """The ``Oracle`` of a stage on a model; one ``step`` of a solver may ask it for any number of gradients.

    Over several processes every rank holds the whole model and its own rows of each batch. Losses and weights are
    added over micro-batches and ranks and divided once, so a step does not depend on how its batch was split.

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
        self.schedule, self.clip, self.precision, self.device = schedule, clip, precision, device
        self.parameters = {name: p for name, p in root.named_parameters() if name in groups}
        self.numbers: dict[str, list[float]] = {}
        self.records: list[str] = []  # of the level's batch at hand, for errors

    @property
    def rate(self) -> float:
        """The largest learning rate of a shared parameter at this step."""
        shared = {id(p) for name, p in self.parameters.items() if self.groups[name] == "shared"}
        rates = [g["base_lr"] for g in self.optimizer.param_groups if shared & {id(p) for p in g["params"]}]
        return float(max(rates) * self.schedule((self.step + 0.5) / self.total_steps))

    def grads(self, level: Level, *, at: Gradients | None = None, again: bool = False) -> Gradients:
        """The level's gradient over its next batch, or once more its last, its streams' means added up.

        What is logged is of the present parameters alone: with ``at`` nothing is.
        """
        total: Gradients = {}
        loss = 0.0
        self.records = []
        logged, floor = self.numbers, self.floor
        self.numbers, self.floor = ({} if at is not None else logged), None
        with put(self.parameters, at or {}):
            for name, stream in self.levels[level].streams.items():
                mean, gradient = self._stream_grads(level, name, stream, again=again)
                total = axpy(1.0, gradient, total) if total else gradient
                loss += mean
        norm = _norm(total.values())
        if not math.isfinite(norm):
            records = [record for rank in distributed.all_objects(self.records) for record in rank]
            raise NonFinite(
                f"the {level} loss's gradient is not finite in step {self.step + 1}; records of its batch: "
                f"{', '.join(records[:64])}"
            )
        if at is None:
            self.losses[level] = loss
            self.log(**{f"{level}_loss": loss, f"{level}_grad_norm": norm})
        self.numbers = logged
        self.floor = floor if at is not None or level == "outer" else self.floor
        return total

    def _stream_grads(self, level: Level, name: str, stream: Stream, *, again: bool) -> tuple[float, Gradients]:
        batches = self.batches[level, name] if again else stream.next()
        self.batches[level, name] = batches
        objective = self.levels[level].objective
        if len(batches) > 1 and objective.whole_batch:
            assert isinstance(objective, Cacheable), f"{type(objective).__name__} cannot be split"
            results = [cached_backward(objective, batches, self._read, self.device)]
        else:
            results = []
            for batch in batches:
                results.append(evaluate(self.root, self.levels[level], batch, self.precision, self.device))
                results[-1].loss_sum.backward()
        self.records += [record for batch in batches for record in batch.records]
        mean, weight = self._join(level, batches, results)
        gradient = self._take(level)
        torch._foreach_div_(list(gradient.values()), weight)
        return mean, gradient

    def _read(self, reader: Callable[[Any, Batch], Any], batch: Batch) -> Any:
        with autocast(self.precision, self.device):
            return self.root(reader, batch.to(self.device))

    def loss(self, level: Level) -> float:
        """The level's loss at the present parameters, as last seen."""
        return self.losses[level]

    def values(self, *groups: Group) -> Gradients:
        """Copies of these groups' parameters."""
        return {name: p.detach().clone() for name, p in self.parameters.items() if self.groups[name] in groups}

    def dots(self, *pairs: tuple[Gradients, Gradients]) -> list[float]:
        """Inner products, all with one transfer; every rank holds the same whole gradients, so none is added up."""
        return torch.stack([local_dot(x, y).to(self.device) for x, y in pairs]).tolist()

    def move(self, direction: Gradients) -> None:
        """Adds ``direction`` to the parameters, past the optimiser."""
        if not all(torch.isfinite(tensor).all() for tensor in direction.values()):
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
        bring the same list.
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
        if distributed.active():
            flat = distributed.sum_(torch.cat([g.reshape(-1) for g in moved.values()]))
            parts = flat.split([g.numel() for g in moved.values()])
            moved = {n: part.view_as(g) for (n, g), part in zip(moved.items(), parts, strict=True)}
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
            norm = _norm(tensors)
            if not math.isfinite(norm):
                raise NonFinite(f"the gradient of the {label} parameters is not finite in step {self.step + 1}")
            if self.clip and norm > self.clip:
                torch._foreach_mul_(tensors, self.clip / norm)
            self.log(**{f"{label}_update_norm": norm})

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


def evaluate(root: nn.Module, level: LevelRun, batch: Batch, precision: str, device: torch.device) -> Result:
    """The level's objective on one micro-batch, through the root and under ``precision``."""
    with autocast(precision, device):
        result: Result = root(level.objective, batch.to(device))
    return result


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context that a forward pass runs in."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, wanted one of {', '.join(PRECISIONS)}")
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def probe_groups(root: nn.Module, stage: Stage, precision: str, device: torch.device) -> dict[str, Group]:
    """Each trainable parameter's group, found by one backward pass of each level on its next batch.

    A parameter belongs to a level if a graph reaches it, be its gradient zero or not. Neither weights, random state nor
    data positions change. Parameters that no level reaches have no group.
    """
    trainable = {name: p for name, p in root.named_parameters() if p.requires_grad}
    reached = {level: _reached(root, run, trainable, precision, device) for level, run in stage.levels.items()}
    try:
        return assign_groups(trainable, reached, stage.part_of, outer_parts=stage.inner_depends_on_outer)
    except ValueError as error:
        raise ValueError(f"stages.{stage.name}.train: {error}") from error


def _reached(
    root: nn.Module, level: LevelRun, trainable: Mapping[str, Tensor], precision: str, device: torch.device
) -> set[str]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for stream in level.streams.values():
            result = evaluate(root, level, stream.peek(), precision, device)
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


def _norm(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm over all tensors, in float32."""
    listed = [tensor.float() for tensor in tensors]
    return torch.nn.utils.get_total_norm(listed).item() if listed else 0.0
