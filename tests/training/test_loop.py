"""The loop: what a run writes, where it stops, and that a resumed run is the run that was never stopped."""

from __future__ import annotations

import json
import math
import os
import signal
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from hialign.objectives import NextToken, Result
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
    axpy,
)
from hialign.training import Logs, NonFinite, Preempted, Training, latest, load_weights
from hialign.training.checkpoint import read_weights
from hialign.training.loop import _on

CPU = torch.device("cpu")
STAGES = ("pretrain", "finetune")
STEPS = 4  # of each stage


class Remembering:
    """A weighted sum whose weight follows from all steps so far: a solver with a state of its own."""

    two_level = True
    requires = frozenset()

    def __init__(self):
        self.weight = torch.tensor(0.5)

    def step(self, oracle):
        outer, inner = oracle.grads("outer"), oracle.grads("inner")
        norm = torch.stack([gradient.norm() for gradient in outer.values()]).norm()
        self.weight = 0.9 * self.weight + 0.1 * norm
        oracle.apply(axpy(float(self.weight), inner, outer))

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]


SOLVERS = {
    "joint": lambda: Joint(0.5),
    "alternating": lambda: Alternating(inner_steps=2, half_life=2.0),
    "sequential": lambda: Sequential(fraction=0.5),  # changes its level behind step 2
    "remembering": Remembering,
    "barrier": lambda: DynamicBarrier(warmup=1.0),  # its unit is measured at every step
    "barrier, means": lambda: DynamicBarrier(ema=0.9),
    "barrier, value": lambda: DynamicBarrier(phi="min", clamp=False),
    "barrier, deep": lambda: DynamicBarrier(inner_steps=2),
    "dual": lambda: ConstrainedDual(rate=0.5),
    "penalty": lambda: ValuePenalty(warmup=1.0),
    "penalty, deep": lambda: ValuePenalty(inner_steps=2),
    "tangent": lambda: ImplicitTangent(steps=2),
    "pcgrad": PCGrad,
    "mgda": MGDA,
    "cagrad": CAGrad,
}
DEEP = ("barrier, deep", "penalty, deep")  # the inner loss reads the language model, which the task alone may choose
WITH_STATE = ("remembering", "barrier", "barrier, means", "dual", "penalty", "penalty, deep")
STOPS = (("pretrain", 2), ("pretrain", STEPS), ("finetune", 3))  # in an epoch, at a stage's end, in the second epoch


class Shaken(NextToken):
    """Next tokens, with a factor drawn from the global generator as dropout draws its masks."""

    def __call__(self, parts, batch):
        result = super().__call__(parts, batch)
        return Result(result.loss_sum * (0.5 + torch.rand(())), result.weight)


class Forgetful:
    """A solver that does not take its state back."""

    def __init__(self, solver):
        self.solver, self.step, self.state_dict = solver, solver.step, solver.state_dict
        self.two_level, self.requires = solver.two_level, solver.requires

    def load_state_dict(self, state):
        pass


class Interrupted:
    """A solver that sends this process ``signals`` in the middle of its step number ``at``, counted from 1."""

    def __init__(self, solver, at, *signals):
        self.solver, self.at, self.signals = solver, at, signals
        self.two_level, self.requires = solver.two_level, solver.requires

    def step(self, oracle):
        if oracle.step + 1 == self.at:
            for signum in self.signals:
                os.kill(os.getpid(), signum)
        self.solver.step(oracle)

    def state_dict(self):
        return self.solver.state_dict()

    def load_state_dict(self, state):
        self.solver.load_state_dict(state)


@pytest.fixture(autouse=True)
def _uncaught_signals_are_failures():
    """A signal that the loop did not catch would end pytest."""

    def uncaught(signum, _frame):
        raise AssertionError(f"nobody caught {signal.Signals(signum).name}")

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {signum: signal.signal(signum, uncaught) for signum in wanted}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def train(make_stage, new_model):
    """A function that runs two stages in ``folder``, anew or from the last checkpoint, and gives the model back."""

    def run(
        folder, solver, *, stop=None, signals=(signal.SIGTERM,), resume=False, forget=False, steps=STEPS, **settings
    ):
        folder.mkdir(exist_ok=True)
        model = new_model()
        solvers = {name: Forgetful(SOLVERS[solver]()) if forget else SOLVERS[solver]() for name in STAGES}
        if stop:
            solvers[stop[0]] = Interrupted(solvers[stop[0]], stop[1], *signals)
        shared = {"pairs": ("clip", "projector"), "steps": steps, "outer": Shaken(), "micro_batch_size": 4}
        stages = [
            make_stage(model, name="pretrain", solver=solvers["pretrain"], train=("vision", "projector"), **shared),
            make_stage(
                model,
                name="finetune",
                solver=solvers["finetune"],
                train=("projector", "llm", "text", "heads"),  # not the tower, which the first stage has trained
                weight_decay=0.1,
                **shared,
                **({"inner_depends_on_outer": ("llm",)} if solver in DEEP else {}),
            ),
        ]
        found = latest(folder, STAGES) if resume else None
        after = json.loads((found.folder / "where.json").read_text())["total_step"] if found else 0
        torch.manual_seed(99 if resume else 1)
        with Logs(folder, [], {}, after=after) as logs:
            settings = {"save_every": 3, "keep": 2} | settings
            Training(root=model.root, stages=stages, folder=folder, logs=logs, device=CPU, **settings).run(found)
        return model

    return run


@pytest.fixture(scope="module")
def whole():
    """Uninterrupted runs by solver, made when first asked for."""
    return {}


@pytest.fixture
def uninterrupted(whole, train, tmp_path_factory):
    def run(solver):
        if solver not in whole:
            folder = tmp_path_factory.mktemp(solver)
            whole[solver] = folder, train(folder, solver)
        return whole[solver]

    return run


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def last_state(folder):
    found = latest(folder, STAGES)
    return {file: torch.load(found.folder / file, weights_only=False) for file in ("state.pt", "random-0.pt")}


def differences(a, b, path=""):
    """Where two nested structures of tensors, arrays and plain values are not identical."""
    if type(a) is not type(b):
        return [f"{path}: {type(a)} {type(b)}"]
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, np.ndarray):
        return [] if np.array_equal(a, b) else [path]
    if isinstance(a, dict):
        if list(a) != list(b):
            return [f"{path}: keys"]
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{path}/{i}")]
    return [] if a == b else [path]


def assert_same_run(folder, model, other, other_model):
    assert metrics(folder) == metrics(other)
    assert differences(last_state(folder), last_state(other)) == []
    weights, other_weights = model.root.state_dict(), other_model.root.state_dict()
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == []


def test_the_comparison_sees_one_bit(model):
    state = {"a": [torch.ones(2), {"b": np.zeros(2)}], "c": 1}
    other = {"a": [torch.tensor([1.0, 1.0 + 2**-23]), {"b": np.array([0.0, 1.0])}], "c": 2}
    assert differences(state, state) == []
    assert differences(state, other) == ["/a/0", "/a/1/b", "/c"]


# resumed runs


@pytest.mark.parametrize(
    ("solver", "stop"),
    [
        *product(("joint", "alternating", "sequential"), STOPS),
        *((solver, ("finetune", 2)) for solver in SOLVERS if solver not in ("joint", "alternating", "sequential")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}-{value[1]}",
)
def test_a_run_that_is_stopped_and_resumed_is_bit_for_bit_the_run_that_was_not(
    tmp_path, train, uninterrupted, solver, stop
):
    with pytest.raises(Preempted, match=f"stopped by SIGTERM after step {stop[1]} of stage {stop[0]}") as error:
        train(tmp_path, solver, stop=stop)
    assert error.value.signum == signal.SIGTERM
    done = stop[1] + (STEPS if stop[0] == "finetune" else 0)
    assert [row["total_step"] for row in metrics(tmp_path)] == list(range(1, done + 1))
    found = latest(tmp_path, STAGES)
    assert (found.stage, found.step) == stop
    model = train(tmp_path, solver, resume=True)
    assert_same_run(tmp_path, model, *uninterrupted(solver))


@pytest.mark.parametrize("solver", WITH_STATE)
def test_a_solver_that_does_not_get_its_state_back_goes_another_way(tmp_path, train, uninterrupted, solver):
    """Guards the test above: where the state made no difference, it would see none."""
    with pytest.raises(Preempted):
        train(tmp_path, solver, stop=("finetune", 2))
    train(tmp_path, solver, resume=True, forget=True)
    found, expected = metrics(tmp_path), metrics(uninterrupted(solver)[0])
    assert found[: STEPS + 2] == expected[: STEPS + 2]
    assert found[-1] != expected[-1]


@pytest.mark.parametrize("solver", WITH_STATE)
def test_a_solvers_state_is_in_the_checkpoint_as_plain_values_and_goes_to_the_device_of_the_run(uninterrupted, solver):
    saved = torch.load(latest(uninterrupted(solver)[0], STAGES).folder / "state.pt", weights_only=True)["solver"]
    assert saved
    found = leaves(_on(torch.device("meta"), saved))
    assert [type(value) for value in found] == [type(value) for value in leaves(saved)]
    tensors = [value for value in found if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} <= {"meta"}
    assert bool(tensors) == (solver in ("remembering", "barrier, means", "penalty, deep"))


def leaves(value):
    return [leaf for below in value.values() for leaf in leaves(below)] if isinstance(value, dict) else [value]


@pytest.mark.parametrize("solver", ["barrier, means", "sequential"])
def test_what_is_measured_of_a_step_is_the_same_after_a_stop(tmp_path, train, solver):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    model = train(whole, solver, diagnose_every=1)
    with pytest.raises(Preempted):
        train(stopped, solver, stop=("finetune", 3), diagnose_every=1)
    assert_same_run(stopped, train(stopped, solver, resume=True, diagnose_every=1), whole, model)
    assert all("aligned_step_ratio" in row for row in metrics(whole))


def test_a_run_that_is_stopped_twice_is_still_the_same_run(tmp_path, train, uninterrupted):
    for stop, resume in ((("pretrain", 1), False), (("finetune", 2), True)):
        with pytest.raises(Preempted):
            train(tmp_path, "sequential", stop=stop, resume=resume)
    model = train(tmp_path, "sequential", resume=True)
    assert_same_run(tmp_path, model, *uninterrupted("sequential"))


def test_resuming_a_finished_run_changes_nothing(tmp_path, train, uninterrupted):
    train(tmp_path, "joint")
    model = train(tmp_path, "joint", resume=True)
    assert_same_run(tmp_path, model, *uninterrupted("joint"))


def test_steps_behind_the_checkpoint_are_made_again(tmp_path, train, uninterrupted):
    """After a kill: the rows of steps 5 and 6 were written, the checkpoint is of step 4."""
    with pytest.raises(Preempted):
        train(tmp_path, "joint", stop=("pretrain", 3))
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write(json.dumps(metrics(uninterrupted("joint")[0])[3]) + '\n{"stage": "fine')
    model = train(tmp_path, "joint", resume=True)
    assert_same_run(tmp_path, model, *uninterrupted("joint"))


def test_a_checkpoint_of_a_stage_that_trained_other_parameters_is_refused(tmp_path, make_stage, model):
    for pairs, resume in ((("clip", "projector"), False), (("projector",), True)):
        stage = make_stage(model, solver=Joint(), pairs=pairs, steps=1 if not resume else 2)
        with Logs(tmp_path, [], {}) as logs:
            training = Training(model.root, [stage], tmp_path, logs, CPU)
            if not resume:
                training.run()
                continue
            with pytest.raises(ValueError, match="stage only trains other parameters than the checkpoint's stage did"):
                training.run(latest(tmp_path, ["only"]))


# what a run writes


def test_a_run_writes_a_row_for_each_step_over_all_stages(uninterrupted):
    rows = metrics(uninterrupted("joint")[0])
    assert [(row["stage"], row["step"], row["total_step"]) for row in rows] == [
        (stage, step, step + STEPS * number) for number, stage in enumerate(STAGES) for step in range(1, STEPS + 1)
    ]
    losses = {"outer_loss", "inner_loss", "inner_clip_loss", "inner_projector_loss"}
    norms = {"outer_grad_norm", "inner_grad_norm", "aligned_update_norm"}
    places = {"epochs/outer/caption", "epochs/inner/pairs", "lr_factor"}
    assert all(losses | norms | places <= set(row) for row in rows)
    assert [row["epochs/outer/caption"] for row in rows[:STEPS]] == [round(8 * n / 18, 4) for n in (1, 2, 3, 4)]
    assert rows[0]["inner_clip_loss"] + rows[0]["inner_projector_loss"] == pytest.approx(rows[0]["inner_loss"])
    assert rows[0]["outer_loss"] < 1.6 * math.log(2048)  # of a random model, times a factor below 1.5


def test_checkpoints_are_at_every_save_every_steps_and_at_a_stages_end(uninterrupted):
    folder = uninterrupted("joint")[0]
    for stage in STAGES:
        assert sorted(path.name for path in (folder / "checkpoints" / stage).iterdir()) == [
            "step-000003",
            "step-000004",
        ]
    status = json.loads((folder / "status.json").read_text())
    assert {key: status[key] for key in ("state", "stage", "step", "of")} == {
        "state": "running",
        "stage": "finetune",
        "step": STEPS,
        "of": STEPS,
    }


def test_a_stage_moves_its_own_parts_and_its_checkpoint_holds_all_that_trained_so_far(uninterrupted, model):
    folder, trained = uninterrupted("joint")
    start = dict(model.root.named_parameters())
    saved = {stage: read_weights(latest(folder, [stage])) for stage in STAGES}
    moved = {
        stage: {name for name, tensor in saved[stage].items() if not torch.equal(tensor, start[name])}
        for stage in STAGES
    }
    assert all(name.startswith(("llava.model.vision", "llava.model.multi_modal")) for name in moved["pretrain"])
    assert moved["pretrain"] < moved["finetune"]
    assert any(name.startswith("llava.model.language_model.") for name in moved["finetune"])
    final = dict(trained.root.named_parameters())
    assert all(torch.equal(final[name], tensor) for name, tensor in saved["finetune"].items())
    assert all(torch.equal(final[name], start[name]) for name in start if name not in saved["finetune"])


def test_a_checkpoint_on_the_starting_model_is_the_trained_model(uninterrupted, model):
    """What evaluation does with a run that has not finished."""
    folder, trained = uninterrupted("joint")
    load_weights(model.root, read_weights(latest(folder, STAGES)))
    final = trained.root.state_dict()
    assert all(torch.equal(tensor, final[name]) for name, tensor in model.root.state_dict().items())


def test_the_log_tells_what_trains_by_part_and_group(uninterrupted):
    lines = (uninterrupted("joint")[0] / "log.txt").read_text().splitlines()
    assert lines[0].startswith("WARNING stages.finetune: weight decay 0.1")  # said before the first step
    first = lines[1 : lines.index("stage finetune: 4 steps, solver Joint")]
    assert first[0] == "stage pretrain: 4 steps, solver Joint"
    assert first[1].split() == ["trains", "inner", "shared"]
    assert [line.split()[0] for line in first[2:4]] == ["vision", "projector"]
    assert set(first[4].replace(",", "").split()) == {"frozen:", "llm", "text", "heads", "temperature"}
    assert all(line.startswith("saved ") for line in first[5:])
    assert first[3].split()[1:] == ["-", f"{24 * 32 + 32 + 32 * 32 + 32:,}"]


def test_a_loss_that_reaches_nothing_that_trains_is_an_error(tmp_path, make_stage, model):
    stage = make_stage(model, solver=Single(), train=("text",))
    with Logs(tmp_path, [], {}) as logs, pytest.raises(ValueError, match=r"stages\.only\.train: no loss reaches"):
        Training(model.root, [stage], tmp_path, logs, CPU).run()


def test_a_later_stage_that_cannot_train_is_an_error_before_the_first_step(tmp_path, make_stage, model):
    stages = [
        make_stage(model, name="good", solver=Single()),
        make_stage(model, name="bad", solver=Single(), train=("text",)),
    ]
    with Logs(tmp_path, [], {}) as logs, pytest.raises(ValueError, match=r"stages\.bad\.train: no loss reaches"):
        Training(model.root, stages, tmp_path, logs, CPU).run()
    assert not metrics(tmp_path)


def test_of_a_part_that_the_outer_level_chooses_the_inner_gradient_has_what_the_inner_loss_reads(
    tmp_path, make_stage, model
):
    """Zeros for the rest of the part would count as met, and bring the outer gradient's norm there into the unit."""
    settings = {"pairs": ("projector",), "train": ("projector", "heads", "llm"), "inner_depends_on_outer": ("llm",)}
    stage = make_stage(model, solver=DynamicBarrier(), **settings)
    with Logs(tmp_path, [], {}) as logs:
        training = Training(model.root, [stage], tmp_path, logs, CPU)
        training._find_groups(stage)
        oracle = training._prepare(stage)
    read = {name for name in oracle.grads("inner") if oracle.group_of(name) == "outer"}
    assert read == {"llava.model.language_model.embed_tokens.weight"}
    assert len(oracle.values("outer")) > 1
    assert oracle.inner_depends_on_outer


def test_a_solver_that_half_precision_drowns_is_an_error_before_the_first_step(tmp_path, make_stage, model):
    stage = make_stage(model, solver=ImplicitTangent(), pairs=("projector",))
    with Logs(tmp_path, [], {}) as logs, pytest.raises(ValueError, match=r"stages\.only: .*set trainer.precision=fp32"):
        Training(model.root, [stage], tmp_path, logs, CPU, precision="bf16").run()
    assert not metrics(tmp_path)


def test_a_freeze_that_leaves_the_task_nothing_to_move_is_an_error_before_the_first_step(tmp_path, make_stage, model):
    solver = Sequential(mode="freeze")
    stage = make_stage(model, solver=solver, pairs=("projector",), train=("projector", "heads"))
    with Logs(tmp_path, [], {}) as logs, pytest.raises(ValueError, match=r"stages\.only: Sequential: mode=freeze"):
        Training(model.root, [stage], tmp_path, logs, CPU).run()
    assert not metrics(tmp_path)


def test_the_log_warns_that_the_rate_of_adamw_is_no_plain_steps(tmp_path, make_stage, model):
    settings = {"pairs": ("projector",), "train": ("projector", "heads", "llm"), "inner_depends_on_outer": ("llm",)}
    stage = make_stage(model, solver=ValuePenalty(), steps=1, **settings)
    with Logs(tmp_path, [], {}) as logs:
        Training(model.root, [stage], tmp_path, logs, CPU).run()
    assert "WARNING stages.only: ValuePenalty with an inner loss" in (tmp_path / "log.txt").read_text()


def test_training_lowers_the_loss(tmp_path, make_stage, model):
    stage = make_stage(model, solver=Single(), steps=12, rate=3e-3)
    with Logs(tmp_path, [], {}) as logs:
        Training(model.root, [stage], tmp_path, logs, CPU).run()
    losses = [row["outer_loss"] for row in metrics(tmp_path)]
    assert losses[-1] < losses[0] - 0.5


# how a run stops


class Spoilt(NextToken):
    """Gives an infinite loss at the call number ``at``."""

    def __init__(self, at):
        super().__init__()
        self.calls, self.at = 0, at

    def __call__(self, parts, batch):
        self.calls += 1
        result = super().__call__(parts, batch)
        return Result(result.loss_sum * (math.inf if self.calls == self.at else 1), result.weight)


@pytest.mark.parametrize(("at", "step", "good"), [(2, 1, "there is no checkpoint yet"), (5, 4, "step-000002")])
def test_a_loss_that_is_not_finite_names_stage_step_records_and_the_last_good_checkpoint(
    tmp_path, make_stage, model, at, step, good
):
    stage = make_stage(model, name="pretrain", solver=Single(), outer=Spoilt(at))  # the probe is call 1
    with Logs(tmp_path, [], {}) as logs, pytest.raises(NonFinite) as error:
        Training(model.root, [stage], tmp_path, logs, CPU, save_every=2).run()
    message = str(error.value)
    assert message.startswith(f"stage pretrain: outer loss is not finite in step {step}; records of its batch: 000")
    assert message.endswith(good)
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, step))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_every_signal_that_means_stop_finishes_the_step_and_saves(tmp_path, make_stage, model, signum):
    stage = make_stage(model, solver=Interrupted(Single(), 2, signum))
    before = signal.getsignal(signum)
    with Logs(tmp_path, [], {}) as logs, pytest.raises(Preempted) as error:
        Training(model.root, [stage], tmp_path, logs, CPU).run()
    assert str(error.value).startswith(f"stopped by {signum.name} after step 2 of stage only")
    assert error.value.signum == signum
    assert latest(tmp_path, ["only"]).step == 2
    assert signal.getsignal(signum) is before


def test_a_second_ctrl_c_interrupts_at_once(tmp_path, train):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "joint", stop=("pretrain", 1), signals=(signal.SIGINT, signal.SIGINT))
    assert latest(tmp_path, STAGES) is None
    assert metrics(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_fails_ends_its_workers_and_gives_the_signals_back(tmp_path, make_stage, model):
    closed = []

    class Failing:
        two_level = False

        def step(self, oracle):
            raise ValueError("no step today")

    stage = make_stage(model, solver=Failing())
    stream = stage.levels["outer"].streams["caption"]
    stream.close = lambda: closed.append(True)
    before = signal.getsignal(signal.SIGTERM)
    with Logs(tmp_path, [], {}) as logs, pytest.raises(ValueError, match="no step today"):
        Training(model.root, [stage], tmp_path, logs, CPU).run()
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stage_starts_with_the_parameters_that_its_own_table_names(tmp_path, make_stage, model):
    """What the loss of the first stage did not reach is frozen there, and thawed for the second."""
    stages = [
        make_stage(model, name="pretrain", solver=Single(), steps=1),  # no loss here reaches text tower or heads
        make_stage(model, name="finetune", solver=Joint(), steps=1, pairs=("clip", "projector")),
    ]
    text = {n: p.detach().clone() for n, p in model.root.named_parameters() if n.startswith("alignment.text.")}
    with Logs(tmp_path, [], {}) as logs:
        training = Training(model.root, stages, tmp_path, logs, CPU)
        training.run()
    parameters: dict[str, nn.Parameter] = dict(model.root.named_parameters())
    assert "untouched: it stays as it is" in (tmp_path / "log.txt").read_text()
    assert not any(name in text for name in read_weights(latest(tmp_path, ["pretrain"])))
    assert any(not torch.equal(parameters[name], before) for name, before in text.items())
