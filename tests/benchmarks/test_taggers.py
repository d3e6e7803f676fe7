"""What is asked of NLTK and spaCy, with stand-ins for them, and what is said without them or their data."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from hialign.benchmarks.taggers import (
    nltk_noun_words,
    nltk_tagged,
    nltk_words,
    spacy_model,
    spacy_similarity,
    spacy_tagged,
)

TAGS = {"Men": "NNS", "men": "NNS", "are": "VBP", "big": "JJ", "slowly": "RB", "the": "DT"}


class Base:
    """As NLTK's WordNetLemmatizer: it is asked for a word and a part of speech."""

    def lemmatize(self, word: str, pos: str = "n") -> str:
        return f"{word}/{pos}"


def stand_in(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    parts = {
        "word_tokenize": str.split,
        "pos_tag": lambda words: [(word, TAGS[word]) for word in words],
        "stem": SimpleNamespace(WordNetLemmatizer=Base),
    }
    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace(**parts | changed))


def test_words_are_lemmatised_as_what_they_are_tagged(monkeypatch: pytest.MonkeyPatch):
    stand_in(monkeypatch)
    assert nltk_words("")("the Men are big slowly") == ["the/n", "men/n", "are/v", "big/a", "slowly/r"]


def test_without_a_tagger_all_are_nouns(monkeypatch: pytest.MonkeyPatch):
    stand_in(monkeypatch)
    assert nltk_noun_words("")("Men are") == ["men/n", "are/n"]


def test_nouns_keep_their_case(monkeypatch: pytest.MonkeyPatch):
    stand_in(monkeypatch)
    assert nltk_tagged("")("Men are") == [("Men/n", "NNS"), ("are/n", "VBP")]


def test_data_that_is_not_there_is_named_and_never_fetched(monkeypatch: pytest.MonkeyPatch):
    def missing(text: str) -> list[str]:
        raise LookupError("\n****\nResource punkt_tab not found.")

    stand_in(monkeypatch, word_tokenize=missing)
    with pytest.raises(ValueError, match=r"punkt_tab .*NLTK_DATA.*set lemmatizer=builtin"):
        nltk_words("set lemmatizer=builtin")("a dog")


@pytest.mark.parametrize(
    ("name", "make"),
    [("nltk", lambda: nltk_words("instead")), ("spacy", lambda: spacy_tagged("en_core_web_lg", "instead"))],
)
def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, name: str, make: Any):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"needs {name}, which is not installed: pip install {name}, or instead"):
        make()


class Doc:
    """As spaCy's: a word's vector, here a number."""

    def __init__(self, word: str) -> None:
        self.vector_norm = {"sofa": 1.0, "couch": 0.9}.get(word, 0.0)

    def similarity(self, other: Doc) -> float:
        return self.vector_norm * other.vector_norm


def test_a_word_without_a_vector_is_like_no_other_and_each_is_read_once(monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []

    def nlp(word: str) -> Doc:
        read.append(word)
        return Doc(word)

    nlp.vocab = SimpleNamespace(vectors_length=300)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: nlp))
    similarity = spacy_similarity("en_core_web_lg", "")
    assert [similarity("sofa", word) for word in ("couch", "baconic", "sofa", "couch")] == [0.9, 0.0, 1.0, 0.9]
    assert sorted(read) == ["baconic", "couch", "sofa"]


def test_a_model_that_is_not_there_or_has_no_vectors_is_named(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise OSError(f"[E050] Can't find model {name}")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=missing))
    with pytest.raises(ValueError, match=r"model en_core_web_lg, which is not installed .*set tagger=builtin"):
        spacy_model("en_core_web_lg", "tagger=spacy", "set tagger=builtin")
    small = SimpleNamespace(vocab=SimpleNamespace(vectors_length=0))
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: small))
    with pytest.raises(ValueError, match="en_core_web_sm has no vectors"):
        spacy_similarity("en_core_web_sm", "")
