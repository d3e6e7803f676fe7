"""From a validated config to the model, the streams and the stages of a run."""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from hialign import distributed
from hialign.batch import Batch, HallucinatedBatch, LanguageBatch, PairBatch, PreferenceBatch
from hialign.data import (
    AnyData,
    HallucinatedCollator,
    LanguageCollator,
    Loader,
    Mixture,
    PairCollator,
    PreferenceCollator,
    Skipped,
    Streamed,
    measure,
)
from hialign.data.templates import as_jinja, end_ids
from hialign.models import (
    Lora,
    Model,
    Root,
    add_lora,
    dtype_of,
    keep_in_float32,
    label_of,
    load,
    part_of,
    save,
    set_trainable,
    with_aspect,
)
from hialign.objectives import Objective
from hialign.runner.build import build
from hialign.solvers import Level
from hialign.solvers import Single as SingleLevel
from hialign.training import Cacheable, LevelRun, Optimisation, Stage, latest, load_weights
from hialign.training.checkpoint import Checkpoint, read_weights

OnSkip = Callable[[Skipped], None]
Sources = dict[tuple[str, str, str], AnyData]


def choose_device(name: str, key: str) -> torch.device:
    """The device of this process; joins the other processes if there are any. ``key`` is what errors call it."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"{key}: got {name!r}, wanted auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{key}: got cuda, and torch sees no GPU; use {key}=cpu")
    return distributed.start(cpu=name == "cpu")


def build_model(config: DictConfig) -> Model:
    """The run's starting model: what ``model`` describes, or another run's where ``model.from_run`` names it.

    It has the adapters that its stages train, and what they train is in float32.
    """
    node: Any = OmegaConf.to_container(config.model, resolve=True)
    other = node.pop("from_run", None)
    if not other:
        model: Model = build(node, "model", config.allow)
    elif not (Path(other) / "model").is_dir():  # a checkpoint would not do: on a resume it may be another one
        raise ValueError(f"model.from_run: {other} has no model/; wanted the folder of a run that is done")
    else:
        model = load(str(Path(other) / "model"), dtype=node.get("dtype", "fp32"))
    make_trainable(model.root, config)
    return model


def make_trainable(root: Root, config: DictConfig) -> None:
    """Puts in the adapters that the stages train, and keeps in float32 what any of them does."""
    adapted = trained_parts(config, "lora")
    if adapted:
        add_lora(root, adapted, Lora(**config.lora), seed=config.seed)
    for stage in config.stages.values():
        set_trainable(root, dict(stage.train))
        keep_in_float32(root, {name for name, p in root.named_parameters() if p.requires_grad})


def trained_parts(config: DictConfig, mode: str) -> set[str]:
    """The parts that some stage trains by ``mode``."""
    return {str(part) for stage in config.stages.values() for part, by in stage.train.items() if by == mode}


def load_run(run: Path, *, dtype: str = "fp32") -> Model:
    """A run's model: its ``model/`` folder if it finished, else its last checkpoint on what it started from."""
    config = run_config(run)
    if (run / "model").is_dir():
        return load(str(run / "model"), dtype=dtype)
    model = load_checkpoint(run, config)
    llava: Any = model.root.llava
    llava.to(dtype_of(dtype))  # in training some of it is float32 and some may not be
    return model


def run_config(run: Path) -> DictConfig:
    """The config of a run; ``ValueError`` where there is no run."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"run={run}: no config.yaml there; wanted a run folder, such as runs/<experiment>/<name>")
    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    return config


def load_checkpoint(run: Path, config: DictConfig) -> Model:
    """The model of the run's last checkpoint, adapters and all."""
    last = find_checkpoint(run, config)
    if last is None:
        has = "its checkpoints are gone" if (run / "model").is_dir() else "it has neither a model/ nor a checkpoint yet"
        raise ValueError(f"run={run}: {has}")
    if not (run / "model").is_dir():
        print(f"{run} is not done: this is its checkpoint {last.stage}/{last.folder.name}", file=sys.stderr)
    model = build_model(config)
    load_weights(model.root, read_weights(last))
    return as_asked(model, config, last.stage)


def as_asked(model: Model, config: DictConfig, stage: str) -> Model:
    """The model with a processor that asks as ``stage`` trained: what plain transformers say of it is what we do."""
    node, tokenizer = config.stages[stage], model.processor.tokenizer
    image_token = model.processor.image_token
    return model.asked(
        chat_template=as_jinja(node.template, tokenizer, image_token),
        end_ids=end_ids(node.template, tokenizer, image_token),
        image_aspect=node.image_aspect,
    )


def collator(
    batch_type: type[Batch],
    model: Model,
    *,
    template: str = "plain_eos",
    image_aspect: str = "square",
    max_length: int = 2048,
    **preference: Any,
) -> LanguageCollator | PairCollator | PreferenceCollator | HallucinatedCollator:
    """What turns records into the batches that an objective reads; ``max_length`` is of the language model's rows.

    ``preference`` are PreferenceCollator's further settings.
    """
    tokenizer, images = model.processor.tokenizer, with_aspect(model.processor.image_processor, image_aspect)
    config = model.root.llava.config
    placeholders: dict[str, Any] = {
        "image_token_id": config.image_token_index,
        "num_image_tokens": model.num_image_tokens,
    }
    if batch_type is LanguageBatch:
        return LanguageCollator(tokenizer, images, max_length=max_length, template=template, **placeholders)
    if batch_type is PreferenceBatch:
        layout: dict[str, Any] = {"max_length": max_length, "template": template}
        return PreferenceCollator(tokenizer, images, **layout, **placeholders, **preference)
    if batch_type in (PairBatch, HallucinatedBatch):
        text = model.root.alignment.text
        longest = {} if text is None else {"max_length": text.config.max_position_embeddings}
        kind = PairCollator if batch_type is PairBatch else HallucinatedCollator
        return kind(tokenizer, model.clip_tokenizer, images, **longest)
    raise ValueError(f"objective: it reads {batch_type.__name__}, for which there is no collator")


def batch_type_of(objective: Objective, stream: str, path: str) -> type[Batch]:
    """Which batches the objective reads on ``stream``."""
    kinds = objective.batch_type
    if not isinstance(kinds, Mapping):
        return kinds
    if stream not in kinds:
        raise ValueError(f"{path}.data.{stream}: this objective reads the streams {', '.join(kinds)}")
    return kinds[stream]


def read_data(config: DictConfig, on_skip: OnSkip) -> Sources:
    """Every stream's data set, as ``stage, level, stream``; a set that several read is read once.

    Comes before the model, so that a missing file is found before a large model is loaded.
    """
    sources: Sources = {}
    read: dict[str, AnyData] = {}
    for stage, level in ((str(stage), level) for stage in config.stages for level in ("outer", "inner")):
        node = config.stages[stage][level]
        for stream in node.data if node is not None else ():
            description = json.dumps(OmegaConf.to_container(node.data[stream], resolve=True), sort_keys=True)
            if description not in read:
                path = f"stages.{stage}.{level}.data.{stream}"
                read[description] = build(node.data[stream], path, config.allow)
                _report_skipped(read[description], on_skip)
            sources[stage, level, str(stream)] = read[description]
    return sources


def _report_skipped(data: AnyData, on_skip: OnSkip) -> None:
    for dataset in data.datasets if isinstance(data, Mixture) else (data,):
        known = () if isinstance(dataset, Streamed) else dataset.skipped  # a stream's are met on the way
        for skipped in known if distributed.is_main() else ():
            on_skip(skipped)


def build_stage(config: DictConfig, name: str, model: Model, sources: Sources, on_skip: OnSkip) -> Stage:
    """One stage, with its streams and its solver."""
    node = config.stages[name]
    wanted: tuple[Level, ...] = ("outer",) if node.inner is None else ("outer", "inner")
    levels = {level: _level(config, name, level, model, sources, on_skip) for level in wanted}
    own = config.solver if node.solver is None else node.solver
    solver = (
        SingleLevel()
        if node.inner is None
        else build(own, "solver" if node.solver is None else f"stages.{name}.solver", config.allow)
    )
    optimisation = Optimisation(
        steps=_steps(name, node, levels["outer"]),
        warmup=node.warmup,
        schedule=node.schedule,
        weight_decay=node.weight_decay,
        betas=(node.betas[0], node.betas[1]),
        clip=node.clip,
    )
    # as label_of calls what trains of them
    outer_parts = tuple(
        f"{part} LoRA" if node.train[part] == "lora" else str(part) for part in node.inner_depends_on_outer
    )
    return Stage(name, levels, solver, optimisation, partial(_rates, model, node), label_of, outer_parts)


def _rates(model: Model, node: DictConfig) -> dict[str, float]:
    """Freezes what the stage does not train; the learning rate of every parameter that it does."""
    set_trainable(model.root, dict(node.train))
    trained = [name for name, parameter in model.root.named_parameters() if parameter.requires_grad]
    return {name: node.part_lr.get(part_of(name), node.lr) for name in trained}


def _level(config: DictConfig, stage: str, level: Level, model: Model, sources: Sources, on_skip: OnSkip) -> LevelRun:
    node = config.stages[stage]
    objective: Objective = build(node[level].objective, f"stages.{stage}.{level}.objective", config.allow)
    rows = (node.inner_batch_size or node.batch_size) if level == "inner" else node.batch_size
    try:
        streams = {
            stream: Loader(
                data,
                _collator(objective, stream, model, node, data, f"stages.{stage}.{level}"),
                batch_size=rows,
                micro_batch_size=_micro_batch(objective, node, level, rows),
                seed=_stream_seed(config.seed, stage, level, stream),
                workers=config.trainer.workers,
                group_by_length=node.group_by_length and level == "outer",
                name=f"{stage}/{level}/{stream}",
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                on_skip=on_skip,
            )
            for (of_stage, of_level, stream), data in sources.items()
            if (of_stage, of_level) == (stage, level)
        }
    except ValueError as error:
        raise ValueError(f"stages.{stage} ({level} level): {error}") from error
    return LevelRun(objective, streams)


def _collator(objective: Objective, stream: str, model: Model, node: DictConfig, data: AnyData, path: str) -> Any:
    batch_type = batch_type_of(objective, stream, path)
    preference: dict[str, Any] = {}
    if batch_type is PreferenceBatch:
        others = data if node.corrupt == "other" else None
        phrases = bool(getattr(objective, "phrases", False))
        preference = {"corrupt": node.corrupt, "noise_step": node.noise_step, "others": others, "phrases": phrases}
    return collator(
        batch_type,
        model,
        template=node.template,
        image_aspect=node.image_aspect,
        max_length=node.max_length,
        **preference,
    )


def keep_reference(model: Model, stages: Sequence[Stage], *, cached: bool = False) -> None:
    """Keeps what the model is now for the stages whose losses compare with it: none may have trained before them.

    Where what it says is ``cached``, for the outer level, its output layer is enough.
    """
    for number, stage in enumerate(stages):
        levels = [level for level, run in stage.levels.items() if getattr(run.objective, "needs_reference", False)]
        if not levels:
            continue
        if number:
            raise ValueError(
                f"stages.{stage.name}.{levels[0]}: its reference is the model that the run starts from, and "
                f"stages.{stages[0].name} trains before it; train that by itself, then start from it with "
                "model.from_run=..."
            )
        model.root.keep_reference(stage.rates(), whole=not cached or "inner" in levels)


def _stream_seed(seed: int, *stream: str) -> int:
    """Its own order for each stream: with one for all, the inner level would see the outer one's images."""
    return zlib.crc32("/".join([str(seed), *stream]).encode())


def _micro_batch(objective: Objective, node: DictConfig, level: Level, rows: int) -> int:
    """Rows in memory at a time."""
    share = max(1, rows // distributed.world_size())
    key = "inner_micro_batch_size" if level == "inner" else "micro_batch_size"
    size = min(node[key] or share, share)
    if objective.whole_batch and size < share and not isinstance(objective, Cacheable):
        raise ValueError(
            f"{key}: got {size} for {share} rows, and {type(objective).__name__} sees its rows as each other's "
            "negatives and cannot be split; leave it out, or take a smaller batch"
        )
    return size


def _steps(stage: str, node: DictConfig, outer: LevelRun) -> int:
    if node.steps is not None:
        return int(node.steps)
    lengths = {key: stream.examples_per_epoch for key, stream in outer.streams.items() if isinstance(stream, Loader)}
    if streamed := [key for key, length in lengths.items() if length is None]:
        raise ValueError(
            f"stages.{stage}.steps: not given, and outer.data.{streamed[0]} is streamed, so that nobody knows how many "
            f"rows an epoch has; set stages.{stage}.steps=..."
        )
    first = next(length for length in lengths.values() if length is not None)
    epochs: float = node.epochs
    batch_size: int = node.batch_size
    return max(1, round(epochs * first / batch_size))


def say_input(stages: Sequence[Stage], say: Callable[[str], None]) -> None:
    """One line a stream: how fast its batches are made and what memory that takes; no batch and no draw is used up."""
    known: dict[tuple[int, type, int], str] = {}
    for stage in stages:
        for name, stream in stage.streams().items():
            if not isinstance(stream, Loader):
                continue
            what = (id(stream.data), type(stream.collator), stream.micro_batch_size)
            if what in known:
                say(f"input {stage.name}/{name}: as {known[what]}")
            else:
                known[what] = f"{stage.name}/{name}"
                say(f"input {stage.name}/{name}: {measure(stream, most=stage.optimisation.steps)}")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which gets the name ``folder`` at the end: one that has its name is complete."""
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def save_whole(model: Model, folder: Path) -> None:
    """Saves the model into ``folder``, which is there when it is complete."""
    with written_whole(folder) as partial:
        save(model, partial)


def find_checkpoint(run: Path, config: DictConfig) -> Checkpoint | None:
    """The run's furthest checkpoint, if there is one."""
    return latest(run, [str(name) for name in config.stages])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The keys, with both values, in which two configs differ."""
    found = []
    for key in sorted({*old, *new}):
        a, b, where = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{where}.")
        elif a != b:
            found.append(f"{where}: {a!r} -> {b!r}")
    return found
