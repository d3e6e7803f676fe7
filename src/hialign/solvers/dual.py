"""An explicit budget for the inner loss, kept by a multiplier."""

from __future__ import annotations

import math
from typing import Any

from hialign.solvers.oracle import Oracle, Requirement
from hialign.solvers.weighing import Unit, check_inner_only, check_number, check_share, combine, meet


class ConstrainedDual:
    """Descends the outer loss subject to ``inner loss <= best + budget``, the budget being in nats.

    The multiplier grows while a running mean of the inner loss is over the budget and falls while it is under, by at
    most a factor of ``exp(rate)`` a step. The relaxation has a finite multiplier, and its answer uses the budget up; an
    error in ``best`` is one in the budget.

    Args:
        budget: how far above ``best`` the inner loss may lie.
        best: the inner loss of a reference run; None for the proved floor that the oracle knows.
        rate: of the multiplier.
        start, min_weight, max_weight: of the multiplier. With ``relative`` in units of the outer gradient's norm over
            the inner one's at the end of warm-up. Without a low ``max_weight`` it winds up before the budget is met,
            and the task stands still.
        window: of the running mean.
        warmup: the share of the steps during which the multiplier rests.
        inner_only: see ``DynamicBarrier``.

    Source: the primal-dual method for a constraint; multiplicative updates keep the multiplier positive.
    Differs: no published variant is followed.
    """

    two_level = True

    def __init__(
        self,
        budget: float = 0.02,
        *,
        best: float | None = None,
        rate: float = 0.01,
        start: float = 1.0,
        min_weight: float = 1e-3,
        max_weight: float = 100.0,
        window: float = 0.98,
        relative: bool = True,
        inner_only: str = "plain",
        warmup: float = 0.03,
    ) -> None:
        if not 0 <= window < 1:
            raise ValueError(f"window: got {window}, wanted a number in [0, 1)")
        if not 0 < min_weight <= start <= max_weight < math.inf:
            raise ValueError(
                f"start: got min_weight={min_weight}, start={start}, max_weight={max_weight}; wanted 0 < min_weight <= "
                "start <= max_weight"
            )
        self.budget, self.rate = check_number("budget", budget, above=0), check_number("rate", rate, above=0)
        self.best = best
        self.min_weight, self.max_weight, self.window = min_weight, max_weight, window
        self.inner_only, self.warmup = check_inner_only(inner_only), check_share("warmup", warmup)
        self.unit = Unit(relative, self.warmup)
        self.weight = start
        self.mean: float | None = None  # of the inner loss

    @property
    def requires(self) -> frozenset[Requirement]:
        """A floor, unless ``best`` is given."""
        return frozenset({"floor"} if self.best is None else ())

    def step(self, oracle: Oracle) -> None:
        """One step of the multiplier, then one along the Lagrangian's gradient."""
        outer, inner = oracle.grads("outer"), oracle.grads("inner")
        unit = self.unit(oracle, meet(oracle, outer, inner))
        loss = oracle.loss("inner")
        self.mean = loss if self.mean is None else self.window * self.mean + (1 - self.window) * loss
        over = (self.mean - self._best(oracle) - self.budget) / self.budget
        if oracle.step >= self.warmup * oracle.total_steps:
            factor = math.exp(self.rate * min(1.0, max(-1.0, over)))
            self.weight = min(self.max_weight, max(self.min_weight, self.weight * factor))
        oracle.log(weight=self.weight * unit, over_budget=over)
        oracle.apply(combine(oracle, outer, inner, self.weight * unit, inner_only=self.inner_only))

    def _best(self, oracle: Oracle) -> float:
        best = oracle.floor if self.best is None else self.best
        if best is None:
            raise ValueError("best: no floor of the inner loss is known; set best=, from a reference run")
        return best

    def state_dict(self) -> dict[str, Any]:
        """The multiplier, the running mean and the unit."""
        return {**self.unit.state_dict(), "weight": self.weight, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``."""
        self.unit.load_state_dict(state)
        self.weight, self.mean = state["weight"], state["mean"]
