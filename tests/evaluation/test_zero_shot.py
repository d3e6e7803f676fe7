"""Pictures in folders are told apart by the CLIP towers, as the embedded world's own benchmark tells them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hialign.benchmarks.zero_shot import ZeroShot
from hialign.evaluation import zero_shot as module
from hialign.evaluation.subject import Subject
from hialign.evaluation.zero_shot import classify_and_score
from hialign.models import Model
from hialign.tabletop import base
from hialign.tabletop.asked import lone_scenes
from hialign.tabletop.render import image

COLOURS = ("red", "blue", "green", "yellow")
PLACES = ("top left", "centre", "bottom right")


@pytest.fixture(scope="module")
def model() -> Model:
    return base(seed=0)


@pytest.fixture
def subject(make_subject: Callable[..., Subject], model: Model) -> Subject:
    return make_subject(model, lambda: pytest.fail("no held-out data"), batch_size=16, template="chat")


@pytest.fixture
def pictures(tmp_path: Path) -> ZeroShot:
    """Forty pictures of one thing each, in a folder for each kind."""
    for n, scene in enumerate(lone_scenes(40, seed=0)):
        file = tmp_path / "things" / scene.things[0].kind / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image(scene, noise=0.0).save(file)
    templates = [f"there is a {colour} {{}} at the {place}." for colour in COLOURS for place in PLACES]
    return ZeroShot(root=str(tmp_path / "things"), templates=templates)


def test_kinds_are_told_far_above_chance_and_answers_are_kept(subject: Subject, pictures: ZeroShot) -> None:
    scores = classify_and_score(subject, "zero_shot", pictures)
    assert len(pictures.classes) > 8
    assert scores.numbers["acc1"] > 0.7
    assert scores.numbers["acc5"] >= scores.numbers["acc1"]
    answers = pictures.read(str(subject.answers / "zero_shot.jsonl"))
    assert pictures.score(answers).numbers == scores.numbers


def test_pictures_are_not_read_again_where_answers_are_kept(
    subject: Subject, pictures: ZeroShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = classify_and_score(subject, "zero_shot", pictures)
    lines = (subject.answers / "zero_shot.jsonl").read_text().splitlines(keepends=True)
    (subject.answers / "zero_shot.jsonl").write_text("".join(lines[:-3]))  # as a kill may leave it
    seen: list[str] = []
    embedded = module.embedded_images
    monkeypatch.setattr(
        module,
        "embedded_images",
        lambda subject, records: seen.extend(record.id for record in records) or embedded(subject, records),
    )
    assert classify_and_score(subject, "zero_shot", pictures).numbers == first.numbers
    assert seen == [json.loads(line)["id"] for line in lines[-3:]]
    classify_and_score(subject, "zero_shot", replace(pictures, templates=["there is a red {} at the top."]))
    assert len(seen) == 43, "other prompts, other answers"
