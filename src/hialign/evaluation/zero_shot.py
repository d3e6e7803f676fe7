"""Zero-shot classification by a model's CLIP towers."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path

from hialign.benchmarks.scores import Scores
from hialign.benchmarks.zero_shot import ZeroShot, ranked
from hialign.data import CaptionedImage
from hialign.evaluation.answer import AnswerFile
from hialign.evaluation.embedded import embedded_images, embedded_texts
from hialign.evaluation.subject import Subject


def classify_and_score(subject: Subject, name: str, benchmark: ZeroShot) -> Scores:
    """The benchmark's scores of the classes nearest to each image, which are written to ``answers/<name>.jsonl``."""
    prompts = benchmark.prompts()
    asked = hashlib.sha256("\n".join(chain.from_iterable(prompts)).encode()).hexdigest()
    made_by = {"model": subject.name, **subject.made_by, "benchmark": name, "root": benchmark.root, "prompts": asked}
    with AnswerFile(subject.answers / f"{name}.jsonl", made_by) as file:
        new = [image for image in benchmark.entries if image not in file.answers]
        records = [CaptionedImage(image, Path(benchmark.root) / image, ("",)) for image in new]
        if records:
            texts = embedded_texts(subject, list(chain.from_iterable(prompts)), records[0]).cpu().numpy()
            images = embedded_images(subject, records).cpu().numpy()
            nearest = ranked(images, texts.reshape(len(prompts), len(prompts[0]), -1), benchmark.classes)
            for image, answer in zip(new, nearest, strict=True):
                file.write(image, answer=answer)
    return benchmark.score({image: str(file.answers[image]["answer"]) for image in benchmark.entries})
