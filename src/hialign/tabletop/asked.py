"""What a model is asked about scenes, and what its answers are worth: POPE's way, by topic, and by name alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hialign.benchmarks import pope
from hialign.tabletop.language import DESCRIBE, TOPICS, existence_question, phrase, plain, question
from hialign.tabletop.world import COLOURS, KINDS, PARTNER, PLACES, Scene, Thing, sample, scene_id

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


def pope_questions(split: str, size: int, *, seed: int) -> list[Asked]:
    """After up to three kinds that are there, and for each after one that is not, chosen in POPE's three ways.

    ``random``: any; ``popular``: the most frequent of the world; ``adversarial``: the one that is most often seen with
    the kind that is there, its partner first. No kind is asked after twice in a way. A question that several ways share
    is asked once, and counts in each.

    Source: Li et al. 2023, arXiv:2305.10355, section 4.1.
    Differs: scenes with fewer than three kinds are asked after those they have.
    """
    asked = []
    for index in range(size):
        scene = sample(split, index, seed=seed)
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
    """POPE's numbers for each split and way, as ``split/way/number``; ``answers`` by the questions' ids."""
    scores: dict[str, float] = {}
    for group in dict.fromkeys(group for one in asked for group in one.groups):
        pairs = [(answers[one.id], one.answer == "yes") for one in asked if group in one.groups]
        scores |= {f"{group}/{name}": value for name, value in pope.score(pairs).items()}
    return scores


def topic_questions(split: str, size: int, *, seed: int) -> list[Asked]:
    """One question of each topic on each scene that has something to ask; yes and no are as likely after existence."""
    asked = []
    for index in range(size):
        scene = sample(split, index, seed=seed)
        rng = scene.rng(_TOPIC)
        for topic in TOPICS:
            one = question(scene, topic, rng, positive_bias=0.5)
            if one is not None:
                name, groups = f"{scene_id(split, index)}/{topic}", (f"{split}/{topic}", f"{split}/all")
                asked.append(Asked(name, split, index, one.text, one.answer, groups))
    return asked


def topic_scores(asked: Sequence[Asked], answers: Mapping[str, str]) -> dict[str, float]:
    """The share of right answers for each split and topic, as ``split/topic``, and ``split/all`` of all questions.

    An answer is right when it is the truth, but for case, blanks and a full stop: the world's answers have one form.
    """
    groups = sorted(dict.fromkeys(group for one in asked for group in one.groups), key=_place)
    right = {one.id: plain(answers[one.id]).removesuffix(".").rstrip() == one.answer for one in asked}
    members = {group: [right[one.id] for one in asked if group in one.groups] for group in groups}
    return {group: sum(hits) / len(hits) for group, hits in members.items()}


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
