"""What all kinds of losses share: arguments that are one of a few words, and products outside of autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def check_choice(loss: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Passes a value that is one of the choices, of which there are at least two."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{loss}: {name}={value!r}, wanted {', '.join(others)} or {last}; choose one of these")


def full_precision(rows: Tensor) -> AbstractContextManager[object]:
    """A context without autocast, which would run products in half precision.

    Only devices whose autocast every torch since 2.2 knows are switched (meta has none at all); elsewhere the scores
    follow autocast.
    """
    device = rows.device.type
    return torch.autocast(device, enabled=False) if device in ("cpu", "cuda", "xpu") else nullcontext()
