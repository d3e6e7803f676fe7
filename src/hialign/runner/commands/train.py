"""``hialign train``: one run, or a sweep of them with ``-m``."""

from __future__ import annotations

import fcntl
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hialign import distributed
from hialign.data import Skipped
from hialign.files import write_json
from hialign.models import Model, checkpoint_activations
from hialign.models import count as count_parameters
from hialign.runner import assemble, caches, names, schema, settings
from hialign.runner.build import build
from hialign.training import Logs, Preempted, Training, write_status
from hialign.training.checkpoint import Checkpoint

# what may change between a run and its resumption
_FREE = ("resume", "output", "name", "tracker", "allow", "cache", "what")
_FREE_TRAINER = ("workers", "save_every", "keep", "device", "diagnose_every")


def main() -> None:
    """Composes the config from the command line and trains."""
    schema.register()
    _composed()
    distributed.stop()  # once: a sweep's runs share the group. Not after an error: other ranks would not come


@hydra.main(version_base="1.3", config_path="pkg://hialign.configs", config_name="train")
def _composed(config: DictConfig) -> None:
    """In a sweep a failed run is reported and the others go on; Hydra raises the first failure at the end."""
    try:
        run(config)
    except Preempted as stop:
        if distributed.is_main():
            print(f"hialign train: {stop}; the same command with resume=auto goes on", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except (ValueError, OSError) as error:
        print(f"hialign train: {error}", file=sys.stderr)
        settings.print_traceback()
        if HydraConfig.get().mode == RunMode.MULTIRUN and not distributed.active():
            raise  # the sweep goes on; with several ranks it cannot, for the others wait in this run's collectives
        sys.exit(1)


def run(config: DictConfig) -> Path:
    """Trains what ``config`` describes; returns the run folder, whose ``status.json`` says how it ended."""
    choices = HydraConfig.get().runtime.choices
    experiment = choices.get("experiment")
    schema.validate(config, experiment=experiment, suite=str(choices.get("data")))
    name = config.name or names.run_name(HydraConfig.get().overrides.task)
    folder = Path(config.output) / (experiment or "unnamed") / name
    device = assemble.choose_device(config.trainer.device, "trainer.device")
    plain = _plain(config)
    if _state(folder) == "done" and config.resume:
        _refuse_other_config(folder, plain)
        print(f"{folder} is done; `hialign evaluate run={folder}` scores it", file=sys.stderr)
        return folder
    with alone_in(folder, "training this run", "name=OTHER"):
        resume_from = _claim(folder, config, plain)
        try:
            _train(config, plain, folder, resume_from, device)
        except (Preempted, KeyboardInterrupt) as stop:
            _leave(folder, "preempted", where=str(stop) or "interrupted")
            raise
        except BaseException as error:
            _leave(folder, "failed", error=f"{type(error).__name__}: {error}")
            raise
        _leave(folder, "done", model=str(folder / "model"))
    return folder


@contextmanager
def alone_in(folder: Path, doing: str, other: str) -> Iterator[None]:
    """Holds the folder's lock until the process ends: a requeued job may start while the old one still saves.

    ``doing`` is what errors say of the process that holds it, ``other`` how to do without.
    """
    if not distributed.is_main():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process is {doing}; wait for it, or use {other}") from error
        yield


def _train(
    config: DictConfig, plain: Mapping[str, Any], folder: Path, resume_from: Checkpoint | None, device: torch.device
) -> None:
    # dropout differs between ranks; the weights come from the first
    torch.manual_seed(int(np.random.SeedSequence([config.seed, distributed.rank()]).generate_state(1)[0]))
    trackers = [build(node, f"tracker.{key}", config.allow) for key, node in config.tracker.items()]
    after = _total_step(resume_from)
    with Logs(folder, trackers, plain, main=distributed.is_main(), after=after) as logs:
        for doubt in schema.doubts(config):
            logs.say(f"WARNING {doubt}")
        skips = _SkipList(folder, logs)
        sources = assemble.read_data(config, skips)
        model = assemble.build_model(config)
        model.root.to(device)
        distributed.from_main_([p.data for p in model.root.parameters()])
        if config.trainer.gradient_checkpointing:
            checkpoint_activations(model.root)
        _describe(logs, model, resume_from)
        if no_recipe := schema.missing_recipe():
            logs.say(f"NOTE: there is no configs/recipe/{no_recipe}.yaml: the stages' own lengths and rates hold")
        stages = [assemble.build_stage(config, str(stage), model, sources, skips) for stage in config.stages]
        cached = bool(config.cache) and caches.attach(config, model, stages, logs.say)
        assemble.keep_reference(model, stages, cached=cached)
        if distributed.is_main():
            assemble.say_input(stages, logs.say)
        Training(
            root=model.root,
            stages=stages,
            folder=folder,
            logs=logs,
            device=device,
            precision=config.trainer.precision,
            save_every=config.trainer.save_every,
            keep=config.trainer.keep,
            diagnose_every=config.trainer.diagnose_every,
        ).run(resume_from)
        if distributed.is_main():
            assemble.save_whole(assemble.as_asked(model, config, list(config.stages)[-1]), folder / "model")
        logs.say(f"done: {folder}/model is a standard Llava folder; `hialign evaluate run={folder}` scores it")


def _claim(folder: Path, config: DictConfig, plain: Mapping[str, Any]) -> Checkpoint | None:
    """Makes the run folder and writes what the run is, or finds the checkpoint to go on from."""
    found = assemble.find_checkpoint(folder, config)
    saved = any((folder / "checkpoints").glob("*/step-*"))  # of any stage, also one that this config does not have
    state = _state(folder)
    if config.resume is None and (saved or state not in (None, "failed")):
        raise ValueError(
            f"{folder} exists ({state}); resume=auto goes on with it, name=OTHER starts another run beside it"
        )
    if saved:
        _refuse_other_config(folder, plain)
    distributed.barrier()  # every rank has looked before the first one writes
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        if not saved:
            OmegaConf.save(OmegaConf.create(dict(plain)), folder / ".config.partial")
            (folder / ".config.partial").replace(folder / "config.yaml")
        _write_provenance(folder / "provenance.json", resumed=found is not None)
        write_status(folder, "running")
    distributed.barrier()
    return found


def _refuse_other_config(folder: Path, plain: Mapping[str, Any]) -> None:
    old: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    changed = assemble.differences(_binding(old), _binding(plain))
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise ValueError(
            f"resume: {folder} was started with another config: {'; '.join(changed[:4])}{more}; use name=OTHER"
        )


def _write_provenance(file: Path, *, resumed: bool) -> None:
    """What made the run, and under ``resumed`` what has gone on with it since."""
    first = json.loads(file.read_text()) if resumed else names.provenance()
    later = [*first.get("resumed", []), names.provenance()] if resumed else []
    write_json(file, {**first, "resumed": later})


def _leave(folder: Path, state: str, **details: object) -> None:
    if distributed.is_main():
        write_status(folder, state, **details)
    if state == "failed":  # on every rank: where another one fails, the first only sees that it is gone
        with (folder / "log.txt").open("a") as out:
            out.write(f"rank {distributed.rank()} failed:\n{traceback.format_exc()}")


def _total_step(found: Checkpoint | None) -> int:
    return 0 if found is None else int(json.loads((found.folder / "where.json").read_text())["total_step"])


def _state(folder: Path) -> str | None:
    """What ``status.json`` says, None where there is no run."""
    status = folder / "status.json"
    return str(json.loads(status.read_text())["state"]) if status.is_file() else None


def _binding(config: Mapping[Any, Any]) -> dict[str, Any]:
    """The part of a config that decides what a run computes."""
    kept = {str(key): value for key, value in config.items() if key not in _FREE}
    kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key not in _FREE_TRAINER}
    return kept


def _plain(config: DictConfig) -> dict[str, Any]:
    """The config with everything filled in; roles that the data set does not have stay out."""
    kept = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    for key in list(kept.data):
        if OmegaConf.is_missing(kept.data, key):
            del kept.data[key]
    clip = kept.model.get("clip") or {}
    places = [(kept.model, key) for key in ("from_run", "checkpoint", "llm")]
    for owner, key in ((kept.data, "root"), *places, (clip, "name"), (clip, "pretrained")):
        if owner.get(key) and Path(owner[key]).exists():
            owner[key] = str(Path(owner[key]).absolute())  # a later command may start in another folder
    try:
        plain = OmegaConf.to_container(kept, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _describe(logs: Logs, model: Model, resume_from: Checkpoint | None) -> None:
    logs.say(f"run folder: {logs.folder}")
    if resume_from:
        logs.say(f"resuming from {resume_from.folder}")
    sizes = ", ".join(f"{row.part} {row.total:,}" for row in count_parameters(model.root))
    logs.say(f"parameters: {sizes}")
    if model.note:
        logs.say(f"NOTE: {model.note}")


class _SkipList:
    """Writes every skipped record once to ``skipped.jsonl`` and counts them aloud at 1, 2, 4, 8, ..."""

    def __init__(self, folder: Path, logs: Logs) -> None:
        self.logs = logs
        self.file = folder / ("skipped.jsonl" if distributed.is_main() else f"skipped-{distributed.rank()}.jsonl")
        self.lines = set(self.file.read_text().splitlines()) if self.file.is_file() else set()

    def __call__(self, skipped: Skipped) -> None:
        line = json.dumps({"file": skipped.file, "record": skipped.record, "problem": skipped.problem})
        if line in self.lines:  # both levels read the same files, and so did the run that this one resumes
            return
        self.lines.add(line)
        with self.file.open("a") as out:
            out.write(line + "\n")
        count = len(self.lines)
        if count & (count - 1) == 0:
            self.logs.say(f"skipped {count} records so far, {self.file} lists them: {skipped.problem}")
