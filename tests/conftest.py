"""What every test starts from: no network, one thread, one seed."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

REPO = Path(__file__).resolve().parents[1]

# Set before any test module imports the libraries, which read these once, and inherited by the tests' own processes.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="offline",
    TOKENIZERS_PARALLELISM="false",
)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str, str], ModuleType]:
    """Runs a file of ``scripts`` under a name, and gives its module."""
    return lambda name, file: run_file(name, REPO / "scripts" / file)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Results that do not depend on the number of cores, and no fight for them between xdist's workers."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers whatever ran before."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger fixtures that may lie beside the checkout."""
    folder = REPO.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the fixtures in {folder}, which lie beside some checkouts only")
    return folder


def beside(name: str) -> ModuleType:
    """The module in the file ``name`` of this folder, which is no package."""
    return run_file(name, Path(__file__).with_name(f"{name}.py"))


def run_file(name: str, file: Path) -> ModuleType:
    """The module ``name`` that a file makes."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations' names
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def drawing() -> ModuleType:
    """``drawn.py``: pictures of one shape each."""
    return beside("drawn")


@pytest.fixture(scope="session")
def draw_captioned(drawing: ModuleType) -> Callable[..., Path]:
    """Writes drawn pictures with captions, in Flickr8k's layout, into a folder."""
    draw: Callable[..., Path] = drawing.draw_captioned
    return draw


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders of small checkpoints: language models, ``clip``, ``llava_next``; and ``open_clip``, which makes one."""
    write = beside("checkpoints")
    folder = tmp_path_factory.mktemp("checkpoints")
    llama, clip = write.write_llama(folder / "llama"), write.write_clip(folder / "clip")
    return SimpleNamespace(
        llama=str(llama),
        sentencepiece_llama=str(write.write_sentencepiece_llama(folder / "sentencepiece_llama")),
        qwen2=str(write.write_qwen2(folder / "qwen2")),
        clip=str(clip),
        llava_next=str(write.write_llava_next(folder / "llava_next", clip, llama)),
        open_clip=write.register_open_clip,
    )
