"""What a model is asked about scenes, and what its answers are worth: POPE's way, by topic, and by name alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hialign.benchmarks import pope
from hialign.benchmarks.scores import Columns
from hialign.tabletop.language import DESCRIBE, TOPICS, existence_question, phrase, plain, question
from hialign.tabletop.world import COLOURS, KINDS, PARTNER, PLACES, Scene, Thing, scene_id

_POPE, _TOPIC, _LONE = 20, 21, 22  # what a scene's generators are for
_POSITIVES = 3  # of a scene, as POPE has it


@dataclass(frozen=True)
class Asked:
    """One question on scene ``index`` of ``split``; ``groups`` are the scores that its answer counts in."""

    id: str
    split: str
    index: int
    text: str
    answer: str
    groups: tuple[str, ...]


def descriptions(split: str, size: int) -> list[Asked]:
    """One request to describe each scene; what an answer is worth, ``chair`` says."""
    return [Asked(scene_id(split, index), split, index, DESCRIBE, "", (split,)) for index in range(size)]


def pope_questions(split: str, scenes: Sequence[Scene]) -> list[Asked]:
    """After up to three kinds that are there, and for each after one that is not, chosen in POPE's three ways.

    ``random``: any; ``popular``: the most frequent of the world; ``adversarial``: the one that is most often seen with
    the kind that is there. No kind is asked after twice in a way. A question that several ways share is asked once, and
    counts in each.

    In this world a biased training set shows a kind with its partner, and with all others as often as these are met at
    all: so most often seen with a kind are its partner, then the most frequent kinds. Where the partner is there too,
    as nearly always on ``test``, what is adversarial is what is popular: of 300 scenes, 98 % of the absent kinds asked
    after are the same, on ``counterfactual`` 43 %. ``pope_scores`` measures it beside the scores.

    Source: Li et al. 2023, arXiv:2305.10355, section 4.1.
    Differs: scenes with fewer than three kinds are asked after those they have; how often kinds are met, alone and
    together, is how the world is made, not counted, ties in the order of ``KINDS``.
    """
    asked = []
    for index, scene in enumerate(scenes):
        ways: dict[str, list[str]] = {}
        for category in pope.CATEGORIES:
            for kind in _kinds(scene, category):
                ways.setdefault(kind, []).append(f"{split}/{category}")
        for kind, groups in ways.items():
            answer = "yes" if kind in scene.kinds else "no"
            name = f"{scene_id(split, index)}/{kind}"
            asked.append(Asked(name, split, index, existence_question(kind), answer, tuple(groups)))
    return asked


def _kinds(scene: Scene, category: str) -> list[str]:
    there = list(dict.fromkeys(thing.kind for thing in scene.things))[:_POSITIVES]
    absent = [kind for kind in KINDS if kind not in scene.kinds]  # the most frequent first, as KINDS are
    if category == "random":
        chosen = [absent[i] for i in scene.rng(_POPE).permutation(len(absent))]
    elif category == "popular":
        chosen = absent
    else:
        chosen = []
        for kind in there:
            rest = [other for other in absent if other not in chosen]
            chosen.append(PARTNER[kind] if PARTNER[kind] in rest else rest[0])
    return there + chosen[: len(there)]


def pope_scores(asked: Sequence[Asked], answers: Mapping[str, str]) -> dict[str, float]:
    """POPE's numbers for each split and way, as ``split/way/number``; ``answers`` by the questions' ids.

    ``split/adversarial/as_popular`` is the share of the absent kinds which the popular way asks after too: near 1, the
    two ways are one.
    """
    scores: dict[str, float] = {}
    for group in dict.fromkeys(group for one in asked for group in one.groups):
        members = [one for one in asked if group in one.groups]
        numbers = pope.score([(answers[one.id], one.answer == "yes") for one in members])
        if group.endswith("/adversarial"):
            popular = group.replace("/adversarial", "/popular")
            absent = [one for one in members if one.answer == "no"]
            numbers["as_popular"] = sum(popular in one.groups for one in absent) / len(absent)
        scores |= {f"{group}/{name}": value for name, value in numbers.items()}
    return scores


def pope_units(asked: Sequence[Asked], answers: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """What each scene adds to ``pope_statistic``'s counts, by scene."""
    units: dict[str, dict[str, float]] = {}
    for one in asked:
        unit = units.setdefault(scene_id(one.split, one.index), {})
        cell = pope.cell(pope.says_yes(answers[one.id]), one.answer == "yes")
        for group in one.groups:
            unit[f"{group}/{cell}"] = unit.get(f"{group}/{cell}", 0) + 1
    return units


def pope_statistic(sums: Columns) -> dict[str, np.ndarray]:
    """``pope.yes_numbers`` of each split and way, from counts of ``pope_units``."""
    found: dict[str, np.ndarray] = {}
    for group in dict.fromkeys(name.rsplit("/", 1)[0] for name in sums):
        numbers = pope.yes_numbers(*(sums.get(f"{group}/{cell}", 0.0) for cell in pope.CELLS))
        found |= {f"{group}/{name}": value for name, value in numbers.items()}
    return found


def topic_questions(split: str, scenes: Sequence[Scene]) -> list[Asked]:
    """One question of each topic on each scene that has something to ask.

    Scene after scene, existence is asked for what is not there and for what is, in turns: half of the answers are yes.
    """
    asked = []
    for index, scene in enumerate(scenes):
        rng = scene.rng(_TOPIC)
        for topic in TOPICS:
            one = question(scene, topic, rng, positive_bias=float(index % 2))
            if one is not None:
                name, groups = f"{scene_id(split, index)}/{topic}", (f"{split}/{topic}", f"{split}/all")
                asked.append(Asked(name, split, index, one.text, one.answer, groups))
    return asked


def topic_scores(asked: Sequence[Asked], answers: Mapping[str, str]) -> dict[str, float]:
    """The share of right answers for each split and topic, as ``split/topic``, and ``split/all`` of all questions.

    An answer is right when it is the truth, but for case, blanks and a full stop: the world's answers have one form.
    Beside each, ``split/topic/most_frequent`` is what the most frequent answer to the topic would get, always given;
    for ``split/all`` the most frequent answer to each topic.
    """
    groups = sorted(dict.fromkeys(group for one in asked for group in one.groups), key=_place)
    right = {one.id: is_right(one, answers[one.id]) for one in asked}
    scores: dict[str, float] = {}
    for group in groups:
        members = [one for one in asked if group in one.groups]
        scores[group] = sum(right[one.id] for one in members) / len(members)
        scores[f"{group}/most_frequent"] = _guessed(members) / len(members)
    return scores


def is_right(one: Asked, answer: str) -> bool:
    """Whether the answer is the truth, but for case, blanks and a full stop."""
    return plain(answer).removesuffix(".").rstrip() == one.answer


def topic_units(asked: Sequence[Asked], answers: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """How many questions of each topic were answered rightly, of how many, by scene, as ``shares`` takes them."""
    units: dict[str, dict[str, float]] = {}
    for one in asked:
        unit = units.setdefault(scene_id(one.split, one.index), {})
        for group in one.groups:
            unit[f"{group}/hits"] = unit.get(f"{group}/hits", 0) + is_right(one, answers[one.id])
            unit[f"{group}/of"] = unit.get(f"{group}/of", 0) + 1
    return units


def _guessed(asked: Sequence[Asked]) -> int:
    """How many answers are the most frequent one of their topic."""
    by_topic: dict[str, Counter[str]] = {}
    for one in asked:
        by_topic.setdefault(one.groups[0], Counter())[one.answer] += 1
    return sum(max(answers.values()) for answers in by_topic.values())


def _place(group: str) -> tuple[str, int]:
    split, topic = group.split("/")
    return split, (*TOPICS, "all").index(topic)


EVERY = tuple(Thing(kind, colour, "large", place, "whole") for kind in KINDS for colour in COLOURS for place in PLACES)
ATTRIBUTES = {"kind": KINDS, "colour": COLOURS, "place": PLACES}


def lone_scenes(number: int, *, seed: int) -> list[Scene]:
    """Scenes of one large and whole thing each, all kinds, colours and places as likely as each other."""
    chosen = np.random.default_rng([seed, _LONE]).integers(len(EVERY), size=number)
    return [Scene((EVERY[i],), (seed, 1, index)) for index, i in enumerate(chosen)]


def prompts() -> list[str]:
    """A caption for each of ``EVERY``, as CLIP is asked which of them a picture shows."""
    return [f"there is {phrase(thing)} at the {thing.place}." for thing in EVERY]
