"""A standard Hugging Face Llava, the alignment modules beside it, and one way in: ``Root``."""

from hialign.models.generate import evaluating, generate
from hialign.models.model import Model, load, save
from hialign.models.parts import MODES, PARTS, PartCount, checkpoint_activations, count, part_of, set_trainable
from hialign.models.root import Root
from hialign.models.tiny import tiny

__all__ = [
    "MODES",
    "PARTS",
    "Model",
    "PartCount",
    "Root",
    "checkpoint_activations",
    "count",
    "evaluating",
    "generate",
    "load",
    "part_of",
    "save",
    "set_trainable",
    "tiny",
]
