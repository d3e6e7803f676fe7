"""One outer step, then a few inner ones."""

from __future__ import annotations

from typing import Any

from hialign.solvers.oracle import Oracle, Requirement, only


class Alternating:
    """An outer step whose pull on the shared parameters fades, then ``inner_steps`` inner steps.

    The pull is ``(1 + step / half_life) ** -power``: the outer step must shrink against the inner one, but slowly
    enough that its sum has no limit, or it stops short of the best aligned point. Parameters that only the outer loss
    sees are not in conflict and get its whole gradient. One optimiser serves both levels: two sets of moments on the
    shared parameters converge to a wrong point.

    Source: Solodov 2007 (iteratively regularised gradient); Merchav and Sabach 2023, arXiv:2307.08245 (Bi-SG).
    Differs: those are for plain gradient steps. Adam rescales what fades here, so that under Adam the decay only
    shifts the balance, and this solver is a baseline.
    """

    two_level = True
    requires: frozenset[Requirement] = frozenset()

    def __init__(self, inner_steps: int = 5, power: float = 0.5, half_life: float = 100.0) -> None:
        if inner_steps < 1:
            raise ValueError(f"inner_steps: got {inner_steps}, wanted at least 1")
        if not 0 <= power <= 1:
            raise ValueError(
                f"power: got {power}, wanted a number in [0, 1]; above 1 the outer steps have a finite sum"
            )
        if not half_life > 0:
            raise ValueError(f"half_life: got {half_life}, wanted a number of steps above 0")
        self.inner_steps = inner_steps
        self.power = power
        self.half_life = half_life

    def step(self, oracle: Oracle) -> None:
        """One cycle."""
        pull = (1 + oracle.step / self.half_life) ** -self.power
        gradient = oracle.grads("outer")
        for name, tensor in gradient.items():
            if oracle.group_of(name) == "shared":
                tensor.mul_(pull)
        oracle.apply(gradient)
        for _ in range(self.inner_steps):
            oracle.apply(only(oracle, oracle.grads("inner"), "inner", "shared"))
        oracle.log(outer_pull=pull)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the pull follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
