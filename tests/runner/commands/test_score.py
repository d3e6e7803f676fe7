"""A published benchmark from the command line: ``data pope``, ``score``, ``compare`` and ``evaluate``."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from hialign.evaluation import asking

CATEGORIES = ("random", "popular", "adversarial")


@pytest.fixture(scope="module")
def pope(workshop: Any) -> Any:
    """The workshop with POPE's questions on its pictures in ``pope``, of made-up objects, and two systems' answers."""
    images = sorted(path.name for path in (workshop.folder / "pictures" / "images").iterdir())[:6]
    names = ["cup", "dog", "cat", "car", "apple"]
    lists = [{"image": image, "objects": [names[(i + k) % 5] for k in range(2)]} for i, image in enumerate(images)]
    (workshop.folder / "found.json").write_text(json.dumps(lists))
    done = workshop.hialign(
        "data", "pope", "objects=found.json", "out=pope", "files=coco_pope", "samples=2", "images=0"
    )
    assert done.code == 0, done.err
    for system, wrong in (("a", 9), ("b", 3)):
        rows = [
            {"id": f"{category}/{one['question_id']}", "answer": one["label"] if i % wrong else "Perhaps"}
            for category in CATEGORIES
            for i, one in enumerate(asked(workshop, category))
        ]
        (workshop.folder / f"{system}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = workshop.hialign("score", *BENCHMARK, f"answers={system}.jsonl", "resamples=50")
        assert done.code == 0, done.err
    return workshop


BENCHMARK = ("benchmark=pope", "benchmark.pope.root=pope")


def asked(workshop: Any, category: str) -> list[dict[str, Any]]:
    lines = (workshop.folder / "pope" / f"coco_pope_{category}.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_scores_a_row_and_details_are_written_beside_the_answers(pope: Any) -> None:
    folder = pope.folder / "a.jsonl.scores"
    numbers = json.loads((folder / "scores.json").read_text())["pope"]
    assert numbers["model"] == "a"
    assert numbers["random/accuracy/low"] < numbers["random/accuracy"] < numbers["random/accuracy/high"]
    assert 0 < numbers["random/unclear_strict"] < 1 / 4
    head, _, row = (folder / "pope.md").read_text().splitlines()
    assert head.count("|") == row.count("|")
    assert head.startswith("| pope | mean/f1 | ")
    assert row.startswith("| a | ")
    assert "_strict" not in head
    details = json.loads((folder / "details" / "pope.json").read_text())
    assert len(details["units"]) == 6
    texts = {(one["image"], one["text"]) for category in CATEGORIES for one in asked(pope, category)}
    assert len(details["correct"]) == len(texts) < 72
    assert len((folder / "details" / "pope.rows.jsonl").read_text().splitlines()) == 72


def test_the_same_answers_have_the_same_intervals(pope: Any) -> None:
    file = pope.folder / "a.jsonl.scores" / "scores.json"
    before = file.read_text()
    assert pope.hialign("score", *BENCHMARK, "answers=a.jsonl", "resamples=50").code == 0
    assert file.read_text() == before


def test_two_systems_are_compared_on_the_same_questions(pope: Any) -> None:
    done = pope.hialign("compare", "a.jsonl.scores", "b.jsonl.scores", "resamples=200")
    assert done.code == 0, done.err
    line = next(line for line in done.out.splitlines() if "random/accuracy_strict" in line)
    first, second, difference = map(float, line.split()[1:4])
    assert difference == pytest.approx(first - second, abs=1e-3) != 0
    assert "McNemar p" in done.out
    turned = pope.hialign("compare", "b.jsonl.scores", "a.jsonl.scores", "resamples=200").out
    assert f"{-difference:+.4f}" in next(line for line in turned.splitlines() if "random/accuracy_strict" in line)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "benchmark: got none, wanted one; `hialign configs benchmark` lists them"),
        (("benchmark=pope",), "benchmark.pope.root: not given; set benchmark.pope.root=..."),
        (BENCHMARK, "answers: not given; set answers=FILE"),
        ((*BENCHMARK, "answers=none.jsonl"), "answers=none.jsonl: there is no such file or folder"),
        (("benchmark=captions", "answers=a.jsonl"), "benchmark=captions: needs the model and not its answers alone"),
        (("benchmark=pope", "benchmark.pope.root=x", "answers=a.jsonl"), "x/coco_pope_random.json: no such file"),
        ((*BENCHMARK, "benchmark.pope.categories=[rare]", "answers=a.jsonl"), "coco_pope_rare.json: no such file"),
        ((*BENCHMARK, "answers=a.jsonl", "resamples=0"), "resamples: got 0, wanted 1 or more"),
    ],
)
def test_what_cannot_be_scored_says_so(pope: Any, arguments: tuple[str, ...], told: str) -> None:
    done = pope.hialign("score", *arguments)
    assert done.code == 1
    assert told in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("a.jsonl.scores",), "compare: got 1 folders, wanted two"),
        (("a.jsonl.scores", "pictures"), "pictures: no details/*.json; wanted a run that `hialign evaluate` scored"),
        (
            ("a.jsonl.scores", "b.jsonl.scores", "benchmark=chair"),
            "compare: not both have chair; A has pope, B has pope",
        ),
        (("a.jsonl.scores", "b.jsonl.scores", "resample=9"), "there is no setting resample; did you mean resamples=?"),
    ],
)
def test_what_cannot_be_compared_says_so(pope: Any, arguments: tuple[str, ...], told: str) -> None:
    done = pope.hialign("compare", *arguments)
    assert done.code == 1
    assert told in done.err


def test_scores_of_other_settings_are_compared_only_where_that_is_said(pope: Any) -> None:
    done = pope.hialign(
        "score", *BENCHMARK, "benchmark.pope.suffix=x", "answers=a.jsonl", "out=suffixed", "resamples=9"
    )
    assert done.code == 0, done.err
    told = "pope: A and B were scored with different settings: suffix: \nAnswer the question"
    done = pope.hialign("compare", "a.jsonl.scores", "suffixed")
    assert done.code == 1
    assert told in done.err
    done = pope.hialign("compare", "a.jsonl.scores", "suffixed", "different=true", "resamples=9")
    assert done.code == 0, done.err
    assert "NOTE: pope was scored with different settings (A / B): suffix" in done.out
    assert "mean/f1" in done.out


@pytest.mark.parametrize(
    ("content", "told"),
    [("{}", "no statistic, settings, units, correct in it"), ("[]", "holds no object"), ("{", "not json")],
)
def test_broken_details_are_named(pope: Any, content: str, told: str) -> None:
    (pope.folder / "broken" / "details").mkdir(parents=True, exist_ok=True)
    (pope.folder / "broken" / "details" / "pope.json").write_text(content)
    done = pope.hialign("compare", "a.jsonl.scores", "broken")
    assert done.code == 1
    assert f"broken/details/pope.json: {told}" in done.err
    assert "Traceback" not in done.err


def test_answers_to_other_questions_are_not_compared(pope: Any) -> None:
    details = json.loads((pope.folder / "b.jsonl.scores" / "details" / "pope.json").read_text())
    details["units"].pop(next(iter(details["units"])))
    (pope.folder / "other" / "details").mkdir(parents=True, exist_ok=True)
    (pope.folder / "other" / "details" / "pope.json").write_text(json.dumps(details))
    done = pope.hialign("compare", "a.jsonl.scores", "other")
    assert done.code == 1
    assert "pope: paired: 1 units are in one of the two alone" in done.err


def test_embeddings_are_scored_and_compared_as_answers_are(pope: Any) -> None:
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(12, 8))
    for name, noise in (("near", 0.1), ("far", 3.0)):
        images = texts[::2] + noise * rng.normal(size=(6, 8))
        np.savez(pope.folder / f"{name}.npz", images=images, texts=texts, image_of_text=np.arange(12) // 2)
        done = pope.hialign(
            "score", "benchmark=clip_retrieval", f"answers={name}.npz", "benchmark.clip_retrieval.ks=[1]"
        )
        assert done.code == 0, done.err
    done = pope.hialign("compare", "near.npz.scores", "far.npz.scores", "resamples=50")
    assert done.code == 0, done.err
    assert "image_retrieval_recall@1" in done.out


def test_scoring_and_comparing_import_no_torch() -> None:
    code = (
        "import sys, hialign.runner.commands.score, hialign.runner.commands.compare, hialign.benchmarks.pope\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture(scope="module")
def talking(pope: Any) -> Any:
    """The workshop with a run that learnt a dialogue's template."""
    stages = ("stages.pretrain.steps=1", "stages.finetune.steps=1", "stages.finetune.template=v1")
    done = pope.train("name=talking", *stages, experiment="llava")
    assert done.code == 0, done.err
    return pope


RUN = "run=runs/llava/talking"


def test_a_run_is_asked_and_scored_as_its_answers_are(talking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(model: Any, pixels: Any, prompt: Any, *, max_new_tokens: int) -> list[str]:
        assert (len(pixels), max_new_tokens) == (len(prompt), 7)
        return ["No."] * len(pixels)

    monkeypatch.setattr(asking, "generate", no)
    done = talking.hialign("evaluate", RUN, *BENCHMARK, "benchmark.pope.images=pictures/images", "max_new_tokens=7")
    assert done.code == 0, done.err
    assert "note: random: no true yes, so F1 is reported as 0" in done.out
    assert "note: no interval: every draw has the same" in done.out
    folder = talking.run("talking", "llava")
    scores = json.loads((folder / "scores.json").read_text())["pope"]
    assert (scores["random/accuracy"], scores["random/yes_ratio"]) == (0.5, 0.0)
    answers = folder / "answers" / "pope.jsonl"
    assert json.loads(answers.read_text().splitlines()[0])["question"].endswith("a single word or phrase.")
    done = talking.hialign("score", *BENCHMARK, f"answers={answers}", "out=rescored")
    again = json.loads((talking.folder / "rescored" / "scores.json").read_text())["pope"]
    assert {**again, "model": None} == {**scores, "model": None}
    assert talking.hialign("compare", str(folder), "a.jsonl.scores", "resamples=20").code == 0


def test_pictures_in_folders_are_classified_and_scored_as_the_answers_are(talking: Any) -> None:
    pictures = sorted((talking.folder / "pictures" / "images").iterdir())
    for n, picture in enumerate(pictures[:4]):
        folder = talking.folder / "kinds" / ("cup", "dog")[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / picture.name).write_bytes(picture.read_bytes())
    benchmark = ("benchmark=zero_shot", "benchmark.zero_shot.root=kinds")
    done = talking.hialign("evaluate", RUN, *benchmark)
    assert done.code == 0, done.err
    assert "note: 2 classes, fewer than 5" in done.out
    folder = talking.run("talking", "llava")
    scores = json.loads((folder / "scores.json").read_text())["zero_shot"]
    assert scores["acc1"] in {0, 0.25, 0.5, 0.75, 1}
    done = talking.hialign("score", *benchmark, f"answers={folder / 'answers' / 'zero_shot.jsonl'}", "out=classified")
    assert done.code == 0, done.err
    again = json.loads((talking.folder / "classified" / "scores.json").read_text())["zero_shot"]
    assert {**again, "model": None} == {**scores, "model": None}


def test_a_benchmark_that_scores_files_asks_no_model(talking: Any) -> None:
    done = talking.hialign("evaluate", RUN, "benchmark=[clip_retrieval]")
    assert done.code == 1
    assert "benchmark=clip_retrieval: scores a file and asks no model; use hialign score answers=FILE" in done.err


def test_missing_images_are_told_before_anything_is_asked(talking: Any) -> None:
    done = talking.hialign("evaluate", RUN, *BENCHMARK, "benchmark.pope.images=nowhere")
    assert done.code == 1
    assert "benchmark.pope.images: 6 of 6 images are missing, such as nowhere/" in done.err
    assert "wanted COCO's val2014 (cocodataset.org, val2014.zip), in benchmark.pope.images=FOLDER" in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("out=x",), "wanted one of instances= and objects="),
        (("out=x", "objects=found.json", "images=7", "samples=2"), "images: got 7, and 6 of 6 images have 2 objects"),
        (("out=x", "objects=found.json", "samples=two"), "samples: got 'two', wanted a whole number"),
        (("objects=found.json",), "out= is not given"),
    ],
)
def test_pope_s_builder_says_what_it_lacks(pope: Any, arguments: tuple[str, ...], told: str) -> None:
    done = pope.hialign("data", "pope", *arguments)
    assert done.code == 1
    assert told in done.err


def test_answers_that_a_judge_has_to_reply_to_are_kept_with_what_to_ask_it(
    talking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MMHal with one question: evaluate asks the model, a judge replies, score goes on."""
    monkeypatch.setattr(asking, "generate", lambda model, pixels, prompt, **_: ["A red cup."] * len(pixels))
    image = next(iter((talking.folder / "pictures" / "images").iterdir())).name
    question = {"question_type": "attribute", "image_id": "1", "image_src": f"https://x/{image}", "question": "What?"}
    template = [
        {**question, "question_topic": "food", "image_content": ["Cup"], "gt_answer": "A cup.", "model_answer": ""}
    ]
    (talking.folder / "mmhal").mkdir(exist_ok=True)
    (talking.folder / "mmhal" / "response_template.json").write_text(json.dumps(template))
    mmhal = ("benchmark=mmhal", "benchmark.mmhal.root=mmhal", "benchmark.mmhal.images=pictures/images")
    done = talking.hialign("evaluate", RUN, *mmhal)
    assert done.code == 0, done.err
    assert "a judge has to reply to runs/llava/talking/answers/mmhal.requests.jsonl" in done.out
    answers = talking.run("talking", "llava") / "answers"
    (request,) = map(json.loads, (answers / "mmhal.requests.jsonl").read_text().splitlines())
    assert "A red cup." in request["prompt"]
    done = talking.hialign("score", *mmhal, f"answers={answers}/mmhal.jsonl", "out=judge")
    assert done.code == 0, done.err
    assert "not scored: a judge has to reply to judge/mmhal.requests.jsonl" in done.out
    assert (talking.folder / "judge" / "mmhal.requests.jsonl").read_text() == (
        answers / "mmhal.requests.jsonl"
    ).read_text()
    (talking.folder / "replies.jsonl").write_text(json.dumps({"id": request["id"], "reply": "Rating: 2"}) + "\n")
    done = talking.hialign("score", *mmhal, "benchmark.mmhal.replies=replies.jsonl", f"answers={answers}/mmhal.jsonl")
    assert done.code == 0, done.err
    assert "average_score" in done.out
    scores = json.loads((answers / "mmhal.jsonl.scores" / "scores.json").read_text())["mmhal"]
    assert (scores["average_score"], scores["hallucination_rate"]) == (2, 1)
