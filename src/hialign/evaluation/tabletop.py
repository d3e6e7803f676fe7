"""The embedded world's benchmarks: what a model makes up, against a truth that is known exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from hialign.benchmarks import pope
from hialign.benchmarks.intervals import Interval, by_scene, wilson
from hialign.benchmarks.scores import Scores, shares
from hialign.data import CaptionedImage
from hialign.data.vqa import SHORT_ANSWER
from hialign.evaluation.asking import Query, ask
from hialign.evaluation.embedded import embedded_images, embedded_texts
from hialign.evaluation.report import HIGH, LOW
from hialign.evaluation.subject import Subject
from hialign.tabletop.asked import (
    ATTRIBUTES,
    Asked,
    descriptions,
    is_right,
    lone_scenes,
    pope_questions,
    pope_scores,
    pope_statistic,
    pope_units,
    prompts,
    topic_questions,
    topic_scores,
    topic_units,
)
from hialign.tabletop.chair import attribute_counts, attributes, chair, chair_counts
from hialign.tabletop.language import DESCRIBE, mark
from hialign.tabletop.records import Drawn, World
from hialign.tabletop.render import NOISE
from hialign.tabletop.scores import zero_shot
from hialign.tabletop.world import APART, COOCCURRENCE, KINDS, Scene, scene_id

SEED = 1  # the scenes of seed 0 were looked at while the world was made
RUN = "run"  # a setting that follows the data which the model was trained on
OWN = {"noise": NOISE, "cooccurrence": COOCCURRENCE}  # the world's, for models that were trained on other data
Settings = Mapping[str, float | None]
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Shown:
    """The scenes that are shown: ``size`` of each split, their pictures as hard to read as ``noise`` says.

    ``noise`` and ``cooccurrence`` are ``run``, which is what the run's data have, or numbers of their own; where the
    run has other data, ``run`` is the world's own. With ``cooccurrence`` None kinds are independent. The splits where
    partners never meet have no use for it. Both are printed, and stand among the scores.
    """

    splits: Sequence[str] = ("test", "counterfactual")
    size: int = 300
    seed: int = SEED
    noise: float | str = RUN
    cooccurrence: float | str | None = RUN
    max_new_tokens: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.splits, str) or not self.splits:
            raise ValueError(f"splits: got {self.splits!r}, wanted a list, such as [test, counterfactual]")
        at_least("size", self.size, 1, "scene of each split")
        at_least("max_new_tokens", self.max_new_tokens, 1, "token of an answer")
        given = {"noise": self.noise, "cooccurrence": self.cooccurrence}
        self.worlds({name: OWN[name] if value == RUN else number(name, value) for name, value in given.items()})

    def worlds(self, settings: Settings) -> dict[str, World]:
        """What draws each split; a ValueError where there is no such world."""
        noise, cooccurrence = settings["noise"], settings["cooccurrence"]
        assert noise is not None
        return {
            split: World(split, self.seed, COOCCURRENCE if split in APART else cooccurrence, noise)
            for split in self.splits
        }

    def settings(self, subject: Subject, name: str) -> dict[str, float | None]:
        """The noise and the co-occurrence that are used, which are printed."""
        return settled(subject, name, {"noise": self.noise, "cooccurrence": self.cooccurrence})

    def ask(
        self,
        subject: Subject,
        name: str,
        asked: Sequence[Asked],
        question: Callable[[Asked], str | None],
        settings: Settings,
    ) -> dict[str, str]:
        """The model's answers by the questions' ids."""
        worlds = self.worlds(settings)
        queries = [
            Query(one.id, partial(_pixels, subject, worlds[one.split], one.index), question(one)) for one in asked
        ]
        made_by = {"seed": self.seed, **settings}
        return ask(subject, name, queries, max_new_tokens=self.max_new_tokens, made_by=made_by)

    def scenes(self, settings: Settings) -> dict[str, list[Scene]]:
        """The scenes of each split."""
        return {split: [world.scene(i) for i in range(self.size)] for split, world in self.worlds(settings).items()}


def number(name: str, value: float | str | None) -> float | None:
    """``value``, which is no word."""
    if isinstance(value, str):
        raise ValueError(f"{name}: got {value!r}, wanted a number, or {RUN} for that of the run's data")
    return value


def settled(subject: Subject, benchmark: str, given: Mapping[str, float | str | None]) -> dict[str, float | None]:
    """Numbers for what is ``given``, the run's where that is ``run``; prints them with where they are from."""
    found: dict[str, float | None] = {}
    told = []
    for name, value in given.items():
        if value != RUN:
            found[name], source = number(name, value), "as set"
        elif name in subject.world:
            found[name], source = subject.world[name], "the run's"
        else:
            found[name], source = OWN[name], "the world's own: the run's data have none"
        told.append(f"{name} {found[name]} ({source})")
    print(f"{benchmark}: {', '.join(told)}", flush=True)
    return found


def at_least(name: str, value: int, least: int, what: str) -> None:
    """Nothing, or a ValueError that names the setting."""
    if value < least:
        raise ValueError(f"{name}: got {value}, wanted {least} {what} or more")


def _pixels(subject: Subject, world: World, index: int) -> Tensor:
    return subject.language.pixels(world.captioned_image(index))[0]


@dataclass(frozen=True)
class TabletopCaptions(Shown):
    """What greedy captions of scenes claim: for each split the numbers of ``chair`` and of ``attributes``.

    ``question`` is asked where the model's template has room for one; None shows the image alone.
    """

    max_new_tokens: int = 80
    question: str | None = DESCRIBE
    samples: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("samples", self.samples, 0, "captions to print of each split")

    def __call__(self, subject: Subject) -> Scores:
        """The scores as ``split/number``, with the ends of their 95 % intervals over scenes.

        Prints some captions of each split, with what is not there in asterisks.
        """
        settings = self.settings(subject, "tabletop_captions")
        asked = [one for split in self.splits for one in descriptions(split, self.size)]
        question = self.question if subject.language.asks else None
        answers = self.ask(subject, "tabletop_captions", asked, lambda _: question, settings)
        scenes, scores = self.scenes(settings), dict(settings)
        units: dict[str, dict[str, float]] = {}
        for split in self.splits:
            pairs = [(answers[one.id], scenes[split][one.index]) for one in asked if one.split == split]
            for text, scene in pairs[: self.samples]:
                print(f"{split}: {mark(text, set(KINDS) - scene.kinds)}")
            scores |= {f"{split}/{name}": value for name, value in caption_numbers(pairs).items()}
            units |= caption_units(split, pairs)
        return Scores(numbers=scores, units=units, statistic=shares, settings=settings)


def caption_units(split: str, pairs: Sequence[tuple[str, Scene]]) -> dict[str, dict[str, float]]:
    """The counts of ``caption_numbers`` by scene, as ``shares`` takes them."""
    units: dict[str, dict[str, float]] = {}
    for index, (text, scene) in enumerate(pairs):
        counts = chair_counts(text, scene) | attribute_counts(text, scene)
        unit = units[scene_id(split, index)] = {}
        for name, (hits, number) in counts.items():
            unit[f"{split}/{name}/hits"], unit[f"{split}/{name}/of"] = hits, number
    return units


def caption_numbers(pairs: Sequence[tuple[str, Scene]]) -> dict[str, float]:
    """The numbers of ``chair`` and of ``attributes`` of captions, each with its scene; behind shares their ends."""
    counts = [{**chair_counts(text, scene), **attribute_counts(text, scene)} for text, scene in pairs]
    shares = [{name: count for name, count in one.items() if name != "mentions"} for one in counts]  # that is none
    return with_ends({**chair(pairs).numbers(), **attributes(pairs)}, by_scene(shares))


def with_ends(numbers: Mapping[str, float], intervals: Mapping[str, Interval]) -> dict[str, float]:
    """The numbers, and behind each that has an interval its ends."""
    found: dict[str, float] = {}
    for name, value in numbers.items():
        found[name] = value
        if name in intervals:
            found[f"{name}{LOW}"], found[f"{name}{HIGH}"] = intervals[name]
    return found


@dataclass(frozen=True)
class TabletopPope(Shown):
    """POPE's numbers for each split and each way of choosing what is not there, by ``asked.pope_questions``."""

    def __call__(self, subject: Subject) -> Scores:
        """The scores as ``split/way/number``."""
        settings = self.settings(subject, "tabletop_pope")
        asked = [one for split, scenes in self.scenes(settings).items() for one in pope_questions(split, scenes)]
        answers = self.ask(subject, "tabletop_pope", asked, short, settings)
        return Scores(
            numbers={**settings, **pope_scores(asked, answers)},
            units=pope_units(asked, answers),
            statistic=pope_statistic,
            settings=settings,
            correct={one.id: pope.says_yes(answers[one.id]) == (one.answer == "yes") for one in asked},
        )


@dataclass(frozen=True)
class TabletopVqa(Shown):
    """The share of right short answers by topic, by ``asked.topic_questions``."""

    def __call__(self, subject: Subject) -> Scores:
        """The scores as ``split/topic``, beside each what the most frequent answer would get."""
        settings = self.settings(subject, "tabletop_vqa")
        asked = [one for split, scenes in self.scenes(settings).items() for one in topic_questions(split, scenes)]
        answers = self.ask(subject, "tabletop_vqa", asked, short, settings)
        return Scores(
            numbers={**settings, **topic_scores(asked, answers)},
            units=topic_units(asked, answers),
            statistic=shares,
            settings=settings,
            correct={one.id: is_right(one, answers[one.id]) for one in asked},
        )


def short(asked: Asked) -> str:
    """The question as the world's training sets put it where a word or two are the answer."""
    return f"{asked.text}\n{SHORT_ANSWER}"


@dataclass(frozen=True)
class TabletopZeroShot:
    """How often the CLIP towers give one thing alone on the table its kind, its colour and its place.

    ``size`` tables, as hard to read as ``noise`` says: ``run`` or a number, as for ``Shown``.
    """

    size: int = 300
    seed: int = SEED
    noise: float | str = RUN

    def __post_init__(self) -> None:
        Shown(size=self.size, seed=self.seed, noise=self.noise)  # checks them

    def __call__(self, subject: Subject) -> Numbers:
        """The scores by attribute with the ends of their 95 % intervals, and beside each what guessing would get."""
        settings = settled(subject, "tabletop_zero_shot", {"noise": self.noise})
        noise = settings["noise"]
        assert noise is not None
        scenes = lone_scenes(self.size, seed=self.seed)
        records = [CaptionedImage(f"lone-{i}", Drawn(scene, noise), ("",)) for i, scene in enumerate(scenes)]
        found = zero_shot(embedded_images(subject, records), embedded_texts(subject, prompts(), records[0]), scenes)
        chance = {f"{name}_chance": 1 / len(values) for name, values in ATTRIBUTES.items()}
        ends = {name: wilson(value, self.size) for name, value in found.items()}
        return {**settings, "scenes": float(self.size), **with_ends(found, ends), **chance}
