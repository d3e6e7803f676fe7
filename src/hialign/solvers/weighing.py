"""What the solvers that weigh the inner gradient against the outer one have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hialign.solvers.oracle import Gradients, Oracle, axpy, only

INNER_ONLY = ("plain", "weighted")


@dataclass(frozen=True)
class Meeting:
    """How the two gradients stand to each other where both levels may move the parameters."""

    dot: float
    inner: float  # squared norms
    outer: float

    @property
    def cosine(self) -> float:
        """Of the angle between them; 0 where one vanishes."""
        size = math.sqrt(self.inner) * math.sqrt(self.outer)
        return self.dot / size if size else 0.0


def meet(oracle: Oracle, outer: Gradients, inner: Gradients) -> Meeting:
    """Inner products of the gradients, over the parameters that both have; logged, with what the inner one has there.

    ``shared_of_inner`` is the share of the inner gradient's norm that falls on parameters that the outer loss reads: a
    small one says that the heads learn and the embeddings do not.
    """
    apart = only(oracle, inner, "inner")
    dot, inner_square, outer_square, own = oracle.dots(
        (outer, inner),
        (inner, {name: inner[name] for name in inner if name in outer}),
        _met(outer, inner),
        (apart,) * 2,
    )
    met = Meeting(dot, inner_square, outer_square)
    whole = inner_square + own
    share = math.sqrt(inner_square / whole) if whole else 0.0
    oracle.log(cosine=met.cosine, shared_of_inner=share)
    return met


def _met(outer: Gradients, inner: Gradients) -> tuple[Gradients, Gradients]:
    there = {name: outer[name] for name in outer if name in inner}
    return there, there


def combine(oracle: Oracle, outer: Gradients, inner: Gradients, weight: float, *, inner_only: str) -> Gradients:
    """``outer + weight * inner``; overwrites the tensors of both.

    Where no outer gradient is, there is nothing to weigh against: with ``inner_only="plain"`` such parameters follow
    the inner gradient as it is, so that a weight of zero does not stop them; ``"weighted"`` multiplies it as well.
    """
    apart = only(oracle, inner, "inner") if inner_only == "plain" else {}
    met = {name: tensor for name, tensor in inner.items() if name not in apart}
    return axpy(weight, met, outer) | apart


def ramp(start: float, end: float, share: float) -> float:
    """From ``start`` to ``end`` by equal factors, as ``share`` goes from 0 to 1; ``end`` from there on."""
    return float(start * (end / start) ** min(1.0, share))


class Unit:
    """What a weight of one stands for: the outer gradient's norm over the inner one's, as warm-up ended.

    Losses of different models have gradients of quite different sizes, so a weight in these units means the same
    everywhere. Until the end of warm-up it is the geometric mean of the ratios so far, and that is kept for good.
    """

    def __init__(self, relative: bool, warmup: float) -> None:
        self.relative, self.warmup = relative, warmup
        self.logs, self.count = 0.0, 0

    def __call__(self, oracle: Oracle, met: Meeting) -> float:
        """The unit at this step, 1 unless weights are relative; takes note of the step's ratio."""
        if not self.relative:
            return 1.0
        measuring = self.count == 0 or oracle.step < self.warmup * oracle.total_steps
        if measuring and met.inner > 0 and met.outer > 0:
            self.logs += (math.log(met.outer) - math.log(met.inner)) / 2
            self.count += 1
        return math.exp(self.logs / self.count) if self.count else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The ratios so far."""
        return {"unit_logs": self.logs, "unit_count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``."""
        self.logs, self.count = float(state["unit_logs"]), int(state["unit_count"])


def check_inner_only(inner_only: str) -> str:
    """``inner_only`` as it is, a ``ValueError`` unless it is one of ``INNER_ONLY``."""
    if inner_only not in INNER_ONLY:
        raise ValueError(f"inner_only: got {inner_only!r}, wanted one of {', '.join(INNER_ONLY)}")
    return inner_only


def check_number(name: str, value: float, *, above: float) -> float:
    """``value`` as it is, a ``ValueError`` unless it is finite and greater than ``above``."""
    if not math.isfinite(value) or value <= above:
        raise ValueError(f"{name}: got {value}, wanted a finite number above {above:g}")
    return value


def check_share(name: str, value: float) -> float:
    """``value`` as it is, a ``ValueError`` unless it is a share of the steps, above 0 and at most 1."""
    if not 0 < value <= 1:
        raise ValueError(f"{name}: got {value}, wanted a share of the steps above 0 and at most 1")
    return value
