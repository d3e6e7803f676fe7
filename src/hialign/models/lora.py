"""LoRA on named parts: put in, merged into plain weights, and written as a PEFT adapter."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from hialign.models.parts import fixed_names, part_of
from hialign.models.root import Root

# Each part's path in the module that holds it; the text tower lies beside the Llava, in the alignment.
_PATHS = {
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
    "llm": "model.language_model",
    "text": "text",
}
LORA_PARTS = tuple(_PATHS)
_ADAPTER = "default"  # PEFT's name for the only one


@dataclass(frozen=True)
class Lora:
    """The shape of the adapters; the defaults are LLaVA-1.5's (scripts/v1_5/finetune_lora.sh@c121f04)."""

    rank: int = 128
    alpha: int = 256  # what an adapter adds is scaled by alpha / rank
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"lora: got {self}, wanted rank and alpha of 1 or more and dropout in [0, 1)")


def add_lora(root: Root, parts: Collection[str], settings: Lora, *, seed: int) -> None:
    """Puts an adapter on every linear layer of ``parts`` and on no other; the model still computes what it did.

    The language model's output layer gets none, as in LLaVA. ``seed`` alone decides the weights, which are float32
    whatever the layer under them is.
    """
    if not set(parts) <= set(LORA_PARTS):
        raise ValueError(f"lora: got the parts {', '.join(sorted(parts))}, wanted some of {', '.join(LORA_PARTS)}")
    fixed = {name.rpartition(".")[0].removeprefix("llava.") for name in fixed_names(root)}
    for module in (root.llava, root.alignment):
        pattern = _pattern(module, parts, fixed)
        if not pattern:
            continue
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=pattern
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # on the meta device without numbers too: PEFT would make them first
            shapes_only = next(module.parameters()).is_meta
            inject_adapter_in_model(config, module, adapter_name=_ADAPTER, low_cpu_mem_usage=shapes_only)
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()
    lacking = set(parts) - lora_parts(root)
    if lacking:
        raise ValueError(f"lora: this model has no {', '.join(sorted(lacking))} to put adapters on")


def _pattern(module: nn.Module, parts: Collection[str], fixed: Collection[str]) -> str:
    """What PEFT is to match: the linear layers of ``parts`` by their names' first and last pieces."""
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and name not in fixed]
    patterns = []
    for part in sorted(parts):
        leaves = {name.rpartition(".")[2] for name in linear if name.startswith(f"{_PATHS[part]}.")}
        if leaves:
            patterns.append(rf"{re.escape(_PATHS[part])}\.(?:.*\.)?(?:{'|'.join(sorted(leaves))})")
    return "|".join(patterns)


def lora_parts(root: Root) -> set[str]:
    """The parts that have adapters."""
    return {part_of(name) for name, _ in root.named_parameters() if ".lora_" in name}


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module`` with its adapters worked into plain weights; the module itself stays as it is.

    What is new lies on the CPU: a second copy of seven billion weights would not fit beside the first on a GPU.
    """
    state = base_state(module)
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            weight = state[f"{name}.weight"]
            adapted: Any = layer  # its stubs take the method for a tensor
            merged = weight.float() + adapted.get_delta_weight(_ADAPTER).float()
            state[f"{name}.weight"] = merged.to("cpu", weight.dtype)
    return state


def base_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module`` as it would be without adapters."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }


def save_adapter(root: Root, folder: Path, *, base: str, revision: str | None, whole: Mapping[str, str]) -> None:
    """Writes the Llava's adapters as PEFT reads them, to be put on the model ``base`` at the hub's ``revision``.

    ``whole`` maps parts that the file holds entire, since they trained in full, to their modules' names in the Llava.
    """
    llava: Any = root.llava
    adapted = lora_parts(root) - {"text"}
    if not adapted:
        raise ValueError("format=adapter: no part of this run's Llava trains by LoRA; wanted format=merged")
    kept = {
        name.removeprefix("llava.").replace(f".{_ADAPTER}.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in root.named_parameters()
        if name.startswith("llava.") and (".lora_" in name or part_of(name) in whole)
    }
    config = copy(llava.peft_config[_ADAPTER])
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    config.modules_to_save = sorted(whole.values()) or None
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {f"base_model.model.{name}": tensor for name, tensor in kept.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
