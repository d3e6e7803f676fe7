"""Questions to a model about images, answered in whatever order is fastest, written down as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hialign.batch import Tokens
from hialign.evaluation.answer import AnswerFile
from hialign.evaluation.subject import Subject
from hialign.models import generate


@dataclass(frozen=True)
class Query:
    """A question about an image, or None for the image alone.

    ``pixels`` loads the image, (3, height, width); None where the question stands alone.
    """

    id: str
    pixels: Callable[[], Tensor] | None
    question: str | None


def ask(
    subject: Subject, name: str, queries: Sequence[Query], *, max_new_tokens: int, made_by: Mapping[str, Any]
) -> dict[str, str]:
    """The model's greedy answers by the queries' ids; they are written to ``answers/<name>.jsonl`` as they come.

    Prompts of one length share a batch, so that no answer depends on padding. Answers that an earlier call wrote, of
    the same model asked the same in the same way (``made_by`` says what else decides them), are read instead.
    """
    how = {"model": subject.name, **subject.made_by, **made_by, "max_new_tokens": max_new_tokens}
    with AnswerFile(subject.answers / f"{name}.jsonl", how) as file:
        with tqdm(total=len(queries), desc=name, unit="answer") as bar:
            new = [query for query in queries if not _answered(query, file.answers)]
            bar.update(len(queries) - len(new))
            for batch, prompt in _batches(subject, new):
                images = _images(batch, subject.device)
                with subject.autocast():
                    texts = generate(subject.model, images, prompt.to(subject.device), max_new_tokens=max_new_tokens)
                for query, text in zip(batch, texts, strict=True):
                    file.write(query.id, question=query.question, answer=text)
                bar.update(len(batch))
        return {query.id: file.answers[query.id]["answer"] for query in queries}


def _answered(query: Query, answers: Mapping[str, Mapping[str, Any]]) -> bool:
    return query.id in answers and answers[query.id]["question"] == query.question


def _images(batch: Sequence[Query], device: torch.device) -> Tensor | None:
    """The images of a batch that all have one, or None of one where none has."""
    loaded = [query.pixels() for query in batch if query.pixels is not None]
    return torch.stack(loaded).to(device) if loaded else None


def _batches(subject: Subject, queries: Sequence[Query]) -> list[tuple[list[Query], Tokens]]:
    """The queries in batches of prompts that are equally long, with images or without, and the prompts."""
    prompts: dict[tuple[str | None, bool], Tokens] = {}
    alike: dict[tuple[int, bool], list[Query]] = {}
    for query in queries:
        form = query.question, query.pixels is not None
        if form not in prompts:
            prompts[form] = subject.language.prompt(1, query.question, image=form[1])
        alike.setdefault((prompts[form].ids.shape[1], form[1]), []).append(query)
    batches = []
    for (_, image), members in alike.items():
        for start in range(0, len(members), subject.batch_size):
            batch = members[start : start + subject.batch_size]
            rows = [prompts[query.question, image] for query in batch]
            prompt = Tokens(
                ids=torch.cat([row.ids for row in rows]),
                mask=torch.cat([row.mask for row in rows]),
                labels=torch.cat([row.labels for row in rows]),
            )
            batches.append((batch, prompt))
    return batches
