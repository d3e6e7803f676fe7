"""First the inner loss, then the outer one."""

from __future__ import annotations

from typing import Any

from hialign.solvers.oracle import Oracle, Requirement, only


class Sequential:
    """Aligns for the first ``fraction`` of the steps, then trains the task.

    ``mode="freeze"``: the second phase moves those parameters alone that only the outer loss reads, and the shared ones
    stay where the first put them; aligned, but whatever solution it fell into. ``mode="tune"``: it trains them too, and
    forgets the alignment.

    Each phase runs a learning-rate schedule of its own, and the shared parameters' moments are dropped between them,
    since they belong to another loss.
    """

    two_level = True

    def __init__(self, fraction: float = 0.5, mode: str = "tune") -> None:
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: got {fraction}, wanted a number between 0 and 1")
        if mode not in ("freeze", "tune"):
            raise ValueError(f"mode: got {mode!r}, wanted 'freeze' or 'tune'")
        self.fraction = fraction
        self.mode = mode

    @property
    def requires(self) -> frozenset[Requirement]:
        """Where it freezes, parameters that the second phase may move."""
        return frozenset({"outer parameters"} if self.mode == "freeze" else ())

    def step(self, oracle: Oracle) -> None:
        """One inner step in the first phase, one outer step in the second."""
        switch = max(1, min(oracle.total_steps - 1, round(self.fraction * oracle.total_steps)))
        if oracle.step < switch:
            aligned = only(oracle, oracle.grads("inner"), "inner", "shared")
            oracle.apply(aligned, progress=(oracle.step + 0.5) / switch)
            return
        if oracle.step == switch:
            oracle.forget("shared")
        gradient = oracle.grads("outer")
        if self.mode == "freeze":
            gradient = only(oracle, gradient, "outer")
        oracle.apply(gradient, progress=(oracle.step + 0.5 - switch) / (oracle.total_steps - switch))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the phase follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
