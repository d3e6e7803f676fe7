"""Ways to train two levels at once. Needs torch alone; ``minimise`` runs a solver on any two closures."""

from hialign.solvers.alternating import Alternating
from hialign.solvers.barrier import DynamicBarrier
from hialign.solvers.dual import ConstrainedDual
from hialign.solvers.guards import complaints
from hialign.solvers.joint import Joint
from hialign.solvers.minimise import Minimum, minimise, put
from hialign.solvers.multitask import MGDA, CAGrad, PCGrad
from hialign.solvers.oracle import (
    Gradients,
    Group,
    Level,
    Oracle,
    Requirement,
    Solver,
    aligned_rate,
    assign_groups,
    axpy,
    local_dot,
    only,
)
from hialign.solvers.penalty import ValuePenalty
from hialign.solvers.sequential import Sequential
from hialign.solvers.single import Single
from hialign.solvers.tangent import ImplicitTangent

__all__ = [
    "MGDA",
    "Alternating",
    "CAGrad",
    "ConstrainedDual",
    "DynamicBarrier",
    "Gradients",
    "Group",
    "ImplicitTangent",
    "Joint",
    "Level",
    "Minimum",
    "Oracle",
    "PCGrad",
    "Requirement",
    "Sequential",
    "Single",
    "Solver",
    "ValuePenalty",
    "aligned_rate",
    "assign_groups",
    "axpy",
    "complaints",
    "local_dot",
    "minimise",
    "only",
    "put",
]
