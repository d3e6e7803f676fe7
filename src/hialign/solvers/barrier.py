"""The dynamic barrier: the outer gradient, with as much of the inner one as keeps alignment improving."""

from __future__ import annotations

import math
from typing import Any

from hialign.solvers.oracle import Gradients, Oracle, Requirement, only
from hialign.solvers.shadow import inner_descent, value_gradient
from hialign.solvers.weighing import Meeting, Unit, check_inner_only, check_number, check_share, combine, meet, ramp

PHIS = ("grad", "value", "min", "half", "zero")


class DynamicBarrier:
    """Moves along ``outer + weight * inner``, the weight being the least with which the inner loss falls by ``phi``.

    ``weight = max(0, (phi - <outer, inner>) / |inner|^2)`` over the parameters that both levels reach, so that in a
    plain gradient step the inner loss falls at the rate ``phi`` at least. What ``phi`` is:

    - ``grad``: ``beta |inner|^2``. ``beta`` rises from ``start`` to ``end`` by equal factors over the share ``ramp`` of
      the steps: under the noise of minibatches the weight tends to ``beta`` plus little, a constant one being the
      weighted sum in disguise.
    - ``value``: ``value_rate * (inner loss - best)``. Only as good as ``best``: too low and the task starves, too high
      by some gap and that gap stays.
    - ``min``: the smaller of both; safe with any lower bound.
    - ``half``: ``max(0, inner loss - best) / learning rate``: projects onto the half-space where the linearised inner
      loss is at its best; in plain gradient steps, since an adaptive optimiser's rate is another thing.
    - ``zero``: 0; the task may not undo alignment, and nothing repairs it (PCGrad, one-sided).

    Args:
        start, end: of ``beta``. With ``relative`` they are in units of the outer gradient's norm over the inner one's
            at the end of warm-up, so that one default serves models whose losses differ in scale.
        ramp: the share of the steps over which ``beta`` rises.
        phi: one of the above.
        best: the inner loss of a reference run; None for the proved floor that the oracle knows.
        value_rate: see ``value``.
        ema: of the gradients from which the weight is computed, not of the step's; costs two copies of the shared
            parameters, and raises the signal over the noise by ``(1 + ema) / (1 - ema)``.
        max_weight: caps the weight, in the same units; a low one is the weighted sum again.
        clamp: whether a negative weight is taken for 0.
        inner_only: ``plain`` or ``weighted``: whether parameters that only the inner loss reaches follow its gradient,
            or the weight times it.
        inner_steps: where the inner level depends on the outer one, the length of the descent that estimates the best
            inner loss for the present outer parameters.
        inner_rate: the rate of that descent, in plain gradient steps; None for the learning rate, which is one of those
            under SGD alone.
        warmup: the share of the steps over which the unit of ``relative`` is measured.

    At a constant learning rate the inner loss stays above its minimum by about the square of the rate: let it fall.

    It may end at an aligned point that is not the best. Under the noise of minibatches the weight keeps by ``beta``,
    and this does as ``ValuePenalty`` does. Without noise the inner gradient vanishes as alignment is reached while the
    two conflict, the weight runs ahead of ``beta``, and under Adam little is left of the outer gradient: on InfoNCE of
    a fixed batch this stops short at some starts and not at others (``tests/solvers/test_reach.py``). The alignment gap
    shows nothing of it; a ``weight`` far above ``beta`` early on does.

    Source: Gong, Liu and Liu 2021, NeurIPS, "Automatic and Harmonious..." (dynamic barrier gradient descent); Liu et
    al. 2022, arXiv:2209.08709 (BOME: ``inner_steps``, ``start = end = eta``); BLUR, arXiv:2506.08164
    (``clamp=False, start = end = 1``).
    Differs: the ramp; one optimiser step on the combined gradient, for which none of the published guarantees was
    made; inner-only parameters are left out of the products.
    """

    two_level = True

    def __init__(
        self,
        start: float = 1.0,
        end: float = 100.0,
        ramp: float = 0.8,
        phi: str = "grad",
        *,
        best: float | None = None,
        value_rate: float = 1.0,
        ema: float = 0.0,
        max_weight: float = 1e6,
        clamp: bool = True,
        relative: bool = True,
        inner_only: str = "plain",
        inner_steps: int = 10,
        inner_rate: float | None = None,
        warmup: float = 0.03,
    ) -> None:
        if phi not in PHIS:
            raise ValueError(f"phi: got {phi!r}, wanted one of {', '.join(PHIS)}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema: got {ema}, wanted a number in [0, 1); 0 for none")
        if inner_steps < 1:
            raise ValueError(f"inner_steps: got {inner_steps}, wanted at least 1")
        self.start, self.end = check_number("start", start, above=0), check_number("end", end, above=0)
        self.ramp, self.unit = check_share("ramp", ramp), Unit(relative, check_share("warmup", warmup))
        self.phi, self.best, self.value_rate = phi, best, check_number("value_rate", value_rate, above=0)
        self.ema, self.max_weight, self.clamp = ema, check_number("max_weight", max_weight, above=0), clamp
        self.inner_only, self.inner_steps, self.inner_rate = check_inner_only(inner_only), inner_steps, inner_rate
        self.means: dict[str, Gradients] = {"outer": {}, "inner": {}}

    @property
    def requires(self) -> frozenset[Requirement]:
        """A falling rate, and a floor unless ``best`` is given or not read."""
        floor: set[Requirement] = {"floor"} if self.best is None and self.phi in ("value", "half", "min") else set()
        return frozenset({"falling rate", *floor})

    def step(self, oracle: Oracle) -> None:
        """One step along the combined gradient."""
        outer, inner = oracle.grads("outer"), oracle.grads("inner")
        if oracle.inner_depends_on_outer:
            rate = oracle.rate if self.inner_rate is None else self.inner_rate
            shadow = inner_descent(oracle, oracle.values("inner", "shared"), self.inner_steps, rate)
            inner = value_gradient(oracle, inner, shadow)
        met = meet(oracle, *self._followed(oracle, outer, inner))
        unit = self.unit(oracle, met)
        beta = ramp(self.start, self.end, oracle.step / (self.ramp * oracle.total_steps)) * unit
        phi = self._phi(oracle, beta, met)
        weight = self._weight(phi, met, self.max_weight * unit)
        oracle.log(
            weight=weight,
            beta=beta,
            phi=phi,
            active=float(weight > 0),
            pull_ratio=abs(weight) * math.sqrt(met.inner / met.outer) if met.outer else math.inf,
        )
        oracle.apply(combine(oracle, outer, inner, weight, inner_only=self.inner_only))

    def _weight(self, phi: float, met: Meeting, most: float) -> float:
        if met.inner == 0:
            return 0.0  # nothing to move along; a quotient of zeros would be none
        weight = (phi - met.dot) / met.inner
        return min(max(weight, 0.0) if self.clamp else weight, most)

    def _phi(self, oracle: Oracle, beta: float, met: Meeting) -> float:
        by_gradient = beta * met.inner
        if self.phi == "grad":
            return by_gradient
        if self.phi == "zero":
            return 0.0
        best = oracle.floor if self.best is None else self.best
        if best is None:
            raise ValueError(f"phi={self.phi}: no floor of the inner loss is known; set best=, from a reference run")
        gap = oracle.loss("inner") - best
        if self.phi == "half":
            return max(gap, 0.0) / oracle.rate
        return self.value_rate * gap if self.phi == "value" else min(self.value_rate * gap, by_gradient)

    def _followed(self, oracle: Oracle, outer: Gradients, inner: Gradients) -> tuple[Gradients, Gradients]:
        """The gradients that the weight is computed from: the step's own, or their running means."""
        if not self.ema:
            return outer, inner
        # as a mean of the past without the zeros that a running mean begins with
        share = (1 - self.ema) / (1 - self.ema ** (oracle.step + 1))
        for key, gradient in (("outer", outer), ("inner", inner)):
            mean = self.means[key]
            for name in (name for name in inner if name in outer):
                mean[name] = mean[name].lerp_(gradient[name], share) if name in mean else gradient[name].clone()
        return self.means["outer"], self.means["inner"] | only(oracle, inner, "inner")

    def state_dict(self) -> dict[str, Any]:
        """The unit, and the running means."""
        return {**self.unit.state_dict(), "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``."""
        self.unit.load_state_dict(state)
        self.means = state["means"]
