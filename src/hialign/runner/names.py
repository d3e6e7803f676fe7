"""Where a run lies, and what its folder says of it."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_TRAINER = tuple(f"trainer.{key}=" for key in ("workers", "save_every", "keep", "device"))
_RUN = ("experiment=", "data.root=", "cache=", "what=", "resume=", "name=", "output=")
_ELSEWHERE = (*_RUN, *_TRAINER, "tracker", "hydra", "launcher")
_PACKAGES = ("hialign", "torch", "transformers", "open_clip_torch", "peft", "hydra-core", "datasets", "numpy")
_LONGEST = 120


def run_name(overrides: Sequence[str]) -> str:
    """A folder name made of the overrides that change a run's outcome: ``solver-joint_seed-3``."""
    told = sorted(o.lstrip("+~") for o in overrides if not o.lstrip("+~").startswith(_ELSEWHERE))
    slug = re.sub(r"[^A-Za-z0-9.,=_-]+", "-", "_".join(told)).replace("=", "-").strip("-.") or "default"
    if len(slug) <= _LONGEST:
        return slug
    return f"{slug[:_LONGEST]}-{hashlib.sha256(slug.encode()).hexdigest()[:8]}"


def provenance() -> dict[str, Any]:
    """What produced a run: command, time, host, versions, and the commit of the checkout it ran from."""
    return {
        "command": sys.argv,
        "time": time.strftime("%FT%T%z"),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that this file lies in; None for an installed package."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        tracked = subprocess.run(["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip() if tracked.returncode == 0 else None
