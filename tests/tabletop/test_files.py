"""What is written in a published layout is read back by that layout's adapter, record by record."""

from __future__ import annotations

import numpy as np
import pytest

from hialign.data import coco_captions, flickr8k, llava_captions, llava_conversations, load_image, vqa_v2
from hialign.tabletop import captions, instruct, vqa, write

SIZE = 12


def pixels(record):
    return np.asarray(load_image(record))


def test_flickr8k_gives_the_captions_back(tmp_path):
    write(tmp_path, "flickr8k", "val", SIZE, seed=3)
    wanted = {f"{record.id}.png": record for record in captions("val", SIZE, seed=3).records}
    found = flickr8k(str(tmp_path), holdout=0.0)
    assert [record.id for record in found.records] == sorted(wanted)
    assert not found.skipped
    for record in found.records:
        assert record.captions == wanted[record.id].captions
        assert np.array_equal(pixels(record), pixels(wanted[record.id]))


def test_coco_captions_gives_the_captions_back(tmp_path):
    write(tmp_path, "coco_captions", "counterfactual", SIZE, paraphrase=1.0)
    wanted = captions("counterfactual", SIZE, paraphrase=1.0).records
    found = coco_captions(str(tmp_path / "captions.json"), str(tmp_path / "images"), holdout=0.0)
    assert len(found) == SIZE
    for record in found.records:
        assert record.captions == wanted[int(record.id)].captions
        assert np.array_equal(pixels(record), pixels(wanted[int(record.id)]))


def test_llava_gives_first_captions_and_conversations_back(tmp_path):
    write(tmp_path, "llava", "train", SIZE, cooccurrence=0.5)
    images = str(tmp_path / "images")
    short = llava_captions(str(tmp_path / "captions.json"), images).records
    for record, wanted in zip(short, captions("train", SIZE, cooccurrence=0.5).records, strict=True):
        assert (record.id, record.captions) == (wanted.id, wanted.captions[:1])
    talks = llava_conversations(str(tmp_path / "instruct.json"), images).records
    for record, wanted in zip(talks, instruct("train", SIZE, cooccurrence=0.5).records, strict=True):
        assert (record.id, record.turns) == (wanted.id, tuple(wanted.turns))
        assert np.array_equal(pixels(record), pixels(wanted))


def test_vqa_v2_gives_the_questions_back(tmp_path):
    write(tmp_path, "vqa_v2", "test", SIZE, positive_bias=0.2, noise=0.1)
    files = {name: str(tmp_path / f"{name}.json") for name in ("questions", "annotations")}
    found = vqa_v2(**files, images=str(tmp_path / "images"), image_name="{image_id:012d}.png")
    wanted = vqa("test", SIZE, positive_bias=0.2, noise=0.1).records
    assert sorted(int(record.id) for record in found.records) == list(range(SIZE))
    for record in found.records:
        assert record.turns == tuple(wanted[int(record.id)].turns)
        assert np.array_equal(pixels(record), pixels(wanted[int(record.id)]))


def test_an_unknown_layout_is_named(tmp_path):
    with pytest.raises(ValueError, match="layout='coco'"):
        write(tmp_path, "coco", "train", 1)
