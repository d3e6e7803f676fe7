"""Checkpoints that are whole or absent, and that continue bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hialign import distributed

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk."""

    folder: Path
    stage: str
    step: int


def save(
    run: Path,
    stage: str,
    step: int,
    state: Mapping[str, Any],
    *,
    own: Mapping[str, Any] | None = None,
    total_step: int,
    keep: int,
) -> Path:
    """Writes ``checkpoints/<stage>/step-<step>`` from all ranks; returns it.

    ``state`` is the first rank's; ``own`` is what each rank has for itself besides its random state.

    The folder gets its name only when everything in it is on disk, so a kill leaves the one before. The stage's
    oldest beyond ``keep`` are deleted afterwards.
    """
    final = run / "checkpoints" / stage / f"step-{step:06d}"
    partial = final.with_name(f"partial-{final.name}")
    if distributed.is_main():
        for left in final.parent.glob("partial-*"):  # by a kill
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        _write(partial / "state.pt", {**state, "threads": torch.get_num_threads(), "ranks": distributed.world_size()})
        with (partial / "where.json").open("w") as out:
            out.write(json.dumps({"stage": stage, "step": step, "total_step": total_step}) + "\n")
            out.flush()
            os.fsync(out.fileno())
    distributed.barrier()
    _write(partial / f"random-{distributed.rank()}.pt", {**_random_state(), "own": dict(own or {})})
    distributed.barrier()
    if distributed.is_main():
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(final.parent)
        for old in _finished(final.parent)[:-keep]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def latest(run: Path, stages: Sequence[str]) -> Checkpoint | None:
    """The furthest checkpoint of the run, ``stages`` in their order; ``None`` if there is none."""
    for stage in reversed(stages):
        finished = _finished(run / "checkpoints" / stage)
        if finished:
            return Checkpoint(finished[-1], stage, int(finished[-1].name.removeprefix("step-")))
    return None


def load(checkpoint: Checkpoint, device: torch.device) -> dict[str, Any]:
    """The saved state with this rank's own and its ``random`` one; ``ValueError`` where it cannot go on identically."""
    state = _read_state(checkpoint)
    for what, have, fix in (
        ("threads", torch.get_num_threads(), "OMP_NUM_THREADS={}"),
        ("ranks", distributed.world_size(), "--nproc-per-node so that there are {} ranks"),
    ):
        if state[what] != have and (what == "ranks" or device.type == "cpu"):
            raise ValueError(
                f"resume: {checkpoint.folder} was written with {what}={state[what]}, this process has {have}, and "
                f"rounding depends on it; set {fix.format(state[what])}"
            )
    random_state = _read(checkpoint.folder / f"random-{distributed.rank()}.pt")
    # checkpoints from before ranks had something of their own have all of it in the state
    return {**state, **random_state.get("own", {}), "random": random_state}


def read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The parameters alone, by name: those that the run had trained by then."""
    weights: dict[str, torch.Tensor] = _read_state(checkpoint)["weights"]
    return weights


def restore_random(state: Mapping[str, Any]) -> None:
    """Puts this rank's random generators back to where they were when ``state`` was saved."""
    saved = state["random"]
    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    if torch.cuda.is_available() and saved["cuda"] is not None:
        torch.cuda.set_rng_state(saved["cuda"])


def load_weights(root: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Overwrites the parameters named in ``weights``; ``ValueError`` if the model has no such parameter or shape."""
    parameters = dict(root.named_parameters())
    with torch.no_grad():
        for name, saved in weights.items():
            if name not in parameters or parameters[name].shape != saved.shape:
                have = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise ValueError(f"resume: {name} was saved with shape {tuple(saved.shape)}, this model has {have}")
            parameters[name].copy_(saved)


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _finished(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(checkpoint.folder / "state.pt", map_location="cpu", weights_only=True)
    return state


def _read(file: Path) -> Any:
    # not weights_only: generators' states are tuples and arrays. A run folder is the user's own
    return torch.load(file, map_location="cpu", weights_only=False)


def _write(file: Path, value: object) -> None:
    with file.open("wb") as out:
        torch.save(value, out)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
