"""What captions of scenes claim, counted against what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from hialign.tabletop.language import mentions
from hialign.tabletop.world import PARTNER, SIZES, STATES, Scene


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
    Differs: what a caption mentions is known exactly, by the world's own words; recall is added, as others have.
    """
    captions = mentioned = wrong = wrong_captions = partners = found = there = 0
    for text, scene in pairs:
        kinds = [mention.kind for mention in mentions(text)]
        made_up = [kind for kind in kinds if kind not in scene.kinds]
        captions += 1
        mentioned += len(kinds)
        wrong += len(made_up)
        wrong_captions += bool(made_up)
        partners += sum(PARTNER[kind] in scene.kinds for kind in made_up)
        found += len(scene.kinds & set(kinds))
        there += len(scene.kinds)
    if not captions:
        raise ValueError("chair: no caption; wanted at least one")
    return Chair(
        chair_i=wrong / mentioned if mentioned else 0.0,
        chair_s=wrong_captions / captions,
        recall=found / there if there else 0.0,
        partner=partners / wrong if wrong else 0.0,
        mentions=mentioned / captions,
    )


ATTRIBUTES = ("colour", "place", "size", "state")
_UNSAID = {SIZES[0], STATES[0]}  # large and whole go without saying


def attributes(pairs: Iterable[tuple[str, Scene]]) -> dict[str, float]:
    """For colour, place, size and state, how much of what is there is said, and how much of what is said is there.

    ``<attribute>_recall``: of the things that have one worth saying (not large, not whole), the share that is mentioned
    with it. ``<attribute>_precision``: of the attributes said of kinds that are there, the share that is true. Things
    of one kind are not told apart: each of what is said answers for one of them. A share of nothing is 0.
    """
    hits: Counter[str] = Counter()
    true: Counter[str] = Counter()
    said: Counter[str] = Counter()
    for text, scene in pairs:
        claims = [mention for mention in mentions(text) if mention.kind in scene.kinds]
        for name in ATTRIBUTES:
            there = Counter((t.kind, getattr(t, name)) for t in scene.things if getattr(t, name) not in _UNSAID)
            claimed: Counter[tuple[str, str]] = Counter()
            for claim in claims:
                if (value := getattr(claim, name)) is not None and value not in _UNSAID:
                    claimed[claim.kind, value] += claim.count
            hits[name] += (there & claimed).total()
            true[name] += there.total()
            said[name] += claimed.total()
    recalls = {f"{name}_recall": hits[name] / true[name] if true[name] else 0.0 for name in ATTRIBUTES}
    return recalls | {f"{name}_precision": hits[name] / said[name] if said[name] else 0.0 for name in ATTRIBUTES}
