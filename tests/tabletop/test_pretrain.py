"""The base's pretraining: what its batches hold, that it learns, and that a kill costs nothing but time."""

from __future__ import annotations

import csv

import pytest
import torch

from hialign.batch import Tokens
from hialign.tabletop import pretrain
from hialign.tabletop.language import mentions
from hialign.tabletop.model import untrained
from hialign.tabletop.pretrain import (
    NOTHING,
    READ_COOCCURRENCE,
    Phase,
    ReadingBatch,
    Towers,
    contrast_batch,
    notes,
    reading_batch,
    rows,
    text_batch,
)
from hialign.tabletop.world import KINDS, PLACES, sample


@pytest.fixture(scope="module")
def model():
    return untrained(seed=0)


def test_pixels_are_what_the_image_processor_gives(model):
    from hialign.tabletop.render import image

    scene = sample("train", 3, seed=0)
    wanted = model.processor.image_processor(images=[image(scene, noise=0.5)], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(torch.from_numpy(pretrain.pixels(scene, 0.5)).float(), wanted, atol=1e-5, rtol=0)


def test_a_contrast_batch_names_what_each_region_shows(model):
    words = model.clip_tokenizer
    batch = contrast_batch(0, 16, seed=0, words=words)
    assert len(batch.pixel_values) == 16
    assert len(batch.captions) == 8
    phrases = words.batch_decode(batch.phrases.ids, skip_special_tokens=True)
    assert len(set(phrases)) == len(phrases)
    shown = [(picture, place, phrases[number]) for picture, place, number in batch.region.tolist()]
    captions = words.batch_decode(batch.captions.ids, skip_special_tokens=True)
    for picture, caption in enumerate(captions):
        regions = {(PLACES[place], text.split()[-1]) for p, place, text in shown if p == picture and text != NOTHING}
        assert regions == {(mention.place, mention.kind) for mention in mentions(caption)}
    assert sum(text == NOTHING for *_, text in shown) == 16


def test_a_quarter_of_a_contrast_batch_are_twins_that_differ_in_one_thing(model):
    batch = contrast_batch(0, 16, seed=0, words=model.clip_tokenizer)
    texts = model.clip_tokenizer.batch_decode(batch.phrases.ids, skip_special_tokens=True)
    shown = [
        {(place, texts[n]) for p, place, n in batch.region.tolist() if p == picture and texts[n] != NOTHING}
        for picture in range(8)
    ]
    for scene, twin in zip(shown[::2], shown[1::2], strict=True):
        assert 1 <= len(scene ^ twin) <= 2
    assert not torch.equal(batch.pixel_values[0], batch.pixel_values[1])


def test_the_mean_of_a_place_runs_over_its_own_patches(model):
    towers = Towers(model)
    side = 6
    cells = torch.arange(9.0).reshape(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    hidden = torch.cat([torch.full((1, 1, 1), -7.0), cells.reshape(1, side * side, 1)], dim=1)
    assert towers.places(hidden).flatten().tolist() == list(range(9))


def test_notes_leave_things_out_as_often_as_asked():
    kept = total = 0
    for index in range(300):
        scene = sample("train", index, seed=0)
        assert len(mentions(notes(scene, scene.rng(1), kept=1.0))) == len(scene.things)
        kept += len(mentions(notes(scene, scene.rng(2), kept=0.7)))
        total += len(scene.things)
    assert abs(kept / total - 0.7) < 0.05
    assert notes(scene, scene.rng(1), kept=0.0) == "notes: nothing"


def test_text_rows_begin_end_and_hold_no_image(model):
    words = model.processor.tokenizer
    batch = text_batch(0, 40, seed=0, words=words)
    assert (batch.ids[:, 0] == words.bos_token_id).all()
    assert (batch.ids[torch.arange(40), batch.mask.sum(dim=1) - 1] == words.eos_token_id).all()
    assert not (batch.ids == words.image_token_id).any()
    texts = words.batch_decode(batch.ids)
    assert any("notes:" in text for text in texts)
    assert any(text.startswith("<s>user:\nis there") or "\nis there a" in text for text in texts)
    assert torch.equal(batch.labels == -100, batch.mask == 0)


def test_rows_are_padded_on_the_right(model):
    words = model.clip_tokenizer
    made = rows(["a cup", f"a small {KINDS[3]} at the top"], words)
    assert made.ids[0].tolist() == [
        words.bos_token_id,
        *words("a cup", add_special_tokens=False)["input_ids"],
        words.eos_token_id,
        *[words.pad_token_id] * 4,
    ]
    assert made.mask.tolist() == [[1] * 4 + [0] * 4, [1] * 8]


def test_placeholders_stand_for_the_words_of_what_is_in_each_place(model):
    """All but the things that are taken for nothing; what is said is not changed by them."""
    words, size = model.processor.tokenizer, 40
    batch = reading_batch(0, size, seed=0, words=words)
    assert (batch.text.ids == words.image_token_id).sum(dim=1).tolist() == [len(PLACES)] * size
    assert (batch.text.labels[batch.text.ids == words.image_token_id] == -100).all()
    lost = 0
    for number in range(size):
        things = {
            thing.place: thing for thing in sample("train", number, seed=0, cooccurrence=READ_COOCCURRENCE).things
        }
        for place, ids, weights in zip(
            PLACES,
            batch.words.unflatten(0, (size, -1))[number],
            batch.weights.unflatten(0, (size, -1))[number],
            strict=True,
        ):
            read = [word.strip() for word in words.batch_decode(ids[:, None])]
            thing = things.get(place)
            if thing is None or read[0] == NOTHING:
                lost += thing is not None
                assert read[0] == NOTHING
                assert weights.tolist() == [1, 0, 0, 0, 0]
                continue
            assert (read[0], read[1]) == (thing.colour, thing.kind)
            assert weights[1] + weights[2] == pytest.approx(1)
            assert weights[3:].tolist() == [thing.size == "small", thing.state == "broken"]
    assert 0 < lost < 30


def test_a_placeholder_is_read_as_the_sum_of_its_words(model):
    """With weight on one word alone, the loss is that of a row which holds this word."""
    words = model.processor.tokenizer
    ids = words("<s><image> cup</s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    labels = ids.masked_fill(ids == words.image_token_id, -100)
    text = Tokens(ids=ids, mask=torch.ones_like(ids), labels=labels)
    (red,) = words(" red", add_special_tokens=False)["input_ids"]
    said = ReadingBatch(text, torch.tensor([[red, 5]]), torch.tensor([[1.0, 0.0]]))
    plain = Tokens(ids=ids.masked_fill(ids == words.image_token_id, red), mask=text.mask, labels=labels)
    with torch.no_grad():
        torch.testing.assert_close(
            pretrain.reading_loss(model, said)["text"], pretrain.language_loss(model, plain)["text"]
        )


def test_rows_of_answers_ask_several_questions_and_predict_their_answers_alone(model):
    words, size = model.processor.tokenizer, 24
    batch = reading_batch(0, size, seed=0, words=words, row=pretrain._answered)
    asked = []
    for ids, labels in zip(batch.text.ids, batch.text.labels, strict=True):
        text = words.decode(ids)
        asked.append(text.count("?"))
        answers = words.decode(labels[labels != -100])
        assert "?" not in answers
        assert answers.count("</s>") == text.count("?")
    assert {min(asked), max(asked)} == {1, 6}


def test_rows_of_captions_predict_the_caption_alone(model):
    words, size = model.processor.tokenizer, 12
    batch = reading_batch(0, size, seed=0, words=words, row=pretrain._described)
    for number, labels in enumerate(batch.text.labels):
        scene = sample("train", number, seed=0, cooccurrence=READ_COOCCURRENCE)
        said = words.decode(labels[labels != -100])
        assert {mention.kind for mention in mentions(said)} == set(scene.kinds)
        assert "describe" not in said


def test_captions_and_answers_are_two_means_over_the_two_halves(model):
    """So that the few tokens of the answers count as much as the captions' many."""
    losses = pretrain.answering_losses(model, 100, 8, seed=0)
    words = model.processor.tokenizer
    answered = reading_batch(104, 4, seed=0, words=words, row=pretrain._answered)
    assert losses.keys() == {"caption", "answer"}
    assert losses["answer"].item() == pretrain.reading_loss(model, answered)["text"].item()


@pytest.mark.parametrize(("part", "killed_at"), [("language", 5), ("reading", 9), ("towers", 5), ("answering", 9)])
def test_a_kill_changes_neither_the_weights_nor_the_curve(part, killed_at, tmp_path, monkeypatch):
    def run(folder, *, steps, killed_at=None):
        folder.mkdir(exist_ok=True)
        model = untrained(seed=0)
        begin = getattr(pretrain, f"pretrain_{part}")
        name = {"language": "text_batch", "reading": "reading_batch", "towers": "contrast_batch"}
        name = name.get(part, "reading_batch")
        make, calls = getattr(pretrain, name), []

        def counted(*args, **kwargs):
            calls.append(1)
            if killed_at is not None and len(calls) > killed_at:
                raise KeyboardInterrupt
            return make(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(pretrain, name, counted)
            begin(model, Phase(steps, 8, 1e-3, warmup=2), seed=0, folder=folder, say=lambda line: None, every=2)
        return {key: value.clone() for key, value in model.root.state_dict().items()}

    straight = run(tmp_path / "whole", steps=6)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", steps=6, killed_at=killed_at)
    resumed = run(tmp_path / "cut", steps=6)
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    names = ("reading1", "reading2") if part == "reading" else (part,)
    for name in names:
        whole, cut = (list(csv.reader((tmp_path / f / f"{name}.csv").open(newline=""))) for f in ("whole", "cut"))
        assert whole == cut
        assert [row[0] for row in whole] == ["step", "2", "4", "6"]


def test_a_few_steps_lower_both_losses_of_the_towers_and_move_nothing_else(tmp_path):
    model = untrained(seed=0)
    before = {key: value.clone() for key, value in model.root.state_dict().items()}
    phase = Phase(12, 32, 2e-3, warmup=2)
    pretrain.pretrain_towers(model, phase, seed=0, folder=tmp_path, say=lambda line: None, every=4)
    header, first, *_, last = list(csv.reader((tmp_path / "towers.csv").open(newline="")))
    assert header == ["step", "caption", "region"]
    assert float(last[1]) < float(first[1])
    assert float(last[2]) < float(first[2])
    after = model.root.state_dict()
    moved = {".".join(key.split(".")[:2]) for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"llava.model", "alignment.text", "alignment.heads", "alignment.log_temperature"}
    still = [key for key in before if "language_model" in key or "projector" in key or "llm_" in key]
    assert all(torch.equal(before[key], after[key]) for key in still)
