"""A contrastive batch in micro-batches: the numbers of the whole one, dropout and all, for the memory of a part."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hialign.batch import Batch
from hialign.objectives import Contrastive, NextToken, Result
from hialign.solvers import Joint
from hialign.training import Training, TrainingOracle, probe
from hialign.training.cached import Cacheable, cached_backward
from hialign.training.logs import Logs
from hialign.training.optim import adamw

CPU = torch.device("cpu")
PAIRS = ("clip", "projector")
TRAIN = ("vision", "projector", "llm", "text", "heads", "temperature")
PRECISE = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def shake(root: nn.Module) -> None:
    """Dropout in the attention of both towers and of the language model, which the small model has none of."""
    for module in root.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.3
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3


def read_on(root):
    return lambda reader, batch: root(reader, batch)


@pytest.fixture
def pair_batches(make_stage, model):
    """A function that gives the same 8 rows in micro-batches of the sizes it is given."""
    (whole,) = make_stage(model, pairs=PAIRS).levels["inner"].streams["pairs"].next()

    def make(*sizes):
        assert sum(sizes) == len(whole) == 8
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return [whole.rows(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]

    return make


def gradients(root):
    found = {name: p.grad.clone() for name, p in root.named_parameters() if p.grad is not None}
    root.zero_grad(set_to_none=True)
    return found


def assert_equal_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys()
    scale = torch.stack([g.double().norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        distance = (found[name] - gradient).norm() / max(gradient.norm(), scale * 1e-3)
        assert distance < tolerance, f"{name}: {distance:.2e}"


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISE)
@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (3, 3, 2), (1, 7)])
def test_micro_batches_give_the_loss_and_the_gradients_of_the_whole_batch(pair_batches, model, sizes, dtype, tolerance):
    """The temperature's gradient too; the last micro-batch may be a smaller one."""
    model.root.to(dtype)
    objective = Contrastive(PAIRS)
    (whole,) = pair_batches(8)
    expected = model.root(objective, whole)
    expected.loss_sum.backward()
    one = gradients(model.root)
    found = cached_backward(objective, pair_batches(*sizes), read_on(model.root), CPU)
    assert found.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=tolerance)
    assert found.weight.item() == expected.weight.item() == 8
    assert float(found.numbers["floor"]) == float(expected.numbers["floor"]) > 0  # that of 8 rows, not of a few
    many = gradients(model.root)
    assert many["alignment.log_temperature"].abs() > 1e-3
    assert_equal_gradients(many, one, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISE)
def test_dropout_draws_the_same_in_both_passes_and_once_for_those_behind(pair_batches, model, dtype, tolerance):
    """The reference keeps the graphs of all micro-batches, and so draws each mask once."""
    model.root.to(dtype).train()
    shake(model.root)
    objective, batches = Contrastive(PAIRS), pair_batches(3, 3, 2)
    torch.manual_seed(5)
    parts = [model.root(objective.embed, batch) for batch in batches]
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    records = tuple(record for batch in batches for record in batch.records)
    expected = objective.loss(model.root, together, records)
    expected.loss_sum.backward()
    after, one = torch.get_rng_state(), gradients(model.root)
    torch.manual_seed(5)
    found = cached_backward(objective, batches, read_on(model.root), CPU)
    assert found.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=tolerance)
    assert torch.equal(torch.get_rng_state(), after)
    assert_equal_gradients(gradients(model.root), one, tolerance)
    cached_backward(objective, batches, read_on(model.root), CPU)  # other draws: the test above can fail
    with pytest.raises(AssertionError):
        assert_equal_gradients(gradients(model.root), one, 1e-2)


def test_a_frozen_side_is_no_obstacle_nor_is_a_temperature_that_trains_alone(pair_batches, model):
    objective, batches = Contrastive(PAIRS), pair_batches(4, 4)
    for name, parameter in model.root.named_parameters():
        parameter.requires_grad_(name == "alignment.log_temperature")
    (whole,) = pair_batches(8)
    model.root(objective, whole).loss_sum.backward()
    one = gradients(model.root)
    cached_backward(objective, batches, read_on(model.root), CPU)
    assert_equal_gradients(gradients(model.root), one, 1e-5)


class Graphs:
    """What backward passes keep, in numbers at a time: ``most`` is the largest sum that was alive."""

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    def __init__(self):
        self.alive = self.most = 0

    def pack(self, tensor):
        kept = self.Kept(tensor)
        self.alive += tensor.numel()
        self.most = max(self.most, self.alive)
        weakref.finalize(kept, self.drop, tensor.numel())
        return kept

    def drop(self, count):
        self.alive -= count

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


class Wide(nn.Module):
    """A tower that keeps much of each row, and no parameter whose copies would be counted beside."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, reader, batch):
        return reader(self, batch)


class Pulled:
    """Rows that see each other by their embeddings; counts the rows that were embedded with a graph at a time."""

    batch_type, whole_batch, bounded = Batch, True, False

    def __init__(self):
        self.seen: list[tuple[int, bool]] = []

    def embed(self, parts, batch):
        self.seen.append((len(batch), torch.is_grad_enabled()))
        x = batch.x
        for _ in range(20):
            x = torch.tanh(x * parts.scale)
        return {"rows": x.mean(dim=1, keepdim=True)}

    def loss(self, parts, embeddings, records):
        rows = embeddings["rows"]
        return Result((rows - rows.mean()).square().sum(), torch.tensor(float(len(records))))

    def __call__(self, parts, batch):
        return self.loss(parts, self.embed(parts, batch), batch.records)


@dataclass(frozen=True, kw_only=True)
class Rows(Batch):
    x: torch.Tensor


def wide_rows(count):
    generator = torch.Generator().manual_seed(0)
    return Rows(records=tuple(f"r{i}" for i in range(count)), x=torch.randn(count, 1000, generator=generator))


def test_memory_follows_the_micro_batch_and_not_the_batch():
    root, objective = Wide(), Pulled()
    peaks = {}
    for count in (2, 4, 16):
        with Graphs() as graphs:
            cached_backward(objective, [wide_rows(2) for _ in range(count // 2)], read_on(root), CPU)
        peaks[count] = graphs.most
    with Graphs() as graphs:
        objective(root, wide_rows(16)).loss_sum.backward()
    assert peaks[16] < 1.1 * peaks[2]
    assert graphs.most > 7 * peaks[16]  # as a whole the batch keeps eight times as much: the count sees it
    with_graph = [rows for rows, graph in objective.seen[:-1] if graph]
    assert set(with_graph) == {2}
    assert sum(with_graph) == 2 + 4 + 16


def oracle_of(model, stage):
    rates = stage.rates()
    groups = probe(model.root, stage, "fp32", CPU)[0]
    parameters = {name: p for name, p in model.root.named_parameters() if name in groups}
    return TrainingOracle(
        model.root,
        stage.levels,
        adamw(parameters, rates, stage.optimisation),
        groups,
        total_steps=10,
        schedule=lambda progress: 1.0,
        clip=0.0,
        precision="fp32",
        device=CPU,
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_levels_gradient_does_not_depend_on_its_micro_batches(make_stage, model, size):
    model.root.double()
    seen = {}
    for rows in (8, size):
        oracle = oracle_of(model, make_stage(model, train=TRAIN, pairs=PAIRS, inner_micro_batch_size=rows))
        seen[rows] = oracle.grads("inner"), oracle.take_numbers(), oracle.floor
    (one, numbers, floor), (many, others, other_floor) = seen[8], seen[size]
    assert_equal_gradients(many, one, 1e-10)
    assert others == {key: pytest.approx(value, rel=1e-6) for key, value in numbers.items()}  # norms are in float32
    assert others["inner_loss"] == pytest.approx(numbers["inner_loss"], rel=1e-12)
    assert other_floor == floor


def test_training_in_micro_batches_is_training_on_the_whole_batch(make_stage, new_model, tmp_path):
    models = {}
    for size in (8, 2):
        models[size] = new_model()
        models[size].root.double()
        stage = make_stage(models[size], solver=Joint(0.5), pairs=PAIRS, inner_micro_batch_size=size, clip=0.0, steps=3)
        folder = tmp_path / str(size)
        folder.mkdir()
        with Logs(folder, [], {}) as logs:
            Training(models[size].root, [stage], folder, logs, CPU).run()
    weights, others = (models[size].root.state_dict() for size in (8, 2))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-8, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


class Unsplittable(NextToken):
    """Says that its rows see each other, and has no embeddings."""

    whole_batch = True


def test_a_whole_batch_objective_without_embeddings_refuses_micro_batches_by_name(make_stage, model):
    assert isinstance(Contrastive(), Cacheable)
    assert not isinstance(Unsplittable(), Cacheable)
    whole = oracle_of(model, make_stage(model, outer=Unsplittable()))
    assert whole.grads("outer")
    split = oracle_of(model, make_stage(model, outer=Unsplittable(), micro_batch_size=2))
    with pytest.raises(ValueError, match="outer level: got 4 micro-batches, and Unsplittable sees its rows as each"):
        split.grads("outer")
