"""How a step went, measured now and then from outside: the training is to the bit what it is without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from hialign.batch import Batch, PairBatch
from hialign.solvers import DynamicBarrier, Gradients, Group, Solver, only
from hialign.training.oracle import TrainingOracle

ALIGNED: tuple[Group, ...] = ("inner", "shared")
REACH = 1e-2  # length of the vector that is added for a central difference, in float32
NOISY = 0.3  # signal over noise below which a constant barrier is the weighted sum
EDGE = 1.9  # a plain gradient step along a direction of curvature c overshoots from rate * c = 2


class Watch:
    """Made before a step, read after it; of a stage with an inner level, without one it costs nothing and says nothing.

    Costs a copy of what the inner loss reaches while the step is made. Where the step has drawn an inner batch, then up
    to five inner gradients: one where the step began, two for the curvature, two over half of the batch each for the
    noise; and as many more copies as a second point and three gradients are.
    """

    def __init__(self, oracle: TrainingOracle) -> None:
        self.oracle = oracle
        self.before: Gradients = {}
        if "inner" in oracle.levels:
            read = {name: oracle.parameters[name].detach().clone() for name in oracle.outer_read}
            self.before = oracle.values(*ALIGNED) | read
        self.drawn = dict(oracle.batches)

    def read(self, weight: float | None) -> dict[str, float]:
        """Numbers of the step; ``weight`` is what its solver multiplied the inner gradient with, if it did.

        - ``aligned_step_ratio``: how far the aligned parameters moved, in lengths of their own vector.
        - ``inner_step_cosine``: between the inner gradient and the step of the aligned parameters; where it is above 0,
          and ``inner_ascends`` is 1, the step went up the inner loss's slope, as under Adam some do.
        - ``inner_snr``: see ``signal_to_noise``; absent where the batch has no two halves of two rows.
        - ``curvature``: ``|<g, H g>| / |g|^2`` of the inner gradient g, H by one central difference. In float32 alone:
          rounding in half precision is larger than the difference.
        - ``edge``: learning rate * weight * curvature, the factor by which a plain gradient step would overshoot if it
          were above 2. An adaptive optimiser steps in another metric, so there it is an order of magnitude.
        """
        if not self.before:
            return {}
        drawn = any(
            key[0] == "inner" and self.oracle.batches[key] is not self.drawn.get(key) for key in self.oracle.batches
        )
        gradient = self._gradient({}) if drawn else {}
        length, size, along = self._moved(gradient)
        rows = {"aligned_step_ratio": math.sqrt(length / size)} if size else {}
        return rows | (self._inner(gradient, length, along, weight) if drawn else {})

    def _moved(self, gradient: Gradients) -> tuple[float, float, float]:
        """Of the aligned parameters' step and of where it began the squared norms, and the step along ``gradient``.

        One parameter at a time: the whole step would be another copy.
        """
        length = size = along = 0.0
        for name, here in only(self.oracle, self.before, *ALIGNED).items():
            step = {name: self.oracle.parameters[name].detach() - here}
            pairs = ((step, step), ({name: here}, {name: here}), (gradient, step))
            parts = self.oracle.dots(*pairs)
            length, size, along = length + parts[0], size + parts[1], along + parts[2]
        return length, size, along

    def _inner(self, gradient: Gradients, length: float, along: float, weight: float | None) -> dict[str, float]:
        (square,) = self.oracle.dots((gradient, gradient))
        rows = {"inner_ascends": float(along > 0)}
        if square and length:
            rows["inner_step_cosine"] = along / math.sqrt(square) / math.sqrt(length)
        if square and self.oracle.precision == "fp32":
            rows["curvature"] = abs(self._bend(gradient, square))
            if weight is not None:
                rows["edge"] = self.oracle.rate * abs(weight) * rows["curvature"]
        parts = {key: halves(batches) for key, batches in self.oracle.batches.items() if key[0] == "inner"}
        if all(parts.values()):
            first, second = (self._on({key: both[i] for key, both in parts.items() if both}) for i in (0, 1))
            rows |= signal_to_noise(*self.oracle.dots((first, second), (first, first), (second, second)))
        return rows

    def _gradient(self, along: Gradients, by: float = 0.0) -> Gradients:
        """The inner gradient of the aligned parameters where the step began, or ``by`` times ``along`` off."""
        at = {n: value.add(along[n], alpha=by) if n in along else value for n, value in self.before.items()}
        return only(self.oracle, self.oracle.grads("inner", at=at, again=True), *ALIGNED)

    def _bend(self, gradient: Gradients, square: float) -> float:
        """``<g, H g> / |g|^2``."""
        reach = REACH / math.sqrt(square)
        up, down = (self.oracle.dots((gradient, self._gradient(gradient, by)))[0] for by in (reach, -reach))
        return (up - down) / (2 * reach * square)

    def _on(self, batches: Mapping[tuple[str, str], list[Batch]]) -> Gradients:
        with _instead(self.oracle, batches):
            return self._gradient({})


def signal_to_noise(both: float, first: float, second: float) -> dict[str, float]:
    """``inner_snr`` of the mean of two independent gradients, from their product and their squared norms; or nothing.

    The product estimates the true gradient's squared norm without the noise's part, ``|first - second|^2 / 4`` the
    noise's part in their mean's. Negative where the noise drowns the signal. Nothing where the two are equal.

    Differs: the mean of both halves stands for the whole batch's gradient, whose loss has more negatives; so the
    estimate is consistent and its denominator never negative. For losses that are means over rows it is the same.
    """
    noise = (first + second - 2 * both) / 4
    return {"inner_snr": both / noise} if noise > 0 else {}


def halves(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]] | None:
    """Two lists of as many micro-batches, none larger than before; None where a half would have less than two rows."""
    half = len(batches) // 2
    if half:
        first, second = list(batches[:half]), list(batches[half : 2 * half])
    else:
        (batch,) = batches
        if not isinstance(batch, PairBatch):  # whose tensors may run over something else than rows
            return None
        middle = len(batch) // 2
        first, second = [batch.rows(slice(middle))], [batch.rows(slice(middle, 2 * middle))]
    enough = all(sum(len(batch) for batch in part) >= 2 for part in (first, second))
    return (first, second) if enough else None


def warnings(numbers: Mapping[str, float], solver: Solver) -> dict[str, str]:
    """What the numbers say against the settings, by kind, each with its fix."""
    said = {}
    snr, edge = numbers.get("inner_snr"), numbers.get("edge")
    if snr is not None and snr < NOISY and isinstance(solver, DynamicBarrier) and solver.start == solver.end:
        said["noise"] = (
            f"the inner gradient's signal over its noise is {snr:.2f}, and beta does not rise: so close to noise the "
            "barrier is the weighted sum; set solver.end above solver.start, or take a larger inner_batch_size"
        )
    if edge is not None and edge > EDGE:
        said["edge"] = (
            f"learning rate * weight * curvature of the inner loss is {edge:.2f}, and a plain gradient step is stable "
            "below 2: the inner loss may stay at a floor of the step's making; lower lr, or end with a lower solver.end"
        )
    return said


@contextmanager
def _instead(oracle: TrainingOracle, batches: Mapping[tuple[str, str], list[Batch]]) -> Iterator[None]:
    """Within it, these are the last batches."""
    kept = oracle.batches
    oracle.batches = {key: list(batches.get(key, value)) for key, value in kept.items()}
    try:
        yield
    finally:
        oracle.batches = kept
