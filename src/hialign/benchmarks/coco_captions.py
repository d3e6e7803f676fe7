"""COCO captions: one sentence to each photograph, beside the five that people wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from hialign.benchmarks.answers import Entry, by_name, check_ids, identity, join, read_entries, read_json, read_list
from hialign.benchmarks.caption_metrics import bleu, bleu_counts, cider, meteor, no_meteor, rouge_l
from hialign.benchmarks.caption_tokens import tokens
from hialign.benchmarks.scores import Answers, Columns, Question, Scores, numbers, share

METRICS = ("CIDEr", "Bleu", "METEOR", "ROUGE_L")
LAYOUT = (
    "captions in COCO's layout, as annotations/captions_val2014.json of cocodataset.org/#download: "
    '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
)
NO_SPICE = (
    "metrics: SPICE is not offered: its program needs Stanford CoreNLP 3.6.0, which it fetches at its first use, and "
    "Java 8; use pycocoevalcap itself on the answers, or leave it out"
)


def statistic(sums: Columns) -> dict[str, np.ndarray]:
    """CIDEr, BLEU and ROUGE-L, those that have sums, as fractions (CIDEr from 0 to 10).

    CIDEr's weights of n-grams stay those of the whole set, so that an image's value does not change with what is drawn.
    """
    found: dict[str, np.ndarray] = {}
    if "CIDEr" in sums:
        found["CIDEr"] = share(sums["CIDEr"], sums["images"])
    if "length" in sums:
        found |= dict(reversed(bleu(sums).items()))
    if "ROUGE_L" in sums:
        found["ROUGE_L"] = share(sums["ROUGE_L"], sums["images"])
    return found


@dataclass(frozen=True, kw_only=True)
class CocoCaptions:
    """Images with captions that people wrote, in COCO's layout.

    Args:
        root: the folder with ``file``.
        file: the captions.
        ids: a json list of image ids to which it is restricted, such as Karpathy's 5,000 test images; null: all.
        images: the folder of the images.
        prompt: what is asked of every image; the default is lmms-eval's.
        metrics: of ``METRICS``. METEOR needs Java and is left out, with a flag, where that is missing.
        max_new_tokens: of a caption, where a model is asked; lmms-eval's evaluation has 64.

    Source: Chen et al. 2015, arXiv:1504.00325; pycocoevalcap 1.2.
    Differs: the tokens of rare texts, see ``tokens``; an empty caption is scored.
    """

    IMAGES: ClassVar[str] = "COCO's images of the captions' split (cocodataset.org)"

    root: str
    file: str = "captions_val2014.json"
    ids: str | None = None
    images: str = ""
    prompt: str = "Provide a one-sentence caption for the provided image."
    metrics: Sequence[str] = METRICS
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if "SPICE" in self.metrics:
            raise ValueError(NO_SPICE)
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not set(self.metrics) - {"METEOR"}:
            raise ValueError(
                f"metrics: got {', '.join(map(str, self.metrics)) or 'none'}; wanted some of {', '.join(METRICS)}, and "
                "one besides METEOR"
            )

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Image id -> its entry, of the images that are asked."""
        file = Path(self.root) / self.file
        found = by_name(read_list(file, "images", ("id", "file_name"), LAYOUT), "id", file)
        if self.ids is None:
            return found
        wanted = read_json(self.ids, "a json list of image ids")
        names = [str(name) for name in wanted] if isinstance(wanted, list) else []
        unknown = [name for name in names if name not in found]
        if not names or unknown or len(set(names)) < len(names):
            what = f"image {unknown[0]}, which {file} does not have" if unknown else "no list, or one with repetitions"
            raise ValueError(f"{self.ids}: {what}; wanted a json list of image ids of that file")
        return {name: found[name] for name in names}

    @cached_property
    def references(self) -> dict[str, list[str]]:
        """Image id -> the captions that people wrote."""
        file = Path(self.root) / self.file
        found: dict[str, list[str]] = {name: [] for name in self.entries}
        for entry in read_list(file, "annotations", ("image_id", "caption"), LAYOUT):
            if str(entry["image_id"]) in found:
                found[str(entry["image_id"])].append(str(entry["caption"]))
        lonely = [name for name, captions in found.items() if not captions]
        if lonely:
            raise ValueError(f"{file}: image {lonely[0]} has no caption, as {len(lonely)} have; give ids without them")
        return found

    def questions(self) -> list[Question]:
        """The prompt for each image, in the file's order or that of ``ids``."""
        return [
            Question(id=name, image=os.path.join(self.images, str(entry["file_name"])), text=self.prompt)
            for name, entry in self.entries.items()
        ]

    def read(self, answers: str) -> dict[str, str]:
        """Captions in COCO's format, a list of image_id and caption, in LLaVA's or HALVA's, lmms-eval's or ours."""
        entries = read_entries(answers, 'captions: a json list or a jsonl of {"image_id", "caption"}')
        return join(entries, dict.fromkeys(self.entries, self.prompt), file=answers, key=self._key)

    def _key(self, entry: Entry) -> str | None:
        """The image that an entry is about; a number may have zeros before it, as in COCO's file names."""
        found = identity(entry, ("image_id", "id", "question_id"))
        return str(int(found)) if found is not None and found not in self.entries and found.isdecimal() else found

    def score(self, answers: Answers) -> Scores:
        """The numbers of ``statistic``, and METEOR behind them; an image is a unit."""
        check_ids(answers, self.entries, "captions")
        references = [[tokens(one) for one in self.references[name]] for name in self.entries]
        candidates = [tokens(answers[name]) for name in self.entries]
        parts = [[_parted(one) for one in image] for image in references]
        units: dict[str, dict[str, float]] = {name: {"images": 1.0} for name in self.entries}
        columns = list(units.values())
        if "CIDEr" in self.metrics:
            for unit, value in zip(columns, cider([_parted(one) for one in candidates], parts), strict=True):
                unit["CIDEr"] = value
        for unit, mine, theirs, parted in zip(columns, candidates, references, parts, strict=True):
            if "Bleu" in self.metrics:
                unit.update(bleu_counts(_parted(mine), parted))
            if "ROUGE_L" in self.metrics:
                unit["ROUGE_L"] = rouge_l(mine, theirs)
        rows = [{"id": name, "answer": answers[name]} | _shown(unit) for name, unit in units.items()]
        found, flags = numbers(units, statistic), self._flags(candidates)
        if "METEOR" in self.metrics and no_meteor() is None:
            found["METEOR"], values = meteor(candidates, references)
            rows = [row | {"METEOR": value} for row, value in zip(rows, values, strict=True)]
        return Scores(numbers=found, units=units, statistic=statistic, flags=flags, rows=rows)

    def _flags(self, candidates: Sequence[Sequence[str]]) -> list[str]:
        found = []
        if "METEOR" in self.metrics and (reason := no_meteor()) is not None:
            found.append(f"METEOR is left out: {reason}")
        if "CIDEr" in self.metrics and len(candidates) == 1:
            found.append("CIDEr of a single image is 0 whatever its caption: all n-grams are in all images")
        empty = sum(not candidate for candidate in candidates)
        if empty:
            found.append(f"{empty} captions hold no word")
        return found


def _parted(words: Sequence[str]) -> list[str]:
    """The tokens with "1 1/2" as two, as BLEU and CIDEr take them in pycocoevalcap; ROUGE-L does not."""
    return " ".join(words).split()


def _shown(unit: dict[str, float]) -> dict[str, float]:
    return {name: unit[name] for name in ("CIDEr", "ROUGE_L") if name in unit}
