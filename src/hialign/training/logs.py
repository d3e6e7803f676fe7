"""Where numbers go: metrics.jsonl always, a progress bar, and trackers where asked."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from tqdm import tqdm

from hialign.files import write_json

Row = Mapping[str, Any]


class Tracker(Protocol):
    """A service that draws curves."""

    def start(self, folder: Path, config: Row, *, after: int) -> None:
        """Begins the run in ``folder``, or continues it after the total step ``after``."""
        ...

    def log(self, row: Row) -> None:
        """Takes one row of metrics; ``row["total_step"]`` counts over all stages."""
        ...

    def finish(self) -> None:
        """Writes out what is left."""
        ...


class Wandb:
    """Weights & Biases; offline unless asked otherwise, since a cluster's nodes often have no network."""

    def __init__(self, *, project: str, mode: str = "offline") -> None:
        if mode not in ("online", "offline"):
            raise ValueError(f"tracker.wandb.mode: got {mode!r}, wanted 'online' or 'offline'")
        self.project = project
        self.mode: Any = mode  # one of wandb's literals, as was just checked
        self.run: Any = None

    def start(self, folder: Path, config: Row, *, after: int) -> None:
        """Opens a wandb run whose files lie in the run folder; a continued one keeps its id."""
        try:
            import wandb
        except ImportError as error:
            raise ValueError("tracker=wandb: the package wandb is missing; pip install 'hialign[wandb]'") from error
        id_file = folder / "wandb_id"
        if not (after and id_file.is_file()):
            id_file.write_text(uuid.uuid4().hex[:12])
        self.run = wandb.init(
            project=self.project,
            name=folder.name,
            id=id_file.read_text(),
            dir=folder,
            config=dict(config),
            mode=self.mode,
            resume="allow",
        )

    def log(self, row: Row) -> None:
        """One step."""
        self.run.log({key: value for key, value in row.items() if key != "total_step"}, step=row["total_step"])

    def finish(self) -> None:
        """Closes the run."""
        self.run.finish()


class TensorBoard:
    """TensorBoard event files under ``tensorboard/`` in the run folder."""

    def __init__(self) -> None:
        self.writer: Any = None

    def start(self, folder: Path, config: Row, *, after: int) -> None:
        """Opens the event file; ``config`` is written as text, and what a killed run logged later is hidden."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "tracker=tensorboard: the package tensorboard is missing; pip install 'hialign[tensorboard]'"
            ) from error
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=after + 1 if after else None)
        self.writer.add_text("config", f"```\n{json.dumps(config, indent=2, default=str)}\n```")

    def log(self, row: Row) -> None:
        """One step: every number as a scalar."""
        for key, value in row.items():
            if isinstance(value, (int, float)) and key != "total_step":
                self.writer.add_scalar(key, value, row["total_step"])

    def finish(self) -> None:
        """Closes the file."""
        self.writer.close()


class Logs:
    """Metrics of a run, from the row behind the total step ``after``. Only the process with ``main`` writes."""

    def __init__(
        self, folder: Path, trackers: Sequence[Tracker], config: Row, *, main: bool = True, after: int = 0
    ) -> None:
        self.folder, self.main, self.after = folder, main, after
        self.trackers = list(trackers) if main else []
        self.config = config
        self.file: TextIO | None = None
        self.bar: Any = None

    def __enter__(self) -> Self:
        if self.main:
            drop_rows_after(self.folder / "metrics.jsonl", self.after)
            self.file = (self.folder / "metrics.jsonl").open("a", buffering=1)  # a line survives a kill
        for tracker in self.trackers:
            tracker.start(self.folder, self.config, after=self.after)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_stage()
        if self.file:
            self.file.close()
        for tracker in self.trackers:
            tracker.finish()

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Shows a bar of ``total`` steps, ``done`` of them behind us."""
        shown = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit="step",
            disable=not self.main,
            mininterval=0.1 if shown else 10.0,  # a log file gets a line now and then
            dynamic_ncols=True,
        )

    def end_stage(self) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def write(self, row: Row) -> None:
        """One step's numbers to the file, the bar and the trackers."""
        if not self.main:
            return
        assert self.file is not None
        self.file.write(json.dumps(row) + "\n")
        losses = {key.removesuffix("_loss"): f"{row[key]:.3f}" for key in ("outer_loss", "inner_loss") if key in row}
        if self.bar is not None:
            self.bar.set_postfix(losses, refresh=False)
            self.bar.update()
        for tracker in self.trackers:
            tracker.log(row)

    def say(self, line: str) -> None:
        """A line above the bar, and in log.txt."""
        if self.main:
            tqdm.write(line, file=sys.stderr)
            with (self.folder / "log.txt").open("a") as out:
                out.write(line + "\n")


def drop_rows_after(file: Path, total_step: int) -> None:
    """Removes the rows of ``metrics.jsonl`` that a resumed run is going to write again, and a half-written last one."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["total_step"] <= total_step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue  # cut short by the kill
    partial = file.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, file)


def write_status(folder: Path, state: str, **details: object) -> None:
    """Replaces ``status.json``: running, done, failed or preempted, and where."""
    write_json(folder / "status.json", {"state": state, **details, "time": time.strftime("%FT%T%z")})
