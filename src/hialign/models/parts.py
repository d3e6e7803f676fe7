"""Parts of the model by name, and which of them train."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hialign.models.root import Root

_PREFIXES = {
    "vision": ("llava.model.vision_tower.",),
    "projector": ("llava.model.multi_modal_projector.",),
    "llm": ("llava.model.language_model.", "llava.lm_head."),
    "text": ("alignment.text.",),
    "heads": ("alignment.heads.",),
    "temperature": ("alignment.log_temperature",),
}
PARTS = tuple(_PREFIXES)
MODES = ("frozen", "full", "lora")


def part_of(name: str) -> str:
    """The part that the root's parameter called ``name`` belongs to."""
    for part, prefixes in _PREFIXES.items():
        if name.startswith(prefixes):
            return part
    raise AssertionError(f"{name} is in no part")


def label_of(name: str) -> str:
    """What tables and errors call the parameter's place: its part, with adapters told apart from what they sit on."""
    return f"{part_of(name)} LoRA" if ".lora_" in name else part_of(name)


def set_trainable(root: Root, modes: Mapping[str, str]) -> None:
    """Lets the parts with mode ``full`` train, of those with mode ``lora`` the adapters, and freezes all others."""
    if not set(modes) <= set(PARTS) or not set(modes.values()) <= set(MODES):
        raise ValueError(f"modes: got {dict(modes)}, wanted one of {', '.join(MODES)} for parts of {', '.join(PARTS)}")
    fixed = fixed_names(root)
    for part in (part for part, mode in modes.items() if mode == "lora"):
        if not any(".lora_" in name and part_of(name) == part for name, _ in root.named_parameters()):
            raise ValueError(f"modes: {part} is to train by lora and has no adapters; call add_lora first")
    for name, parameter in root.named_parameters():
        mode = "lora" if ".lora_" in name else "full"
        parameter.requires_grad_(modes.get(part_of(name), "frozen") == mode and name not in fixed)


def keep_in_float32(root: Root, names: Collection[str]) -> None:
    """Makes the parameters called ``names`` float32: a bfloat16 weight swallows the small steps of an optimiser."""
    for name, parameter in root.named_parameters():
        if name in names:
            parameter.data = parameter.data.float()


def fixed_names(root: Root) -> set[str]:
    """Parameters that never train: the identity that makes Llava's two-layer projector a linear one."""
    second = root.llava.model.multi_modal_projector.linear_2
    if root.llava.config.projector_hidden_act != "linear" or not torch.equal(
        second.weight.detach().cpu(), torch.eye(*second.weight.shape, dtype=second.weight.dtype)
    ):
        return set()
    return {f"llava.model.multi_modal_projector.linear_2.{name}" for name in ("weight", "bias")}


def make_projector_linear(root: Root) -> None:
    """Turns the projector's second layer into the identity, so that with a linear activation one map is left.

    Llava's code has two layers always; this way a linear projector (LLaVA 1.0's) stays a standard checkpoint.
    """
    second = root.llava.model.multi_modal_projector.linear_2
    nn.init.eye_(second.weight)
    nn.init.zeros_(second.bias)


@dataclass(frozen=True)
class PartCount:
    """How many parameters a part has, and how many of them train."""

    part: str
    total: int
    trainable: int


def count(root: Root) -> list[PartCount]:
    """One row a part, in the order of ``PARTS``."""
    rows = []
    for part in PARTS:
        sizes = [(p.numel(), p.requires_grad) for name, p in root.named_parameters() if part_of(name) == part]
        rows.append(PartCount(part, sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)))
    return rows


def checkpoint_activations(root: Root) -> None:
    """Trades time for memory: activations of tower and language model are computed again in the backward pass."""
    llava = root.llava
    # transformers renames it, and takes the old name away in version 6
    enable = getattr(llava, "activation_checkpointing_enable", None) or llava.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # transformers also lets the embeddings' outputs have gradients, which the other kind of checkpointing needs; with
    # this one a frozen tower would be gone through backwards for nothing
    llava.disable_input_require_grads()
