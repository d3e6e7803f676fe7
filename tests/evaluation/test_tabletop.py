"""The embedded world's benchmarks ask what they say, count what was answered, and take up what was asked before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hialign.data import LanguageCollator
from hialign.evaluation import asking
from hialign.evaluation.figure import draw, examples
from hialign.evaluation.subject import Subject
from hialign.evaluation.tabletop import SEED, TabletopCaptions, TabletopPope, TabletopVqa, TabletopZeroShot, short
from hialign.models import Model
from hialign.tabletop import base
from hialign.tabletop.asked import pope_questions, topic_questions
from hialign.tabletop.language import Style, describe
from hialign.tabletop.world import sample


@pytest.fixture(scope="module")
def model() -> Model:
    return base(seed=0)


@pytest.fixture
def subject(make_subject: Callable[..., Subject], model: Model) -> Subject:
    return make_subject(
        model,
        lambda: pytest.fail("the world's benchmarks read no held-out data"),
        batch_size=16,
        template="chat",
    )


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Answers by the truth, by the order in which the questions come: what the model is shown is checked elsewhere."""
    asked: list[int] = []

    def generate(model: Any, pixels: Any, prompt: Any, *, max_new_tokens: int) -> list[str]:
        asked.append(len(pixels))
        texts = model.processor.tokenizer.batch_decode(prompt.ids)
        return ["no" if "is there" in text else "red" for text in texts]

    monkeypatch.setattr(asking, "generate", generate)
    return asked


def rows(subject: Subject, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (subject.answers / f"{name}.jsonl").read_text().splitlines()]


def test_pope_asks_every_question_once_in_the_words_of_training(subject: Subject, oracle: list[int]) -> None:
    scores = TabletopPope(size=5)(subject)
    wanted = [one for split in ("test", "counterfactual") for one in pope_questions(split, 5, seed=SEED)]
    written = rows(subject, "tabletop_pope")
    assert {row["id"]: row["question"] for row in written} == {one.id: short(one) for one in wanted}
    assert sum(oracle) == len(wanted)
    assert max(oracle) <= subject.batch_size
    assert (scores["test/random/accuracy"], scores["counterfactual/adversarial/yes_ratio"]) == (0.5, 0.0)


def test_vqa_counts_by_topic(subject: Subject, oracle: list[int]) -> None:
    scores = TabletopVqa(splits=["val"], size=30)(subject)
    asked = [one for one in topic_questions("val", 30, seed=SEED) if "val/colour" in one.groups]
    assert scores["val/colour"] == pytest.approx(sum(one.answer == "red" for one in asked) / len(asked))
    assert 0 < scores["val/existence"] < 1
    assert scores["val/place"] == 0.0


def test_answers_are_asked_for_once(subject: Subject, oracle: list[int]) -> None:
    first = TabletopPope(size=3)(subject)
    number = sum(oracle)
    assert TabletopPope(size=3)(subject) == first
    assert sum(oracle) == number
    TabletopPope(size=3, noise=0.1)(subject)  # other pictures
    assert sum(oracle) == 2 * number


def test_another_question_is_asked_anew(subject: Subject, oracle: list[int]) -> None:
    for number, question in enumerate(("describe the image.", None, "what do you see?"), start=1):
        TabletopCaptions(size=2, question=question)(subject)
        assert sum(oracle) == 4 * number
    assert {row["question"] for row in rows(subject, "tabletop_captions")[-4:]} == {"what do you see?"}


def test_captions_of_the_truth_make_nothing_up(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = iter([describe(sample(split, i, seed=SEED), Style()) for split in ("val", "test") for i in range(4)])
    monkeypatch.setattr(asking, "generate", lambda model, pixels, prompt, **_: [next(truth) for _ in pixels])
    scores = TabletopCaptions(splits=["val", "test"], size=4, samples=1)(subject)
    assert (scores["val/chair_i"], scores["test/recall"], scores["test/place_recall"]) == (0.0, 1.0, 1.0)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["val", "test"]


def test_the_real_model_answers_alone_as_in_a_batch(subject: Subject) -> None:
    TabletopVqa(splits=["test"], size=3)(subject)
    together = {row["id"]: row["answer"] for row in rows(subject, "tabletop_vqa")}
    TabletopVqa(splits=["test"], size=3)(replace(subject, batch_size=1, name="again"))
    assert {row["id"]: row["answer"] for row in rows(subject, "tabletop_vqa")} == together


def test_zero_shot_sees_kinds_and_colours_far_above_chance(subject: Subject) -> None:
    scores = TabletopZeroShot(size=60)(subject)
    assert scores["kind_chance"] == pytest.approx(1 / 12)
    assert scores["kind"] > 0.8
    assert scores["colour"] > 0.8


def test_a_template_without_room_for_a_question_refuses_one_and_describes_without(
    subject: Subject, model: Model, oracle: list[int], asked_by: Callable[..., LanguageCollator]
) -> None:
    captioner = replace(subject, language=asked_by(model))
    with pytest.raises(ValueError, match=r"no room|shows the image alone.*template=v1 or chat"):
        TabletopPope(size=2)(captioner)
    TabletopCaptions(size=2)(captioner)
    assert {row["question"] for row in rows(subject, "tabletop_captions")} == {None}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TabletopPope(splits="test"), "splits: got 'test', wanted a list"),
        (lambda: TabletopPope(splits=["tset"]), "split='tset': wanted one of train, val, test"),
        (lambda: TabletopVqa(size=0), "size: got 0"),
        (lambda: TabletopCaptions(noise=2.0), r"noise=2.0: wanted a number in \[0, 1\]"),
        (lambda: TabletopZeroShot(size=-1), "size: got -1"),
    ],
)
def test_senseless_settings_are_refused_by_name(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_the_picture_shows_scores_and_captions(tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    said = [{"id": f"counterfactual-{i:07d}", "answer": "A cup, a lamp and a book."} for i in range(2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in said))
    shown = examples({"llava": file, "other": file}, 2)
    for one in shown:
        assert one.truth == describe(one.scene, Style())
        for kind in ("cup", "lamp", "book"):
            assert (f"*{kind}*" in one.captions["llava"]) == (kind not in one.scene.kinds)
    keys = [
        f"tabletop_captions/{split}/{n}"
        for split in ("test", "counterfactual")
        for n in ("recall", "chair_i", "chair_s")
    ]
    draw({"llava": dict.fromkeys(keys, 0.4), "other": dict.fromkeys(keys, 0.6)}, shown, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
