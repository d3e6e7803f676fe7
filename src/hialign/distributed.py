"""Processes: who we are, and the few things that all of them do together. In one process everything is a no-op."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    """Whether this run has more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


def is_main() -> bool:
    """Whether this process writes the run folder and the terminal."""
    return rank() == 0


def start(*, cpu: bool = False, timeout: timedelta = timedelta(minutes=30)) -> torch.device:
    """Joins the process group that torchrun announced in the environment; returns this process's device.

    That is its GPU if there is one, unless ``cpu`` asks for the processor. ``ValueError`` for one of several tasks that
    srun started without torchrun: each would take itself for the only one.
    """
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "WORLD_SIZE" not in os.environ:
        raise ValueError("srun started several tasks without WORLD_SIZE; start one task a node, which runs torchrun")
    on_gpu = torch.cuda.is_available() and not cpu
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
    return device


def stop() -> None:
    """Leaves the process group; the barrier keeps a fast rank from tearing it down under a slow one."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for every process."""
    if active():
        dist.barrier()


class _Gather(torch.autograd.Function):
    """All ranks' rows; the gradient of a row is the sum of what every rank's loss asks of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.num_rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        first = rank() * ctx.num_rows
        return total[first : first + ctx.num_rows]


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """``(rows of all ranks, the place of our first row among them)``, with exact gradients.

    Every rank brings the same number of rows. Each rank's own loss is a term of one sum: add the ranks' parameter
    gradients (do not average them) and the result is the gradient of the single-process loss.
    """
    if not active():
        return rows, 0
    gathered: Tensor = _Gather.apply(rows)
    return gathered, rank() * len(rows)


def sum_(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """``tensor``, overwritten with its sum over the processes, or over those of ``group``."""
    if active():
        dist.all_reduce(tensor, group=group)
    return tensor


def max_(tensor: Tensor) -> Tensor:
    """``tensor``, overwritten with its maximum over the processes."""
    if active():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def from_main_(tensors: list[Tensor]) -> None:
    """Overwrites every process's tensors with those of the first."""
    if active():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def all_objects(value: Any) -> list[Any]:
    """Every process's ``value``, in order of rank."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
