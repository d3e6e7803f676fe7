"""What captions of scenes claim, counted against what is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from hialign.tabletop.language import mentions
from hialign.tabletop.world import PARTNER, Scene


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
