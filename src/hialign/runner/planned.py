"""What ``hialign plan`` prints: a composed config's stages in numbers, and what of them does not fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from hialign.models import PARTS, Lora, Root, count, part_of, set_trainable
from hialign.models.skeleton import (
    ClipShape,
    checkpoint_skeleton,
    clip_shape,
    open_clip_shape,
    parts_skeleton,
)
from hialign.objectives import Objective
from hialign.runner import assemble, estimate, schema
from hialign.runner.build import build
from hialign.runner.estimate import Hardware, StagePlan, StreamPlan
from hialign.runner.request import Request
from hialign.runner.shapes import shapes_of
from hialign.training.cost import Lengths
from hialign.training.memory import GIB, fullest

# What an experiment was published on, where data= is not given.
PUBLISHED = {
    **dict.fromkeys(("llava", "llava_lora"), ("data=llava_instruct", "outer=instruct")),
    **dict.fromkeys(("hierarchical", "joint"), ("data=llava_instruct",)),
    "hacl": ("data=hacl", "outer=instruct"),
    "hierarchical_hacl": ("data=hacl",),
    **dict.fromkeys(("halva", "hierarchical_halva"), ("data=halva",)),
    **dict.fromkeys(("dpo", "ddpo", "tdpo", "mdpo", "chip"), ("data=rlhf_v",)),
    **dict.fromkeys(("hierarchical_dpo", "hierarchical_chip"), ("data=rlhf_v",)),
}
# (data=, role) -> records in all, and who says so; a held-out share is taken off.
RECORDS = {
    ("llava_instruct", "caption"): (558_128, "LLaVA-Pretrain's blip_laion_cc_sbu_558k.json"),
    ("llava_instruct", "instruct"): (665_298, "LLaVA-1.5's llava_v1_5_mix665k.json"),
    ("llava_mix665k", "instruct"): (665_298, "LLaVA-1.5's llava_v1_5_mix665k.json"),
    ("rlhf_v", "preference"): (5_733, "RLHF-V-Dataset"),
    ("halva", "preference"): (21_500, "HALVA's paper, arXiv:2405.18654"),
    ("hacl", "pairs"): (558_128, "HACL's paper, arXiv:2312.06968: LLaVA's captions"),
    ("vqa_v2", "vqa"): (443_757, "VQAv2's training questions"),
}
# The same of what a method was published on and the data set named after it lacks: planned where no data= is given.
LACKED = {("hacl", "instruct"): RECORDS["llava_mix665k", "instruct"]}
SAME = {"pairs": "caption", "phrases": "preference", "hallucinated": "pairs"}
HELD_OUT = {"llava_instruct": ("caption",)}  # of these roles alone; elsewhere of all
# Tokens of a row's text by role: before the answer, of the answer, of the longest answer. Assumed, not measured.
TOKENS = {
    "caption": (1, 25, 100),
    "pairs": (1, 25, 100),
    "hallucinated": (1, 25, 100),
    "vqa": (50, 5, 50),
    "preference": (60, 100, 400),
    "phrases": (60, 100, 400),
    "instruct": (120, 180, None),  # to the stage's max_length
    "reference": (120, 180, None),
}


UNKNOWN = f"{__name__}.unknown_data"


def unknown_data(role: str) -> None:
    """Stands in a plan for a role of the data that nobody has named."""
    raise ValueError(f"data.{role}: a plan reads no data")


def tell(request: Request, words: Sequence[str]) -> None:
    """Prints the plan of the config that ``words`` compose; ``ValueError`` for what it cannot be, or does not fit."""
    published = _published(words)
    sys.argv = [sys.argv[0], *words, *published]
    schema.register()
    problems: list[ValueError] = []

    @hydra.main(version_base="1.3", config_path="pkg://hialign.configs", config_name="train")
    def composed(config: DictConfig) -> None:
        try:
            _plan(config, request, words, published)
        except (ValueError, OSError) as error:  # Hydra would print a traceback
            problems.append(error if isinstance(error, ValueError) else ValueError(str(error)))

    composed()
    if problems:
        raise problems[0]


def _published(words: Sequence[str]) -> list[str]:
    """The choices that are made for whoever names no data."""
    given = _given(words)
    if "data" in given or "experiment" not in given:
        return []
    return [word for word in PUBLISHED.get(given["experiment"], ()) if word.partition("=")[0] not in given]


def _given(words: Sequence[str]) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in words)


# --- the plan ---------------------------------------------------------------------------------------------------------


def _plan(config: DictConfig, request: Request, words: Sequence[str], published: Sequence[str]) -> None:
    choices = HydraConfig.get().runtime.choices
    suite = str(choices.get("data"))
    _fill(config, roles="data" not in _given(words))
    schema.validate(config, experiment=choices.get("experiment"), suite=suite)
    if unknown := sorted(set(request.records or ()) - {"", *map(str, config.stages)}):
        raise ValueError(f"records.{unknown[0]}: there is no such stage; wanted one of {', '.join(config.stages)}")
    root = _root(config)
    assemble.make_trainable(root, config)
    hardware = _hardware(config, request)
    print(f"{choices.get('experiment')} of {choices.get('model')} on {_machine(hardware)}")
    if published:
        print(f"no data= given: planned with {' '.join(published)}")
    print("".join(f"NOTE: {note}\n" for note in _notes(config, words)), end="")
    trained = _trained_anywhere(root, config)
    image_tokens = shapes_of(root, {}, Lora(), checkpointed=False).image_tokens
    plans = []
    for name in map(str, config.stages):
        set_trainable(root, dict(config.stages[name].train))
        streams = _streams(config, name, suite, image_tokens, request)
        plans.append(estimate.plan_stage(config, name, root, streams, trained, hardware))
    print("\n".join(_sizes(root, plans)))
    troubles = [trouble for i, plan in enumerate(plans) for trouble in _say(plan, plans[:i])]
    if troubles:
        raise ValueError("; ".join(troubles))


def _fill(config: DictConfig, *, roles: bool) -> None:
    """Puts stand-ins where the config names no folder, and with ``roles`` where it names no data: none is read here."""
    every = [*TOKENS, "heldout"]
    with open_dict(config):
        if OmegaConf.is_missing(config, "data"):
            config.data = dict.fromkeys(every, "???")
        if "root" not in config.data or OmegaConf.is_missing(config.data, "root"):
            config.data.root = "not read"
        for role in every if roles else ():
            if role not in config.data or OmegaConf.is_missing(config.data, role):
                config.data[role] = {"_target_": UNKNOWN, "role": role}


def _notes(config: DictConfig, words: Sequence[str]) -> list[str]:
    """Where the plan is of something else than one may think, or than ``hialign train`` would take."""
    choices = HydraConfig.get().runtime.choices
    suite, model, found = str(choices.get("data")), str(choices.get("model")), []
    if wanted := schema.missing_recipe():
        own = ", ".join(name for name in schema.recipes() if name.endswith(f"_{model}"))
        others = f"; recipe=NAME takes another's, of this model's: {own}" if own else ""
        found.append(
            f"there is no configs/recipe/{wanted}.yaml: the stages' own lengths and rates hold, as in hialign train, "
            f"and are for no model in particular{others}"
        )
    for stage, role in _stand_ins(config, suite):
        own = "{_target_: hialign.data.llava_conversations, annotations: FILE, images: FOLDER}"
        found.append(
            f"{stage} is planned on {LACKED[suite, role][1]}, as published. data={suite} has no {role}: hialign train "
            f"has this stage on captions, unless outer={role} 'data.{role}={own}' is given"
        )
    if "outer" not in _given(words) and "finetune" in config.stages and "caption" in config.stages.finetune.outer.data:
        found.append(
            "stages.finetune is planned on captions (outer=caption), on which hialign train has it too where outer= is "
            "not given; outer=instruct with data that have instruct is LLaVA's second stage"
        )
    return found


def _stand_ins(config: DictConfig, suite: str) -> list[tuple[str, str]]:
    """The stages' outer levels whose data the suite lacks and its method was published on, with their roles."""
    used = [(f"stages.{name}", source) for name in config.stages for source in config.stages[name].outer.data.values()]
    roles = [(path, str(source.role)) for path, source in used if source["_target_"] == UNKNOWN]
    return [(path, role) for path, role in roles if (suite, role) in LACKED]


def _hardware(config: DictConfig, request: Request) -> Hardware:
    full = any(stage.train.get("llm") == "full" for stage in config.stages.values())
    sharding = request.sharding or ("fsdp" if full and request.gpus > 1 else "replicate")
    return Hardware(
        request.gpus, request.gpu_memory, request.mfu, request.peak_flops, sharding == "fsdp" and request.gpus > 1
    )


def _root(config: DictConfig) -> Root:
    """The model on the meta device; a small one that comes with the package is built as it is."""
    node: Any = OmegaConf.to_container(config.model, resolve=True)
    other, target = node.pop("from_run", None), str(node["_target_"])
    dtype = node.get("dtype", "fp32")
    if other:
        if not (Path(other) / "model").is_dir():
            raise ValueError(f"model.from_run: {other} has no model/; wanted the folder of a run that is done")
        return checkpoint_skeleton(f"{other}/model", clip=None, dtype=dtype)
    clip = _clip(node.get("clip"))
    if target == "hialign.models.from_checkpoint":
        return checkpoint_skeleton(node["checkpoint"], clip=clip, dtype=dtype, embed_dim=node.get("embed_dim", 768))
    if target == "hialign.models.from_parts":
        assert clip is not None
        further = {key: node[key] for key in ("projector", "feature_layer") if key in node}
        return parts_skeleton(node["llm"], clip=clip, dtype=dtype, **further)
    root: Root = build(node, "model", config.allow).root
    return root


def _clip(node: Mapping[str, Any] | None) -> ClipShape | None:
    if node is None:
        return None
    of = open_clip_shape if str(node["_target_"]).endswith("open_clip") else clip_shape
    return of(str(node["name"]))


def _trained_anywhere(root: Root, config: DictConfig) -> set[str]:
    found: set[str] = set()
    for stage in config.stages.values():
        set_trainable(root, dict(stage.train))
        found |= {name for name, parameter in root.named_parameters() if parameter.requires_grad}
    return found


# --- data -------------------------------------------------------------------------------------------------------------


def _streams(config: DictConfig, stage: str, suite: str, image_tokens: int, request: Request) -> list[StreamPlan]:
    node, found = config.stages[stage], []
    for level in ("outer", "inner"):
        if node[level] is None:
            continue
        objective: Objective = build(node[level].objective, f"stages.{stage}.{level}.objective", config.allow)
        for name in map(str, node[level].data):
            role = _role(config, node[level].data[name]) or name
            records, source = _records(config, node[level].data[name], role, stage, suite, request)
            mean, longest = _lengths(role, node.max_length - image_tokens, request)
            found.append(StreamPlan(level, name, objective, mean, longest, records, source))
    return found


def _role(config: DictConfig, source: DictConfig) -> str | None:
    """The role whose data a stream reads."""
    plain = OmegaConf.to_container(source, resolve=True)
    for role in TOKENS:
        if role not in config.data or OmegaConf.is_missing(config.data, role):
            continue
        if OmegaConf.to_container(config.data[role], resolve=True) == plain:
            return role
    return None


def _records(
    config: DictConfig, source: DictConfig, role: str, stage: str, suite: str, request: Request
) -> tuple[float | None, str]:
    given = request.records or {}
    if stage in given or "" in given:
        return float(given.get(stage, given.get("", 0))), "as given"
    if str(source["_target_"]).startswith("hialign.tabletop."):  # made as it is read
        return float(len(build(source, f"data.{role}", config.allow))), "as the config makes them"
    if source["_target_"] == UNKNOWN:
        return LACKED.get((suite, role), (None, "no data"))
    alike = [role, *(other for other in SAME if SAME[other] == role), SAME.get(role, role)]
    key = next((key for key in alike if (suite, key) in RECORDS), None)
    if key is None:
        return None, f"of data={suite} the size is not known"
    records, who = RECORDS[suite, key]
    held_out = config.data.get("holdout", 0.0) if key in HELD_OUT.get(suite, (key,)) else 0.0
    less = f"; {records:,} less {100 * held_out:g} % held out" if held_out else ""
    return records * (1 - held_out), who + less


def _lengths(role: str, room: int, request: Request) -> tuple[Lengths, Lengths]:
    """On average and at most; ``room`` is what a row has beside its image."""
    prompt, answer, longest = TOKENS.get(role, TOKENS["instruct"])
    prompt, answer = request.prompt_tokens or prompt, request.answer_tokens or answer
    if prompt + answer > room:
        raise ValueError(
            f"{prompt} + {answer} tokens of text do not fit into max_length, which leaves {room} beside the image"
        )
    longest = request.longest_answer or longest or room - prompt
    return Lengths(prompt, answer), Lengths(prompt, max(answer, min(longest, room - prompt)))


# --- what is said -----------------------------------------------------------------------------------------------------


def _machine(hardware: Hardware) -> str:
    many = "1 GPU" if hardware.gpus == 1 else f"{hardware.gpus} GPUs"
    how = "" if hardware.gpus == 1 else ", sharded by fsdp" if hardware.sharded else ", each with the whole model"
    note = "\nNOTE: hialign train does not shard yet; this is what it would take" if hardware.sharded else ""
    return f"{many} of {hardware.gpu_memory:g} GiB{how}{note}"


def _sizes(root: Root, plans: Sequence[StagePlan]) -> list[str]:
    """The table of parameters by part, and of those that train in each stage."""
    counted = {row.part: row.total for row in count(root)}
    lora = dict.fromkeys(PARTS, 0)
    for name, parameter in root.named_parameters():
        lora[part_of(name)] += parameter.numel() if ".lora_" in name else 0
    lines = ["", f"{'parameters':<14}{'all':>16}" + "".join(f"{plan.name + ' trains':>20}" for plan in plans)]
    for part in PARTS:
        if not counted[part]:
            continue
        cells = [plan.trained.get(part, 0) for plan in plans]
        said = "".join(f"{cell:>20,}" if cell else f"{'-':>20}" for cell in cells)
        lines.append(f"  {part:<12}{counted[part] - lora[part]:>16,}{said}")
    llava = sum(counted[part] - lora[part] for part in ("vision", "projector", "llm"))
    lines.append(f"  {'the Llava':<12}{llava:>16,}")
    if total := sum(lora.values()):
        lines.append(f"  {'adapters':<12}{total:>16,}")
    return lines


def _say(plan: StagePlan, before: Sequence[StagePlan]) -> list[str]:
    """Prints the stage, which comes after those ``before``; returns what does not fit."""
    print(f"\nstage {plan.name}, {type(plan.solver).__name__}")
    print("\n".join([*_rows(plan), *_operations(plan)]))
    found = estimate.memory(plan, plan.micro)
    moment, items = fullest(found)
    print(f"  memory of a GPU, at its fullest ({moment}), longest rows:")
    for item, size in sorted(items.items(), key=lambda pair: -pair[1]):
        print(f"    {item:<28}{_gib(size):>9.2f} GiB")
    total = estimate.taken(sum(items.values()))
    print(f"    {'reserve':<28}{_gib(total - sum(items.values())):>9.2f} GiB {_reserve(plan.hardware)}")
    print(f"    {'in all':<28}{_gib(total):>9.2f} GiB of gpu_memory={plan.hardware.gpu_memory:g}")
    troubles = _fit(plan)
    print("\n".join([*_time(plan), *(f"  cache, {line}" for line in estimate.caches(plan, before))]))
    return troubles


def _reserve(hardware: Hardware) -> str:
    return (
        f"for the driver ({_gib(estimate.RESERVED):g}) and between blocks ({estimate.LOST:.0%} of the rest): "
        f"of {hardware.gpu_memory:g} GiB tensors may take {_gib(hardware.usable):.1f}"
    )


def _gib(size: float) -> float:
    return size / GIB


def _rows(plan: StagePlan) -> list[str]:
    lines = []
    for stream in plan.streams:
        text, far = stream.tokens, stream.longest
        many = "an unknown number of" if stream.records is None else f"{stream.records:,.0f}"
        runs = dict.fromkeys(f"{run.name} {run.length}" for run in plan.passes(stream, 1) if run.length)
        lines += [
            f"  {stream.level}/{stream.name}: {many} records ({stream.source})",
            f"    tokens of text: {text.prompt} + {text.answer} on average, {far.prompt} + {far.answer} at most; "
            "assumed unless given",
            *([f"    rows of the language model, on average: {', '.join(runs)}"] if runs else []),
        ]
    return lines


def _operations(plan: StagePlan) -> list[str]:
    costs = estimate.step_flops(plan)
    width = max(30, *(len(f"{run}: {part}") + 6 for run, parts in costs.items() for part in parts))
    lines = [f"  {'TFLOP of a step':<{width - 2}}{'forward':>12}{'backward':>12}{'again':>12}"]
    for run, parts in costs.items():
        for part, cost in parts.items():
            cells = "".join(f"{number / 1e12:>12,.4g}" for number in (cost.forward, cost.backward, cost.recomputed))
            lines.append(f"    {f'{run}: {part}':<{width - 4}}{cells}")
    whole = estimate.total_flops(costs)
    return [*lines, f"    {'in all':<{width - 4}}{whole.total / 1e12:>12,.4g}"]


def _fit(plan: StagePlan) -> list[str]:
    """Prints how the batch is split and what the largest split is; returns what to say where the stage does not fit."""
    best, gpus, given = estimate.splits(plan), plan.hardware.gpus, plan.hardware.gpu_memory
    over, keys = [], []
    for level in plan.levels():
        as_is, most = plan.micro[level], best[level]
        moment, tensors = estimate.need(plan, level, as_is)
        needed, verdict = _gib(estimate.taken(tensors)), "fits"
        if tensors > plan.hardware.usable:
            verdict = f"{needed - given:.1f} GiB too many ({moment})"
            over.append(f"{as_is} {level} rows at a time take {needed:.1f} GiB a GPU, {needed - given:.1f} more")
            keys.append(f"stages.{plan.name}.{'inner_' if level == 'inner' else ''}micro_batch_size={most}")
        print(f"  {level} batch: {_split(as_is, plan.share(level), gpus)} as configured: {verdict}", end="")
        print(f"; the largest that fits is {_split(most, plan.share(level), gpus)}" if most else "; no split fits")
    if not over:
        return []
    if all(best.values()):
        what, ways = f"as configured: {' and '.join(over)}", [" ".join(keys)]
    else:
        needed = _gib(estimate.least_memory(plan))
        what = f"one row at a time takes {needed:.1f} GiB a GPU, {needed - given:.1f} more"
        ways = [*estimate.remedies(plan), f"gpu_memory={needed + 0.05:.1f}"]
    wanted = ", or ".join(ways)
    return [f"stages.{plan.name}: does not fit: {what} than gpu_memory={given:g}; what makes that fit: {wanted}"]


def _split(micro: int, share: int, gpus: int) -> str:
    return f"{micro} at a time x {share // micro} x {gpus} GPUs = {share * gpus}"


def _time(plan: StagePlan) -> list[str]:
    machine, stream = plan.hardware, plan.of("outer")[0]
    if plan.steps is None:
        return [f"  hours unknown ({stream.source}): give records=, or records.{plan.name}="]
    step = estimate.seconds(plan, estimate.total_flops(estimate.step_flops(plan)).total)
    each = f"{machine.mfu:.0%} of {machine.peak_flops / 1e12:,.0f} TFLOP/s"
    hours = plan.steps * step / 3600
    return [f"  {plan.steps:,} steps of {step:,.3g} s at {each}: {hours:,.3g} hours, should the data keep up"]
