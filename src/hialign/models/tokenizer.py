"""Tokenizers that need no download: CLIP's, whose merges open_clip ships, and a small one of its first merges."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

# the end token must not get id 2: Hugging Face's CLIP text tower then reads the state at the highest id instead
SPECIAL = {"pad_token": "<pad>", "image_token": "<image>", "bos_token": "<s>", "eos_token": "</s>"}
_END = "</w>"  # marks the last piece of a word in CLIP's vocabulary
_WORDS = Regex(r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


_CLIP_VOCABULARY = 49408  # bytes, bytes that end a word, as many merges as fit, start and end


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer, as open_clip uses it, in Hugging Face's form."""
    letters = list(bytes_to_unicode().values())
    merges = _clip_merges()[: _CLIP_VOCABULARY - 2 * len(letters) - 2]
    pieces = [*letters, *(letter + _END for letter in letters), *("".join(merge) for merge in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary: Any = {piece: i for i, piece in enumerate(pieces)}
    pairs: Any = merges  # its stubs want strings, in which a merge could not be told from a space
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def tiny_tokenizer(vocabulary: int = 2048) -> PreTrainedTokenizerFast:
    """A lower-casing byte-pair tokenizer of ``vocabulary`` entries, special tokens included.

    A byte-pair vocabulary cut after its first merges is one too, with shorter pieces.
    """
    merges = _clip_merges()
    letters = list(bytes_to_unicode().values())
    pieces = [*SPECIAL.values(), *letters, *(letter + _END for letter in letters)]
    room = vocabulary - len(pieces)
    if not 0 <= room <= len(merges):
        raise ValueError(f"vocabulary: got {vocabulary}, wanted between {len(pieces)} and {len(pieces) + len(merges)}")
    pieces += ["".join(merge) for merge in merges[:room]]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges[:room], end_of_word_suffix=_END)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_END, "Ġ"), decoders.ByteLevel()])
    tokenizer.post_processor = processors.TemplateProcessing(  # as Llama's tokenizer does by default
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", pieces.index("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL.values()])
    named = {name: token for name, token in SPECIAL.items() if name != "image_token"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, extra_special_tokens={"image_token": SPECIAL["image_token"]}
    )


def _clip_merges() -> list[tuple[str, str]]:
    # found without importing open_clip, which takes seconds
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()[1:]  # the first is a version
    pairs = (tuple(line.split()) for line in lines)
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
