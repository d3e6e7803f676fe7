"""Hallucinated captions as other code reads them: HACL's records, HALVA's masked pairs, and everything we know."""

from __future__ import annotations

from typing import Any

from hialign.data.hallucinate import Hallucinated

MASK, UNMASK = "<MASK>", "</MASK>"


def everything(made: Hallucinated, image: str) -> dict[str, Any]:
    """Both captions with the changed phrases, their kinds and their characters, [start, end), in each."""
    return {
        "id": made.record.id,
        "number": made.number,
        "image": image,
        "caption": made.caption,
        "hallucinated": made.text,
        "changes": [
            {
                "kind": change.kind,
                "from": made.caption[slice(*change.span)],
                "to": made.text[slice(*change.hallucinated_span)],
                "span": list(change.span),
                "hallucinated_span": list(change.hallucinated_span),
            }
            for change in made.changes
        ],
    }


def hacl(made: Hallucinated, image: str, *, question: str, dataset: str) -> dict[str, Any]:
    """A record of HACL's pretraining data.

    Source: X-PLUG/mPLUG-HalOwl, hacl/README.MD.
    Differs: nothing.
    """
    return {
        "image": image,
        "text": made.caption,
        "dataset_name": dataset,
        "task_type": "pretrain",
        "Hallucination caption": made.text,
        "conversations": [
            {"from": "human", "value": f"{question}\n<image>"},
            {"from": "gpt", "value": made.caption},
        ],
    }


def halva(made: Hallucinated, image: str, *, question: str) -> dict[str, Any]:
    """A record of HALVA's data: as many masked phrases in the one answer as in the other, in the same order.

    Its tag is "closed" where only things were exchanged for things, "open" otherwise.

    Source: pritamqu/HALVA, llava/train/train_halva.py:636-698.
    Differs: nothing.
    """
    spans = [change.span for change in made.changes]
    hallucinated = [change.hallucinated_span for change in made.changes]
    return {
        "id": f"{made.record.id}#{made.number}",
        "image": image,
        "tag": "closed" if all(change.kind == "object" for change in made.changes) else "open",
        "question": f"<image>\n{question}",
        "correct_answer": made.caption,
        "correct_answer_masked": masked(made.caption, spans),
        "hallucinated_answer": made.text,
        "hallucinated_answer_masked": masked(made.text, hallucinated),
    }


def masked(text: str, spans: list[tuple[int, int]]) -> str:
    """``text`` with ``<MASK> `` before and `` </MASK>`` behind each of the spans, which come in order."""
    for start, end in reversed(spans):
        text = f"{text[:start]}{MASK} {text[start:end]} {UNMASK}{text[end:]}"
    return text
