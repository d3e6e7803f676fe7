"""Preferences: strings, messages and RLHF-V's columns become the same records; what is none raises or is listed."""

import json
import pickle

import numpy as np
import pytest

from hialign.data import (
    Answer,
    BadRecord,
    Conversation,
    Dataset,
    Preference,
    Skipped,
    Turn,
    chosen_answers,
    chosen_captions,
    hub_preferences,
    json_preferences,
    load_image,
    mix,
    rlhf_v_preferences,
)


def user(*parts):
    return {"role": "user", "content": list(parts)}


def said(text, role="assistant"):
    return {"role": role, "content": text}


PICTURE, WHAT = {"type": "image", "text": None}, {"type": "text", "text": "What?"}
ENTRIES = [
    {"id": "a", "images": ["1.jpg"], "prompt": "What?", "chosen": " A cup.", "rejected": "A dog. "},
    {"id": "a", "image": "1.jpg", "prompt": "What is <image>?", "chosen": "A cup.", "rejected": "A dog."},
    {"images": ["1.jpg", "2.jpg"], "prompt": "Which?", "chosen": "Both.", "rejected": "None."},
    {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
    {
        "id": 7,
        "images": ["2.jpg"],
        "prompt": [user(PICTURE, WHAT), said("A cup."), said("Red?", "user")],
        "chosen": [said("Yes.")],
        "rejected": [said([{"type": "text", "text": "No."}])],
    },
    {
        "id": 8,
        "images": ["2.jpg"],
        "chosen": [user(WHAT, PICTURE), said("A cup.")],
        "rejected": [user(WHAT, PICTURE), said("Two.")],
    },
]


@pytest.fixture
def files(tmp_path, write_image):
    """A function: entries -> the arguments of json_preferences, with the images 1 and 2 there."""

    def make(entries, name="data.json"):
        for image in ("1.jpg", "2.jpg"):
            write_image(tmp_path / "images" / image)
        lines = "\n".join(json.dumps(entry) for entry in entries)
        (tmp_path / name).write_text(lines if name.endswith("l") else json.dumps(entries))
        return {"annotations": str(tmp_path / name), "images": str(tmp_path / "images")}

    return make


def short(record):
    return [str(image).rsplit("/", 1)[-1] for image in record.images], record.turns, *(a.text for a in record.answers)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_strings_and_messages_become_the_same_kind_of_record(files, name):
    data = json_preferences(**files(ENTRIES, name))
    place = "line" if name.endswith("l") else "record"
    number = 3 if name.endswith("l") else 2
    assert {record.id: short(record) for record in data.records} == {
        "a": (["1.jpg"], (Turn("<image>\nWhat?", ""),), "A cup.", "A dog."),
        "a#2": (["1.jpg"], (Turn("What is <image>?", ""),), "A cup.", "A dog."),
        f"{place} {number}": (["1.jpg", "2.jpg"], (Turn("<image>\n<image>\nWhich?", ""),), "Both.", "None."),
        f"{place} {number + 1}": ([], (Turn("Hi", ""),), "Hello", "Go away"),
        "7": (["2.jpg"], (Turn("<image>\nWhat?", "A cup."), Turn("Red?", "")), "Yes.", "No."),
        "8": (["2.jpg"], (Turn("What?\n<image>", ""),), "A cup.", "Two."),
    }
    assert data.skipped == ()
    assert all(record.chosen.phrases == record.rejected.phrases == () for record in data.records)


def test_a_set_without_images_needs_no_folder(files):
    arguments = files([ENTRIES[3]]) | {"images": None}
    assert [record.images for record in json_preferences(**arguments).records] == [()]
    with pytest.raises(BadRecord, match=r"a \(record 0\): images=\['1.jpg'\] and no folder for them; give images="):
        json_preferences(**(files([ENTRIES[0]]) | {"images": None}))


GOOD = ENTRIES[0] | {"id": "x"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"chosen": " "}, "chosen is empty"),
        ({"rejected": ""}, "rejected is empty"),
        ({"rejected": "A  cup."}, "chosen and rejected are the same: 'A cup.'"),
        ({"chosen": "An <image>"}, "chosen contains the placeholder <image>"),
        ({"prompt": "<image> and <image>?"}, "2 placeholders <image> and 1 images"),
        ({"images": [], "prompt": "<image>?"}, "1 placeholders <image> and 0 images"),
        ({"images": ["9.jpg"]}, "an image is missing, such as .*9.jpg"),
        ({"images": ["../1.jpg"]}, "not inside"),
        ({"images": [3]}, r"images=\[3\]"),
        ({"prompt": 7}, "prompt=7; wanted a string, or messages"),
        ({"prompt": " "}, "a turn of the prompt is empty"),
        ({"prompt": [said("Be kind", "system"), said("What?", "user")]}, r"prompt\[0\]=.*system"),
        ({"prompt": [said("What?")]}, r"the prompt's roles are \['assistant'\]"),
        ({"prompt": [user({"type": "video"})]}, r"prompt\[0\]="),
        ({"chosen": [said("What?", "user")]}, "chosen does not go on from the prompt"),
        ({"chosen": [said("Who?", "user"), said("A cup.")]}, "chosen does not go on from the prompt"),
        ({"rejected": [said("A dog."), said("A cat.")]}, "rejected does not go on from the prompt"),
        ({"rejected": None}, "rejected=None"),
    ],
)
def test_a_bad_record_raises_or_is_listed_while_the_others_stay(files, change, problem):
    arguments = files([*ENTRIES[:2], GOOD | change, *ENTRIES[2:]])
    with pytest.raises(BadRecord, match=problem) as caught:
        json_preferences(**arguments)
    assert caught.value.file == arguments["annotations"]
    assert caught.value.record in ("x", "x (record 2)")
    data = json_preferences(**arguments, on_error="skip")
    assert len(data) == 6
    assert [skipped.record for skipped in data.skipped] == [caught.value.record]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [("x", "record 1: a str"), ({"chosen": "a"}, "no field 'rejected'"), ({}, "no field 'chosen'")],
)
def test_what_is_no_preference_at_all_is_named(files, entry, problem):
    with pytest.raises(BadRecord, match=problem):
        json_preferences(**files([ENTRIES[0], entry]))


def test_files_that_are_missing_are_named(files, tmp_path):
    arguments = files(ENTRIES)
    with pytest.raises(ValueError, match=r"x.json: no such file; get a json list or jsonl of {prompt, chosen"):
        json_preferences(str(tmp_path / "x.json"), None)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        json_preferences(**(arguments | {"images": str(tmp_path / "nowhere")}), on_error="skip")


def level(record, number=0):
    return int(np.asarray(load_image(record, number))[0, 0, 0])


def test_a_table_of_strings_or_of_messages_gives_the_same_records(table, cell):
    prompt = [user(PICTURE, WHAT)]
    messages = {
        "prompt": [prompt, prompt],
        "chosen": [[said([{"type": "text", "text": text}])] for text in ("A cup.", "Red.")],
        "rejected": [[said([{"type": "text", "text": text}])] for text in ("A dog.", "Blue.")],
        "images": [[cell(0)], [cell(1)]],
    }
    strings = {
        "question": ["What?", "What?"],
        "good": ["A cup.", "Red."],
        "bad": ["A dog.", "Blue."],
        "image": [cell(0), cell(1)],
    }
    names = {"prompt_column": "question", "chosen_column": "good", "rejected_column": "bad", "image_column": "image"}
    one = hub_preferences(table(messages, "messages.parquet"), split="train")
    other = hub_preferences(table(strings, "strings.parquet"), split="train", **names)
    for data in (one, other):
        assert [(r.id, r.turns, r.chosen.text, r.rejected.text) for r in data.records] == [
            ("0", (Turn("<image>\nWhat?", ""),), "A cup.", "A dog."),
            ("1", (Turn("<image>\nWhat?", ""),), "Red.", "Blue."),
        ]
        assert [level(pickle.loads(pickle.dumps(record))) for record in data.records] == [0, 1]


def test_a_row_of_a_table_may_have_several_images_or_none(table, cell):
    columns = {
        "prompt": ["Which?", "Hi", "Hi"],
        "chosen": ["Both.", "Hello", "Hey"],
        "rejected": ["None.", "Go", "Away"],
        "images": [[cell(3), cell(4)], [], None],
    }
    records = hub_preferences(table(columns), split="train").records
    assert [len(record.images) for record in records] == [2, 0, 0]
    assert [level(records[0], number) for number in (0, 1)] == [3, 4]
    columns.pop("images")
    bare = hub_preferences(table(columns, "bare.parquet"), split="train", image_column=None)
    assert [record.turns[0].question for record in bare.records] == ["Which?", "Hi", "Hi"]


def test_bad_rows_and_columns_of_a_table_are_named(table, cell):
    columns = {"prompt": ["a", "b"], "chosen": ["x", "y"], "rejected": ["z", "y"], "images": [[cell(0)], [cell(1)]]}
    file = table(columns)
    with pytest.raises(BadRecord, match=r"some.parquet: row 1: chosen and rejected are the same: 'y'"):
        hub_preferences(file, split="train")
    data = hub_preferences(file, split="train", on_error="skip")
    assert ([r.id for r in data.records], [s.record for s in data.skipped]) == (["0"], ["row 1"])
    with pytest.raises(ValueError, match=r"prompt_column='question': .* has the columns \['chosen', 'images'"):
        hub_preferences(file, split="train", prompt_column="question")
    numbers = table({"prompt": [1.5], "chosen": ["a"], "rejected": ["b"]}, "numbers.parquet")
    with pytest.raises(ValueError, match=r"image_column='prompt': .* wanted images"):
        hub_preferences(numbers, split="train", image_column="prompt")


def rlhf_v(cell, *texts, images=None):
    """RLHF-V's columns as they are published."""
    number = len(texts)
    return {
        "ds_name": ["RLHF-V"] * number,
        "image": images or [cell(i) for i in range(number)],
        "text": [text if isinstance(text, str) else json.dumps(text) for text in texts],
        "origin_dataset": ["LCS"] * number,
        "origin_split": ['{"model": "m", "type": "t"}'] * number,
        "idx": [0] * number,
        "image_path": [f"{i}.jpg" for i in range(number)],
    }


def pair(question="What?", chosen="A cup.", rejected="A cup and a dog."):
    return {"question": question, "chosen": chosen, "rejected": rejected}


def test_rlhf_v_reads_the_image_beside_the_question(table, cell):
    data = rlhf_v_preferences(table(rlhf_v(cell, pair(), pair("Who?"), pair("Why?"), pair("How?"), pair("Where?"))))
    assert len(data) == 5
    assert data.records[1].turns == (Turn("<image>\nWho?", ""),)
    assert data.records[1].answers == (Answer("A cup."), Answer("A cup and a dog."))
    assert [level(record) for record in data.records] == [0, 1, 2, 3, 4]


def test_rlhf_v_finds_images_that_are_only_named_in_their_folder(table, cell, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_bytes(cell(9)["bytes"])
    named = [{"bytes": None, "path": "one.png"}, {"bytes": None, "path": "gone.png"}]
    file = table(rlhf_v(cell, pair(), pair(), images=named))
    data = rlhf_v_preferences(file, images=str(tmp_path / "pictures"))
    assert level(data.records[0]) == 9
    with pytest.raises(BadRecord, match=r"some.parquet \(train\): 1: the image cannot be read \(FileNotFoundError"):
        load_image(data.records[1])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{oops", "row 1: text='{oops' is not json"),
        ("[1]", "row 1: a list instead of an object"),
        ({"question": "a", "chosen": "b"}, "row 1: no field 'rejected'"),
        (pair(rejected=" "), "row 1: rejected is empty"),
        (pair(question=" "), "row 1: a turn of the prompt is empty"),
        (pair(question="<image> <image>"), "row 1: 2 placeholders"),
    ],
)
def test_a_bad_row_of_rlhf_v_raises_or_is_listed(table, cell, text, problem):
    file = table(rlhf_v(cell, pair(), text, pair()))
    with pytest.raises(BadRecord, match=problem):
        rlhf_v_preferences(file)
    data = rlhf_v_preferences(file, on_error="skip")
    assert ([r.id for r in data.records], [s.record for s in data.skipped]) == (["0", "2"], ["row 1"])


def test_rlhf_v_needs_an_image_in_every_row_and_its_two_columns(table, cell):
    with pytest.raises(BadRecord, match="row 1: no image"):
        rlhf_v_preferences(table(rlhf_v(cell, pair(), pair(), images=[cell(0), None])))
    with pytest.raises(ValueError, match=r"no such column: .*other.parquet has the columns \['image'\], not 'text'"):
        rlhf_v_preferences(table({"image": [cell(0)]}, "other.parquet"))


def test_a_preference_counts_the_words_of_its_longer_row():
    answers = Answer("a b"), Answer("a b c d")
    assert Preference("x", (), (Turn("one two", "three"), Turn("four", "")), answers).words == 2 + 1 + 1 + 1 + 4


def test_chosen_answers_of_one_image_are_its_captions_and_what_describes_none_is_listed(files):
    more = [
        {"id": "b", "images": ["1.jpg"], "prompt": "Where?", "chosen": "On the table.", "rejected": "On the floor."},
        {"id": "c", "images": ["1.jpg"], "prompt": "What?", "chosen": "A red cup.", "rejected": "A red dog."},
        {"id": "d", "images": ["2.jpg"], "prompt": "What?", "chosen": "A plate and a fork.", "rejected": "A fork."},
    ]
    data = chosen_captions(json_preferences(**files([*ENTRIES, *more])))
    assert [(record.id, record.image.name, record.captions) for record in data.records] == [
        ("b", "1.jpg", ("On the table.", "A red cup.")),
        ("d", "2.jpg", ("A plate and a fork.",)),
    ]
    assert [(skipped.record, skipped.problem) for skipped in data.skipped] == [
        ("7", "its chosen answer, of 1 words, is no caption"),
        ("8", "its chosen answer, of 2 words, is no caption"),
        ("a", "its chosen answer, of 2 words, is no caption"),
        ("a#2", "its chosen answer, of 2 words, is no caption"),
        ("record 2", "a preference of 2 images is no captioned one"),
        ("record 3", "a preference of 0 images is no captioned one"),
    ]
    assert "A cup." in chosen_captions(json_preferences(**files(ENTRIES)), least_words=2).records[0].captions


def test_chosen_captions_keep_what_was_skipped_before_them_and_want_preferences(table, cell):
    bad = json.dumps({"question": "What?", "chosen": "A red cup.", "rejected": ""})
    good = json.dumps({"question": "What?", "chosen": "A red cup.", "rejected": "A dog."})
    preferences = rlhf_v_preferences(table({"image": [cell(0), cell(9)], "text": [bad, good]}), on_error="skip")
    data = chosen_captions(preferences)
    assert [skipped.record for skipped in data.skipped] == ["row 0"]
    assert load_image(data.records[0]).getpixel((0, 0)) == (9, 0, 0)
    with pytest.raises(ValueError, match="preferences: got Mixture, wanted one data set of Preference"):
        chosen_captions(mix([preferences], [1.0]))
    with pytest.raises(ValueError, match="preferences: got CaptionedImage, wanted one data set of"):
        chosen_captions(data)


def test_chosen_answers_are_the_dialogues_with_the_answer_to_prefer_in_place():
    turns = (Turn("<image>\nWhat?", "A cup."), Turn("Red?", ""))
    first = Preference("a", ("1.jpg",), turns, (Answer("Yes."), Answer("No.")))
    second = Preference("b", (), (Turn("Hi", ""),), (Answer("Hello"), Answer("Go away")))
    left_out = (Skipped("file", "c", "broken"),)
    found = chosen_answers(Dataset("pairs", [first, second], left_out, "skip"))
    asked = Conversation("a", ("1.jpg",), (Turn("<image>\nWhat?", "A cup."), Turn("Red?", "Yes.")))
    assert list(found.records) == [asked, Conversation("b", (), (Turn("Hi", "Hello"),))]
    assert found.records[1:] == [Conversation("b", (), (Turn("Hi", "Hello"),))]
    assert (found.name, found.skipped, found.on_error) == ("chosen of pairs", left_out, "skip")
    assert pickle.loads(pickle.dumps(found)).records[0] == asked
