"""What ``from_pretrained`` says when it fails, in our words; and what it says nothing of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The dtype called ``name`` in configs."""
    if name not in DTYPES:
        raise ValueError(f"dtype: got {name!r}, wanted one of {', '.join(DTYPES)}")
    return DTYPES[name]


def pretrained(kind: Any, field: str, name: str, **settings: Any) -> Any:
    """``kind.from_pretrained(name, **settings)``; ``ValueError`` with the config's ``field`` where that fails."""
    try:
        return kind.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:  # some of them go on for pages
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(f"{field}: {name!r} cannot be read: {reason}; wanted a folder or a name on the hub") from error


def pretrained_weights(kind: Any, field: str, name: str, *, unused: Collection[str] = (), **settings: Any) -> Any:
    """The model ``name``; ``ValueError`` if its weights do not fill it: transformers makes up the rest and goes on.

    Weights whose names end in one of ``unused`` may be there, and are left where they are.
    """
    model, report = pretrained(kind, field, name, output_loading_info=True, **settings)
    report["unexpected_keys"] = {key for key in report["unexpected_keys"] if not key.endswith(tuple(unused))}
    wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
    if wrong:
        raise ValueError(
            f"{field}: the weights of {name!r} are not this model's: {wrong}; get it again, or save it anew"
        )
    return model
