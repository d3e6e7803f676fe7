"""Readers of text that need a library and its data, NLTK's or spaCy's. Nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from hialign.benchmarks.vocabulary import Words

Tagged = list[tuple[str, str]]  # a text's words in their base form, each with its Penn Treebank tag
NLTK_DATA = ("punkt_tab (punkt before NLTK 3.9)", "averaged_perceptron_tagger_eng", "wordnet", "omw-1.4")


def library(name: str, why: str, instead: str) -> Any:
    """The installed module; a ValueError that says ``why`` it is wanted and what is to be had without."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0]:
            raise
        raise ValueError(f"{why} needs {name}, which is not installed: pip install {name}, or {instead}") from None


def _with_data(read: Callable[[str], list[Any]], instead: str) -> Callable[[str], list[Any]]:
    """``read``, with an error that names the data NLTK lacks."""

    def checked(text: str) -> list[Any]:
        try:
            return read(text)
        except LookupError as error:
            told = next(line.strip() for line in str(error).splitlines() if any(map(str.isalpha, line)))
            raise ValueError(
                f"NLTK does not find its data; wanted {', '.join(NLTK_DATA)} in a folder that the environment variable "
                f"NLTK_DATA names (github.com/nltk/nltk_data; nothing is downloaded here), or {instead}. "
                f"NLTK says: {told}"
            ) from error

    return checked


def nltk_words(instead: str) -> Words:
    """A reader that tags the words of the lower-cased text and gives each its base form as what it is tagged.

    Verbs too: "seated" becomes "seat", a chair. "men" stays "men".

    Source: code pritamqu/HALVA@059b086, eval_hall/eval_chair.py; yuezih/less-is-more@f26e187.
    Differs: nothing.
    """
    nltk = library("nltk", "lemmatizer=nltk", instead)
    base = nltk.stem.WordNetLemmatizer()
    kinds = {"J": "a", "V": "v", "N": "n", "R": "r"}  # a tag's first letter -> WordNet's name; all else is a noun

    def read(text: str) -> list[str]:
        tagged = nltk.pos_tag(nltk.word_tokenize(text.lower()))
        return [base.lemmatize(word, pos=kinds.get(tag[:1], "n")) for word, tag in tagged]

    return _with_data(read, instead)


def nltk_noun_words(instead: str) -> Words:
    """A reader that makes of each word of the lower-cased text the singular as if it were a noun ("has": "ha").

    Source: code RLHF-V/RLHF-V@8daac8a, eval/eval_gpt_obj_halbench.py.
    Differs: nothing.
    """
    nltk = library("nltk", "lemmatizer=nltk", instead)
    base = nltk.stem.WordNetLemmatizer()
    return _with_data(lambda text: [base.lemmatize(word) for word in nltk.word_tokenize(text.lower())], instead)


def nltk_tagged(instead: str) -> Callable[[str], Tagged]:
    """A reader of a text's words, their case kept, in the singular as if all were nouns, each with its tag."""
    nltk = library("nltk", "tagger=nltk", instead)
    base = nltk.stem.WordNetLemmatizer()

    def read(text: str) -> Tagged:
        return [(base.lemmatize(word), tag) for word, tag in nltk.pos_tag(nltk.word_tokenize(text))]

    return _with_data(read, instead)


def spacy_model(name: str, why: str, instead: str) -> Any:
    """The installed model of spaCy; a ValueError that says where to get it."""
    spacy = library("spacy", why, instead)
    try:
        return spacy.load(name)
    except OSError as error:
        raise ValueError(
            f"{why} needs spaCy's model {name}, which is not installed (github.com/explosion/spacy-models; nothing is "
            f"downloaded here): install its wheel, name another, or {instead}"
        ) from error


def spacy_tagged(model: str, instead: str) -> Callable[[str], Tagged]:
    """A reader of a text's words in spaCy's base form, each with its tag."""
    nlp = spacy_model(model, "tagger=spacy", instead)
    return lambda text: [(token.lemma_, token.tag_) for token in nlp(text)]


def spacy_similarity(model: str, instead: str) -> Callable[[str, str], float]:
    """How alike two words are by the cosine of spaCy's vectors; 0 where one has none.

    Each word is read once: a benchmark asks after the same few hundred again and again.
    """
    nlp = spacy_model(model, "similarity=spacy", instead)
    if not nlp.vocab.vectors_length:
        raise ValueError(f"similarity=spacy: the model {model} has no vectors; wanted one of the md or lg models")
    known: dict[str, Any] = {}

    def read(word: str) -> Any:
        if word not in known:
            known[word] = nlp(word)
        return known[word]

    def similarity(a: str, b: str) -> float:
        one, other = read(a), read(b)
        return float(one.similarity(other)) if one.vector_norm and other.vector_norm else 0.0

    return similarity
