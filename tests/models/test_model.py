"""What is saved is what was there, and plain transformers can read it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from hialign.batch import Tokens
from hialign.data import LanguageCollator
from hialign.models import Model, generate, load, save, set_trainable, tiny


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(70, 90, 3), dtype=np.uint8))


def collator(model: Model) -> LanguageCollator:
    return LanguageCollator(
        model.processor.tokenizer,
        model.processor.image_processor,
        image_token_id=model.root.llava.config.image_token_index,
        num_image_tokens=model.num_image_tokens,
    )


def assert_same_weights(ours: Model, theirs: Model) -> None:
    one, other = ours.root.state_dict(), theirs.root.state_dict()
    assert one.keys() == other.keys()
    different = [
        name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])
    ]
    assert not different


def test_a_saved_model_loads_bit_identically_alignment_included(tmp_path):
    made = tiny(seed=3)
    for parameter in made.root.parameters():  # those that start at zero or one, too
        torch.nn.init.normal_(parameter)
    save(made, tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert_same_weights(loaded, made)
    names = [name for name, _ in loaded.root.named_parameters()]
    assert {"alignment.log_temperature", "alignment.heads.clip_image.weight"} <= set(names)
    assert loaded.root.alignment.settings == made.root.alignment.settings


def test_a_loaded_model_computes_and_reads_as_the_saved_one(model, folder, language_batch, pair_batch):
    loaded = load(str(folder))
    loaded.root.eval()
    with torch.no_grad():
        ours = loaded.root.next_token_logits(language_batch.pixel_values, language_batch.text)
        theirs = model.root.next_token_logits(language_batch.pixel_values, language_batch.text)
        assert torch.equal(ours, theirs)
        pairs = ("clip", "projector", "llm")
        ours = loaded.root.text_embeddings(pair_batch.caption, pair_batch.clip_caption, pairs)
        theirs = model.root.text_embeddings(pair_batch.caption, pair_batch.clip_caption, pairs)
        assert all(torch.equal(ours[pair], theirs[pair]) for pair in pairs)
    text = "the children's café"
    for ours, theirs in (
        (loaded.processor.tokenizer, model.processor.tokenizer),
        (loaded.clip_tokenizer, model.clip_tokenizer),
    ):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])
        assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.image_token_id) == (2, 3, 0, 1)
    pixels = [
        m.processor.image_processor(images=[picture()], return_tensors="pt")["pixel_values"] for m in (loaded, model)
    ]
    assert torch.equal(*pixels)


def test_a_linear_projector_stays_linear_and_fixed_when_saved(tmp_path):
    save(tiny(seed=0, projector="linear"), tmp_path)
    loaded = load(str(tmp_path))
    second = loaded.root.llava.model.multi_modal_projector.linear_2
    assert torch.equal(second.weight, torch.eye(128))
    set_trainable(loaded.root, {"projector": "full"})
    assert not second.weight.requires_grad
    assert not second.bias.requires_grad


def test_saving_twice_writes_the_same_files(model, folder, tmp_path):
    save(load(str(folder)), tmp_path)
    ours, theirs = ({p.relative_to(f).as_posix() for p in f.rglob("*")} for f in (tmp_path, folder))
    assert ours == theirs
    assert_same_weights(load(str(tmp_path)), model)


def test_plain_transformers_loads_the_folder_without_missing_or_unexpected_keys(model, folder, language_batch):
    plain, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert type(plain).__name__ == "LlavaForConditionalGeneration"
    assert {kind: set(keys) for kind, keys in info.items()} == {kind: set() for kind in info}
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(info)
    text = language_batch.text
    with torch.no_grad():
        ours = model.root.next_token_logits(language_batch.pixel_values, text)
        theirs = plain(input_ids=text.ids, attention_mask=text.mask, pixel_values=language_batch.pixel_values).logits
    assert torch.equal(ours, theirs)


def test_the_llavas_file_holds_nothing_of_the_alignment(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        rooms = {key.partition(".")[0] for key in file.keys()}  # noqa: SIM118 - it is no dict
    assert rooms == {"language_model", "multi_modal_projector", "vision_tower"}


@pytest.mark.parametrize("missing", ["config.json", "alignment/alignment.json"])
def test_an_incomplete_folder_is_an_error_that_names_what_is_missing(folder, tmp_path, missing: str):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing} is missing; wanted the model/ folder of a finished run"):
        load(str(tmp_path / "model"))


@pytest.mark.parametrize(
    "missing", ["model.safetensors", "alignment/model.safetensors", "alignment/tokenizer.json", "processor_config.json"]
)
def test_no_incomplete_folder_loads(folder, tmp_path, missing: str):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises((ValueError, OSError)):
        load(str(tmp_path / "model"))


def test_a_folder_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match=r"model folder /nowhere: config\.json is missing"):
        load("/nowhere")


def test_alignment_settings_that_do_not_fit_their_weights_are_an_error(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "alignment" / "alignment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "embed_dim": 32}))
    with pytest.raises(RuntimeError, match="size mismatch for heads"):
        load(str(tmp_path / "model"))


def test_tower_weights_are_called_as_in_the_hubs_checkpoints(folder):
    names = [name for name in load_file(f"{folder}/model.safetensors") if name.startswith("vision_tower.")]
    assert names
    assert all(name.startswith("vision_tower.vision_model.") for name in names)


def test_a_folder_that_lacks_a_weight_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["multi_modal_projector.linear_1.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys.*multi_modal_projector\.linear_1\.weight"):
        load(str(tmp_path / "model"))


def test_processor_and_collator_write_the_same_prompt(model):
    (ids,) = model.processor(images=[picture()], text=["<image>"], return_tensors="pt")["input_ids"].tolist()
    prompt = collator(model).prompt(2)
    assert prompt.ids.tolist() == [ids] * 2
    tokenizer = model.processor.tokenizer
    assert ids == [tokenizer.bos_token_id] + [tokenizer.image_token_id] * model.num_image_tokens
    assert bool(prompt.mask.all())


@pytest.mark.parametrize("settings", [{"image_size": 32}, {"patch_size": 16}, {"image_size": 48, "patch_size": 16}])
def test_processor_collator_and_tower_agree_on_the_number_of_patches(settings: dict):
    made = tiny(seed=0, width=64, layers=2, vocabulary=600, **settings)
    batch = made.processor(images=[picture()], text=["<image> a cup"], return_tensors="pt")
    assert int((batch["input_ids"] == made.processor.tokenizer.image_token_id).sum()) == made.num_image_tokens
    with torch.no_grad():
        (features,) = made.root.llava.get_image_features(batch["pixel_values"]).pooler_output
    assert len(features) == made.num_image_tokens


def test_the_processors_output_generates_in_plain_transformers(folder):
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    prompt = processor.apply_chat_template(messages)
    assert prompt == "<image>what is it?"
    batch = processor(images=[picture()], text=[prompt], return_tensors="pt")
    ids = plain.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    length = batch["input_ids"].shape[1]
    assert torch.equal(ids[:, :length], batch["input_ids"])
    assert ids.shape == (1, length + 6)
    assert isinstance(processor.decode(ids[0, length:]), str)


def test_generate_says_what_plain_transformers_generates_from_the_same_ids(model, folder):
    prompt = collator(model).prompt(2)
    pixels = model.processor.image_processor(images=[picture(1), picture(2)], return_tensors="pt")["pixel_values"]
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    ids = plain.generate(
        input_ids=prompt.ids, attention_mask=prompt.mask, pixel_values=pixels, max_new_tokens=5, do_sample=False
    )
    said = generate(model, pixels, prompt, max_new_tokens=5)
    tokenizer = model.processor.tokenizer
    assert said == [tokenizer.decode(row[prompt.ids.shape[1] :], skip_special_tokens=True).strip() for row in ids]
    assert len(said) == 2
    assert all(said)


def test_generation_is_greedy_and_goes_on_by_the_likeliest_token(model):
    prompt = collator(model).prompt(1)
    pixels = model.processor.image_processor(images=[picture()], return_tensors="pt")["pixel_values"]
    ids = prompt.ids
    for _ in range(3):
        text = Tokens(ids=ids, mask=torch.ones_like(ids), labels=ids)
        with torch.no_grad():
            best = model.root.next_token_logits(pixels, text)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
    expected = model.processor.tokenizer.decode(ids[0, -3:], skip_special_tokens=True).strip()
    assert generate(model, pixels, prompt, max_new_tokens=3) == [expected]


def test_generation_refuses_prompts_that_differ_in_length(model, make_tokens):
    prompt = make_tokens([[2, 5], [2]])
    with pytest.raises(ValueError, match="the prompts differ in length"):
        generate(model, torch.zeros(2, 3, 64, 64), prompt, max_new_tokens=1)


def test_folders_may_be_saved_into_again(model, tmp_path: Path):
    save(model, tmp_path)
    other = tiny(seed=5)
    save(other, tmp_path)
    assert_same_weights(load(str(tmp_path)), other)
