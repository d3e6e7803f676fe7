"""``hialign score``: what answers are worth that are there already, of any system. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from hialign.benchmarks.scores import Judged, Scores
from hialign.evaluation.report import row, table
from hialign.evaluation.scored import SCORES, notes, with_intervals, write_requests, write_scores
from hialign.runner.build import build_benchmark
from hialign.runner.told import told


@dataclass
class ScoreConfig:
    """Scores of answers."""

    benchmark: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: str = MISSING
    out: str | None = None
    system: str | None = None
    resamples: int = 2000
    seed: int = 0
    allow: list[str] = field(default_factory=list)


def main() -> None:
    """Composes the config from the command line and scores."""
    ConfigStore.instance().store(name="score_schema", node=ScoreConfig)
    _composed()


@hydra.main(version_base="1.3", config_path="pkg://hialign.configs", config_name="score")
def _composed(config: DictConfig) -> None:
    with told("score"):
        run(config)


def run(config: DictConfig) -> Scores | None:
    """Writes ``scores.json``, a markdown row and ``details`` of one benchmark, and prints the table.

    Returns the scores; None where a judge has to reply first, and what to ask it is written instead.
    """
    name, benchmark = _benchmark(config)
    if OmegaConf.is_missing(config, "answers"):
        raise ValueError("answers: not given; set answers=FILE")
    if not Path(config.answers).exists():
        raise ValueError(f"answers={config.answers}: there is no such file or folder")
    answers = benchmark.read(config.answers)
    folder = Path(config.out or f"{config.answers.rstrip('/')}.scores")
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(benchmark, Judged) and benchmark.needs_replies:
        file = folder / f"{name}.requests.jsonl"
        write_requests(file, benchmark, answers)
        print(
            f"not scored: a judge has to reply to {file}; then set benchmark.{name}.replies=FILE, rows of id and reply"
        )
        return None
    scores: Scores = benchmark.score(answers)
    numbers = with_intervals(scores, resamples=config.resamples, seed=config.seed)
    system = config.system or Path(config.answers).stem
    settings: Any = OmegaConf.to_container(config.benchmark[name], resolve=True)
    write_scores(folder, name, numbers, scores=scores, system=system, settings=settings)
    markdown = folder / f"{name}.md"
    markdown.write_text(row(name, system, numbers))
    print("\n".join((table({name: numbers}), *notes(scores, numbers))))
    print(f"written to {folder / SCORES}; {markdown} is a markdown row, {folder / 'details'} for hialign compare")
    return scores


def _benchmark(config: DictConfig) -> tuple[str, Any]:
    if len(config.benchmark) != 1:
        raise ValueError(
            f"benchmark: got {', '.join(map(str, config.benchmark)) or 'none'}, wanted one; `hialign configs "
            "benchmark` lists them, as in benchmark=pope"
        )
    ((name, node),) = config.benchmark.items()
    if str(node.get("_target_")).startswith("hialign.evaluation."):
        raise ValueError(f"benchmark={name}: needs the model and not its answers alone; use hialign evaluate run=...")
    return str(name), build_benchmark(config, str(name))


if __name__ == "__main__":
    main()
