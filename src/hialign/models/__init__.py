"""A standard Hugging Face Llava, the alignment modules beside it, and one way in: ``Root``."""

from hialign.models.clip import ClipTowers, clip_from_hf, clip_from_open_clip
from hialign.models.generate import evaluating, generate
from hialign.models.llava import from_checkpoint, from_parts
from hialign.models.lora import LORA_PARTS, Lora, add_lora, base_state, lora_parts, save_adapter
from hialign.models.model import Model, Native, load, save, save_beside
from hialign.models.parts import (
    MODES,
    PARTS,
    PartCount,
    checkpoint_activations,
    count,
    keep_in_float32,
    label_of,
    part_of,
    set_trainable,
)
from hialign.models.pretrained import DTYPES, dtype_of
from hialign.models.processor import IMAGE_ASPECTS, with_aspect
from hialign.models.root import Root
from hialign.models.tiny import tiny

__all__ = [
    "DTYPES",
    "IMAGE_ASPECTS",
    "LORA_PARTS",
    "MODES",
    "PARTS",
    "ClipTowers",
    "Lora",
    "Model",
    "Native",
    "PartCount",
    "Root",
    "add_lora",
    "base_state",
    "checkpoint_activations",
    "clip_from_hf",
    "clip_from_open_clip",
    "count",
    "dtype_of",
    "evaluating",
    "from_checkpoint",
    "from_parts",
    "generate",
    "keep_in_float32",
    "label_of",
    "load",
    "lora_parts",
    "part_of",
    "save",
    "save_adapter",
    "save_beside",
    "set_trainable",
    "tiny",
    "with_aspect",
]
