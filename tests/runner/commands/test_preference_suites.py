"""Preference sets of several suites through the command line: on two levels, and what each lacks by name."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

MODEL = ("model=tiny", "model.width=32", "model.layers=2", "model.image_size=32")
STAGE = ("stages.prefer.steps=2", "stages.prefer.batch_size=4", "lora.rank=2", "trainer.diagnose_every=0")
LONG = " ".join(["a red cup on the table beside a green plate"] * 12)  # more tokens than a CLIP text tower reads


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).point(lambda grey: (grey + 20 * level) % 256).convert("RGB").save(
        out, "png"
    )
    return out.getvalue()


def answers(number: int) -> dict[str, str]:
    chosen = f"There is a red cup, number {number}. {LONG}" if number % 2 else f"There is a red cup, number {number}."
    return {"chosen": chosen, "rejected": f"There is a blue dog, number {number}."}


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number))
    return [f"{number}.png" for number in range(count)]


def write_rlhf_v(root: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    said = [json.dumps({"question": "What is on the table?", **answers(number)}) for number in range(8)]
    images = [{"bytes": png(number), "path": None} for number in range(8)]
    root.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "text": said}), root / "train.parquet")


def write_preferences(root: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    sides = [answers(number) for number in range(8)]
    columns = {
        "prompt": ["What is on the table?"] * 8,
        **{side: [pair[side] for pair in sides] for side in ("chosen", "rejected")},
        "images": [[{"bytes": png(number), "path": None}] for number in range(8)],
    }
    root.mkdir()
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "train.parquet")


def write_json_preferences(root: Path) -> None:
    names = write_images(root / "images", 8)
    entries = [
        {"prompt": "What is it?", **answers(number), "images": [name, name][: 1 + (number == 7)]}
        for number, name in enumerate(names)
    ]
    (root / "preferences.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))


def write_halva(root: Path) -> None:
    names = write_images(root, 8)
    entries = [
        {
            "id": number,
            "image": name,
            "tag": "closed",
            "question": "<image>\nDescribe the image.",
            **masked("correct", answers(number)["chosen"], "cup"),
            **masked("hallucinated", answers(number)["rejected"], "dog"),
        }
        for number, name in enumerate(names)
    ]
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A red cup."}]
    clean = [{"id": name, "image": name, "conversations": said} for name in names]
    (root / "data.json").write_text(json.dumps(entries))
    (root / "ref_data.json").write_text(json.dumps(clean))


def masked(kind: str, text: str, word: str) -> dict[str, str]:
    return {f"{kind}_answer": text, f"{kind}_answer_masked": text.replace(word, f"<MASK> {word} </MASK>", 1)}


WRITE = {
    "rlhf_v": write_rlhf_v,
    "preferences": write_preferences,
    "json_preferences": write_json_preferences,
    "halva": write_halva,
}


@pytest.fixture(scope="module")
def suites(workshop: Any) -> Any:
    """The workshop with a folder of each suite, called after it."""
    for name, write in WRITE.items():
        write(workshop.folder / name)
    return workshop


@pytest.fixture(autouse=True)
def _cache(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(workshop.folder / "cache"))


def train(workshop: Any, experiment: str, suite: str, *arguments: str) -> Any:
    root = f"data.root={suite}" if suite != "rlhf_v" else "data.root=rlhf_v/train.parquet"
    name = f"name={experiment}_{suite}"
    return workshop.hialign(
        "train", f"experiment={experiment}", f"data={suite}", root, *MODEL, *STAGE, name, *arguments
    )


@pytest.mark.parametrize(
    ("experiment", "suite"), [("hierarchical_dpo", "rlhf_v"), ("hierarchical_chip", "preferences")]
)
def test_two_levels_train_on_a_table_of_preferences_alone(suites: Any, experiment: str, suite: str) -> None:
    done = train(suites, experiment, suite)
    assert done.code == 0, done.err
    rows = [
        json.loads(line)
        for line in (suites.run(f"{experiment}_{suite}", experiment) / "metrics.jsonl").read_text().splitlines()
    ]
    assert all({"inner_clip_loss", "inner_projector_loss", "outer_loss"} <= row.keys() for row in rows)


def test_two_levels_train_on_halvas_files(suites: Any) -> None:
    done = train(suites, "hierarchical_halva", "halva")
    assert done.code == 0, done.err


def test_a_preference_of_two_images_is_read_by_one_level_and_listed_by_the_other(suites: Any) -> None:
    done = train(suites, "hierarchical_dpo", "json_preferences")
    assert done.code == 0, done.err
    run = suites.run("hierarchical_dpo_json_preferences", "hierarchical_dpo")
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [entry["problem"] for entry in skipped] == ["a preference of 2 images is no captioned one"]


def test_the_pairs_may_be_another_suites(suites: Any) -> None:
    other = "inner.data.pairs={_target_: hialign.data.flickr8k, root: pictures}"
    done = train(suites, "hierarchical_dpo", "rlhf_v", other, "name=other_pairs")
    assert done.code == 0, done.err
    config = (suites.run("other_pairs", "hierarchical_dpo") / "config.yaml").read_text()
    assert "hialign.data.flickr8k" in config


def write_text(root: Path, *, more: tuple[dict[str, Any], ...] = ()) -> None:
    """Preferences without images, in the json suite's layout."""
    root.mkdir()
    entries = [{"prompt": f"What is {number} and one?", **answers(number)} for number in range(8)]
    (root / "preferences.jsonl").write_text("\n".join(json.dumps(entry) for entry in (*entries, *more)))


TEXT = ("data=json_preferences", "data.root=text", "data.preference.images=null", *MODEL, *STAGE)


def test_a_set_without_images_trains_dpo_and_is_refused_by_name_where_images_are_compared(suites: Any) -> None:
    write_text(suites.folder / "text")
    done = suites.hialign("train", "experiment=dpo", *TEXT, "name=text")
    assert done.code == 0, done.err
    row = json.loads((suites.run("text", "dpo") / "metrics.jsonl").read_text().splitlines()[0])
    assert row["outer_loss"] == pytest.approx(0.693147, abs=1e-5)
    for experiment, wanted in (
        ("chip", "it has no image, and corrupt='noise' wants one"),
        ("mdpo", "it has no image, and corrupt='zoom' wants one"),
        ("hierarchical_dpo", "a preference of 0 images is no captioned one"),
    ):
        done = suites.hialign("train", f"experiment={experiment}", *TEXT, "name=text")
        assert (done.code, wanted in done.err) == (1, True), done.err


BAD = {
    "identical": ({"prompt": "What?", "chosen": "A cup.", "rejected": "A  cup."}, "chosen and rejected are the same"),
    "empty": ({"prompt": "What?", "chosen": "A cup.", "rejected": " "}, "rejected is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_pair_that_is_none_is_named_or_with_skip_listed(suites: Any, case: str) -> None:
    entry, problem = BAD[case]
    write_text(suites.folder / case, more=(entry,))
    common = ("experiment=dpo", *TEXT, f"data.root={case}", "stages.prefer.steps=1")
    done = suites.hialign("train", *common, f"name={case}")
    assert done.code == 1
    assert f"{case}/preferences.jsonl: line 9: {problem}" in done.err
    done = suites.hialign("train", *common, f"name={case}_skipped", "data.on_error=skip")
    assert done.code == 0, done.err
    skipped = (suites.run(f"{case}_skipped", "dpo") / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["problem"].startswith(problem) for line in skipped] == [True]


def test_an_image_that_is_cut_is_named_with_the_setting_and_never_read_in_part(suites: Any) -> None:
    done = train(suites, "dpo", "rlhf_v", "stages.prefer.max_length=12", "name=cut-images")
    assert done.code == 1
    assert "some of an image lie behind max_length=12; raise max_length" in done.err
