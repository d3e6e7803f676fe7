"""``hialign evaluate``: a run's model on held-out data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from hialign.batch import LanguageBatch, PairBatch
from hialign.benchmarks.scores import Benchmark, Scores
from hialign.benchmarks.zero_shot import ZeroShot
from hialign.data import CaptionedImage, Dataset, LanguageCollator, PairCollator, Skipped
from hialign.evaluation.answered import answer_and_score
from hialign.evaluation.report import table
from hialign.evaluation.scored import SCORES, notes, with_intervals, write_scores
from hialign.evaluation.subject import Subject
from hialign.evaluation.zero_shot import classify_and_score
from hialign.runner import assemble, schema
from hialign.runner.build import build, build_benchmark
from hialign.runner.told import told
from hialign.training.oracle import PRECISIONS, autocast


def main() -> None:
    """Composes the config from the command line and evaluates."""
    schema.register()
    _composed()


@hydra.main(version_base="1.3", config_path="pkg://hialign.configs", config_name="evaluate")
def _composed(config: DictConfig) -> None:
    with told("evaluate"):
        run(config)


def run(config: DictConfig) -> dict[str, Any]:
    """Runs every benchmark, writes ``scores.json`` into the run folder and prints the table; returns the scores."""
    if OmegaConf.is_missing(config, "run"):
        raise ValueError("run: not given; set run=runs/<experiment>/<name>")
    if not config.benchmark:
        raise ValueError(
            "benchmark: none chosen; `hialign configs benchmark` lists them, benchmark=[retrieval,captions]"
        )
    if config.batch_size < 1:
        raise ValueError(f"batch_size: got {config.batch_size}, wanted at least 1")
    if config.precision not in PRECISIONS:
        raise ValueError(f"precision: got {config.precision!r}, wanted one of {', '.join(PRECISIONS)}")
    schema.check_dtype(config.dtype, config.precision, "dtype", "precision")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("evaluate: started as several processes, wanted one; leave torchrun out")
    folder = Path(config.run)
    benchmarks = {name: build_benchmark(config, name) for name in map(str, config.benchmark)}
    subject = _subject(config, folder)
    scores = {}
    for name, benchmark in benchmarks.items():
        scores[name], found = _scored(subject, name, benchmark, config)
        node: Any = OmegaConf.to_container(config.benchmark[name], resolve=True)
        write_scores(folder, name, scores[name], scores=found, system=subject.name, settings=node)  # the next may fail
    print(table(scores))
    print(f"written to {folder / SCORES}")
    return scores


def _scored(
    subject: Subject, name: str, benchmark: Any, config: DictConfig
) -> tuple[Mapping[str, float | str | None], Scores | None]:
    """A benchmark's numbers, and what they were made of where it says so.

    A benchmark with questions of its own is one of ``hialign.benchmarks``, and so is zero-shot classification; others
    are called with the subject.
    """
    if isinstance(benchmark, Benchmark):
        length = config.max_new_tokens or benchmark.max_new_tokens
        scores = answer_and_score(subject, name, benchmark, max_new_tokens=length)
        if scores is None:
            file = subject.answers / f"{name}.jsonl"
            return {
                "not_scored": f"a judge has to reply to {file.with_suffix('.requests.jsonl')}; then hialign score "
                f"benchmark={name} answers={file} benchmark.{name}.replies=FILE, with rows of id and reply"
            }, None
        return _told(name, scores, config), scores
    if isinstance(benchmark, ZeroShot):
        scores = classify_and_score(subject, name, benchmark)
        return _told(name, scores, config), scores
    if not callable(benchmark):
        raise ValueError(f"benchmark={name}: scores a file and asks no model; use hialign score answers=FILE")
    found = benchmark(subject)
    return (found.numbers, found) if isinstance(found, Scores) else (found, None)


def _told(name: str, scores: Scores, config: DictConfig) -> dict[str, float | None]:
    """The numbers with the ends of their intervals; prints what has to be known of them."""
    numbers = with_intervals(scores, resamples=config.resamples, seed=config.seed)
    print("\n".join((name, *notes(scores, numbers))))
    return numbers


def _subject(config: DictConfig, folder: Path) -> Subject:
    device = assemble.choose_device(config.device, "device")
    trained = assemble.run_config(folder)
    model = assemble.load_run(folder, dtype=config.dtype)
    model.root.to(device)
    node = _heldout_node(config, trained)
    stage = list(trained.stages.values())[-1]  # what the model saw last is what it is asked
    how = {"template": stage.template, "image_aspect": stage.image_aspect, "max_length": stage.max_length}
    language = assemble.collator(LanguageBatch, model, **how)
    pairs = assemble.collator(PairBatch, model, **how)
    assert isinstance(language, LanguageCollator) and isinstance(pairs, PairCollator)
    on_skip = _SkipNote()
    last = assemble.find_checkpoint(folder, trained)
    return Subject(
        name=f"{last.stage}/{last.folder.name}" if last else "model",
        model=model,
        heldout=cache(partial(_read_heldout, node, config, on_skip)),
        language=language,
        pairs=pairs,
        made_by={**how, "precision": config.precision, "dtype": config.dtype, "data": str(node)},
        world=_world(trained),
        answers=folder / "answers",
        batch_size=config.batch_size,
        device=device,
        autocast=partial(autocast, config.precision, device),
        on_skip=on_skip,
    )


def _world(trained: DictConfig) -> dict[str, float | None]:
    """The noise and the co-occurrence of the run's data; nothing where these are not of the embedded world."""
    data: Any = OmegaConf.to_container(trained.data)
    targets = [str(node.get("_target_")) for node in data.values() if isinstance(node, dict)]
    if not any(target.startswith("hialign.tabletop.") for target in targets):
        return {}
    return {name: data[name] for name in ("noise", "cooccurrence") if name in data}


def _heldout_node(config: DictConfig, trained: DictConfig) -> dict[str, Any]:
    """What describes the held-out data of the run's suite, as it is to be read now; empty where it has none."""
    if "heldout" not in trained.data:
        return {}
    node: Any = OmegaConf.to_container(trained.data.heldout)
    if config.root is not None:
        node = {key: _moved(value, str(trained.data.root), config.root) for key, value in node.items()}
    return node if config.on_error is None else {**node, "on_error": config.on_error}


def _read_heldout(
    node: dict[str, Any], config: DictConfig, on_skip: Callable[[Skipped], None]
) -> Dataset[CaptionedImage]:
    wanted = f"the benchmarks {', '.join(map(str, config.benchmark))} read captioned images"
    if not node:
        raise ValueError(f"run={config.run}: its data have no heldout; {wanted}")
    heldout: Dataset[Any] = build(node, "data.heldout", config.allow)
    if not isinstance(heldout.records[0], CaptionedImage):
        raise ValueError(
            f"data.heldout: {heldout.name} holds {type(heldout.records[0]).__name__} records, and {wanted}"
        )
    for skipped in heldout.skipped:
        on_skip(skipped)
    return heldout


def _moved(value: Any, old: str, new: str) -> Any:
    """``value``, where it is the folder ``old`` or a path in it, in the folder ``new``."""
    inside = isinstance(value, str) and (value == old or value.startswith(f"{old}/"))
    return f"{new}{value.removeprefix(old)}" if inside else value


class _SkipNote:
    def __init__(self) -> None:
        self.seen: set[Skipped] = set()

    def __call__(self, skipped: Skipped) -> None:
        if skipped not in self.seen:
            self.seen.add(skipped)
            print(f"skipped {skipped.record} of {skipped.file}: {skipped.problem}", file=sys.stderr)
