"""``hialign cache``, and training that reads what it wrote: the same numbers, or a refusal that says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hialign.models import Root
from hialign.runner.commands import cache as command
from hialign.training.cache import MANIFEST, Reader, read_manifest

SMALL = ("model=tiny", "model.width=32", "model.layers=2", "model.image_size=32", "trainer.diagnose_every=0")
# 12 records in 4 steps of 4: the second epoch begins in the last one
LENGTH = ("stages.prefer.steps=4", "stages.prefer.batch_size=4")
PREFER = ("data=tabletop", "data.size=12", *SMALL, "model.seed=0", *LENGTH)
FROZEN = ("train.vision=frozen", "train.llm=frozen", "steps=3", "batch_size=16")
LLAVA = (
    *("experiment=llava", "data=flickr8k", "data.root=pictures", *SMALL),
    *(f"stages.{stage}.{key}" for stage in ("pretrain", "finetune") for key in FROZEN),
)


def rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def seconds(run: Path) -> list[float]:
    return [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def hialign(workshop, *arguments: str) -> Any:
    done = workshop.hialign(*arguments)
    assert done.code == 0, done.err
    return done


def refused(workshop, *arguments: str) -> str:
    done = workshop.hialign(*arguments)
    assert done.code == 1
    return str(done.err)


def same(one: Path, other: Path) -> None:
    """Both runs logged the same numbers and ended in the same weights, bit for bit."""
    assert rows(one) == rows(other)
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.fixture(scope="module")
def workshop(workshop, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of its own: other tests' runs are called as these are."""
    folder = tmp_path_factory.mktemp("cached")
    shutil.copytree(workshop.folder / "pictures", folder / "pictures")
    return type(workshop)(folder)


@pytest.fixture(scope="module")
def made(workshop) -> str:
    """The cache of a CHiP run, of both kinds."""
    hialign(workshop, "cache", "experiment=chip", *PREFER, "cache=caches/chip", "what=[reference,features]")
    return "caches/chip"


@pytest.fixture(scope="module")
def answers(workshop) -> str:
    """The cache of a DPO run: log-probabilities alone."""
    hialign(workshop, "cache", "experiment=dpo", *PREFER, "cache=caches/dpo", "what=[reference]")
    return "caches/dpo"


def no_reference(monkeypatch) -> None:
    def reference(_root):
        raise AssertionError("the reference was run")

    monkeypatch.setattr(Root, "reference", reference)


def no_tower(monkeypatch) -> None:
    def image_features(_root, _pixels):
        raise AssertionError("the tower was run")

    monkeypatch.setattr(Root, "image_features", image_features)


def test_dpo_on_cached_log_probabilities_is_the_same_bit_for_bit(workshop, monkeypatch, answers):
    common = ("experiment=dpo", *PREFER)
    hialign(workshop, "train", *common, "name=plain")
    no_reference(monkeypatch)
    hialign(workshop, "train", *common, "name=cached", f"cache={answers}")
    same(workshop.run("plain", "dpo"), workshop.run("cached", "dpo"))


def test_halva_on_cached_states_of_its_reference_stream_is_the_same_bit_for_bit(workshop, monkeypatch):
    common = ("experiment=halva", *PREFER)
    hialign(workshop, "train", *common, "name=plain")
    hialign(workshop, "cache", *common, "cache=caches/halva", "what=[reference]")
    held = [path.name for path in (workshop.folder / "caches" / "halva" / "reference").iterdir()]
    assert held == ["prefer-reference"]
    no_reference(monkeypatch)
    hialign(workshop, "train", *common, "name=cached", "cache=caches/halva")
    same(workshop.run("plain", "halva"), workshop.run("cached", "halva"))


def test_chip_with_its_corrupted_images_and_divergences_is_the_same_bit_for_bit(workshop, monkeypatch, made, capsys):
    common = ("experiment=chip", *PREFER)
    hialign(workshop, "train", *common, "name=plain")
    no_reference(monkeypatch)
    no_tower(monkeypatch)
    hialign(workshop, "train", *common, "name=cached", f"cache={made}")
    same(workshop.run("plain", "chip"), workshop.run("cached", "chip"))
    assert rows(workshop.run("plain", "chip"))[-1]["outer_chosen_kl"] > 0
    one, other = (min(seconds(workshop.run(name, "chip"))) for name in ("plain", "cached"))
    with capsys.disabled():
        print(f"\nchip, a step of four rows: {one:.3f} s, with both caches {other:.3f} s: {one / other:.2f} times")


def test_in_bf16_states_and_features_are_half_as_large_and_training_is_the_same(workshop):
    common = ("experiment=chip", *PREFER, "trainer.precision=bf16")
    hialign(workshop, "cache", *common, "cache=caches/half", "what=[reference,features]")
    for kind, name in (("reference", "states"), ("features", "features")):
        file = next((workshop.folder / "caches" / "half" / kind / "prefer-preference").glob("*.safetensors"))
        assert load_file(file)[name].dtype == torch.bfloat16
    hialign(workshop, "train", *common, "name=half")
    hialign(workshop, "train", *common, "name=half_cached", "cache=caches/half")
    same(workshop.run("half", "chip"), workshop.run("half_cached", "chip"))


def test_adapters_start_from_the_same_reference_as_a_model_that_trains_in_full(workshop, answers):
    """And worker processes read the cache as the main process does."""
    lora = ("experiment=dpo", *PREFER, "stages.prefer.train.llm=lora", "stages.prefer.train.projector=frozen")
    hialign(workshop, "train", *lora, "name=lora")
    hialign(workshop, "train", *lora, "name=lora_cached", f"cache={answers}", "trainer.workers=1")
    same(workshop.run("lora", "dpo"), workshop.run("lora_cached", "dpo"))


def test_a_projector_learns_the_same_from_cached_features(workshop, monkeypatch):
    hialign(workshop, "train", *LLAVA, "name=plain")
    hialign(workshop, "cache", *LLAVA, "cache=caches/llava", "what=[features]")
    no_tower(monkeypatch)
    monkeypatch.setattr(Root, "_image_states", None)
    hialign(workshop, "train", *LLAVA, "name=cached", "cache=caches/llava")
    same(workshop.run("plain", "llava"), workshop.run("cached", "llava"))


def test_another_seed_finds_every_row_that_no_draw_decides(workshop, answers):
    more = ("seed=5", "stages.prefer.steps=7", f"cache={answers}")
    hialign(workshop, "train", "experiment=dpo", *PREFER, *more, "name=other_seed")


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        (
            [*(f"stages.prefer.{key}" for key in ("max_length=500", "image_aspect=square", "noise_step=400"))],
            ["max_length: 2048 -> 500", "image_aspect: 'pad' -> 'square'", "noise_step: 500 -> 400"],
        ),
        (
            ["data.paraphrase=0.25", "data.size=11", "model.seed=1"],
            [
                *("data.source.paraphrase: 0.5 -> 0.25", "data.source.size: 12 -> 11", "data.sizes: [12] -> [11]"),
                "weights: ",
            ],
        ),
        (["trainer.precision=bf16"], ["precision: 'fp32' -> 'bf16'"]),
        (["seed=1"], ["a draw decides its rows, and seed: 0 -> 1"]),
        (["stages.prefer.steps=5"], ["rows: it has 16, and this run reads 20"]),
    ],
)
def test_a_stale_cache_is_refused_with_what_differs(workshop, made, changes, reasons):
    said = refused(workshop, "train", "experiment=chip", *PREFER, "name=stale", f"cache={made}", *changes)
    shutil.rmtree(workshop.run("stale", "chip"))
    assert f"cache={made}: reference/prefer-preference is stale" in said
    assert [reason for reason in reasons if reason not in said] == []
    assert "run hialign cache with this run's settings and another folder, or set cache=null" in said


def test_a_cache_of_another_template_is_refused(workshop, made):
    shutil.copytree(workshop.folder / made, workshop.folder / "caches" / "chat")
    file = workshop.folder / "caches" / "chat" / "reference" / "prefer-preference" / MANIFEST
    file.write_text(file.read_text().replace('"template": "v1"', '"template": "chat"'))
    said = refused(workshop, "train", "experiment=chip", *PREFER, "name=stale", "cache=caches/chat")
    shutil.rmtree(workshop.run("stale", "chip"))
    assert "is stale (in the cache -> in this run): template: 'chat' -> 'v1'; run hialign cache" in said


def test_a_cache_without_states_does_not_serve_a_divergence(workshop, answers):
    said = refused(workshop, "train", "experiment=tdpo", *PREFER, "name=bare", f"cache={answers}")
    assert "is stale" in said
    assert "tensors: it has no chosen_states; tensors: it has no rejected_states" in said


def test_a_cache_for_other_streams_says_what_it_has(workshop, made):
    said = refused(workshop, "train", *LLAVA, "name=other", f"cache={made}")
    assert f"cache={made}: it has features/prefer-preference, reference/prefer-preference, and this run can use" in said
    assert "features/pretrain-caption" in said
    assert "no such folder" in refused(workshop, "train", *LLAVA, "name=other", "cache=caches/none", "resume=auto")


def test_an_image_that_changed_under_its_name_is_refused_by_id(workshop):
    shutil.copytree(workshop.folder / "pictures", workshop.folder / "copied")
    common = (*LLAVA, "data.root=copied", "stages.pretrain.steps=9")
    hialign(workshop, "cache", *common, "cache=caches/copied", "what=[features]")
    images = sorted((workshop.folder / "copied" / "images").iterdir())
    for image in images:
        Image.open(image).transpose(Image.Transpose.ROTATE_90).save(image)
    said = refused(workshop, "train", *common, "name=copied", "cache=caches/copied")
    assert "an image of it is not in the cache as this run reads it" in said
    assert any(f" {image.name}: " in said for image in images)


def test_a_killed_writing_goes_on_and_makes_no_finished_shard_again(workshop, monkeypatch, made):
    calls: list[tuple[str, ...]] = []
    whole = command._read_reference

    def counted(objective, parts, batch):
        calls.append(batch.records)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(objective, parts, batch)

    monkeypatch.setattr(command, "_read_reference", counted)
    monkeypatch.setattr(command, "SHARD_BYTES", 1)
    common = ("experiment=chip", *PREFER, "cache=caches/killed", "what=[reference]")
    assert workshop.hialign("cache", *common).code == 130
    folder = workshop.folder / "caches" / "killed" / "reference" / "prefer-preference"
    manifest = read_manifest(folder)
    assert manifest is not None
    assert [(begin, end) for begin, end, _ in manifest.missing] == [(2, 4)]
    said = refused(workshop, "train", *common, "name=early")
    assert "is not finished, 2 of 4 steps; run the same hialign cache again" in said
    (folder / "partial-000002-000003.safetensors").write_bytes(b"half of one")
    before = calls[:2]
    del calls[:]
    calls.extend([("begun",)] * 3)
    hialign(workshop, "cache", *common)
    assert len(calls) == 3 + 2
    assert not set(calls[3:]) & set(before)
    assert len(list(folder.glob("*.safetensors"))) == 4
    unkilled = workshop.folder / made / "reference" / "prefer-preference"
    one, other = (Reader(where, read_manifest(where).shards) for where in (folder, unkilled))
    assert one.places.keys() == other.places.keys()
    for key in one.places:
        found, wanted = one.find(key), other.find(key)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_damaged_shard_is_named_and_made_again(workshop, monkeypatch):
    monkeypatch.setattr(command, "SHARD_BYTES", 1)
    common = ("experiment=dpo", *PREFER, "cache=caches/damaged")
    hialign(workshop, "cache", *common, "what=[reference]")
    folder = workshop.folder / "caches" / "damaged" / "reference" / "prefer-preference"
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 4
    before = shards[1].read_bytes()
    content = bytearray(before)
    content[-2] ^= 1
    shards[1].write_bytes(content)
    said = refused(workshop, "train", *common, "name=damaged")
    assert f"{shards[1].name} is damaged: an entry does not have its checksum; delete it and run the same" in said
    assert "resume=auto" in said
    done = hialign(workshop, "cache", *common, "what=[reference]")
    assert "is damaged: an entry does not have its checksum; it is made anew now" in done.err
    assert shards[1].read_bytes() == before


def test_another_walk_into_the_same_folder_is_refused(workshop, made):
    said = refused(
        *(workshop, "cache", "experiment=chip", *PREFER, "stages.prefer.batch_size=6", f"cache={made}"),
        "what=[reference]",
    )
    assert "holds another cache (there -> here): walk.batch_size: 4 -> 6; name another folder, or remove it" in said


def test_by_default_what_saves_nothing_is_left_out_and_why_is_said(workshop):
    done = hialign(workshop, "cache", "experiment=chip", *PREFER, "stages.prefer.steps=3", "cache=caches/once")
    assert "reference/prefer-preference: saves nothing: with epochs=1 no record is read twice" in done.out
    assert "of which a draw makes 50% other ones in each epoch" in done.out
    assert "left out, what=[reference] writes it all the same" in done.out
    assert not list((workshop.folder / "caches" / "once").rglob("*.safetensors"))


def test_of_a_mixture_not_every_record_is_there_and_another_draw_is_refused(workshop):
    mix = {name: f"{{_target_: hialign.tabletop.preferences, split: train, size: 20, seed: {name}}}" for name in (0, 1)}
    data = f"{{_target_: hialign.data.mix, datasets: [{mix[0]}, {mix[1]}], weights: [0.95, 0.05]}}"
    common = ("experiment=dpo", "data=tabletop", *SMALL, "model.seed=0")
    common = (*common, "~outer.data.preference", f"+outer.data.preference={data}")
    steps = ("stages.prefer.steps=12", "stages.prefer.batch_size=4")
    hialign(workshop, "cache", *common, *steps, "cache=caches/mixed", "what=[reference]")
    hialign(workshop, "train", *common, *steps, "cache=caches/mixed", "name=mixed")
    said = refused(workshop, "train", *common, *steps, "cache=caches/mixed", "name=other", "seed=1")
    assert "a draw decides its rows, and seed: 0 -> 1" in said
    shutil.rmtree(workshop.run("other", "dpo"))


def test_a_set_without_images_has_no_features_and_trains_from_a_cache_all_the_same(workshop):
    lines = [{"prompt": f"Say {n}.", "chosen": "Yes, here.", "rejected": "No."} for n in range(8)]
    (workshop.folder / "texts" / "images").mkdir(parents=True)
    (workshop.folder / "texts" / "preferences.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ("data=json_preferences", "data.root=texts", "data.holdout=0", *SMALL, *LENGTH, "model.seed=0")
    hialign(workshop, "train", "experiment=dpo", *data, "name=texts")
    hialign(workshop, "cache", "experiment=dpo", *data, "cache=caches/texts", "what=[reference,features]")
    hialign(workshop, "train", "experiment=dpo", *data, "name=read_texts", "cache=caches/texts")
    same(*(workshop.run(name, "dpo") for name in ("texts", "read_texts")))
    often = ("stages.prefer.steps=30", "cache=caches/auto")
    assert "the first batch has nothing of the kind" in hialign(workshop, "cache", "experiment=dpo", *data, *often).out


def test_by_default_what_pays_is_written(workshop):
    common = ("experiment=dpo", *PREFER, "stages.prefer.steps=30")
    done = hialign(workshop, "cache", *common, "cache=caches/often")
    assert "reference/prefer-preference: saves" in done.out
    assert list((workshop.folder / "caches" / "often" / "reference").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["experiment=dpo", *PREFER], "cache: not given; wanted a folder to write to"),
        (["experiment=dpo", *PREFER, "cache=x", "what=[towers]"], "what: got ['towers'], wanted auto, or some of"),
        ([*LLAVA, "cache=x", "what=[reference]"], "what: reference cannot be cached: reference: no objective"),
        (
            [*LLAVA, "stages.pretrain.train.vision=full", "cache=x", "what=[features]"],
            "features of finetune/caption: stages.pretrain.train.vision lets the tower change",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused(workshop, arguments, reason):
    assert reason in refused(workshop, "cache", *arguments)
