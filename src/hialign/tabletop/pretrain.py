"""How the base model is made: towers by contrast on unbiased scenes, the language model on the world's biased text."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hialign.batch import Tokens
from hialign.data.records import IMAGE, Turn
from hialign.data.templates import Segment, chat, tokenise
from hialign.data.vqa import SHORT_ANSWER
from hialign.losses import next_token, symmetric_info_nce
from hialign.models import Model
from hialign.tabletop.language import (
    CHANGES,
    DESCRIBE,
    POSITIVE_BIAS,
    TOPICS,
    alter,
    caption,
    phrase,
    question,
)
from hialign.tabletop.model import EMBED, VISION
from hialign.tabletop.records import some_questions
from hialign.tabletop.render import render
from hialign.tabletop.world import COLOURS, KINDS, PLACES, SIDE, SIZES, STATES, Scene, sample

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, which the image processor subtracts
_STD = (0.26862954, 0.26130258, 0.27577711)
NOTHING = "nothing"
READ_COOCCURRENCE = 0.8  # in the language model's text, milder than in what it is fine-tuned on
_TOWER, _NOISE, _EMPTY, _TEXT, _READING = range(10, 15)  # what a scene's generators are for; small ones are taken


@dataclass(frozen=True)
class Phase:
    """The length of one part of the pretraining and how fast it learns."""

    steps: int
    batch_size: int
    lr: float
    warmup: int = 200
    weight_decay: float = 0.05


TOWERS = Phase(steps=1500, batch_size=128, lr=1.5e-3)
READING = Phase(steps=750, batch_size=64, lr=1.5e-3, warmup=50)  # twice: the rate rises and falls, and once more
LANGUAGE = Phase(steps=600, batch_size=64, lr=2e-3, warmup=100)
ANSWERING = Phase(steps=1000, batch_size=64, lr=1e-3, warmup=50)


@dataclass(frozen=True)
class Contrast:
    """Pictures with their captions, and places of the pictures with what is there."""

    pixel_values: Tensor  # (batch, 3, height, width)
    captions: Tokens  # of the first half of the pictures: long texts cost more than all pictures do
    region: Tensor  # (regions, 3): the picture and the place of each, and which of the phrases it shows
    phrases: Tokens  # each once


def pixels(scene: Scene, noise: float) -> np.ndarray:
    """The picture as the model's image processor gives it, (3, height, width), without the processor's detours."""
    return ((render(scene, noise=noise).astype(np.float32) / 255 - _MEAN) / _STD).transpose(2, 0, 1)


def rows(texts: list[str], words: PreTrainedTokenizerBase, *, special: bool = True) -> Tokens:
    """The texts as one Tokens, every token of them to be predicted; ``special`` puts them between <s> and </s>."""
    encoded = words(texts, add_special_tokens=False)["input_ids"]
    ids = [torch.tensor([words.bos_token_id, *row, words.eos_token_id] if special else row) for row in encoded]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=words.pad_token_id)
    lengths = torch.tensor([len(row) for row in ids])
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    return Tokens(ids=padded, mask=mask, labels=padded.masked_fill(mask == 0, -100))


def contrast_batch(
    first: int, size: int, *, seed: int, words: PreTrainedTokenizerBase, noise: tuple[float, float] = (0.1, 0.9)
) -> Contrast:
    """The scenes from number ``first`` on, kinds independent, a quarter of them altered twins of others.

    A twin differs from its scene in one thing, so that only a tower that sees attributes can tell their captions apart.
    """
    scenes, texts = [], []
    for number in range(size - size // 4):
        scene = sample("train", first + number, seed=seed, cooccurrence=None)
        rng = scene.rng(_TOWER)
        scenes.append(scene)
        texts.append(caption(scene, rng, paraphrase=0.5))
        if number < size // 4:
            change = CHANGES[int(rng.integers(len(CHANGES)))]
            # its own key: other grain and clutter, so that nothing but the thing itself tells
            twin = replace(alter(scene, change, rng), key=(*scene.key[:2], first + size + number))
            scenes.append(twin)
            texts.append(caption(twin, rng, paraphrase=0.5))
    shown = [(picture, place, text) for picture, scene in enumerate(scenes) for place, text in _regions(scene)]
    phrases = {text: number for number, text in enumerate(dict.fromkeys(text for *_, text in shown))}
    return Contrast(
        pixel_values=torch.from_numpy(
            np.stack([pixels(scene, float(scene.rng(_NOISE).uniform(*noise))) for scene in scenes])
        ).float(),
        captions=rows(texts[: size // 2], words),
        region=torch.tensor([(picture, place, phrases[text]) for picture, place, text in shown]),
        phrases=rows(list(phrases), words),
    )


def _regions(scene: Scene) -> Iterator[tuple[int, str]]:
    """The place of each thing with its phrase, and one place where nothing is."""
    for thing in scene.things:
        yield PLACES.index(thing.place), phrase(thing)
    yield PLACES.index(scene.free[int(scene.rng(_EMPTY).integers(len(scene.free)))]), NOTHING


class Towers(nn.Module):
    """The two towers with their heads, and a head for places that pretraining alone needs."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.vision = model.root.llava.model.vision_tower
        self.alignment = model.root.alignment
        self.layer = model.root.llava.config.vision_feature_layer
        self.region_head = nn.Linear(VISION["hidden_size"], EMBED, bias=False)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that this pretraining moves."""
        heads, text = self.alignment.heads, self.alignment.text
        assert text is not None
        modules = (self.vision, text, heads["clip_image"], heads["clip_text"], self.region_head)
        return [parameter for module in modules for parameter in module.parameters()] + [self.alignment.log_temperature]

    def places(self, hidden: Tensor) -> Tensor:
        """The mean of each place's patches, (batch, places, width), from a tower layer's states with class token."""
        side = round((hidden.shape[1] - 1) ** 0.5)
        grid = hidden[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        pooled = nn.functional.adaptive_avg_pool2d(grid, SIDE)
        return pooled.flatten(2).transpose(1, 2)

    def forward(self, batch: Contrast) -> dict[str, Tensor]:
        """The two losses, each half of either direction, as CLIP's: pictures with captions, places with phrases."""
        states = self.vision(batch.pixel_values, output_hidden_states=True)
        image = self.alignment.head("clip", "image", states.pooler_output)
        text = self.alignment.head("clip", "text", self.alignment.embed_text(batch.captions))
        picture, place, number = batch.region.T
        places = self.region_head(self.places(states.hidden_states[self.layer])[picture, place])
        phrases = self.alignment.head("clip", "text", self.alignment.embed_text(batch.phrases))
        same = number[:, None] == number[None, :]
        return {
            "caption": symmetric_info_nce(image[: len(text)], text, temperature=self.alignment.temperature),
            "region": symmetric_info_nce(places, phrases[number], temperature=0.07, same=same),
        }


def notes(scene: Scene, rng: np.random.Generator, *, kept: float) -> str:
    """What lies on the table in key words, in any order; each thing is left out with probability 1 - ``kept``.

    Reading captions off such notes is what prepares a language model to read them off an image; where the notes are
    silent, the caption teaches it what usually goes with what.
    """
    lines = []
    for number in rng.permutation(len(scene.things)).tolist():
        if rng.random() < kept:
            thing = scene.things[number]
            lines.append(f"{phrase(thing).split(' ', 1)[1]} {thing.place}")
    return f"notes: {', '.join(lines) or NOTHING}"


def text_row(scene: Scene, words: PreTrainedTokenizerBase, *, positive_bias: float, kept: float) -> str:
    """One row of the language model's text on ``scene``: a caption alone, or turns, with notes before or without."""
    rng = scene.rng(_TEXT)
    kind = rng.random()
    if kind < 0.2:
        return f"{words.bos_token}{caption(scene, rng, paraphrase=0.5)}{words.eos_token}"
    above = f"{notes(scene, rng, kept=kept)}\n" if kind < 0.8 else ""
    if rng.random() < 0.5:
        turns = [Turn(f"{above}{DESCRIBE}", caption(scene, rng, paraphrase=0.5))]
    else:
        turns = _asked(scene, rng, above, positive_bias)
    return "".join(segment.text for segment in chat(turns, words))


def _asked(scene: Scene, rng: np.random.Generator, above: str, positive_bias: float) -> list[Turn]:
    """Up to two questions, the first behind the text ``above``."""
    asked = [question(scene, topic, rng, positive_bias=positive_bias) for topic in rng.permutation(list(TOPICS))]
    first, *others = [q for q in asked if q is not None][:2]
    return [Turn(f"{above}{first.text}\n{SHORT_ANSWER}", first.answer), *(Turn(q.text, q.answer) for q in others)]


def text_batch(first: int, size: int, *, seed: int, words: PreTrainedTokenizerBase) -> Tokens:
    """Rows of text on the biased training scenes from number ``first`` on."""
    scenes = (sample("train", first + number, seed=seed, cooccurrence=READ_COOCCURRENCE) for number in range(size))
    return rows(
        [text_row(scene, words, positive_bias=POSITIVE_BIAS, kept=0.85) for scene in scenes], words, special=False
    )


def language_loss(model: Model, batch: Tokens) -> dict[str, Tensor]:
    """The loss of every token after the first, of the language model alone."""
    llava = model.root.llava
    states = llava.model.language_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    return {"text": next_token(llava.lm_head(states.last_hidden_state), batch.labels)}


@dataclass(frozen=True)
class ReadingBatch:
    """Rows of text with an image's placeholders, and what stands there instead of an image."""

    text: Tokens
    words: Tensor  # (placeholders of all rows, several), the ids of the words that each stands for
    weights: Tensor  # the same shape: how much of each word's embedding is in it


def reading_batch(
    first: int,
    size: int,
    *,
    seed: int,
    words: PreTrainedTokenizerBase,
    row: Callable[[Scene, np.random.Generator, PreTrainedTokenizerBase], list[Segment]] | None = None,
) -> ReadingBatch:
    """Rows as fine-tuning will have them, on the biased training scenes from number ``first`` on.

    Unless ``row`` says otherwise, half of them are a caption behind its image, the others turns about one, and every
    token is to be predicted. Each placeholder is a place, in reading order, and holds the sum of the embeddings of the
    words for what is there: a language model that reads these has what large ones come with, so that a projector has
    something to aim at.
    """
    number_of = {word: _word_id(word, words) for word in (*KINDS, *COLOURS, NOTHING, SIZES[1], STATES[1])}
    texts, said, weights = [], [], []
    for number in range(size):
        scene = sample("train", first + number, seed=seed, cooccurrence=READ_COOCCURRENCE)
        rng = scene.rng(_READING)
        texts.append((row or _read)(scene, rng, words))
        for place in _seen(scene, rng):
            said.append([number_of[word] for word, _ in place])
            weights.append([weight for _, weight in place])
    return ReadingBatch(_supervised(texts, words), torch.tensor(said), torch.tensor(weights))


def _supervised(texts: list[list[Segment]], words: PreTrainedTokenizerBase) -> Tokens:
    """The rows with a placeholder for each place of their image; only supervised segments are to be predicted."""
    each = IMAGE * len(PLACES)
    wide = [[replace(segment, text=segment.text.replace(IMAGE, each)) for segment in text] for text in texts]
    text = rows(["".join(segment.text for segment in row) for row in wide], words, special=False)
    wanted = torch.zeros_like(text.mask, dtype=torch.bool)
    for number, row in enumerate(wide):
        _, supervised = tokenise(row, words, IMAGE)
        wanted[number, : len(supervised)] = torch.tensor(supervised)
    wanted &= text.ids != words.image_token_id
    return replace(text, labels=text.ids.masked_fill(~wanted, -100))


def _read(scene: Scene, rng: np.random.Generator, words: PreTrainedTokenizerBase) -> list[Segment]:
    """A caption or turns behind an image, all of it to be predicted."""
    kind = rng.random()
    said = caption(scene, rng, paraphrase=0.5)
    if kind < 0.5:
        return [Segment(f"{words.bos_token}{IMAGE}{said}{words.eos_token}", True)]
    turns = [Turn(f"{IMAGE}\n{DESCRIBE}", said)] if kind < 0.65 else _asked(scene, rng, f"{IMAGE}\n", POSITIVE_BIAS)
    return [replace(segment, supervised=True) for segment in chat(turns, words)]


def _described(scene: Scene, rng: np.random.Generator, words: PreTrainedTokenizerBase) -> list[Segment]:
    """A caption behind its image, asked for or not."""
    said = caption(scene, rng, paraphrase=0.5)
    if rng.random() < 0.5:
        return [Segment(f"{words.bos_token}{IMAGE}", False), Segment(f"{said}{words.eos_token}", True)]
    return chat([Turn(f"{IMAGE}\n{DESCRIBE}", said)], words)


def _answered(scene: Scene, rng: np.random.Generator, words: PreTrainedTokenizerBase) -> list[Segment]:
    """Up to six questions on an image, whose answers are to be predicted."""
    return chat(some_questions(scene, rng, POSITIVE_BIAS), words)


def _seen(scene: Scene, rng: np.random.Generator) -> Iterator[list[tuple[str, float]]]:
    """For each place five words with their weights: colour, kind, another kind, size and state.

    Some things are taken for nothing and some for half of another kind: what is not clear to the eye is made up for by
    what usually goes with what.
    """
    things = {thing.place: thing for thing in scene.things}
    for place in PLACES:
        thing = things.get(place)
        if thing is None or rng.random() < 0.08:
            yield [(NOTHING, 1.0), *[(NOTHING, 0.0)] * 4]
            continue
        sure = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.4, 1.0))
        other = KINDS[int(rng.integers(len(KINDS)))]
        size, state = float(thing.size == SIZES[1]), float(thing.state == STATES[1])
        yield [(thing.colour, 1.0), (thing.kind, sure), (other, 1 - sure), (SIZES[1], size), (STATES[1], state)]


def _word_id(word: str, words: PreTrainedTokenizerBase) -> int:
    """The id of the word as it stands inside a sentence."""
    (number,) = words(f" {word}", add_special_tokens=False)["input_ids"]
    return int(number)


def reading_loss(model: Model, batch: ReadingBatch) -> dict[str, Tensor]:
    """The loss of every token but the placeholders."""
    llava = model.root.llava
    embed = llava.get_input_embeddings()
    read = (embed(batch.words) * batch.weights.unsqueeze(-1)).sum(dim=1)
    here = (batch.text.ids == llava.config.image_token_index).unsqueeze(-1)
    embeddings = embed(batch.text.ids).masked_scatter(here, read)
    states = llava.model.language_model(inputs_embeds=embeddings, attention_mask=batch.text.mask, use_cache=False)
    return {"text": next_token(llava.lm_head(states.last_hidden_state), batch.text.labels)}


def _train(
    phase: Phase,
    module: nn.Module,
    parameters: list[nn.Parameter],
    losses: Callable[[int], dict[str, Tensor]],
    *,
    folder: Path,
    name: str,
    say: Callable[[str], None],
    every: int,
) -> None:
    """Trains ``parameters`` on the sum of what ``losses`` gives for each step, going on from its last checkpoint.

    ``folder`` gets ``<name>.pt``, which holds ``module``, and the curve ``<name>.csv``, both each ``every`` steps.
    """
    optimiser = torch.optim.AdamW(parameters, lr=phase.lr, weight_decay=phase.weight_decay, betas=(0.9, 0.98))
    checkpoint, curve = folder / f"{name}.pt", folder / f"{name}.csv"
    begun = _resume(checkpoint, module, optimiser)
    _cut(curve, begun)
    since = time.monotonic()
    shown: list[dict[str, float]] = []
    for step in range(begun, phase.steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.lr * _schedule(step, phase)
        parts = losses(step)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        shown.append({key: value.item() for key, value in parts.items()})
        if (step + 1) % every == 0 or step + 1 == phase.steps:
            means = {key: sum(row[key] for row in shown) / len(shown) for key in parts}
            rate = len(shown) / (time.monotonic() - since)
            since, shown = time.monotonic(), []
            _note(curve, step + 1, means)
            _save(checkpoint, {"step": step + 1, "module": module.state_dict(), "optimiser": optimiser.state_dict()})
            numbers = ", ".join(f"{key} {value:.3f}" for key, value in means.items())
            left = (phase.steps - step - 1) / rate / 60
            say(f"{name} {step + 1}/{phase.steps}: {numbers}; {rate:.2f} steps/s, {left:.1f} minutes left")


def _save(checkpoint: Path, state: dict[str, object]) -> None:
    """Under another name first, so that a checkpoint that is there is whole."""
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(checkpoint)


def _schedule(step: int, phase: Phase) -> float:
    """A rise over ``warmup`` steps, then half a cosine down to a fiftieth."""
    if step < phase.warmup:
        return (step + 1) / phase.warmup
    share = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * share)))


def _resume(checkpoint: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _cut(curve: Path, steps: int) -> None:
    """Takes the rows behind ``steps`` off the curve: they will be written again."""
    if not curve.is_file():
        return
    with curve.open(newline="") as file:
        header, *body = list(csv.reader(file))
    with curve.open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in body if int(row[0]) <= steps)])


def _note(curve: Path, step: int, means: dict[str, float]) -> None:
    new = not curve.is_file()
    with curve.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", *means])
        writer.writerow([step, *(f"{value:.4f}" for value in means.values())])


def pretrain_language(
    model: Model, phase: Phase, *, seed: int, folder: Path, say: Callable[[str], None], every: int = 50
) -> None:
    """Trains the language model on the biased text."""
    words, size = model.processor.tokenizer, phase.batch_size
    part = _language(model)
    _train(
        phase,
        part,
        list(part.parameters()),
        lambda step: language_loss(model, text_batch(step * size, size, seed=seed, words=words)),
        folder=folder,
        name="language",
        say=say,
        every=every,
    )


def pretrain_reading(
    model: Model, phase: Phase, *, seed: int, folder: Path, say: Callable[[str], None], every: int = 50, rounds: int = 2
) -> None:
    """Goes on with the language model, on text that stands behind what an image's tokens might be."""
    part = _language(model)
    for number in range(rounds):
        begun = number * phase.steps * phase.batch_size
        _train(
            phase,
            part,
            list(part.parameters()),
            partial(_reading_step, model, seed, begun, phase.batch_size),
            folder=folder,
            name=f"reading{number + 1}",
            say=say,
            every=every,
        )


def _reading_step(model: Model, seed: int, begun: int, size: int, step: int) -> dict[str, Tensor]:
    batch = reading_batch(begun + step * size, size, seed=seed, words=model.processor.tokenizer)
    return reading_loss(model, batch)


def pretrain_answering(
    model: Model, phase: Phase, *, seed: int, folder: Path, say: Callable[[str], None], every: int = 50
) -> None:
    """Goes on with the language model, which learns to look an answer up instead of guessing what is common.

    Half of each batch are captions, so that these are not forgotten. Next to them the few tokens of the answers would
    hardly count, so each half has a mean of its own.
    """
    part = _language(model)
    begun = 2 * READING.steps * READING.batch_size  # scenes that reading has not seen
    _train(
        phase,
        part,
        list(part.parameters()),
        lambda step: answering_losses(model, begun + step * phase.batch_size, phase.batch_size, seed=seed),
        folder=folder,
        name="answering",
        say=say,
        every=every,
    )


def answering_losses(model: Model, first: int, size: int, *, seed: int) -> dict[str, Tensor]:
    """The loss of captions on one half of ``size`` scenes, and that of answers on the other."""
    words, half = model.processor.tokenizer, size // 2
    described = reading_batch(first, half, seed=seed, words=words, row=_described)
    answered = reading_batch(first + half, size - half, seed=seed, words=words, row=_answered)
    return {
        "caption": reading_loss(model, described)["text"],
        "answer": reading_loss(model, answered)["text"],
    }


def _language(model: Model) -> nn.Module:
    return nn.ModuleList([model.root.llava.model.language_model, model.root.llava.lm_head])


def pretrain_towers(
    model: Model, phase: Phase, *, seed: int, folder: Path, say: Callable[[str], None], every: int = 50
) -> None:
    """Trains both towers, their heads and the temperature on the unbiased scenes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the head that only pretraining has
        towers = Towers(model)
    words, size = model.processor.tokenizer, phase.batch_size
    _train(
        phase,
        towers,
        towers.trained(),
        lambda step: towers(contrast_batch(2 * step * size, size, seed=seed, words=words)),  # twins take numbers too
        folder=folder,
        name="towers",
        say=say,
        every=every,
    )
