"""What is evaluated: a model, on held-out images with their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hialign.batch import Batch
from hialign.data import BadRecord, CaptionedImage, Dataset, LanguageCollator, PairCollator, Skipped
from hialign.models import Model, evaluating


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked about. ``answers`` is where its answers are written, ``name`` tells models apart.

    ``made_by`` holds what else decides an answer: how the prompt is laid out, the precision, the data. ``world`` has
    the noise and the co-occurrence of the data that it was trained on, where these are of the embedded world.
    """

    name: str
    made_by: Mapping[str, Any]
    world: Mapping[str, float | None]
    model: Model
    heldout: Callable[[], Dataset[CaptionedImage]]  # read when first asked for: not every benchmark wants it
    language: LanguageCollator
    pairs: PairCollator
    answers: Path
    batch_size: int
    device: torch.device
    autocast: Callable[[], Any]
    on_skip: Callable[[Skipped], None]

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}, wanted at least 1")

    def images(self, task: str) -> Iterator[tuple[list[CaptionedImage], Tensor]]:
        """Held-out records with their images (batch, 3, height, width), under a progress bar that says ``task``.

        A broken image raises ``BadRecord`` or, where the data set says ``skip``, is reported and left out.
        """
        heldout = self.heldout()
        records = heldout.records
        shown = 0
        with tqdm(total=len(records), desc=task, unit="image") as bar:
            for start in range(0, len(records), self.batch_size):
                wanted = records[start : start + self.batch_size]
                load = partial(self._load, on_error=heldout.on_error)
                loaded = [(record, image) for record in wanted if (image := load(record)) is not None]
                if loaded:
                    shown += len(loaded)
                    yield [record for record, _ in loaded], torch.stack([image for _, image in loaded])
                bar.update(len(wanted))
        if not shown:
            raise ValueError(f"{task}: none of the {len(records)} held-out images of {heldout.name} can be read")

    def read(self, reader: Callable[[Any, Any], Any], batch: Batch) -> Any:
        """``reader(root, batch)`` without gradients, through the root and under the wanted precision."""
        with torch.no_grad(), evaluating(self.model.root), self.autocast():
            return self.model.root(reader, batch.to(self.device))

    def _load(self, record: CaptionedImage, on_error: str) -> Tensor | None:
        try:
            return self.language.pixels(record)[0]
        except BadRecord as error:
            if on_error == "raise":
                raise
            self.on_skip(Skipped(error.file, error.record, error.problem))
            return None
