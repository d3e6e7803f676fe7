"""Every misuse of two closures is refused or warned of, and the message says what to do about it."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch

from hialign.solvers import (
    MGDA,
    Alternating,
    CAGrad,
    ConstrainedDual,
    DynamicBarrier,
    ImplicitTangent,
    Joint,
    PCGrad,
    Sequential,
    Single,
    ValuePenalty,
    complaints,
    minimise,
)

SGD = torch.optim.SGD
QUIET = {
    "floor": None,
    "shared_decay": 0.0,
    "constant_rate": False,
    "inner_depends_on_outer": False,
    "adaptive": False,
}


def falling(progress: float) -> float:
    return 1 - progress


class Two:
    """Two losses of a shared x, of which the outer one also reads y."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.x, self.y, self.idle = (torch.ones(2, dtype=dtype, requires_grad=True) for _ in range(3))

    def run(self, solver, *, optimizer=None, parameters=None, schedule=falling, **settings):
        return minimise(
            solver,
            parameters or {"x": self.x, "y": self.y},
            inner=lambda: (self.x - self.y.detach()).square().sum(),
            outer=lambda: self.x.square().sum() + self.y.square().sum(),
            steps=4,
            optimizer=optimizer or SGD([self.x, self.y], lr=0.01),
            schedule=schedule,
            **settings,
        )


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        pytest.param(
            lambda two: {"optimizer": [SGD([two.x], lr=0.1), SGD([two.y], lr=0.1)]},
            r"optimizer: got list, wanted one torch.optim.Optimizer over all parameters; two sets of moments",
            id="two optimisers",
        ),
        pytest.param(
            lambda two: {"optimizer": SGD([two.x], lr=0.1)},
            r"optimizer: it does not own y; make it of parameters.values\(\)",
            id="a parameter that it lacks",
        ),
        pytest.param(
            lambda two: {"optimizer": SGD([two.x, two.y, two.idle], lr=0.1)},
            "optimizer: it owns 3 tensors and parameters has 2; name them all",
            id="a parameter too many",
        ),
        pytest.param(
            lambda two: {
                "parameters": {"x": two.x, "y": two.y, "idle": two.idle},
                "optimizer": SGD([two.x, two.y, two.idle], lr=0.1),
            },
            "parameters: no loss reaches idle; leave them out",
            id="a parameter that no loss reaches",
        ),
        pytest.param(
            lambda two: {"parameters": {"x": two.x, "y": two.y.detach()}},
            "parameters: y require no gradient; leave them out, or let them train",
            id="a parameter that does not train",
        ),
        pytest.param(
            lambda two: {"inner_depends_on_outer": ("y",)},
            "inner_depends_on_outer: got y, which both losses do not reach; wanted parts that train and that both",
            id="a part that the inner loss does not read",
        ),
        pytest.param(
            lambda two: {"inner_depends_on_outer": ("z",)},
            "inner_depends_on_outer: got z",
            id="a part that does not exist",
        ),
    ],
)
def test_a_misuse_is_an_error_before_anything_moves(misuse, message: str):
    two = Two()
    with pytest.raises(ValueError, match=message):
        two.run(Joint(), **misuse(two))
    assert two.x.tolist() == two.y.tolist() == [1, 1]


@pytest.mark.parametrize("solver", [DynamicBarrier(phi=phi) for phi in ("value", "half", "min")] + [ConstrainedDual()])
def test_a_solver_that_measures_against_a_best_value_needs_one(solver):
    message = "set best= to the inner loss of a reference run, or choose another solver"
    with pytest.raises(ValueError, match=message):
        Two().run(solver)
    Two().run(solver, floor=0.0)


@pytest.mark.parametrize("solver", [DynamicBarrier(phi="value", best=0.1), ConstrainedDual(best=0.1)])
def test_a_best_value_of_ones_own_will_do(solver):
    assert complaints(solver, **QUIET) == []


@pytest.mark.parametrize(
    "build", [torch.optim.AdamW, lambda p, lr, weight_decay: SGD(p, lr, weight_decay=weight_decay)]
)
def test_weight_decay_on_aligned_parameters_is_warned_of(build):
    two = Two()
    groups = [{"params": [two.x], "weight_decay": 0.5}, {"params": [two.y], "weight_decay": 0.0}]
    with pytest.warns(UserWarning, match=r"weight decay 0.5 on aligned parameters .*; set weight_decay=0, or add the"):
        two.run(Joint(), optimizer=build(groups, lr=0.01, weight_decay=0.0))


def test_weight_decay_on_what_only_the_outer_loss_reads_is_nobodys_business():
    two = Two()
    groups = [{"params": [two.x], "weight_decay": 0.0}, {"params": [two.y], "weight_decay": 0.5}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two.run(Joint(), optimizer=torch.optim.AdamW(groups, lr=0.01))


def test_a_constant_rate_is_warned_of_where_the_solver_needs_a_falling_one():
    with pytest.warns(UserWarning, match="DynamicBarrier at a constant learning rate .*; use a schedule that falls"):
        Two().run(DynamicBarrier(), schedule=lambda progress: 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Two().run(DynamicBarrier())
        Two().run(ValuePenalty(), schedule=lambda progress: 1.0)


CANNOT_FOLLOW = [Joint(), Sequential(), Alternating(), ConstrainedDual(best=0.0), PCGrad(), MGDA(), CAGrad()]


@pytest.mark.parametrize("solver", CANNOT_FOLLOW, ids=lambda solver: type(solver).__name__)
def test_a_dependent_inner_level_is_warned_of_where_the_solver_takes_no_value_off(solver):
    (said,) = complaints(solver, **(QUIET | {"inner_depends_on_outer": True}))
    assert said.startswith(f"{type(solver).__name__} with an inner loss that depends on outer parameters")
    assert said.endswith("use DynamicBarrier, ValuePenalty or ImplicitTangent")


@pytest.mark.parametrize("solver", [DynamicBarrier(), ValuePenalty(), ImplicitTangent()])
def test_the_solvers_that_follow_a_dependent_inner_level_are_not_warned_of(solver):
    assert complaints(solver, **(QUIET | {"inner_depends_on_outer": True})) == []


@pytest.mark.parametrize("phi", ["value", "half", "min"])
def test_a_best_value_that_cannot_move_with_the_outer_parameters_is_warned_of(phi: str):
    (said,) = complaints(DynamicBarrier(phi=phi, best=0.0), **(QUIET | {"inner_depends_on_outer": True}))
    assert f"phi={phi}" in said
    assert said.endswith("use phi=grad")


def test_a_solver_that_steps_along_differences_of_gradients_is_refused_in_half_precision():
    message = r"ImplicitTangent: .* rounding in bf16 is larger; wanted float32: set trainer.precision=fp32"
    with pytest.raises(ValueError, match=message):
        complaints(ImplicitTangent(), **QUIET, precision="bf16")
    assert complaints(ImplicitTangent(), **QUIET, precision="fp32") == []
    assert complaints(DynamicBarrier(), **QUIET, precision="bf16") == []
    with pytest.raises(ValueError, match=message):
        Two(torch.bfloat16).run(ImplicitTangent())


def test_a_second_phase_that_would_move_nothing_is_refused():
    with pytest.raises(ValueError, match=r"Sequential: mode=freeze .* reaches no others .*, or set mode=tune"):
        complaints(Sequential(mode="freeze"), **QUIET, outer_alone=False)
    assert complaints(Sequential(mode="freeze"), **QUIET, outer_alone=True) == []
    assert complaints(Sequential(mode="tune"), **QUIET, outer_alone=False) == []


def test_a_phi_that_divides_by_the_learning_rate_is_warned_of_under_an_adaptive_optimiser():
    half = DynamicBarrier(phi="half", best=0.0)
    (said,) = complaints(half, **(QUIET | {"adaptive": True}))
    assert "phi=half takes the learning rate for that of plain gradient steps" in said
    assert complaints(half, **QUIET) == complaints(DynamicBarrier(), **(QUIET | {"adaptive": True})) == []
    two = Two()
    with pytest.warns(UserWarning, match="phi=half takes the learning rate"):
        two.run(half, optimizer=torch.optim.Adam([two.x, two.y], lr=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Two().run(half)  # by SGD


@pytest.mark.parametrize("build", [DynamicBarrier, ValuePenalty])
def test_a_descent_at_an_adaptive_optimisers_rate_is_warned_of(build):
    dependent = QUIET | {"inner_depends_on_outer": True}
    (said,) = complaints(build(), **(dependent | {"adaptive": True}))
    assert said.startswith(f"{build.__name__} with an inner loss that depends on outer parameters estimates its best")
    assert "set inner_rate=" in said
    assert complaints(build(inner_rate=0.1), **(dependent | {"adaptive": True})) == []
    assert complaints(build(), **(QUIET | {"adaptive": True})) == complaints(build(), **dependent) == []


def test_a_temperature_that_trains_is_warned_of():
    (said,) = complaints(Joint(), **QUIET, free_temperature=True)
    assert "freeze it (train.temperature=frozen)" in said


def test_a_solver_of_one_level_has_nothing_to_complain_of():
    everything = {"floor": None, "shared_decay": 1.0, **dict.fromkeys(list(QUIET)[2:], True)}
    assert complaints(Single(), **everything, free_temperature=True) == []


def test_all_that_is_wrong_is_said_at_once():
    said = complaints(
        DynamicBarrier(phi="half", best=0.0),
        floor=None,
        shared_decay=0.1,
        constant_rate=True,
        inner_depends_on_outer=True,
        adaptive=True,
        free_temperature=True,
    )
    assert len(said) == 6
    given = {"solver", "free_temperature", "precision", "outer_alone", *QUIET}
    assert set(inspect.signature(complaints).parameters) == given
