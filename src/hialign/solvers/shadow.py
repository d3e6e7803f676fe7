"""For inner losses that read parameters of the outer level: what the inner loss is at its own best, and its slope."""

from __future__ import annotations

from hialign.solvers.oracle import Gradients, Oracle, axpy, only


def inner_descent(oracle: Oracle, shadow: Gradients, steps: int, rate: float) -> Gradients:
    """``shadow`` after plain gradient steps on the inner loss over the last batch; the model stays where it is."""
    for _ in range(steps):
        gradient = only(oracle, oracle.grads("inner", at=shadow, again=True), "inner", "shared")
        shadow = axpy(-rate, gradient, shadow)
    return shadow


def value_gradient(oracle: Oracle, inner: Gradients, shadow: Gradients) -> Gradients:
    """The gradient of ``inner loss - inner loss at shadow``; overwrites ``inner``.

    The shadow is taken for the inner level's best, whose value then depends on the outer parameters alone.

    Source: Liu et al. 2022, arXiv:2209.08709, eq. 8; Shen and Chen 2023, arXiv:2302.05185, sec. 4.
    """
    there = oracle.grads("inner", at=shadow, again=True)
    return axpy(-1.0, only(oracle, there, "outer"), inner)
