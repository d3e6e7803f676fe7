"""Ways to train two levels at once. Needs torch alone; ``minimise`` runs a solver on any two closures."""

from hialign.solvers.alternating import Alternating
from hialign.solvers.joint import Joint
from hialign.solvers.minimise import Minimum, minimise
from hialign.solvers.oracle import Gradients, Group, Level, Oracle, Solver, assign_groups, axpy
from hialign.solvers.sequential import Sequential
from hialign.solvers.single import Single

__all__ = [
    "Alternating",
    "Gradients",
    "Group",
    "Joint",
    "Level",
    "Minimum",
    "Oracle",
    "Sequential",
    "Single",
    "Solver",
    "assign_groups",
    "axpy",
    "minimise",
]
