"""``hialign train``: one run, or a sweep of them with ``-m``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hialign import distributed
from hialign.data import Skipped
from hialign.models import Model, count, save
from hialign.runner import assemble, names, schema
from hialign.runner.build import build
from hialign.training import Logs, Preempted, Training, drop_rows_after, write_json
from hialign.training.checkpoint import Checkpoint

# what may change between a run and its resumption
_FREE = ("resume", "output", "name", "tracker", "allow")
_FREE_TRAINER = ("workers", "save_every", "keep", "device")


def main() -> None:
    """Composes the config from the command line and trains."""
    schema.register()
    _composed()


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
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(1)
    finally:
        distributed.stop()


def run(config: DictConfig) -> Path:
    """Trains what ``config`` describes; returns the run folder."""
    choices = HydraConfig.get().runtime.choices
    experiment, suite = choices.get("experiment"), str(choices.get("data"))
    if config.get("data") is None or OmegaConf.is_missing(config, "data"):
        raise ValueError("data: not chosen; wanted data=NAME data.root=FOLDER, `hialign configs data` lists them")
    schema.validate(config, experiment=experiment, suite=suite)
    name = config.name or names.run_name(HydraConfig.get().overrides.task)
    folder = Path(config.output) / (experiment or "unnamed") / name
    device = assemble.choose_device(config.trainer.device)
    plain = _plain(config)
    resume_from = _claim(folder, config, plain)
    if resume_from is None and _is_done(folder):
        print(f"{folder} is done; `hialign evaluate run={folder}` scores it", file=sys.stderr)
        return folder
    _train(config, plain, folder, resume_from, device)
    return folder


def _train(
    config: DictConfig, plain: Mapping[str, Any], folder: Path, resume_from: Checkpoint | None, device: torch.device
) -> None:
    torch.manual_seed(config.seed)
    trackers = [build(node, f"tracker.{key}", config.allow) for key, node in config.tracker.items()]
    with Logs(folder, trackers, plain, main=distributed.is_main()) as logs:
        model = assemble.build_model(config)
        model.root.to(device)
        distributed.from_main_([p.data for p in model.root.parameters()])
        if config.trainer.gradient_checkpointing:
            model.root.llava.gradient_checkpointing_enable({"use_reentrant": False})
        _describe(logs, model, folder, resume_from)
        skips = _SkipList(folder, logs)
        training = Training(
            root=model.root,
            stages=[assemble.build_stage(config, str(stage), model, skips) for stage in config.stages],
            folder=folder,
            logs=logs,
            device=device,
            precision=config.trainer.precision,
            save_every=config.trainer.save_every,
            keep=config.trainer.keep,
        )
        _run_to_the_end(training, resume_from)
        if distributed.is_main():
            save(model, folder / "model")
        training.status("done")
        logs.say(f"done: {folder}/model is a standard Llava folder; `hialign evaluate run={folder}` scores it")


def _run_to_the_end(training: Training, resume_from: Checkpoint | None) -> None:
    """Trains, and leaves in ``status.json`` how it ended."""
    training.status("running")
    try:
        training.run(resume_from)
    except (Preempted, KeyboardInterrupt) as stop:
        training.status("preempted", where=str(stop) or "interrupted")
        raise
    except BaseException as error:
        training.status("failed", error=f"{type(error).__name__}: {error}")
        raise


def _claim(folder: Path, config: DictConfig, plain: Mapping[str, Any]) -> Checkpoint | None:
    """Makes the run folder and writes what the run is, or finds the checkpoint to go on from."""
    existing = folder / "config.yaml"
    if existing.is_file() and config.resume is None:
        raise ValueError(f"{folder} exists; resume=auto goes on with it, name=OTHER starts another run beside it")
    if existing.is_file():
        old = OmegaConf.to_container(OmegaConf.load(existing))
        assert isinstance(old, dict)
        changed = assemble.differences(_binding(old), _binding(plain))
        if changed:
            raise ValueError(f"resume: {folder} was started with another config: {'; '.join(changed)}; use name=OTHER")
    elif distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(dict(plain)), existing)
        write_json(folder / "provenance.json", names.provenance())
    distributed.barrier()
    found = None if _is_done(folder) else assemble.find_checkpoint(folder, config)
    if distributed.is_main() and not _is_done(folder):
        drop_rows_after(folder / "metrics.jsonl", _total_step(found, folder))
    return found


def _total_step(found: Checkpoint | None, folder: Path) -> int:
    return 0 if found is None else int(json.loads((found.folder / "where.json").read_text())["total_step"])


def _is_done(folder: Path) -> bool:
    status = folder / "status.json"
    return status.is_file() and json.loads(status.read_text())["state"] == "done"


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
    try:
        plain = OmegaConf.to_container(kept, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _describe(logs: Logs, model: Model, folder: Path, resume_from: Checkpoint | None) -> None:
    logs.say(f"run folder: {folder}")
    if resume_from:
        logs.say(f"resuming from {resume_from.folder}")
    sizes = ", ".join(f"{row.part} {row.total:,}" for row in count(model.root))
    logs.say(f"parameters: {sizes}")


class _SkipList:
    """Writes every skipped record to ``skipped.jsonl`` and counts them aloud at 1, 2, 4, 8, ..."""

    def __init__(self, folder: Path, logs: Logs) -> None:
        self.folder, self.logs = folder, logs
        self.seen: set[tuple[str, str, str]] = set()

    def __call__(self, skipped: Skipped) -> None:
        key = (skipped.file, skipped.record, skipped.problem)
        if key in self.seen:  # both levels read the same files
            return
        self.seen.add(key)
        with (self.folder / f"skipped{'' if distributed.is_main() else f'-{distributed.rank()}'}.jsonl").open("a") as out:
            out.write(json.dumps({"file": skipped.file, "record": skipped.record, "problem": skipped.problem}) + "\n")
        if (len(self.seen) & (len(self.seen) - 1)) == 0:
            self.logs.say(f"skipped {len(self.seen)} records so far, {self.folder}/skipped.jsonl lists them: {skipped.problem}")
