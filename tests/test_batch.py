"""Batches move as a whole."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from torch import Tensor

from hialign.batch import Batch, LanguageBatch, PairBatch, Tokens


def tokens(*, rows: int = 2, length: int = 3) -> Tokens:
    ids = torch.arange(rows * length).reshape(rows, length)
    return Tokens(ids=ids, mask=torch.ones_like(ids), labels=torch.full_like(ids, -100))


def pairs(*, rows: int = 2) -> PairBatch:
    return PairBatch(
        records=tuple(f"record {row}" for row in range(rows)),
        pixel_values=torch.rand(rows, 3, 4, 4),
        caption=tokens(rows=rows),
        clip_caption=tokens(rows=rows, length=5),
    )


@dataclass(frozen=True, kw_only=True)
class Nested(Batch):
    inner: PairBatch
    note: str
    nothing: Tensor | None = None


def tensors_of(batch: PairBatch) -> list[Tensor]:
    rows = [batch.caption, batch.clip_caption]
    return [batch.pixel_values, *(tensor for row in rows for tensor in (row.ids, row.mask, row.labels))]


def test_every_tensor_moves_those_of_nested_dataclasses_too():
    moved = Nested(records=("a", "b"), inner=pairs(), note="kept").to("meta")
    assert {tensor.device.type for tensor in tensors_of(moved.inner)} == {"meta"}
    assert tokens().to("meta").labels.device.type == "meta"


def test_the_tensors_of_a_mapping_move_too():
    told = {"text_logps": torch.zeros(3), "text_states": torch.zeros(3, 2)}
    batch = LanguageBatch(records=("a",), pixel_values=torch.rand(1, 3, 4, 4), text=tokens(rows=1), reference=told)
    moved = batch.to("meta").reference
    assert moved is not None
    assert {name: tensor.is_meta for name, tensor in moved.items()} == {"text_logps": True, "text_states": True}


def test_what_is_no_tensor_stays_as_it_was():
    batch = Nested(records=("a", "b"), inner=pairs(), note="kept")
    moved = batch.to("cpu")
    assert (moved.records, moved.note, moved.nothing) == (("a", "b"), "kept", None)
    assert type(moved) is Nested
    for ours, theirs in zip(tensors_of(moved.inner), tensors_of(batch.inner), strict=True):
        assert torch.equal(ours, theirs)


def test_moving_leaves_the_batch_it_came_from():
    batch = pairs()
    batch.to("meta")
    assert {tensor.device.type for tensor in tensors_of(batch)} == {"cpu"}


def test_a_batch_counts_its_records_and_tokens_their_rows():
    assert len(pairs(rows=3)) == 3
    assert len(tokens(rows=4)) == 4


def test_a_batch_cannot_be_changed_and_its_fields_are_named():
    with pytest.raises(FrozenInstanceError):
        pairs().records = ()
    with pytest.raises(TypeError):
        LanguageBatch(("a",), torch.rand(1, 3, 4, 4), tokens(rows=1))


def test_some_rows_of_pairs_are_those_rows_of_everything():
    tokens = Tokens(ids=torch.arange(6).view(3, 2), mask=torch.ones(3, 2), labels=-torch.arange(6).view(3, 2))
    batch = PairBatch(records=("a", "b", "c"), pixel_values=torch.arange(3.0), caption=tokens, clip_caption=None)
    cut = batch.rows(slice(1, 3))
    assert (cut.records, len(cut), cut.clip_caption) == (("b", "c"), 2, None)
    assert cut.pixel_values.tolist() == [1.0, 2.0]
    assert (cut.caption.ids.tolist(), cut.caption.labels.tolist()) == ([[2, 3], [4, 5]], [[-2, -3], [-4, -5]])
    assert len(batch) == 3
