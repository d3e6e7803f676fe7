"""The weighted sum that the two levels are usually traded off with."""

from __future__ import annotations

import math
from typing import Any

from hialign.solvers.oracle import Oracle, Requirement, axpy
from hialign.solvers.weighing import meet


class Joint:
    """Descends ``outer + weight * inner``.

    Never reaches the hierarchical optimum for a finite weight, unless the two losses do not conflict there: the inner
    gradient vanishes at that point, so the sum is stationary only if the outer one vanishes too.
    """

    two_level = True
    requires: frozenset[Requirement] = frozenset()

    def __init__(self, weight: float = 1.0) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight: got {weight}, wanted a finite number of at least 0")
        self.weight = weight

    def step(self, oracle: Oracle) -> None:
        """One step along the weighted sum of both gradients."""
        outer, inner = oracle.grads("outer"), oracle.grads("inner")
        meet(oracle, outer, inner)
        oracle.log(weight=self.weight)
        oracle.apply(axpy(self.weight, inner, outer))

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
