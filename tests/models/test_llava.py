"""Llavas put together from a tower and a language model, or read from a checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from hialign.batch import LanguageBatch, PairBatch, Tokens
from hialign.data import LanguageCollator
from hialign.models import (
    Model,
    checkpoint_activations,
    clip_from_hf,
    clip_from_open_clip,
    from_checkpoint,
    from_parts,
    keep_in_float32,
    load,
    part_of,
    save,
    set_trainable,
)
from hialign.objectives import Contrastive, NextToken

LLMS = ("llama", "qwen2")


@pytest.fixture(scope="module", params=LLMS)
def llm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def assembled(checkpoints, llm: str) -> Model:
    """Only to be read."""
    made = from_parts(clip=clip_from_hf(checkpoints.clip), llm=getattr(checkpoints, llm), seed=0)
    made.root.eval().requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def saved(assembled: Model, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("assembled") / "model"
    save(assembled, folder)
    return folder


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def inputs(model: Model, *texts: str):
    return model.processor(images=[picture()] * len(texts), text=list(texts), return_tensors="pt", padding=True)


def test_text_alone_gets_the_language_models_own_logits(assembled, checkpoints, llm):
    language = AutoModelForCausalLM.from_pretrained(getattr(checkpoints, llm)).eval()
    ids = torch.tensor([assembled.processor.tokenizer("a dog runs over there")["input_ids"]])
    with torch.no_grad():
        ours, theirs = assembled.root.llava(input_ids=ids).logits, language(ids).logits
    assert torch.equal(ours[..., : theirs.shape[-1]], theirs)


def test_the_tower_is_clips_own(assembled, checkpoints):
    clip, pixels = CLIPModel.from_pretrained(checkpoints.clip).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = assembled.root.llava.model.vision_tower(pixels, output_hidden_states=True)
        theirs = clip.vision_model(pixels, output_hidden_states=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True))


def test_the_pair_clip_reads_what_clip_itself_would(assembled, checkpoints):
    clip = CLIPModel.from_pretrained(checkpoints.clip).eval()
    pixels = torch.randn(2, 3, 32, 32)
    ids = assembled.clip_tokenizer(["a dog", "two cups of tea"], padding=True, return_tensors="pt")
    caption = Tokens(ids=ids["input_ids"], mask=ids["attention_mask"], labels=ids["input_ids"])
    with torch.no_grad():
        theirs = clip(input_ids=caption.ids, pixel_values=pixels)
        images = assembled.root.image_embeddings(pixels, ("clip",))["clip"]
        texts = assembled.root.text_embeddings(caption, caption, ("clip",))["clip"]
    normalised = (torch.nn.functional.normalize(rows, dim=-1) for rows in (images, texts))
    for ours, wanted in zip(normalised, (theirs.image_embeds, theirs.text_embeds), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)
    assert assembled.root.temperature.item() == pytest.approx(1 / clip.logit_scale.exp().item(), rel=1e-6)


def test_a_tower_of_open_clip_serves_as_well(checkpoints, tmp_path):
    weights, theirs = checkpoints.open_clip(tmp_path, "tiny-assembled", quick_gelu=True)
    clip = clip_from_open_clip("tiny-assembled", weights)
    made = from_parts(clip=clip, llm=checkpoints.qwen2, seed=0)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = made.root.eval().image_embeddings(pixels, ("clip",))["clip"]
        torch.testing.assert_close(ours, theirs.encode_image(pixels), atol=1e-5, rtol=1e-5)
    save(made, tmp_path / "model")
    plain, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    assert plain.config.vision_config.hidden_act == "quick_gelu"


def test_a_reload_agrees_with_the_assembled_model_in_everything(assembled, saved):
    plain, info = AutoModelForImageTextToText.from_pretrained(saved, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(saved)
    assert not any(info.values())
    batch = inputs(assembled, "<image> a dog", "<image>")
    again = processor(images=[picture()] * 2, text=["<image> a dog", "<image>"], return_tensors="pt", padding=True)
    assert batch.keys() == again.keys()
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    with torch.no_grad():
        assert torch.equal(plain.eval()(**batch).logits, assembled.root.llava(**batch).logits)
        one, other = (m.generate(**batch, max_new_tokens=6, do_sample=False) for m in (plain, assembled.root.llava))
    assert torch.equal(one, other)
    assert plain.config.image_token_id == processor.image_token_id
    assert plain.generation_config.pad_token_id == processor.tokenizer.pad_token_id is not None


def test_its_own_loader_finds_the_alignment_beside_it(assembled, saved):
    for loaded in (load(str(saved)), from_checkpoint(checkpoint=str(saved), seed=5)):
        ours, theirs = loaded.root.state_dict(), assembled.root.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert loaded.num_image_tokens == assembled.num_image_tokens == 16


def test_tower_keys_are_called_as_on_the_hub(saved):
    names = load_file(saved / "model.safetensors")
    tower = [name for name in names if name.startswith("vision_tower.")]
    assert tower
    assert all(name.startswith("vision_tower.vision_model.") for name in tower)
    assert {name.partition(".")[0] for name in names} == {"vision_tower", "multi_modal_projector", "language_model"}


def test_new_tokens_get_rows_and_a_matrix_that_is_large_enough_stays(checkpoints):
    clip = clip_from_hf(checkpoints.clip)
    grown = from_parts(clip=clip, llm=checkpoints.llama, seed=0)
    before = AutoModelForCausalLM.from_pretrained(checkpoints.llama)
    tokenizer, rows = grown.processor.tokenizer, grown.root.llava.get_input_embeddings().weight
    assert len(tokenizer) == before.config.vocab_size + 2  # an image and padding
    assert rows.shape[0] == grown.root.llava.lm_head.weight.shape[0] == 320  # a multiple of 64
    assert torch.equal(rows[: before.config.vocab_size], before.get_input_embeddings().weight)
    kept = from_parts(clip=clip, llm=checkpoints.qwen2, seed=0)
    assert kept.root.llava.get_input_embeddings().weight.shape[0] == 320
    assert kept.root.llava.lm_head.weight is kept.root.llava.get_input_embeddings().weight
    assert kept.processor.tokenizer.pad_token == "<|endoftext|>"


def test_an_answer_may_end_as_the_language_models_do(checkpoints):
    made = from_parts(clip=clip_from_hf(checkpoints.clip), llm=checkpoints.qwen2, seed=0)
    assert made.root.llava.generation_config.eos_token_id == [2, 0]


def test_the_seed_decides_the_projector_and_leaves_the_global_generator(checkpoints):
    before = torch.get_rng_state()
    one, same, other = (
        from_parts(clip=clip_from_hf(checkpoints.clip), llm=checkpoints.llama, seed=seed).root.state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    different = {part_of(name) for name in one if not torch.equal(one[name], other[name])}
    assert {"projector", "heads"} <= different <= {"projector", "heads", "llm"}  # the mean of new rows has noise


def test_vicunas_tokenizer_files_are_read(checkpoints):
    """A sentencepiece model alone; <unk> pads, so that one token is added."""
    made = from_parts(clip=clip_from_hf(checkpoints.clip), llm=checkpoints.sentencepiece_llama, seed=0)
    tokenizer = made.processor.tokenizer
    assert (tokenizer.is_fast, tokenizer.pad_token, len(tokenizer)) == (True, "<unk>", 291)
    ids = inputs(made, "<image> a dog")["input_ids"][0].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(made.root.llava.config.image_token_index) == 16
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a dog"


def test_captions_and_images_are_read_behind_one_end_token(checkpoints, tmp_path):
    """Where a config names several that end an answer, as Llama 3.1's does."""
    shutil.copytree(checkpoints.qwen2, tmp_path / "llm")
    file = tmp_path / "llm" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [0, 2]}))
    made = from_parts(clip=clip_from_hf(checkpoints.clip), llm=str(tmp_path / "llm"), seed=0)
    assert made.root.llava.config.get_text_config().eos_token_id == made.processor.tokenizer.eos_token_id == 2
    assert made.native.end_ids == (2, 0)


def test_a_linear_projector_is_one_map(checkpoints):
    made = from_parts(clip=clip_from_hf(checkpoints.clip), llm=checkpoints.llama, seed=0, projector="linear")
    projector, states = made.root.llava.model.multi_modal_projector, torch.randn(1, 16, 48)
    with torch.no_grad():
        torch.testing.assert_close(projector(states), projector.linear_1(states))
    set_trainable(made.root, {"projector": "full"})
    assert [n for n, p in projector.named_parameters() if p.requires_grad] == ["linear_1.weight", "linear_1.bias"]


def test_what_llava_would_compute_otherwise_is_refused(checkpoints, tmp_path):
    """Granite divides its logits; a Llava of its weights would be another model, with no error."""
    settings = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    GraniteForCausalLM(GraniteConfig(vocab_size=300, logits_scaling=3.0, **settings)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoints.llama).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="changes its logits after the output layer"):
        from_parts(clip=clip_from_hf(checkpoints.clip), llm=str(tmp_path), seed=0)


def test_a_misspelt_projector_or_dtype_is_refused(checkpoints):
    for wrong in ({"projector": "mlp"}, {"dtype": "fp16"}):
        with pytest.raises(ValueError, match=r"(projector|dtype): got '(mlp|fp16)', wanted one of"):
            from_parts(clip=clip_from_hf(checkpoints.clip), llm=checkpoints.llama, seed=0, **wrong)


@pytest.fixture
def bare(saved, tmp_path):
    """The checkpoint as others publish it: nothing beside it."""
    shutil.copytree(saved, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "alignment")
    return str(tmp_path / "bare")


def test_a_checkpoint_gets_the_text_tower_of_the_clip_it_was_made_with(bare, assembled, checkpoints):
    made = from_checkpoint(checkpoint=bare, clip=clip_from_hf(checkpoints.clip), seed=0)
    ours, theirs = made.root.state_dict(), assembled.root.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert made.clip_tokenizer is not None


def test_a_checkpoint_without_clip_has_no_pair_clip_and_says_so(bare, pair_batch):
    made = from_checkpoint(checkpoint=bare, seed=0, embed_dim=24)
    ids = torch.randint(5, 200, (len(pair_batch), 6))
    tokens = Tokens(ids=ids, mask=torch.ones_like(ids), labels=ids)
    pixels = torch.randn(len(pair_batch), 3, 32, 32)
    batch = PairBatch(records=pair_batch.records, pixel_values=pixels, caption=tokens, clip_caption=None)
    assert made.root(Contrastive(["projector", "llm"]), batch).loss_sum.isfinite()
    with pytest.raises(ValueError, match="clip is asked for, and this model has no CLIP text tower"):
        made.root(Contrastive(["clip"]), batch)
    assert made.root.alignment.heads["projector_image"].out_features == 24


def test_another_clips_tower_is_refused(bare, checkpoints, tmp_path):
    weights, _ = checkpoints.open_clip(tmp_path, "tiny-other", quick_gelu=False)
    with pytest.raises(ValueError, match=r"image projection is \(24, 64\) and this Llava's tower needs \(24, 48\)"):
        from_checkpoint(checkpoint=bare, clip=clip_from_open_clip("tiny-other", weights), seed=0)


def test_a_hub_folder_whose_processor_forgot_the_patches_is_mended(bare, assembled):
    processor = AutoProcessor.from_pretrained(bare)
    processor.patch_size, processor.num_additional_image_tokens = 1, 0
    processor.save_pretrained(bare)
    made = from_checkpoint(checkpoint=bare, seed=0)
    assert torch.equal(inputs(made, "<image>")["input_ids"], inputs(assembled, "<image>")["input_ids"])


def test_a_checkpoint_without_a_padding_token_borrows_one(bare):
    processor = AutoProcessor.from_pretrained(bare)
    processor.tokenizer.pad_token = None
    processor.save_pretrained(bare)
    tokenizer = from_checkpoint(checkpoint=bare, seed=0).processor.tokenizer
    assert tokenizer.pad_token == (tokenizer.unk_token or tokenizer.eos_token)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda clip: from_parts(clip=clip, llm="/nope/x", seed=0), "llm"),
        (lambda clip: from_checkpoint(checkpoint="/nope/x", clip=clip, seed=0), "checkpoint"),
        (lambda _: clip_from_hf("/nope/x"), "clip"),
    ],
)
def test_what_is_not_there_is_named_by_its_field(checkpoints, make, field: str):
    with pytest.raises(
        ValueError, match=f"^{field}: '/nope/x' cannot be read: .*; wanted a folder or a name on the hub"
    ):
        make(clip_from_hf(checkpoints.clip))


def language_batch(model: Model) -> LanguageBatch:
    tokenizer = model.processor.tokenizer
    collator = LanguageCollator(
        tokenizer,
        model.processor.image_processor,
        image_token_id=model.root.llava.config.image_token_index,
        num_image_tokens=model.num_image_tokens,
    )
    ids = [model.root.llava.config.image_token_index] * model.num_image_tokens + tokenizer("a cup")["input_ids"]
    row = torch.tensor([ids])
    labels = row.masked_fill(row == model.root.llava.config.image_token_index, -100)
    text = Tokens(ids=row, mask=torch.ones_like(row), labels=labels)
    pixels = collator.image_processor(images=[picture()], return_tensors="pt")["pixel_values"]
    return LanguageBatch(records=("1",), pixel_values=pixels, text=text)


def test_bfloat16_weights_train_in_float32_next_to_each_other(checkpoints, llm):
    made = from_parts(clip=clip_from_hf(checkpoints.clip), llm=getattr(checkpoints, llm), seed=0, dtype="bf16")
    set_trainable(made.root, {"projector": "full"})
    keep_in_float32(made.root, {name for name, p in made.root.named_parameters() if p.requires_grad})
    dtypes = {part_of(name): p.dtype for name, p in made.root.llava.named_parameters(prefix="llava")}
    assert dtypes == {"vision": torch.bfloat16, "projector": torch.float32, "llm": torch.bfloat16}
    batch = language_batch(made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made.root(NextToken(), batch).loss_sum.backward()
    grads = {name: p.grad for name, p in made.root.named_parameters() if p.grad is not None}
    assert {part_of(name) for name in grads} == {"projector"}
    assert all(grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in grads.values())


def test_checkpointed_activations_give_the_same_gradients(checkpoints, llm):
    grads = []
    for checkpointed in (False, True):
        made = from_parts(clip=clip_from_hf(checkpoints.clip), llm=getattr(checkpoints, llm), seed=0)
        made.root.train()
        set_trainable(made.root, {"vision": "full", "projector": "full", "llm": "full"})
        if checkpointed:
            checkpoint_activations(made.root)
        made.root(NextToken(), language_batch(made)).loss_sum.backward()
        grads.append({name: p.grad for name, p in made.root.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-6, rtol=1e-5)
