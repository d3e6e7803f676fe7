"""Tensors of which every process holds a part (FSDP2), beside those that every process holds whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hialign import distributed
from hialign.solvers import Gradients, local_dot, put

Layout = tuple[DeviceMesh, tuple[int, ...]]  # the dimensions of the mesh over which a tensor is cut


def is_distributed(tensor: Tensor) -> bool:
    """Whether its backward pass has added up its gradient over the processes already."""
    return isinstance(tensor, DTensor)


def add_up_gradients(root: nn.Module) -> None:
    """Lets what FSDP2 shards add its gradients up, where it would average them: a loss is a sum over all ranks."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def dots(pairs: Iterable[tuple[Gradients, Gradients]], device: torch.device) -> list[float]:
    """Inner products over the names that both of a pair have.

    Each process multiplies what it holds. The sums of shards are added up with one transfer for all pairs, over the
    dimensions of the mesh that the tensors are cut along and no other; what every process holds whole counts once.
    """
    listed = list(pairs)
    sums: dict[Layout | None, Tensor] = {None: torch.zeros(len(listed), dtype=torch.float64, device=device)}
    for index, (x, y) in enumerate(listed):
        alike: dict[Layout | None, list[str]] = {}
        for name in (name for name in x if name in y):
            alike.setdefault(_layout(x[name]), []).append(name)
        for layout, names in alike.items():
            row = sums.setdefault(layout, torch.zeros_like(sums[None]))
            row[index] = local_dot({n: _held(x[n]) for n in names}, {n: _held(y[n]) for n in names})
    for layout, row in sums.items():
        mesh, dimensions = layout if layout else (None, ())
        for dimension in dimensions:
            assert mesh is not None
            distributed.sum_(row, mesh.get_group(dimension))
    return torch.stack(list(sums.values())).sum(dim=0).tolist()


def norm(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm over all tensors, in float32 or better."""
    listed = list(tensors)
    if any(isinstance(tensor, DTensor) for tensor in listed):
        named = {str(number): tensor for number, tensor in enumerate(listed)}
        return math.sqrt(dots([(named, named)], listed[0].device)[0])
    return torch.nn.utils.get_total_norm([tensor.float() for tensor in listed]).item() if listed else 0.0


@contextmanager
def held_at(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, these parameters have these values; they get their own back to the bit, whatever happens.

    FSDP2 gathers from the memory that it has found a parameter in, so that a shard is overwritten where it lies.
    """
    cut = {name: value for name, value in values.items() if isinstance(parameters[name], DTensor)}
    own = {name: parameters[name].detach().clone() for name in cut}
    with put(parameters, {name: value for name, value in values.items() if name not in cut}):
        try:
            _overwrite(parameters, cut)
            yield
        finally:
            _overwrite(parameters, own)


def _overwrite(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _layout(tensor: Tensor) -> Layout | None:
    if not isinstance(tensor, DTensor):
        return None
    cut = tuple(dimension for dimension, placed in enumerate(tensor.placements) if placed.is_shard())
    return (tensor.device_mesh, cut) if cut else None


def _held(tensor: Tensor) -> Tensor:
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held
