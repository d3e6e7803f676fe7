"""The queue keeps the last keys, and the temperature its bounds."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from hialign.losses import MemoryQueue, Temperature, info_nce


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def held(memory: MemoryQueue) -> list[list[float]]:
    return sorted(memory.rows.tolist())


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (3, 5, 1), (4, 4), (11,), (0, 3, 9, 2)])
def test_the_queue_holds_the_last_keys_that_were_pushed(sizes: tuple[int, ...]):
    memory, expected = MemoryQueue(5, dim=3), deque(maxlen=5)
    for number, size in enumerate(sizes):
        keys = normal(size, 3, seed=number)
        memory.push(keys)
        expected.extend(keys.tolist())
        assert held(memory) == sorted(expected)


def test_an_empty_queue_changes_no_loss():
    queries, keys = normal(3, 4), normal(3, 4, seed=1)
    assert torch.equal(info_nce(queries, keys, queue=MemoryQueue(8, dim=4).rows), info_nce(queries, keys))


def test_keys_are_kept_without_their_graph_and_without_later_changes():
    memory, keys = MemoryQueue(4, dim=3), normal(2, 3).requires_grad_()
    memory.push(keys)
    kept = memory.rows
    with torch.no_grad():
        keys.zero_()
    memory.push(normal(4, 3, seed=1))
    assert not kept.requires_grad
    torch.testing.assert_close(kept, normal(2, 3))


def test_a_push_between_forward_and_backward_harms_no_gradient():
    memory = MemoryQueue(4, dim=3)
    memory.push(normal(4, 3))
    queries, keys = normal(2, 3, seed=1).requires_grad_(), normal(2, 3, seed=2)
    expected = torch.autograd.grad(info_nce(queries, keys, queue=normal(4, 3)), queries)
    loss = info_nce(queries, keys, queue=memory.rows)
    memory.push(keys)
    torch.testing.assert_close(torch.autograd.grad(loss, queries), expected)


def test_a_saved_queue_goes_on_where_it_was():
    memory, again = MemoryQueue(5, dim=2), MemoryQueue(5, dim=2)
    memory.push(normal(7, 2))
    again.load_state_dict(memory.state_dict())
    for queue in (memory, again):
        queue.push(normal(2, 2, seed=1))
    assert held(again) == held(memory)
    assert again.pushed == 9


def test_the_queue_takes_other_floats_and_moves_as_a_module():
    memory = MemoryQueue(3, dim=2).double()
    memory.push(torch.ones(1, 2, dtype=torch.bfloat16))
    assert memory.rows.dtype == torch.float64
    assert not list(memory.parameters())


@pytest.mark.parametrize("keys", [torch.ones(2, 3), torch.ones(2), torch.ones(2, 4, dtype=torch.int64)])
def test_keys_that_do_not_fit_are_named(keys: Tensor):
    with pytest.raises(ValueError, match=rf"MemoryQueue: keys is {keys.dtype} \({keys.shape[0]},.*floats \(n, 4\)"):
        MemoryQueue(5, dim=4).push(keys)


def test_a_queue_without_room_is_refused():
    with pytest.raises(ValueError, match="size=0 and dim=4, wanted both >= 1"):
        MemoryQueue(0, dim=4)


def test_a_temperature_is_one_parameter_that_a_sharded_model_takes():
    temperature = Temperature(0.2)
    assert [p.shape for p in temperature.parameters()] == [(1,)]
    assert temperature().item() == pytest.approx(0.2)
    assert Temperature()().item() == pytest.approx(0.07)


def test_a_temperature_is_learned_towards_its_pairs():
    """Rows that fit want a low temperature, rows that do not a high one."""
    for keys, falls in ((torch.eye(4), True), (torch.eye(4).roll(1, 0), False)):
        temperature = Temperature(0.2)
        optimiser = torch.optim.SGD(temperature.parameters(), lr=0.1)
        info_nce(torch.eye(4), keys, temperature=temperature()).backward()
        optimiser.step()
        assert (temperature().item() < 0.2) is falls


@pytest.mark.parametrize(("log_scale", "bound"), [(100.0, 0.01), (-100.0, 0.5)])
def test_a_parameter_beyond_a_bound_gives_the_bound_and_can_come_back(log_scale: float, bound: float):
    temperature = Temperature(0.07, minimum=0.01, maximum=0.5)
    with torch.no_grad():
        temperature.log_scale.fill_(log_scale)
    value = temperature()
    value.backward()
    assert value.item() == pytest.approx(bound)
    assert temperature.log_scale.grad is not None
    assert temperature.log_scale.grad.item() == pytest.approx(-bound)  # d/ds exp(-s)
    temperature.clamp_()
    assert torch.exp(-temperature.log_scale).item() == pytest.approx(bound)


@pytest.mark.parametrize(
    "settings", [{"initial": 0.001}, {"initial": 2.0}, {"minimum": 0.0}, {"minimum": 0.5, "maximum": 0.1}]
)
def test_bounds_without_room_for_the_temperature_are_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match="wanted 0 < minimum <= initial <= maximum"):
        Temperature(**settings)
