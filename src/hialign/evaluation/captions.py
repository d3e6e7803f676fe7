"""What a model writes under held-out images, and how likely it finds what people wrote."""

from __future__ import annotations

import math

from hialign.evaluation.answer import AnswerFile
from hialign.evaluation.subject import Subject
from hialign.models import generate
from hialign.objectives import NextToken


class Captions:
    """Captions written greedily to ``answers/captions.jsonl``, and the mean loss of the written references.

    ``loss`` is in nats a token over all references and ``perplexity`` its exponential; ``distinct`` is the share of
    different captions among those generated: near 0, the model says the same of every image.
    """

    def __init__(self, max_new_tokens: int = 40, samples: int = 5) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {max_new_tokens}, wanted 1 or more")
        if samples < 0:
            raise ValueError(f"samples: got {samples}, wanted 0 captions to print or more")
        self.max_new_tokens, self.samples = max_new_tokens, samples

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The scores; prints a few captions beside a reference."""
        loss_sum, tokens = 0.0, 0.0
        made_by = {"model": subject.name, **subject.made_by, "max_new_tokens": self.max_new_tokens}
        asked: list[str] = []
        with AnswerFile(subject.answers / "captions.jsonl", made_by) as file:
            for records, pixel_values in subject.images("captions"):
                asked += [record.id for record in records]
                new = [i for i, record in enumerate(records) if record.id not in file.answers]
                if new:
                    prompt = subject.language.prompt(len(new)).to(subject.device)
                    with subject.autocast():
                        texts = generate(
                            subject.model,
                            pixel_values[new].to(subject.device),
                            prompt,
                            max_new_tokens=self.max_new_tokens,
                        )
                    for i, text in zip(new, texts, strict=True):
                        file.write(records[i].id, answer=text, references=list(records[i].captions))
                items = [
                    subject.language.row(record, caption, pixel_values[i])
                    for i, record in enumerate(records)
                    for caption in record.captions
                ]
                for start in range(0, len(items), subject.batch_size):  # an image has several captions
                    batch = subject.language.collate(items[start : start + subject.batch_size])
                    result = subject.read(NextToken(), batch)
                    loss_sum, tokens = loss_sum + result.loss_sum.item(), tokens + result.weight.item()
        rows = [file.answers[name] for name in asked]  # the file may hold answers to other images too
        for row in rows[: self.samples]:
            print(f"{row['id']}\n  model:     {row['answer']}\n  reference: {row['references'][0]}")
        loss = loss_sum / tokens
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "distinct": len({row["answer"] for row in rows}) / len(rows),
            "images": float(len(rows)),
        }
