"""Steps inside the set of aligned points, by the inner loss's curvature: for small inner problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from hialign.solvers.oracle import Gradients, Oracle, Requirement, axpy, only
from hialign.solvers.weighing import check_number, check_share, meet, ramp


class ImplicitTangent:
    """Moves the aligned parameters by ``-d`` with ``(H + damping) d = inner + damping * pull * outer``.

    H is the inner loss's Hessian. As the damping goes to 0, what becomes of the outer gradient is its projection onto
    the null space of H, the tangent space of the set of aligned points, and what becomes of the inner one is a Newton
    step back into it. The fixed point is that of the weighted sum with weight ``1 / (damping * pull)``, and the step
    towards it is well conditioned.

    The system is solved by conjugate gradients, H times a vector being a central difference of two gradients of the
    same batch: no double backward pass, so that every attention kernel serves. The aligned parameters move past the
    optimiser, whose metric would be another one; parameters that only the outer loss reaches move by it. In half
    precision rounding is larger than these differences, so gradients must come in float32 or better.

    Where the inner level depends on the outer one, the outer parameters follow the implicit hypergradient: the outer
    gradient less the mixed derivative of the inner loss along ``u``, ``(H + damping) u = outer``.

    Args:
        pull: how far the outer gradient reaches: a step length of its own, below 2 over that loss's curvature.
        damping_start, damping_end: of the damping, by equal factors over the share ``ramp`` of the steps.
        steps: of conjugate gradients, at most; each costs two inner gradients.
        trust: the longest step, in lengths of the aligned parameters' vector.
        difference: the length of the vector that is added for the central difference; 1e-2 suits float32, 1e-5 float64.

    Source: Rajeswaran et al. 2019, arXiv:1909.04630 (damped implicit gradients); Lorraine et al. 2020,
    arXiv:1911.02590 (the hypergradient).
    Differs: re-centred at the present point at every step. With a free centre the constraint would be void.
    """

    two_level = True
    requires: frozenset[Requirement] = frozenset({"own step"})

    def __init__(
        self,
        pull: float = 1.0,
        damping_start: float = 1e-1,
        damping_end: float = 1e-3,
        ramp: float = 0.7,
        *,
        steps: int = 10,
        trust: float = 0.5,
        difference: float = 1e-2,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps: got {steps}, wanted at least 1")
        self.pull, self.ramp, self.steps = check_number("pull", pull, above=0), check_share("ramp", ramp), steps
        self.damping_start = check_number("damping_start", damping_start, above=0)
        self.damping_end = check_number("damping_end", damping_end, above=0)
        self.trust = check_number("trust", trust, above=0)
        self.difference = check_number("difference", difference, above=0)

    def step(self, oracle: Oracle) -> None:
        """One damped Newton step of the aligned parameters, one optimiser step of the others."""
        outer, inner = oracle.grads("outer"), oracle.grads("inner")
        meet(oracle, outer, inner)
        damping = ramp(self.damping_start, self.damping_end, oracle.step / (self.ramp * oracle.total_steps))
        aligned = only(oracle, outer, "inner", "shared")
        curvature = self._curvature(oracle, damping)
        rest = only(oracle, outer, "outer")
        target = {name: g.clone() for name, g in only(oracle, inner, "inner", "shared").items()}
        if oracle.inner_depends_on_outer:
            # of all aligned parameters: what only the inner loss reads passes the outer parameters' pull on
            whole = {name: torch.zeros_like(tensor) for name, tensor in target.items()} | aligned
            rest = self._hypergradient(oracle, rest, self._solve(oracle, curvature, whole, damping))
        target = axpy(damping * self.pull, aligned, target)
        direction = self._trusted(oracle, self._solve(oracle, curvature, target, damping))
        if rest:
            oracle.apply(rest)
        oracle.move(direction)
        oracle.log(damping=damping)

    def _curvature(self, oracle: Oracle, damping: float) -> Callable[[Gradients], Gradients]:
        """``v -> (H + damping) v`` at the present parameters."""
        here = oracle.values("inner", "shared")

        def product(v: Gradients) -> Gradients:
            forward, backward, reach = self._both_sides(oracle, here, v)
            curved = axpy(-1.0, only(oracle, backward, "inner", "shared"), only(oracle, forward, "inner", "shared"))
            torch._foreach_mul_(list(curved.values()), 1 / (2 * reach))
            return {name: curved[name].add_(v[name], alpha=damping) for name in v}

        return product

    def _both_sides(self, oracle: Oracle, here: Gradients, v: Gradients) -> tuple[Gradients, Gradients, float]:
        """The inner gradients a little ahead along ``v`` and a little behind, and how much of ``v`` that is."""
        (square,) = oracle.dots((v, v))
        reach = self.difference / math.sqrt(square)
        forward = oracle.grads("inner", at={n: here[n].add(v[n], alpha=reach) for n in v}, again=True)
        return forward, oracle.grads("inner", at={n: here[n].add(v[n], alpha=-reach) for n in v}, again=True), reach

    def _solve(
        self, oracle: Oracle, product: Callable[[Gradients], Gradients], target: Gradients, damping: float
    ) -> Gradients:
        """About the x with ``product(x) = target``: conjugate gradients, up to the first direction of no curvature.

        Where the target itself is one, x is the target over the absolute value of H's curvature along it and the
        damping: no longer than half of what the damping alone allows.
        """
        x = {name: torch.zeros_like(tensor) for name, tensor in target.items()}
        rest = {name: tensor.clone() for name, tensor in target.items()}
        (square,) = oracle.dots((rest, rest))
        first, along = square, {name: tensor.clone() for name, tensor in rest.items()}
        done = 0
        while done < self.steps and square > 1e-20 * first and square > 0:
            curved = product(along)
            (bend,) = oracle.dots((along, curved))
            if bend <= 0:
                if done == 0:  # bend is (curvature + damping) * square, and the curvature below -damping
                    x = axpy(1 / (2 * damping - bend / square), along, x)
                break
            length = square / bend
            x = axpy(length, along, x)
            rest = axpy(-length, curved, rest)
            before, (square,) = square, oracle.dots((rest, rest))
            torch._foreach_mul_(list(along.values()), square / before)
            along = axpy(1.0, rest, along)
            done += 1
        oracle.log(cg_steps=done, cg_residual=math.sqrt(square / first) if first else 0.0)
        return x

    def _trusted(self, oracle: Oracle, direction: Gradients) -> Gradients:
        """Minus the direction, shortened to the trust region."""
        here = oracle.values("inner", "shared")
        length, size = (math.sqrt(value) for value in oracle.dots((direction, direction), (here, here)))
        most = self.trust * size
        factor = min(1.0, most / length) if length and most else 1.0
        torch._foreach_mul_(list(direction.values()), -factor)
        oracle.log(step_length=length * factor, shortened=float(factor < 1))
        return direction

    def _hypergradient(self, oracle: Oracle, outer: Gradients, u: Gradients) -> Gradients:
        """The outer parameters' gradient through the aligned ones, by a central difference along ``u``."""
        (square,) = oracle.dots((u, u))
        if square == 0:
            return outer
        forward, backward, reach = self._both_sides(oracle, oracle.values("inner", "shared"), u)
        mixed = axpy(-1.0, only(oracle, backward, "outer"), only(oracle, forward, "outer"))
        return axpy(-1 / (2 * reach), mixed, outer)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the damping follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
