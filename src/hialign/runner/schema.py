"""The composed config as dataclasses, so that Hydra names a key that is unknown or of the wrong kind; then checks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from hialign.data.corrupt import KINDS
from hialign.data.templates import TEMPLATES
from hialign.models import IMAGE_ASPECTS, LORA_PARTS, MODES, PARTS, Lora
from hialign.runner.build import build, check, is_target, target_class
from hialign.training import PRECISIONS, SCHEDULES

Node = dict[str, Any]
LEVELS = ("outer", "inner")
CACHED = ("reference", "features")  # what a cache may hold


@dataclass
class LevelConfig:
    """A loss and the streams it reads: ``data`` maps a name of the stream to a data set."""

    objective: Node = MISSING
    data: Node = MISSING


@dataclass
class StageConfig:
    """One stage. ``solver: null`` means the run's solver if there is an inner level, else plain descent.

    ``outer`` and ``inner`` are LevelConfigs, often as a link to the run's: a typed key could not hold a link, so
    ``validate`` checks them.
    """

    outer: Any = MISSING
    inner: Any = None
    solver: Node | None = None
    train: dict[str, str] = MISSING  # part -> full | lora | frozen; a part that is not named is frozen
    epochs: float | None = None  # of the outer level's data, of its first stream where it has several
    steps: int | None = None  # if given, instead of epochs
    batch_size: int = MISSING  # outer rows of an optimiser step, over all processes
    inner_batch_size: int | None = None  # the same for the inner level; null: batch_size
    micro_batch_size: int | None = None  # outer rows in memory at a time, of one process; null: all of them
    # the same for the inner level. A contrastive batch stays one: its embeddings are cached, for one more forward pass
    inner_micro_batch_size: int | None = None
    # parts that train, that the inner loss reads and the outer level alone may choose, such as [llm]
    inner_depends_on_outer: list[str] = field(default_factory=list)
    lr: float = MISSING
    part_lr: dict[str, float] = field(default_factory=dict)  # where a part's rate differs
    template: str = "plain_eos"  # how text rows are laid out: plain_eos | plain | v1 | chat
    image_aspect: str = "square"  # square: the processor's own resizing and cropping; pad: onto a square first
    group_by_length: bool = False  # outer batches of like length, text-only rows by themselves
    max_length: int = 2048  # tokens of a row
    # what is set against the true image by losses that compare images: noise | zoom | grey | crop | rotation | other
    corrupt: str | None = None
    noise_step: int = 500  # of 1000, with corrupt=noise
    warmup: float = 0.03  # share of the steps
    schedule: str = "cosine"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0


@dataclass
class LoraConfig:
    """The adapters of every part that a stage trains by lora."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass
class TrainerConfig:
    """How a run runs, whatever it trains."""

    precision: str = "fp32"
    gradient_checkpointing: bool = False
    workers: int = 0  # processes that read data, of each stream
    save_every: int = 200
    keep: int = 2  # checkpoints of a stage
    device: str = "auto"  # auto | cpu | cuda
    diagnose_every: int = 200  # steps between measurements of a step, for up to five inner gradients; 0 for none


@dataclass
class TrainConfig:
    """A whole run."""

    model: Node = MISSING
    data: Node = MISSING
    solver: Node = MISSING
    stages: dict[str, StageConfig] = field(default_factory=dict)
    inner: LevelConfig | None = None
    outer: LevelConfig | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: dict[str, Node] = field(default_factory=dict)
    seed: int = 0
    cache: str | None = None  # a folder that hialign cache writes and hialign train reads
    what: Any = "auto"  # of it: auto, or some of [reference, features]
    resume: str | None = None  # null | auto
    output: str = "runs"
    name: str | None = None  # null: made of the overrides
    allow: list[str] = field(default_factory=list)  # packages besides ours whose targets may be built


@dataclass
class EvaluateConfig:
    """Scores of a run's model."""

    run: str = MISSING
    benchmark: dict[str, Node] = field(default_factory=dict)
    root: str | None = None  # where the data lie now; null: where they lay when the run began
    on_error: str | None = None  # raise | skip; null: as the run had it
    batch_size: int = 32
    device: str = "auto"
    precision: str = "fp32"
    dtype: str = "fp32"  # of the weights; bf16 needs precision=bf16
    max_new_tokens: int | None = None  # of answers to a published benchmark; null: its own
    resamples: int = 2000  # for their intervals
    seed: int = 0  # of the resampling
    allow: list[str] = field(default_factory=list)


@dataclass
class HallucinateConfig:
    """Captions that are wrong in one phrase."""

    data: Node = MISSING
    writer: Node = MISSING
    role: str = "pairs"
    out: str = MISSING
    seed: int = 0
    sample: int = 0
    question: str = "Describe the image."
    allow: list[str] = field(default_factory=list)


def register() -> None:
    """Makes the schemas known to Hydra; the configs name them first in their defaults."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="hallucinate_schema", node=HallucinateConfig)


def recipes() -> list[str]:
    """Those that the composed config could have."""
    found: list[str] = GlobalHydra.instance().config_loader().get_group_options("recipe")
    return found


def missing_recipe() -> str | None:
    """The recipe that the composed config asks for, by name or by its experiment and model, where there is none."""
    choices = HydraConfig.get().runtime.choices
    wanted = str(choices.get("recipe") or f"{choices.get('experiment')}_{choices.get('model')}")
    return wanted if wanted not in recipes() else None


def validate(config: DictConfig, *, experiment: str | None, suite: str) -> None:
    """Raises ``ValueError`` with the key's path for a tree that Hydra accepts and that makes no sense."""
    if not config.stages:
        chosen = f"experiment={experiment} has no stage" if experiment else "no experiment is chosen"
        raise ValueError(f"stages: {chosen}; choose one with experiment=..., `hialign configs experiment` lists them")
    if OmegaConf.is_missing(config, "data"):
        raise ValueError("data: not chosen; wanted data=NAME data.root=FOLDER, `hialign configs data` lists them")
    _refuse_unknown(config, TrainConfig, "")
    _refuse_unknown(config.trainer, TrainerConfig, "trainer.")
    _refuse_unknown(config.lora, LoraConfig, "lora.")
    Lora(**config.lora)  # checks its own values
    if config.resume not in (None, "auto"):
        raise ValueError(f"resume: got {config.resume!r}, wanted auto, or null to start anew")
    if config.what != "auto" and not (
        OmegaConf.is_list(config.what) and config.what and set(config.what) <= set(CACHED)
    ):
        raise ValueError(f"what: got {config.what!r}, wanted auto, or some of [{', '.join(CACHED)}]")
    if config.name is not None and not re.fullmatch(r"[\w.,=+-]*\w[\w.,=+-]*", config.name):
        raise ValueError(
            f"name: got {config.name!r}, wanted the name of a folder in {config.output}: letters, digits, ._-"
        )
    for key, least in (("save_every", 1), ("keep", 1), ("workers", 0), ("diagnose_every", 0)):
        if config.trainer[key] < least:
            raise ValueError(f"trainer.{key}: got {config.trainer[key]}, wanted at least {least}")
    for name in config.stages:
        _validate_stage(config, name, suite)
    _validate_solver(config)
    check({key: value for key, value in config.model.items() if key != "from_run"}, "model", config.allow)
    for path, node in (("solver", config.solver), *_under(config.tracker, "tracker")):
        build(node, path, config.allow)  # cheap, and they check their own values
    if config.trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision: got {config.trainer.precision!r}, wanted one of {', '.join(PRECISIONS)}")
    check_dtype(config.model.get("dtype", "fp32"), config.trainer.precision, "model.dtype", "trainer.precision")


def doubts(config: DictConfig) -> list[str]:
    """What a validated config may well not want, by key."""
    found = []
    for path, level in _levels(config):
        said = getattr(build(level.objective, f"{path}.objective", config.allow), "unbounded", "")
        found += [f"{path}.objective: {said}"] if said else []
    return found


def _levels(config: DictConfig) -> list[tuple[str, DictConfig]]:
    """Every stage's levels by their keys."""
    of_stages = [(f"stages.{name!s}.{level}", config.stages[name][level]) for name in config.stages for level in LEVELS]
    return [(path, node) for path, node in of_stages if node is not None]


def check_dtype(dtype: str, precision: str, key: str, precision_key: str) -> None:
    """``ValueError`` for weights in bfloat16 without autocast: next to float32 ones they could not be multiplied."""
    if dtype == "bf16" and precision != "bf16":
        raise ValueError(f"{key}: bf16 needs {precision_key}=bf16, which is {precision}; set it, or {key}=fp32")


def _validate_stage(config: DictConfig, name: str, suite: str) -> None:
    path = f"stages.{name}"
    missing = _missing(config.stages[name], path, config, suite)
    if missing:
        raise ValueError(missing)
    stage = config.stages[name]
    _refuse_unknown(stage, StageConfig, f"{path}.")
    if stage.outer is None:
        raise ValueError(f"{path}.outer: got null, wanted a level; every stage has an outer one")
    for level in LEVELS:
        if stage[level] is not None:
            objective = _validate_level(stage[level], f"{path}.{level}", config.allow)
            _validate_corrupt(stage, path, level, objective)
    if stage.steps is None and stage.epochs is None:
        raise ValueError(f"{path}: neither steps nor epochs is given; set {path}.epochs=...")
    for key in (
        "steps",
        "epochs",
        "batch_size",
        "inner_batch_size",
        "micro_batch_size",
        "inner_micro_batch_size",
        "max_length",
        "lr",
    ):
        if stage[key] is not None and not stage[key] > 0:
            raise ValueError(f"{path}.{key}: got {stage[key]}, wanted a number above 0")
    for key in ("weight_decay", "clip"):
        if not stage[key] >= 0:
            raise ValueError(f"{path}.{key}: got {stage[key]}, wanted 0 or more")
    if not 0 <= stage.warmup < 1:
        raise ValueError(f"{path}.warmup: got {stage.warmup}, wanted a share of the steps in [0, 1)")
    for key, choices in (("template", TEMPLATES), ("image_aspect", IMAGE_ASPECTS)):
        if stage[key] not in choices:
            raise ValueError(f"{path}.{key}: got {stage[key]!r}, wanted one of {', '.join(choices)}")
    if stage.schedule not in SCHEDULES:
        raise ValueError(f"{path}.schedule: got {stage.schedule!r}, wanted one of {', '.join(SCHEDULES)}")
    for part, mode in stage.train.items():
        if part not in PARTS or mode not in MODES:
            raise ValueError(f"{path}.train.{part}: got {mode!r}, wanted {', '.join(MODES)} for {', '.join(PARTS)}")
        if mode == "lora" and part not in LORA_PARTS:
            raise ValueError(f"{path}.train.{part}: lora is for {', '.join(LORA_PARTS)}; wanted full or frozen")
    for part, rate in stage.part_lr.items():
        if not rate > 0:
            raise ValueError(f"{path}.part_lr.{part}: got {rate}, wanted a number above 0")
        if stage.train.get(part, "frozen") == "frozen":
            raise ValueError(f"{path}.part_lr.{part}: this part does not train here; see {path}.train")
    if stage.solver is not None and stage.inner is None:
        raise ValueError(f"{path}.solver: this stage has no inner level for a solver to weigh; set {path}.inner too")
    _validate_outer_parts(stage, path)


def _validate_corrupt(stage: DictConfig, path: str, level: str, objective: Any) -> None:
    """``ValueError`` where a level's loss compares with a corrupted image and the stage says not which."""
    if stage.corrupt not in (None, *KINDS):
        raise ValueError(f"{path}.corrupt: got {stage.corrupt!r}, wanted one of {', '.join(KINDS)}, or null")
    if stage.corrupt is None and getattr(objective, "needs_corrupted", False):
        raise ValueError(
            f"{path}.corrupt: not given, and {path}.{level}.objective compares with a corrupted image; set "
            f"{path}.corrupt={'|'.join(KINDS)}, or {path}.{level}.objective.terms to what the loss can do without it"
        )


def _validate_outer_parts(stage: DictConfig, path: str) -> None:
    key = f"{path}.inner_depends_on_outer"
    for part in stage.inner_depends_on_outer:
        if part not in PARTS:
            raise ValueError(f"{key}: got {part!r}, wanted parts of {', '.join(PARTS)}")
        if stage.train.get(part, "frozen") == "frozen":
            raise ValueError(f"{key}: {part} does not train here; leave it out, or let it train in {path}.train")
    if stage.inner_depends_on_outer and stage.inner is None:
        raise ValueError(f"{key}: this stage has no inner level; leave it empty, or set {path}.inner too")


def _refuse_unknown(node: DictConfig, schema: type, path: str) -> None:
    """An override with + adds any key; one that nothing reads is a slip of the pen."""
    known = [entry.name for entry in fields(schema)]
    for key in map(str, node):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {path}{near[0]}?" if near else f"the keys there are {', '.join(known)}"
            raise ValueError(f"{path}{key}: there is no such key; {hint}")


def _validate_level(node: Any, path: str, allow: Sequence[str]) -> Any:
    """The level's objective; ``ValueError`` where the level is none, or what it describes would not build."""
    try:
        OmegaConf.merge(OmegaConf.structured(LevelConfig), node)
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}; wanted an objective and data") from error
    for stream, source in node.data.items():
        if not is_target(source):
            raise ValueError(f"{path}.data.{stream}: got {source!r}, wanted a data set with a _target_")
    objective = build(node.objective, f"{path}.objective", allow)
    for where, source in _under(node.data, f"{path}.data"):
        check(source, where, allow)
    return objective


def _validate_solver(config: DictConfig) -> None:
    two_level = [name for name, stage in config.stages.items() if stage.inner is not None]
    needs_inner = target_class(config.solver, "solver", config.allow).two_level
    if needs_inner and not two_level:
        raise ValueError(
            f"solver: {config.solver['_target_']} needs an inner level and no stage has one; choose an experiment with "
            "two levels (hierarchical, ...) or solver=single"
        )
    for name in two_level:
        own = config.stages[name].solver
        node, path = (config.solver, "solver") if own is None else (own, f"stages.{name}.solver")
        solver = build(node, path, config.allow)
        if not solver.two_level:
            raise ValueError(
                f"{path}: {node['_target_']} would ignore the inner level of stages.{name}; choose solver=joint, "
                "sequential, alternating, ... or an experiment without inner level"
            )
        objective = config.stages[name].inner.objective
        built = build(objective, f"stages.{name}.inner.objective", config.allow)
        if "floor" in solver.requires and not getattr(built, "bounded", False):
            raise ValueError(
                f"{path}.best: not given, and {objective['_target_']} of stages.{name} has no proved floor for "
                f"{node['_target_']} to measure from; set {path}.best= to the inner loss of a reference run, or choose "
                "another solver (DynamicBarrier: phi=grad)"
            )


def _under(node: DictConfig, path: str) -> list[tuple[str, Any]]:
    return [(f"{path}.{key!s}", node[key]) for key in node]


def _missing(node: DictConfig, path: str, config: DictConfig, suite: str) -> str | None:
    """What to say of the first value under ``node`` that is not given, or None."""
    for key in map(str, node):
        where = f"{path}.{key}"
        try:
            child = node[key]
        except MissingMandatoryValue:
            return f"{where}: not given; set {where}=..."
        except InterpolationToMissingValueError:
            raw: Any = OmegaConf.to_container(node, resolve=False)
            return _say_missing(where, str(raw[key]).removeprefix("${").removesuffix("}"), config, suite)
        except OmegaConfBaseException as error:
            return f"{where}: {str(error).splitlines()[0]}"
        below = _missing(child, where, config, suite) if isinstance(child, DictConfig) else None
        if below:
            return below
    return None


def _say_missing(path: str, source: str, config: DictConfig, suite: str) -> str:
    """``path`` is a link to ``source``, which is not given."""
    if source == "data.root":
        return f"data.root: not given, {path} reads it; set data.root=FOLDER"
    if source.startswith("data."):
        roles = [key for key in map(str, config.data) if not OmegaConf.is_missing(config.data, key)]
        given = [key for key in roles if OmegaConf.is_dict(config.data[key])]
        return f"{path}: data={suite} has no {source.removeprefix('data.')}; it has {', '.join(given)}"
    return f"{path}: {source} is not given; choose {source}=..."
