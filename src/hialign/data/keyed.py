"""Rows under names of their own, by which a cache finds what a model made of them, and batches that bring it along."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hialign.batch import Batch, LanguageBatch, PreferenceBatch, Tokens
from hialign.data.collate import LanguageItem
from hialign.data.collate_preferences import PreferenceItem
from hialign.data.order import Collator
from hialign.data.records import BadRecord

Item = LanguageItem | PreferenceItem
IMAGES = ("pixel_values", "corrupted_pixel_values")  # the fields of batches that hold images


class Finder(Protocol):
    """What is used of a cache's reader."""

    def find(self, key: str) -> dict[str, Tensor] | None: ...

    def none_of(self, name: str) -> Tensor | None: ...


@dataclass(frozen=True, kw_only=True)
class KeyedBatch(Batch):
    """A batch with the names of its rows and images: equal names, equal ids, labels and pixels."""

    batch: Batch
    rows: Mapping[str, tuple[str, ...]]  # by side: text, or chosen, rejected and, if there are such images, corrupted
    images: Mapping[str, tuple[str, ...]]  # of each field of IMAGES that there is, of all rows
    drawn: bool  # whether a random draw decided something of these rows


class KeyedCollator:
    """What ``collator`` makes, with the names of rows and images."""

    def __init__(self, collator: Collator[Any]) -> None:
        self.collator = collator

    def encode(self, record: Any, rng: np.random.Generator) -> tuple[Item, bool]:
        """The item, and whether a draw decided something of it."""
        before = rng.bit_generator.state
        item = self.collator.encode(record, rng)
        return item, rng.bit_generator.state != before

    def collate(self, items: list[tuple[Item, bool]]) -> KeyedBatch:
        """The items as one batch with its names."""
        keys = [_Keys(item) for item, _ in items]
        batch = self.collator.collate([item for item, _ in items])
        return KeyedBatch(
            records=batch.records,
            batch=batch,
            rows={side: tuple(key.rows[side] for key in keys) for side in keys[0].rows},
            images={name: tuple(one for key in keys for one in key.images[name]) for name in keys[0].images},
            drawn=any(drawn for _, drawn in items),
        )


class CachedCollator:
    """What ``collator`` makes, with what caches hold of it in its place.

    Args:
        collator: gives LanguageBatch or PreferenceBatch.
        folder: of the caches, for errors.
        reference: the cache of what the starting model says, None for none.
        names: of that, what the objective reads.
        features: the cache of what the image tower makes of images, None for none.
    """

    def __init__(
        self,
        collator: Collator[Any],
        folder: str,
        *,
        reference: Finder | None = None,
        names: Sequence[str] = (),
        features: Finder | None = None,
    ) -> None:
        self.collator, self.folder = collator, folder
        self.reference, self.names, self.features = reference, names, features

    def encode(self, record: Any, rng: np.random.Generator) -> Item:
        """As ``collator`` does."""
        item: Item = self.collator.encode(record, rng)
        return item

    def collate(self, items: list[Item]) -> LanguageBatch | PreferenceBatch:
        """The items as one batch; a BadRecord, that nobody skips, where a cache lacks one or is damaged."""
        batch: LanguageBatch | PreferenceBatch = self.collator.collate(items)
        keys = [_Keys(item) for item in items]
        if self.reference is not None:
            batch = replace(batch, reference=self._reference(self.reference, items, keys))
        if self.features is not None:
            found = {name: self._features(self.features, name, items, keys) for name in keys[0].images}
            changes: dict[str, Any] = {name: images for name, images in found.items() if images is not None}
            batch = replace(batch, **changes)
        return batch

    def _reference(self, finder: Finder, items: list[Item], keys: list[_Keys]) -> dict[str, Tensor]:
        """By name, the tensors of all rows, one behind the other."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for side in dict.fromkeys(name.rpartition("_")[0] for name in self.names):
            for item, key in zip(items, keys, strict=True):
                entry = self._found(finder, key.rows[side], item, f"its {side} row")
                for name in (name for name in self.names if name.rpartition("_")[0] == side):
                    found[name].append(entry[name.rpartition("_")[2]])
        return {name: torch.cat(tensors) for name, tensors in found.items()}

    def _features(self, finder: Finder, name: str, items: list[Item], keys: list[_Keys]) -> Tensor | None:
        """The features of all images of the field called ``name``; None where neither rows nor cache have any."""
        found = [
            self._found(finder, image, item, "an image of it")["features"]
            for item, key in zip(items, keys, strict=True)
            for image in key.images[name]
        ]
        return torch.cat(found) if found else finder.none_of("features")

    def _found(self, finder: Finder, key: str, item: Item, what: str) -> dict[str, Tensor]:
        try:
            entry = finder.find(key)
        except ValueError as error:
            raise BadRecord(self.folder, item.record, str(error), "then go on with resume=auto") from error
        if entry is None:
            raise BadRecord(
                self.folder,
                item.record,
                f"{what} is not in the cache as this run reads it: other text, image, draw or size",
                "run hialign cache with this run's settings and a new folder, or set cache=null",
            )
        return entry


class _Keys:
    """The names of an item's rows, by side, and of its images, by field."""

    def __init__(self, item: Item) -> None:
        corrupted = item.corrupted if isinstance(item, PreferenceItem) else None
        given = zip(IMAGES, (item.pixel_values, corrupted), strict=True)
        self.images = {name: [digest(image) for image in images] for name, images in given if images is not None}
        self.rows = {}
        for side, field, row in _sides(item):
            self.rows[side] = digest(side, *self.images[field], row.ids, row.labels)


def _sides(item: Item) -> Iterator[tuple[str, str, Any]]:
    """Each side's name, the field of its images and what has its ids and labels."""
    if isinstance(item, LanguageItem):
        yield "text", IMAGES[0], item
        return
    yield "chosen", IMAGES[0], item.chosen
    yield "rejected", IMAGES[0], item.rejected
    if item.corrupted is not None:
        yield "corrupted", IMAGES[1], item.chosen


def side_tokens(batch: Batch, side: str) -> Tokens:
    """The ids and labels of the side's rows, of a batch that has sides."""
    if isinstance(batch, LanguageBatch):
        return batch.text
    assert isinstance(batch, PreferenceBatch)
    return batch.rejected if side == "rejected" else batch.chosen


def digest(*parts: Tensor | Sequence[int] | str) -> str:
    """A name for exactly these numbers, of their values, types and shapes."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            made.update(f"{part.dtype}{tuple(part.shape)}".encode())
            made.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            made.update(f"{part!r} ".encode())
    return made.hexdigest()[:32]
