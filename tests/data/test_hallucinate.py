"""Captions become wrong in phrases that are known, and never say what a caption of the image says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hialign.data import ByModel, ByWords, CaptionedImage, Hallucinated, Left, flickr8k, layouts
from hialign.data.changes import KINDS, Statistics, options, scene, states
from hialign.data.hallucinate import differences, normalised, prompt
from hialign.data.lexicon import conjugated, families_of, named, plural, read, with_along

NO_IMAGES = Statistics([])


def record(*captions: str, name: str = "a.jpg") -> CaptionedImage:
    return CaptionedImage(name, Path(name), captions)


def found(caption: str, *others: str, kind: str) -> set[str]:
    """What the caption can become by one change of a kind."""
    captions = tuple(map(read, (caption, *others)))
    given = options(scene(captions[0], captions), NO_IMAGES).get(kind, [])
    return {caption[: option.start] + option.new + caption[option.end :] for option in given}


@pytest.mark.parametrize(
    ("kind", "caption", "one"),
    [
        ("object", "A dog runs .", "A horse runs ."),
        ("object", "Two dogs run .", "Two monkeys run ."),
        ("object", "A dog sleeps .", "An elephant sleeps ."),
        ("object", "A man is wearing a red hat .", "A man is wearing a red backpack ."),
        ("object", "Men play soccer .", "Men play tennis ."),
        ("attribute", "A girl in an orange dress", "A girl in a green dress"),
        ("attribute", "A small dog sits .", "A large dog sits ."),
        ("attribute", "An old man sits .", "A young man sits ."),
        ("attribute", "Man on a wooden bench", "Man on a metal bench"),
        ("action", "A dog runs through the snow .", "A dog crawls through the snow ."),
        ("action", "Two dogs are running in the grass .", "Two dogs are lying in the grass ."),
        ("action", "A boy is riding a bike .", "A boy is pushing a bike ."),
        ("place", "A dog runs in the snow .", "A dog runs in the forest ."),
        ("place", "A man in a green field .", "A man in an office ."),
        ("count", "Two dogs run .", "Four dogs run ."),
        ("relation", "A man in front of a car .", "A man behind a car ."),
        ("relation", "A dog jumps into the pool .", "A dog jumps out of the pool ."),
    ],
)
def test_each_kind_of_phrase_changes_with_its_article_number_and_form(kind: str, caption: str, one: str) -> None:
    assert one in found(caption, kind=kind)


@pytest.mark.parametrize(
    ("kind", "caption", "other", "never"),
    [
        ("object", "A dog and a ball", "A puppy beside a kitten", "A cat and a ball"),
        ("object", "A man sits .", "A lady sits on a bench .", "A woman sits ."),
        ("object", "A man sits .", "A little girl sits .", "A woman sits ."),
        ("object", "A man sits .", "A group of people sit .", "A woman sits ."),
        ("object", "A dog with a stick", "A dog has a frisbee .", "A dog with a ball"),
        ("attribute", "A dog in a red vest", "The vest is maroon and teal .", "A dog in a blue vest"),
        ("attribute", "A small dog sits .", "A huge dog", "A large dog sits ."),
        ("action", "A dog runs .", "A dog rests .", "A dog sits ."),
        ("action", "A dog runs .", "A dog naps .", "A dog sleeps ."),
        ("place", "A dog in the snow .", "A dog in the woods .", "A dog in the forest ."),
        ("count", "Two dogs run .", "Four dogs run .", "Four dogs run ."),
        ("count", "Two men run .", "A crowd of people run .", "Four men run ."),
        ("relation", "A man in front of a car", "A car in the foreground , behind it a man", "A man behind a car"),
    ],
)
def test_nothing_that_another_caption_states_is_offered(kind: str, caption: str, other: str, never: str) -> None:
    assert never in found(caption, kind=kind)  # but for the other caption it would be
    assert never not in found(caption, other, kind=kind)


@pytest.mark.parametrize(
    ("kind", "caption"),
    [
        ("object", "A dog house stands there ."),  # half of a compound
        ("object", "The man holds his hand up ."),  # his would not go with a woman
        ("object", "A shirtless man rests ."),
        ("object", "A boy pushes another boy ."),  # another asks for a boy before it
        ("object", "A man swings on a rope with his dog 's help ."),
        ("attribute", "A white man sits ."),
        ("attribute", "Boys in light blue"),
        ("attribute", "A little girl"),
        ("action", "The running dog"),
        ("action", "A child on the swings ."),
        ("action", "A girl stands on her head ."),
        ("action", "A girl holds a horse 's lead ."),
        ("object", "Sitting in a boat and paddling"),
        ("place", "A man swims in the lake ."),
        ("place", "A dog in a swimming pool chair ."),
        ("count", "One of the two"),
        ("relation", "A man gives in ."),
        ("relation", "A boy walks up the street ."),
    ],
)
def test_phrases_whose_neighbours_would_not_suit_another_stay_as_they_are(kind: str, caption: str) -> None:
    assert found(caption, kind=kind) == set()


def test_the_lists_hold_no_word_of_an_unknown_family_and_the_forms_are_english() -> None:
    assert [plural(word) for word in ("dog", "bus", "woman", "puppy", "scarf", "hot dog")] == [
        *("dogs", "buses", "women", "puppies", "scarves", "hot dogs")
    ]
    assert [conjugated(verb, "ing") for verb in ("run", "lie", "carry", "ride", "see", "sleep")] == [
        *("running", "lying", "carrying", "riding", "seeing", "sleeping")
    ]
    assert [conjugated(verb, "s") for verb in ("carry", "push", "play")] == ["carries", "pushes", "plays"]
    assert families_of("puppies") == families_of("dog") == {"object:dog"}
    assert "object:boy" in with_along(named([read("a man")]))


def test_statistics_are_the_smoothed_conditional_frequency() -> None:
    sets = [("a dog with a ball",), ("a dog with a ball", "a puppy"), ("a dog with a stick",), ("a cat",)]
    statistics = Statistics([tuple(map(read, captions)) for captions in sets])
    assert (statistics.images, statistics.alone["dog"], statistics.together["ball", "dog"]) == (4, 3, 2)
    prior = (2 + 1) / (4 + 4 + 1)
    assert statistics.chance("ball", ["dog"]) == pytest.approx(math.log((2 + 5 * prior) / (3 + 5)))
    assert statistics.chance("ball", []) == pytest.approx(math.log(prior))
    assert statistics.chance("ball", ["dog"]) > statistics.chance("stick", ["dog"]) > statistics.chance("kite", ["dog"])


def test_what_the_set_names_along_with_the_caption_is_drawn_more_often() -> None:
    beside = [record("A man beside a dog", "A man with a frisbee", name=f"{i}.jpg") for i in range(40)]
    asked = [record("A man with a stick", name=f"x{i}.jpg") for i in range(60)]
    made = [m for m in ByWords(kinds=["object"])([*beside, *asked], seed=0) if m.record.id.startswith("x")]
    texts = [m.text for m in made if isinstance(m, Hallucinated) and m.text.startswith("A man")]
    assert texts.count("A man with a frisbee") > 0.4 * len(texts)


def test_results_depend_on_the_seed_and_not_on_the_order_of_records() -> None:
    records = [record("A dog runs through the snow .", "Two men in red shirts", name=f"{i}.jpg") for i in range(6)]
    made = list(ByWords()(records, seed=0))
    assert made == list(ByWords()(records, seed=0))
    assert made != list(ByWords()(records, seed=1))
    turned = list(ByWords()(records[::-1], seed=0))
    assert sorted(turned, key=lambda m: (m.record.id, m.number)) == made


def test_several_changes_are_apart_and_masked_alike_on_both_sides() -> None:
    one = record("A small dog in a red vest runs in the snow in front of a car .")
    (made,) = ByWords(changes=3)([one], seed=4)
    assert isinstance(made, Hallucinated)
    assert len(made.changes) == 3
    pair = layouts.halva(made, "a.jpg", question="Describe the image.")
    for side in ("correct_answer", "hallucinated_answer"):
        masked = pair[f"{side}_masked"]
        assert masked.count("<MASK> ") == masked.count(" </MASK>") == 3
        assert masked.replace("<MASK> ", "").replace(" </MASK>", "") == pair[side]
    rebuilt, done = "", 0
    for change in made.changes:  # outside of the spans nothing differs
        rebuilt += made.caption[done : change.span[0]] + made.text[slice(*change.hallucinated_span)]
        done = change.span[1]
    assert rebuilt + made.caption[done:] == made.text


def test_a_caption_without_room_is_left_with_a_reason() -> None:
    (left,) = ByWords()([record("It is what it is .")], seed=0)
    assert isinstance(left, Left)
    assert "word lists" in left.why


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kinds": ["colour"]}, r"kinds: got \['colour'\], wanted some of object, attribute"),
        ({"kinds": []}, r"kinds: got \[\]"),
        ({"changes": 0}, "changes: got 0, wanted at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ByWords(**settings)  # type: ignore[arg-type]


def test_the_layouts_have_the_published_fields() -> None:
    made = next(iter(ByWords(kinds=["object"])([record("A dog runs .", name="b.jpg")], seed=0)))
    assert isinstance(made, Hallucinated)
    hacl = layouts.hacl(made, "images/b.jpg", question="Describe it.", dataset="flickr8k")
    assert hacl == {
        "image": "images/b.jpg",
        "text": "A dog runs .",
        "dataset_name": "flickr8k",
        "task_type": "pretrain",
        "Hallucination caption": made.text,
        "conversations": [
            {"from": "human", "value": "Describe it.\n<image>"},
            {"from": "gpt", "value": "A dog runs ."},
        ],
    }
    halva = layouts.halva(made, "images/b.jpg", question="Describe it.")
    assert (halva["tag"], halva["question"], halva["id"]) == ("closed", "<image>\nDescribe it.", "b.jpg#0")
    ours = layouts.everything(made, "images/b.jpg")
    (change,) = ours["changes"]
    assert change["kind"] == "object"
    assert ours["hallucinated"][slice(*change["hallucinated_span"])] == change["to"]
    assert ours["caption"][slice(*change["span"])] == change["from"]
    assert json.loads(json.dumps(ours)) == ours


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("A dog runs .", "A cat runs.", [(2, 5, "cat")]),
        ("A dog runs .", "A dog runs!", []),
        ("A dog runs .", "A black dog runs .", [(0, 1, "A black")]),
        ("A black dog runs .", "A dog runs .", [(0, 7, "A")]),
        ("Dogs run .", "Two dogs run .", [(0, 4, "Two dogs")]),
        ("A man runs with his dog", "A woman runs with her dog", [(2, 5, "woman"), (16, 19, "her")]),
        ("A man runs", "", []),
    ],
)
def test_differences_are_phrases_on_both_sides(old: str, new: str, wanted: list[tuple[int, int, str]]) -> None:
    assert differences(old, new) == wanted


@pytest.mark.parametrize(
    ("phrase", "old", "stated"),
    [
        ("puppy", "man", True),
        ("animal", "man", True),
        ("horse", "dog", False),
        ("crimson", "red", True),
        ("running", "sitting", True),
        ("sleeping", "running", False),
        ("behind", "in front of", False),
        ("in front of", "behind", True),
        ("three", "two", False),
    ],
)
def test_synonyms_and_wider_words_count_as_stated(phrase: str, old: str, stated: bool) -> None:
    captions = tuple(map(read, ["A man and a dog run in front of a red car .", "Two of them"]))
    assert states(phrase, old, captions) is stated


class Scripted:
    """Replies by a function, which counts what it was asked."""

    name = "scripted"
    at_once = 2

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.asked: list[str] = []

    def __call__(self, prompts: Sequence[str]) -> Iterator[str]:
        for text in prompts:
            self.asked.append(text)
            yield self.lines[min(len(self.asked), len(self.lines)) - 1]


def test_a_model_s_reply_becomes_the_caption_with_its_phrases(tmp_path: Path) -> None:
    ask = Scripted('Sentence: "A horse runs in the snow."')
    (made,) = ByModel(ask, str(tmp_path / "r.jsonl"), kinds=["object"])([record("A dog runs in the snow .")], seed=0)
    assert isinstance(made, Hallucinated)
    assert made.text == "A horse runs in the snow ."
    assert [(c.kind, made.text[slice(*c.hallucinated_span)]) for c in made.changes] == [("object", "horse")]
    assert ask.asked == [prompt(made.record, 0, "object")]


def test_the_kind_is_what_the_words_say_when_the_model_did_something_else(tmp_path: Path) -> None:
    ask = Scripted("A dog runs in the kitchen .")
    (made,) = ByModel(ask, str(tmp_path / "r.jsonl"), kinds=["object"])([record("A dog runs in the snow .")], seed=0)
    assert isinstance(made, Hallucinated)
    assert made.changes[0].kind == "place"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "repeated the caption or said nothing"),
        ("a dog runs in the snow", "repeated the caption or said nothing"),
        ("A puppy runs in the snow .", "named what a caption of the image names"),
        ("A cat runs in the snow .", "named what a caption of the image names"),
        ("Once there was a castle on top of everything else", "another sentence"),
        ("A horse runs on the mud .", "more than 2 phrases"),
    ],
)
def test_a_reply_that_is_no_hallucination_is_refused_with_a_reason(tmp_path: Path, reply: str, why: str) -> None:
    one = record("A dog runs in the snow .", "A kitten")
    left, _ = ByModel(Scripted(reply), str(tmp_path / "r.jsonl"), tries=2)([one], seed=0)
    assert isinstance(left, Left)
    assert why in left.why


def test_a_refused_reply_is_asked_for_again_with_another_kind(tmp_path: Path) -> None:
    ask = Scripted("nonsense", "A horse runs in the snow .")
    (made,) = ByModel(ask, str(tmp_path / "r.jsonl"))([record("A dog runs in the snow .")], seed=0)
    assert isinstance(made, Hallucinated)
    assert len(ask.asked) == len(set(ask.asked)) == 2


def test_on_photographs_nine_captions_in_ten_become_wrong_and_none_repeats_a_reference(shared: Path) -> None:
    records = flickr8k(str(shared / "data" / "flickr8k"), holdout=0.0).records
    results = list(ByWords()(records, seed=0))
    assert len(results) == sum(len(r.captions) for r in records) == 3990
    made = [m for m in results if isinstance(m, Hallucinated)]
    assert len(made) >= 0.9 * len(results)
    assert {change.kind for m in made for change in m.changes} == set(KINDS)
    for m in made:
        assert normalised(m.text) not in {normalised(caption) for caption in m.record.captions}
        (change,) = m.changes
        new = m.text[slice(*change.hallucinated_span)]
        assert m.text == m.caption[: change.span[0]] + new + m.caption[change.span[1] :]
        captions = tuple(map(read, m.record.captions))
        kinds = {"object": "object:", "place": "place:", "action": "action:", "attribute": "colour:"}
        if change.kind in kinds:
            meant = {f for word in (new, new.split()[-1]) for f in families_of(word.lower())}
            meant = {family for family in meant if family.startswith(kinds[change.kind])}
            assert not meant & named(captions), (m.record.captions, m.text)
            assert meant or change.kind in (
                "object",
                "attribute",
                "action",
            )  # the plurals and forms of these are tried above
