"""Methods for several tasks of equal rank, for comparison: they seek a compromise, not the best aligned point."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from hialign.solvers.oracle import Gradients, Oracle, Requirement
from hialign.solvers.weighing import Meeting, meet


class _TwoTasks:
    """One step along ``a * outer + b * inner`` where the levels meet, and along its own gradient elsewhere.

    No state; a method is what it makes of the two gradients' products.
    """

    two_level = True
    requires: frozenset[Requirement] = frozenset()

    def weights(self, met: Meeting) -> tuple[float, float]:
        """``a`` and ``b``."""
        raise NotImplementedError

    def step(self, oracle: Oracle) -> None:
        """One step along the compromise."""
        outer, inner = oracle.grads("outer"), oracle.grads("inner")
        a, b = self.weights(meet(oracle, outer, inner))
        oracle.log(outer_weight=a, weight=b)
        oracle.apply(_blend(a, outer, b, inner))

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class PCGrad(_TwoTasks):
    """Where the gradients conflict, each loses its part against the other before they are added.

    Source: Yu et al. 2020, arXiv:2001.06782, algorithm 1, for two tasks.
    Differs: nothing.
    """

    def weights(self, met: Meeting) -> tuple[float, float]:
        """With a conflict, one minus what each loses by the other's projection; else 1 and 1."""
        if met.dot >= 0 or met.inner == 0 or met.outer == 0:
            return 1.0, 1.0
        return 1 - met.dot / met.outer, 1 - met.dot / met.inner


class MGDA(_TwoTasks):
    """Along the shortest convex combination of both gradients: never moves from a point where one of them vanishes.

    Source: Sener and Koltun 2018, arXiv:1810.04650, eq. 4.
    Differs: nothing.
    """

    def weights(self, met: Meeting) -> tuple[float, float]:
        """The weights of the shortest point of the segment between the gradients; they add up to 1."""
        apart = met.outer + met.inner - 2 * met.dot  # |outer - inner|^2
        if apart <= 0:
            return 0.5, 0.5
        of_outer = min(1.0, max(0.0, (met.inner - met.dot) / apart))
        return of_outer, 1 - of_outer


class CAGrad(_TwoTasks):
    """The direction near the mean gradient along which the task that gains less gains most.

    ``conflict`` is how far from the mean, in its length: 0 is the mean of both gradients. Only without a bound would it
    be MGDA's direction; from 1 on, a step need no longer lower the mean of the losses.

    Source: Liu et al. 2021, arXiv:2110.14048, eq. 3 and algorithm 1.
    Differs: the dual's one variable is found by golden section, to 1e-10.
    """

    def __init__(self, conflict: float = 0.4) -> None:
        if not 0 <= conflict < 1:
            raise ValueError(f"conflict: got {conflict}, wanted a number in [0, 1)")
        self.conflict = conflict

    def weights(self, met: Meeting) -> tuple[float, float]:
        """The weights of mean + sqrt(phi) * g_w / |g_w|, with g_w the dual's combination."""
        mean = math.sqrt(max(0.0, met.outer + met.inner + 2 * met.dot)) / 2
        radius = self.conflict * mean

        def combined(w: float) -> float:  # the squared length of w * outer + (1 - w) * inner
            return max(0.0, w * w * met.outer + (1 - w) * (1 - w) * met.inner + 2 * w * (1 - w) * met.dot)

        def dual(w: float) -> float:
            with_mean = (w * (met.outer + met.dot) + (1 - w) * (met.inner + met.dot)) / 2
            return with_mean + radius * math.sqrt(combined(w))

        w = _lowest(dual)
        length = math.sqrt(combined(w))
        stretch = radius / length if length else 0.0
        return 0.5 + stretch * w, 0.5 + stretch * (1 - w)


def _blend(a: float, outer: Gradients, b: float, inner: Gradients) -> Gradients:
    """``a * outer + b * inner`` over the names of both, the only gradient there is elsewhere; overwrites both."""
    names = [name for name in inner if name in outer]
    if names:
        met = [outer[name] for name in names]
        torch._foreach_mul_(met, a)
        torch._foreach_add_(met, [inner[name] for name in names], alpha=b)
    return {name: gradient for name, gradient in inner.items() if name not in outer} | outer


def _lowest(function: Callable[[float], float]) -> float:
    """Where in [0, 1] the convex ``function`` is lowest, by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    low, high = 0.0, 1.0
    while high - low > 1e-10:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
