"""The oracle: gradients that do not depend on the split, steps that are AdamW's, groups, and errors that say where."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hialign.batch import Batch
from hialign.objectives import NextToken, Result
from hialign.training import LevelRun, NonFinite, Optimisation, Stage, TrainingOracle, probe
from hialign.training.optim import adamw

CPU = torch.device("cpu")
PARTS = ("vision", "projector", "llm", "text", "heads", "temperature")


@dataclass(frozen=True, kw_only=True)
class Rows(Batch):
    x: torch.Tensor  # (rows, 2)


def rows(values, names=None):
    x = torch.tensor(values, dtype=torch.float64)
    return Rows(records=tuple(names or (f"r{i}" for i in range(len(x)))), x=x)


class Steps:
    """A stream that gives the same micro-batches at every step."""

    def __init__(self, *batches):
        self.batches, self.taken = list(batches), 0

    def next(self):
        self.taken += 1
        return list(self.batches)

    def peek(self):
        return self.batches[0]

    epochs = 0.0

    def state_dict(self):
        return {"taken": self.taken}

    def close(self):
        pass


class Four(nn.Module):
    """Four parameters, of which each loss below reaches two; ``unused`` none."""

    def __init__(self):
        super().__init__()
        for name, value in (("inner", [1.0, 2.0]), ("shared", [3.0, -1.0]), ("outer", [0.5, 1.5]), ("unused", [1.0])):
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))
        self.matrix = nn.Parameter(torch.eye(2, dtype=torch.float64))  # of the outer loss

    def forward(self, objective, batch):
        return objective(self, batch)


def plain(function):
    """The function as an objective whose rows do not see each other."""
    function.whole_batch = function.bounded = False
    return function


def inner_loss(root, batch):
    return Result((batch.x * root.inner * root.shared).sum(), torch.tensor(len(batch)))


def outer_loss(root, batch):
    return Result((batch.x @ root.matrix * root.outer * root.shared**2).sum(), torch.tensor(len(batch)))


GROUPS = {"inner": "inner", "shared": "shared", "outer": "outer", "matrix": "outer"}


def oracle_on(root, optimizer=None, *, inner=inner_loss, outer=outer_loss, streams=None, schedule=None, **settings):
    """An oracle on ``Four``; by default its optimiser takes plain steps of length 1 along the direction."""
    if streams is None:
        streams = {"only": Steps(rows([[1.0, 2.0], [0.5, -1.0]]))}
    if optimizer is None:
        optimizer = torch.optim.SGD([{"params": list(root.parameters()), "lr": 1.0, "base_lr": 1.0}])
    levels = {"inner": LevelRun(plain(inner), streams), "outer": LevelRun(plain(outer), streams)}
    settings = {"total_steps": 10, "clip": 0.0, "precision": "fp32", "device": CPU} | settings
    return TrainingOracle(root, levels, optimizer, GROUPS, schedule=schedule or (lambda progress: 1.0), **settings)


def snapshot(root):
    return {name: p.detach().clone() for name, p in root.named_parameters()}


def oracle_of(model, stage, groups=None, **settings):
    """The oracle that the loop would make for a stage on a real model."""
    rates = stage.rates()
    groups = groups or probe(model.root, stage, "fp32", CPU)[0]
    parameters = {name: p for name, p in model.root.named_parameters() if name in groups}
    optimizer = adamw(parameters, rates, stage.optimisation)
    settings = {"total_steps": 10, "clip": 0.0, "precision": "fp32"} | settings
    return TrainingOracle(
        model.root, stage.levels, optimizer, groups, schedule=lambda progress: 1.0, device=CPU, **settings
    )


# gradients


def caption_gradient(make_stage, model, micro_batch_size, precision="fp32"):
    stage = make_stage(model, micro_batch_size=micro_batch_size)
    oracle = oracle_of(model, stage, precision=precision)
    gradient = oracle.grads("outer")
    return gradient, oracle.take_numbers()["outer_loss"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_caption_gradient_does_not_depend_on_the_split_into_micro_batches(
    make_stage, model, micro_batch_size, dtype, tolerance
):
    model.root.to(dtype)
    whole, loss = caption_gradient(make_stage, model, 8)
    parts, parts_loss = caption_gradient(make_stage, model, micro_batch_size)
    assert parts.keys() == whole.keys()
    assert parts_loss == pytest.approx(loss, rel=tolerance)
    for name, expected in whole.items():
        distance = (parts[name] - expected).norm() / max(expected.norm(), torch.tensor(1e-3))
        assert distance < tolerance, name


def test_a_mean_of_micro_batch_means_would_be_another_gradient(make_stage, model):
    """Guards the test above: its captions differ so much in length that a wrong mean is seen."""
    model.root.double()
    whole, _ = caption_gradient(make_stage, model, 8)
    stage = make_stage(model, micro_batch_size=1)
    batches = stage.levels["outer"].streams["caption"].next()
    for batch in batches:
        result = model.root(NextToken(), batch)
        (result.loss_sum / result.weight / len(batches)).backward()
    name = "llava.model.multi_modal_projector.linear_1.weight"
    wrong = dict(model.root.named_parameters())[name].grad
    assert len({int(batch.text.mask.sum()) for batch in batches}) > 2
    assert (wrong - whole[name]).norm() / whole[name].norm() > 1e-2


def test_objective_numbers_are_means_weighted_by_what_they_run_over():
    def objective(root, batch):
        weight = torch.tensor(len(batch))
        return Result((batch.x * root.shared).sum(), weight, {"first": batch.x[:, 0].mean()})

    streams = {"only": Steps(rows([[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]]), rows([[11.0, 0.0]]))}
    oracle = oracle_on(Four(), outer=objective, streams=streams)
    oracle.grads("outer")
    row = oracle.take_numbers()
    assert row["outer_first"] == pytest.approx((1 + 2 + 6 + 11) / 4)
    assert row["outer_loss"] == pytest.approx(3.0 * (1 + 2 + 6 + 11) / 4)
    assert row["outer_grad_norm"] == pytest.approx((1 + 2 + 6 + 11) / 4)  # the mean of x, as the gradient of shared


def test_a_levels_gradient_is_the_sum_of_its_streams_means():
    root = Four()
    batches = rows([[1.0, 2.0], [3.0, 5.0]]), rows([[-1.0, 4.0]])
    apart = [oracle_on(root, streams={"only": Steps(batch)}).grads("outer") for batch in batches]
    both = oracle_on(root, streams={"a": Steps(batches[0]), "b": Steps(batches[1])}).grads("outer")
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, apart[0][name] + apart[1][name], rtol=1e-12, atol=0)


def test_gradients_are_moved_out_and_belong_to_the_caller():
    root = Four()
    oracle = oracle_on(root)
    first = oracle.grads("outer")
    kept = {name: g.clone() for name, g in first.items()}
    assert all(p.grad is None for p in root.parameters())
    inner = oracle.grads("inner")
    assert set(first) == {"shared", "outer", "matrix"}
    assert set(inner) == {"shared", "inner"}
    for name, gradient in first.items():  # neither another level nor the next call wrote into it
        assert torch.equal(gradient, kept[name])
        gradient.zero_()
    for name, gradient in oracle.grads("outer").items():
        assert torch.equal(gradient, kept[name])


def test_a_level_gives_a_gradient_to_all_that_it_reaches_and_to_nothing_else():
    """Zeros where this batch did not reach a parameter of the level: every rank must bring the same list."""

    def without_matrix(root, batch):
        return Result((batch.x * root.outer * root.shared).sum(), torch.tensor(len(batch)))

    gradient = oracle_on(Four(), outer=without_matrix).grads("outer")
    assert set(gradient) == {"shared", "outer", "matrix"}
    assert gradient["matrix"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_frozen_parameters_get_no_gradient(make_stage, model):
    stage = make_stage(model, train=("projector",))
    oracle = oracle_of(model, stage)
    assert {stage.part_of(name) for name in oracle.grads("outer")} == {"projector"}
    assert all(p.grad is None for p in model.root.parameters())


def test_bf16_computes_in_half_precision_and_keeps_weights_and_gradients_in_fp32(make_stage, model):
    exact, loss = caption_gradient(make_stage, model, 8)
    rough, rough_loss = caption_gradient(make_stage, model, 8, precision="bf16")
    assert {g.dtype for g in rough.values()} == {p.dtype for p in model.root.parameters()} == {torch.float32}
    assert rough_loss != loss
    assert rough_loss == pytest.approx(loss, rel=0.01)
    name = "llava.model.multi_modal_projector.linear_1.weight"
    assert (rough[name] - exact[name]).norm() < 0.1 * exact[name].norm()


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision: got 'fp8', wanted one of fp32, bf16"):
        oracle_on(Four(), precision="fp8").grads("outer")


# steps


def test_a_step_is_torchs_adamw_at_the_scheduled_rate():
    ours, theirs = Four(), Four()
    rates = {"inner": 0.1, "shared": 0.2, "outer": 0.1, "matrix": 0.3}
    optimizer = adamw({n: p for n, p in ours.named_parameters() if n in rates}, rates, Optimisation(10, weight_decay=2))
    oracle = oracle_on(ours, optimizer, schedule=lambda progress: 1 - progress)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs.inner, theirs.outer], "lr": 0.1, "weight_decay": 0.0},
            {"params": [theirs.shared], "lr": 0.2, "weight_decay": 0.0},
            {"params": [theirs.matrix], "lr": 0.3, "weight_decay": 2.0},
        ]
    )
    base = [group["lr"] for group in reference.param_groups]
    for oracle.step in range(3):
        outer, inner = oracle.grads("outer"), oracle.grads("inner")
        direction = {**outer, **inner, "shared": outer["shared"] + inner["shared"]}
        for name, gradient in direction.items():
            getattr(theirs, name).grad = gradient.clone()
        oracle.apply(direction)
        for group, rate in zip(reference.param_groups, base, strict=True):
            group["lr"] = rate * (1 - (oracle.step + 0.5) / 10)
        reference.step()
        for name, p in theirs.named_parameters():
            torch.testing.assert_close(dict(ours.named_parameters())[name], p, rtol=1e-12, atol=0)
    assert all(p.grad is None for p in ours.parameters())


def test_parameters_without_an_entry_do_not_move_by_their_moments_or_decay_either():
    root = Four()
    rates = dict.fromkeys(GROUPS, 0.1)
    named = {n: p for n, p in root.named_parameters() if n in rates}
    oracle = oracle_on(root, adamw(named, rates, Optimisation(10, weight_decay=1.0)))
    oracle.apply(oracle.grads("outer"))
    before = snapshot(root)
    moments = {k: v.clone() for k, v in oracle.optimizer.state[root.matrix].items()}
    oracle.apply(oracle.grads("inner"))
    moved = {name for name, p in root.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"inner", "shared"}
    assert all(torch.equal(oracle.optimizer.state[root.matrix][k], v) for k, v in moments.items())


def test_clip_scales_what_the_inner_level_reaches_and_the_rest_each_by_itself():
    root = Four()
    oracle = oracle_on(root, clip=1.0)
    before = snapshot(root)
    direction = {"inner": [3.0, 0.0], "shared": [0.0, 4.0], "outer": [0.3, 0.4]}
    oracle.apply({name: torch.tensor(value, dtype=torch.float64) for name, value in direction.items()})
    moved = {name: (before[name] - p.detach()).tolist() for name, p in root.named_parameters()}
    assert moved["inner"] == pytest.approx([0.6, 0.0])
    assert moved["shared"] == pytest.approx([0.0, 0.8])
    assert moved["outer"] == pytest.approx([0.3, 0.4])  # of norm 0.5, below the limit
    row = oracle.take_numbers()
    assert row["aligned_update_norm"] == pytest.approx(5.0)  # before clipping
    assert row["outer_update_norm"] == pytest.approx(0.5)


def test_clip_0_clips_nothing():
    root = Four()
    oracle = oracle_on(root, clip=0.0)
    oracle.apply({"outer": torch.tensor([300.0, 400.0], dtype=torch.float64)})
    assert root.outer.tolist() == pytest.approx([0.5 - 300, 1.5 - 400])


def test_the_schedule_is_read_in_the_middle_of_a_step_or_where_the_solver_says():
    seen = []
    oracle = oracle_on(Four(), schedule=lambda progress: seen.append(progress) or 0.25, total_steps=10)
    oracle.step = 3
    oracle.apply(oracle.grads("outer"))
    oracle.apply(oracle.grads("outer"), progress=0.125)
    assert seen == pytest.approx([0.35, 0.125])
    assert [group["lr"] for group in oracle.optimizer.param_groups] == [0.25]
    assert oracle.take_numbers()["lr_factor"] == 0.25


def test_numbers_of_a_step_are_averaged_and_then_gone():
    oracle = oracle_on(Four())
    oracle.log(pull=1.0, gap=4.0)
    oracle.log(pull=2.0)
    assert oracle.take_numbers() == {"pull": 1.5, "gap": 4.0}
    assert oracle.take_numbers() == {}


def test_forget_drops_the_moments_of_one_group_only():
    root = Four()
    rates = dict.fromkeys(GROUPS, 0.1)
    named = {n: p for n, p in root.named_parameters() if n in rates}
    oracle = oracle_on(root, adamw(named, rates, Optimisation(10)))
    for level in ("outer", "inner"):
        oracle.apply(oracle.grads(level))
    kept = {name: oracle.optimizer.state[named[name]]["exp_avg"].clone() for name in ("inner", "outer", "matrix")}
    oracle.forget("shared")
    assert root.shared not in oracle.optimizer.state
    assert all(torch.equal(oracle.optimizer.state[named[name]]["exp_avg"], m) for name, m in kept.items())
    oracle.apply({"shared": torch.tensor([1.0, -1.0], dtype=torch.float64)})  # Adam's first step is the rate itself
    assert oracle.optimizer.state[root.shared]["step"].item() == 1


# groups


def expected_group(name, pairs):
    """The group of a parameter when every part trains and captions are the task, or None where no loss comes."""
    # the language model reads layer -2 of the tower: its last block and what is behind are CLIP's alone
    last = ".encoder.layers.1." in name or "post_layernorm" in name
    if name.startswith("llava.model.vision_tower."):
        return "inner" if last and "clip" in pairs else None if last else "shared"
    if name.startswith("llava.model.multi_modal_projector."):
        return "shared" if "projector" in pairs else "outer"
    if name == "llava.model.language_model.embed_tokens.weight":
        return "shared" if "projector" in pairs else "outer"
    if name.startswith("llava."):
        return "outer"
    if name.startswith("alignment.text."):
        return "inner" if "clip" in pairs else None
    if name.startswith("alignment.heads."):
        return "inner" if name.split(".")[2].removesuffix("_image").removesuffix("_text") in pairs else None
    assert name == "alignment.log_temperature"
    return "inner"


@pytest.mark.parametrize("pairs", [("clip",), ("projector",), ("clip", "projector")])
def test_probe_finds_the_groups_of_each_choice_of_pairs(make_stage, model, pairs):
    stage = make_stage(model, train=PARTS, pairs=pairs)
    stage.rates()
    names = [name for name, _ in model.root.named_parameters()]
    expected = {name: group for name in names if (group := expected_group(name, pairs))}
    assert probe(model.root, stage, "fp32", CPU)[0] == expected
    assert set(expected.values()) == {"inner", "shared", "outer"}


def test_probe_leaves_frozen_parameters_out(make_stage, model):
    stage = make_stage(model, train=("projector", "heads"), pairs=("projector",))
    stage.rates()
    groups = probe(model.root, stage, "fp32", CPU)[0]
    assert {(stage.part_of(name), group) for name, group in groups.items()} == {
        ("projector", "shared"),
        ("heads", "inner"),
    }


class Shaken(NextToken):
    """Draws from the global generator, as dropout does."""

    def __call__(self, parts, batch):
        result = super().__call__(parts, batch)
        return Result(result.loss_sum * torch.rand(()), result.weight)


def test_probe_moves_neither_stream_nor_random_state_nor_weights_nor_gradients(make_stage, model):
    stage = make_stage(model, pairs=("clip", "projector"), outer=Shaken(), micro_batch_size=4)
    stage.rates()
    weights, random = snapshot(model.root), torch.get_rng_state()
    first = {name: stream.peek().records for name, stream in stage.streams().items()}
    positions = {name: stream.state_dict() for name, stream in stage.streams().items()}
    probe(model.root, stage, "fp32", CPU)[0]
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: stream.state_dict() for name, stream in stage.streams().items()} == positions
    assert {name: stream.next()[0].records for name, stream in stage.streams().items()} == first
    for name, parameter in model.root.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None


def test_probe_counts_a_parameter_whose_gradient_is_zero():
    """As LoRA's A at the start, when B is zero."""
    root = Four()
    root.outer.data.zero_()
    streams = {"only": Steps(rows([[1.0, 2.0]]))}
    stage = Stage("s", {"outer": LevelRun(outer_loss, streams)}, None, Optimisation(1), dict, str)
    assert probe(root, stage, "fp32", CPU)[0] == {"shared": "outer", "outer": "outer", "matrix": "outer"}


def test_levels_that_share_no_parameter_are_refused_by_the_parts_they_reach(make_stage, model):
    stage = make_stage(model, name="pretrain", train=("projector", "heads", "text"), pairs=("clip",))
    stage.rates()
    with pytest.raises(ValueError, match=r"stages\.pretrain\.train: .* share no parameter") as error:
        probe(model.root, stage, "fp32", CPU)[0]
    assert "the inner loss reaches heads, text, the outer loss projector" in str(error.value)


# what goes wrong


def test_a_nan_image_is_reported_with_level_step_and_the_records_of_its_micro_batch():
    good, bad = rows([[1.0, 1.0]], ["good.jpg"]), rows([[math.nan, 1.0], [1.0, 1.0]], ["bad.jpg", "beside.jpg"])
    oracle = oracle_on(Four(), streams={"only": Steps(good, bad)})
    oracle.step = 6
    with pytest.raises(NonFinite, match="outer loss is not finite in step 7") as error:
        oracle.grads("outer")
    assert str(error.value).endswith("records of its batch: bad.jpg, beside.jpg")


@pytest.mark.parametrize("level", ["inner", "outer"])
def test_an_infinite_weight_stops_either_level_with_the_records_of_its_batch(make_stage, model, level):
    stage = make_stage(model, pairs=("clip", "projector"))
    oracle = oracle_of(model, stage)
    records = [record for stream in stage.levels[level].streams.values() for record in stream.peek().records]
    with torch.no_grad():
        model.root.llava.model.multi_modal_projector.linear_1.weight[0, 0] = math.inf
    with pytest.raises(NonFinite, match=f"{level} loss is not finite in step 1") as error:
        oracle.grads(level)
    assert str(error.value).endswith(", ".join(records))


@pytest.mark.parametrize(
    ("level", "name"),
    [("inner", "inner"), ("outer", "shared"), ("outer", "outer")],
)
def test_a_gradient_that_is_not_finite_moves_nothing_and_names_the_records(level, name):
    root = Four()
    with torch.no_grad():
        getattr(root, name).zero_()

    def rooted(root, batch):  # a finite value, and an infinite slope at 0
        return Result(getattr(root, name).sqrt().sum() + root.shared.sum(), torch.tensor(len(batch)))

    oracle = oracle_on(root, inner=rooted, outer=rooted, clip=1.0)
    oracle.step = 2
    before = snapshot(root)
    with pytest.raises(
        NonFinite, match=f"the {level} loss's gradient is not finite in step 3; records of its batch: r0, r1"
    ):
        oracle.apply(oracle.grads(level))
    assert all(torch.equal(p, before[n]) for n, p in root.named_parameters())


def test_a_batch_with_nothing_to_predict_is_an_error(make_stage, model):
    class Unlabelled(NextToken):
        def __call__(self, parts, batch):
            batch.text.labels.fill_(-100)
            return super().__call__(parts, batch)

    oracle = oracle_of(model, make_stage(model, outer=Unlabelled()))
    with pytest.raises(ValueError, match="outer level: no row of this step's batch has anything to predict"):
        oracle.grads("outer")


def test_a_micro_batch_without_targets_does_not_count():
    """Only the whole step must have something to predict."""

    def objective(root, batch):
        weight = batch.x[:, 1].sum()
        return Result((batch.x[:, 0] * batch.x[:, 1] * root.shared[0]).sum(), weight)

    with_targets, without = rows([[2.0, 1.0], [4.0, 1.0]]), rows([[7.0, 0.0]])
    alone = oracle_on(Four(), outer=objective, streams={"only": Steps(with_targets)}).grads("outer")
    both = oracle_on(Four(), outer=objective, streams={"only": Steps(without, with_targets)}).grads("outer")
    assert torch.equal(both["shared"], alone["shared"])
    assert both["shared"].tolist() == [3.0, 0.0]


# what solvers with a shadow, a budget or a step of their own ask for


class Drawn(Steps):
    """Another batch at every step."""

    def next(self):
        self.taken += 1
        return [rows([[1.0 + self.taken, 2.0], [0.5, -1.0]])]


def bits(root):
    """Values, and where they lie: a parameter that was given other memory is another one to whoever holds a view."""
    return {name: (p.detach().clone(), p.data_ptr()) for name, p in root.named_parameters()}


def assert_untouched(root, before):
    for name, p in root.named_parameters():
        assert torch.equal(p, before[name][0]), name
        assert p.data_ptr() == before[name][1], name
        assert p.grad is None, name


def test_a_gradient_elsewhere_is_the_gradient_of_a_model_that_is_there():
    root, there = Four(), Four()
    values = {"shared": torch.tensor([0.25, 4.0]).double(), "inner": torch.tensor([-1.0, 0.125]).double()}
    with torch.no_grad():
        for name, value in values.items():
            getattr(there, name).copy_(value)
    before = bits(root)
    found = oracle_on(root).grads("inner", at=values)
    expected = oracle_on(there).grads("inner")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["shared"], oracle_on(root).grads("inner")["shared"])
    assert_untouched(root, before)


def test_values_that_name_only_some_parameters_leave_the_others_where_they_are():
    found = oracle_on(Four()).grads("outer", at={"outer": torch.zeros(2).double()})
    assert found["shared"].tolist() == [0.0, 0.0]  # a multiple of outer
    assert found["outer"].abs().sum() > 0  # of shared, which is not zero


@pytest.mark.parametrize("when", ["in the loss", "after it"])
def test_a_loss_that_fails_elsewhere_leaves_the_parameters_to_the_bit(when):
    def failing(root, batch):
        if when == "in the loss":
            raise RuntimeError("no memory")
        return Result((root.shared * math.inf).sum(), torch.tensor(2.0))

    root = Four()
    oracle = oracle_on(root, inner=failing)
    oracle.grads("outer")
    before, numbers, losses = bits(root), dict(oracle.numbers), dict(oracle.losses)
    with pytest.raises(RuntimeError if when == "in the loss" else NonFinite):
        oracle.grads("inner", at={"shared": torch.ones(2).double(), "inner": torch.ones(2).double()})
    for name, p in root.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.data_ptr() == before[name][1]
    assert (oracle.numbers, oracle.losses) == (numbers, losses)


def test_nothing_is_logged_of_a_gradient_elsewhere_nor_is_it_the_levels_loss():
    root = Four()
    oracle = oracle_on(root)
    oracle.grads("inner")
    loss, numbers = oracle.loss("inner"), {name: list(seen) for name, seen in oracle.numbers.items()}
    oracle.grads("inner", at={"shared": torch.zeros(2).double()}, again=True)
    assert oracle.loss("inner") == loss != 0
    assert oracle.numbers == numbers


def test_again_is_the_last_batch_and_then_comes_the_next():
    streams = {"only": Drawn()}
    oracle = oracle_on(Four(), streams=streams)
    first = oracle.grads("inner")["shared"]
    again = oracle.grads("inner", again=True)["shared"]
    assert torch.equal(again, first)
    assert streams["only"].taken == 1
    assert not torch.equal(oracle.grads("inner")["shared"], first)
    assert streams["only"].taken == 2


def test_again_before_any_gradient_is_an_error():
    with pytest.raises(ValueError, match="inner level: got again=True before any gradient"):
        oracle_on(Four()).grads("inner", again=True)


def test_again_draws_what_dropout_drew_and_leaves_the_random_state():
    """Else the difference of two gradients, which is how curvature is measured, would be one of masks."""

    def dropped(root, batch):
        return Result((nn.functional.dropout(batch.x, 0.5) * root.inner * root.shared).sum(), torch.tensor(2.0))

    oracle = oracle_on(Four(), inner=dropped, streams={"only": Steps(rows(torch.randn(40, 2).tolist()))})
    first = oracle.grads("inner")["shared"]
    torch.rand(3)  # by somebody else, so that the state is not the one that dropout leaves
    state = torch.get_rng_state()
    assert torch.equal(oracle.grads("inner", again=True)["shared"], first)
    elsewhere = oracle.grads("inner", again=True, at={"inner": 2 * torch.tensor([1.0, 2.0]).double()})["shared"]
    torch.testing.assert_close(elsewhere, 2 * first, rtol=1e-12, atol=0)  # which is linear in inner
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(oracle.grads("inner")["shared"], first)


def test_a_levels_loss_is_the_last_one_at_the_present_parameters():
    oracle = oracle_on(Four())
    oracle.grads("outer")
    oracle.grads("inner")
    # x * inner * shared, rows [1, 2] and [.5, -1]: (3 - 4 + 1.5 + 2) / 2
    assert oracle.loss("inner") == pytest.approx(1.25)
    # x * outer * shared^2: (1 * .5 * 9 + 2 * 1.5 + .5 * .5 * 9 - 1.5) / 2
    assert oracle.loss("outer") == pytest.approx((4.5 + 3 + 2.25 - 1.5) / 2)
    oracle.apply({"shared": torch.tensor([3.0, 0.0]).double()})  # to [0, -1]
    assert oracle.loss("inner") == pytest.approx(1.25)  # as last seen
    oracle.grads("inner")
    assert oracle.loss("inner") == pytest.approx((-4 + 2) / 2)


def test_values_are_copies_of_the_groups_that_are_asked_for():
    root = Four()
    oracle = oracle_on(root)
    values = oracle.values("inner", "shared")
    assert {name: value.tolist() for name, value in values.items()} == {"inner": [1.0, 2.0], "shared": [3.0, -1.0]}
    assert not any(value.requires_grad for value in values.values())
    values["inner"].zero_()
    assert root.inner.tolist() == [1.0, 2.0]
    assert set(oracle.values("outer")) == {"outer", "matrix"}
    assert oracle.values() == {}


def test_move_adds_past_the_optimiser_and_its_moments():
    root = Four()
    rates = dict.fromkeys(GROUPS, 0.1)
    named = {n: p for n, p in root.named_parameters() if n in rates}
    oracle = oracle_on(root, adamw(named, rates, Optimisation(10, weight_decay=1.0)), clip=1.0)
    oracle.move({"shared": torch.tensor([100.0, -1.0]).double()})
    assert root.shared.tolist() == [103.0, -2.0]  # neither clipped nor decayed
    assert root.inner.tolist() == [1.0, 2.0]
    assert not oracle.optimizer.state
    assert root.shared.requires_grad
    assert root.shared.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_of_the_solvers_own_that_is_not_finite_moves_nothing(bad):
    root = Four()
    oracle = oracle_on(root)
    before = bits(root)
    direction = {"inner": torch.ones(2).double(), "shared": torch.tensor([bad, 0.0]).double()}
    with pytest.raises(NonFinite, match="the solver's own step is not finite in step 1"):
        oracle.move(direction)
    assert_untouched(root, before)


def test_the_rate_is_the_largest_of_a_shared_parameter_in_the_middle_of_the_step():
    root = Four()
    rates = {"inner": 5.0, "shared": 0.2, "outer": 7.0, "matrix": 7.0}
    named = {n: p for n, p in root.named_parameters() if n in rates}
    oracle = oracle_on(root, adamw(named, rates, Optimisation(10)), schedule=lambda progress: 1 - progress)
    oracle.step = 3
    assert oracle.rate == pytest.approx(0.2 * (1 - 0.35))
    direction = {"shared": torch.ones(2).double()}
    oracle.apply(direction)
    used = [g["lr"] for g in oracle.optimizer.param_groups if any(p is root.shared for p in g["params"])]
    assert used == [pytest.approx(oracle.rate)]


def test_where_no_parameter_is_shared_the_rate_is_an_inner_ones():
    """As where the levels meet only by what the inner loss reads of the outer level."""
    root = Four()
    groups = {"inner": "inner", "outer": "outer"}
    optimizer = torch.optim.SGD(
        [
            {"params": [root.inner], "lr": 0.5, "base_lr": 0.5},
            {"params": [root.outer], "lr": 3.0, "base_lr": 3.0},
        ]
    )
    streams = {"only": Steps(rows([[1.0, 2.0]]))}
    levels = {"inner": LevelRun(inner_loss, streams), "outer": LevelRun(outer_loss, streams)}
    settings = {"total_steps": 10, "clip": 0.0, "precision": "fp32", "device": CPU}
    oracle = TrainingOracle(root, levels, optimizer, groups, schedule=lambda progress: 1.0, **settings)
    assert oracle.rate == 0.5


def test_dots_run_over_the_names_that_both_have_and_add_up_in_double():
    oracle = oracle_on(Four())
    x = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]]), "only x": torch.tensor([9.0])}
    y = {"b": torch.tensor([[5.0]]), "a": torch.tensor([-1.0, 4.0]), "only y": torch.tensor([9.0])}
    assert oracle.dots((x, y), (x, x), (x, {})) == [22.0, 95.0, 0.0]
    # one running total in half precision would stay at 256
    many = {str(i): torch.ones(1, dtype=torch.bfloat16) for i in range(1000)}
    assert oracle.dots((many, many)) == [1000.0]


@pytest.mark.parametrize("pairs", [("clip",), ("clip", "projector")])
def test_the_floor_is_below_the_inner_loss_and_comes_with_it(make_stage, model, pairs):
    oracle = oracle_of(model, make_stage(model, pairs=pairs))
    assert oracle.floor is None
    floors = []
    for _ in range(3):  # the third batch of 8 runs into the next epoch of 18 records
        oracle.grads("inner")
        floors.append(oracle.floor)
        assert 0 <= oracle.floor < oracle.loss("inner")
    temperature = model.root.temperature.item()
    assert floors[0] == pytest.approx(len(pairs) * math.log(1 + 7 * math.exp(-8 / (7 * temperature))), rel=1e-5)
    oracle.grads("outer")
    assert oracle.floor == floors[-1]  # the outer loss has none, and takes none away
    oracle.grads("inner", at=oracle.values("shared"), again=True)
    assert oracle.floor == floors[-1]


def test_training_on_one_batch_goes_towards_its_floor_and_not_below_it(make_stage, model):
    """Not to it: some of the drawn pictures have one caption, and cannot be told apart by it."""
    oracle = oracle_of(model, make_stage(model, pairs=("clip",), rate=3e-3))
    distances = []
    for oracle.step in range(40):
        gradient = oracle.grads("inner", again=oracle.step > 0)
        distances.append(oracle.loss("inner") - oracle.floor)
        oracle.apply(gradient)
    assert min(distances) > 0
    assert distances[-1] < distances[0] / 2


def test_the_floor_of_a_level_is_the_sum_over_its_streams():
    def bounded(root, batch):
        return Result((root.shared**2).sum() + batch.x.sum(), torch.tensor(1.0), {"floor": batch.x.sum()})

    streams = {"a": Steps(rows([[1.0, 2.0]])), "b": Steps(rows([[0.25, 0.5]]))}
    oracle = oracle_on(Four(), inner=bounded, streams=streams)
    oracle.grads("inner")
    assert oracle.floor == pytest.approx(3.75)
    assert oracle.loss("inner") == pytest.approx(2 * 10 + 3.75)
