"""Measuring a step: numbers that are known by hand, and a training that does not notice."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hialign.batch import Batch, PairBatch, Tokens
from hialign.objectives import NextToken, Result
from hialign.solvers import Alternating, DynamicBarrier, Joint, Sequential, ValuePenalty
from hialign.training import LevelRun, Logs, NonFinite, Optimisation, Stage, Training, TrainingOracle
from hialign.training.diagnostics import Watch, halves, signal_to_noise, warnings

CPU = torch.device("cpu")
MEASURED = {
    *("aligned_step_ratio", "inner_step_cosine", "inner_ascends"),
    *("inner_snr", "curvature", "edge"),
}
BENDS = torch.tensor([2.0, 6.0], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Rows(Batch):
    x: torch.Tensor  # (rows, 2)


def rows(values):
    return Rows(records=tuple(f"r{i}" for i in range(len(values))), x=torch.tensor(values, dtype=torch.float64))


class Steps:
    """A stream that gives the same micro-batches at every step."""

    epochs = 0.0

    def __init__(self, *batches):
        self.batches = list(batches)

    def next(self):
        return list(self.batches)

    def peek(self):
        return self.batches[0]

    def state_dict(self):
        return {}

    def close(self):
        pass


class Point(nn.Module):
    """What both levels move, and what the outer one has for itself."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        self.outer = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

    def forward(self, objective, batch):
        return objective(self, batch)


class Bowl:
    """Half of 2 (a - x)^2 + 6 (b - y)^2 at each row (x, y)."""

    batch_type, whole_batch, bounded = Rows, False, False

    def __call__(self, root, batch):
        return Result((BENDS * (root.shared - batch.x).square()).sum() / 2, torch.tensor(float(len(batch))))


class Slope(Bowl):
    """The task: down along the first axis."""

    def __call__(self, root, batch):
        count = float(len(batch))
        return Result(count * (root.shared[0] + root.outer.square().sum()), torch.tensor(count))


def oracle_on(root, *batches, rate=0.1, precision="fp32"):
    streams = {"rows": Steps(*(batches or [rows([[0.0, 0.0]] * 4)]))}
    levels = {"inner": LevelRun(Bowl(), streams), "outer": LevelRun(Slope(), streams)}
    optimizer = torch.optim.SGD([{"params": list(root.parameters()), "lr": rate, "base_lr": rate}])
    settings = {"total_steps": 10, "clip": 0.0, "precision": precision, "device": CPU}
    groups = {"shared": "shared", "outer": "outer"}
    return TrainingOracle(root, levels, optimizer, groups, schedule=lambda progress: 1.0, **settings)


def measured(solver, *batches, weight=None, **settings):
    oracle = oracle_on(Point(), *batches, **settings)
    watch = Watch(oracle)
    solver.step(oracle)
    return watch.read(weight)


class Inner:
    """Steps along the inner gradient times a factor."""

    def __init__(self, factor):
        self.factor = factor

    def step(self, oracle):
        oracle.apply({name: self.factor * gradient for name, gradient in oracle.grads("inner").items()})


# numbers


def test_the_ratio_is_the_length_of_the_aligned_step_over_that_of_the_parameters():
    assert measured(Joint(0.0))["aligned_step_ratio"] == pytest.approx(0.1 / 5)  # (1, 0) at rate 0.1, from (3, 4)


def test_copies_are_of_what_the_inner_loss_reaches_and_of_nothing_without_one():
    oracle = oracle_on(Point())
    assert set(Watch(oracle).before) == {"shared"}
    oracle.outer_read = frozenset({"outer"})
    assert set(Watch(oracle).before) == {"shared", "outer"}
    del oracle.levels["inner"]
    assert Watch(oracle).before == {}


def test_a_measurement_costs_five_inner_gradients_of_which_two_run_over_half_of_the_batch(monkeypatch):
    first, second = rows([[0.0, 0.0], [0.0, 0.0]]), rows([[1.0, 0.0], [1.0, 2.0]])
    oracle = oracle_on(Point(), first, second)
    watch = Watch(oracle)
    Inner(1.0).step(oracle)
    asked = []
    grads = oracle.grads
    monkeypatch.setattr(
        oracle, "grads", lambda *a, **k: asked.append(len(oracle.batches["inner", "rows"])) or grads(*a, **k)
    )
    watch.read(None)
    assert asked == [2, 2, 2, 1, 1]


def test_where_the_inner_loss_reads_outer_parameters_it_is_measured_where_these_were_too():
    class Deep(Bowl):
        def __call__(self, root, batch):
            return Result(
                super().__call__(root, batch).loss_sum * root.outer.square().sum(), torch.tensor(float(len(batch)))
            )

    class Both:
        def step(self, oracle):
            oracle.grads("inner")
            oracle.apply({"outer": torch.tensor([5.0], dtype=torch.float64)})

    oracle = oracle_on(Point())
    oracle.levels["inner"] = LevelRun(Deep(), oracle.levels["inner"].streams)
    oracle.outer_read = frozenset({"outer"})
    watch = Watch(oracle)
    Both().step(oracle)
    by_hand = (2 * 6**2 + 6 * 24**2) / (6**2 + 24**2)  # outer was 1 and is 0.5, which would be a quarter of it
    assert watch.read(None)["curvature"] == pytest.approx(by_hand, rel=1e-9)


def test_the_cosine_is_that_of_the_step_made_with_the_gradient_before_it():
    assert measured(Inner(1.0))["inner_step_cosine"] == pytest.approx(-1)
    assert measured(Inner(1.0))["inner_ascends"] == 0
    assert measured(Inner(-1.0))["inner_step_cosine"] == pytest.approx(1)
    assert measured(Inner(-1.0))["inner_ascends"] == 1
    along = measured(Joint(0.0))["inner_step_cosine"]  # the step is (-1, 0), the gradient (6, 24)
    assert along == pytest.approx(-6 / math.hypot(6, 24))


def test_curvature_is_that_along_the_inner_gradient_and_edge_what_a_plain_step_makes_of_it():
    found = measured(Inner(1.0), weight=5.0, rate=0.1)
    by_hand = (2 * 6**2 + 6 * 24**2) / (6**2 + 24**2)  # the gradient is (6, 24)
    assert found["curvature"] == pytest.approx(by_hand, rel=1e-9)
    assert found["edge"] == pytest.approx(0.1 * 5 * by_hand, rel=1e-9)
    assert "edge" not in measured(Inner(1.0))  # no weight, no edge


def test_curvature_is_not_measured_in_half_precision():
    assert "curvature" not in measured(Inner(1.0), precision="bf16")
    assert "inner_step_cosine" in measured(Inner(1.0), precision="bf16")


def test_a_step_without_inner_batch_is_measured_by_its_length_alone():
    class Outer:
        def step(self, oracle):
            oracle.apply(oracle.grads("outer"))

    assert set(measured(Outer())) == {"aligned_step_ratio"}


def test_an_inner_batch_of_an_earlier_step_is_none_of_this_one():
    oracle = oracle_on(Point())
    Inner(1.0).step(oracle)
    watch = Watch(oracle)
    oracle.apply(oracle.grads("outer"))
    assert set(watch.read(None)) == {"aligned_step_ratio"}


def test_signal_over_noise_by_hand():
    # (3, 1) and (1, -1): product 2, squared norms 10 and 2; half their difference is (1, 1)
    assert signal_to_noise(2.0, 10.0, 2.0) == {"inner_snr": pytest.approx(2 / 2)}
    assert signal_to_noise(5.0, 5.0, 5.0) == {}


@pytest.mark.parametrize("truth", [0.1, 1.0, 10.0])
def test_signal_over_noise_finds_the_ratio_that_two_noisy_gradients_were_made_with(truth):
    count = 200_000
    signal = torch.ones(count, dtype=torch.float64)
    noise = math.sqrt(2 / truth)  # of each half; their mean's variance is half as large
    first, second = (signal + noise * torch.randn(count, dtype=torch.float64) for _ in range(2))
    found = signal_to_noise(float(first @ second), float(first @ first), float(second @ second))
    assert found["inner_snr"] == pytest.approx(truth, rel=0.1)


def test_signal_over_noise_of_a_step_compares_its_micro_batches():
    first, second = rows([[0.0, 0.0], [0.0, 0.0]]), rows([[1.0, 0.0], [1.0, 2.0]])
    # the mean gradients at (3, 4): (6, 24), and of (1, 1) on average (4, 18)
    product, noise = 6 * 4 + 24 * 18, (2**2 + 6**2) / 4
    assert measured(Inner(1.0), first, second)["inner_snr"] == pytest.approx(product / noise)


def pairs(count):
    tokens = Tokens(ids=torch.ones(count, 2), mask=torch.ones(count, 2), labels=torch.ones(count, 2))
    names = tuple(f"r{i}" for i in range(count))
    return PairBatch(records=names, pixel_values=torch.rand(count, 1), caption=tokens, clip_caption=None)


def test_halves_are_micro_batches_or_rows_and_at_least_two_of_these():
    a, b, c, d = (pairs(3) for _ in range(4))
    assert halves([a, b]) == ([a], [b])
    assert halves([a, b, c]) == ([a], [b])
    assert halves([a, b, c, d]) == ([a, b], [c, d])
    first, second = halves([pairs(5)])
    assert [batch.records for batch in (*first, *second)] == [("r0", "r1"), ("r2", "r3")]
    assert halves([pairs(3)]) is None
    assert halves([pairs(1), pairs(1)]) is None
    assert halves([rows([[0.0, 0.0]] * 8)]) is None  # rows of which nobody knows how to cut them


# what they warn of


def test_a_constant_barrier_in_noise_is_warned_of_and_a_rising_one_is_not():
    constant, rising = DynamicBarrier(start=1, end=1), DynamicBarrier()
    assert "inner gradient's signal over its noise is 0.29" in warnings({"inner_snr": 0.29}, constant)["noise"]
    assert "solver.end" in warnings({"inner_snr": 0.29}, constant)["noise"]
    assert warnings({"inner_snr": 0.31}, constant) == warnings({"inner_snr": 0.29}, rising) == {}
    assert warnings({"inner_snr": 0.29}, Joint()) == warnings({}, constant) == {}


def test_a_step_at_the_edge_of_stability_is_warned_of():
    assert "is 1.95" in warnings({"edge": 1.95}, Joint())["edge"]
    assert warnings({"edge": 1.85}, Joint()) == {}


# training


class Shaken(NextToken):
    """Next tokens, with a factor drawn from the global generator as dropout draws its masks."""

    def __call__(self, parts, batch):
        result = super().__call__(parts, batch)
        return Result(result.loss_sum * (0.5 + torch.rand(())), result.weight)


SOLVERS = {
    "barrier": lambda: DynamicBarrier(ema=0.5),
    "penalty": ValuePenalty,
    "alternating": lambda: Alternating(inner_steps=2),
    "sequential": Sequential,
}


@pytest.fixture
def train(make_stage, new_model, tmp_path):
    """A function that trains one stage, every step or none being measured, and gives rows, log, weights and state."""

    def run(solver, diagnose_every, *, rate=1e-3, inner_rows=8, steps=4):
        folder = tmp_path / f"every-{diagnose_every}"
        folder.mkdir()
        model = new_model()
        for module in model.root.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.2  # of the language model
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.2  # of the towers, so that the inner loss draws too
        settings = {"pairs": ("clip", "projector"), "outer": Shaken(), "micro_batch_size": 4, "rate": rate}
        stage = make_stage(model, solver=solver, inner_micro_batch_size=inner_rows, steps=steps, **settings)
        torch.manual_seed(1)
        with Logs(folder, [], {}) as logs:
            Training(model.root, [stage], folder, logs, CPU, diagnose_every=diagnose_every).run()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return rows, (folder / "log.txt").read_text(), model.root.state_dict(), torch.get_rng_state()

    return run


@pytest.mark.parametrize("inner_rows", [8, 4])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_training_that_is_measured_is_to_the_bit_the_one_that_is_not(train, solver, inner_rows):
    plain, _, weights, random = train(SOLVERS[solver](), 0, inner_rows=inner_rows)
    rows, _, others, other_random = train(SOLVERS[solver](), 1, inner_rows=inner_rows)
    assert not any(MEASURED & set(row) for row in plain)
    apart = {"seconds", *MEASURED}
    assert [{k: v for k, v in row.items() if k not in apart} for row in rows] == [
        {k: v for k, v in row.items() if k not in apart} for row in plain
    ]
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    assert torch.equal(random, other_random)
    always = {"aligned_step_ratio"} if solver == "sequential" else MEASURED - {"edge"}
    assert all(always <= set(row) for row in rows)
    assert all(("edge" in row) == ("weight" in row) for row in rows)


def test_only_every_so_many_steps_are_measured(train):
    rows, *_ = train(Joint(), 2)
    assert ["curvature" in row for row in rows] == [False, True, False, True]


def test_a_warning_of_a_stage_is_said_once_with_its_step(train):
    _, log, *_ = train(Joint(1e6), 1)
    said = [line for line in log.splitlines() if "a plain gradient step is stable below 2" in line]
    assert len(said) == 1
    assert said[0].startswith("WARNING stages.only, step 1: learning rate * weight * curvature")


def test_a_step_that_cannot_be_measured_is_said_and_ends_nothing(train, monkeypatch):
    def fail(self, weight):
        raise NonFinite("the inner loss's gradient is not finite")

    monkeypatch.setattr(Watch, "read", fail)
    rows, log, *_ = train(Joint(), 2)
    assert len(rows) == 4
    assert log.count("the step cannot be measured: the inner loss's gradient is not finite") == 2


def test_of_a_stage_of_one_level_nothing_is_measured(make_stage, model, tmp_path):
    from hialign.solvers import Single

    stage = make_stage(model, solver=Single(), steps=1)
    with Logs(tmp_path, [], {}) as logs:
        Training(model.root, [stage], tmp_path, logs, CPU, diagnose_every=1).run()
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not set(row) & MEASURED


def test_measuring_works_through_the_loop_on_what_is_no_language_model(tmp_path):
    streams = {"rows": Steps(rows([[0.0, 0.0]] * 4))}
    levels = {"inner": LevelRun(Bowl(), streams), "outer": LevelRun(Slope(), streams)}
    root = Point()
    rates = dict.fromkeys(("shared", "outer"), 0.1)
    stage = Stage("s", levels, Joint(1.0), Optimisation(2, clip=0.0), lambda: rates, str)
    with Logs(tmp_path, [], {}) as logs:
        Training(root, [stage], tmp_path, logs, CPU, diagnose_every=1).run()
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["curvature"] == pytest.approx(5.8, abs=0.1) for row in found)
