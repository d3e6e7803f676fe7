"""New POPE questions: from COCO's annotations, or from the objects that any detector finds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hialign.benchmarks.answers import read_entries
from hialign.benchmarks.pope import CATEGORIES
from hialign.benchmarks.questions import INSTANCES as LISTED
from hialign.benchmarks.questions import held, read_lists, require_one_of

Objects = Mapping[str, Sequence[str]]  # image -> what is in it, each once
INSTANCES = "COCO's instances_val2014.json (cocodataset.org, annotations_trainval2014.zip)"
LISTS = "object lists: a json list or a jsonl of {image, objects: [names]}"


def coco_objects(file: str | Path) -> dict[str, list[str]]:
    """By image file the categories that are annotated in it, each once, as they come in COCO's instances file."""
    content = read_lists(file, LISTED, INSTANCES)
    names = {str(category["id"]): str(category["name"]) for category in content["categories"]}
    files = {str(image["id"]): str(image["file_name"]) for image in content["images"]}
    found: dict[str, dict[str, None]] = {name: {} for name in files.values()}
    for number, one in enumerate(content["annotations"], start=1):
        place = f"{file}: annotations, entry {number}"
        found[held(files, one, "image_id", place)][held(names, one, "category_id", place)] = None
    return {image: list(objects) for image, objects in found.items()}


def listed_objects(file: str | Path) -> dict[str, list[str]]:
    """By image its objects from ``LISTS``, as a detector writes them; the same object twice counts once."""
    found: dict[str, list[str]] = {}
    for number, entry in enumerate(read_entries(file, LISTS), start=1):
        if not isinstance(entry.get("image"), str) or not isinstance(entry.get("objects"), list):
            raise ValueError(f"{file}: entry {number} has no image and objects; wanted {LISTS}")
        if wrong := [one for one in entry["objects"] if not isinstance(one, str)]:
            raise ValueError(f"{file}: entry {number} has {wrong[0]!r} among its objects; wanted {LISTS}")
        if entry["image"] in found:
            raise ValueError(f"{file}: image {entry['image']} comes twice; wanted each once")
        found[entry["image"]] = list(dict.fromkeys(entry["objects"]))
    return found


def build(
    objects: Objects, category: str, *, samples: int = 3, seed: int = 0, released_wording: bool = False
) -> list[dict[str, Any]]:
    """POPE's questions of one category, as its files hold them: question_id, image, text, label.

    Asked are, of each image with at least ``samples`` objects, the first ``samples`` of them, and behind each one that
    is not there: ``random`` any, ``popular`` the most frequent over all images, ``adversarial`` the one that most
    images have together with the object before it. None is asked twice of an image; where no candidate is left any
    other object is drawn. ``released_wording`` also writes "imange", as POPE's code does before vowels.

    A ValueError when no image has enough objects, or an image has so many that nothing else is left to ask.

    Source: Li et al. 2023, arXiv:2305.10355, section 4.1; code RUCAIBox/POPE@3df3ba1, utils.py.
    Differs: "an" instead of replacing every a of the question.
    """
    require_one_of("category", category, CATEGORIES)
    chosen = {image: found for image, found in objects.items() if len(found) >= samples}
    if not chosen or samples < 1:
        raise ValueError(f"samples: got {samples}, and {len(chosen)} of {len(objects)} images have as many objects")
    everything = list(dict.fromkeys(name for found in chosen.values() for name in found))
    candidates = _candidates(chosen, category)
    rng = random.Random(seed)
    questions: list[dict[str, Any]] = []
    for image, found in chosen.items():
        asked: list[str] = []
        for there in found[:samples]:
            absent = next((name for name in candidates(there) if name not in found and name not in asked), None)
            absent = absent or _draw(everything, {*found, *asked}, rng, image)
            asked.append(absent)
            for name, label in ((there, "yes"), (absent, "no")):
                text = question(name, released_wording=released_wording)
                questions.append({"question_id": len(questions) + 1, "image": image, "text": text, "label": label})
    return questions


def question(name: str, *, released_wording: bool = False) -> str:
    """What POPE asks after an object."""
    if name[:1] not in "aeiou":
        return f"Is there a {name} in the image?"
    return f"Is there an {name} in the {'imange' if released_wording else 'image'}?"


def _candidates(objects: Objects, category: str) -> Callable[[str], Sequence[str]]:
    """For an object that is there those that may be asked after, the first choice first; of ``random`` none."""
    if category == "random":
        return lambda there: ()
    if category == "popular":
        ranked = _ranked(Counter(name for found in objects.values() for name in found))
        return lambda there: ranked
    together: dict[str, Counter[str]] = {}
    for found in objects.values():
        for name in found:
            together.setdefault(name, Counter()).update(other for other in found if other != name)
    return lambda there: _ranked(together[there])


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: -counts[name])  # stable: ties stay in the order of their first sight


def _draw(everything: Sequence[str], taken: set[str], rng: random.Random, image: str) -> str:
    """One that is not taken, drawn until it fits: so a seed gives what the official code draws."""
    if taken.issuperset(everything):
        raise ValueError(
            f"{image}: all {len(everything)} objects are in it or asked after; ask fewer, or of more images"
        )
    while (name := rng.choice(everything)) in taken:
        pass
    return name
