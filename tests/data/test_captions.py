"""Adapters: what good files become, and that every kind of bad line raises or is listed, never lost."""

import json
import os

import pytest

from hialign.data import BadRecord, coco_captions, flickr8k

HEADER = "image,caption\n"


@pytest.fixture
def flickr(tmp_path, write_image):
    """A function: captions file (text or bytes) -> root of a Flickr8k whose images are 1.jpg, 2.jpg and 3.jpg."""

    def make(content):
        for i in (1, 2, 3):
            write_image(tmp_path / "images" / f"{i}.jpg", seed=i)
        (tmp_path / "captions.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path)

    return make


@pytest.fixture
def coco(tmp_path, write_image):
    """A function: (images, annotations) -> the arguments of coco_captions, with 1.jpg, 2.jpg and sub/3.jpg there."""

    def make(images, annotations):
        for name in ("1.jpg", "2.jpg", "sub/3.jpg"):
            write_image(tmp_path / "images" / name)
        file = tmp_path / "captions.json"
        file.write_text(json.dumps({"images": images, "annotations": annotations}))
        return {"annotations": str(file), "images": str(tmp_path / "images"), "holdout": 0.0}

    return make


IMAGES = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}, {"id": "3", "file_name": "sub/3.jpg"}]
CAPTIONS = [{"id": 10 + i, "image_id": i, "caption": f"cup {i}"} for i in (1, 2, 3)]


def captions(dataset):
    return {record.id: record.captions for record in dataset.records}


def problems(dataset):
    return [(skipped.record, skipped.problem) for skipped in dataset.skipped]


def test_rows_of_one_image_are_one_record_and_commas_and_quotes_stay(flickr):
    rows = '1.jpg,a cup\n2.jpg,"one, two"\n1.jpg,"he said ""stop"" loudly"\n3.jpg,red, not blue\n1.jpg, a cup \n'
    data = flickr8k(flickr(HEADER + rows), holdout=0.0)
    assert captions(data) == {
        "1.jpg": ("a cup", 'he said "stop" loudly'),
        "2.jpg": ("one, two",),
        "3.jpg": ("red, not blue",),
    }
    assert data.skipped == ()
    assert data.records[0].image.is_file()


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_harmless(flickr):
    data = flickr8k(flickr(b"\xef\xbb\xbfimage,caption\r\n1.jpg,a cup\r\n\r\n2.jpg,two\r\n"), holdout=0.0)
    assert captions(data) == {"1.jpg": ("a cup",), "2.jpg": ("two",)}


@pytest.mark.parametrize(
    ("row", "record", "problem"),
    [
        ("1.jpg", "line 3", "only one column"),
        (",a cup", "line 3", "no image name"),
        ('1.jpg,"an open quote', "line 3", "not csv"),
        ("1.jpg,   ", "1.jpg (line 3)", "the caption is empty"),
        ("1.jpg,an <image> of a cup", "1.jpg (line 3)", "placeholder '<image>'"),
        ("../1.jpg,a cup", "line 3", "image '../1.jpg' is not inside"),
        ("/etc/1.jpg,a cup", "line 3", "image '/etc/1.jpg' is not inside"),
        ("4.jpg,a cup", "4.jpg", "its image is not in"),
    ],
)
def test_a_bad_flickr8k_line_raises_or_is_listed_while_the_others_stay(flickr, row, record, problem):
    root = flickr(f"{HEADER}1.jpg,first\n{row}\n2.jpg,last\n")
    with pytest.raises(BadRecord) as caught:
        flickr8k(root, holdout=0.0)
    assert caught.value.file == f"{root}/captions.txt"
    assert caught.value.record == record
    assert problem in caught.value.problem
    assert "data.on_error=skip" in caught.value.fix

    data = flickr8k(root, holdout=0.0, on_error="skip")
    assert captions(data) == {"1.jpg": ("first",), "2.jpg": ("last",)}
    assert [skipped.record for skipped in data.skipped] == [record]
    assert problem in data.skipped[0].problem
    assert data.on_error == "skip"


def test_an_image_without_a_caption_left_is_skipped_and_listed(flickr):
    data = flickr8k(flickr(HEADER + "1.jpg,a cup\n2.jpg,\n2.jpg,an <image>\n"), holdout=0.0, on_error="skip")
    assert captions(data) == {"1.jpg": ("a cup",)}
    assert [record for record, _ in problems(data)] == ["2.jpg (line 3)", "2.jpg (line 4)", "2.jpg"]


def test_missing_images_are_counted_in_one_error_and_listed_one_by_one(flickr):
    root = flickr(HEADER + "1.jpg,a\n7.jpg,b\n8.jpg,c\n9.jpg,d\n")
    with pytest.raises(BadRecord, match=r"7\.jpg: its image is not in .*images \(and so for 2 other records\)"):
        flickr8k(root, holdout=0.0)
    data = flickr8k(root, holdout=0.0, on_error="skip")
    assert [record for record, _ in problems(data)] == ["7.jpg", "8.jpg", "9.jpg"]


def test_images_are_looked_up_by_one_listing_of_each_folder(flickr, monkeypatch):
    root = flickr(HEADER + "1.jpg,a\n2.jpg,b\n3.jpg,c\n")
    listed, stats, listdir, stat = [], [], os.listdir, os.stat
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    monkeypatch.setattr(os, "stat", lambda path, **rest: stats.append(str(path)) or stat(path, **rest))
    flickr8k(root, holdout=0.0)
    assert len(listed) == 1
    assert not [path for path in stats if path.endswith(".jpg")]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("picture;text\n1.jpg;a\n", "line 1: the header is 'picture;text'"),
        ("", "line 1: the header is ''"),
        (HEADER.encode() + b"1.jpg,caf\xe9 au lait\n", "byte 23: not utf-8"),
    ],
)
def test_a_captions_file_of_another_kind_always_raises(flickr, content, found, on_error):
    with pytest.raises(BadRecord) as caught:
        flickr8k(flickr(content), on_error=on_error)
    assert found in str(caught.value)


def test_missing_files_say_what_to_get_and_in_which_layout(tmp_path):
    with pytest.raises(ValueError, match=r"captions.txt: no such file; get Flickr8k .*image,caption.*images/\*.jpg"):
        flickr8k(str(tmp_path), on_error="skip")
    (tmp_path / "captions.txt").write_text(HEADER)
    with pytest.raises(ValueError, match=r"images: no such folder; get Flickr8k"):
        flickr8k(str(tmp_path), on_error="skip")
    with pytest.raises(ValueError, match=r"c.json: no such file; get the captions and images of COCO"):
        coco_captions(str(tmp_path / "c.json"), str(tmp_path))
    with pytest.raises(ValueError, match=r"train2017: no such folder; get .* COCO"):
        coco_captions(str(tmp_path / "captions.txt"), str(tmp_path / "train2017"))


def test_nothing_left_and_a_misspelt_on_error_are_errors(flickr):
    with pytest.raises(ValueError, match="no records, 1 were skipped"):
        flickr8k(flickr(HEADER + "9.jpg,a\n"), on_error="skip")
    with pytest.raises(ValueError, match="on_error='skipp'"):
        flickr8k(flickr(HEADER + "1.jpg,a\n"), on_error="skipp")
    with pytest.raises(ValueError, match="no records, 0 were skipped"):
        flickr8k(flickr(HEADER + "1.jpg,a\n"), part="heldout", holdout=0.0)


def test_coco_captions_are_gathered_by_image_and_subfolders_are_found(coco):
    again = [{"id": 20, "image_id": 1, "caption": "another"}, {"id": 21, "image_id": 1, "caption": " cup 1"}]
    data = coco_captions(**coco(IMAGES, CAPTIONS + again))
    assert captions(data) == {"1": ("cup 1", "another"), "2": ("cup 2",), "3": ("cup 3",)}
    assert data.skipped == ()
    assert all(record.image.is_file() for record in data.records)


@pytest.mark.parametrize(
    ("image", "annotation", "record", "problem"),
    [
        (None, {"id": 9, "image_id": 5, "caption": "x"}, "annotation 9 of image 5", "image_id is not among the images"),
        (None, {"id": 9, "image_id": 1, "caption": "\n"}, "annotation 9 of image 1", "the caption is empty"),
        (None, {"id": 9, "image_id": 1, "caption": "<image>"}, "annotation 9 of image 1", "placeholder"),
        (None, {"id": 9, "image_id": 1}, "annotations[3]", "no field 'caption'"),
        (None, {"id": 9, "image_id": 1, "caption": None}, "annotations[3]", "caption=None"),
        (None, "a cup", "annotations[3]", "a str instead of an object"),
        ({"id": 5, "file_name": "5.jpg"}, {"id": 9, "image_id": 5, "caption": "x"}, "5", "its image is not in"),
        ({"id": 5, "file_name": "no/5.jpg"}, {"id": 9, "image_id": 5, "caption": "x"}, "5", "its image is not in"),
        ({"id": 5}, None, "images[3]", "no field 'file_name'"),
        ({"id": 2, "file_name": "1.jpg"}, None, "images[3]", "a second image with the id 2"),
        ({"id": 5, "file_name": "../images/1.jpg.txt/../../1.jpg"}, None, "images[3]", "is not inside"),
        ({"id": 5, "file_name": "1.jpg"}, None, "5", "no caption is left"),
    ],
)
def test_a_bad_coco_entry_raises_or_is_listed_while_the_others_stay(coco, image, annotation, record, problem):
    arguments = coco(IMAGES + [image] * (image is not None), CAPTIONS + [annotation] * (annotation is not None))
    with pytest.raises(BadRecord) as caught:
        coco_captions(**arguments)
    assert caught.value.file == arguments["annotations"]
    assert (caught.value.record, problem in caught.value.problem) == (record, True)

    data = coco_captions(**arguments, on_error="skip")
    assert captions(data) == {"1": ("cup 1",), "2": ("cup 2",), "3": ("cup 3",)}
    assert [skipped.record for skipped in data.skipped] == [record]
    assert problem in data.skipped[0].problem


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"images": [],\n "annotations": [}', "line 2 column 18: not json"),
        (b'{"images": []}', "no list 'annotations' in the keys ['images']"),
        (b'{"images": {}, "annotations": []}', "no list 'images' in the keys"),
        (b"[1, 2]", "no list 'images' in a list"),
        (b'{"images": "\xff"}', "byte 12: not utf-8"),
    ],
)
def test_a_json_of_another_kind_always_raises_with_its_place(coco, content, found):
    arguments = coco([], [])
    with open(arguments["annotations"], "wb") as file:
        file.write(content)
    with pytest.raises(BadRecord) as caught:
        coco_captions(**arguments, on_error="skip")
    assert caught.value.file == arguments["annotations"]
    assert found in str(caught.value)


def test_the_parts_of_an_adapter_do_not_overlap(coco):
    arguments = coco(IMAGES, CAPTIONS) | {"holdout": 0.34}
    train = captions(coco_captions(**arguments, part="train"))
    heldout = captions(coco_captions(**arguments, part="heldout"))
    assert (len(train), len(heldout)) == (2, 1)
    assert sorted({**train, **heldout}) == ["1", "2", "3"]


def test_the_real_flickr8k_reads_whole(shared):
    data = flickr8k(str(shared / "data" / "flickr8k"), holdout=0.0)
    assert len(data) == 798
    assert {len(record.captions) for record in data.records} <= {4, 5}  # 4 where one is written twice
    assert data.skipped == ()
    assert len(flickr8k(str(shared / "data" / "flickr8k"), part="heldout")) == 80
