"""Sequential: one level after the other."""

from __future__ import annotations

import pytest
import torch

from hialign.solvers import Sequential, minimise


class Split:
    """P1b with what only one loss sees: a head in the inner loss, phi in the outer one; notes every call."""

    def __init__(self, affine) -> None:
        self.affine = affine
        generator = torch.Generator().manual_seed(1)
        self.mix = torch.randn(len(affine.c), 3, generator=generator, dtype=torch.float64) / 3
        self.x = affine.start.clone().requires_grad_()
        self.phi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.head = torch.ones(2, dtype=torch.float64, requires_grad=True)
        self.seen = {"inner": [], "outer": []}

    @property
    def parameters(self):
        return {"x": self.x, "phi": self.phi, "head": self.head}

    def _note(self, level: str) -> None:
        self.seen[level].append({name: p.detach().clone() for name, p in self.parameters.items()})

    def inner(self):
        self._note("inner")
        return self.affine.inner(self.x) + (self.head**2).sum() / 2

    def outer(self):
        self._note("outer")
        return self.affine.outer(self.x - self.mix @ self.phi) + (self.phi**2).sum() / 2

    def run(self, mode: str, *, steps: int = 40, lr: float = 0.3, optimizer=torch.optim.SGD, schedule=lambda p: 1.0):
        minimise(
            Sequential(fraction=0.5, mode=mode),
            self.parameters,
            inner=self.inner,
            outer=self.outer,
            steps=steps,
            optimizer=optimizer(self.parameters.values(), lr=lr),
            schedule=schedule,
        )
        # the first call of each is the probe that finds the groups
        return self.seen["inner"][1:], self.seen["outer"][1:]


def test_freeze_leaves_the_shared_parameters_exactly_where_phase_one_put_them(affine):
    split = Split(affine)
    _, phase_two = split.run("freeze")
    expected = affine.start.clone()
    for _ in range(20):
        expected -= 0.3 * affine.matrix.T @ (affine.matrix @ expected - affine.b)
    torch.testing.assert_close(phase_two[0]["x"], expected)
    assert all(torch.equal(seen["x"], phase_two[0]["x"]) for seen in phase_two)
    assert torch.equal(split.x.detach(), phase_two[0]["x"])
    assert torch.equal(split.head.detach(), phase_two[0]["head"])


def test_freeze_solves_the_task_for_what_only_the_task_sees(affine):
    split = Split(affine)
    _, phase_two = split.run("freeze", steps=400)
    gram = split.mix.T @ split.mix + torch.eye(3, dtype=torch.float64)
    best = torch.linalg.solve(gram, split.mix.T @ (phase_two[0]["x"] - affine.c))
    torch.testing.assert_close(split.phi.detach(), best)
    assert best.norm() > 0.1


def test_freeze_is_aligned_but_not_at_the_optimum_and_tune_forgets_the_alignment(affine):
    # on P1 itself: the solution that phase one falls into is the start's projection on the solution set
    frozen, _ = affine.minimise(Sequential(mode="freeze"), steps=400, lr=0.3)
    projection = affine.start - torch.linalg.pinv(affine.matrix) @ (affine.matrix @ affine.start - affine.b)
    torch.testing.assert_close(frozen, projection, rtol=0, atol=1e-3)
    assert (frozen - affine.optimum).norm() > 1
    tuned, _ = affine.minimise(Sequential(mode="tune"), steps=400, lr=0.3)
    torch.testing.assert_close(tuned, affine.c)
    assert affine.inner(tuned) > 0.5


def test_tune_moves_the_shared_parameters_in_phase_two(affine):
    split = Split(affine)
    _, phase_two = split.run("tune")
    assert not torch.equal(split.x.detach(), phase_two[0]["x"])
    assert torch.equal(split.head.detach(), phase_two[0]["head"])  # the outer loss does not see it


def test_each_phase_asks_for_its_own_level_only(affine):
    for mode in ("freeze", "tune"):
        phase_one, phase_two = Split(affine).run(mode, steps=10)
        assert (len(phase_one), len(phase_two)) == (5, 5)


def test_moments_of_the_shared_parameters_are_dropped_at_the_switch(affine):
    split = Split(affine)
    _, phase_two = split.run("tune", lr=0.01, optimizer=torch.optim.Adam)
    first = phase_two[1]["x"] - phase_two[0]["x"]
    gradient = phase_two[0]["x"] - split.mix @ phase_two[0]["phi"] - affine.c
    # without moments Adam's step is lr in the direction of the gradient's sign
    torch.testing.assert_close(first, -0.01 * gradient.sign(), rtol=1e-5, atol=0)


def test_only_the_shared_moments_are_dropped_and_only_once(oracle):
    notes = oracle.run(Sequential(fraction=0.5), range(10))
    assert [note for note in notes if note[0] == "forget"] == [("forget", "shared")]
    assert notes.index(("forget", "shared")) == 10  # two notes a step: after five steps


def test_each_phase_has_a_schedule_cycle_of_its_own(affine):
    asked = []
    Split(affine).run("tune", steps=8, schedule=lambda progress: asked.append(progress) or 1.0)
    assert asked == pytest.approx([0.125, 0.375, 0.625, 0.875] * 2)


@pytest.mark.parametrize(
    ("fraction", "steps", "inner"), [(0.25, 8, 2), (0.01, 8, 1), (0.99, 8, 7), (0.5, 2, 1), (0.3, 10, 3)]
)
def test_both_phases_get_at_least_one_step(oracle, fraction: float, steps: int, inner: int):
    oracle.total_steps = steps
    asked = [note[1] for note in oracle.run(Sequential(fraction), range(steps)) if note[0] == "grads"]
    assert asked == ["inner"] * inner + ["outer"] * (steps - inner)


@pytest.mark.parametrize("stop", [3, 5, 6, 8])
def test_a_resumed_sequential_goes_on_as_one_that_was_not_stopped(oracle, another_oracle, stop: int):
    whole = oracle.run(Sequential(), range(10))
    first = Sequential()
    notes = another_oracle.run(first, range(stop))
    second = Sequential()
    second.load_state_dict(first.state_dict())
    assert notes + another_oracle.run(second, range(stop, 10)) == whole


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_sequential_refuses_a_fraction_without_two_phases(fraction: float):
    with pytest.raises(ValueError, match="fraction: got"):
        Sequential(fraction)


def test_sequential_refuses_a_mode_that_it_does_not_have():
    with pytest.raises(ValueError, match="mode: got 'frozen', wanted 'freeze' or 'tune'"):
        Sequential(mode="frozen")
