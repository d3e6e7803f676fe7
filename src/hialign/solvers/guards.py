"""What makes a solver fail or go astray, said before the first step."""

from __future__ import annotations

from hialign.solvers.barrier import DynamicBarrier
from hialign.solvers.oracle import Solver
from hialign.solvers.penalty import ValuePenalty
from hialign.solvers.tangent import ImplicitTangent


def complaints(
    solver: Solver,
    *,
    floor: float | None,
    shared_decay: float,
    constant_rate: bool,
    inner_depends_on_outer: bool,
    adaptive: bool,
    free_temperature: bool = False,
    precision: str = "fp32",
    outer_alone: bool = True,
) -> list[str]:
    """Warnings, each with its fix; a ``ValueError`` for what cannot work.

    Args:
        floor: a proved lower bound of the inner loss, None where none is known.
        shared_decay: the largest weight decay on a parameter that the inner loss reaches.
        constant_rate: whether the learning rate stays up to the end.
        adaptive: whether the optimiser rescales gradients, so that its learning rate is no plain step's.
        free_temperature: whether the contrastive temperature trains.
        precision: that gradients are computed in: fp32 (or better), or bf16.
        outer_alone: whether some parameter is the outer level's alone; False is an error where an empty step is one.
    """
    if not solver.two_level:
        return []
    name = type(solver).__name__
    if "floor" in solver.requires and floor is None:
        raise ValueError(
            f"{name}: it measures the inner loss against its best value, for which no proved floor is known here; set "
            "best= to the inner loss of a reference run, or choose another solver (DynamicBarrier: phi=grad)"
        )
    if "own step" in solver.requires and precision == "bf16":
        raise ValueError(
            f"{name}: its own step comes from small differences of gradients, and rounding in {precision} is larger; "
            "wanted float32: set trainer.precision=fp32, or choose another solver"
        )
    if "outer parameters" in solver.requires and not outer_alone:
        raise ValueError(
            f"{name}: mode=freeze leaves aligned parameters alone in its second phase, and the outer loss reaches no "
            "others that train; train a part that only the outer loss reads (train.llm=full or lora), or set mode=tune"
        )
    said = []
    if shared_decay > 0:
        said.append(
            f"weight decay {shared_decay:g} on aligned parameters is a task of its own that the solver does not see, "
            "and moves the aligned point; set weight_decay=0, or add the decay to the outer loss"
        )
    if constant_rate and "falling rate" in solver.requires:
        said.append(
            f"{name} at a constant learning rate keeps the inner loss above its minimum by about the rate's square; "
            "use a schedule that falls to 0, such as cosine"
        )
    if inner_depends_on_outer and not isinstance(solver, DynamicBarrier | ValuePenalty | ImplicitTangent):
        said.append(
            f"{name} with an inner loss that depends on outer parameters: a weighted sum may have no minimum, and the "
            "task can make the inner loss easy instead of aligning; use DynamicBarrier, ValuePenalty or ImplicitTangent"
        )
    if inner_depends_on_outer and isinstance(solver, DynamicBarrier) and solver.phi in ("value", "half", "min"):
        said.append(
            f"{name} with phi={solver.phi} and an inner loss that depends on outer parameters: its best value moves "
            "with them and best= does not; use phi=grad"
        )
    said += _of_rates(solver, inner_depends_on_outer) if adaptive else []
    if free_temperature:
        said.append(
            "the temperature trains, and the inner loss falls by sharpening alone; freeze it "
            "(train.temperature=frozen), or read the alignment gap at a fixed one"
        )
    return said


def _of_rates(solver: Solver, inner_depends_on_outer: bool) -> list[str]:
    """What takes the learning rate for that of a plain gradient step, under an optimiser for which it is not."""
    name = type(solver).__name__
    said = []
    if isinstance(solver, DynamicBarrier) and solver.phi == "half":
        said.append(
            f"{name} with phi=half takes the learning rate for that of plain gradient steps, and this optimiser "
            "rescales them, so that the weight is of another size than meant; use phi=grad, or SGD"
        )
    shadowed = isinstance(solver, DynamicBarrier | ValuePenalty) and solver.inner_rate is None
    if inner_depends_on_outer and shadowed:
        said.append(
            f"{name} with an inner loss that depends on outer parameters estimates its best value by plain gradient "
            "steps at the learning rate, which this optimiser rescales: they may hardly move; set inner_rate= to the "
            "rate of a plain gradient step on the inner loss"
        )
    return said
