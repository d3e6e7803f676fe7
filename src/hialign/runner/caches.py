"""Caches of a run: which there can be, what makes them, and batches that bring along what they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hialign.batch import LanguageBatch, PreferenceBatch
from hialign.data import CachedCollator, Loader
from hialign.models import Model, base_state
from hialign.objectives import Objective
from hialign.runner.assemble import batch_type_of, differences
from hialign.training import Stage
from hialign.training.cache import Manifest, Reader, fingerprint, read_manifest


@dataclass(frozen=True)
class Part:
    """One stream's cache of one kind: of the reference's answers, or of the tower's features."""

    kind: str
    stage: str
    stream: str
    loader: Loader[Any]
    objective: Objective
    tensors: tuple[str, ...]  # what the run reads of it
    wanted: Manifest  # without shards

    @property
    def path(self) -> str:
        """Where it lies in the cache's folder."""
        return f"{self.kind}/{self.stage}-{self.stream}"


@dataclass(frozen=True)
class Caches:
    """The caches that a run's outer levels can have; ``left`` says why there are no others."""

    parts: tuple[Part, ...]
    left: tuple[str, ...]


def possible(config: DictConfig, model: Model, stages: Sequence[Stage]) -> Caches:
    """What of the run can be cached. The model is as the run starts.

    Of outer levels alone: how many batches a solver takes of the inner one is its own affair.
    """
    weights = _Weights(model)
    parts, left = [], []
    for number, stage in enumerate(stages):
        node = config.stages[stage.name]
        moving = _moving(config, model, [before.name for before in stages[: number + 1]])
        run = stage.levels["outer"]
        for stream, loader in run.streams.items():
            assert isinstance(loader, Loader)
            batch_type = batch_type_of(run.objective, stream, f"stages.{stage.name}.outer")
            names = getattr(run.objective, "reference_reads", {}).get(batch_type, ())
            common = (stage.name, stream, loader, run.objective)
            if names and number == 0:
                wanted = _wanted(config, node, stage, stream, loader, weights.reference, _rows(node, batch_type, names))
                parts.append(Part("reference", *common, tuple(names), wanted))
            if batch_type not in (LanguageBatch, PreferenceBatch):
                left.append(f"features of {stage.name}/{stream}: its batches are {batch_type.__name__}")
            elif moving:
                left.append(f"features of {stage.name}/{stream}: {moving}")
            else:
                images = _images(model, node, batch_type)
                wanted = _wanted(config, node, stage, stream, loader, weights.tower, images)
                parts.append(Part("features", *common, ("features",), wanted))
    if not any(part.kind == "reference" for part in parts):
        left.append("reference: no objective of the first stage compares with the starting model")
    return Caches(tuple(parts), tuple(left))


def attach(config: DictConfig, model: Model, stages: Sequence[Stage], say: Callable[[str], None]) -> bool:
    """Lets the stages' streams bring along what the cache holds; whether the reference is then not to be run.

    ``ValueError`` for a cache that was made otherwise than this run would make it.
    """
    folder, caches = Path(config.cache), possible(config, model, stages)
    if not folder.is_dir():
        raise ValueError(
            f"cache={folder}: no such folder; run hialign cache with this run's settings, or set cache=null"
        )
    asked = [part for part in caches.parts if config.what == "auto" or part.kind in config.what]
    here = [(part, have) for part in asked if (have := read_manifest(folder / part.path)) is not None]
    if not here:
        held = ", ".join(sorted(str(file.parent.relative_to(folder)) for file in folder.glob("*/*/manifest.json")))
        wanted = ", ".join(part.path for part in asked) or f"nothing ({'; '.join(caches.left)})"
        raise ValueError(
            f"cache={folder}: it has {held or 'nothing'}, and this run can use {wanted}; run hialign cache with this "
            "run's settings, or set cache=null"
        )
    for part, have in here:
        _refuse_stale(part, have, folder)
    _refuse_half(caches, [part for part, _ in here], folder)
    readers = [(part, Reader(folder / part.path, have.shards)) for part, have in here]
    for part, reader in readers:
        say(f"cache {folder / part.path}: {len(reader.places):,} entries")
    for loader in {id(part.loader): part.loader for part, _ in readers}.values():
        loader.through(_bringing(loader, readers, str(folder)))
    return any(part.kind == "reference" for part, _ in readers)


def _bringing(loader: Loader[Any], readers: Sequence[tuple[Part, Reader]], folder: str) -> CachedCollator:
    """The loader's collator, with what the readers have of its stream."""
    ours = {part.kind: (part, reader) for part, reader in readers if part.loader is loader}
    reference, features = ours.get("reference"), ours.get("features")
    return CachedCollator(
        loader.collator,
        folder,
        reference=reference and reference[1],
        names=reference[0].tensors if reference else (),
        features=features and features[1],
    )


def _refuse_stale(part: Part, have: Manifest, folder: Path) -> None:
    """A ``ValueError`` that names each key in which the cache is another one than the run would make."""
    where = f"cache={folder}: {part.path}"
    fix = "run hialign cache with this run's settings and another folder, or set cache=null"
    changed = disagreements(have, part.wanted)
    lacking = sorted(set(part.tensors) - set(have.key["tensors"]))
    if changed or lacking:
        reasons = [*changed, *(f"tensors: it has no {name}" for name in lacking)]
        raise ValueError(f"{where} is stale (in the cache -> in this run): {'; '.join(reasons)}; {fix}")
    if have.missing:
        done = have.steps - sum(end - begin for begin, end, _ in have.missing)
        raise ValueError(f"{where} is not finished, {done} of {have.steps} steps; run the same hialign cache again")
    epoch = part.loader.examples_per_epoch
    mixed = len(part.loader.state_dict().get("sizes", ())) > 1  # weights then decide how soon a row comes
    if not have.drawn and not mixed and epoch is not None and have.rows >= epoch:
        return  # every row, whatever the order
    names = set(have.walk) if mixed or part.wanted.walk["group_by_length"] else {"seed"}
    there, here = ({name: walk[name] for name in names} for walk in (have.walk, part.wanted.walk))
    if changed := differences(there, here):
        raise ValueError(f"{where} is stale: a draw decides its rows, and {'; '.join(changed)}; {fix}")
    if have.rows < part.wanted.rows:
        raise ValueError(f"{where} is stale: rows: it has {have.rows}, and this run reads {part.wanted.rows}; {fix}")


def disagreements(have: Manifest, wanted: Manifest) -> list[str]:
    """The keys, with both values, in which what made a cache differs; but for what it holds."""
    one, other = ({key: value for key, value in made.key.items() if key != "tensors"} for made in (have, wanted))
    found = differences(one, other)
    if "weights" in one and one["weights"] != other["weights"] and have.made_from != wanted.made_from:
        found.append(f"made from {have.made_from} -> {wanted.made_from}")
    return found


def _refuse_half(caches: Caches, here: Sequence[Part], folder: Path) -> None:
    """The reference is cached for all that read it or for none: it is kept for both or for neither."""
    read = [part.path for part in caches.parts if part.kind == "reference"]
    lacking = [path for path in read if path not in {part.path for part in here}]
    if lacking and len(lacking) < len(read):
        raise ValueError(f"cache={folder}: {', '.join(lacking)} is missing; run the same hialign cache again")


def _wanted(
    config: DictConfig,
    node: DictConfig,
    stage: Stage,
    stream: str,
    loader: Loader[Any],
    weights: str,
    made: dict[str, Any],
) -> Manifest:
    state = loader.state_dict()
    root = None if OmegaConf.is_missing(config.data, "root") else config.data.get("root")
    source: Any = _without(root, OmegaConf.to_container(node.outer.data[stream], resolve=True))
    known = {name: state[name] for name in ("sizes", "ids", "weights") if name in state}
    key: dict[str, Any] = {
        "weights": weights,
        "dtype": config.model.get("dtype", "fp32"),
        "precision": config.trainer.precision,
        "data": {"source": source, **known},
        **made,
    }
    steps = stage.optimisation.steps
    walk = {"seed": config.seed, "batch_size": node.batch_size, "group_by_length": node.group_by_length}
    return Manifest(key, _called(config.model), walk, steps, steps * node.batch_size)


def _rows(node: DictConfig, batch_type: type, names: Sequence[str]) -> dict[str, Any]:
    """What decides the reference's answers, besides model and data."""
    text = {"template": node.template, "max_length": node.max_length, "image_aspect": node.image_aspect}
    return {"tensors": sorted(names), **text, **_corruption(node, batch_type)}


def _images(model: Model, node: DictConfig, batch_type: type) -> dict[str, Any]:
    """What decides the features, besides tower and data."""
    config: Any = model.root.llava.config
    layer = {"layer": config.vision_feature_layer, "select": config.vision_feature_select_strategy}
    return {"tensors": ["features"], **layer, "image_aspect": node.image_aspect, **_corruption(node, batch_type)}


def _corruption(node: DictConfig, batch_type: type) -> dict[str, Any]:
    if batch_type is not PreferenceBatch:
        return {}
    return {"corrupt": node.corrupt, **({"noise_step": node.noise_step} if node.corrupt == "noise" else {})}


def _moving(config: DictConfig, model: Model, stages: Sequence[str]) -> str | None:
    """Why the image tower does not say the same of an image in all of the stages; None where it does."""
    for name in stages:
        if config.stages[name].train.get("vision", "frozen") != "frozen":
            return f"stages.{name}.train.vision lets the tower change"
    dropout = getattr(model.root.llava.config.vision_config, "attention_dropout", 0.0)
    return f"the tower has attention_dropout={dropout}" if dropout else None


def _without(root: str | None, node: Any) -> Any:
    """A data set's description with places told from the data's root: the same data may lie elsewhere."""
    if isinstance(node, dict):
        return {key: _without(root, value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without(root, value) for value in node]
    return node.removeprefix(root) if root and isinstance(node, str) else node


def _called(model: DictConfig) -> str:
    return str(model.get("from_run") or model.get("checkpoint") or model.get("llm") or model["_target_"])


class _Weights:
    """Names of the weights that answers and features come from; made when they are asked for."""

    def __init__(self, model: Model) -> None:
        self.llava: Any = model.root.llava

    @cached_property
    def reference(self) -> str:
        """Of the whole model, without adapters that add nothing yet."""
        return fingerprint(base_state(self.llava))

    @cached_property
    def tower(self) -> str:
        """Of the image tower."""
        return fingerprint(base_state(self.llava.model.vision_tower))
