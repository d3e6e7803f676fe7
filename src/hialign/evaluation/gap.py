"""How far a model's alignment is from the best there is, and how hard the task still pulls against it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hialign.batch import LanguageBatch, PairBatch
from hialign.data import CaptionedImage, Dataset, LanguageCollator, PairCollator
from hialign.evaluation.subject import Subject
from hialign.losses import info_nce_floor, symmetric_info_nce
from hialign.models import PARTS, Model, evaluating, load, part_of
from hialign.objectives import Contrastive, NextToken, check_pairs
from hialign.solvers import Gradients, local_dot

Scores = dict[str, float | str]


class AlignmentGap:
    """The inner loss between its proved floor, the best that is known of it, and chance, all on the same batches.

    The held-out images in their order, each with its first caption, are cut into batches of ``batch_size``, and what
    does not fill one is left out (``left_out``). The loss is taken in evaluation mode on embeddings in float64, and
    averaged over the batches. In nats, for the sum over pairs as the objective has it and, but for ``gap_lo``, for each
    pair as ``pair/number``:

        loss     L, the inner loss
        floor    that no embeddings beat on a batch of this size at this temperature; proved
        chance   log B for each pair, what a constant embedding has
        gap_hi   L - floor: the distance to the best alignment is at most this
        gap_lo   L - best_known, the least loss among ``reference``: the distance is at least this
        rho      (L - floor) / (chance - floor): 0 at the floor, 1 for a constant embedding, above it worse than that

    The floor is that of single batches. The higher one of a whole data set holds for the mean over all ways to draw
    batches, and these are one way, which could lie below it. Neither knows of captions that fit several images of a
    batch (``repeated_captions`` counts the plainest of them), which raise the least loss there is.

    ``outer_loss`` is that of the next tokens of the same captions. ``kkt_residual`` is the least of
    |gT + weight gC| / |gT| over weights of at least 0, of the task's and the inner loss's gradients on all batches over
    those parameters of ``parts`` that both losses reach; ``kkt_weight`` attains it, between the mean losses as a
    solver's weight is, and ``cosine`` is that of the angle between them.

    How to read them: without a reference there is no ``gap_lo``, and no number takes its place. One below 0 says that
    this model is the best known and that the reference was too short. A small ``gap_lo`` with a high ``outer_loss``
    says that alignment froze the task. A residual near 0 says that the two pulls balance, which they do at the optimum
    of any weighted sum too: it means something next to a small gap alone. Near 1, alignment does not hold the task
    back. Beside these, ``Retrieval`` says in which way embeddings are apart: an alignment that falls while uniformity
    rises towards 0 is a collapse; a modality gap that falls while the loss stays is a move within the set of aligned
    points.

    Args:
        pairs: of the inner loss.
        batch_size: of the batches, and of nothing else: the floor depends on it. Losses at different sizes do not
            compare.
        temperature: of the loss; None for the model's. Losses at different temperatures do not compare.
        reference: runs that were trained on the inner loss alone, or as near as there is: folders, whose model is
            measured on the same batches at the same temperature, or inner losses as numbers. What each was and how its
            number was got is among the scores.
        parts: those whose parameters count in the residual: the parts that the run trained. With an empty list there
            is no residual, and no gradients are taken.
        data: a set of captioned images; None for the run's own held-out set.

    Source: van den Oord et al. 2018, arXiv:1807.03748, for the loss; ``losses.info_nce_floor`` for the floor.
    Differs: no published protocol is followed.
    """

    def __init__(
        self,
        pairs: Sequence[str] = ("clip", "projector"),
        batch_size: int = 32,
        *,
        temperature: float | None = None,
        reference: Sequence[str | float] = (),
        parts: Sequence[str] = ("vision", "projector", "llm"),
        data: Dataset[CaptionedImage] | None = None,
    ) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size: got {batch_size}, wanted 2 or more: rows are each other's negatives")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"temperature: got {temperature}, wanted a number above 0, or null for the model's")
        if isinstance(parts, str) or not set(parts) <= set(PARTS):
            raise ValueError(f"parts: got {parts!r}, wanted a list of {', '.join(PARTS)}; [] for no residual")
        self.pairs, self.batch_size, self.temperature = check_pairs(pairs), batch_size, temperature
        self.reference, self.parts, self.data = tuple(reference), tuple(parts), data

    def __call__(self, subject: Subject) -> Scores:
        """The scores; prints where ``gap_lo`` comes from, or that there is none."""
        data = self.data
        subject = subject if data is None else replace(subject, heldout=lambda: data)
        tau = subject.model.root.temperature.item() if self.temperature is None else self.temperature
        known = self._known(subject, tau)  # first: a reference that is not there costs no pass over the images
        losses = inner_losses(subject, self.pairs, self.batch_size, tau)
        loss = sum(losses.values())
        scores: Scores = {
            **gap_numbers(loss, self.batch_size, tau, pairs=len(self.pairs)),
            **_above_known(loss, known),
            **{
                f"{pair}/{name}": number
                for pair, of_pair in losses.items()
                for name, number in gap_numbers(of_pair, self.batch_size, tau).items()
            },
            **self._pulls(subject, tau),
            "temperature": tau,
            "batch_size": float(self.batch_size),
            "data": subject.heldout().name,
        }
        print(f"gap_lo: {scores.get('no_gap_lo', scores.get('best_known_from'))}")
        return scores

    def _known(self, subject: Subject, temperature: float) -> list[tuple[str, float, str]]:
        """Each reference's name, its inner loss, and how that was got."""
        floor = len(self.pairs) * float(info_nce_floor(self.batch_size, temperature))
        known = []
        for reference in self.reference:
            if isinstance(reference, str):
                other = _shown_to(_reference_model(reference), subject)
                loss = sum(inner_losses(other, self.pairs, self.batch_size, temperature).values())
                known.append((reference, loss, "its model, measured on these batches at this temperature"))
            elif floor <= reference < math.inf:
                how = "as given: that it is of these data, batches and temperature was not checked"
                known.append(("a number", float(reference), how))
            else:
                raise ValueError(
                    f"reference: got {reference}, and no inner loss of {len(self.pairs)} pairs lies below {floor:.4g} "
                    f"at batch_size={self.batch_size}, temperature={temperature:.4g}; give one that was measured so"
                )
        return known

    def _pulls(self, subject: Subject, temperature: float) -> dict[str, float]:
        """The task's loss, its gradient against the inner loss's, and what the batches held."""
        root, embed = subject.model.root, Contrastive(self.pairs).embed
        watched = {name: p for name, p in root.named_parameters() if part_of(name) in self.parts}
        inner: Gradients = {}
        outer: Gradients = {}
        outer_loss = tokens = 0.0
        repeated = batches = 0
        with evaluating(root), _requiring(root, watched), torch.set_grad_enabled(bool(watched)):
            for pairs, text in _batches(subject, self.batch_size):
                if watched:
                    with subject.autocast():
                        embeddings = root(embed, pairs.to(subject.device))
                    _add_gradient(inner, sum(_pair_losses(embeddings, self.pairs, temperature).values()), watched)
                    watched = {name: watched[name] for name in inner}  # the task's is wanted where the inner one is
                with subject.autocast():
                    result = root(NextToken(), text.to(subject.device))
                if watched:
                    _add_gradient(outer, result.loss_sum, watched)
                outer_loss, tokens = outer_loss + result.loss_sum.item(), tokens + result.weight.item()
                captions = Counter(tuple(row) for row in pairs.caption.ids.tolist())
                repeated += sum(count for count in captions.values() if count > 1)
                batches += 1
        return {
            "outer_loss": outer_loss / tokens,
            **(self._residual(outer, inner, tokens, batches) if self.parts else {}),
            "batches": float(batches),
            "left_out": float(len(subject.heldout().records) - batches * self.batch_size),
            "repeated_captions": float(repeated),
        }

    def _residual(self, outer: Gradients, inner: Gradients, tokens: float, batches: int) -> dict[str, float]:
        """Of both mean losses' gradients, from their sums' over tokens and over batches."""
        if not outer:  # which are over parameters that the inner loss reaches
            raise ValueError(
                f"parts: no parameter of {', '.join(self.parts)} is read by both losses with pairs="
                f"{list(self.pairs)}; name the parts where they meet (vision, projector), or parts=[] for no residual"
            )
        means = {name: gradient / tokens for name, gradient in outer.items()}
        return kkt_residual(means, {name: inner[name] / batches for name in outer})


def gap_numbers(loss: float, batch_size: int, temperature: float, *, pairs: int = 1) -> dict[str, float]:
    """An inner loss, in nats and the sum over ``pairs``, with its ``floor``, ``chance``, ``gap_hi`` and ``rho``."""
    floor = pairs * float(info_nce_floor(batch_size, temperature))
    chance = pairs * math.log(batch_size)
    gap = loss - floor
    return {"loss": loss, "floor": floor, "chance": chance, "gap_hi": gap, "rho": gap / (chance - floor)}


def kkt_residual(outer: Gradients, inner: Gradients) -> dict[str, float]:
    """``kkt_residual``, ``kkt_weight`` and ``cosine`` of two gradients over the same parameters.

    The residual is the least of ``|outer + weight * inner| / |outer|`` over weights of at least 0, the root of
    ``1 - cosine ** 2`` where the two oppose each other and 1 where they do not. 0 where the outer gradient is 0, NaN
    where one is not finite.
    """
    pairs = ((outer, inner), (inner, inner), (outer, outer))
    dot, inner_square, outer_square = (local_dot(x, y).item() for x, y in pairs)
    if not (math.isfinite(inner_square) and math.isfinite(outer_square)):
        return {"kkt_residual": math.nan, "kkt_weight": math.nan, "cosine": math.nan}
    if not outer_square:
        return {"kkt_residual": 0.0, "kkt_weight": 0.0, "cosine": 0.0}
    size = math.sqrt(inner_square) * math.sqrt(outer_square)
    cosine = math.copysign(min(abs(dot / size), 1.0), dot) if size else 0.0
    return {
        "kkt_residual": math.sqrt(1 - min(cosine, 0.0) ** 2),
        "kkt_weight": max(-dot / inner_square, 0.0) if inner_square else 0.0,
        "cosine": cosine,
    }


def inner_losses(subject: Subject, pairs: Sequence[str], batch_size: int, temperature: float) -> dict[str, float]:
    """InfoNCE of each pair, both directions' mean, averaged over the held-out set's full batches."""
    embed = Contrastive(pairs).embed
    rows = [_pair_losses(subject.read(embed, batch), pairs, temperature) for batch, _ in _batches(subject, batch_size)]
    if not rows:
        raise ValueError(
            f"batch_size: {batch_size}, and the held-out images of {subject.heldout().name}, "
            f"{len(subject.heldout().records)} of them, do not fill one batch; hold out more, or set a smaller one"
        )
    return {pair: sum(row[pair].item() for row in rows) / len(rows) for pair in pairs}


def _pair_losses(embeddings: Mapping[str, Tensor], pairs: Sequence[str], temperature: float) -> dict[str, Tensor]:
    """Each pair's loss on one batch, in float64."""
    return {
        pair: symmetric_info_nce(
            embeddings[f"image/{pair}"].double(), embeddings[f"text/{pair}"].double(), temperature=temperature
        )
        for pair in pairs
    }


def _batches(subject: Subject, batch_size: int) -> Iterator[tuple[PairBatch, LanguageBatch]]:
    """The same rows as either level reads them; a last batch that is not full is left out."""
    waiting: list[tuple[CaptionedImage, Tensor]] = []
    for records, pixel_values in subject.images("alignment"):
        waiting += zip(records, pixel_values, strict=True)
        while len(waiting) >= batch_size:
            rows, waiting = waiting[:batch_size], waiting[batch_size:]
            yield (
                subject.pairs.collate([subject.pairs.row(r, r.captions[0], pixels) for r, pixels in rows]),
                subject.language.collate([subject.language.row(r, r.captions[0], pixels) for r, pixels in rows]),
            )


def _add_gradient(total: Gradients, loss: Any, watched: Mapping[str, Tensor]) -> None:
    """Adds the gradient over those of ``watched`` that the loss reaches to ``total``."""
    if not loss.requires_grad:
        return  # it reaches none
    found = torch.autograd.grad(loss, list(watched.values()), allow_unused=True)
    for name, gradient in zip(watched, found, strict=True):
        if gradient is not None:
            total[name] = total[name] + gradient if name in total else gradient


@contextmanager
def _requiring(root: torch.nn.Module, watched: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, gradients are for ``watched`` alone; afterwards what trained before trains."""
    before = {name: p.requires_grad for name, p in root.named_parameters()}
    try:
        for name, parameter in root.named_parameters():
            parameter.requires_grad_(name in watched)
        yield
    finally:
        for name, parameter in root.named_parameters():
            parameter.requires_grad_(before[name])


def _above_known(loss: float, known: Sequence[tuple[str, float, str]]) -> Scores:
    """``gap_lo`` with where it comes from, and every reference; without one, the reason why there is none."""
    if not known:
        return {"no_gap_lo": "no reference= was given, and nobody knows the least inner loss that this model can reach"}
    name, best, how = min(known, key=lambda one: one[1])
    scores: Scores = {"gap_lo": loss - best, "best_known": best, "best_known_from": f"{name}: {how}"}
    for number, one in enumerate(known, 1):
        scores |= dict(zip((f"reference/{number}/{key}" for key in ("from", "loss", "how")), one, strict=True))
    return scores


def _reference_model(reference: str) -> Model:
    folder = Path(reference) / "model"
    if not folder.is_dir():
        raise ValueError(f"reference: {reference} has no model/; wanted the folder of a run that is done, or a number")
    return load(str(folder))


def _shown_to(model: Model, subject: Subject) -> Subject:
    """The subject with another model, which reads the same images and captions by its own processors."""
    model.root.to(subject.device)
    tokenizer, images = model.processor.tokenizer, model.processor.image_processor
    language = LanguageCollator(
        tokenizer,
        images,
        image_token_id=model.root.llava.config.image_token_index,
        num_image_tokens=model.num_image_tokens,
        max_length=subject.language.max_length,
        template=subject.language.template,
    )
    pairs = PairCollator(tokenizer, model.clip_tokenizer, images, max_length=subject.pairs.max_length)
    return replace(subject, model=model, language=language, pairs=pairs)
