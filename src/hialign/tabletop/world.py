"""Scenes whose content is known exactly: what lies on a table, each scene a pure function of seed, split and index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Each kind has one partner, with which it is seen in training: the correlation that is spurious elsewhere. The number
# is how often a pair is met, uneven so that the popular kinds are a question of their own.
PAIRS = (
    ("cup", "spoon", 5.0),
    ("plate", "fork", 4.0),
    ("book", "pen", 3.0),
    ("lamp", "clock", 2.5),
    ("apple", "knife", 2.0),
    ("bottle", "glass", 1.5),
)
KINDS = tuple(kind for first, second, _ in PAIRS for kind in (first, second))
PARTNER = {a: b for first, second, _ in PAIRS for a, b in ((first, second), (second, first))}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("large", "small")
STATES = ("whole", "broken")
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
SIDE = 3  # the places are a square of SIDE x SIDE cells, in reading order

SPLITS = ("train", "val", "test", "val_counterfactual", "counterfactual")
APART = ("val_counterfactual", "counterfactual")  # where no kind is met with its partner
COOCCURRENCE = 0.95
_SHARES = tuple(share for *_, share in PAIRS for _ in range(2))
_TWO_GROUPS, _STRANGER, _TWIN, _SMALL, _BROKEN = 0.6, 0.5, 0.15, 0.3, 0.15


@dataclass(frozen=True)
class Thing:
    """One thing on the table."""

    kind: str
    colour: str
    size: str
    place: str
    state: str

    @property
    def cell(self) -> tuple[int, int]:
        """The row and the column of its place."""
        return divmod(PLACES.index(self.place), SIDE)


@dataclass(frozen=True)
class Scene:
    """Things in reading order of their places, one a place; ``key`` seeds whatever else is drawn for the scene."""

    things: tuple[Thing, ...]
    key: tuple[int, int, int]  # seed, number of the split, index

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that are there."""
        return frozenset(thing.kind for thing in self.things)

    def count(self, kind: str) -> int:
        """How many things are of ``kind``."""
        return sum(thing.kind == kind for thing in self.things)

    @property
    def free(self) -> tuple[str, ...]:
        """The places where nothing is."""
        taken = {thing.place for thing in self.things}
        return tuple(place for place in PLACES if place not in taken)

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator of its own for each ``purpose``; 0 chose the things."""
        return np.random.default_rng([*self.key, purpose])


def scene_id(split: str, index: int) -> str:
    """What records, questions and answers call scene ``index`` of ``split``."""
    return f"{split}-{index:07d}"


def left_of(one: Thing, other: Thing) -> bool:
    """Whether ``one`` lies in a column further left than ``other``."""
    return one.cell[1] < other.cell[1]


def above(one: Thing, other: Thing) -> bool:
    """Whether ``one`` lies in a row further up than ``other``."""
    return one.cell[0] < other.cell[0]


def ordered(things: list[Thing] | tuple[Thing, ...]) -> tuple[Thing, ...]:
    """The things in reading order of their places."""
    return tuple(sorted(things, key=lambda thing: PLACES.index(thing.place)))


def sample(split: str, index: int, *, seed: int, cooccurrence: float | None = COOCCURRENCE) -> Scene:
    """Scene ``index`` of ``split``: one or two groups of a thing and what lies beside it, sometimes one thing more.

    Beside a thing lies its partner with probability ``cooccurrence``, else a stranger or nothing. In the
    counterfactual splits partners never meet, whatever ``cooccurrence`` says. ``cooccurrence=None`` draws one to five
    things of kinds that are independent and even: scenes as the image tower is pretrained on.
    """
    check(split, index, seed, cooccurrence)
    key = (seed, SPLITS.index(split), index)
    draw = iter(np.random.default_rng([*key, 0]).random(64).tolist())
    if cooccurrence is None:
        kinds = [_pick(KINDS, draw) for _ in range(1 + int(5 * next(draw)))]
    else:
        kinds = _groups(draw, 0.0 if split in APART else cooccurrence, apart=split in APART)
    places = sorted(PLACES, key=lambda _: next(draw))  # any order, each place once
    return Scene(ordered([_thing(kind, place, draw) for kind, place in zip(kinds, places, strict=False)]), key)


def check(split: str, index: int, seed: int, cooccurrence: float | None) -> None:
    """Nothing, or a ValueError that names what no scene can be made of."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: wanted one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed={seed}, index={index}: wanted 0 or more")
    if cooccurrence is not None and not 0 <= cooccurrence <= 1:
        raise ValueError(f"cooccurrence={cooccurrence}: wanted a probability in [0, 1], or null for independent kinds")


def _groups(draw: Iterator[float], cooccurrence: float, *, apart: bool) -> list[str]:
    kinds: list[str] = []
    for _ in range(1 + (next(draw) < _TWO_GROUPS)):
        first = _anchor(draw, {PARTNER[kind] for kind in kinds} if apart else set())
        kinds.append(first)
        beside, stranger = next(draw) < cooccurrence, next(draw) < _STRANGER
        if beside:
            kinds.append(PARTNER[first])
        elif stranger:
            banned = {PARTNER[kind] for kind in kinds} if apart else {PARTNER[first]}
            kinds.append(_anchor(draw, banned | {first}))
    if next(draw) < _TWIN:
        kinds.append(_pick(kinds, draw))
    return kinds


def _anchor(draw: Iterator[float], banned: set[str]) -> str:
    """A kind by its share, none of the ``banned``."""
    allowed = [(kind, share) for kind, share in zip(KINDS, _SHARES, strict=True) if kind not in banned]
    left = next(draw) * sum(share for _, share in allowed)
    for kind, share in allowed:
        left -= share
        if left < 0:
            return kind
    return allowed[-1][0]  # only rounding comes here


def _pick(choices: tuple[str, ...] | list[str], draw: Iterator[float]) -> str:
    return choices[int(next(draw) * len(choices))]


def _thing(kind: str, place: str, draw: Iterator[float]) -> Thing:
    return Thing(
        kind=kind,
        colour=_pick(COLOURS, draw),
        size=SIZES[next(draw) < _SMALL],
        place=place,
        state=STATES[next(draw) < _BROKEN],
    )
