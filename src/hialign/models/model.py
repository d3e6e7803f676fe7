"""A model with what it reads through, as it is saved and loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Writes a standard Llava folder, with the alignment modules in a folder of their own inside."""
    model.root.llava.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    beside = folder / BESIDE
    beside.mkdir(exist_ok=True)
    model.clip_tokenizer.save_pretrained(beside)
    weights = {name: tensor.contiguous() for name, tensor in model.root.alignment.state_dict().items()}
    save_file(weights, beside / "model.safetensors")
    (beside / "alignment.json").write_text(json.dumps(model.root.alignment.settings, indent=2) + "\n")


def load(folder: str) -> Model:
    """Reads what ``save`` wrote; ``ValueError`` if ``folder`` lacks a part of it."""
    path = Path(folder)
    settings = path / BESIDE / "alignment.json"
    for needed in (path / "config.json", settings):
        if not needed.is_file():
            raise ValueError(
                f"model folder {folder}: {needed.relative_to(path)} is missing; wanted the model/ folder of a finished "
                "run, or what `hialign export` wrote"
            )
    alignment = Alignment(**json.loads(settings.read_text()))
    alignment.load_state_dict(load_file(path / BESIDE / "model.safetensors"))
    llava = LlavaForConditionalGeneration.from_pretrained(path)
    clip_tokenizer = AutoTokenizer.from_pretrained(path / BESIDE)
    return Model(Root(llava, alignment), AutoProcessor.from_pretrained(path), clip_tokenizer)
