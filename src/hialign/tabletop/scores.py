"""How good the base model's parts are, before anything joins them: what its model card says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hialign.models import Model, evaluating
from hialign.tabletop.asked import ATTRIBUTES, EVERY, lone_scenes, prompts
from hialign.tabletop.language import caption
from hialign.tabletop.pretrain import Towers, language_loss, pixels, rows
from hialign.tabletop.render import NOISE
from hialign.tabletop.world import COOCCURRENCE, KINDS, PLACES, Scene, sample

_CAPTION = 2


def base_scores(model: Model, *, number: int = 300, noise: float = NOISE, seed: int = 1) -> dict[str, float]:
    """Retrieval among ``number`` scenes, zero-shot and probed accuracy, and the language model's loss on captions."""
    with torch.no_grad(), evaluating(model.root):
        return {
            **_retrieval(model, _scenes("val", number, seed, None), noise, "even"),
            **_retrieval(model, _scenes("val", number, seed, COOCCURRENCE), noise, "val"),
            **_zero_shot(model, number, noise, seed),
            **_probe(model, number, noise, seed),
            **{f"loss_{split}": _loss(model, split, number, seed) for split in ("val", "val_counterfactual")},
        }


def _scenes(split: str, number: int, seed: int, cooccurrence: float | None) -> list[Scene]:
    return [sample(split, index, seed=seed, cooccurrence=cooccurrence) for index in range(number)]


def _pictures(scenes: list[Scene], noise: float) -> Tensor:
    return torch.from_numpy(np.stack([pixels(scene, noise) for scene in scenes])).float()


def _texts(model: Model, texts: list[str]) -> Tensor:
    """The texts' embeddings, of length one."""
    alignment = model.root.alignment
    assert model.clip_tokenizer is not None
    return F.normalize(alignment.head("clip", "text", alignment.embed_text(rows(texts, model.clip_tokenizer))), dim=-1)


def _images(model: Model, scenes: list[Scene], noise: float) -> Tensor:
    return F.normalize(model.root.image_embeddings(_pictures(scenes, noise), ("clip",))["clip"], dim=-1)


def _retrieval(model: Model, scenes: list[Scene], noise: float, name: str) -> dict[str, float]:
    """R@1 in both directions; scenes with the same caption are one to find."""
    texts = [caption(scene, scene.rng(_CAPTION)) for scene in scenes]
    number = torch.tensor([texts.index(text) for text in texts])
    scores = _images(model, scenes, noise) @ _texts(model, texts).T
    hits = {way: number[table.argmax(dim=1)] == number for way, table in (("i2t", scores), ("t2i", scores.T))}
    return {f"r1_{way}_{name}": hit.float().mean().item() for way, hit in hits.items()}


def _zero_shot(model: Model, number: int, noise: float, seed: int) -> dict[str, float]:
    scenes = lone_scenes(number, seed=seed)
    found = zero_shot(_images(model, scenes, noise), _texts(model, prompts()), scenes)
    return {f"zero_shot_{name}": value for name, value in found.items()}


def zero_shot(images: Tensor, texts: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """How often the one thing of a scene is given its kind, its colour and its place, as CLIP classifies.

    A class's embedding is the mean over all prompts that name it, one for each combination of the other attributes.

    Args:
        images: (scenes, dim), the embeddings of the scenes' pictures, of length one.
        texts: (prompts, dim), those of ``asked.prompts()``, of length one.
        scenes: of one thing each, as ``asked.lone_scenes`` makes them.
    """
    found = {}
    for name, values in ATTRIBUTES.items():
        shown = torch.tensor([values.index(getattr(thing, name)) for thing in EVERY], device=texts.device)
        classes = torch.stack([F.normalize(texts[shown == i].mean(dim=0), dim=-1) for i in range(len(values))])
        guess = (images @ classes.T).argmax(dim=1).cpu()
        truth = torch.tensor([values.index(getattr(scene.things[0], name)) for scene in scenes])
        found[name] = (guess == truth).double().mean().item()
    return found


def _probe(model: Model, number: int, noise: float, seed: int) -> dict[str, float]:
    """How often a linear map of the tower's tokens, as the language model gets them, tells what lies in a place.

    The map is ridge regression on four times as many scenes of another split.
    """
    towers = Towers(model)
    known = _scenes("train", 4 * number, seed, None)
    asked = _scenes("val", number, seed, None)
    x, y = _places(towers, known, noise)
    targets = F.one_hot(y, len(KINDS) + 1).float()
    mean, std, prior = x.mean(dim=0), x.std(dim=0) + 1e-6, targets.mean(dim=0)
    x = (x - mean) / std
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ (targets - prior))
    x, y = _places(towers, asked, noise)
    right = ((x - mean) / std @ weights + prior).argmax(dim=1) == y
    there = y < len(KINDS)
    return {"probe_kind": right[there].float().mean().item(), "probe_empty": right[~there].float().mean().item()}


def _places(towers: Towers, scenes: list[Scene], noise: float) -> tuple[Tensor, Tensor]:
    """For each place of each scene its state, and the number of the kind that is there; one more for none."""
    hidden = towers.vision(_pictures(scenes, noise), output_hidden_states=True).hidden_states[towers.layer]
    kinds = [{thing.place: KINDS.index(thing.kind) for thing in scene.things} for scene in scenes]
    labels = [there.get(place, len(KINDS)) for there in kinds for place in PLACES]
    return towers.places(hidden).flatten(0, 1), torch.tensor(labels)


def _loss(model: Model, split: str, number: int, seed: int) -> float:
    """Nats a token of plain captions, without any image."""
    texts = [caption(scene, scene.rng(_CAPTION)) for scene in _scenes(split, number, seed, COOCCURRENCE)]
    return language_loss(model, rows(texts, model.processor.tokenizer))["text"].item()
