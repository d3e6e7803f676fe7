"""``hialign ask``: the same answer from a run, from what export writes, and from plain transformers and PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

QUESTION = "What is on the left?"
STEPS = tuple(f"stages.{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("steps=2", "batch_size=8"))
LORA = ("stages.pretrain.train.vision=full", "lora.rank=4", "lora.alpha=8", "stages.finetune.lr=0.03")


@pytest.fixture(scope="module")
def tuned(workshop: Any) -> Any:
    """The workshop with a finished LoRA run called ``lora``, in v1's layout on padded images, and its two exports."""
    layout = ("stages.finetune.template=v1", "stages.finetune.image_aspect=pad", "stages.finetune.steps=8")
    sizes = ("stages.pretrain.inner_batch_size=null", "stages.finetune.inner_batch_size=null")
    done = workshop.train("name=lora", *LORA, *layout, *sizes, experiment="llava_lora")
    assert done.code == 0, done.err
    for form in ("merged", "adapter"):
        done = workshop.hialign("export", "run=runs/llava_lora/lora", f"out=out/{form}", f"format={form}")
        assert done.code == 0, done.err
    return workshop


@pytest.fixture(scope="module")
def picture(tuned: Any) -> Path:
    Image.open(next((tuned.folder / "pictures" / "images").iterdir())).resize((90, 40)).save(tuned.folder / "wide.png")
    return tuned.folder / "wide.png"


def said(tuned: Any, run: str, *more: str) -> str:
    done = tuned.hialign("ask", f"run={run}", "wide.png", QUESTION, "max_new_tokens=12", *more)
    assert done.code == 0, done.err
    return done.out


def plain_answer(llava: Any, folder: Path, picture: Path) -> str:
    """As the model cards of the hub do it."""
    processor = AutoProcessor.from_pretrained(folder)
    parts = [{"type": "image", "image": Image.open(picture).convert("RGB")}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = llava.eval().generate(**inputs, max_new_tokens=12, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_run_exports_plain_transformers_and_peft_give_one_answer(tuned: Any, picture: Path) -> None:
    from peft import PeftModel

    merged, adapter = tuned.folder / "out" / "merged", tuned.folder / "out" / "adapter"
    plain = plain_answer(AutoModelForImageTextToText.from_pretrained(merged), merged, picture)
    base = AutoModelForImageTextToText.from_pretrained(adapter / "base")
    peft = plain_answer(PeftModel.from_pretrained(base, str(adapter)), adapter, picture)
    answers = {said(tuned, run).strip() for run in ("runs/llava_lora/lora", "out/merged", "out/adapter")}
    assert answers == {plain.strip()} == {peft.strip()}
    assert plain.strip()
    unadapted = plain_answer(AutoModelForImageTextToText.from_pretrained(adapter / "base"), adapter, picture)
    assert unadapted != plain  # so that the adapter is seen to matter


def test_an_adapter_and_the_merged_model_compute_the_same(tuned: Any) -> None:
    from peft import PeftModel

    merged, adapter = tuned.folder / "out" / "merged", tuned.folder / "out" / "adapter"
    base = AutoModelForImageTextToText.from_pretrained(adapter / "base")
    ours = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    wanted = AutoModelForImageTextToText.from_pretrained(merged).state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=1e-6)


def test_a_merged_export_is_the_runs_own_model(tuned: Any) -> None:
    ours = load_file(tuned.folder / "out" / "merged" / "model.safetensors")
    theirs = load_file(tuned.run("lora", "llava_lora") / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not [name for name in ours if "lora" in name]


def test_a_run_under_way_answers_from_its_last_checkpoint(tuned: Any, picture: Path) -> None:
    shutil.copytree(tuned.run("lora", "llava_lora"), tuned.folder / "under_way", ignore=shutil.ignore_patterns("model"))
    assert said(tuned, "under_way") == said(tuned, "runs/llava_lora/lora")
    done = tuned.hialign("ask", "run=under_way", "wide.png", QUESTION, "max_new_tokens=1")
    assert "under_way is not done: this is its checkpoint finetune/step-000008" in done.err


def test_a_runs_log_tells_adapters_from_what_they_sit_on(tuned: Any) -> None:
    log = (tuned.run("lora", "llava_lora") / "log.txt").read_text()
    finetune = log[log.index("stage finetune") :]
    rows = {line.split("  ")[1]: line for line in finetune.splitlines() if line.startswith("  ")}
    assert "llm LoRA" in rows
    assert "projector" in rows
    (frozen,) = (line for line in finetune.splitlines() if line.startswith("  frozen:"))
    assert frozen == "  frozen: llm, temperature, text, heads"  # the tower trains in the tiny recipe


def test_a_run_goes_on_from_a_lora_run_without_its_adapters(tuned: Any) -> None:
    done = tuned.train("name=next", "model.from_run=runs/llava_lora/lora", "stages.pretrain.steps=1")
    assert done.code == 0, done.err
    weights = load_file(tuned.run("next") / "model" / "model.safetensors")
    assert not [name for name in weights if "lora" in name]


def test_a_lora_run_goes_on_from_a_checkpoint_to_the_same_model(tuned: Any) -> None:
    steps = ("stages.finetune.steps=8", "trainer.save_every=4", "trainer.keep=9")
    sizes = ("stages.pretrain.inner_batch_size=null", "stages.finetune.inner_batch_size=null")
    assert tuned.train("name=whole", *LORA, *steps, *sizes, experiment="llava_lora").code == 0
    whole, again = (tuned.run(name, "llava_lora") for name in ("whole", "again"))
    shutil.copytree(whole, again, ignore=shutil.ignore_patterns("model", "step-000008"))
    (again / "status.json").write_text('{"state": "preempted"}')
    done = tuned.train("name=again", "resume=auto", *LORA, *steps, *sizes, experiment="llava_lora")
    assert done.code == 0, done.err
    assert "resuming from" in (again / "log.txt").read_text()
    assert (again / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "ask: run= is not given, as in: hialign ask"),
        (("run=out/merged",), "got 0 arguments besides settings, wanted an image and a question"),
        (("run=out/merged", "wide.png", "What", "now?"), "got 3 arguments besides settings"),
        (("run=out/merged", "gone.png", "What?"), "gone.png: the image cannot be read (FileNotFoundError"),
        (("run=out/merged", "broken.png", "What?"), "broken.png: the image cannot be read (UnidentifiedImageError"),
        (("run=out/merged", "wide.png", "What?", "max_new_tokens=many"), "max_new_tokens: got 'many'"),
        (("run=out/merged", "wide.png", "What?", "dtype=fp8"), "dtype: got 'fp8', wanted one of auto, fp32, bf16"),
        (("run=out/merged", "wide.png", "max_new_tokns=4"), "there is no setting max_new_tokns; did you mean max_new"),
        (
            ("run=out/merged", "wide.png", "What?", "device=gpu"),
            "hialign ask: device: got 'gpu', wanted auto, cpu or cuda",
        ),
        (("run=out/merged", "run=x", "wide.png", "What?"), "ask: a setting is given twice"),
        (("run=text_only", "wide.png", "What?"), "run: 'text_only' cannot be read: "),
        (("run=pictures", "wide.png", "What?"), "run=pictures: no run and no model in this folder"),
        (("run=nobody/nothing", "wide.png", "What?"), "run: 'nobody/nothing' cannot be read: "),
    ],
)
def test_what_cannot_be_asked_is_said(
    tuned: Any, picture: Path, checkpoints, arguments: tuple[str, ...], wanted: str
) -> None:
    shutil.copytree(checkpoints.qwen2, tuned.folder / "text_only", dirs_exist_ok=True)
    (tuned.folder / "broken.png").write_bytes(b"no image")
    done = tuned.hialign("ask", *arguments)
    assert done.code == 1
    assert wanted in done.err
    assert done.err.count("\n") == 1


def test_an_adapter_may_be_moved_and_says_what_it_lacks(tuned: Any, picture: Path) -> None:
    wanted = said(tuned, "out/adapter")
    shutil.copytree(tuned.folder / "out" / "adapter", tuned.folder / "moved")
    config = tuned.folder / "moved" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tuned.folder / "out"), "/gone"))
    assert said(tuned, "moved") == wanted
    assert {file.name for file in (tuned.folder / "moved" / "alignment").iterdir()} >= {"alignment.json", "native.json"}
    shutil.rmtree(tuned.folder / "moved" / "base")
    done = tuned.hialign("ask", "run=moved", "wide.png", QUESTION)
    assert done.code == 1
    assert "base_model_name_or_path in adapter_config.json: '/gone/adapter/base' cannot be read" in done.err


def test_an_adapter_of_a_checkpoint_names_it_wherever_it_is_asked(tuned: Any, picture: Path, checkpoints) -> None:
    shutil.copytree(tuned.folder / "out" / "merged", tuned.folder / "checkpoint")
    model = ("model=llava_1_5_7b", "model.checkpoint=checkpoint", "model.clip=null", "+model.revision=main")
    sizes = ("stages.pretrain.inner_batch_size=null", "stages.finetune.inner_batch_size=null", "lora.rank=4")
    done = tuned.hialign(
        "train", "experiment=llava_lora", "name=named", "data=flickr8k", "data.root=pictures", *model, *STEPS, *sizes
    )
    assert done.code == 0, done.err
    assert tuned.hialign("export", "run=runs/llava_lora/named", "out=out/named", "format=adapter").code == 0
    config = json.loads((tuned.folder / "out" / "named" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tuned.folder / "checkpoint")
    assert config["revision"] == "main"
    assert config["modules_to_save"] == ["multi_modal_projector"]
    assert not (tuned.folder / "out" / "named" / "base").exists()
    assert said(tuned, "out/named") == said(tuned, "runs/llava_lora/named")


def test_ask_has_a_usage_and_needs_no_question(tuned: Any, picture: Path) -> None:
    done = tuned.hialign("ask", "--help")
    assert (done.code, done.out.startswith("usage: hialign ask run=RUN IMAGE")) == (0, True)
    done = tuned.hialign("ask", "run=out/merged", "wide.png", "max_new_tokens=2")
    assert (done.code, bool(done.out.strip())) == (0, True)
