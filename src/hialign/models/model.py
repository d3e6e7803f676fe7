"""A model with what it reads through, as it is saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from hialign.files import write_json
from hialign.models.heads import Alignment
from hialign.models.llava_next import NEWLINE, flat_config
from hialign.models.lora import base_state, merged_state
from hialign.models.pretrained import dtype_of, pretrained, pretrained_weights
from hialign.models.processor import llava_processor, with_aspect
from hialign.models.root import Root

WEIGHTS = "model.safetensors"
BESIDE = "alignment"  # the folder beside the Llava's files that holds what plain transformers does not know


@dataclass(frozen=True)
class Native:
    """What a language model brought along, whatever layout a run asks it in: kept, so that a later run finds it."""

    chat_template: str | None
    end_ids: tuple[int, ...]  # with which its answers end


@dataclass(frozen=True)
class Model:
    """The root module, the Llava's processor, and the CLIP text tower's tokenizer where there is such a tower.

    The processor's chat template is how the model is asked; its tokenizer's is the language model's own.
    """

    root: Root
    processor: LlavaProcessor
    clip_tokenizer: PreTrainedTokenizerBase | None
    native: Native
    note: str = ""  # how what it was read from was another model than it is

    @property
    def num_image_tokens(self) -> int:
        """Placeholders that an image takes in a row of text."""
        config: Any = self.root.llava.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        default = config.vision_feature_select_strategy == "default"  # drops the class token
        return int(patches + self.processor.num_additional_image_tokens - default)

    def asked(self, *, chat_template: str, end_ids: Collection[int], image_aspect: str) -> Model:
        """The same model with a processor that asks by ``chat_template``.

        Its answers end with any of ``end_ids``, or as the language model's own do.
        """
        old: Any = self.processor
        processor = llava_processor(
            with_aspect(old.image_processor, image_aspect),
            old.tokenizer,
            self.root.llava.config,
            class_token=bool(old.num_additional_image_tokens),
            chat_template=chat_template,
        )
        generation: Any = self.root.llava.generation_config
        generation.eos_token_id = list(dict.fromkeys([*self.native.end_ids, *end_ids]))
        return replace(self, processor=processor)


def save(model: Model, folder: Path, *, merge: bool = True) -> None:
    """Writes a standard Llava folder, with the alignment modules in a folder of their own inside.

    LoRA is worked into the weights or, without ``merge``, left out. The tower's weights are called as in the hub's
    checkpoints, for readers that know no other names.
    """
    state = merged_state if merge else base_state
    model.root.llava.save_pretrained(folder, state_dict=state(model.root.llava), max_shard_size="5GB")
    _rename_tower(folder)
    model.processor.save_pretrained(folder)
    save_beside(model, folder, merge=merge)


def save_beside(model: Model, folder: Path, *, merge: bool = True) -> None:
    """Writes what plain transformers does not know: the alignment modules, and what the language model brought."""
    beside = folder / BESIDE
    beside.mkdir(exist_ok=True)
    if model.clip_tokenizer is not None:
        model.clip_tokenizer.save_pretrained(beside)
    state = merged_state if merge else base_state
    save_file({name: t.contiguous() for name, t in state(model.root.alignment).items()}, beside / WEIGHTS)
    write_json(beside / "alignment.json", model.root.alignment.settings)
    write_json(beside / "native.json", asdict(model.native))


def load(folder: str, *, dtype: str = "fp32") -> Model:
    """Reads what ``save`` wrote; ``ValueError`` if ``folder`` lacks a part of it."""
    path = Path(folder)
    beside = [path / BESIDE / name for name in ("alignment.json", "native.json", WEIGHTS)]
    for needed in (path / "config.json", path / "processor_config.json", *beside):
        if not needed.is_file():
            raise ValueError(
                f"model folder {folder}: {needed.relative_to(path)} is missing; wanted the model/ folder of a finished "
                "run, or what `hialign export` wrote"
            )
    llava = load_llava(folder, dtype=dtype)
    return with_beside(llava, pretrained(AutoProcessor, "model folder", folder), path / BESIDE)


def load_llava(
    name: str, *, dtype: str, revision: str | None = None, llava_next: bool = False
) -> LlavaForConditionalGeneration:
    """A Llava with all its weights, from a folder or the hub; ``ValueError`` if the weights there do not fill it.

    ``llava_next``: they are those of a LlavaNext, of which a Llava has all but one (``flat_config``).
    """
    settings: dict[str, Any] = {"revision": revision, "dtype": dtype_of(dtype)}
    if llava_next:
        config = flat_config(pretrained(AutoConfig, "model", name, revision=revision))
        settings |= {"config": config, "unused": (NEWLINE,)}
    llava: LlavaForConditionalGeneration = pretrained_weights(LlavaForConditionalGeneration, "model", name, **settings)
    return llava


def with_beside(llava: LlavaForConditionalGeneration, processor: LlavaProcessor, beside: Path) -> Model:
    """The model of a Llava and what ``save_beside`` wrote into the folder ``beside``."""
    alignment = Alignment(**json.loads((beside / "alignment.json").read_text()))
    alignment.load_state_dict(load_file(beside / WEIGHTS))
    kept = json.loads((beside / "native.json").read_text())
    native = Native(kept["chat_template"], tuple(kept["end_ids"]))
    tokenizer: Any = processor.tokenizer
    tokenizer.chat_template = native.chat_template  # a saved folder holds one, and that is the processor's
    clip_tokenizer = None if alignment.text is None else pretrained(AutoTokenizer, "clip tokenizer", str(beside))
    return Model(Root(llava, alignment), processor, clip_tokenizer, native)


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
        write_json(index, content)
