"""Captions' tokens and numbers: by hand, by slow loops, and those of pycocoevalcap."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import math
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hialign.benchmarks.caption_metrics import bleu, bleu_counts, cider, common_length, meteor, no_meteor, rouge_l
from hialign.benchmarks.caption_tokens import tokens
from hialign.benchmarks.coco_captions import CocoCaptions, statistic
from hialign.benchmarks.scores import numbers, total

Official = Callable[[str], Any]
OWN = ("CIDEr", "Bleu", "ROUGE_L")  # without Java
# Where the Treebank's tokeniser is not followed: smileys, dates' apostrophes, a letter before the end.
OTHERWISE = {
    "smile :) :-) :( ;)",
    ":)",
    ":-)",
    "=)",
    ":D",
    "A.",
    "v.",
    "I. I.",
    "5:30pm 5pm 5 pm 10a.m.",
    "fo'c'sle B'nai Shi'ite Qur'an Hawai'i",
    "'tisn't",
}


def test_the_official_table_of_tokens(official: Official):
    for row in official("caption/ptb_tokenize.json"):
        assert tokens(row["caption"]) == row["tokens"], row["caption"]


def test_more_of_the_official_tokeniser_and_where_ours_differs(official: Official):
    table = official("caption/ptb_more.json")
    differ = {row["caption"] for row in table if tokens(row["caption"]) != row["tokens"]}
    assert differ == OTHERWISE
    assert len(table) > 200


@pytest.mark.parametrize("ending", [".", "!", "?", ",", ";", "...", " -"])
def test_punctuation_is_no_token(ending: str):
    assert tokens(f"A dog{ending}") == ["a", "dog"]


def test_real_captions_have_the_official_tokens(annotations: Path):
    """By the tokeniser itself, where it and Java are there."""
    reason = no_meteor()
    if reason is not None:
        pytest.skip(f"PTBTokenizer: {reason}")
    with (annotations.parent / "flickr8k" / "captions.txt").open() as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    package = importlib.util.find_spec("pycocoevalcap")
    assert package is not None
    assert package.submodule_search_locations
    jar = Path(package.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run(command, input="\n".join(captions), capture_output=True, text=True, check=True, timeout=120)
    marks = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
    for caption, line in zip(captions, done.stdout.split("\n"), strict=False):
        assert tokens(caption) == [word for word in line.split(" ") if word and word not in marks]


def cases(official: Official) -> dict[str, tuple[list[list[list[str]]], list[list[str]], dict[str, Any]]]:
    """Name -> each image's references and candidate in tokens, and what pycocoevalcap made of them."""
    made = official("caption/madeup20.json")
    ids = [str(name) for name in made["image_ids"]]
    found = {"madeup20": ([made["references"][i] for i in ids], [made["candidates"][i] for i in ids], made["expected"])}
    for name, case in official("caption/degenerate.json").items():
        found[name] = (case["references"], case["candidates"], case["expected"])
    return {
        name: ([[tokens(one) for one in image] for image in theirs], [tokens(one) for one in ours], expected)
        for name, (theirs, ours, expected) in found.items()
    }


def test_the_official_numbers(official: Official):
    for name, (references, candidates, expected) in cases(official).items():
        counts = [bleu_counts(mine, theirs) for mine, theirs in zip(candidates, references, strict=True)]
        found = bleu(total({str(n): one for n, one in enumerate(counts)}))
        ciders = cider(candidates, references)
        rouges = [rouge_l(mine, theirs) for mine, theirs in zip(candidates, references, strict=True)]
        found |= {"CIDEr": sum(ciders) / len(ciders), "ROUGE_L": sum(rouges) / len(rouges)}
        for metric, value in found.items():
            assert value == pytest.approx(expected[metric], rel=1e-9, abs=0), (name, metric)
        assert ciders == pytest.approx(expected["CIDEr_per_image"], rel=1e-9)
        assert rouges == pytest.approx(expected["ROUGE_L_per_image"], rel=1e-9)
        for n, one in enumerate(counts):
            for metric, value in bleu(total({"one": one})).items():
                assert value == pytest.approx(expected[f"{metric}_per_image"][n], rel=1e-9, abs=0), (name, metric, n)


def test_the_official_meteor(official: Official):
    """Also an empty candidate's, which is 0."""
    reason = no_meteor()
    if reason is not None:
        pytest.skip(f"METEOR: {reason}")
    references, candidates, expected = cases(official)["madeup20"]
    score, scores = meteor([*candidates], [*references])
    assert score == pytest.approx(expected["METEOR"], abs=1e-6)
    assert scores == pytest.approx(expected["METEOR_per_image"], abs=1e-6)
    assert meteor([[], ["two", "dogs"]], [[["a", "cat"]], [["two", "dogs"]]])[1] == [0, 1]


def test_meteor_without_java_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"METEOR: .*pip install 'hialign\[eval-java\]'"):
        meteor([["a"]], [[["a"]]])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="METEOR: there is no java on the PATH"):
        meteor([["a"]], [[["a"]]])


def test_bleu_by_hand():
    """Of "the the cat" one "the" and "cat" are right; the nearest lengths are 2 and 4, and the shorter counts."""
    counts = bleu_counts(["the", "the", "cat"], [["the", "cat"], ["a", "cat", "sat", "down"]])
    assert counts["correct_1"] == 2
    assert counts["guess_1"] == 3
    assert counts["reference_length"] == 2
    assert bleu(total({"one": counts}))["Bleu_1"] == pytest.approx(2 / 3)


def test_rouge_takes_precision_and_recall_of_different_references():
    """Precision 1 with the longer reference, recall 1 with the shorter one."""
    assert rouge_l(["a", "cat"], [["a", "black", "cat", "here"], ["cat"]]) == pytest.approx(1)


def test_the_longest_common_subsequence_is_that_of_the_slow_table():
    rng = random.Random(0)
    for _ in range(100):
        a, b = ([rng.choice("abcd") for _ in range(rng.randrange(9))] for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, j in itertools.product(range(len(a)), range(len(b))):
            table[i + 1][j + 1] = table[i][j] + 1 if a[i] == b[j] else max(table[i][j + 1], table[i + 1][j])
        assert common_length(a, b) == table[-1][-1]


def test_cider_is_that_of_a_slow_loop():
    rng = random.Random(0)
    make = lambda: [rng.choice(["a", "dog", "cat", "runs"]) for _ in range(rng.randrange(1, 8))]  # noqa: E731
    references = [[make() for _ in range(3)] for _ in range(6)]
    candidates = [make() for _ in range(6)]

    def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    def weighed(words: list[str], n: int) -> dict[tuple[str, ...], float]:
        seen = lambda gram: sum(any(gram in grams(one, n) for one in image) for image in references)  # noqa: E731
        return {gram: k * math.log(6 / max(1, seen(gram))) for gram, k in Counter(grams(words, n)).items()}

    for n_image, found in enumerate(cider(candidates, references)):
        mine, value = candidates[n_image], 0.0
        for theirs, n in itertools.product(references[n_image], range(1, 5)):
            a, b = weighed(mine, n), weighed(theirs, n)
            lengths = math.hypot(*a.values()) * math.hypot(*b.values())
            if lengths:
                difference = max(0, len(mine) - 1) - max(0, len(theirs) - 1)
                product = sum(min(a[gram], b[gram]) * b[gram] for gram in a.keys() & b.keys())
                value += product / lengths * math.exp(-(difference**2) / 72)
        assert found == pytest.approx(10 * value / 12)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="2 candidates to 1 images' references"):
        cider([["a"], ["b"]], [[["a"]]])
    for measure in (bleu_counts, rouge_l):
        with pytest.raises(ValueError, match="an image without a reference"):
            measure(["a"], [])


@pytest.fixture
def made(official: Official, tmp_path: Path) -> CocoCaptions:
    """The made-up captions in COCO's layout."""
    fixture = official("caption/madeup20.json")
    content = {
        "images": [{"id": name, "file_name": f"{name}.jpg"} for name in fixture["image_ids"]],
        "annotations": [
            {"image_id": int(name), "caption": caption, "id": n}
            for name, captions in fixture["references"].items()
            for n, caption in enumerate(captions)
        ],
    }
    (tmp_path / "captions_val2014.json").write_text(json.dumps(content))
    results = [{"image_id": int(name), "caption": caption} for name, caption in fixture["candidates"].items()]
    (tmp_path / "results.json").write_text(json.dumps(results[::-1]))
    return CocoCaptions(root=str(tmp_path), metrics=OWN)


def test_the_official_scores_from_official_files(official: Official, made: CocoCaptions):
    expected = official("caption/madeup20.json")["expected"]
    scores = made.score(made.read(f"{made.root}/results.json"))
    assert list(scores.numbers) == ["CIDEr", "Bleu_4", "Bleu_3", "Bleu_2", "Bleu_1", "ROUGE_L"]
    for name, value in scores.numbers.items():
        assert value == pytest.approx(expected[name], abs=1e-9)
    assert numbers(scores.units, statistic) == scores.numbers
    assert [row["CIDEr"] for row in scores.rows] == pytest.approx(expected["CIDEr_per_image"])
    assert scores.flags == []


def test_the_official_scores_of_real_captions(annotations: Path, tmp_path: Path):
    """Each of 80 images' first caption beside its others; pycocoevalcap 1.2 gave the numbers. One has "22 3/4 st."."""
    lines = (annotations / "coco" / "caps_boxes_coco2014_val_80.jsonl").read_text().splitlines()
    texts = [json.loads(line)["captions"] for line in lines]
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(len(texts))],
        "annotations": [{"image_id": n, "caption": one} for n, image in enumerate(texts) for one in image[1:]],
    }
    (tmp_path / "captions_val2014.json").write_text(json.dumps(content))
    found = CocoCaptions(root=str(tmp_path), metrics=OWN).score({str(n): one[0] for n, one in enumerate(texts)})
    expected = {
        "CIDEr": 0.9532002086572928,
        "Bleu_4": 0.16551976034727686,
        "Bleu_3": 0.2724857546703227,
        "Bleu_2": 0.43187872048198306,
        "Bleu_1": 0.6326530612237303,
        "ROUGE_L": 0.44147384231183906,
    }
    assert found.numbers == {name: pytest.approx(value, abs=1e-9) for name, value in expected.items()}


def test_a_mixed_fraction_is_one_token_to_rouge_and_two_to_bleu(made: CocoCaptions, tmp_path: Path):
    answers = dict.fromkeys(made.entries, "a cake") | {"1002": "1 1/2 cake"}
    scores = made.score(answers)
    assert scores.units["1002"]["length"] == 3
    assert scores.units["1002"]["ROUGE_L"] == rouge_l(
        ["1 1/2", "cake"], [tokens(one) for one in made.references["1002"]]
    )


def test_the_statistic_works_on_arrays_of_sums(made: CocoCaptions):
    scores = made.score(made.read(f"{made.root}/results.json"))
    doubled = {name: value * [1, 2] for name, value in total(scores.units).items()}
    for name, values in statistic(doubled).items():
        assert values == pytest.approx([scores.numbers[name]] * 2)


def test_meteor_is_left_out_with_a_flag_where_it_cannot_be_computed(
    made: CocoCaptions, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    captions = CocoCaptions(root=made.root, metrics=["METEOR", "ROUGE_L"])
    scores = captions.score(captions.read(f"{made.root}/results.json"))
    assert list(scores.numbers) == ["ROUGE_L"]
    assert scores.flags[0].startswith("METEOR is left out: ")


def test_spice_and_unknown_metrics_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"SPICE is not offered: .*Stanford CoreNLP 3.6.0"):
        CocoCaptions(root="", metrics=["SPICE"])
    with pytest.raises(ValueError, match="metrics: got BLEU; wanted some of CIDEr, Bleu"):
        CocoCaptions(root="", metrics=["BLEU"])
    with pytest.raises(ValueError, match="metrics: got none"):
        CocoCaptions(root="", metrics=[])


def test_some_images_may_be_chosen(made: CocoCaptions, tmp_path: Path):
    file = tmp_path / "ids.json"
    file.write_text("[1002, 1001]")
    chosen = CocoCaptions(root=made.root, ids=str(file), images="val", metrics=OWN)
    assert [(question.id, question.image) for question in chosen.questions()] == [
        ("1002", "val/1002.jpg"),
        ("1001", "val/1001.jpg"),
    ]
    assert chosen.score({"1001": "a man", "1002": "a cake"}).numbers["CIDEr"] > 0
    file.write_text("[7]")
    with pytest.raises(ValueError, match=r"ids.json: image 7, which .* does not have"):
        CocoCaptions(root=made.root, ids=str(file), metrics=OWN).questions()


def test_a_single_image_and_empty_captions_are_flagged(made: CocoCaptions, tmp_path: Path):
    file = tmp_path / "ids.json"
    file.write_text("[1002]")
    scores = CocoCaptions(root=made.root, ids=str(file), metrics=OWN).score({"1002": "..."})
    assert set(scores.numbers.values()) == {0.0}
    assert [flag.split(" ")[0] for flag in scores.flags] == ["CIDEr", "1"]


def test_our_answers_and_llava_s_are_read_and_missing_ones_named(made: CocoCaptions, tmp_path: Path):
    answers = {name: f"a {name}" for name in made.entries}
    for entry in ("id", "answer"), ("question_id", "text"):
        file = tmp_path / "answers.jsonl"
        file.write_text("\n".join(json.dumps(dict(zip(entry, pair, strict=True))) for pair in answers.items()))
        assert made.read(str(file)) == answers
    answers.pop("1001")
    with pytest.raises(ValueError, match="1 not answered: 1001"):
        made.score(answers)
    file = tmp_path / "twice.json"
    file.write_text(json.dumps([{"image_id": name, "caption": "x"} for name in (*made.entries, "1001")]))
    with pytest.raises(ValueError, match="1 answered twice: 1001"):
        made.read(str(file))
    with pytest.raises(ValueError, match="no such file; wanted captions in COCO's layout"):
        CocoCaptions(root=str(tmp_path / "none"), metrics=OWN).questions()


def test_an_id_may_have_zeros_before_it_as_in_coco_s_file_names(made: CocoCaptions, tmp_path: Path):
    rows = [{"id": name.zfill(12), "answer": name} for name in made.entries]
    (tmp_path / "zeros.json").write_text(json.dumps(rows))
    assert made.read(str(tmp_path / "zeros.json")) == {name: name for name in made.entries}
