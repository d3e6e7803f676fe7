"""What is said of a stream's input is true of it, and measuring uses up nothing."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hialign.batch import LanguageBatch, Tokens
from hialign.data import CaptionedImage, Dataset, Loader, Throughput, measure, throughput


class Slow:
    """Items take ``seconds`` each; the batch has images of 480 bytes a row and text of 3 x 16."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def encode(self, record, rng):
        time.sleep(self.seconds)
        return record.id

    def collate(self, items):
        text = torch.zeros(len(items), 2, dtype=torch.int64)
        return LanguageBatch(
            records=tuple(items),
            pixel_values=torch.zeros(len(items), 3, 4, 10),
            text=Tokens(ids=text, mask=text, labels=text),
        )


def loader(collator, **arguments):
    data = Dataset("d", [CaptionedImage(f"r{i}", Path("x"), ("a",)) for i in range(40)])
    settings = {"batch_size": 8, "micro_batch_size": 4, "seed": 5} | arguments
    return Loader(data, collator, on_skip=print, **settings)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_numbers_are_those_of_the_stream(workers):
    found = measure(loader(Slow(0.02), workers=workers))
    assert (found.rows, found.batch, found.images) == (4, 4 * (480 + 48), 4 * 480)
    assert len(found.workers) == workers
    assert all(size > 10e6 for size in (found.process, *found.workers))
    each = 1 / 0.02  # a process sleeps so long for each row; a machine that is busy makes fewer, none makes more
    assert 0 < found.rows_per_second < 1.2 * each * max(1, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_measuring_changes_neither_batches_nor_position_nor_random_state_and_ends_its_workers(workers):
    some, other = loader(Slow(), workers=workers), loader(Slow())
    some.next(), other.next()
    before, random = some.state_dict(), torch.get_rng_state()
    measure(some)
    assert some.state_dict() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert multiprocessing.active_children() == []
    for _ in range(12):
        assert [batch.records for batch in some.next()] == [batch.records for batch in other.next()]
    some.close()


def test_measuring_stops_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(throughput, "SECONDS", 0.0)
    made = []
    collator = Slow()
    monkeypatch.setattr(collator, "collate", lambda items: made.append(1) or Slow().collate(items))
    measure(loader(collator))
    assert made == [1]


def test_the_line_says_rate_sizes_and_memory():
    alone = Throughput(411.6, 32, 25_200_000, 24_444_000, 1_310_000_000, ())
    text = "412 rows/s in the main process, 25.2 MB a micro-batch of 32, images 97%; process 1.3 GB"
    assert str(alone) == text
    helped = replace(alone, workers=(400_000_000, 440_000_000))
    assert str(helped) == text.replace("in the main process", "with 2 workers") + ", workers 2 x 0.4 GB"
    assert "images" not in str(replace(alone, batch=0, images=0))
