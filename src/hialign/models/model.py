"""A model with what it reads through, as it is saved and loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from hialign.models.heads import Alignment
from hialign.models.root import Root

WEIGHTS = "model.safetensors"
BESIDE = "alignment"  # the folder beside the Llava's files that holds what plain transformers does not know


@dataclass(frozen=True)
class Model:
    """The root module, the Llava's processor, and the CLIP text tower's tokenizer."""

    root: Root
    processor: LlavaProcessor
    clip_tokenizer: PreTrainedTokenizerBase

    @property
    def num_image_tokens(self) -> int:
        """Placeholders that an image takes in a row of text."""
        config: Any = self.root.llava.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return int(patches + (config.vision_feature_select_strategy == "full"))


def save(model: Model, folder: Path) -> None:
    """Writes a standard Llava folder, with the alignment modules in a folder of their own inside.

    The tower's weights are called as in the hub's checkpoints, for readers that know no other names.
    """
    model.root.llava.save_pretrained(folder)
    _rename_tower(folder)
    model.processor.save_pretrained(folder)
    beside = folder / BESIDE
    beside.mkdir(exist_ok=True)
    model.clip_tokenizer.save_pretrained(beside)
    weights = {name: tensor.contiguous() for name, tensor in model.root.alignment.state_dict().items()}
    save_file(weights, beside / WEIGHTS)
    (beside / "alignment.json").write_text(json.dumps(model.root.alignment.settings, indent=2) + "\n")


def load(folder: str) -> Model:
    """Reads what ``save`` wrote; ``ValueError`` if ``folder`` lacks a part of it."""
    path = Path(folder)
    settings = path / BESIDE / "alignment.json"
    for needed in (path / "config.json", path / "processor_config.json", settings, settings.with_name(WEIGHTS)):
        if not needed.is_file():
            raise ValueError(
                f"model folder {folder}: {needed.relative_to(path)} is missing; wanted the model/ folder of a finished "
                "run, or what `hialign export` wrote"
            )
    alignment = Alignment(**json.loads(settings.read_text()))
    alignment.load_state_dict(load_file(path / BESIDE / WEIGHTS))
    # its stubs do not know that this returns two
    llava, report = cast(Any, LlavaForConditionalGeneration.from_pretrained(path, output_loading_info=True))
    wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
    if wrong:  # transformers fills what is missing with random numbers and goes on
        raise ValueError(f"model folder {folder}: its weights are not this Llava's: {wrong}; save it anew")
    clip_tokenizer = AutoTokenizer.from_pretrained(path / BESIDE)
    return Model(Root(llava, alignment), AutoProcessor.from_pretrained(path), clip_tokenizer)


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
