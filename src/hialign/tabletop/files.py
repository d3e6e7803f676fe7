"""The world written out in the layouts of published data sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from hialign.data.records import IMAGE, CaptionedImage, Conversation, load_image
from hialign.data.vqa import SHORT_ANSWER
from hialign.tabletop.language import POSITIVE_BIAS
from hialign.tabletop.records import PARAPHRASE, captions, instruct, vqa
from hialign.tabletop.render import NOISE
from hialign.tabletop.world import COOCCURRENCE

LAYOUTS = ("flickr8k", "coco_captions", "llava", "vqa_v2")


def write(
    folder: Path,
    layout: str,
    split: str,
    size: int,
    *,
    seed: int = 0,
    cooccurrence: float | None = COOCCURRENCE,
    paraphrase: float = PARAPHRASE,
    positive_bias: float = POSITIVE_BIAS,
    noise: float = NOISE,
) -> Path:
    """Writes ``size`` scenes of ``split`` into ``folder`` as png files with annotations; returns ``folder``.

    ``flickr8k``: captions.txt, images/. ``coco_captions``: captions.json, images/. ``llava``: captions.json and
    instruct.json, both in LLaVA's format, images/. ``vqa_v2``: questions.json, annotations.json, and images/ named
    {image_id:012d}.png.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: wanted one of {', '.join(LAYOUTS)}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"seed": seed, "cooccurrence": cooccurrence, "noise": noise}
    if layout == "vqa_v2":
        _vqa_v2(folder, list(vqa(split, size, positive_bias=positive_bias, **common).records))
        return folder
    captioned = list(captions(split, size, paraphrase=paraphrase, **common).records)
    if layout == "llava":
        talked = instruct(split, size, paraphrase=paraphrase, positive_bias=positive_bias, **common)
        _llava(folder, captioned, list(talked.records))
    else:
        {"flickr8k": _flickr8k, "coco_captions": _coco}[layout](folder, captioned)
    return folder


def _flickr8k(folder: Path, records: list[CaptionedImage]) -> None:
    with (folder / "captions.txt").open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["image", "caption"])
        for record in records:
            rows.writerows([_saved(folder, record, f"{record.id}.png"), text] for text in record.captions)


def _coco(folder: Path, records: list[CaptionedImage]) -> None:
    images = [
        {"id": number, "file_name": _saved(folder, record, f"{record.id}.png")} for number, record in enumerate(records)
    ]
    pairs = [(number, text) for number, record in enumerate(records) for text in record.captions]
    annotations = [{"id": place, "image_id": number, "caption": text} for place, (number, text) in enumerate(pairs)]
    _json(folder / "captions.json", {"images": images, "annotations": annotations})


def _llava(folder: Path, captioned: list[CaptionedImage], talked: list[Conversation]) -> None:
    """One answer is all that LLaVA's pretraining file holds of an image, so a record's first caption is written."""
    rows = []
    for record in captioned:
        turn = [{"from": "human", "value": IMAGE}, {"from": "gpt", "value": record.captions[0]}]
        rows.append({"id": record.id, "image": _saved(folder, record, f"{record.id}.png"), "conversations": turn})
    _json(folder / "captions.json", rows)
    rows = []
    for talk in talked:  # the same scenes, so the pictures are there
        said = [(who, text) for turn in talk.turns for who, text in (("human", turn.question), ("gpt", turn.answer))]
        turns = [{"from": who, "value": text} for who, text in said]
        rows.append({"id": talk.id, "image": f"{talk.id}.png", "conversations": turns})
    _json(folder / "instruct.json", rows)


def _vqa_v2(folder: Path, records: list[Conversation]) -> None:
    questions, annotations = [], []
    for number, record in enumerate(records):
        _saved(folder, record, f"{number:012d}.png")
        text = record.turns[0].question.removeprefix(f"{IMAGE}\n").removesuffix(f"\n{SHORT_ANSWER}")
        questions.append({"question_id": number, "image_id": number, "question": text})
        answer = record.turns[0].answer
        annotations.append({"question_id": number, "image_id": number, "multiple_choice_answer": answer})
    _json(folder / "questions.json", {"questions": questions})
    _json(folder / "annotations.json", {"annotations": annotations})


def _saved(folder: Path, record: CaptionedImage | Conversation, name: str) -> str:
    load_image(record).save(folder / "images" / name, compress_level=1)
    return name


def _json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
