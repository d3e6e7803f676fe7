"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_json(file: Path, value: object) -> None:
    """Replaces ``file`` whole."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(value, indent=2, default=str) + "\n")
    os.replace(partial, file)
