"""HALVA's files: where the phrases lie, and that sides that do not match are never paired."""

import json

import pytest

from hialign.data import Answer, BadRecord, Turn, halva_preferences
from hialign.data.halva import phrase_spans
from hialign.data.layouts import masked


def entry(number, **changes):
    return {
        "id": str(number),
        "image": f"vg/VG_100K_2/{1 + number % 2}.jpg",
        "tag": ("closed", "open")[number % 2],
        "question": "<image>\nDescribe the image.",
        "correct_answer": "A man is lying on a bed.",
        "correct_answer_masked": "A <MASK> man </MASK> is lying on a <MASK> bed </MASK>.",
        "hallucinated_answer": "A dog is lying on a couch.",
        "hallucinated_answer_masked": "A <MASK> dog </MASK> is lying on a <MASK> couch </MASK>.",
    } | changes


def asked(number, truth):
    wrong = {"Yes": "No", "No": "Yes"}[truth]
    return entry(
        number,
        tag="qa",
        raw_answer=truth.lower(),
        correct_answer=f"{truth}.",
        correct_answer_masked=f"<MASK> {truth} </MASK>.",
        hallucinated_answer=f"{wrong}.",
        hallucinated_answer_masked=f"<MASK> {wrong} </MASK>.",
    )


@pytest.fixture
def halva(tmp_path, write_image):
    """A function: entries -> the arguments of halva_preferences, with the images 1 and 2 there."""

    def make(entries):
        for image in ("1.jpg", "2.jpg"):
            write_image(tmp_path / "genome" / "VG_100K_2" / image)
        (tmp_path / "data.json").write_text(json.dumps(entries))
        return {"annotations": str(tmp_path / "data.json"), "images": {"vg": str(tmp_path / "genome")}}

    return make


def test_phrases_are_where_the_masks_were(halva):
    data = halva_preferences(**halva([entry(i) for i in range(5)]))
    record = data.records[3]
    assert (record.id, record.images[0].name, record.turns) == (
        "3",
        "2.jpg",
        (Turn("<image>\nDescribe the image.", ""),),
    )
    assert record.chosen == Answer("A man is lying on a bed.", ((2, 5), (20, 23)))
    assert record.rejected == Answer("A dog is lying on a couch.", ((2, 5), (20, 25)))
    assert [record.rejected.text[start:end] for start, end in record.rejected.phrases] == ["dog", "couch"]
    assert len(data) == 5


@pytest.mark.parametrize(
    ("text", "masked", "phrases"),
    [
        ("a b c", "<MASK>a</MASK> b <MASK> c </MASK>", ["a", "c"]),
        ("a  red   cup", "a <MASK> red cup </MASK>", ["red   cup"]),
        ("the dog's bed", "the <MASK> dog</MASK>'s bed", ["dog"]),
        ("ab", "<MASK>a</MASK><MASK>b</MASK>", ["a", "b"]),
        ("two men, one dog", "<MASK> two </MASK> men, <MASK> one dog </MASK>", ["two", "one dog"]),
    ],
)
def test_white_space_around_masks_does_not_count(text, masked, phrases):
    assert [text[start:end] for start, end in phrase_spans(text, masked)] == phrases


def test_masks_as_they_are_made_here_give_the_phrases_that_they_were_made_of():
    text = "Two men, one dog and a bed."
    for spans in ([(0, 3)], [(4, 7), (9, 12)], [(0, 7), (9, 16), (23, 26)], [(0, 27)]):
        assert phrase_spans(text, masked(text, spans)) == tuple(spans)


@pytest.mark.parametrize(
    ("marks", "problem"),
    [
        ("a b", "its marks are none"),
        ("<MASK> a b", "its marks are <MASK>$"),
        ("</MASK> a <MASK> b", "its marks are </MASK> <MASK>"),
        ("<MASK> a <MASK> b </MASK> </MASK>", "its marks are <MASK> <MASK> </MASK> </MASK>"),
        ("<MASK> </MASK> a b", "a phrase is empty"),
        ("<MASK> a </MASK> c", "says something else than 'a b'"),
    ],
)
def test_masks_that_are_not_closed_around_words_of_the_answer_are_named(marks, problem):
    with pytest.raises(ValueError, match=problem):
        phrase_spans("a b", marks)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"correct_answer_masked": "A <MASK> man </MASK> is lying on a bed."}, "has 1 phrases and hallucinated.* 2"),
        ({"correct_answer_masked": "A man is lying on a bed."}, "correct_answer_masked: its marks are none"),
        ({"hallucinated_answer_masked": "A <MASK> cat </MASK> sits."}, "hallucinated_answer_masked: .* something else"),
        ({"hallucinated_answer": None}, "hallucinated_answer=None"),
        ({"question": "Describe the image."}, "0 placeholders <image> and 1 images"),
        ({"image": "vg/VG_100K_2/9.jpg"}, "an image is missing"),
        ({"image": "coco/1.jpg"}, "image 'coco/1.jpg' is in none of the folders vg"),
        ({"tag": "qa"}, "raw_answer=None beside tag='qa'"),
        (
            {
                "hallucinated_answer": "A man is lying on a bed.",
                "hallucinated_answer_masked": "A <MASK> man </MASK> is lying on a <MASK> bed </MASK>.",
            },
            "chosen and rejected are the same",
        ),
    ],
)
def test_a_bad_record_raises_or_is_listed_while_the_others_stay(halva, changes, problem):
    arguments = halva([entry(0), entry(1, id="x") | changes, entry(2)])
    with pytest.raises(BadRecord, match=problem) as caught:
        halva_preferences(**arguments)
    assert caught.value.record in ("x", "x (record 1)")
    data = halva_preferences(**arguments, on_error="skip")
    assert ([r.id for r in data.records], [s.record for s in data.skipped]) == (["0", "2"], [caught.value.record])


def test_as_many_questions_are_answered_yes_as_no_and_those_left_out_are_listed(halva):
    entries = [entry(0), *(asked(i, "Yes") for i in range(1, 8)), *(asked(i, "No") for i in range(8, 11))]
    arguments = halva(entries)
    data = halva_preferences(**arguments)
    kept = [record.chosen.text for record in data.records]
    assert (kept.count("Yes."), kept.count("No."), len(data)) == (3, 3, 7)
    assert {s.record for s in data.skipped} == {str(i) for i in range(1, 8)} - {r.id for r in data.records}
    assert "commoner of yes and no" in data.skipped[0].problem
    others = halva_preferences(**arguments, split_seed=1)
    assert {r.id for r in others.records} != {r.id for r in data.records}
    assert len(halva_preferences(**arguments, balance=False)) == 11


def test_what_the_files_must_be_is_said(halva, tmp_path):
    with pytest.raises(ValueError, match=r"x.json: no such file; get HALVA's data.json"):
        halva_preferences(str(tmp_path / "x.json"), str(tmp_path))
    with pytest.raises(BadRecord, match="top level: a dict instead of a list; wanted HALVA's format"):
        halva_preferences(**halva({"id": 1}))
