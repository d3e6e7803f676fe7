"""New POPE questions are those of the official builder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hialign.benchmarks.pope import CATEGORIES
from hialign.benchmarks.pope_build import build, coco_objects, listed_objects, question


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_official_builder_s_questions(official: Callable[[str], Any], category: str):
    fixture = official("pope/build.json")
    objects = {one["image"]: one["objects"] for one in fixture["images"]}
    assert build(objects, category, seed=0, released_wording=True) == fixture["outputs"][category]


def test_the_article_alone_changes_before_a_vowel():
    assert question("apple") == "Is there an apple in the image?"
    assert question("banana") == "Is there a banana in the image?"


SMALL = {"1.jpg": ["cup", "dog"], "2.jpg": ["dog", "cat"], "3.jpg": ["cup", "car"], "4.jpg": ["dog"]}


def test_each_category_by_hand():
    """Of the images with two objects: dog and cup are seen twice, cat and car once; cup meets dog before car."""

    def absent(category: str) -> list[list[str]]:
        asked = [one["text"].split()[3] for one in build(SMALL, category, samples=2) if one["label"] == "no"]
        return [asked[i : i + 2] for i in (0, 2, 4)]

    assert absent("popular") == [["cat", "car"], ["cup", "car"], ["dog", "cat"]]
    assert absent("adversarial")[0] == ["car", "cat"], "cup was seen with car, dog with cat"
    assert all(one not in SMALL[f"{n}.jpg"] for n, pair in enumerate(absent("random"), 1) for one in pair)


def test_images_with_too_few_objects_are_left_out_and_none_is_an_error():
    assert {one["image"] for one in build(SMALL, "popular", samples=2)} == {"1.jpg", "2.jpg", "3.jpg"}
    with pytest.raises(ValueError, match="samples: got 3, and 0 of 4 images have as many objects"):
        build(SMALL, "popular")
    with pytest.raises(ValueError, match=r"1.jpg: all 2 objects are in it or asked after"):
        build({"1.jpg": ["cup", "dog"]}, "random", samples=1)


def test_objects_of_coco_and_of_a_detector(tmp_path: Path):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 7, "category_id": c} for c in (2, 1, 2)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert coco_objects(tmp_path / "instances.json") == {"a.jpg": ["cat", "dog"], "b.jpg": []}
    (tmp_path / "found.jsonl").write_text('{"image": "a.jpg", "objects": ["cat", "dog", "cat"]}\n')
    assert listed_objects(tmp_path / "found.jsonl") == {"a.jpg": ["cat", "dog"]}
    (tmp_path / "found.jsonl").write_text('{"image": "a.jpg"}\n')
    with pytest.raises(ValueError, match=r"entry 1 has no image and objects; wanted object lists"):
        listed_objects(tmp_path / "found.jsonl")


@pytest.mark.parametrize(
    ("key", "entry", "told"),
    [
        ("images", {"id": 9}, "images, entry 2: no file_name; wanted COCO's instances_val2014.json"),
        ("categories", {"id": 9}, "categories, entry 2: no name; wanted COCO's instances_val2014.json"),
        ("annotations", {"image_id": 9, "category_id": 1}, "annotations, entry 1: image_id 9 is none of the file's"),
        ("annotations", {"image_id": 7, "category_id": 9}, "annotations, entry 1: category_id 9 is none of the file's"),
        ("annotations", {"image_id": 7}, "annotations, entry 1: no category_id"),
    ],
)
def test_what_is_wrong_in_coco_s_file_is_named(tmp_path: Path, key: str, entry: dict[str, Any], told: str):
    content: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [],
    }
    content[key].append(entry)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"instances.json: {told}"):
        coco_objects(tmp_path / "instances.json")


def test_objects_that_are_no_names_are_refused(tmp_path: Path):
    (tmp_path / "found.jsonl").write_text('{"image": "a.jpg", "objects": ["cat", ["dog"]]}\n')
    with pytest.raises(ValueError, match=r"found.jsonl: entry 1 has \['dog'\] among its objects; wanted object lists"):
        listed_objects(tmp_path / "found.jsonl")
