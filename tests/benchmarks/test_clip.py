"""Zero-shot classification and retrieval: by hand, and the numbers of CLIP_benchmark and open_clip."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hialign.benchmarks.retrieval import Retrieval, cosines, multi_caption, paired, selection, unit
from hialign.benchmarks.scores import numbers
from hialign.benchmarks.zero_shot import (
    ZeroShot,
    accuracies,
    average_precisions,
    class_weights,
    ranked,
    statistic,
)

Official = Callable[[str], Any]


def test_the_official_retrieval_of_several_captions(official: Official):
    fixture = official("clip/retrieval_multi_caption.json")
    similarities = cosines(fixture["image_embeddings"], fixture["text_embeddings"])
    found = multi_caption(similarities, fixture["text_image_index"])
    assert found == {name: pytest.approx(value, abs=1e-6) for name, value in fixture["expected"].items()}


def test_the_held_out_retrieval_finds_the_same(official: Official):
    """``geometry.retrieval`` measures both directions under other names; the fixture has no ties."""
    import torch

    from hialign.evaluation.geometry import retrieval

    fixture = official("clip/retrieval_multi_caption.json")
    tensors = [torch.tensor(fixture[name]) for name in ("image_embeddings", "text_embeddings", "text_image_index")]
    found = retrieval(*tensors)
    for k, (ours, theirs) in itertools.product(
        (1, 5, 10), (("text_to_image", "image_retrieval"), ("image_to_text", "text_retrieval"))
    ):
        assert found[f"{ours}/recall@{k}"] == pytest.approx(fixture["expected"][f"{theirs}_recall@{k}"], abs=1e-6)


def test_the_official_ranks_of_pairs_with_ties(official: Official):
    fixture = official("clip/open_clip_paired_retrieval.json")
    found = paired(np.array(fixture["image_features"]) @ np.array(fixture["text_features"]).T)
    assert found == {name: pytest.approx(value, abs=1e-9) for name, value in fixture["expected"].items()}


def test_the_official_selection(official: Official):
    fixture = official("clip/image_caption_selection.json")
    found = selection(cosines(np.array(fixture["image_embeddings"]), np.array(fixture["text_embeddings"])))
    assert found == {name: pytest.approx(value, abs=1e-6) for name, value in fixture["expected"].items()}


def test_multi_caption_by_hand():
    """Image 0's second text is its third nearest; image 1's comes first. Text 2 finds image 0 first."""
    found = multi_caption(np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]]), [0, 0, 1], ks=(1, 2, 3))
    assert found == {
        "image_retrieval_recall@1": pytest.approx(1 / 3),
        "text_retrieval_recall@1": 1,
        "image_retrieval_recall@2": 1,
        "text_retrieval_recall@2": 1,
        "text_retrieval_recall@3": 1,
    }


def test_who_maps_all_to_one_point_finds_nothing():
    flat = np.zeros((20, 20))
    assert set(multi_caption(flat, range(20)).values()) == {0.0}
    assert set(selection(np.zeros((3, 2, 2))).values()) == {0.0}
    assert selection(np.zeros((3, 1, 2))) == {"text_acc": 0.0}


def test_selection_by_hand():
    """The first set is right both ways; in the second both captions are nearest to image 0, and so is neither image
    to the wrong caption; with one image the captions alone are chosen."""
    sets = np.array([[[2.0, 1.0], [1.0, 2.0]], [[3.0, 2.5], [1.0, 2.0]]])
    assert selection(sets) == {"text_acc": 1.0, "image_acc": 0.5, "acc": 0.5}
    assert selection(sets[:, 1:2, ::-1]) == {"text_acc": 1.0}


def test_retrieval_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    scores, owner = rng.normal(size=(6, 14)), np.array([*range(6), *rng.integers(6, size=8)])
    rows, columns = rng.permutation(6), rng.permutation(14)
    place = np.argsort(rows)
    assert multi_caption(scores[rows][:, columns], place[owner[columns]]) == multi_caption(scores, owner)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: multi_caption(np.zeros((2, 3)), [0, 0, 0]), "image_of_text has 3 entries on 1 images"),
        (lambda: multi_caption(np.zeros((2, 3)), [0, 1]), "wanted one for each of 3 texts, from 0 to 1"),
        (lambda: paired(np.zeros((2, 3))), "wanted as many texts as images"),
        (lambda: paired(np.full((2, 2), np.nan)), r"\(2, 2\) with NaN or infinity"),
        (lambda: selection(np.zeros((2, 3, 2))), "3 images and 2 captions a set"),
        (lambda: unit(np.full((2, 2), np.inf)), "hold NaN or infinity"),
        (lambda: accuracies(np.zeros((2, 3)), [0, 3]), "labels from 0 to 3, wanted 0 to 2"),
        (lambda: accuracies(np.zeros((2, 3)), [0]), r"labels \(1,\)"),
        (lambda: average_precisions(np.zeros((2, 3)), np.zeros((2, 2))), r"targets \(2, 2\)"),
        (lambda: ranked(np.ones((1, 2)), np.ones((2, 1, 2)), ["a"]), "1 names to 2 classes"),
    ],
)
def test_what_does_not_fit_is_an_error(call: Callable[[], object], told: str):
    with pytest.raises(ValueError, match=told):
        call()


def embeddings(fixture: dict[str, Any]) -> np.ndarray:
    """(classes, templates, dim)"""
    return np.array(
        [
            [fixture["text_embeddings"][template.replace("{c}", name)] for template in fixture["templates"]]
            for name in fixture["classnames"]
        ]
    )


def test_the_official_zero_shot_scores(official: Official):
    fixture = official("clip/zero_shot_classification.json")
    expected, weights = fixture["expected"], class_weights(embeddings(fixture))
    np.testing.assert_allclose(weights.T, expected["classifier_weights_DxC"], atol=1e-5)
    scores = cosines(fixture["image_embeddings"], weights)
    np.testing.assert_allclose(fixture["logit_scale"] * scores, expected["logits"], atol=1e-5 * fixture["logit_scale"])
    found = accuracies(scores, fixture["labels"])
    assert found == {name: pytest.approx(expected[name], abs=1e-5) for name in found}
    assert set(found) == {"acc1", "acc5", "mean_per_class_recall"}


def test_the_official_average_precisions_where_an_image_holds_several_classes(official: Official):
    fixture = official("clip/zero_shot_classification.json")
    scores = cosines(fixture["image_embeddings"], class_weights(embeddings(fixture)))
    found = average_precisions(scores, np.array(fixture["multilabel_targets"]))
    assert found == pytest.approx(fixture["expected_multilabel"]["ap_per_class"], abs=1e-5)
    assert found.mean() == pytest.approx(fixture["expected_multilabel"]["mean_average_precision"], abs=1e-5)


def test_the_mean_over_classes_gives_a_rare_class_the_weight_of_a_common_one():
    """Three of class 0, all right, and one of class 1, wrong."""
    scores = np.array([[1.0, 0.0]] * 4)
    assert accuracies(scores, [0, 0, 0, 1]) == {"acc1": 0.75, "mean_per_class_recall": 0.5}


def test_average_precision_by_hand():
    """Held by the first and the third: (1/1 + 2/3) / 2; a class that none holds has 0."""
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert average_precisions(scores, np.array([[1, 0], [0, 0], [1, 0]])) == pytest.approx([5 / 6, 0])


@pytest.fixture
def folders(official: Official, tmp_path: Path) -> ZeroShot:
    """The official images as empty files in their classes' folders."""
    fixture = official("clip/zero_shot_classification.json")
    for n, label in enumerate(fixture["labels"]):
        file = tmp_path / "images" / fixture["classnames"][label] / f"{n:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "images" / "empty").mkdir()
    return ZeroShot(root=str(tmp_path / "images"))


def test_the_official_scores_from_answers(official: Official, folders: ZeroShot, tmp_path: Path):
    fixture = official("clip/zero_shot_classification.json")
    assert folders.classes == fixture["classnames"]
    numbered = {int(name[-7:-4]): name for name in folders.entries}
    said = ranked(np.array(fixture["image_embeddings"]), embeddings(fixture), folders.classes)
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps({"id": numbered[n], "answer": text}) for n, text in enumerate(said)))
    scores = folders.score(folders.read(str(file)))
    assert scores.numbers == {
        name: pytest.approx(fixture["expected"][name], abs=1e-5) for name in ("acc1", "acc5", "mean_per_class_recall")
    }
    headline = numbers(scores.units, statistic)
    assert headline == {name: scores.numbers[name] for name in ("acc1", "acc5")}
    assert sum(scores.correct.values()) == round(40 * scores.numbers["acc1"])


def test_fewer_than_five_classes_have_no_acc5_and_a_flag(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    zero_shot = ZeroShot(root=str(tmp_path))
    scores = zero_shot.score({"a/1.jpg": "a\nb", "b/1.jpg": "a\nb"})
    assert scores.numbers == {"acc1": 0.5, "mean_per_class_recall": 0.5}
    assert scores.flags == ["2 classes, fewer than 5: there is no acc5"]
    with pytest.raises(ValueError, match=r"the answer to b/1.jpg is 'c'; wanted the 5 nearest"):
        zero_shot.score({"a/1.jpg": "a", "b/1.jpg": "c"})
    with pytest.raises(ValueError, match=r"1 not answered: b/1.jpg"):
        zero_shot.score({"a/1.jpg": "a"})
    file = tmp_path / "twice.json"
    file.write_text(json.dumps([{"id": name, "answer": "a"} for name in ("a/1.jpg", "b/1.jpg", "a/1.jpg")]))
    with pytest.raises(ValueError, match=r"1 answered twice: a/1.jpg"):
        zero_shot.read(str(file))


def test_prompts_are_made_of_names_and_templates(folders: ZeroShot, tmp_path: Path):
    assert folders.prompts()[1] == ["a photo of a class1."]
    file = tmp_path / "names.json"
    file.write_text(json.dumps({f"class{n}": f"thing {n}" for n in range(7)}))
    named = ZeroShot(root=folders.root, names=str(file), templates=["a {}.", "{}"])
    assert named.prompts()[6] == ["a thing 6.", "thing 6"]
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"names.json: no name for class0, and 6 more"):
        named.prompts()
    for wrong in ([], ["a dog"], "clip"):
        with pytest.raises(ValueError, match="templates: got"):
            ZeroShot(root=folders.root, templates=wrong)
    with pytest.raises(ValueError, match="names: 7 folders have images, wanted ImageNet's 1000"):
        ZeroShot(root=folders.root, names="imagenet").prompts()


def test_open_clip_s_templates_are_taken_by_name(folders: ZeroShot):
    prompts = ZeroShot(root=folders.root, templates="openai").prompts()
    assert {len(one) for one in prompts} == {80}
    assert prompts[0][0] == "a bad photo of a class0."


def test_a_missing_folder_says_the_layout(tmp_path: Path):
    with pytest.raises(ValueError, match="no such folder; wanted a folder for each class"):
        _ = ZeroShot(root=str(tmp_path / "none")).entries
    with pytest.raises(ValueError, match="no image in a folder of it"):
        _ = ZeroShot(root=str(tmp_path)).entries


def archive(file: Path, **arrays: Any) -> str:
    np.savez(file, **{name: np.array(values) for name, values in arrays.items()})
    return str(file)


def test_the_official_retrieval_from_a_file_of_embeddings(official: Official, tmp_path: Path):
    fixture = official("clip/retrieval_multi_caption.json")
    owner = fixture["text_image_index"]
    parts = {"images": fixture["image_embeddings"], "texts": fixture["text_embeddings"], "image_of_text": owner}
    scores = (found := Retrieval()).score(found.read(archive(tmp_path / "e.npz", **parts)))
    assert scores.numbers == {name: pytest.approx(value, abs=1e-6) for name, value in fixture["expected"].items()}
    assert scores.numbers == numbers(scores.units, scores.statistic)
    assert len(scores.units) == len(fixture["image_embeddings"])
    assert sum(unit["image_retrieval_recall@1/of"] for unit in scores.units.values()) == len(owner)


def test_the_official_ranks_of_pairs_from_a_file_of_similarities(official: Official, tmp_path: Path):
    fixture = official("clip/open_clip_paired_retrieval.json")
    similarities = np.array(fixture["image_features"]) @ np.array(fixture["text_features"]).T
    pairs = Retrieval(kind="paired")
    scores = pairs.score(pairs.read(archive(tmp_path / "s.npz", similarities=similarities)))
    assert scores.numbers == {name: pytest.approx(value, abs=1e-9) for name, value in fixture["expected"].items()}
    headline = numbers(scores.units, scores.statistic)
    assert headline == {name: value for name, value in scores.numbers.items() if "median" not in name}


def test_the_official_selection_from_a_file_of_embeddings(official: Official, tmp_path: Path):
    fixture = official("clip/image_caption_selection.json")
    sets = Retrieval(kind="selection")
    parts = {"images": fixture["image_embeddings"], "texts": fixture["text_embeddings"]}
    scores = sets.score(sets.read(archive(tmp_path / "e.npz", **parts)))
    assert scores.numbers == {name: pytest.approx(value, abs=1e-6) for name, value in fixture["expected"].items()}
    assert scores.numbers == numbers(scores.units, scores.statistic)


def test_an_image_s_unit_holds_its_texts_by_hand():
    """Text 1 of image 0 finds image 1 first; image 0 finds text 0."""
    arrays = {"similarities": np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.6]]), "image_of_text": np.array([0, 0, 1])}
    units = Retrieval(ks=[1]).score(arrays).units
    assert units["0"] == {
        "image_retrieval_recall@1/hits": 1,
        "image_retrieval_recall@1/of": 2,
        "text_retrieval_recall@1/hits": 1,
        "text_retrieval_recall@1/of": 1,
    }


@pytest.mark.parametrize(
    ("kind", "arrays", "told"),
    [
        ("multi_caption", {"images": [[1.0]]}, "texts: not among images; wanted an .npz of images"),
        ("multi_caption", {"images": [[1.0]], "texts": [[1.0]]}, "image_of_text: not among images, texts"),
        (
            "multi_caption",
            {"images": [[1.0]], "texts": [[1.0]], "image_of_text": [0.0]},
            "image_of_text: of type float64; wanted .* whole numbers",
        ),
        ("multi_caption", {"images": [[1.0]], "texts": [[1.0, 2.0]]}, r"images: shape \(1, 1\), texts: shape \(1, 2\)"),
        ("paired", {"similarities": [[1.0, 2.0]]}, "wanted as many texts as images"),
        ("paired", {"similarities": [["a"]]}, "similarities: of type <U1; wanted an .npz"),
        ("selection", {"images": [[1.0]], "texts": [[1.0]]}, r"wanted an .npz of images \(sets, images, dim\)"),
        ("selection", {"similarities": [[1.0]]}, "wanted 3 dimensions"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, kind: Any, arrays: dict[str, Any], told: str):
    found = Retrieval(kind=kind)
    with pytest.raises(ValueError, match=told):
        found.score(found.read(archive(tmp_path / "e.npz", **arrays)))


def test_files_that_are_no_archives_and_wrong_settings_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none.npz: no such file; wanted an .npz of images \(images, dim\)"):
        Retrieval().read(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    objects = archive(tmp_path / "objects.npz", images=[None])
    for file in (str(tmp_path / "text.npz"), str(tmp_path / "one.npy"), objects):
        with pytest.raises(ValueError, match="no archive of numbers"):
            Retrieval().read(file)
    with pytest.raises(ValueError, match="kind: got 'clip'; wanted one of multi_caption, paired, selection"):
        Retrieval(kind="clip")
    with pytest.raises(ValueError, match=r"ks: got \[0\]; wanted numbers from 1 up"):
        Retrieval(ks=[0])
