"""Retrieval and captions give each image its own captions, count what they saw, and skip nothing in silence."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hialign.batch import PairBatch, Tokens
from hialign.data import (
    BadRecord,
    CaptionedImage,
    Dataset,
    LanguageCollator,
    Skipped,
    flickr8k,
)
from hialign.data.collate import PairItem
from hialign.evaluation import captions as captions_module
from hialign.evaluation.asking import Query, ask
from hialign.evaluation.captions import Captions
from hialign.evaluation.retrieval import Retrieval
from hialign.evaluation.subject import Subject
from hialign.models import Model, generate, tiny

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_captioned: Callable[..., Path]) -> Path:
    return draw_captioned(tmp_path_factory.mktemp("drawn"), NUM_IMAGES, seed=0)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny(seed=0, width=32, layers=2, image_size=32)


@pytest.fixture
def subject(make_subject: Callable[..., Subject], model: Model, pictures: Path) -> Subject:
    """A random model and all of the pictures, four at a time."""
    return make_subject(model, lambda: flickr8k(str(pictures), holdout=0.0), batch_size=4)


def broken(pictures: Path, folder: Path, *numbers: int) -> Path:
    """The pictures anew with some of them broken."""
    shutil.copytree(pictures, folder)
    for number in numbers:
        (folder / "images" / f"{number:05d}.png").write_bytes(b"no picture")
    return folder


class Knowing(nn.Module):
    """A root that reads off each image's grey level, and each caption's one token, whom it belongs to."""

    def __init__(self, level_of: Callable[[Tensor], Tensor] = lambda number: number) -> None:
        super().__init__()
        self.level_of = level_of
        self.rows: list[int] = []

    def forward(self, reader: Callable[[Any, Any], Any], batch: PairBatch) -> Any:
        assert not torch.is_grad_enabled()
        assert not self.training
        return reader(self, batch)

    def image_embeddings(self, pixel_values: Tensor, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        self.rows.append(len(pixel_values))
        numbers = self.level_of((pixel_values.mean(dim=(1, 2, 3)) * 255 / 40).round().long())
        return {pair: F.one_hot(numbers, NUM_IMAGES).float() for pair in pairs}

    def text_embeddings(self, caption: Tokens, clip_caption: Tokens, pairs: tuple[str, ...]) -> dict[str, Tensor]:
        return {pair: F.one_hot(caption.ids[:, 0], NUM_IMAGES).float() for pair in pairs}


class Numbered:
    """A pair collator whose captions are "number word": the number is the caption's one token."""

    def row(self, record: CaptionedImage, caption: str, pixel_values: Tensor) -> PairItem:
        return PairItem(record.id, pixel_values, [int(caption.split()[0])], [0])

    def collate(self, items: list[PairItem]) -> PairBatch:
        def tokens(rows: list[list[int]]) -> Tokens:
            ids = torch.tensor(rows)
            return Tokens(ids=ids, mask=torch.ones_like(ids), labels=torch.full_like(ids, -100))

        return PairBatch(
            records=tuple(item.record for item in items),
            pixel_values=torch.stack([item.pixel_values for item in items]),
            caption=tokens([item.caption for item in items]),
            clip_caption=tokens([item.clip_caption for item in items]),
        )


class Grey:
    """An image processor that leaves images as they are."""

    def __call__(self, *, images: list[Image.Image], return_tensors: str) -> dict[str, Tensor]:
        arrays = [np.asarray(image, dtype=np.float32) / 255 for image in images]
        return {"pixel_values": torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2)}


@pytest.fixture
def known(subject: Subject, tmp_path: Path) -> Subject:
    """Six grey images with 1, 3, 2, 1, 4 and 2 captions, and a root that knows which belong together."""
    records = []
    for number, count in enumerate((1, 3, 2, 1, 4, 2)):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (4, 4), (40 * number,) * 3).save(file)
        records.append(CaptionedImage(f"{number}", file, tuple(f"{number} word{i}" for i in range(count))))
    language = replace_processor(subject.language)
    return replace(
        subject,
        heldout=lambda: Dataset("known", records),
        model=replace(subject.model, root=Knowing()),  # type: ignore[arg-type]
        language=language,
        pairs=Numbered(),  # type: ignore[arg-type]
        batch_size=4,
    )


def replace_processor(language: LanguageCollator) -> LanguageCollator:
    return LanguageCollator(
        language.tokenizer, Grey(), image_token_id=language.image_token_id, num_image_tokens=language.num_image_tokens
    )


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 100])
def test_a_model_that_knows_finds_every_image_and_caption(known: Subject, batch_size: int) -> None:
    scores = Retrieval()(replace(known, batch_size=batch_size))
    assert (scores["images"], scores["captions"]) == (6, 13)
    for pair in ("clip", "projector"):
        for direction in ("image_to_text", "text_to_image"):
            assert scores[f"{pair}/{direction}/recall@1"] == 1
            assert scores[f"{pair}/{direction}/median_rank"] == 1
        assert scores[f"{pair}/alignment"] == pytest.approx(0, abs=1e-12)
    # chance: an image has c of 13 captions, a caption one of 6 images
    assert scores["clip/image_to_text/chance@1"] == pytest.approx(13 / 13 / 6)
    assert scores["clip/text_to_image/chance@1"] == pytest.approx(1 / 6)


def test_a_model_that_takes_each_image_for_the_next_finds_none(known: Subject) -> None:
    wrong = replace(known.model, root=Knowing(lambda number: (number + 1) % NUM_IMAGES))  # type: ignore[arg-type]
    scores = Retrieval()(replace(known, model=wrong))
    assert scores["clip/image_to_text/recall@1"] == scores["clip/text_to_image/recall@1"] == 0
    assert scores["clip/text_to_image/recall@5"] == 0  # all others score 0 too, and ties count as lost


def test_retrieval_reads_each_image_once(known: Subject) -> None:
    Retrieval()(known)
    assert known.model.root.rows == [4, 2]


def test_retrieval_measures_the_pairs_that_are_asked_for(subject: Subject) -> None:
    assert {name.split("/")[0] for name in Retrieval(["projector"])(subject)} == {"images", "captions", "projector"}
    assert {name.split("/")[0] for name in Retrieval(["clip", "llm"])(subject)} == {"images", "captions", "clip", "llm"}


def test_retrieval_on_a_random_model_stays_within_bounds_and_does_not_depend_on_the_batch(subject: Subject) -> None:
    one, four = Retrieval()(replace(subject, batch_size=1)), Retrieval()(subject)
    assert (four["images"], four["captions"]) == (6, 18)
    for name, value in four.items():
        assert math.isfinite(value), name
        assert value == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
        if "recall" in name or "chance" in name:
            assert 0 <= value <= 1


@pytest.mark.parametrize("benchmark", [Retrieval(), Captions(max_new_tokens=2)])
def test_a_broken_image_raises_by_file_and_record(
    subject: Subject, pictures: Path, tmp_path: Path, benchmark: Any
) -> None:
    folder = broken(pictures, tmp_path / "broken", 2)
    with pytest.raises(BadRecord, match=r"00002\.png: 00002\.png: the image cannot be read"):
        benchmark(replace(subject, heldout=lambda: flickr8k(str(folder), holdout=0.0)))


def test_a_broken_image_is_left_out_reported_and_not_counted_where_asked_for(
    subject: Subject, pictures: Path, tmp_path: Path
) -> None:
    folder = broken(pictures, tmp_path / "broken", 0, 2)
    seen: list[Skipped] = []
    heldout = flickr8k(str(folder), holdout=0.0, on_error="skip")
    skipping = replace(subject, heldout=lambda: heldout, on_skip=seen.append)
    scores = Retrieval()(skipping)
    assert (scores["images"], scores["captions"]) == (4, 12)
    assert [skipped.record for skipped in seen] == ["00000.png", "00002.png"]
    good = [record for record in subject.heldout().records if record.id not in ("00000.png", "00002.png")]
    without = Retrieval()(replace(subject, heldout=lambda: Dataset("good", good)))
    assert scores == pytest.approx(without, rel=1e-4, abs=1e-5)
    assert Captions(max_new_tokens=2)(skipping)["images"] == 4


def test_a_batch_of_broken_images_only_is_passed_over(subject: Subject, pictures: Path, tmp_path: Path) -> None:
    folder = broken(pictures, tmp_path / "broken", 2, 3)
    heldout = flickr8k(str(folder), holdout=0.0, on_error="skip")
    skipping = replace(subject, heldout=lambda: heldout, on_skip=lambda skipped: None, batch_size=2)
    assert Retrieval()(skipping)["images"] == 4


def by_hand(subject: Subject) -> tuple[float, int]:
    """The summed loss of every reference and the number of tokens, one row at a time."""
    total, count = 0.0, 0
    for record in subject.heldout().records:
        for caption in record.captions:
            with Image.open(record.image) as image:
                inputs = subject.model.processor(images=image.convert("RGB"), text="<image>", return_tensors="pt")
            ids = subject.model.processor.tokenizer(caption, add_special_tokens=False)["input_ids"]
            target = torch.tensor([[*ids, subject.model.processor.tokenizer.eos_token_id]])
            whole = torch.cat([subject.language.prompt().ids, target], dim=1)
            with torch.no_grad():
                logits = subject.model.root.llava(input_ids=whole, pixel_values=inputs["pixel_values"]).logits[0]
            total += F.cross_entropy(logits[-target.shape[1] - 1 : -1], target[0], reduction="sum").item()
            count += target.shape[1]
    return total, count


def test_the_captions_loss_is_the_mean_over_all_reference_tokens_and_perplexity_its_exponential(
    subject: Subject,
) -> None:
    scores = Captions(max_new_tokens=2)(subject)
    total, count = by_hand(subject)
    assert scores["loss"] == pytest.approx(total / count, rel=1e-5)
    assert scores["perplexity"] == math.exp(scores["loss"])
    assert scores["images"] == 6
    assert Captions(max_new_tokens=2)(replace(subject, batch_size=1))["loss"] == pytest.approx(scores["loss"], rel=1e-5)


def answers(subject: Subject) -> dict[str, str]:
    lines = (subject.answers / "captions.jsonl").read_text().splitlines()
    return {row["id"]: row["answer"] for row in map(json.loads, lines)}


def test_every_image_gets_the_caption_that_it_would_get_alone(subject: Subject) -> None:
    """Of a model that sees: under random weights all images get one caption."""
    weights = subject.model.root.llava.model.multi_modal_projector.linear_2.weight
    before = weights.detach().clone()
    with torch.no_grad():
        weights.mul_(300)
    try:
        scores = Captions(max_new_tokens=6)(subject)
        found = answers(subject)
        assert list(found) == [record.id for record in subject.heldout().records]
        for record in subject.heldout().records:
            with Image.open(record.image) as image:
                inputs = subject.model.processor(images=image.convert("RGB"), text="<image>", return_tensors="pt")
            (alone,) = generate(subject.model, inputs["pixel_values"], subject.language.prompt(), max_new_tokens=6)
            assert found[record.id] == alone
    finally:
        with torch.no_grad():
            weights.copy_(before)
    assert scores["distinct"] == len(set(found.values())) / 6 > 1 / 6


def test_only_missing_captions_are_generated_and_the_scores_stay(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, before = Captions(max_new_tokens=3)(subject), answers(subject)
    file = subject.answers / "captions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:1] + lines[2:4] + [lines[4][:20]]))
    asked: list[int] = []

    def counted(model: Model, pixel_values: Tensor, prompt: Tokens, *, max_new_tokens: int) -> list[str]:
        asked.append(len(pixel_values))
        return generate(model, pixel_values, prompt, max_new_tokens=max_new_tokens)

    monkeypatch.setattr(captions_module, "generate", counted)
    assert Captions(max_new_tokens=3)(subject) == scores
    assert asked == [1, 2]  # the second of the first four, and the last two
    assert answers(subject) == before
    Captions(max_new_tokens=3)(replace(subject, name="finetune/step-000006"))
    assert asked == [1, 2, 4, 2]


def test_as_many_samples_are_printed_as_asked_for(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    Captions(max_new_tokens=2, samples=2)(subject)
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.endswith(".png")] == ["00000.png", "00001.png"]
    assert shown[2].strip() == f"reference: {subject.heldout().records[0].captions[0]}"


def test_answers_of_another_heldout_set_are_not_counted(subject: Subject) -> None:
    first = replace(subject, heldout=lambda: Dataset("first", subject.heldout().records[:3]))
    rest = replace(subject, heldout=lambda: Dataset("rest", subject.heldout().records[3:]))
    assert Captions(max_new_tokens=2)(first)["images"] == 3
    assert Captions(max_new_tokens=2)(rest)["images"] == 3


@pytest.mark.parametrize("benchmark", [Retrieval(), Captions(max_new_tokens=2)])
def test_images_that_are_all_broken_are_an_error_that_says_so(
    subject: Subject, pictures: Path, tmp_path: Path, benchmark: Any
) -> None:
    folder = broken(pictures, tmp_path / "broken", *range(NUM_IMAGES))
    heldout = flickr8k(str(folder), holdout=0.0, on_error="skip")
    with pytest.raises(ValueError, match="6"):
        benchmark(replace(subject, heldout=lambda: heldout, on_skip=lambda skipped: None))


def test_retrieval_refuses_an_unknown_pair_before_it_begins() -> None:
    with pytest.raises(ValueError, match="ears"):
        Retrieval(["ears"])


def test_a_question_without_an_image_is_answered_beside_those_with_one(
    make_subject: Callable[..., Subject], model: Model
) -> None:
    """Alone and in any company the same: rows with and without images never share a batch."""
    seen = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    queries = [
        Query("1", lambda: seen, "what is it?"),
        Query("2", None, "what is it?"),
        Query("3", lambda: -seen, "what is it?"),
        Query("4", None, "is it?"),
    ]
    subject = make_subject(model, lambda: pytest.fail("no held-out data"), batch_size=4, template="v1")
    together = ask(subject, "all", queries, max_new_tokens=5, made_by={})
    alone = {query.id: ask(subject, query.id, [query], max_new_tokens=5, made_by={})[query.id] for query in queries}
    assert together == alone
    assert list(together) == ["1", "2", "3", "4"]


def test_neither_an_image_nor_a_question_is_nothing_to_answer(subject: Subject) -> None:
    with pytest.raises(ValueError, match="neither an image nor a question"):
        subject.language.prompt(1, None, image=False)
