"""``hialign cache``: the reference's answers and the frozen tower's features, written before a run that reads them."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from hialign import distributed
from hialign.batch import Batch
from hialign.data import KeyedBatch, KeyedCollator, Skipped, side_tokens
from hialign.models import Model
from hialign.objectives import Parts
from hialign.runner import assemble, caches, schema
from hialign.runner.caches import Part
from hialign.runner.commands.train import alone_in
from hialign.runner.told import told
from hialign.training.cache import (
    MANIFEST,
    SHARD_BYTES,
    Made,
    Manifest,
    Shard,
    check_shard,
    fill,
    read_manifest,
    write_manifest,
)
from hialign.training.cost import cache_pays
from hialign.training.oracle import read

IGNORED = -100
Make = Callable[[KeyedBatch, Collection[str]], Made]


def main() -> None:
    """Composes the config from the command line and writes the caches."""
    schema.register()
    _composed()


@hydra.main(version_base="1.3", config_path="pkg://hialign.configs", config_name="cache")
def _composed(config: DictConfig) -> None:
    with told("cache"):
        run(config)


def run(config: DictConfig) -> list[Path]:
    """Writes what ``config.what`` asks for of the run that ``config`` describes; returns the folders."""
    choices = HydraConfig.get().runtime.choices
    schema.validate(config, experiment=choices.get("experiment"), suite=str(choices.get("data")))
    if config.cache is None:
        raise ValueError("cache: not given; wanted a folder to write to, cache=FOLDER")
    device = assemble.choose_device(config.trainer.device, "trainer.device")
    if distributed.active():
        raise ValueError(
            "hialign cache runs in one process; start it without torchrun. Any number of ranks may read it"
        )
    sources = assemble.read_data(config, _say_skipped)
    model = assemble.build_model(config)
    model.root.to(device)
    stages = [assemble.build_stage(config, str(stage), model, sources, _say_skipped) for stage in config.stages]
    model.root.keep_reference(())  # nothing trains here: the reference is the model as it is
    found = caches.possible(config, model, stages)
    for loader in {id(part.loader): part.loader for part in found.parts}.values():
        loader.through(KeyedCollator(loader.collator))
    makers = [(part, _maker(part, model, config, device)) for part in found.parts]
    folder = Path(config.cache)
    with alone_in(folder, "writing this cache", "another cache=FOLDER"):
        chosen = _that_pay(makers, found.left, folder) if config.what == "auto" else _asked(makers, found.left, config)
        for part, make in chosen:
            _write(part, make, folder / part.path)
    return [folder / part.path for part, _ in chosen]


def _asked(makers: Sequence[tuple[Part, Make]], left: Sequence[str], config: DictConfig) -> list[tuple[Part, Make]]:
    """The parts of the kinds in ``what``; a ``ValueError`` for a kind that has none."""
    for kind in config.what:
        if not any(part.kind == kind for part, _ in makers):
            raise ValueError(f"what: {kind} cannot be cached: {'; '.join(why for why in left if why.startswith(kind))}")
    return [(part, make) for part, make in makers if part.kind in config.what]


def _that_pay(makers: Sequence[tuple[Part, Make]], left: Sequence[str], folder: Path) -> list[tuple[Part, Make]]:
    """The parts that save more time than they cost, by the first batch; says of every one why or why not."""
    for why in left:
        print(f"no {why}")
    paying = []
    for part, make in makers:
        begun = (folder / part.path / MANIFEST).is_file()
        pays, why = (True, "begun already") if begun else _worth(part, make, folder)
        print(f"{part.path}: {why}" + ("" if pays else f"; left out, what=[{part.kind}] writes it all the same"))
        if pays:
            paying.append((part, make))
    return paying


def _worth(part: Part, make: Make, folder: Path) -> tuple[bool, str]:
    """Whether the part pays, and why."""
    epoch = part.loader.examples_per_epoch
    if epoch is None:
        return False, "the data are streamed, and nobody knows how often a row comes again"
    batch: Any = part.loader.peek()
    made = make(batch, ())
    if not made.entries:
        return False, "the first batch has nothing of the kind"
    began = time.perf_counter()
    make(batch, ())  # the first one also warms up
    seconds = (time.perf_counter() - began) / len(batch) * epoch
    size = sum(tensor.nbytes for entry in made.entries.values() for tensor in entry.values()) / len(batch) * epoch
    again = _read_again(part, made, batch)
    epochs = part.wanted.rows / epoch
    size *= again + (1 - again) * epochs  # what a draw makes is written anew in each epoch
    note = "" if again == 1 else f", of which a draw makes {1 - again:.0%} other ones in each epoch"
    pays, why = cache_pays(round(size), seconds * again, epochs, free_bytes=shutil.disk_usage(folder).free)
    return pays, why + note


def _read_again(part: Part, made: Made, batch: KeyedBatch) -> float:
    """The share of the forward passes whose rows come again in the next epoch: no draw decides them."""
    if not made.drawn:
        return 1.0
    if part.kind == "features":
        return 0.5  # of each image and what was made of it
    if "text" in batch.rows:
        return 0.0
    answers = 1 if getattr(part.objective, "shared_prefix", False) else 2
    return answers / (answers + 1)


def _write(part: Part, make: Make, folder: Path) -> None:
    """Writes what is missing of the part, with a bar of its rows."""
    manifest = _begun(part, folder)
    left = sum(end - begin for begin, end, _ in manifest.missing)
    start = part.loader.state_dict()
    done = manifest.rows * (manifest.steps - left) // manifest.steps
    try:
        with tqdm(total=manifest.rows, initial=done, desc=part.path, unit="row", disable=not left) as bar:
            manifest = fill(folder, manifest, part.loader, make, shard_bytes=SHARD_BYTES, progress=bar.update)
    finally:
        part.loader.load_state_dict(start)
    size = sum(shard.bytes for shard in manifest.shards)
    print(f"{folder}: {len(manifest.shards)} shards, {size / 1e6:,.1f} MB" + ("" if left else ", whole already"))


def _begun(part: Part, folder: Path) -> Manifest:
    """The manifest of what the folder holds already, without shards that are damaged; or a new one."""
    have = read_manifest(folder)
    if have is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, part.wanted)
        return part.wanted
    changed = caches.disagreements(have, part.wanted)
    for name, one, other in (
        ("tensors", have.key["tensors"], part.wanted.key["tensors"]),
        ("walk", dict(have.walk), dict(part.wanted.walk)),
    ):
        changed += assemble.differences({name: one}, {name: other})
    if changed:
        raise ValueError(
            f"{folder} holds another cache (there -> here): {'; '.join(changed)}; name another folder, or remove it"
        )
    whole = tuple(shard for shard in have.shards if _is_whole(folder, shard))
    for file in folder.glob("*.safetensors"):
        if file.name not in {shard.file for shard in whole}:  # damaged, or under way when a run was killed
            file.unlink()
    longer = max(have, part.wanted, key=lambda manifest: manifest.steps)
    return replace(have, steps=longer.steps, rows=longer.rows, shards=whole)


def _is_whole(folder: Path, shard: Shard) -> bool:
    """Whether every entry of the shard can be read; says what is wrong where it cannot."""
    try:
        check_shard(folder, shard)
    except ValueError as error:
        print(str(error).partition(";")[0] + "; it is made anew now", file=sys.stderr)
        return False
    return True


def _maker(part: Part, model: Model, config: DictConfig, device: torch.device) -> Make:
    """What makes the part's entries of a batch."""
    precision = config.trainer.precision
    run = partial(read, model.root, precision=precision, device=device)
    # Under autocast the layers that read states and features, the output layer and the projector, round them first.
    half = torch.bfloat16 if precision == "bf16" else None
    return partial(_answers, part, run, half) if part.kind == "reference" else partial(_features, run, half)


def _answers(
    part: Part, run: Callable[..., Any], half: torch.dtype | None, keyed: KeyedBatch, known: Collection[str]
) -> Made:
    """What the reference says of each row's tokens, by side."""
    sides = dict.fromkeys(name.rpartition("_")[0] for name in part.tensors)
    drawn = keyed.drawn and ("text" in sides or "corrupted" in sides)
    if all(key in known for side in sides for key in keyed.rows[side]):
        return Made({}, drawn)
    found = run(partial(_read_reference, part.objective), keyed.batch)
    entries: dict[str, dict[str, Tensor]] = {}
    for name, values in found.items():
        side, _, kind = name.rpartition("_")
        labels = side_tokens(keyed.batch, side).labels
        counts = (labels[:, 1:] != IGNORED).sum(dim=1).tolist()
        rounded = values.to(half) if half is not None and kind == "states" else values
        for key, piece in zip(keyed.rows[side], rounded.cpu().split(counts), strict=True):
            if key not in known:
                entries.setdefault(key, {})[kind] = piece
    return Made(entries, drawn)


def _features(run: Callable[..., Any], half: torch.dtype | None, keyed: KeyedBatch, known: Collection[str]) -> Made:
    """What the tower makes of each image."""
    entries: dict[str, dict[str, Tensor]] = {}
    for field, keys in keyed.images.items():
        if all(key in known for key in keys):
            continue
        found = run(partial(_read_tower, field), keyed.batch)
        rounded = (found if half is None else found.to(half)).cpu()
        entries |= {key: {"features": one[None]} for key, one in zip(keys, rounded, strict=True) if key not in known}
    return Made(entries, keyed.drawn and len(keyed.images) > 1)


def _read_reference(objective: Any, parts: Parts, batch: Batch) -> Any:
    with parts.reference() as reference:
        return objective.read_reference(reference, batch)


def _read_tower(field: str, parts: Any, batch: Batch) -> Any:
    with parts.reference() as reference:
        return reference.image_features(getattr(batch, field))


def _say_skipped(skipped: Skipped) -> None:
    print(f"skipped {skipped.record} of {skipped.file}: {skipped.problem}", file=sys.stderr)
