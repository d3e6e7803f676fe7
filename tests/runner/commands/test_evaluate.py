"""``hialign evaluate`` and ``export``: a run's model scored, answered with, and handed to plain transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hialign.evaluation import captions as captions_module
from hialign.runner.commands import evaluate, train


@pytest.fixture(scope="module")
def evaluated(trained: Any) -> tuple[Any, Any]:
    """The workshop after an evaluation of its first run, and how that ended."""
    done = trained.hialign("evaluate", "run=runs/hierarchical/first")
    assert done.code == 0, done.err
    return trained, done


def test_an_evaluation_writes_answers_scores_and_a_table(evaluated: tuple[Any, Any]) -> None:
    workshop, done = evaluated
    run = workshop.run("first")
    scores = json.loads((run / "scores.json").read_text())
    assert list(scores) == ["retrieval", "captions"]
    assert (scores["retrieval"]["images"], scores["retrieval"]["captions"]) == (4, 12)
    for pair in ("clip", "projector"):
        for direction in ("image_to_text", "text_to_image"):
            assert 0 <= scores["retrieval"][f"{pair}/{direction}/recall@1"] <= 1
            assert scores["retrieval"][f"{pair}/{direction}/chance@1"] == pytest.approx(0.25)
    answers = [json.loads(line) for line in (run / "answers" / "captions.jsonl").read_text().splitlines()]
    assert len(answers) == 4
    assert all(set(row) == {"id", "answer", "references"} and len(row["references"]) == 3 for row in answers)
    for name in ("clip/text_to_image/recall@1", "perplexity", "runs/hierarchical/first/scores.json"):
        assert name in done.out


def test_the_heldout_images_are_those_that_no_stage_saw(evaluated: tuple[Any, Any]) -> None:
    from hialign.data import flickr8k

    workshop, _ = evaluated
    rows = (workshop.run("first") / "answers" / "captions.jsonl").read_text().splitlines()
    trained_on = {record.id for record in flickr8k(str(workshop.folder / "pictures"), part="train").records}
    assert len(trained_on) == 36
    assert not trained_on & {json.loads(row)["id"] for row in rows}


def test_a_second_evaluation_asks_the_model_nothing_and_scores_the_same(
    evaluated: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop, _ = evaluated
    run = workshop.run("first")
    before, answers = (run / "scores.json").read_text(), (run / "answers" / "captions.jsonl").read_text()

    def refuse(*arguments: object, **settings: object) -> list[str]:
        raise AssertionError("asked again")

    monkeypatch.setattr(captions_module, "generate", refuse)
    done = workshop.hialign("evaluate", "run=runs/hierarchical/first")
    assert done.code == 0, done.err
    assert (run / "scores.json").read_text() == before
    assert (run / "answers" / "captions.jsonl").read_text() == answers
    # another setting gives other answers
    done = workshop.hialign("evaluate", "run=runs/hierarchical/first", "benchmark.captions.max_new_tokens=3")
    assert done.code == 1
    assert "asked again" in done.err


def test_one_benchmark_leaves_the_other_s_scores(evaluated: tuple[Any, Any]) -> None:
    workshop, _ = evaluated
    file = workshop.run("first") / "scores.json"
    before = json.loads(file.read_text())
    done = workshop.hialign("evaluate", "run=runs/hierarchical/first", "benchmark=[retrieval]", "batch_size=1")
    assert done.code == 0, done.err
    assert "perplexity" not in done.out
    after = json.loads(file.read_text())
    assert after["captions"] == before["captions"]
    assert after["retrieval"].pop("model") == before["retrieval"].pop("model")
    assert after["retrieval"] == pytest.approx(before["retrieval"], rel=1e-4)


def test_an_alignment_gap_is_written_with_the_reference_that_it_is_measured_against(evaluated: tuple[Any, Any]) -> None:
    workshop, _ = evaluated
    ask = ("evaluate", "run=runs/hierarchical/first", "benchmark=[alignment]", "benchmark.alignment.batch_size=2")
    assert workshop.hialign(*ask).code == 0
    file = workshop.run("first") / "scores.json"
    alone = json.loads(file.read_text())["alignment"]
    assert "gap_lo" not in alone
    assert "no reference= was given" in alone["no_gap_lo"]
    assert (alone["batches"], alone["batch_size"]) == (2, 2)
    done = workshop.hialign(*ask, "benchmark.alignment.reference=[runs/hierarchical/first,0.5]")
    assert done.code == 0, done.err
    scores = json.loads(file.read_text())["alignment"]
    assert scores["loss"] == alone["loss"] == pytest.approx(scores["reference/1/loss"])
    assert (scores["reference/1/from"], scores["reference/2/from"]) == ("runs/hierarchical/first", "a number")
    assert scores["best_known"] == 0.5
    assert scores["best_known_from"].startswith("a number: as given")
    assert scores["best_known_from"] in done.out


REFUSED = {
    "no run": ((), "run: not given", "set run=runs/"),
    "no such run": (("run=runs/nothing",), "run=runs/nothing: no config.yaml", "wanted a run folder"),
    "no benchmark": (
        ("run=RUN", "~benchmark.retrieval", "~benchmark.captions"),
        "benchmark: none chosen",
        "hialign configs benchmark",
    ),
    "a misspelt setting": (
        ("run=RUN", "+benchmark.captions.sample=3"),
        "benchmark.captions.sample: ",
        "did you mean samples?",
    ),
    "an unknown precision": (("run=RUN", "precision=fp16"), "precision: got 'fp16'", "fp32, bf16"),
    "an unknown device": (("run=RUN", "device=tpu"), "device: got 'tpu'", "auto, cpu or cuda"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_senseless_evaluation_is_refused_in_one_line(trained: Any, case: str) -> None:
    arguments, key, fix = REFUSED[case]
    done = trained.hialign("evaluate", *(a.replace("RUN", "runs/hierarchical/first") for a in arguments))
    assert done.code == 1
    assert key in done.err
    assert fix in done.err
    assert "Traceback" not in done.err


def test_a_refusal_has_its_traceback_where_that_is_asked_for(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in trained.hialign("evaluate", "run=runs/nothing").err
    monkeypatch.setenv("HIALIGN_TRACEBACK", "1")
    error = trained.hialign("evaluate", "run=runs/nothing").err
    assert "Traceback" in error
    assert "hialign evaluate: run=runs/nothing: no config.yaml" in error


def world_of(composed: Any, *overrides: str) -> dict[str, Any]:
    """Of the config that a run of these overrides would save."""
    return evaluate._world(OmegaConf.create(train._plain(composed("experiment=llava", *overrides))))


def test_the_embedded_world_is_asked_as_the_run_s_data_have_it(composed: Any) -> None:
    assert world_of(composed, "data=tabletop") == {"noise": 0.5, "cooccurrence": 0.95}
    own = ("data.noise=0.1", "data.cooccurrence=null")
    assert world_of(composed, "data=tabletop", *own) == {"noise": 0.1, "cooccurrence": None}


def test_other_data_have_no_world(composed: Any) -> None:
    assert world_of(composed, "data=flickr8k", "data.root=/nowhere", "+data.noise=0.3") == {}


def test_scores_of_a_run_on_the_embedded_world_have_its_noise_and_what_is_null(workshop: Any) -> None:
    """A model trained at another noise and on kinds without partners, from the command line to scores.json."""
    small = ("model=tabletop", "data=tabletop", "data.size=40", "data.noise=0.125", "data.cooccurrence=null")
    length = [f"stages.{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("steps=1", "batch_size=2")]
    done = workshop.hialign("train", "experiment=llava", *small, *length, "name=world")
    assert done.code == 0, done.err
    asked = ("benchmark=[tabletop_captions]", "benchmark.tabletop_captions.size=2", "device=cpu")
    done = workshop.hialign("evaluate", "run=runs/llava/world", *asked)
    assert done.code == 0, done.err
    assert "tabletop_captions: noise 0.125 (the run's), cooccurrence None (the run's)" in done.out
    scores = json.loads((workshop.run("world", "llava") / "scores.json").read_text())["tabletop_captions"]
    assert (scores["noise"], scores["cooccurrence"]) == (0.125, None)
    made_by = workshop.run("world", "llava") / "answers" / "tabletop_captions.made_by.json"
    assert json.loads(made_by.read_text())["noise"] == 0.125


def test_a_run_without_model_folder_is_evaluated_from_its_last_checkpoint(evaluated: tuple[Any, Any]) -> None:
    import shutil

    workshop, _ = evaluated
    copy = workshop.run("unfinished")
    shutil.copytree(workshop.run("first"), copy)
    shutil.rmtree(copy / "model")
    (copy / "scores.json").unlink()
    done = workshop.hialign("evaluate", "run=runs/hierarchical/unfinished", "benchmark=[retrieval]")
    assert done.code == 0, done.err
    old = json.loads((workshop.run("first") / "scores.json").read_text())["retrieval"]
    new = json.loads((copy / "scores.json").read_text())["retrieval"]
    assert new.pop("model") == old.pop("model") == "finetune/step-000003"
    assert new == pytest.approx(old, rel=1e-4)


def test_an_export_loads_in_plain_transformers_and_captions(trained: Any) -> None:
    """In a process that does not know hialign."""
    done = trained.hialign("export", "run=runs/hierarchical/first", "out=exported/model")
    assert done.code == 0, done.err
    assert 'from_pretrained("exported/model")' in done.out
    code = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
processor = AutoProcessor.from_pretrained(sys.argv[1])
inputs = processor(images=Image.open(sys.argv[2]), text="<image>", return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(type(model).__name__, sum(map(len, info.values())), ids.shape[1] - inputs["input_ids"].shape[1])
assert not [name for name in sys.modules if name.startswith("hialign")]
"""
    picture = trained.folder / "pictures" / "images" / "00000.png"
    told = subprocess.run(
        [sys.executable, "-c", code, str(trained.folder / "exported" / "model"), str(picture)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert told.returncode == 0, told.stderr
    name, problems, new = told.stdout.split()
    assert (name, problems) == ("LlavaForConditionalGeneration", "0")
    assert 1 <= int(new) <= 4


def test_an_export_holds_the_run_s_weights(trained: Any) -> None:
    from safetensors.torch import load_file

    assert trained.hialign("export", "run=runs/hierarchical/first", "out=again").code == 0
    for file in ("model.safetensors", "alignment/model.safetensors"):
        ours, theirs = load_file(trained.run("first") / "model" / file), load_file(trained.folder / "again" / file)
        assert set(ours) == set(theirs)
        assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "export: run= is not given, as in: hialign export"),
        (("run=x",), "export: out= is not given, as in: hialign export"),
        (("run=x", "out=y", "fromat=adapter"), "there is no setting fromat; did you mean format=?"),
        (("run=x", "out=y", "z"), "got 'z', wanted key=value, as in: hialign export"),
        (("run=x", "out=y", "format=peft"), "format: got 'peft', wanted merged or adapter"),
        (("run=runs/hierarchical/first", "out=y", "format=adapter"), "trains by lora; wanted format=merged"),
        (("run=nothing", "out=y"), "run=nothing: no config.yaml"),
        (
            ("run=runs/hierarchical/first", "out=pictures"),
            "out=pictures: there is something already; name a new folder",
        ),
    ],
)
def test_a_senseless_export_is_refused_and_writes_nothing(
    trained: Any, arguments: tuple[str, ...], wanted: str
) -> None:
    done = trained.hialign("export", *arguments)
    assert done.code == 1
    assert wanted in done.err
    assert not (trained.folder / "y").exists()
    assert len(list((trained.folder / "pictures").iterdir())) == 2


def test_export_has_a_usage(trained: Any) -> None:
    done = trained.hialign("export", "--help")
    assert done.code == 0
    assert "hialign export run=RUN_FOLDER out=FOLDER" in done.out


def test_a_folder_that_is_no_run_is_named(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {}\nstages: {}\n")
    done = trained.hialign("export", f"run={tmp_path}", f"out={tmp_path / 'out'}")
    assert done.code == 1
    assert f"run={tmp_path}: it has neither a model/ nor a checkpoint yet" in done.err
