"""Training, read from top to bottom: stages, steps, checkpoints."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from hialign import distributed
from hialign.solvers import Group, complaints
from hialign.training import checkpoint, diagnostics
from hialign.training.logs import Logs, write_status
from hialign.training.optim import adamw, schedule
from hialign.training.oracle import NonFinite, TrainingOracle, probe
from hialign.training.stage import Stage


class Preempted(Exception):
    """A signal asked the run to stop; what was done is in a checkpoint."""

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} {where}")
        self.signum = signum


@dataclass
class Training:
    """A run: the model, its stages, and where everything is written."""

    root: nn.Module
    stages: Sequence[Stage]
    folder: Path
    logs: Logs
    device: torch.device
    precision: str = "fp32"
    save_every: int = 200
    keep: int = 2
    diagnose_every: int = 0  # steps; 0 for never
    trained: set[str] = field(default_factory=set, init=False)  # parameters that a stage so far has trained
    groups: dict[str, dict[str, Group]] = field(default_factory=dict, init=False)  # by stage
    outer_read: dict[str, frozenset[str]] = field(default_factory=dict, init=False)  # by stage, see TrainingOracle
    total_before: int = field(default=0, init=False)  # steps of the stages behind us
    caught: list[int] = field(default_factory=lambda: [0], init=False)  # the signal that asked us to stop
    warned: set[tuple[str, str]] = field(default_factory=set, init=False)  # stage and kind of what was said

    def run(self, resume_from: checkpoint.Checkpoint | None = None) -> None:
        """Trains all stages in order, from ``resume_from`` if given."""
        state = checkpoint.load(resume_from, self.device) if resume_from else None
        names = [stage.name for stage in self.stages]
        first = names.index(resume_from.stage) if resume_from else 0
        if state:
            checkpoint.load_weights(self.root, state["weights"])
            self.trained = set(state["weights"])
        self.total_before = sum(stage.optimisation.steps for stage in self.stages[:first])
        for stage in self.stages:  # before any step is spent
            self._find_groups(stage)
        for stage in self.stages[first:]:
            self._warn(stage)
        with _signals() as self.caught:
            for stage in self.stages[first:]:
                self._run_stage(stage, state)
                state = None  # the stages after the one that was resumed begin at their beginning
                self.total_before += stage.optimisation.steps

    def _run_stage(self, stage: Stage, state: dict[str, Any] | None) -> None:
        oracle = self._prepare(stage)
        if state:
            self._restore(stage, oracle, state)
        self.logs.start_stage(stage.name, stage.optimisation.steps, oracle.step)
        try:
            while oracle.step < stage.optimisation.steps:
                self._step(stage, oracle)
        except NonFinite as error:
            last = checkpoint.latest(self.folder, [s.name for s in self.stages])
            good = f"last good checkpoint: {last.folder}" if last else "there is no checkpoint yet"
            raise NonFinite(f"stage {stage.name}: {error}; {good}") from error
        finally:
            stage.close()
            self.logs.end_stage()

    def _prepare(self, stage: Stage) -> TrainingOracle:
        """Freezes what does not train, describes what does, makes the optimiser."""
        rates = stage.rates()
        self.root.train()
        groups = self.groups[stage.name]
        self._describe(stage, groups)
        for name, parameter in self.root.named_parameters():
            parameter.requires_grad_(name in groups)  # what no loss reaches is frozen, as the table says
        self.trained |= set(groups)
        parameters = {name: p for name, p in self.root.named_parameters() if name in groups}
        return TrainingOracle(
            self.root,
            stage.levels,
            adamw(parameters, rates, stage.optimisation),
            groups,
            outer_read=self.outer_read[stage.name],
            total_steps=stage.optimisation.steps,
            schedule=schedule(stage.optimisation),
            clip=stage.optimisation.clip,
            precision=self.precision,
            device=self.device,
        )

    def _warn(self, stage: Stage) -> None:
        """Says what makes the stage's solver go astray; a ``ValueError`` for what cannot work."""
        inner, groups = stage.levels.get("inner"), self.groups[stage.name]
        aligned = any(group != "outer" for group in groups.values())
        try:
            warnings = complaints(
                stage.solver,
                floor=0.0 if inner and getattr(inner.objective, "bounded", False) else None,
                shared_decay=stage.optimisation.weight_decay if aligned else 0.0,
                constant_rate=stage.optimisation.schedule == "constant",
                inner_depends_on_outer=bool(stage.inner_depends_on_outer),
                adaptive=True,  # AdamW
                free_temperature=any(stage.part_of(name) == "temperature" for name in groups),
                precision=self.precision,
                outer_alone="outer" in groups.values(),
            )
        except ValueError as error:
            raise ValueError(f"stages.{stage.name}: {error}") from error
        for warning in warnings:
            self.logs.say(f"WARNING stages.{stage.name}: {warning}")

    def _find_groups(self, stage: Stage) -> None:
        """What each level of the stage reaches: it depends on what trains, not on the weights."""
        stage.rates()
        self.root.train()
        groups, outer_read = probe(self.root, stage, self.precision, self.device)
        if not groups:
            raise ValueError(
                f"stages.{stage.name}.train: no loss reaches a parameter that trains; let more parts train"
            )
        self.groups[stage.name], self.outer_read[stage.name] = groups, outer_read

    def _step(self, stage: Stage, oracle: TrainingOracle) -> None:
        began = time.perf_counter()
        watched = self.diagnose_every and (oracle.step + 1) % self.diagnose_every == 0
        watch = diagnostics.Watch(oracle) if watched else None
        stage.solver.step(oracle)
        seconds = time.perf_counter() - began
        numbers = oracle.take_numbers()
        if watch:
            numbers |= self._diagnose(stage, watch, numbers)
        oracle.step += 1
        self.logs.write(
            {
                "stage": stage.name,
                "step": oracle.step,
                "total_step": self.total_before + oracle.step,
                **numbers,
                **{f"epochs/{name}": round(stream.epochs, 4) for name, stream in stage.streams().items()},
                "seconds": round(seconds, 4),
            }
        )
        stop = self._asked_to_stop()
        if stop or oracle.step % self.save_every == 0 or oracle.step == stage.optimisation.steps:
            saved = self._save(stage, oracle)
            if stop:
                raise Preempted(stop, f"after step {oracle.step} of stage {stage.name}; saved {saved}")

    def _diagnose(self, stage: Stage, watch: diagnostics.Watch, numbers: dict[str, float]) -> dict[str, float]:
        """The watched step's further numbers; says once in a stage what they warn of."""
        where = f"stages.{stage.name}, step {watch.oracle.step + 1}"
        try:
            found = watch.read(numbers.get("weight"))
        except NonFinite as error:  # away from where training is
            self.logs.say(f"WARNING {where}: the step cannot be measured: {error}")
            return {}
        for kind, warning in diagnostics.warnings(found, stage.solver).items():
            if (stage.name, kind) not in self.warned:
                self.warned.add((stage.name, kind))
                self.logs.say(f"WARNING {where}: {warning}")
        return found

    def _save(self, stage: Stage, oracle: TrainingOracle) -> Path:
        state: dict[str, Any] = (
            {}
            if not distributed.is_main()
            else {
                "weights": {n: p.detach().cpu() for n, p in self.root.named_parameters() if n in self.trained},
                "groups": oracle.groups,
                "optimizer": oracle.optimizer.state_dict(),
                "solver": stage.solver.state_dict(),
                "objectives": {level: objective.state_dict() for level, objective in stage.remembering().items()},
                "step": oracle.step,
            }
        )
        total = self.total_before + oracle.step
        own = {"streams": {name: stream.state_dict() for name, stream in stage.streams().items()}}
        saved = checkpoint.save(self.folder, stage.name, oracle.step, state, own=own, total_step=total, keep=self.keep)
        self.logs.say(f"saved {saved}")
        if distributed.is_main():
            write_status(self.folder, "running", stage=stage.name, step=oracle.step, of=stage.optimisation.steps)
        return saved

    def _restore(self, stage: Stage, oracle: TrainingOracle, state: dict[str, Any]) -> None:
        if state["groups"] != oracle.groups:
            raise ValueError(f"resume: stage {stage.name} trains other parameters than the checkpoint's stage did")
        oracle.optimizer.load_state_dict(state["optimizer"])
        stage.solver.load_state_dict(_on(self.device, state["solver"]))
        for level, objective in stage.remembering().items():
            objective.load_state_dict(_on(self.device, state["objectives"][level]))
        for name, stream in stage.streams().items():
            stream.load_state_dict(state["streams"][name])
        oracle.step = state["step"]
        checkpoint.restore_random(state)

    def _asked_to_stop(self) -> int:
        """The signal that some rank has caught, or 0; every rank gets the same answer."""
        flag = torch.tensor([self.caught[0]], device=self.device)
        return int(distributed.max_(flag).item()) if distributed.active() else self.caught[0]

    def _describe(self, stage: Stage, groups: dict[str, Group]) -> None:
        """The table of what trains: parts by group, in parameters."""
        sizes: Counter[tuple[str, str]] = Counter()
        for name, parameter in self.root.named_parameters():
            if parameter.requires_grad:
                sizes[stage.part_of(name), groups.get(name, "untouched")] += parameter.numel()
        parts = list(dict.fromkeys(part for part, _ in sizes))
        columns = [group for group in ("inner", "shared", "outer", "untouched") if any(g == group for _, g in sizes)]
        self.logs.say(f"stage {stage.name}: {stage.optimisation.steps} steps, solver {type(stage.solver).__name__}")
        self.logs.say("  trains      " + "".join(f"{column:>14}" for column in columns))
        for part in parts:
            cells = [f"{sizes[part, column]:,}" if sizes[part, column] else "-" for column in columns]
            self.logs.say(f"  {part:<12}" + "".join(f"{cell:>14}" for cell in cells))
        frozen = dict.fromkeys(stage.part_of(n) for n, p in self.root.named_parameters() if not p.requires_grad)
        self.logs.say(f"  frozen: {', '.join(part for part in frozen if part not in parts) or 'nothing'}")
        if "untouched" in columns:
            self.logs.say("  no loss reaches what is untouched: it stays as it is")


def _on(device: torch.device, value: Any) -> Any:
    """A solver's state with every tensor in it on ``device``: a checkpoint is read into the processor's memory."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {key: _on(device, below) for key, below in value.items()} if isinstance(value, dict) else value


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Catches the signals that mean stop; the list's one entry is the first that came.

    The step under way is finished and saved. A second Ctrl-C interrupts at once.
    """
    caught = [0]

    def catch(signum: int, _frame: FrameType | None) -> None:
        if caught[0] and signum == signal.SIGINT:
            raise KeyboardInterrupt
        caught[0] = signum

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {signum: signal.signal(signum, catch) for signum in wanted}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
