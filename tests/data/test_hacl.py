"""HACL's files: a caption and a hallucinated one, and that no record goes without its second."""

import json

import numpy as np
import pytest

from hialign.data import BadRecord, CaptionedImage, LanguageCollator, hacl_captions


def entry(number, **changes):
    """As hacl/README.MD lays it out."""
    text = f"Two cats sleep on {number} sofas."
    return {
        "image": f"train2014/{number}.jpg",
        "text": text,
        "dataset_name": "coco",
        "task_type": "pretrain",
        "Hallucination caption": f"Two dogs sleep on {number} sofas.",
        "conversations": [
            {"from": "human", "value": "Give a brief description of the image.\n<image>"},
            {"from": "gpt", "value": text},
        ],
    } | changes


@pytest.fixture
def hacl(tmp_path, write_image):
    """A function: entries, file's name -> the arguments of hacl_captions, with the images 0 to 4 there."""

    def make(entries, name="data.json"):
        for number in range(5):
            write_image(tmp_path / "train2014" / f"{number}.jpg", seed=number)
        lines = "\n".join(json.dumps(one) for one in entries)
        (tmp_path / name).write_text(lines if name.endswith("l") else json.dumps(entries))
        return {"annotations": str(tmp_path / name), "images": str(tmp_path)}

    return make


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_record_is_a_captioned_image_with_a_wrong_caption_beside_it(hacl, name, tokenizer, image_processor):
    data = hacl_captions(**hacl([entry(i) for i in range(5)], name))
    assert len(data) == 5
    record = data.records[2]
    assert (record.id, record.captions) == ("train2014/2.jpg", ("Two cats sleep on 2 sofas.",))
    assert record.hallucinated == ("Two dogs sleep on 2 sofas.",)
    assert isinstance(record, CaptionedImage)  # so that the caption level reads the same set
    collator = LanguageCollator(tokenizer, image_processor, image_token_id=3, num_image_tokens=2)
    assert collator.encode(record, np.random.default_rng(0)).ids[:3] == [1, 3, 3]


def test_an_image_may_have_several_records(hacl):
    data = hacl_captions(**hacl([entry(1), entry(1, text="A sofa.")]))
    assert [record.id for record in data.records] == ["train2014/1.jpg", "train2014/1.jpg#2"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"Hallucination caption": None}, "Hallucination caption=None"),
        ({"Hallucination caption": " "}, "Hallucination caption=''"),
        ({"Hallucination caption": "two cats sleep  on 1 sofas."}, "the hallucinated caption is the caption"),
        ({"text": "An <image>"}, "text='An <image>'; wanted a caption without the placeholder"),
        ({"image": "train2014/9.jpg"}, "an image is missing"),
        ({"image": 3}, "image=3"),
    ],
)
def test_a_bad_record_raises_or_is_listed_while_the_others_stay(hacl, changes, problem):
    arguments = hacl([entry(0), entry(1) | changes, entry(2)])
    with pytest.raises(BadRecord, match=problem):
        hacl_captions(**arguments)
    data = hacl_captions(**arguments, on_error="skip")
    assert [record.id for record in data.records] == ["train2014/0.jpg", "train2014/2.jpg"]
    assert len(data.skipped) == 1


def test_a_record_of_the_layout_without_its_second_caption_is_named(hacl):
    bare = entry(1)
    bare.pop("Hallucination caption")
    with pytest.raises(BadRecord, match=r"1.jpg \(record 0\): no field 'Hallucination caption'; wanted image, text"):
        hacl_captions(**hacl([bare]))
