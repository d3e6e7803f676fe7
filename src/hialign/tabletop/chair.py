"""What captions of scenes claim, counted against what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from hialign.tabletop.language import mentions
from hialign.tabletop.world import PARTNER, SIZES, STATES, Scene

Count = tuple[int, int]  # how many, of how many


@dataclass(frozen=True)
class Chair:
    """Shares, all from 0 to 1; lower is better of all but ``recall``."""

    chair_i: float  # mentions of kinds that are not there, of all mentions
    chair_s: float  # captions with such a mention, of all captions
    recall: float  # kinds that are there and mentioned, of all that are there
    partner: float  # of the mentions of kinds that are not there, those whose partner is
    mentions: float  # a caption

    def numbers(self) -> dict[str, float]:
        """The same as a mapping."""
        return asdict(self)


def chair(pairs: Iterable[tuple[str, Scene]]) -> Chair:
    """The counts over captions, each with its scene; a ValueError when there is none.

    Source: Rohrbach et al. 2018, arXiv:1809.02156: CHAIR-i and CHAIR-s, mentions counted with repetition.
    Differs: what a caption mentions is read by the world's own words and sentences. Of those it is exact; a negation
    ("without a cup", "the cup is gone"), a synonym, or a kind that comes without its noun in any other sentence is
    misread. Recall is added, as others have.
    """
    counts = [chair_counts(text, scene) for text, scene in pairs]
    if not counts:
        raise ValueError("chair: no caption; wanted at least one")
    return Chair(**{name: share([one[name] for one in counts]) for name in counts[0]})


def chair_counts(text: str, scene: Scene) -> dict[str, Count]:
    """What one caption adds to each number of ``Chair``: how many, of how many."""
    kinds = [mention.kind for mention in mentions(text)]
    made_up = [kind for kind in kinds if kind not in scene.kinds]
    return {
        "chair_i": (len(made_up), len(kinds)),
        "chair_s": (int(bool(made_up)), 1),
        "recall": (len(scene.kinds & set(kinds)), len(scene.kinds)),
        "partner": (sum(PARTNER[kind] in scene.kinds for kind in made_up), len(made_up)),
        "mentions": (len(kinds), 1),
    }


def share(counts: Iterable[Count]) -> float:
    """How many of all; a share of nothing is 0."""
    hits, number = map(sum, zip(*counts, strict=True))
    return hits / number if number else 0.0


ATTRIBUTES = ("colour", "place", "size", "state")
_UNSAID = {SIZES[0], STATES[0]}  # large and whole go without saying


def attributes(pairs: Iterable[tuple[str, Scene]]) -> dict[str, float]:
    """For colour, place, size and state, how much of what is there is said, and how much of what is said is there.

    ``<attribute>_recall``: of the things that have one worth saying (not large, not whole), the share that is mentioned
    with it. ``<attribute>_precision``: of the attributes said of kinds that are there, the share that is true. Things
    of one kind are not told apart: each of what is said answers for one of them. A share of nothing is 0. A ValueError
    when there is no caption.
    """
    counts = [attribute_counts(text, scene) for text, scene in pairs]
    if not counts:
        raise ValueError("attributes: no caption; wanted at least one")
    return {name: share([one[name] for one in counts]) for name in counts[0]}


def attribute_counts(text: str, scene: Scene) -> dict[str, Count]:
    """What one caption adds to each number of ``attributes``: how many, of how many."""
    claims = [mention for mention in mentions(text) if mention.kind in scene.kinds]
    recalls: dict[str, Count] = {}
    precisions: dict[str, Count] = {}
    for name in ATTRIBUTES:
        there = Counter((t.kind, getattr(t, name)) for t in scene.things if getattr(t, name) not in _UNSAID)
        claimed: Counter[tuple[str, str]] = Counter()
        for claim in claims:
            if (value := getattr(claim, name)) is not None and value not in _UNSAID:
                claimed[claim.kind, value] += claim.count
        hits = (there & claimed).total()
        recalls[f"{name}_recall"] = (hits, there.total())
        precisions[f"{name}_precision"] = (hits, claimed.total())
    return recalls | precisions
