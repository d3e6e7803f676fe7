"""The embedded world's benchmarks ask what they say, count what was answered, and take up what was asked before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.benchmarks.intervals import by_scene, wilson
from hialign.benchmarks.scores import numbers as counted_numbers
from hialign.data import LanguageCollator
from hialign.evaluation import asking
from hialign.evaluation import tabletop as benchmarks
from hialign.evaluation.captions import Captions
from hialign.evaluation.figure import PANELS, draw, examples, figure
from hialign.evaluation.subject import Subject
from hialign.evaluation.tabletop import SEED, TabletopCaptions, TabletopPope, TabletopVqa, TabletopZeroShot, short
from hialign.models import Model
from hialign.tabletop import base
from hialign.tabletop.asked import pope_questions, topic_questions
from hialign.tabletop.chair import chair_counts
from hialign.tabletop.language import Style, describe
from hialign.tabletop.records import World
from hialign.tabletop.render import image
from hialign.tabletop.world import Scene, sample


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


def scenes(split: str, size: int) -> list[Scene]:
    return [sample(split, index, seed=SEED) for index in range(size)]


Seeing = Callable[[Callable[[Scene, str], str]], None]


@pytest.fixture
def seeing(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Seeing:
    """Makes the model answer by what lies on the picture that it is shown, which it knows by its pixels."""

    def make(answer: Callable[[Scene, str], str]) -> None:
        seen: dict[bytes, Scene] = {}
        for split in ("test", "counterfactual"):
            world = World(split, SEED, 0.95, 0.5)
            for index in range(12):
                pixels = subject.language.pixels(world.captioned_image(index))[0]
                seen[pixels.numpy().tobytes()] = world.scene(index)

        def generate(model: Any, pixels: Any, prompt: Any, *, max_new_tokens: int) -> list[str]:
            texts = model.processor.tokenizer.batch_decode(prompt.ids)
            return [answer(seen[picture.numpy().tobytes()], text) for picture, text in zip(pixels, texts, strict=True)]

        monkeypatch.setattr(asking, "generate", generate)

    return make


def said_of(scene: Scene, prompt: str) -> str:
    return describe(scene, Style())


def asked_of(scene: Scene, prompt: str) -> str:
    """The truth about what is asked, for every question that a scene could be asked in these tests."""
    index = scene.key[2]
    split = {2: "test", 4: "counterfactual"}[scene.key[1]]
    known = {
        one.text: one.answer
        for ask in (pope_questions, topic_questions)
        for one in ask(split, scenes(split, 12))
        if one.index == index
    }
    return next((answer for text, answer in known.items() if text in prompt), "never asked of this scene")


def test_each_caption_is_counted_against_the_scene_on_the_picture(subject: Subject, seeing: Seeing) -> None:
    seeing(said_of)
    scores = TabletopCaptions(size=12)(subject).numbers
    for split in ("test", "counterfactual"):
        assert (scores[f"{split}/chair_i"], scores[f"{split}/recall"], scores[f"{split}/place_recall"]) == (0, 1, 1)


def test_each_question_is_asked_of_the_picture_that_it_is_about(subject: Subject, seeing: Seeing) -> None:
    seeing(asked_of)
    pope, vqa = TabletopPope(size=12)(subject).numbers, TabletopVqa(size=12)(subject).numbers
    for split in ("test", "counterfactual"):
        assert [pope[f"{split}/{way}/accuracy"] for way in ("random", "popular", "adversarial")] == [1, 1, 1]
        assert vqa[f"{split}/all"] == 1


@pytest.mark.parametrize("benchmark", [TabletopCaptions, TabletopPope, TabletopVqa])
def test_pictures_of_the_wrong_scenes_would_be_found(
    subject: Subject, seeing: Seeing, monkeypatch: pytest.MonkeyPatch, benchmark: Any
) -> None:
    seeing(said_of if benchmark is TabletopCaptions else asked_of)
    right = benchmarks._pixels
    monkeypatch.setattr(benchmarks, "_pixels", lambda subject, world, index: right(subject, world, (index + 1) % 12))
    scores = benchmark(size=12)(subject).numbers
    name = {TabletopCaptions: "recall", TabletopPope: "random/accuracy", TabletopVqa: "all"}[benchmark]
    assert scores[f"test/{name}"] < 0.9


def test_pope_asks_every_question_once_in_the_words_of_training(subject: Subject, oracle: list[int]) -> None:
    scores = TabletopPope(size=5)(subject).numbers
    wanted = [one for split in ("test", "counterfactual") for one in pope_questions(split, scenes(split, 5))]
    written = rows(subject, "tabletop_pope")
    assert {row["id"]: row["question"] for row in written} == {one.id: short(one) for one in wanted}
    assert sum(oracle) == len(wanted)
    assert max(oracle) <= subject.batch_size
    assert (scores["test/random/accuracy"], scores["counterfactual/adversarial/yes_ratio"]) == (0.5, 0.0)


def test_vqa_counts_by_topic(subject: Subject, oracle: list[int]) -> None:
    scores = TabletopVqa(splits=["val"], size=30)(subject).numbers
    asked = [one for one in topic_questions("val", scenes("val", 30)) if "val/colour" in one.groups]
    assert scores["val/colour"] == pytest.approx(sum(one.answer == "red" for one in asked) / len(asked))
    assert 0 < scores["val/existence"] < 1
    assert scores["val/place"] == 0.0


@pytest.mark.parametrize("benchmark", [TabletopCaptions, TabletopPope, TabletopVqa])
def test_the_counts_by_scene_make_the_scores(
    subject: Subject, seeing: Seeing, monkeypatch: pytest.MonkeyPatch, benchmark: Any
) -> None:
    """Every other picture is of another scene, so that no share is 0 or 1 throughout."""
    seeing(said_of if benchmark is TabletopCaptions else asked_of)
    right = benchmarks._pixels
    monkeypatch.setattr(benchmarks, "_pixels", lambda subject, world, index: right(subject, world, index // 2 * 2))
    scores = benchmark(size=12)(subject)
    assert len(scores.units) == 24
    counted = counted_numbers(scores.units, scores.statistic)
    assert len([value for value in counted.values() if 0 < value < 1]) > 0
    for name, value in counted.items():
        assert value == pytest.approx(scores.numbers[name], abs=1e-12), name


def test_answers_are_asked_for_once(subject: Subject, oracle: list[int]) -> None:
    first = TabletopPope(size=3)(subject).numbers
    number = sum(oracle)
    assert TabletopPope(size=3)(subject).numbers == first
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
    scores = TabletopCaptions(splits=["val", "test"], size=4, samples=1)(subject).numbers
    assert (scores["val/chair_i"], scores["test/recall"], scores["test/place_recall"]) == (0.0, 1.0, 1.0)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["tabletop_captions", "val", "test"]


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
        (lambda: TabletopZeroShot(size=-1), "size: got -1, wanted 1 scene"),
        (lambda: TabletopZeroShot(noise=-0.5), r"noise=-0.5: wanted a number in \[0, 1\]"),
        (lambda: TabletopPope(noise="0.3"), "noise: got '0.3', wanted a number, or run"),
        (lambda: TabletopPope(cooccurrence=1.5), r"cooccurrence=1.5: wanted a probability in \[0, 1\], or null"),
        (lambda: TabletopVqa(max_new_tokens=0), "max_new_tokens: got 0, wanted 1 token"),
        (lambda: TabletopCaptions(max_new_tokens=-1), "max_new_tokens: got -1"),
        (lambda: TabletopCaptions(samples=-1), "samples: got -1, wanted 0 captions"),
        (lambda: Captions(samples=-1), "samples: got -1, wanted 0 captions"),
        (lambda: Captions(max_new_tokens=0), "max_new_tokens: got 0, wanted 1"),
    ],
)
def test_senseless_settings_are_refused_by_name(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_a_subject_takes_a_batch_of_one_at_least(subject: Subject) -> None:
    with pytest.raises(ValueError, match="batch_size: got 0, wanted at least 1"):
        replace(subject, batch_size=0)


def test_pictures_and_scenes_follow_the_run_s_data(
    subject: Subject, oracle: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = replace(subject, world={"noise": 0.25, "cooccurrence": 0.0})
    scores = TabletopPope(size=20)(trained).numbers
    assert (scores["noise"], scores["cooccurrence"]) == (0.25, 0.0)
    assert "tabletop_pope: noise 0.25 (the run's), cooccurrence 0.0 (the run's)" in capsys.readouterr().out
    alone = [sample("test", index, seed=SEED, cooccurrence=0.0) for index in range(20)]
    assert {row["id"]: row["question"] for row in rows(subject, "tabletop_pope") if row["id"].startswith("test")} == {
        one.id: short(one) for one in pope_questions("test", alone)
    }
    shown = TabletopPope(size=20).worlds({"noise": 0.25, "cooccurrence": 0.0})["test"]
    assert (shown.noise, shown.cooccurrence) == (0.25, 0.0)


def test_settings_of_their_own_come_before_the_run_s(
    subject: Subject, oracle: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = replace(subject, world={"noise": 0.25, "cooccurrence": 0.0})
    scores = TabletopVqa(size=2, noise=0.75, cooccurrence=None)(trained).numbers
    assert (scores["noise"], scores["cooccurrence"]) == (0.75, None)
    assert "noise 0.75 (as set), cooccurrence None (as set)" in capsys.readouterr().out


def test_a_model_trained_on_other_data_is_shown_the_world_s_own_and_that_is_said(
    subject: Subject, oracle: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    scores = TabletopVqa(size=2)(subject).numbers
    assert (scores["noise"], scores["cooccurrence"]) == (0.5, 0.95)
    assert "noise 0.5 (the world's own: the run's data have none)" in capsys.readouterr().out


def test_partners_never_meet_on_counterfactual_whatever_the_run_s_data_have() -> None:
    for cooccurrence in (0.95, 0.0, None):
        world = TabletopPope().worlds({"noise": 0.5, "cooccurrence": cooccurrence})["counterfactual"]
        assert [world.scene(index) for index in range(5)] == scenes("counterfactual", 5)


def test_zero_shot_shows_the_run_s_noise_and_reads_some_at_a_time(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = replace(subject, world={"noise": 0.25})
    noises, rows_read = set(), []
    drawn, read = benchmarks.Drawn, Subject.read

    def count(self: Subject, reader: Any, batch: Any) -> Any:
        rows_read.append(len(batch.records))
        return read(self, reader, batch)

    monkeypatch.setattr(benchmarks, "Drawn", lambda scene, noise: noises.add(noise) or drawn(scene, noise))
    monkeypatch.setattr(Subject, "read", count)
    together = TabletopZeroShot(size=20)(replace(trained, batch_size=1000))
    assert sorted(rows_read) == [20, 864]
    rows_read.clear()
    some = TabletopZeroShot(size=20)(replace(trained, batch_size=16))
    assert (max(rows_read), sum(rows_read)) == (16, 884)
    assert some == together
    assert noises == {0.25}
    assert some["noise"] == 0.25


def test_scores_have_the_ends_of_their_intervals(subject: Subject, oracle: list[int]) -> None:
    """Every caption is "red": nothing is mentioned, and nothing found."""
    scores = TabletopCaptions(size=6, splits=["test"])(subject).numbers
    answers = {row["id"]: row["answer"] for row in rows(subject, "tabletop_captions")}
    counts = [chair_counts(answers[f"test-{i:07d}"], scene) for i, scene in enumerate(scenes("test", 6))]
    for name in ("chair_s", "recall"):
        assert (scores[f"test/{name}/low"], scores[f"test/{name}/high"]) == by_scene(counts)[name] == wilson(0.0, 6)
    assert "test/mentions/low" not in scores
    shown = TabletopZeroShot(size=20)(subject)
    assert (shown["kind/low"], shown["kind/high"]) == wilson(shown["kind"], 20)
    assert shown["scenes"] == 20


KEYS = [key.format(split) for _, key, splits in PANELS for split in splits]


def shown_in(folder: Path, number: int) -> list[Any]:
    file = folder / "captions.jsonl"
    said = [{"id": f"counterfactual-{i:07d}", "answer": "A cup, a lamp and a book."} for i in range(number)]
    file.write_text("".join(json.dumps(row) + "\n" for row in said))
    return examples({"llava": file, "other": file}, number)


def test_the_picture_shows_captions_with_what_is_not_there_marked(tmp_path: Path) -> None:
    shown = shown_in(tmp_path, 2)
    for index, one in enumerate(shown):
        assert one.scene == sample("counterfactual", index, seed=SEED)
        assert one.truth == describe(one.scene, Style())
        for kind in ("cup", "lamp", "book"):
            assert (f"*{kind}*" in one.captions["llava"]) == (kind not in one.scene.kinds)
    draw({"llava": dict.fromkeys(KEYS, 0.4), "other": dict.fromkeys(KEYS, 0.6)}, shown, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_s_bars_are_the_scores_and_its_tables_the_scenes(tmp_path: Path) -> None:
    shown = shown_in(tmp_path, 3)
    scores = {
        model: {key: (number + 1) / 20 + offset for number, key in enumerate(KEYS)}
        for model, offset in (("llava", 0.0), ("other", 0.5))
    }
    scores["other"] |= {f"{KEYS[0]}/low": 0.5, f"{KEYS[0]}/high": 0.62}
    above, below = figure(scores, shown).subfigs
    assert [text.get_text() for text in above.legends[0].get_texts()] == ["llava", "other"]
    for axes, (title, key, splits) in zip(above.axes, PANELS, strict=True):
        assert axes.get_title() == title
        assert [label.get_text() for label in axes.get_xticklabels()] == list(splits)
        for bars, numbers, handle in zip(axes.containers, scores.values(), above.legends[0].get_patches(), strict=True):
            assert [bar.get_height() for bar in bars] == [numbers[key.format(split)] for split in splits]
            assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [0, 1]  # over their splits' names
            assert {bar.get_facecolor() for bar in bars} == {handle.get_facecolor()}
        labels = {text.get_text() for text in axes.texts}
        assert labels == {f"{numbers[key.format(split)]:.2f}" for numbers in scores.values() for split in splits}
    (whisker,) = [line for axes in above.axes for line in axes.lines]
    assert list(whisker.get_ydata()) == [0.5, 0.62]
    for axes, one in zip(below.axes, shown, strict=True):
        assert np.array_equal(np.asarray(axes.images[0].get_array()), np.asarray(image(one.scene)))


def test_a_score_that_is_null_has_a_dash_for_a_bar(tmp_path: Path) -> None:
    scores = {"llava": {**dict.fromkeys(KEYS, 0.4), KEYS[0]: None}, "other": dict.fromkeys(KEYS, 0.6)}
    draw(scores, shown_in(tmp_path, 2), tmp_path / "figure.png")
    axes = figure(scores, shown_in(tmp_path, 2)).subfigs[0].axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["-", "0.40", "0.60", "0.60"]
