"""Fixtures of the data tests: a word-level tokenizer, a small image processor, a Flickr8k of a few made-up images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

WORDS = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "a", "red", "cup", "on", "the", "table"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """<pad> 0, <s> 1, </s> 2, <image> 3, <unk> 4, a 5, red 6, cup 7, on 8, the 9, table 10."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def clip_tokenizer() -> PreTrainedTokenizerFast:
    """a 0, red 1, cup 2, <start> 3, <end> 4, <unk> 5; padded with <end>, as CLIP's."""
    words = ["a", "red", "cup", "<start>", "<end>", "<unk>"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    words_only = Tokenizer(model)
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_only, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture
def write_image() -> Callable[[Path], Path]:
    """A function that writes a small jpeg and gives its path back."""

    def write(path: Path, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, size=(12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


def png(level: int) -> bytes:
    """A small picture of one red level."""
    out = io.BytesIO()
    Image.new("RGB", (10, 12), (level, 0, 0)).save(out, "png")
    return out.getvalue()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that writes columns into a parquet file and gives its path back; nothing is cached elsewhere."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def write(columns: dict[str, list[Any]], name: str = "some.parquet") -> str:
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def cell() -> Callable[[int], dict[str, Any]]:
    """A function: a red level -> the cell of a small picture of it."""
    return lambda level: {"bytes": png(level), "path": None}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository, with a real Flickr8k in it."""
    folder = Path(__file__).resolve().parents[2].parent / "shared"
    if not (folder / "data" / "flickr8k" / "captions.txt").is_file():
        pytest.skip(f"no {folder}/data/flickr8k")
    return folder
