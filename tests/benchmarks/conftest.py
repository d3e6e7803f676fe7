"""What the official scripts made of fixed inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def official() -> Callable[[str], Any]:
    """The content of a file of official scores, of ``tests/golden`` or else of ``../shared``.

    There lies what has lines of third parties; the test skips without it.
    """

    def read(name: str) -> Any:
        file = GOLDEN / name
        if not file.is_file():
            file = SHARED / "fixtures" / "evaluation" / name
        if not file.is_file():
            pytest.skip(f"../shared/fixtures/evaluation/{name} is not there: it holds lines of third parties")
        return json.loads(file.read_text())

    return read


@pytest.fixture(scope="session")
def annotations() -> Path:
    """Real annotation files; the test skips without them."""
    folder = SHARED / "data" / "annotations"
    if not folder.is_dir():
        pytest.skip("../shared/data/annotations is not there")
    return folder
