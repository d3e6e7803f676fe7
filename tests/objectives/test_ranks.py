"""Two gloo processes against one: the contrastive level is that of the whole batch. Run as a script, this is a rank."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hialign import distributed
from hialign.batch import PairBatch, Tokens
from hialign.objectives import Contrastive, Hacl

RANKS, ROWS = 2, 3  # rows of each rank
PAIRS = ("clip", "projector")
# the second spells a record that comes back on the other rank, and one that comes back on its own
RECORDS = {"distinct": tuple("abcdef"), "repeated": tuple("abaacd")}


class Towers(nn.Module):
    """Small float64 towers, with what ``Parts`` asks of a contrastive model."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def make(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.trunk = make(12, 8)  # under both pairs, as the image tower is
        self.image = nn.ParameterDict({pair: make(8, 4) for pair in PAIRS})
        self.text = nn.ParameterDict({pair: make(10, 4) for pair in PAIRS})
        self.log_temperature = nn.Parameter(torch.tensor([-0.7], dtype=torch.float64))

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp()

    def image_embeddings(self, pixel_values: Tensor, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        states = torch.tanh(pixel_values.flatten(1) @ self.trunk)
        return {pair: states @ self.image[pair] for pair in pairs}

    def text_embeddings(self, caption: Tokens, clip_caption: Tokens, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        return {pair: self.text[pair][caption.ids].mean(dim=1) for pair in pairs}


def rows_of(records: tuple[str, ...], rows: slice) -> PairBatch:
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randn(RANKS * ROWS, 3, 2, 2, generator=generator, dtype=torch.float64)[rows]
    ids = torch.randint(10, (RANKS * ROWS, 5), generator=generator)[rows]
    tokens = Tokens(ids=ids, mask=torch.ones_like(ids), labels=torch.full_like(ids, -100))
    return PairBatch(records=records[rows], pixel_values=pixels, caption=tokens, clip_caption=tokens)


def contrastive(records: tuple[str, ...], rows: slice) -> dict[str, Any]:
    """The loss, its weight, its numbers, and the gradient of (sum / all rows), added over the ranks."""
    towers = Towers()
    result = Contrastive(PAIRS)(towers, rows_of(records, rows))
    (result.loss_sum / (RANKS * ROWS)).backward()
    return {
        "loss": distributed.sum_(result.loss_sum.detach().clone()) / (RANKS * ROWS),
        "weight": distributed.sum_(result.weight.clone()),
        "numbers": {name: torch.as_tensor(value) for name, value in result.numbers.items()},
        "grads": {name: distributed.sum_(p.grad) for name, p in towers.named_parameters()},
    }


def queued(rows: slice) -> Tensor:
    """The loss of HACL's third batch behind a queue of the first two, added over the ranks."""
    objective, towers = Hacl(queue=2 * RANKS * ROWS - 1), Towers()
    generator = torch.Generator().manual_seed(6)
    for records in ("abcdef", "ghiajk", "lamnog"):
        objective.remember()
        made = torch.randn(3, RANKS * ROWS, 4, generator=generator, dtype=torch.float64)[:, rows]
        embeddings = dict(zip(("image/llm", "text/llm", "hallucinated/llm"), made, strict=True))
        loss = objective.loss(towers, embeddings, tuple(records[rows])).loss_sum
    return distributed.sum_(loss.clone())


def all_rows() -> Tensor:
    return torch.randn(RANKS * ROWS, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def what_a_rank_asks(rank: int, gathered: Tensor) -> Tensor:
    """A loss of all rows that differs from rank to rank."""
    return ((gathered @ gathered.T) ** (2 + rank)).sum() * (1 + rank)


def run_rank(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    rows = all_rows()[mine].clone().requires_grad_()
    gathered, offset = distributed.gather(rows)
    what_a_rank_asks(rank, gathered).backward()
    turned = torch.arange(6.0).reshape(2, 3).T + 10 * rank
    broadcast = [torch.full((2,), float(rank)), torch.full((1,), 5.0 + rank)]
    distributed.from_main_(broadcast)
    seen = {
        "gathered": gathered.detach(),
        "offset": offset,
        "gathered_grad": rows.grad,
        "turned": distributed.gather(turned)[0],
        "sum": distributed.sum_(torch.tensor([1.0, rank])),
        "max": distributed.max_(torch.tensor([1.0, rank])),
        "broadcast": broadcast,
        "objects": distributed.all_objects({"rank": rank}),
        "who": (distributed.active(), distributed.rank(), distributed.world_size(), distributed.is_main()),
        "queued": queued(mine),
        **{name: contrastive(records, mine) for name, records in RECORDS.items()},
    }
    torch.save(seen, folder / f"rank{rank}.pt")
    distributed.stop()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw; one start serves all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    try:
        errors = [process.communicate(timeout=90)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * RANKS, "\n".join(errors)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


@pytest.mark.distributed
def test_gather_holds_every_ranks_rows_in_order(ranks):
    for rank, seen in enumerate(ranks):
        assert torch.equal(seen["gathered"], all_rows())
        assert seen["offset"] == rank * ROWS
        assert seen["turned"].tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]


@pytest.mark.distributed
def test_the_gradient_of_a_gathered_row_is_what_all_ranks_ask_of_it(ranks):
    rows = all_rows().requires_grad_()
    sum(what_a_rank_asks(rank, rows) for rank in range(RANKS)).backward()
    ours = torch.cat([seen["gathered_grad"] for seen in ranks])
    torch.testing.assert_close(ours, rows.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.distributed
@pytest.mark.parametrize("case", RECORDS)
def test_gradients_added_over_ranks_are_those_of_the_whole_batch(ranks, case: str):
    whole = contrastive(RECORDS[case], slice(None))
    assert {name.partition(".")[0] for name in whole["grads"]} == {"trunk", "image", "text", "log_temperature"}
    for seen in ranks:
        assert seen[case]["grads"].keys() == whole["grads"].keys()
        for name, gradient in whole["grads"].items():
            assert gradient.abs().max() > 1e-4, f"{name} has no gradient to compare"
            torch.testing.assert_close(seen[case]["grads"][name], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.distributed
@pytest.mark.parametrize("case", RECORDS)
def test_losses_weights_and_numbers_added_over_ranks_are_those_of_the_whole_batch(ranks, case: str):
    whole = contrastive(RECORDS[case], slice(None))
    for seen in ranks:
        torch.testing.assert_close(seen[case]["loss"], whole["loss"], rtol=1e-10, atol=1e-10)
        assert seen[case]["weight"] == whole["weight"] == RANKS * ROWS
    for name, number in whole["numbers"].items():
        mean = torch.stack([seen[case]["numbers"][name] for seen in ranks]).mean()
        torch.testing.assert_close(mean, number, rtol=1e-10, atol=1e-10)


def test_repeated_records_change_the_loss():
    # else the case above could not tell a mask that looks at its own rank only
    repeated, distinct = (contrastive(RECORDS[case], slice(None))["loss"] for case in ("repeated", "distinct"))
    assert abs(repeated - distinct) > 0.01


@pytest.mark.distributed
def test_a_queue_is_the_same_on_every_rank_and_holds_the_rows_of_all(ranks):
    for seen in ranks:
        torch.testing.assert_close(seen["queued"], queued(slice(None)), rtol=1e-10, atol=1e-10)


@pytest.mark.distributed
def test_sums_maxima_broadcasts_and_objects_reach_every_rank(ranks):
    for rank, seen in enumerate(ranks):
        assert seen["who"] == (True, rank, RANKS, rank == 0)
        assert seen["sum"].tolist() == [2, 1]
        assert seen["max"].tolist() == [1, 1]
        assert [tensor.tolist() for tensor in seen["broadcast"]] == [[0, 0], [5]]
        assert seen["objects"] == [{"rank": 0}, {"rank": 1}]


def test_one_process_gathers_its_own_rows_as_they_are():
    rows = torch.randn(2, 3, requires_grad=True)
    gathered, offset = distributed.gather(rows)
    assert gathered is rows
    assert offset == 0
    assert (distributed.active(), distributed.rank(), distributed.world_size()) == (False, 0, 1)
    assert distributed.is_main()
    assert distributed.all_objects("a") == ["a"]
    assert distributed.sum_(torch.ones(1)).item() == distributed.max_(torch.ones(1)).item() == 1
    distributed.barrier()
    distributed.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
