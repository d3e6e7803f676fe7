"""The value-function penalty: the weighted sum whose weight grows, with the inner loss's best value taken off."""

from __future__ import annotations

from typing import Any

from hialign.solvers.oracle import Gradients, Oracle, Requirement
from hialign.solvers.shadow import inner_descent, value_gradient
from hialign.solvers.weighing import Unit, check_inner_only, check_number, check_share, combine, meet, ramp


class ValuePenalty:
    """Descends ``outer + weight * (inner - best inner)``, the weight rising from ``start`` to ``end``.

    Where the inner loss reads no outer parameter, its best value is a constant, and this is the weighted sum with a
    rising weight. Where it does, a shadow of the aligned parameters follows the inner loss alone, ``inner_steps`` plain
    steps at a time, and the outer parameters are charged the difference of both slopes: the sum itself may have no
    minimum.

    Args:
        start, end: of the weight. With ``relative`` in units of the outer gradient's norm over the inner one's at the
            end of warm-up.
        ramp: the share of the steps over which the weight rises, by equal factors.
        inner_steps, inner_rate: of the shadow's plain gradient steps; None for the learning rate, which is that of one
            under SGD alone.
        scale_step: whether the learning rate is divided by the weight where that is above 1: for plain gradient
            descent, which would overshoot; Adam rescales by itself.
        inner_only: see ``DynamicBarrier``. relative, warmup: likewise.

    Source: Shen and Chen 2023, arXiv:2302.05185 (V-PBGD); Kwon et al. 2023, arXiv:2301.10945 (F2SA).
    Differs: the weight rises geometrically; one optimiser step on the combined gradient.
    """

    two_level = True
    requires: frozenset[Requirement] = frozenset()

    def __init__(
        self,
        start: float = 1.0,
        end: float = 100.0,
        ramp: float = 0.8,
        *,
        inner_steps: int = 1,
        inner_rate: float | None = None,
        scale_step: bool = False,
        relative: bool = True,
        inner_only: str = "plain",
        warmup: float = 0.03,
    ) -> None:
        if inner_steps < 1:
            raise ValueError(f"inner_steps: got {inner_steps}, wanted at least 1")
        self.start, self.end = check_number("start", start, above=0), check_number("end", end, above=0)
        self.ramp, self.inner_steps, self.inner_rate = check_share("ramp", ramp), inner_steps, inner_rate
        self.scale_step, self.inner_only = scale_step, check_inner_only(inner_only)
        self.unit = Unit(relative, check_share("warmup", warmup))
        self.shadow: Gradients = {}

    def step(self, oracle: Oracle) -> None:
        """One step along the penalised gradient."""
        outer, inner = oracle.grads("outer"), oracle.grads("inner")
        if oracle.inner_depends_on_outer:
            rate = oracle.rate if self.inner_rate is None else self.inner_rate
            start = self.shadow or oracle.values("inner", "shared")
            self.shadow = inner_descent(oracle, start, self.inner_steps, rate)
            inner = value_gradient(oracle, inner, self.shadow)
        met = meet(oracle, outer, inner)
        share = oracle.step / (self.ramp * oracle.total_steps)
        weight = ramp(self.start, self.end, share) * self.unit(oracle, met)
        scale = min(1.0, 1 / weight) if self.scale_step else 1.0
        oracle.log(weight=weight)
        oracle.apply(combine(oracle, outer, inner, weight, inner_only=self.inner_only), scale=scale)

    def state_dict(self) -> dict[str, Any]:
        """The unit, and the shadow."""
        return {**self.unit.state_dict(), "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``."""
        self.unit.load_state_dict(state)
        self.shadow = state["shadow"]
