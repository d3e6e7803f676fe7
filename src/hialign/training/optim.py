"""One AdamW for all levels, and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hialign.training.stage import Optimisation

SCHEDULES = ("cosine", "constant")


def adamw(parameters: Mapping[str, Tensor], rates: Mapping[str, float], settings: Optimisation) -> torch.optim.AdamW:
    """One optimiser over ``parameters``, a group for each learning rate in ``rates`` and each kind of decay.

    Vectors (biases, norms) are not decayed. Each group keeps its ``base_lr``, which the schedule scales.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in parameters.items():
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rates[name], decay), []).append(parameter)
    listed = [{"params": ps, "lr": lr, "base_lr": lr, "weight_decay": wd} for (lr, wd), ps in groups.items()]
    return torch.optim.AdamW(listed, betas=settings.betas)


def schedule(settings: Optimisation) -> Callable[[float], float]:
    """Progress in (0, 1) -> factor of the learning rate: linear warm-up, then ``settings.schedule``."""
    if settings.schedule not in SCHEDULES:
        raise ValueError(f"schedule: got {settings.schedule!r}, wanted one of {', '.join(SCHEDULES)}")

    def factor(progress: float) -> float:
        if progress < settings.warmup:
            return progress / settings.warmup
        if settings.schedule == "constant":
            return 1.0
        rest = (progress - settings.warmup) / (1 - settings.warmup)
        return (1 + math.cos(math.pi * rest)) / 2

    return factor
