"""Two and four gloo processes against one: rows gathered, each loss and its gradients are those of the whole batch.

Run as a script, this is a rank.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hialign import distributed
from hialign.losses import (
    cyclip,
    hacl,
    info_nce,
    info_nce_chunked,
    siglip,
    symmetric_info_nce,
    symmetric_info_nce_chunked,
    triplet,
)

pytestmark = pytest.mark.distributed

ROWS = 8  # of all ranks
ITEMS = torch.tensor([0, 1, 2, 0, 3, 4, 2, 5])  # the same item on two ranks, and on one


class Towers(nn.Module):
    """Small float64 towers and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def make(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.image, self.text = make(6, 4), make(5, 4)
        self.log_temperature = nn.Parameter(torch.tensor([-1.0], dtype=torch.float64))


class Share:
    """A rank's embeddings of its rows, and those of all ranks."""

    def __init__(self, towers: Towers, rows: slice) -> None:
        generator = torch.Generator().manual_seed(4)
        seen, read, misread = (
            torch.randn(ROWS, dim, generator=generator, dtype=torch.float64)[rows] for dim in (6, 5, 5)
        )
        self.images, self.texts, self.wrong = seen @ towers.image, read @ towers.text, misread @ towers.text
        self.all_images, self.offset = distributed.gather(self.images)
        self.all_texts, self.all_wrong = distributed.gather(self.texts)[0], distributed.gather(self.wrong)[0]
        self.items = ITEMS[rows]
        self.same = self.items[:, None] == ITEMS
        self.temperature = towers.log_temperature.exp()
        self.gathered = {"all_images": self.all_images, "all_texts": self.all_texts}


def of_hacl(share: Share, form: str) -> Tensor:
    return hacl(
        share.images,
        share.texts,
        share.wrong,
        form=form,
        all_images=share.all_images,
        all_captions=share.all_texts,
        all_hallucinated=share.all_wrong,
        offset=share.offset,
        temperature=share.temperature,
        same=share.same,
    )


def of_pairs(loss: Callable[..., Tensor], share: Share, **options: Any) -> Tensor:
    return loss(share.images, share.texts, **share.gathered, offset=share.offset, **options)


def one_way(loss: Callable[..., Tensor], share: Share, **options: Any) -> Tensor:
    return loss(share.images, share.all_texts, offset=share.offset, **options)


CASES: dict[str, Callable[[Share], Tensor]] = {
    "info_nce": lambda s: one_way(info_nce, s, temperature=s.temperature, negatives=s.all_wrong),
    "symmetric": lambda s: of_pairs(symmetric_info_nce, s, temperature=s.temperature),
    "symmetric, same": lambda s: of_pairs(symmetric_info_nce, s, temperature=s.temperature, same=s.same),
    "symmetric, positives": lambda s: of_pairs(symmetric_info_nce, s, temperature=s.temperature, positives=s.same),
    "hacl, paper": lambda s: of_hacl(s, "paper"),
    "hacl, released": lambda s: of_hacl(s, "released"),
    "siglip": lambda s: one_way(siglip, s, temperature=s.temperature, bias=-1.0),
    "triplet": lambda s: one_way(triplet, s, margin=0.5),
    "cyclip": lambda s: cyclip(s.images, s.texts, **s.gathered),
    "chunked": lambda s: one_way(
        info_nce_chunked, s, temperature=s.temperature, items=s.items, all_items=ITEMS, tile=3
    ),
    "chunked, symmetric": lambda s: of_pairs(
        symmetric_info_nce_chunked, s, temperature=s.temperature, items=s.items, all_items=ITEMS, tile=3
    ),
}
WITHOUT_TEMPERATURE = {"triplet", "cyclip"}


def run(case: str, rows: slice) -> dict[str, Tensor]:
    """The loss and the gradients of the whole batch's mean, added over the ranks."""
    towers = Towers()
    loss = CASES[case](Share(towers, rows)) * (rows.stop - rows.start) / ROWS
    loss.backward()
    grads = {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}
    return {name: distributed.sum_(value) for name, value in ({"loss": loss.detach()} | grads).items()}


def run_rank(rank: int, ranks: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    count = ROWS // ranks
    seen = {case: run(case, slice(rank * count, (rank + 1) * count)) for case in CASES}
    torch.save(seen, folder / f"rank{rank}.pt")
    distributed.stop()


@pytest.fixture(scope="module", params=[2, 4])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process saw; one start serves all cases."""
    folder, ranks = tmp_path_factory.mktemp("ranks"), request.param
    command = [sys.executable, __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(folder)], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(ranks)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(errors)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


@pytest.mark.parametrize("case", CASES)
def test_ranks_give_the_loss_and_the_gradients_of_one_process(seen: list[dict[str, Any]], case: str):
    expected = run(case, slice(0, ROWS))
    names = {"loss", "image", "text"} | (set() if case in WITHOUT_TEMPERATURE else {"log_temperature"})
    assert set(expected) == names
    assert all(bool(value.any()) for value in expected.values())
    for found in seen:
        assert set(found[case]) == names
        for name, value in expected.items():
            torch.testing.assert_close(found[case][name], value, rtol=1e-10, atol=1e-10)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
