"""What the datasets library reads: parquet with one or several captions, image folders; images stay encoded."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from hialign.data import BadRecord, LanguageCollator, hub_captions, load_image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(level):
    out = io.BytesIO()
    Image.new("RGB", (10, 12), (level, 0, 0)).save(out, "png")
    return out.getvalue()


@pytest.fixture
def parquet(tmp_path):
    """A function: cells of captions, file's name, column's name -> the file; row i's image has the red level i."""

    def make(captions, name="some.parquet", column="caption", images=None):
        import pyarrow
        import pyarrow.parquet

        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        cells = [{"bytes": png(i), "path": None} for i in range(len(captions))] if images is None else images
        pyarrow.parquet.write_table(pyarrow.table({"image": cells, column: captions}), file)
        return str(file)

    return make


def test_a_parquet_file_gives_captions_and_images_that_are_decoded_when_loaded(parquet):
    file = parquet([" a cup ", "red", "two", "3", "four"])
    data = hub_captions(file, split="train")
    assert [(record.id, record.captions) for record in data.records][:2] == [("0", ("a cup",)), ("1", ("red",))]
    assert data.name == f"{file} (train)"
    again = pickle.loads(pickle.dumps(data.records[3]))  # as a worker process gets it
    for record in (data.records[3], again):
        assert np.asarray(load_image(record))[0, 0].tolist() == [3, 0, 0]


def test_a_cell_may_hold_several_captions_and_columns_have_any_name(parquet):
    file = parquet([["a", "b", "a"], ["c"]], "folder/val-00000-of-00001.parquet", column="sentences")
    folder = file.rsplit("/", 1)[0]
    data = hub_captions(folder, split="validation", caption_column="sentences")
    assert [record.captions for record in data.records] == [("a", "b"), ("c",)]


def test_a_folder_of_images_with_metadata_is_read(tmp_path, write_image):
    lines = []
    for i in range(5):
        write_image(tmp_path / "set" / f"{i}.png", seed=i)
        lines.append(json.dumps({"file_name": f"{i}.png", "caption": f"cup {i}"}))
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(lines))
    data = hub_captions(str(tmp_path / "set"), split="train")
    assert sorted(record.captions[0] for record in data.records) == [f"cup {i}" for i in range(5)]
    for record in data.records:
        path = tmp_path / "set" / f"{record.captions[0][-1]}.png"
        assert np.array_equal(np.asarray(load_image(record)), np.asarray(Image.open(path)))


def test_the_parts_do_not_overlap(parquet):
    file = parquet([f"cup {i}" for i in range(10)])
    train, held = (hub_captions(file, split="train", part=part, holdout=0.3) for part in ("train", "heldout"))
    assert (len(train), len(held)) == (7, 3)
    assert len({record.id for record in (*train.records, *held.records)}) == 10


@pytest.mark.parametrize(
    ("captions", "record", "problem"),
    [
        (["a", " ", "b"], "row 1", "caption=' '"),
        (["a", None, "b"], "row 1", "caption=None"),
        (["a", "an <image>", "b"], "row 1", "placeholder '<image>'"),
        ([["a"], [], ["b"]], "row 1", "no caption"),
    ],
)
def test_a_bad_caption_raises_or_is_listed_while_the_others_stay(parquet, captions, record, problem):
    file = parquet(captions)
    with pytest.raises(BadRecord, match=problem) as caught:
        hub_captions(file, split="train")
    assert (caught.value.file, caught.value.record) == (file, record)
    data = hub_captions(file, split="train", on_error="skip")
    assert [r.id for r in data.records] == ["0", "2"]  # ids are those of the rows, whatever is left out
    assert [skipped.record for skipped in data.skipped] == [record]


def test_an_image_that_is_empty_or_broken_or_lost_is_named_when_it_is_loaded(parquet, tokenizer, image_processor):
    cells = [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "/nowhere/1.png"}, None]
    data = hub_captions(parquet(["a", "red", "cup"], images=cells), split="train")
    for record, problem in zip(data.records, ("Unidentified", "FileNotFound", "cell is empty"), strict=True):
        with pytest.raises(BadRecord, match=rf"parquet \(train\): {record.id}: the image cannot be read .*{problem}"):
            load_image(record)
    collator = LanguageCollator(tokenizer, image_processor, image_token_id=3, num_image_tokens=2)
    with pytest.raises(BadRecord, match=r"some.parquet \(train\): 0: the image cannot be read"):
        collator.encode(data.records[0], np.random.default_rng(0))


def test_a_missing_set_split_or_column_is_named(parquet, tmp_path):
    file = parquet(["a"])
    for change, message in (
        ({"image_column": "picture"}, r"image_column='picture': .* has the columns \['caption', 'image'\]"),
        ({"caption_column": "text"}, r"caption_column='text'"),
        ({"split": "val"}, r"split='val': Unknown split"),
        ({"path": str(tmp_path / "no.parquet")}, r"no.parquet', name=None, split='train': "),
        ({"path": "nobody/nothing"}, r"path='nobody/nothing'.* wanted a name on the hub, a parquet file or several"),
        ({"image_column": "numbers"}, r"image_column='numbers': .* wanted images"),
    ):
        chosen = {"path": file, "split": "train"} | change
        if chosen.get("image_column") == "numbers":
            chosen["path"] = parquet([1.5], "numbers.parquet", column="numbers")
            chosen["caption_column"] = "image"
        with pytest.raises(ValueError, match=message):
            hub_captions(**chosen)


def folder_with(tmp_path, *lines):
    """A folder of two images whose metadata.jsonl has these lines besides its good ones."""
    root = tmp_path / "folder"
    root.mkdir()
    for level in range(2):
        (root / f"{level}.png").write_bytes(png(level))
    good = [json.dumps({"file_name": f"{level}.png", "caption": f"cup {level}"}) for level in range(2)]
    (root / "metadata.jsonl").write_text("\n".join([*good, *lines]))
    return str(root)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{oops", "JSON parse error"),
        ('{"file_name": "../../out.png", "caption": "c"}', r"\.\./\.\./out\.png.*relative path"),
    ],
)
def test_a_metadata_file_that_datasets_cannot_read_is_an_error_that_names_the_folder(tmp_path, line, reason, on_error):
    path = folder_with(tmp_path, line)
    with pytest.raises(ValueError, match=rf"path='{path}', .*{reason}.*metadata.jsonl"):
        hub_captions(path, split="train", on_error=on_error)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"file_name": "gone.png", "caption": "c"}', r"FileNotFoundError: .*gone\.png"),
        ('{"caption": "c"}', "the cell is empty"),
    ],
)
def test_a_line_without_an_image_that_is_there_is_a_bad_record(tmp_path, line, reason):
    path = folder_with(tmp_path, line)
    data = hub_captions(path, split="train")
    with pytest.raises(BadRecord, match=rf"{path} \(train\): 2: the image cannot be read \(.*{reason}"):
        load_image(data.records[2])
