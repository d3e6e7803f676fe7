"""How near captions come to those that people wrote: BLEU, ROUGE-L, CIDEr-D and METEOR, on lists of tokens."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from hialign.benchmarks.scores import Columns

Tokens = Sequence[str]
Gram = tuple[str, ...]
LONGEST = 4  # words of the longest n-gram
BETA = 1.2  # of ROUGE-L: how much recall weighs
SIGMA = 6.0  # of CIDEr-D: how many bigrams lengths may differ by


def bleu_counts(candidate: Tokens, references: Sequence[Tokens]) -> dict[str, float]:
    """What BLEU is made of: ``correct_n`` and ``guess_n`` for n of 1 to 4, ``length`` and ``reference_length``.

    An n-gram is correct as often as it comes in the reference that has most of it. The reference's length is the one
    nearest to the candidate's; of two, the shorter.
    """
    _refuse_none(references)
    found: dict[str, float] = {
        "length": len(candidate),
        "reference_length": min((abs(len(one) - len(candidate)), len(one)) for one in references)[1],
    }
    theirs = [_grams(reference) for reference in references]
    for n, mine in enumerate(_grams(candidate)):
        most: Counter[Gram] = Counter()
        for grams in theirs:
            most |= grams[n]
        found[f"correct_{n + 1}"] = (mine & most).total()
        found[f"guess_{n + 1}"] = max(0, len(candidate) - n)
    return found


def bleu(sums: Columns) -> dict[str, np.ndarray]:
    """``Bleu_1`` to ``Bleu_4`` of sums of ``bleu_counts`` over a corpus; fractions, of perfect captions 1 - 3e-10.

    Source: Papineni et al. 2002, ACL, 311-318; the small numbers are those of pycocoevalcap 1.2, bleu_scorer.py.
    Differs: nothing.
    """
    tiny, small = 1e-15, 1e-9
    ratio = (sums["length"] + tiny) / (sums["reference_length"] + small)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    found, product = {}, np.asarray(1.0)
    for n in range(1, LONGEST + 1):
        product = product * (sums[f"correct_{n}"] + tiny) / (sums[f"guess_{n}"] + small)
        found[f"Bleu_{n}"] = product ** (1 / n) * brevity
    return found


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """The F-measure of the longest common subsequence, of the best precision and the best recall of any reference.

    Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries", section 3; pycocoevalcap 1.2, rouge.py.
    Differs: nothing. A text without tokens counts as one empty token there, and here.
    """
    _refuse_none(references)
    candidate = candidate or [""]
    common = [(common_length(candidate, one or [""]), len(one or [""])) for one in references]
    precision = max(length / len(candidate) for length, _ in common)
    recall = max(length / size for length, size in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_length(a: Tokens, b: Tokens) -> int:
    """The length of the longest common subsequence of two lists of tokens.

    Source: Hyyro 2004, "Bit-parallel LCS-length computation revisited", AWOCA, 16-27.
    Differs: nothing.
    """
    places: dict[str, int] = {}
    for place, token in enumerate(b):
        places[token] = places.get(token, 0) | 1 << place
    whole = (1 << len(b)) - 1
    row = whole  # a zero bit is where the length grows by one
    for token in a:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & whole
    return len(b) - row.bit_count()


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr-D of each image's candidate with its references; the corpus has the mean.

    From 0 to 10. An n-gram weighs the more, the fewer images' references have it, so a caption's value depends on all
    images that are evaluated together; of a single image it is 0.

    Source: Vedantam et al. 2015, arXiv:1411.5726, section 3 and CIDEr-D in section 8; pycocoevalcap 1.2,
    cider_scorer.py: the difference of lengths is counted in bigrams.
    Differs: nothing.
    """
    if len(candidates) != len(references):
        raise ValueError(f"cider: {len(candidates)} candidates to {len(references)} images' references; wanted as many")
    counted = []
    for one in references:
        _refuse_none(one)
        counted.append([_grams(reference) for reference in one])
    frequency: Counter[Gram] = Counter()
    for image in counted:
        frequency.update({gram for reference in image for grams in reference for gram in grams})
    images = math.log(max(1, len(references)))
    weights = {gram: images - math.log(number) for gram, number in frequency.items()}
    scores = []
    for candidate, image in zip(candidates, counted, strict=True):
        mine = _weigh(_grams(candidate), weights, images)
        theirs = [_weigh(reference, weights, images) for reference in image]
        scores.append(10 * sum(_similarity(mine, other) for other in theirs) / len(theirs))
    return scores


Weighed = tuple[list[dict[Gram, float]], list[float], int]  # for each n: vectors and their lengths; number of bigrams


def _weigh(grams: Sequence[Counter[Gram]], weights: Mapping[Gram, float], unseen: float) -> Weighed:
    vectors = [{gram: times * weights.get(gram, unseen) for gram, times in one.items()} for one in grams]
    lengths = [math.sqrt(math.fsum(value * value for value in vector.values())) for vector in vectors]
    return vectors, lengths, grams[1].total()


def _similarity(mine: Weighed, theirs: Weighed) -> float:
    """The mean over n of the cosine in which the candidate's excess does not count, less where lengths differ."""
    total = 0.0
    for a, b, a_length, b_length in zip(mine[0], theirs[0], mine[1], theirs[1], strict=True):
        if a_length and b_length:
            shared = sum(min(value, b[gram]) * b[gram] for gram, value in a.items() if gram in b)
            total += shared / (a_length * b_length)
    return total / LONGEST * math.exp(-((mine[2] - theirs[2]) ** 2) / (2 * SIGMA**2))


def _grams(tokens: Tokens) -> list[Counter[Gram]]:
    """How often each n-gram comes, for n of 1 to 4."""
    return [Counter(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, LONGEST + 1)]


def _refuse_none(references: Sequence[Tokens]) -> None:
    if not references:
        raise ValueError("captions: an image without a reference; wanted at least one")


def no_meteor() -> str | None:
    """Why METEOR cannot be computed here; None where it can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap is not installed; pip install 'hialign[eval-java]'"
    if shutil.which("java") is None:
        return "there is no java on the PATH; install a Java runtime, such as Debian's default-jre-headless"
    return None


def meteor(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, list[float]]:
    """METEOR of the corpus and of each image, in [0, 1]; a ValueError where ``no_meteor`` has a reason.

    Source: Denkowski and Lavie 2014, WMT, 376-380, whose Java program (1.5, English, normalised) pycocoevalcap brings.
    Differs: nothing.
    """
    if (reason := no_meteor()) is not None:
        raise ValueError(f"METEOR: {reason}")
    from pycocoevalcap.meteor.meteor import Meteor  # an optional extra

    texts = {str(n): [" ".join(one) for one in image] for n, image in enumerate(references)}
    said = {str(n): [" ".join(candidate)] for n, candidate in enumerate(candidates)}
    score, scores = Meteor().compute_score(texts, said)
    return float(score), [float(one) for one in scores]
