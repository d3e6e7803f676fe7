"""The world as ``hialign.data`` reads it: data sets of any size whose records are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Generic, TypeVar, cast, overload

from hialign.data.records import IMAGE, CaptionedImage, Conversation, Dataset, Turn
from hialign.data.vqa import SHORT_ANSWER
from hialign.tabletop.language import DESCRIBE, POSITIVE_BIAS, any_question, caption
from hialign.tabletop.render import NOISE, PIXELS, render
from hialign.tabletop.world import COOCCURRENCE, Scene, check, sample, scene_id

PARAPHRASE = 0.5
_CAPTION, _VQA, _INSTRUCT = 2, 3, 4  # what a scene's generators are for; the world and the renderer have 0 and 1
R = TypeVar("R", CaptionedImage, Conversation)
E = TypeVar("E")


class Made(Sequence[R], Generic[R]):
    """``size`` records, each made by its index when it is asked for and not kept."""

    def __init__(self, make: Callable[[int], R], size: int) -> None:
        self.make: Callable[[int], R] = make
        self.size = size

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> R | list[R]:
        places = range(self.size)[index]  # negative indices, slices, and an IndexError, as a list has them
        return [self.make(place) for place in places] if isinstance(places, range) else self.make(places)


class Later(Sequence[E], Generic[E]):
    """A tuple that is made when it is first read: a loader goes through all ids of a data set before it starts."""

    def __init__(self, make: Callable[[], tuple[E, ...]]) -> None:
        self.make = make

    @cached_property
    def made(self) -> tuple[E, ...]:
        """The entries."""
        return self.make()

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: Any) -> Any:
        return self.made[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Later | tuple) and self.made == tuple(other)

    def __hash__(self) -> int:
        return hash(self.made)

    def __repr__(self) -> str:
        return repr(self.made)


@dataclass(frozen=True)
class World:
    """What decides the records of a split; their parts are its methods, so that worker processes get a small copy."""

    split: str
    seed: int
    cooccurrence: float | None
    noise: float
    paraphrase: float = PARAPHRASE
    positive_bias: float = POSITIVE_BIAS
    captions: int = 3
    captioned: float = 0.5

    def __post_init__(self) -> None:
        check(self.split, 0, self.seed, self.cooccurrence)
        for name in ("paraphrase", "noise", "positive_bias", "captioned"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted a number in [0, 1]")
        if self.captions < 1:
            raise ValueError(f"captions={self.captions}: wanted 1 or more a scene")

    def scene(self, index: int) -> Scene:
        """Scene ``index``."""
        return sample(self.split, index, seed=self.seed, cooccurrence=self.cooccurrence)

    def id(self, index: int) -> str:
        """The record's id."""
        return scene_id(self.split, index)

    def captioned_image(self, index: int) -> CaptionedImage:
        """The scene with its captions."""
        return CaptionedImage(self.id(index), Picture(self, index), _later(self._captions, index))

    def asked(self, index: int) -> Conversation:
        """The scene with one question."""
        return Conversation(self.id(index), (Picture(self, index),), _later(self._question, index))

    def talked(self, index: int) -> Conversation:
        """The scene with a caption asked for, or with questions."""
        return Conversation(self.id(index), (Picture(self, index),), _later(self._talk, index))

    def _captions(self, index: int) -> tuple[str, ...]:
        scene = self.scene(index)
        rng = scene.rng(_CAPTION)
        texts = [caption(scene, rng, paraphrase=self.paraphrase if number else 0.0) for number in range(self.captions)]
        return tuple(dict.fromkeys(texts))

    def _question(self, index: int) -> tuple[Turn, ...]:
        scene = self.scene(index)
        asked = any_question(scene, scene.rng(_VQA), positive_bias=self.positive_bias)
        return (Turn(f"{IMAGE}\n{asked.text}\n{SHORT_ANSWER}", asked.answer),)

    def _talk(self, index: int) -> tuple[Turn, ...]:
        scene = self.scene(index)
        rng = scene.rng(_INSTRUCT)
        if rng.random() < self.captioned:
            return (Turn(f"{IMAGE}\n{DESCRIBE}", caption(scene, rng, paraphrase=self.paraphrase)),)
        number = int(rng.integers(1, 7))
        first, *others = (any_question(scene, rng, positive_bias=self.positive_bias) for _ in range(number))
        turns = [Turn(f"{IMAGE}\n{first.text}\n{SHORT_ANSWER}", first.answer)]
        return (*turns, *(Turn(asked.text, asked.answer) for asked in others))


@dataclass(frozen=True)
class Picture:
    """A scene's image, drawn when it is read."""

    world: World
    index: int

    def read(self) -> bytes:
        """The picture as a file."""
        return Drawn(self.world.scene(self.index), self.world.noise).read()

    def __str__(self) -> str:
        return f"tabletop scene {self.world.id(self.index)} of seed {self.world.seed}"


@dataclass(frozen=True)
class Drawn:
    """The image of a scene that no split holds."""

    scene: Scene
    noise: float

    def read(self) -> bytes:
        """The picture as a ppm file, which costs no compression."""
        return b"P6 %d %d 255\n" % (PIXELS, PIXELS) + render(self.scene, noise=self.noise).tobytes()

    def __str__(self) -> str:
        return f"a table with {', '.join(thing.kind for thing in self.scene.things)}"


def _later(make: Callable[[int], tuple[E, ...]], index: int) -> tuple[E, ...]:
    return cast(tuple[E, ...], Later(partial(make, index)))


def captions(
    split: str,
    size: int,
    *,
    seed: int = 0,
    cooccurrence: float | None = COOCCURRENCE,
    paraphrase: float = PARAPHRASE,
    noise: float = NOISE,
    captions: int = 3,
) -> Dataset[CaptionedImage]:
    """``size`` scenes of ``split``, each with up to ``captions`` true captions.

    The first caption is plain, any other is paraphrased with probability ``paraphrase``; equal ones are one. With
    ``cooccurrence=None`` kinds are independent of each other.
    """
    world = World(split, seed, cooccurrence, noise, paraphrase, captions=captions)
    return Dataset(f"tabletop captions {split}", Made(world.captioned_image, size))


def vqa(
    split: str,
    size: int,
    *,
    seed: int = 0,
    cooccurrence: float | None = COOCCURRENCE,
    positive_bias: float = POSITIVE_BIAS,
    noise: float = NOISE,
) -> Dataset[Conversation]:
    """``size`` scenes of ``split``, each with one question of VQAv2's kind and its short answer.

    ``positive_bias`` is the share of yes among the answers to existence questions.
    """
    world = World(split, seed, cooccurrence, noise, positive_bias=positive_bias)
    return Dataset(f"tabletop vqa {split}", Made(world.asked, size))


def instruct(
    split: str,
    size: int,
    *,
    seed: int = 0,
    cooccurrence: float | None = COOCCURRENCE,
    positive_bias: float = POSITIVE_BIAS,
    paraphrase: float = PARAPHRASE,
    noise: float = NOISE,
    captioned: float = 0.5,
) -> Dataset[Conversation]:
    """``size`` scenes of ``split``, a share ``captioned`` of them to be described, the others with some questions."""
    world = World(split, seed, cooccurrence, noise, paraphrase, positive_bias, captioned=captioned)
    return Dataset(f"tabletop instruct {split}", Made(world.talked, size))
