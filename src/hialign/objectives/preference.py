"""The preference level: of two answers to one prompt, the one that is true of the image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hialign.batch import Batch, LanguageBatch, PreferenceBatch, Tokens
from hialign.losses import (
    PreferenceLoss,
    changed_token_weights,
    chunked_token_kl,
    chunked_token_logps,
    halva,
    sequence_logps,
)
from hialign.objectives.result import Parts, Result

IGNORED = -100
TERMS = {  # what a loss may leave out, by the arguments that it would be given
    "reference": ("reference_chosen", "reference_rejected"),
    "images": ("policy_corrupted", "reference_corrupted"),
    "segments": ("chosen_weights", "rejected_weights"),
    "tokens": ("chosen_kl", "rejected_kl"),
}


class Preference:
    """One of ``dpo``, ``ddpo``, ``tdpo``, ``mdpo``, ``cross_modal_dpo`` and ``chip`` of ``hialign.losses``.

    The loss is given what its arguments are called after, and nothing else is computed: the answers' log-probabilities
    under the policy and under the model that training began with, those of the chosen answer under the corrupted image,
    the weights of changed tokens, the divergences of both answers.

    Args:
        loss: the function with its settings bound.
        terms: of what the loss can do without, what it gets; None for all. ``reference``, ``images``, ``segments``,
            ``tokens``.
        changed: of ``segments``, the weight of a changed token, ``gamma`` of ``changed_token_weights``.
        rule: likewise.
        shared_prefix: read image and prompt once for both answers; otherwise each answer has a row of its own, which
            gives the same and costs about twice as much.

    Source: as the losses'.
    Differs: policy and reference see the same corrupted image; where the official codes draw it anew, see the losses.
    """

    batch_type: type[Batch] | Mapping[str, type[Batch]] = PreferenceBatch
    whole_batch = False
    bounded = False
    needs_reference = True

    def __init__(
        self,
        loss: Callable[..., PreferenceLoss | Tensor],
        *,
        terms: Sequence[str] | None = None,
        changed: float = 5.0,
        rule: str = "diff",
        shared_prefix: bool = True,
    ) -> None:
        self.loss, self.changed, self.rule, self.shared_prefix = loss, changed, rule, shared_prefix
        self.asked = _asked(loss, terms)
        self.by_token = bool({"chosen_weights", "normalize"} & set(inspect.signature(loss).parameters))
        logps = [f"{name.removeprefix('reference_')}_logps" for name in self.asked if name.startswith("reference_")]
        states = [f"{name.removesuffix('_kl')}_states" for name in self.asked if name.endswith("_kl")]
        self.reference_reads = {PreferenceBatch: (*logps, *states)}
        self.needs_reference = bool(logps or states)
        self.needs_corrupted = "policy_corrupted" in self.asked
        self.unbounded = _unbounded(loss, self.asked)

    def __call__(self, parts: Parts, batch: Batch) -> Result:
        """The loss summed over the rows, and their number; what is logged are rewards and log-probabilities."""
        assert isinstance(batch, PreferenceBatch)
        labels = _answer_labels(batch)
        there = _reference(self, parts, batch) if self.needs_reference else {}
        here = self._read(parts, batch)
        policy = {
            f"policy_{side}": self._scored(logps, labels[side]) for side, logps in self._logps(here, labels, parts)
        }
        given = dict(policy)
        for name, values in there.items():
            side, _, kind = name.rpartition("_")
            if kind == "logps":
                given[f"reference_{side}"] = self._scored(_spread(values, labels[side]), labels[side])
            else:
                given[f"{side}_kl"] = _divergence(parts, here[side], values, labels[side])
        if "chosen_weights" in self.asked:
            given |= self._weights(batch, labels["chosen"], labels["rejected"])
        found = self.loss(**{name: given[name] for name in self.asked}, details=True)
        assert isinstance(found, PreferenceLoss)
        rows = torch.tensor(float(len(batch)), device=batch.starts.device)
        return Result(found.losses.sum(), rows, _numbers(found, policy, given))

    def read_reference(self, reference: Parts, batch: Batch) -> dict[str, Tensor]:
        """What the loss reads of the model that training began with, by the names in ``reference_reads``.

        Of the tokens to predict alone, row behind row: log-probabilities (targets,), states (targets, width).
        """
        assert isinstance(batch, PreferenceBatch)
        labels, states = _answer_labels(batch), self._read(reference, batch)
        found = {
            f"{side}_logps": _targets(logps, labels[side]) for side, logps in self._logps(states, labels, reference)
        }
        found |= {f"{side}_states": _targets(rows[:, :-1], labels[side]) for side, rows in states.items()}
        return {name: found[name] for name in self.reference_reads[PreferenceBatch]}

    def _weights(self, batch: PreferenceBatch, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
        """The weights of the answers' tokens, (batch, tokens) each; the released rule reads the prompt as well."""
        sides = {"chosen": (batch.chosen, chosen), "rejected": (batch.rejected, rejected)}
        if self.rule == "released":
            rows = [tokens.ids.masked_fill(tokens.mask == 0, IGNORED) for tokens, _ in sides.values()]
            whole = changed_token_weights(rows[0], rows[1], gamma=self.changed, rule=self.rule)
            found = [
                tail(F.pad(weights, (1, 0)), batch.starts, tokens)[:, 1:] * (labels[:, 1:] != IGNORED)
                for weights, (tokens, labels) in zip(whole, sides.values(), strict=True)
            ]
        else:
            found = list(changed_token_weights(chosen, rejected, gamma=self.changed, rule=self.rule))
        return {f"{side}_weights": weights for side, weights in zip(sides, found, strict=True)}

    def _read(self, parts: Parts, batch: PreferenceBatch) -> dict[str, Tensor]:
        """The states that predict each answer's tokens, (batch, 1 + longest answer, width)."""
        sides = _answer_states(parts, batch, shared=self.shared_prefix)
        states = dict(zip(("chosen", "rejected"), sides, strict=True))
        if self.needs_corrupted:
            if batch.corrupted_pixel_values is None:
                raise ValueError(
                    "the loss compares with a corrupted image, and the batch has none; set the stage's corrupt "
                    "(stages.NAME.corrupt=noise, zoom, ...)"
                )
            rows = parts.text_states(batch.corrupted_pixel_values, batch.chosen)
            states["corrupted"] = tail(rows, batch.starts, batch.chosen)
        return states

    def _logps(
        self, states: Mapping[str, Tensor], labels: Mapping[str, Tensor], parts: Parts
    ) -> Iterator[tuple[str, Tensor]]:
        """Each side's name and the log-probabilities of its answers' tokens, (batch, tokens)."""
        weight, bias = parts.head
        for side, rows in states.items():
            yield side, chunked_token_logps(rows, weight, labels[side], bias=bias)

    def _scored(self, logps: Tensor, labels: Tensor) -> Tensor:
        """The answers' log-probabilities as the loss takes them: (batch, tokens), or their sums (batch,)."""
        return logps if self.by_token else sequence_logps(logps, labels)


class Halva:
    """Phrases of a true answer against the hallucinated ones in their place, on two streams.

    ``preference`` gives pairs of answers with their phrases, ``reference`` clean answers on which the model stays near
    the one that training began with, by the full vocabulary's divergence (``kl="vocabulary"``) or the paper's
    expression on the target tokens (``"target"``). The phrases' term is a mean over the pairs of phrases of a step, the
    other one over answers, times ``alpha``.

    Source: Sarkar et al. 2024, arXiv:2405.18654; code pritamqu/HALVA@059b086, halva_trainer.py.
    Differs: see ``losses.halva``. With ``cells="padded"`` the mean depends on how a batch is split.
    """

    batch_type: type[Batch] | Mapping[str, type[Batch]] = MappingProxyType(
        {"preference": PreferenceBatch, "reference": LanguageBatch}
    )
    whole_batch = False
    bounded = False
    needs_reference = True
    phrases = True

    def __init__(
        self, *, alpha: float = 0.4, cells: str = "real", kl: str = "vocabulary", shared_prefix: bool = True
    ) -> None:
        if kl not in ("vocabulary", "target"):
            raise ValueError(f"kl: got {kl!r}, wanted 'vocabulary' or 'target'")
        if not alpha >= 0:
            raise ValueError(f"alpha: got {alpha}, wanted 0 or more")
        self.alpha, self.cells, self.kl, self.shared_prefix = alpha, cells, kl, shared_prefix
        self.reference_reads = {LanguageBatch: ("text_states" if kl == "vocabulary" else "text_logps",)}

    def __call__(self, parts: Parts, batch: Batch) -> Result:
        """The phrases' loss and the number of their pairs, or alpha times the divergence and the number of answers."""
        if isinstance(batch, PreferenceBatch):
            return self._phrases(parts, batch)
        assert isinstance(batch, LanguageBatch)
        return self._anchor(parts, batch)

    def _phrases(self, parts: Parts, batch: PreferenceBatch) -> Result:
        if batch.chosen_phrases is None or batch.rejected_phrases is None:
            raise ValueError("halva: the answers have no phrases marked; use data whose adapter marks them, as halva's")
        sides = {"chosen": (batch.chosen, batch.chosen_phrases), "rejected": (batch.rejected, batch.rejected_phrases)}
        states = _answer_states(parts, batch, shared=self.shared_prefix)
        weight, bias = parts.head
        given = {}
        for (name, (tokens, phrases)), rows_ in zip(sides.items(), states, strict=True):
            labels = tail(tokens.labels, batch.starts, tokens, fill=IGNORED)
            given[f"policy_{name}"] = chunked_token_logps(rows_, weight, labels, bias=bias)
            given[f"{name}_phrases"] = tail(phrases, batch.starts, tokens, fill=0)[:, 1:]
        found = halva(
            given["policy_chosen"],
            given["policy_rejected"],
            given["chosen_phrases"],
            given["rejected_phrases"],
            alpha=0.0,  # the other term has a stream of its own
            cells=self.cells,
            details=True,
        )
        phrases = given["chosen_phrases"]
        real = phrases.amax(dim=1).sum()
        cells = real if self.cells == "real" else phrases.amax() * len(phrases)
        numbers = {"phrase_margin": (found.chosen_rewards - found.rejected_rewards).sum() / cells}
        return Result(found.losses.sum(), cells.to(found.losses.dtype), numbers)

    def _anchor(self, parts: Parts, batch: LanguageBatch) -> Result:
        labels = batch.text.labels
        there = _reference(self, parts, batch)
        here = parts.text_states(batch.pixel_values, batch.text)
        if self.kl == "vocabulary":
            sums = _divergence(parts, here, there["text_states"], labels)
        else:
            theirs = _spread(there["text_logps"], labels)
            ours = chunked_token_logps(here, parts.head[0], labels, bias=parts.head[1])
            sums = (theirs.exp() * (theirs - ours)).masked_fill(labels[:, 1:] == IGNORED, 0.0).sum(dim=-1)
        rows = torch.tensor(float(len(batch)), device=labels.device)
        return Result(self.alpha * sums.sum(), rows, {"anchor_kl": sums.detach().mean()})

    def read_reference(self, reference: Parts, batch: Batch) -> dict[str, Tensor]:
        """As that of ``Preference``, of a row's whole text."""
        assert isinstance(batch, LanguageBatch)
        states, (weight, bias) = reference.text_states(batch.pixel_values, batch.text), reference.head
        labels = batch.text.labels
        if self.kl == "vocabulary":
            return {"text_states": _targets(states[:, :-1], labels)}
        return {"text_logps": _targets(chunked_token_logps(states, weight, labels, bias=bias), labels)}


def _answer_states(parts: Parts, batch: PreferenceBatch, *, shared: bool) -> tuple[Tensor, Tensor]:
    """The states that predict both answers' tokens, as ``tail`` has them; apart, each answer has a row of its own."""
    if shared:
        return parts.answer_states(batch.pixel_values, batch.chosen, batch.rejected, batch.starts)
    chosen, rejected = (
        tail(parts.text_states(batch.pixel_values, side), batch.starts, side) for side in (batch.chosen, batch.rejected)
    )
    return chosen, rejected


def _answer_labels(batch: PreferenceBatch) -> dict[str, Tensor]:
    """The labels of each side's answers, as ``tail`` has them; the corrupted side's answers are the chosen ones."""
    chosen, rejected = (tail(side.labels, batch.starts, side, fill=IGNORED) for side in (batch.chosen, batch.rejected))
    return {"chosen": chosen, "rejected": rejected, "corrupted": chosen}


def _reference(
    objective: Preference | Halva, parts: Parts, batch: PreferenceBatch | LanguageBatch
) -> Mapping[str, Tensor]:
    """What the objective reads of the model that training began with: what the batch has brought along, or made now."""
    if batch.reference is not None:
        return batch.reference
    with parts.reference() as reference:
        return objective.read_reference(reference, batch)


def _targets(values: Tensor, labels: Tensor) -> Tensor:
    """(targets, ...): of ``values`` (batch, length - 1, ...) those before the places that have labels."""
    return values[labels[:, 1:] != IGNORED]


def _spread(values: Tensor, labels: Tensor) -> Tensor:
    """(batch, length - 1, ...): ``values`` as ``_targets`` gives them back in their places, 0 elsewhere."""
    predicted = labels[:, 1:] != IGNORED
    whole = values.new_zeros(*predicted.shape, *values.shape[1:])
    whole[predicted] = values
    return whole


def tail(rows: Tensor, starts: Tensor, tokens: Tokens, *, fill: int | None = None) -> Tensor:
    """Of each row (batch, length, ...) the place before ``starts`` and all behind it, (batch, 1 + longest, ...).

    So states predict what is one place further, as in whole rows. Where a row ends earlier its last place is repeated
    or, with ``fill``, that is there.
    """
    lengths = tokens.mask.sum(dim=1) - starts
    steps = torch.arange(int(lengths.max()) + 1, device=rows.device).expand(len(rows), -1)
    inside = steps <= lengths.unsqueeze(1)
    places = (starts - 1).unsqueeze(1) + torch.minimum(steps, lengths.unsqueeze(1))
    if rows.dim() == 3:
        return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
    taken = rows.gather(1, places)
    return taken if fill is None else taken.masked_fill(~inside, fill)


def _asked(loss: Callable[..., Any], terms: Sequence[str] | None) -> list[str]:
    """The tensors that the loss takes, without those of optional terms that are not in ``terms``."""
    found = inspect.signature(loss).parameters
    tensors = [name for name in found if found[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    optional = {term: names for term, names in TERMS.items() if all(_optional(found, name) for name in names)}
    if terms is not None and (unknown := [term for term in terms if term not in optional]):
        raise ValueError(
            f"terms: got {', '.join(unknown)}, wanted some of {', '.join(optional) or 'none'} for this loss"
        )
    left = {name for term, names in optional.items() if terms is not None and term not in terms for name in names}
    return [name for name in tensors if name not in left]


def _unbounded(loss: Callable[..., Any], asked: Sequence[str]) -> str:
    """What lets the loss fall without end, and what to choose instead; empty where nothing does."""
    settings = {name: parameter.default for name, parameter in inspect.signature(loss).parameters.items()}
    if "rejected_kl" not in asked or settings.get("form") != "paper" or not settings.get("gamma"):
        return ""
    return (
        "loss.form=paper with the term of tokens, which as printed has no lower bound: it pays for a rejected answer's "
        "divergence from the reference without end; loss.form=released has it inside the sigmoid, terms=[images, "
        "segments] leaves it out"
    )


def _optional(found: Mapping[str, inspect.Parameter], name: str) -> bool:
    return name in found and found[name].default is not inspect.Parameter.empty


def _divergence(parts: Parts, here: Tensor, there: Tensor, labels: Tensor) -> Tensor:
    """(batch,): KL(reference || policy) summed over each row's labelled tokens, ``there`` as ``_targets`` gives it."""
    weight, bias = parts.head
    kept, kept_bias = parts.reference_head
    whole = F.pad(_spread(there, labels), (0, 0, 0, 1))  # the last state predicts nothing
    by_token = chunked_token_kl(here, weight, whole, labels, bias=bias, reference_weight=kept, reference_bias=kept_bias)
    return by_token.sum(dim=-1)


def _numbers(
    found: PreferenceLoss, policy: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, float | Tensor]:
    """What is logged: means over the rows."""
    margins = found.chosen_rewards - found.rejected_rewards
    sums = {name: value if value.dim() == 1 else value.sum(dim=-1) for name, value in policy.items()}
    return {
        "chosen_reward": found.chosen_rewards.detach().mean(),
        "rejected_reward": found.rejected_rewards.detach().mean(),
        "accuracy": (margins > 0).double().mean(),
        "chosen_logp": sums["policy_chosen"].detach().mean(),
        "rejected_logp": sums["policy_rejected"].detach().mean(),
        **{name: given[name].detach().mean() for name in ("chosen_kl", "rejected_kl") if name in given},
    }
