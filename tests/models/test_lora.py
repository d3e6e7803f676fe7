"""LoRA reaches the part that is named, trains, merges and is written as PEFT reads it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from hialign.models import (
    LORA_PARTS,
    Lora,
    add_lora,
    checkpoint_activations,
    label_of,
    load,
    lora_parts,
    part_of,
    save,
    save_adapter,
    set_trainable,
    tiny,
)
from hialign.objectives import NextToken

SMALL = Lora(rank=4, alpha=8, dropout=0.0)
SIZE = {"width": 32, "layers": 2, "vocabulary": 2048}  # the batches' ids are of this vocabulary


def adapted(*parts: str, lora: Lora = SMALL, seed: int = 0, **settings):
    made = tiny(seed=0, **{**SIZE, **settings})
    add_lora(made.root, parts, lora, seed=seed)
    return made


def moved(root) -> None:
    """Adapters as if trained: B starts at zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in root.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=generator)


def logits(root, batch):
    with torch.no_grad():
        return root.eval().next_token_logits(batch.pixel_values, batch.text)


@pytest.mark.parametrize("part", LORA_PARTS)
def test_adapters_reach_every_linear_layer_of_their_part_and_nothing_else(part: str):
    plain = tiny(seed=0, **SIZE)
    wanted = {
        name
        for name, module in plain.root.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("llava.lm_head")
        if part_of(f"{name}.weight") == part
    }
    root = adapted(part).root
    assert {name.partition(".lora_")[0] for name, _ in root.named_parameters() if ".lora_" in name} == wanted
    assert wanted
    assert lora_parts(root) == {part}
    set_trainable(root, {part: "lora"})
    trains = [name for name, p in root.named_parameters() if p.requires_grad]
    assert trains
    assert all(".lora_" in name and part_of(name) == part for name in trains)
    assert {label_of(name) for name in trains} == {f"{part} LoRA"}


def test_several_parts_at_once_and_full_next_to_lora():
    root = adapted("llm", "vision", "text").root
    set_trainable(root, {"llm": "lora", "projector": "full", "text": "lora"})
    labels = {label_of(name) for name, p in root.named_parameters() if p.requires_grad}
    assert labels == {"llm LoRA", "projector", "text LoRA"}
    set_trainable(root, {"llm": "full"})
    assert {label_of(name) for name, p in root.named_parameters() if p.requires_grad} == {"llm"}


def test_what_has_no_adapters_cannot_train_by_lora():
    root = adapted("llm").root
    with pytest.raises(ValueError, match="vision is to train by lora and has no adapters"):
        set_trainable(root, {"vision": "lora"})
    with pytest.raises(ValueError, match="got the parts heads, wanted some of vision, projector, llm, text"):
        add_lora(root, ["heads"], SMALL, seed=0)
    with pytest.raises(ValueError, match="wanted rank and alpha of 1 or more"):
        Lora(rank=0)


def test_the_identity_of_a_linear_projector_gets_no_adapter():
    root = adapted("projector", projector="linear").root
    assert {name for name, _ in root.named_parameters() if ".lora_" in name} == {
        f"llava.model.multi_modal_projector.linear_1.lora_{side}.default.weight" for side in "AB"
    }


def test_new_adapters_change_nothing_and_their_seed_is_theirs(language_batch):
    before = torch.get_rng_state()
    settings = {"width": 128, "layers": 3}  # those of the batch's image size
    root = adapted("llm", "vision", lora=Lora(rank=4, alpha=8), **settings).root
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(logits(root, language_batch), logits(tiny(seed=0, **settings).root, language_batch))
    same, other = (adapted("llm", "vision", seed=seed, **settings).root.state_dict() for seed in (0, 1))
    ours = root.state_dict()
    assert all(torch.equal(ours[name], same[name]) for name in ours)
    assert {name for name in ours if not torch.equal(ours[name], other[name])} == {n for n in ours if ".lora_A." in n}


def test_gradients_reach_the_adapters_alone_checkpointed_or_not(language_batch):
    grads = []
    for checkpointed in (False, True):
        root = adapted("llm", "vision").root
        moved(root)
        root.train()
        if checkpointed:
            checkpoint_activations(root)
        set_trainable(root, {"llm": "lora", "vision": "lora"})
        root(NextToken(), language_batch).loss_sum.backward()
        grads.append({name: p.grad for name, p in root.named_parameters() if p.grad is not None})
    assert {label_of(name) for name in grads[0]} == {"llm LoRA", "vision LoRA"}
    # the language model reads the state before the tower's last layer, so that one's adapters are not reached
    reached = [name for name in grads[0] if part_of(name) == "vision"]
    assert reached
    assert not [name for name in reached if "layers.1." in name]
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name], atol=1e-6, rtol=1e-5)


def test_a_merged_folder_is_a_plain_llava_with_the_same_answers(language_batch, pair_batch, tmp_path):
    made = adapted("llm", "vision", "projector", "text")
    moved(made.root)
    before = {name: tensor.clone() for name, tensor in made.root.state_dict().items()}
    save(made, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.root.state_dict().items())
    plain, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "lora" in name]
    ours = logits(made.root, language_batch)
    text = language_batch.text
    with torch.no_grad():
        theirs = plain(input_ids=text.ids, attention_mask=text.mask, pixel_values=language_batch.pixel_values).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - logits(tiny(seed=0, **SIZE).root, language_batch)).abs().max() > 1e-3
    again = load(str(tmp_path))
    for pair in ("clip", "projector"):
        with torch.no_grad():
            one, other = (
                m.root.eval().text_embeddings(pair_batch.caption, pair_batch.clip_caption, (pair,))[pair]
                for m in (made, again)
            )
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_without_merging_the_folder_holds_the_model_under_the_adapters(language_batch, tmp_path):
    made = adapted("llm", "text")
    moved(made.root)
    save(made, tmp_path, merge=False)
    ours, plain = load(str(tmp_path)).root.state_dict(), tiny(seed=0, **SIZE).root.state_dict()
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in ours)


def test_peft_puts_the_adapter_on_the_base_and_gets_the_same_logits(language_batch, tmp_path):
    made = adapted("llm", "vision")
    save(made, tmp_path / "base", merge=False)
    moved(made.root)
    with torch.no_grad():
        for parameter in made.root.llava.model.multi_modal_projector.parameters():
            parameter.add_(0.05)  # trained in full
    whole = {"projector": "multi_modal_projector"}
    save_adapter(made.root, tmp_path / "adapter", base=str(tmp_path / "base"), revision="main", whole=whole)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum("multi_modal_projector" in name for name in names) == 4
    assert all(".lora_" in name or "multi_modal_projector" in name for name in names)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(tmp_path / "base"), 4, 8)

    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    text = language_batch.text
    with torch.no_grad():
        theirs = plain(input_ids=text.ids, attention_mask=text.mask, pixel_values=language_batch.pixel_values).logits
    torch.testing.assert_close(theirs, logits(made.root, language_batch), atol=1e-6, rtol=1e-6)


def test_no_adapter_is_written_where_none_is(tmp_path):
    with pytest.raises(ValueError, match="no part of this run's Llava trains by LoRA; wanted format=merged"):
        save_adapter(adapted("text").root, tmp_path / "adapter", base="x", revision=None, whole={})
    assert not (tmp_path / "adapter").exists()
