"""Words for COCO's categories: our table, the official one, and how words are made singular."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hialign.benchmarks.vocabulary import (
    COCO,
    built_in,
    chair_file,
    closed,
    pattern_singular,
    plurals,
    refined_file,
    tokens,
)

Official = Callable[[str], Any]


def found(text: str) -> list[str]:
    """The categories that a text names by our own table, in order."""
    table = built_in()
    return [mention.node for mention in table.mentions(table.merge(closed(table)(text)))]


def test_every_category_of_coco_stands_for_itself_and_no_word_stands_for_two():
    table = built_in()
    assert len(COCO) == 80
    assert all(table.node(category) == category for category in COCO)
    names = [name.replace("_", " ") for category, names in COCO.items() for name in [category, *names.split()]]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Two buses, a bus and ties.", ["bus", "bus", "tie"]),
        ("Men, women and children with knives", ["person", "person", "person", "knife"]),
        ("Geese, oxen, mice, ponies and puppies.", ["bird", "cow", "mouse", "horse", "dog"]),
        ("A hot dog and a dog", ["hot dog", "dog"]),
        ("A toilet seat; the toilet has a seat and a chair.", ["toilet", "toilet", "chair"]),
        ("A seat near the window", ["chair"]),
        ("home plate, a plate, train tracks and a passenger train", ["train"]),
        ("A baby zebra, an adult elephant and an adult", ["zebra", "elephant", "person"]),
        ("three wine glasses and a glass", ["wine glass"]),
        ("", []),
    ],
)
def test_things_are_found_in_captions(text: str, wanted: list[str]):
    assert found(text) == wanted


def test_places_count_the_words_before_pairs_were_merged():
    table = built_in()
    merged = table.merge(closed(table)("a hot dog on a fire hydrant"))
    assert [word for word, _ in merged] == ["a", "hot dog", "on", "a", "fire hydrant"]
    assert [mention.place for mention in table.mentions(merged)] == [1, 5]


def test_pairs_are_merged_greedily_from_the_left():
    table = built_in()
    assert [word for word, _ in table.merge(["hot", "dog", "hot", "hot", "dog"])] == ["hot dog", "hot", "hot dog"]


def test_plurals_by_hand():
    assert plurals("bus") == ["buss", "buses"]
    assert plurals("puppy") == ["puppys", "puppies"]
    assert plurals("monkey") == ["monkeys"]
    assert plurals("policeman") == ["policemans", "policemen"]


def test_words_are_cut_as_the_official_tokenizer_does(official: Official):
    for entry in official("chair/expected_tokens.json"):
        assert tokens(entry["caption"]) == entry["tokens"]


def test_the_singular_is_that_of_pattern_with_its_faults(official: Official):
    table = official("chair/pattern36_singularize_table.json")
    assert len(table) == 840
    assert {word: pattern_singular(word) for word in table} == table
    for entry in official("chair/expected_tokens.json"):
        assert [pattern_singular(word) for word in entry["tokens"]] == entry["pattern_singular"]


def test_the_official_file_keeps_its_dead_names_and_the_refined_one_has_none(tmp_path: Path):
    file = tmp_path / "synonyms.txt"
    file.write_text("motorcycle, scooter,  motor bike, dirt bike\noven, stove \n\n")
    assert set(chair_file(str(file)).nodes) == {"motorcycle", "scooter", " motor bike", "dirt bike", "oven", "stove"}
    assert "dirt bike" not in chair_file(str(file)).pairs
    refined = refined_file(str(file))
    assert (refined.node("motor bike"), refined.pairs["dirt bike"]) == ("motorcycle", "dirt bike")


def test_our_table_and_the_official_one_agree_where_both_have_a_word(annotations: Path):
    theirs, ours = chair_file(str(annotations / "chair/synonyms.txt")).nodes, built_in().nodes
    both = theirs.keys() & ours.keys()
    assert len(both) > 300
    assert {word: theirs[word] for word in both} == {word: ours[word] for word in both}


def test_in_real_captions_our_table_finds_what_the_official_one_does(annotations: Path):
    """But for "motor bike", dead there; a surfer and a tourist, not there; and a trolley, a bus there."""
    theirs = chair_file(str(annotations / "chair/synonyms.txt"))
    words = closed(theirs)
    lines = (annotations / "coco/caps_boxes_coco2014_val_80.jsonl").read_text().splitlines()
    captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    apart = [
        caption
        for caption in captions
        if found(caption) != [mention.node for mention in theirs.mentions(theirs.merge(words(caption)))]
    ]
    assert (len(captions), len(apart)) == (401, 4)


def test_a_category_that_the_table_lacks_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no 'unicorn'"):
        built_in().node("unicorn")
    with pytest.raises(ValueError, match=r"synonyms.txt: no such file; wanted CHAIR's synonyms.txt"):
        chair_file(str(tmp_path / "synonyms.txt"))
