"""LLaVA's files: what five good records become, and that every kind of bad one raises or is listed, never lost."""

import json

import pytest

from hialign.data import BadRecord, Turn, llava_captions, llava_conversations


def talk(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


PRETRAIN = [
    {"id": f"00{i}", "image": f"{i}.jpg", "conversations": talk("<image>\nDescribe it.", f" cup {i} ")}
    for i in range(1, 6)
]
INSTRUCT = [
    {"id": "000001", "image": "coco/1.jpg", "conversations": talk("<image>\nWhat?", "A cup.", "Red?", "Yes.")},
    {"id": "000001", "image": "coco/1.jpg", "conversations": talk("Describe it.\n<image>", "Red.")},
    {"id": 1, "image": ["coco/1.jpg", "2.jpg"], "conversations": talk("<image> or <image>?", "Both.")},
    {"id": "wgByO4Y_0", "model": "", "conversations": talk("Hi", "Hello")},
    {"id": "000004", "image": "3.jpg", "conversations": talk("What?\n<image>", "Cup")},
]


@pytest.fixture
def llava(tmp_path, write_image):
    """A function: records, or a file's text -> the arguments of the adapters, with some images there."""

    def make(content, name="data.json"):
        for image in ("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "coco/1.jpg"):
            write_image(tmp_path / "images" / image)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return {"annotations": str(tmp_path / name), "images": str(tmp_path / "images")}

    return make


def short(dataset, folder):
    return {r.id: ([str(p.relative_to(folder)) for p in r.images], r.turns) for r in dataset.records}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_pretraining_file_is_conversations_of_one_turn(llava, name):
    lines = "\n".join(json.dumps(entry) for entry in PRETRAIN) + "\n\n"
    arguments = llava(lines if name.endswith("l") else PRETRAIN, name)
    data = llava_conversations(**arguments)
    assert len(data) == 5
    assert short(data, arguments["images"])["003"] == (["3.jpg"], (Turn("<image>\nDescribe it.", " cup 3 "),))
    assert data.skipped == ()


def test_an_instruction_file_keeps_several_turns_several_images_and_text_alone(llava):
    arguments = llava(INSTRUCT)
    assert short(llava_conversations(**arguments), arguments["images"]) == {
        "000001": (["coco/1.jpg"], (Turn("<image>\nWhat?", "A cup."), Turn("Red?", "Yes."))),
        "000001#2": (["coco/1.jpg"], (Turn("Describe it.\n<image>", "Red."),)),
        "1": (["coco/1.jpg", "2.jpg"], (Turn("<image> or <image>?", "Both."),)),
        "wgByO4Y_0": ([], (Turn("Hi", "Hello"),)),
        "000004": (["3.jpg"], (Turn("What?\n<image>", "Cup"),)),
    }


def test_a_pretraining_file_is_captions_too(llava):
    data = llava_captions(**llava(PRETRAIN))
    assert next((r.id, r.image.name, r.captions) for r in data.records) == ("001", "1.jpg", ("cup 1",))
    with pytest.raises(BadRecord, match="000001: 2 turns and 1 images instead of a caption"):
        llava_captions(**llava(INSTRUCT))
    some = llava_captions(**llava(INSTRUCT), on_error="skip")
    assert [r.id for r in some.records] == ["000001#2", "000004"]
    assert [s.record for s in some.skipped] == ["000001", "1", "wgByO4Y_0"]


def test_the_parts_do_not_overlap_and_by_default_nothing_is_held_out(llava):
    arguments = llava(PRETRAIN)
    parts = [llava_conversations(**arguments, holdout=0.4, split_seed=3, part=part) for part in ("train", "heldout")]
    assert [len(part) for part in parts] == [3, 2]
    assert sorted(record.id for part in parts for record in part.records) == [f"00{i}" for i in range(1, 6)]
    assert len(llava_conversations(**arguments)) == 5


def mixed(image, number):
    return {"id": str(number), "image": image, "conversations": talk("<image>\nWhat?", "A cup.")}


def test_images_may_lie_in_several_folders_by_what_their_names_begin_with(tmp_path, llava, write_image):
    names = ["coco/train2017/1.jpg", "vg/VG_100K/2.jpg", "vg/VG_100K_2/3.jpg", "loose.jpg"]
    arguments = llava([mixed(name, i) for i, name in enumerate(names)])
    places = ["a/train2017/1.jpg", "b/VG_100K/2.jpg", "c/3.jpg", "d/loose.jpg"]
    for place in places:
        write_image(tmp_path / place)
    roots = {"coco/": "a", "vg": "b", "vg/VG_100K_2": "c", "": "d"}
    images = {beginning: str(tmp_path / folder) for beginning, folder in roots.items()}
    data = llava_conversations(**(arguments | {"images": images}))
    assert [str(record.images[0].relative_to(tmp_path)) for record in data.records] == places


def test_an_image_that_no_folder_is_given_for_or_that_leads_out_of_its_own_is_a_bad_record(tmp_path, llava):
    for name, problem in (
        ("gqa/1.jpg", "image 'gqa/1.jpg' is in none of the folders coco"),
        ("coconut/1.jpg", "in none of the folders coco"),
        ("coco/../1.jpg", "is not inside"),
        ("coco//etc/passwd", "is not inside"),
    ):
        arguments = llava([mixed(name, 0)]) | {"images": {"coco": str(tmp_path / "images" / "coco")}}
        with pytest.raises(BadRecord, match=problem):
            llava_conversations(**arguments)


@pytest.mark.parametrize("images", [{}, {"coco": None}])
def test_a_beginning_without_a_folder_is_refused(llava, images):
    with pytest.raises(ValueError, match=r"images=.*wanted a folder, or a mapping of names' beginnings to folders"):
        llava_conversations(**(llava(PRETRAIN) | {"images": images}))


def test_a_folder_of_several_that_is_missing_is_named(llava, tmp_path):
    images = {"coco": str(tmp_path / "images" / "coco"), "gqa": str(tmp_path / "nowhere")}
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        llava_conversations(**(llava(INSTRUCT) | {"images": images}), on_error="skip")


GOOD = talk("<image>\nWhat?", "A cup.")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            {"id": "x", "image": "1.jpg", "conversations": talk("What?", "A cup.")},
            "0 placeholders <image> and 1 images",
        ),
        ({"id": "x", "conversations": GOOD}, "1 placeholders <image> and 0 images"),
        ({"id": "x", "image": "1.jpg", "conversations": talk("<image><image>", "A")}, "2 placeholders .* and 1 images"),
        ({"id": "x", "image": ["1.jpg", "2.jpg"], "conversations": GOOD}, "1 placeholders .* and 2 images"),
        ({"id": "x", "image": "../1.jpg", "conversations": GOOD}, "image '../1.jpg' is not inside"),
        ({"id": "x", "image": "9.jpg", "conversations": GOOD}, "an image is missing, such as .*9.jpg"),
        ({"id": "x", "image": "no/9.jpg", "conversations": GOOD}, "an image is missing"),
        ({"id": "x", "image": 7, "conversations": GOOD}, "image=7"),
        ({"id": "x", "image": [""], "conversations": GOOD}, "image="),
        ({"id": "x", "image": None, "conversations": GOOD}, "image=None"),
        ({"id": "x", "image": "1.jpg", "conversations": talk("<image>", " \n")}, r"\[1\]: the answer is empty"),
        ({"id": "x", "conversations": talk("Hi", "<image>")}, r"\[1\]: the answer contains the placeholder"),
        ({"id": "x", "image": "1.jpg", "conversations": GOOD[::-1]}, r"\[0\]: from='gpt' where 'human' was wanted"),
        ({"id": "x", "conversations": [{"from": "user", "value": "Hi"}]}, r"\[0\]: from='user'"),
        ({"id": "x", "conversations": [{"from": "human"}]}, r"\[0\]: no field 'value'"),
        ({"id": "x", "image": "1.jpg", "conversations": [*GOOD, GOOD[0]]}, "3 messages, which is no pairs"),
        ({"id": "x", "conversations": []}, "0 messages"),
        ({"image": "1.jpg", "conversations": GOOD}, "no field 'id'"),
        ({"id": "x", "image": "1.jpg"}, "no field 'conversations'"),
        ("x", "a str instead of an object"),
    ],
)
def test_a_bad_record_raises_or_is_listed_while_the_others_stay(llava, entry, problem):
    arguments = llava([*INSTRUCT[:2], entry, *INSTRUCT[2:]])
    with pytest.raises(BadRecord, match=problem) as caught:
        llava_conversations(**arguments)
    assert caught.value.file == arguments["annotations"]
    assert caught.value.record in ("x", "x (record 2)", "record 2")

    data = llava_conversations(**arguments, on_error="skip")
    assert len(data) == 5
    assert [skipped.record for skipped in data.skipped] == [caught.value.record]


def test_a_broken_line_of_a_jsonl_spoils_itself_only(llava):
    lines = [json.dumps(PRETRAIN[0]), '{"id": ', json.dumps(PRETRAIN[1])]
    arguments = llava("\n".join(lines), "data.jsonl")
    with pytest.raises(BadRecord, match="line 2: not json"):
        llava_conversations(**arguments)
    data = llava_conversations(**arguments, on_error="skip")
    assert ([r.id for r in data.records], data.skipped[0].record) == (["001", "002"], "line 2")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"id": 1}', "top level: a dict instead of a list; wanted LLaVA's format"),
        ('[{"id": 1},\n{]', "line 2 column 2: not json"),
    ],
)
def test_a_file_of_another_kind_always_raises(llava, content, found):
    with pytest.raises(BadRecord, match=found):
        llava_conversations(**llava(content), on_error="skip")


def test_missing_files_say_what_to_get(tmp_path, llava):
    with pytest.raises(ValueError, match=r"x.json: no such file; get blip_laion_cc_sbu_558k.json"):
        llava_conversations(str(tmp_path / "x.json"), str(tmp_path))
    with pytest.raises(ValueError, match=r"pictures: no such folder; get blip_laion"):
        llava_conversations(**(llava(PRETRAIN) | {"images": str(tmp_path / "pictures")}))
    with pytest.raises(ValueError, match="on_error='ignore'"):
        llava_conversations(**llava(PRETRAIN), on_error="ignore")
