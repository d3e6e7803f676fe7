"""The world as ``hialign.data`` reads it: data sets of any size whose records are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np

from hialign.data.records import (
    IMAGE,
    Answer,
    CaptionedImage,
    Conversation,
    Dataset,
    HallucinatedImage,
    Preference,
    Turn,
)
from hialign.data.vqa import SHORT_ANSWER
from hialign.tabletop.language import CHANGES, DESCRIBE, POSITIVE_BIAS, any_question, caption, mistaken, preference
from hialign.tabletop.render import NOISE, PIXELS, render
from hialign.tabletop.world import APART, COOCCURRENCE, Scene, check, sample, scene_id

PARAPHRASE = 0.5
# What a scene's generators are for; the world and the renderer have 0 and 1.
_CAPTION, _VQA, _INSTRUCT, _PREFERENCE, _HALLUCINATION = 2, 3, 4, 5, 6
R = TypeVar("R", CaptionedImage, Conversation, HallucinatedImage, Preference)
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


def some_questions(scene: Scene, rng: np.random.Generator, positive_bias: float) -> tuple[Turn, ...]:
    """One to six questions on the scene's image, with their short answers."""
    number = int(rng.integers(1, 7))
    first, *others = (any_question(scene, rng, positive_bias=positive_bias) for _ in range(number))
    turns = [Turn(f"{IMAGE}\n{first.text}\n{SHORT_ANSWER}", first.answer)]
    return (*turns, *(Turn(asked.text, asked.answer) for asked in others))


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
    changes: tuple[str, ...] = CHANGES

    def __post_init__(self) -> None:
        check(self.split, 0, self.seed, self.cooccurrence)
        for name in ("paraphrase", "noise", "positive_bias", "captioned"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted a number in [0, 1]")
        if self.captions < 1:
            raise ValueError(f"captions={self.captions}: wanted 1 or more a scene")
        if not self.changes or not set(self.changes) <= set(CHANGES):
            raise ValueError(f"changes={list(self.changes)}: wanted one or more of {', '.join(CHANGES)}")

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

    def preferred(self, index: int) -> Preference:
        """The scene with a caption asked for or one question, a right answer and a wrong one."""
        turns = _later(partial(self._preferred, part="turns"), index)
        answers = cast(tuple[Answer, Answer], _later(partial(self._preferred, part="answers"), index))
        return Preference(self.id(index), (Picture(self, index),), turns, answers)

    def hallucinated_image(self, index: int) -> HallucinatedImage:
        """The scene with its captions and a wrong one for each."""
        right, wrong = (_later(partial(self._hallucinated, side=side), index) for side in (0, 1))
        return HallucinatedImage(self.id(index), Picture(self, index), right, wrong)

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
        return some_questions(scene, rng, self.positive_bias)

    def _preferred(self, index: int, part: str) -> tuple[Any, ...]:
        """The record's turns, or its answers; both come of the same draws."""
        scene = self.scene(index)
        rng = scene.rng(_PREFERENCE)
        if rng.random() < self.captioned:
            pair = preference(scene, self._change(rng), rng, paraphrase=self.paraphrase)
            question, texts, spans = DESCRIBE, (pair.chosen, pair.rejected), pair.phrases
        else:
            asked = any_question(scene, rng, positive_bias=self.positive_bias)
            question, texts = f"{asked.text}\n{SHORT_ANSWER}", (asked.answer, mistaken(asked, rng))
            spans = (0, len(texts[0])), (0, len(texts[1]))
        if part == "turns":
            return (Turn(f"{IMAGE}\n{question}", ""),)
        phrases = ((), ()) if spans is None else ((spans[0],), (spans[1],))
        return tuple(Answer(text, marked) for text, marked in zip(texts, phrases, strict=True))

    def _hallucinated(self, index: int, side: int) -> tuple[str, ...]:
        """The record's captions, or what is wrong instead of each; both come of the same draws."""
        scene = self.scene(index)
        rng = scene.rng(_HALLUCINATION)
        pairs: dict[str, str] = {}
        for number in range(self.captions):
            made = preference(scene, self._change(rng), rng, paraphrase=self.paraphrase if number else 0.0)
            pairs.setdefault(made.chosen, made.rejected)
        return tuple(pairs.values() if side else pairs)

    def _change(self, rng: np.random.Generator) -> str:
        return self.changes[int(rng.integers(len(self.changes)))]


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


def preferences(
    split: str,
    size: int,
    *,
    seed: int = 0,
    cooccurrence: float | None = COOCCURRENCE,
    positive_bias: float = POSITIVE_BIAS,
    paraphrase: float = PARAPHRASE,
    noise: float = NOISE,
    captioned: float = 0.5,
    changes: list[str] | None = None,
) -> Dataset[Preference]:
    """``size`` scenes of ``split``, each with a right answer and a wrong one to the same question.

    A share ``captioned`` of them is to be described, and the wrong caption differs by one of ``changes`` (any of
    ``language.CHANGES`` by default); the others have a question with a short answer. Phrases are marked where both
    answers have words that the other has not: in short answers, and for the changes object, colour and place.

    The scenes are the split's own, with its ``cooccurrence``, and questions have its ``positive_bias``: a method is not
    to be shown a world without the biases that it should overcome.
    """
    _require_biased(split)
    chosen = CHANGES if changes is None else tuple(changes)
    world = World(split, seed, cooccurrence, noise, paraphrase, positive_bias, captioned=captioned, changes=chosen)
    return Dataset(f"tabletop preferences {split}", Made(world.preferred, size))


def hallucinations(
    split: str,
    size: int,
    *,
    seed: int = 0,
    cooccurrence: float | None = COOCCURRENCE,
    paraphrase: float = PARAPHRASE,
    noise: float = NOISE,
    captions: int = 3,
    changes: list[str] | None = None,
) -> Dataset[HallucinatedImage]:
    """``size`` scenes of ``split``, each with up to ``captions`` true captions and a wrong one in the style of each.

    A wrong caption differs by one of ``changes``, any of ``language.CHANGES`` by default; scenes are the split's own.
    """
    _require_biased(split)
    chosen = CHANGES if changes is None else tuple(changes)
    world = World(split, seed, cooccurrence, noise, paraphrase, captions=captions, changes=chosen)
    return Dataset(f"tabletop hallucinations {split}", Made(world.hallucinated_image, size))


def _require_biased(split: str) -> None:
    if split in APART:
        raise ValueError(
            f"split={split!r}: partners never meet there, so that its pairs would tell what a method is to find out; "
            "wanted train, or val and test to measure"
        )
