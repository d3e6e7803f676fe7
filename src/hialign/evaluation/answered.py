"""A benchmark's questions put to a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from hialign.benchmarks.scores import Benchmark, Judged, Question, Scores
from hialign.data import CaptionedImage
from hialign.evaluation.asking import Query, ask
from hialign.evaluation.scored import write_requests
from hialign.evaluation.subject import Subject


def answer_and_score(subject: Subject, name: str, benchmark: Benchmark, *, max_new_tokens: int) -> Scores | None:
    """The benchmark's scores of the model's greedy answers, which are written to ``answers/<name>.jsonl``.

    None where a judge has to reply first: then ``answers/<name>.requests.jsonl`` has what to ask it, {id, prompt}. A
    ValueError names images that are missing before any question is asked.
    """
    questions = benchmark.questions()
    _require_images(name, benchmark, questions)
    queries = [Query(one.id, _loader(subject, one), one.text) for one in questions]
    answers = ask(subject, name, queries, max_new_tokens=max_new_tokens, made_by={"benchmark": name})
    if not (isinstance(benchmark, Judged) and benchmark.needs_replies):
        return benchmark.score(answers)
    write_requests(subject.answers / f"{name}.requests.jsonl", benchmark, answers)
    return None


def _loader(subject: Subject, question: Question) -> partial[Tensor] | None:
    return None if question.image is None else partial(_pixels, subject, question.id, question.image)


def _pixels(subject: Subject, name: str, image: str) -> Tensor:
    return subject.language.pixels(CaptionedImage(name, Path(image), ("",)))[0]


def _require_images(name: str, benchmark: Benchmark, questions: Sequence[Question]) -> None:
    images = dict.fromkeys(one.image for one in questions if one.image is not None)
    missing = [image for image in images if not Path(image).is_file()]
    if missing:
        raise ValueError(
            f"benchmark.{name}.images: {len(missing)} of {len(images)} images are missing, such as {missing[0]}; "
            f"wanted {benchmark.IMAGES}, in benchmark.{name}.images=FOLDER"
        )
