"""One level only."""

from __future__ import annotations

from typing import Any

from hialign.solvers.oracle import Oracle, Requirement


class Single:
    """Gradient descent on the outer loss: what a stage without an inner level uses."""

    two_level = False
    requires: frozenset[Requirement] = frozenset()

    def step(self, oracle: Oracle) -> None:
        """One outer step."""
        oracle.apply(oracle.grads("outer"))

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
