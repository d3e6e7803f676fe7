"""A model with what it reads through, as it is saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from hialign.models.clip import refuse_unfilled
from hialign.models.heads import Alignment
from hialign.models.lora import base_state, merged_state
from hialign.models.processor import llava_processor, with_aspect
from hialign.models.root import Root

WEIGHTS = "model.safetensors"
BESIDE = "alignment"  # the folder beside the Llava's files that holds what plain transformers does not know


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The dtype called ``name`` in configs."""
    if name not in DTYPES:
        raise ValueError(f"dtype: got {name!r}, wanted one of {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True)
class Model:
    """The root module, the Llava's processor, and the CLIP text tower's tokenizer where there is such a tower."""

    root: Root
    processor: LlavaProcessor
    clip_tokenizer: PreTrainedTokenizerBase | None

    @property
    def num_image_tokens(self) -> int:
        """Placeholders that an image takes in a row of text."""
        config: Any = self.root.llava.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        default = config.vision_feature_select_strategy == "default"  # drops the class token
        return int(patches + self.processor.num_additional_image_tokens - default)

    def asked(self, *, chat_template: str, end_ids: Collection[int], image_aspect: str) -> Model:
        """The same model with a processor that asks by ``chat_template``, and that stops at any of ``end_ids`` too."""
        old: Any = self.processor
        processor = llava_processor(
            with_aspect(old.image_processor, image_aspect),
            old.tokenizer,
            self.root.llava.config,
            class_token=bool(old.num_additional_image_tokens),
            chat_template=chat_template,
        )
        generation: Any = self.root.llava.generation_config
        ends = generation.eos_token_id
        known = [] if ends is None else ends if isinstance(ends, list) else [ends]
        generation.eos_token_id = list(dict.fromkeys([*known, *end_ids]))
        return replace(self, processor=processor)


def save(model: Model, folder: Path, *, merge: bool = True) -> None:
    """Writes a standard Llava folder, with the alignment modules in a folder of their own inside.

    LoRA is worked into the weights or, without ``merge``, left out. The tower's weights are called as in the hub's
    checkpoints, for readers that know no other names.
    """
    state = merged_state if merge else base_state
    model.root.llava.save_pretrained(folder, state_dict=state(model.root.llava))
    _rename_tower(folder)
    model.processor.save_pretrained(folder)
    beside = folder / BESIDE
    beside.mkdir(exist_ok=True)
    if model.clip_tokenizer is not None:
        model.clip_tokenizer.save_pretrained(beside)
    weights = {name: tensor.contiguous() for name, tensor in state(model.root.alignment).items()}
    save_file(weights, beside / WEIGHTS)
    (beside / "alignment.json").write_text(json.dumps(model.root.alignment.settings, indent=2) + "\n")


def load(folder: str, *, dtype: str = "fp32") -> Model:
    """Reads what ``save`` wrote; ``ValueError`` if ``folder`` lacks a part of it."""
    path = Path(folder)
    settings = path / BESIDE / "alignment.json"
    for needed in (path / "config.json", path / "processor_config.json", settings, settings.with_name(WEIGHTS)):
        if not needed.is_file():
            raise ValueError(
                f"model folder {folder}: {needed.relative_to(path)} is missing; wanted the model/ folder of a finished "
                "run, or what `hialign export` wrote"
            )
    llava = load_llava(folder, dtype=dtype)
    alignment, clip_tokenizer = load_alignment(path / BESIDE)
    return Model(Root(llava, alignment), AutoProcessor.from_pretrained(path), clip_tokenizer)


def load_llava(name: str, *, dtype: str, revision: str | None = None) -> LlavaForConditionalGeneration:
    """A Llava with all its weights, from a folder or the hub; ``ValueError`` if the weights there do not fill it."""
    loading: Any = LlavaForConditionalGeneration.from_pretrained  # its stubs do not know that it returns two
    llava, report = loading(name, revision=revision, dtype=dtype_of(dtype), output_loading_info=True)
    refuse_unfilled(f"model {name}", report)
    made: LlavaForConditionalGeneration = llava
    return made


def load_alignment(folder: Path) -> tuple[Alignment, PreTrainedTokenizerBase | None]:
    """The alignment modules that ``save`` wrote, and the text tower's tokenizer if there is a tower."""
    alignment = Alignment(**json.loads((folder / "alignment.json").read_text()))
    alignment.load_state_dict(load_file(folder / WEIGHTS))
    return alignment, None if alignment.text is None else AutoTokenizer.from_pretrained(folder)


def _rename_tower(folder: Path) -> None:
    """Puts ``vision_model.`` into the tower's names, which transformers leaves out for a tower made from a config."""

    def hub_name(name: str) -> str:
        inside = name.removeprefix("vision_tower.")
        plain = inside != name and not inside.startswith("vision_model.")
        return f"vision_tower.vision_model.{inside}" if plain else name

    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        renamed = {hub_name(name): tensor for name, tensor in weights.items()}
        if renamed.keys() != weights.keys():
            save_file(renamed, file, metadata={"format": "pt"})
    index = folder / f"{WEIGHTS}.index.json"  # there if the model is saved in several files
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] = {hub_name(name): file for name, file in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2) + "\n")
