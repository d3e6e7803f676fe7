"""Records: splits that do not depend on file order, errors that name the record, images that may be broken."""

import pickle
from pathlib import Path

import pytest
from PIL import Image

from hialign.data import Answer, BadRecord, CaptionedImage, Dataset, Mixture, Skipped, load_image, mix, split
from hialign.data.records import image_path


def records(count):
    return [CaptionedImage(f"r{i:03d}", Path(f"{i}.jpg"), ("a cup",)) for i in range(count)]


def ids(some):
    return [record.id for record in some]


@pytest.mark.parametrize(
    ("count", "holdout", "heldout"), [(20, 0.1, 2), (20, 0.13, 3), (5, 0.01, 1), (7, 0.0, 0), (1, 0.5, 1)]
)
def test_parts_are_disjoint_cover_everything_and_have_the_asked_size(count, holdout, heldout):
    train = split(records(count), "train", holdout=holdout, seed=3)
    held = split(records(count), "heldout", holdout=holdout, seed=3)
    assert len(held) == heldout
    assert sorted(ids(train) + ids(held)) == ids(records(count))
    assert ids(train) == sorted(ids(train))


def test_a_split_depends_on_the_seed_and_not_on_the_order_in_the_file():
    some = records(40)
    held = ids(split(some, "heldout", holdout=0.25, seed=1))
    assert ids(split(some[::-1], "heldout", holdout=0.25, seed=1)) == held
    assert ids(split(some, "heldout", holdout=0.25, seed=2)) != held


def test_a_wrong_part_holdout_or_a_repeated_id_is_named():
    with pytest.raises(ValueError, match="part='test'"):
        split(records(3), "test", holdout=0.1, seed=0)
    for holdout in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"holdout={holdout}"):
            split(records(3), "train", holdout=holdout, seed=0)
    with pytest.raises(ValueError, match="'r001'"):
        split(records(3) + records(2)[1:], "train", holdout=0.1, seed=0)


def test_a_bad_record_names_all_four_and_survives_pickling():
    error = pickle.loads(pickle.dumps(BadRecord("captions.txt", "line 7", "only one column", "write image,caption")))
    assert isinstance(error, ValueError)
    assert str(error) == "captions.txt: line 7: only one column; write image,caption"
    assert (error.file, error.record, error.problem, error.fix)[1:3] == ("line 7", "only one column")


def test_an_empty_dataset_says_how_many_were_skipped_and_why():
    with pytest.raises(ValueError, match=r"'birds'.* 2 were skipped .*b.csv: line 3: no image"):
        Dataset("birds", [], (Skipped("b.csv", "line 3", "no image"), Skipped("b.csv", "line 4", "no image")))
    with pytest.raises(ValueError, match=r"0 were skipped; .*holdout"):
        Dataset("birds", [])
    with pytest.raises(ValueError, match="on_error='ignore'"):
        Dataset("birds", records(1), on_error="ignore")


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_do_not_fit_their_datasets_are_errors(weights):
    two = [Dataset("a", records(1)), Dataset("b", records(2))]
    with pytest.raises(ValueError, match="weight"):
        mix(two, weights)
    with pytest.raises(ValueError, match="0 datasets"):
        mix([], [])
    assert mix(two, [1, 3]) == Mixture(tuple(two), (1.0, 3.0))


def test_an_image_comes_in_rgb_whatever_it_was(tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (4, 3)).save(path)
        image = load_image(CaptionedImage("x", path, ("a",)))
        assert (image.mode, image.size) == ("RGB", (4, 3))


def test_a_broken_image_is_named_with_its_record(tmp_path, write_image):
    whole = write_image(tmp_path / "whole.jpg").read_bytes()
    png = write_image(tmp_path / "whole.png").read_bytes()
    contents = {"cut.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "text.jpg": b"not an image"}
    contents |= {"cut.png": png[: len(png) // 2], "short chunk.png": png[:36] + b"\x32" + png[37:]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "vanished.jpg"]:
        with pytest.raises(BadRecord, match=rf"{name}: record 7: the image cannot be read .*; get the file again"):
            load_image(CaptionedImage("record 7", tmp_path / name, ("a",)))


def test_an_image_too_large_to_be_honest_is_a_bad_record(tmp_path, write_image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BadRecord, match="DecompressionBomb"):
        load_image(CaptionedImage("bomb", write_image(tmp_path / "bomb.jpg"), ("a",)))


def test_an_image_name_may_not_leave_its_root(tmp_path):
    for name in ("../x.jpg", "a/../../x.jpg", "/etc/x.jpg", ".", "a/..", "../root2/x.jpg"):
        with pytest.raises(BadRecord, match=r"f\.json: line 2: image .* is not inside .*root"):
            image_path(tmp_path / "root", name, file="f.json", record="line 2")
    inside = image_path(tmp_path / "root", "a/./b/../x.jpg", file="f.json", record="line 2")
    assert inside == tmp_path / "root" / "a" / "x.jpg"


def test_an_image_root_may_be_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert image_path(Path(), "x.jpg", file="f", record="r") == tmp_path / "x.jpg"
    with pytest.raises(BadRecord):
        image_path(Path(), "../x.jpg", file="f", record="r")


def test_an_answer_has_no_white_space_around_it_and_phrases_within_it_in_order():
    assert Answer("a red cup", ((0, 1), (1, 5))).phrases == ((0, 1), (1, 5))
    with pytest.raises(ValueError, match="text=' a': wanted no white space around it"):
        Answer(" a")
    for phrases in (((2, 5), (0, 1)), ((0, 3), (2, 4)), ((1, 1),), ((-1, 2),), ((5, 10),)):
        with pytest.raises(ValueError, match=r"phrases=.*within the 9 characters of text='a red cup'"):
            Answer("a red cup", phrases)
