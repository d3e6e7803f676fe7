"""What the yamls make when they are put together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from hialign.benchmarks.retrieval import Retrieval
from hialign.benchmarks.scores import Benchmark
from hialign.benchmarks.zero_shot import ZeroShot
from hialign.runner import schema
from hialign.runner.build import build

Compose = Callable[..., DictConfig]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = ("data=flickr8k", "data.root=/nowhere")
EVERY_ROLE = ("data=tabletop",)
TWO_LEVELS = ("experiment=hierarchical", *DATA)


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def body(group: str, name: str) -> dict[str, Any]:
    """One yaml as Hydra reads it: 1e-3 is a number there and a string in yaml.safe_load."""
    tree: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"), resolve=False)
    return tree  # type: ignore[no-any-return]


def solver_body(name: str) -> dict[str, Any]:
    """A solver's yaml, with what it takes over from another one."""
    own = body("solver", name)
    inherited = [solver_body(base) for base in own.pop("defaults", []) if base != "_self_"]
    return {key: value for tree in (*inherited, own) for key, value in tree.items()}


# One of each kind of stages and levels: what roles of a suite they read differs by these alone.
KINDS = ("llava", "hierarchical", "hacl", "dpo", "halva", "hierarchical_chip")


def every_two() -> list[tuple[str, str, str]]:
    """Every experiment with every model, and every kind of experiment with every suite: all three are a thousand."""
    experiments, models, suites = map(names, ("experiment", "model", "data"))
    met = {(e, m, "tabletop") for e, m in product(experiments, models)} | {
        (e, "tiny", s) for e, s in product(KINDS, suites)
    }
    return sorted(met)


@pytest.mark.parametrize(("experiment", "model", "suite"), every_two())
def test_every_experiment_goes_with_every_model_and_every_suite_that_has_its_roles(
    validated: Compose, experiment: str, model: str, suite: str
) -> None:
    overrides = (f"experiment={experiment}", f"model={model}", f"data={suite}", "data.root=/nowhere")
    absent = [role for role, value in body("data", suite).items() if value == "???" and role != "root"]
    try:
        config = validated(*overrides)
    except ValueError as error:
        if not any(f"data={suite} has no {role};" in str(error) for role in absent):
            raise
    else:
        assert len(config.stages) > 0


@pytest.mark.parametrize("suite", names("data"))
def test_every_suite_has_a_root_heldout_data_and_a_word_on_every_role(suite: str) -> None:
    tree = body("data", suite)
    assert tree["root"] == ("???" if suite != "tabletop" else None)  # the embedded world reads nothing from a disk
    assert "_target_" in tree["heldout"]
    roles = {"pairs", "hallucinated", "caption", "instruct", "vqa", "preference", "phrases", "reference"}
    assert roles <= set(tree), f"roles that it does not have are ???: {roles - set(tree)}"


@pytest.mark.parametrize(
    ("experiment", "solver"),
    sorted({*product(KINDS, names("solver")), *product(names("experiment"), ("dynamic_barrier", "single"))}),
)
def test_a_solver_goes_with_the_experiments_of_as_many_levels(validated: Compose, experiment: str, solver: str) -> None:
    plain = validated(f"experiment={experiment}", *EVERY_ROLE)
    levels = {stage.inner is not None for stage in plain.stages.values()}
    two_level = build(solver_body(solver), "solver").two_level
    if two_level == (True in levels):
        assert validated(f"experiment={experiment}", *EVERY_ROLE, f"solver={solver}").solver == solver_body(solver)
    else:
        with pytest.raises(ValueError, match=r"^solver: "):
            validated(f"experiment={experiment}", *EVERY_ROLE, f"solver={solver}")


@pytest.mark.parametrize("experiment", names("experiment"))
def test_no_experiment_sets_arguments_of_a_solver(experiment: str) -> None:
    """They would be merged into whatever solver= is chosen."""
    tree = body("experiment", experiment)
    assert "solver" not in tree
    assert not [name for name, stage in tree.get("stages", {}).items() if "solver" in stage]


@pytest.mark.parametrize("recipe", names("recipe"))
def test_every_recipe_belongs_to_an_experiment_and_a_model_and_is_picked_up(composed: Compose, recipe: str) -> None:
    experiment, model = next((e, m) for e, m in product(names("experiment"), names("model")) if recipe == f"{e}_{m}")
    config = composed(f"experiment={experiment}", f"model={model}", *EVERY_ROLE)
    for stage, settings in body("recipe", recipe)["stages"].items():
        for key, value in settings.items():
            found = config.stages[stage][key]
            # what is a mapping is merged into the stage's own
            assert ({part: found[part] for part in value} if key == "train" else found) == value


def test_a_recipe_gives_way_to_the_command_line(composed: Compose) -> None:
    assert composed(*TWO_LEVELS, "stages.pretrain.batch_size=6").stages.pretrain.batch_size == 6


@pytest.mark.parametrize("experiment", names("experiment"))
def test_stages_run_in_the_order_in_which_the_experiment_lists_them(composed: Compose, experiment: str) -> None:
    stages = list(composed(f"experiment={experiment}", *EVERY_ROLE).stages)
    assert stages in (["pretrain", "finetune"], ["prefer"])
    backwards = [f"stages.{stage}.lr=1" for stage in reversed(stages)]
    assert list(composed(f"experiment={experiment}", *EVERY_ROLE, *backwards).stages) == stages


def test_an_override_of_inner_reaches_every_stage(validated: Compose) -> None:
    config = validated(*TWO_LEVELS, "inner.objective.pairs=[llm]")
    assert [stage.inner.objective.pairs for stage in config.stages.values()] == [["llm"], ["llm"]]


def test_an_override_of_outer_reaches_the_stage_of_the_task_and_pretraining_stays_with_captions(
    validated: Compose,
) -> None:
    config = validated(*TWO_LEVELS, "+outer.data.other=${data.pairs}")
    assert list(config.stages.finetune.outer.data) == ["caption", "other"]
    assert list(config.stages.pretrain.outer.data) == ["caption"]


def test_an_override_of_solver_reaches_every_stage_and_leaves_no_key_of_the_default(validated: Compose) -> None:
    config = validated(*TWO_LEVELS, "solver=joint", "solver.weight=0.25")
    assert config.solver == {"_target_": "hialign.solvers.Joint", "weight": 0.25}
    assert [stage.solver for stage in config.stages.values()] == [None, None]  # the run's


def test_one_stage_can_have_a_solver_of_its_own(validated: Compose) -> None:
    config = validated(*TWO_LEVELS, "+solver@stages.pretrain.solver=joint")
    assert config.stages.pretrain.solver == {"_target_": "hialign.solvers.Joint", "weight": 1.0}
    assert config.stages.finetune.solver is None
    assert config.solver["_target_"] == "hialign.solvers.DynamicBarrier"


def test_single_is_fine_for_the_run_when_each_two_level_stage_has_a_solver_of_its_own(validated: Compose) -> None:
    own = [f"+solver@stages.{stage}.solver=joint" for stage in ("pretrain", "finetune")]
    assert validated(*TWO_LEVELS, "solver=single", *own).stages.pretrain.solver.weight == 1.0


@pytest.mark.parametrize(("gone", "left"), [("pretrain", "finetune"), ("finetune", "pretrain")])
def test_a_stage_can_be_taken_out_with_what_its_recipe_says_of_it(validated: Compose, gone: str, left: str) -> None:
    config = validated(*TWO_LEVELS, f"~stages.{gone}")
    assert list(config.stages) == [left]


def test_a_stage_can_be_reduced_to_one_level(validated: Compose) -> None:
    config = validated(*TWO_LEVELS, "stages.pretrain.inner=null")
    assert config.stages.pretrain.inner is None
    assert config.stages.finetune.inner is not None


def test_benchmarks_can_be_chosen(composed: Compose) -> None:
    assert list(composed("run=x", config="evaluate").benchmark) == ["retrieval", "captions"]
    chosen = composed("run=x", "benchmark=[retrieval]", "benchmark.retrieval.pairs=[clip]", config="evaluate")
    assert list(chosen.benchmark) == ["retrieval"]
    assert chosen.benchmark.retrieval.pairs == ["clip"]


@pytest.mark.parametrize("benchmark", names("benchmark"))
def test_every_benchmark_builds(composed: Compose, benchmark: str) -> None:
    config = composed("run=x", f"benchmark=[{benchmark}]", config="evaluate")
    node = config.benchmark
    assert list(node) == [benchmark]
    for key in OmegaConf.missing_keys(node):  # where annotations lie
        OmegaConf.update(config, key, "somewhere")
    built = build(node[benchmark], f"benchmark.{benchmark}")
    assert callable(built) or isinstance(built, Benchmark | ZeroShot | Retrieval)


@pytest.mark.parametrize("tracker", names("tracker"))
def test_every_tracker_builds_and_several_go_together(validated: Compose, tracker: str) -> None:
    assert list(validated(*TWO_LEVELS, f"tracker=[{tracker}]").tracker) == [tracker]
    assert sorted(validated(*TWO_LEVELS, f"tracker=[{','.join(names('tracker'))}]").tracker) == names("tracker")


def user_file(folder: Path, name: str, text: str) -> str:
    """A file in a user's own config folder; the override that makes Hydra look there."""
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return f"hydra.searchpath=[file://{folder}]"


MINE = "# @package _global_\n# mine\ndefaults: [hierarchical, override /solver: joint, _self_]\n"


def test_a_user_s_folder_may_hold_an_experiment_that_extends_ours(validated: Compose, tmp_path: Path) -> None:
    third = "{outer: '${outer}', train: {llm: full}, steps: 1, batch_size: 2, lr: 1}"
    text = f"{MINE}stages: {{finetune: {{lr: 0.5}}, third: {third}}}"
    where = user_file(tmp_path, "experiment/mine", text)
    config = validated("experiment=mine", *DATA, where)
    assert HydraConfig.get().runtime.choices["experiment"] == "mine"
    assert list(config.stages) == ["pretrain", "finetune", "third"]
    assert config.solver["_target_"] == "hialign.solvers.Joint"
    assert config.stages.finetune.lr == 0.5
    assert config.stages.finetune.inner is not None


def test_a_user_s_recipe_is_picked_up(validated: Compose, tmp_path: Path) -> None:
    user_file(tmp_path, "experiment/mine", MINE)
    where = user_file(tmp_path, "recipe/mine_tiny", "# @package _global_\nstages: {finetune: {epochs: 7}}")
    assert validated("experiment=mine", *DATA, where).stages.finetune.epochs == 7


def test_a_recipe_for_a_stage_that_the_experiment_lacks_is_an_error_that_names_the_missing_level(
    validated: Compose, tmp_path: Path
) -> None:
    user_file(tmp_path, "experiment/mine", MINE)
    where = user_file(tmp_path, "recipe/mine_tiny", "# @package _global_\nstages: {third: {epochs: 7}}")
    with pytest.raises(ValueError, match=r"^stages\.third\.outer: not given; set stages\.third\.outer="):
        validated("experiment=mine", *DATA, where)
    assert list(validated("experiment=mine", *DATA, where, "~stages.third").stages) == ["pretrain", "finetune"]


def test_a_misspelt_key_in_a_user_s_stage_is_an_error_that_names_it(validated: Compose, tmp_path: Path) -> None:
    where = user_file(tmp_path, "experiment/mine", MINE + "stages: {finetune: {epoch: 7}}")
    with pytest.raises(Exception, match="'epoch' not in 'StageConfig'"):
        validated("experiment=mine", *DATA, where)


def test_the_schema_s_defaults_are_the_yaml_s() -> None:
    """Both are read by people; a difference would say two things of one key."""
    trainer = OmegaConf.structured(schema.TrainerConfig)
    assert body("trainer", "default") == trainer
    written = body(".", "train")
    ours = OmegaConf.structured(schema.TrainConfig)
    for key in ("seed", "resume", "output", "name", "allow"):
        assert written[key] == ours[key], key


def test_a_recipes_lora_settings_hold_and_can_be_overridden(validated: Compose) -> None:
    recipe = ("experiment=llava_lora", "data=flickr8k", "data.root=x")
    assert (validated(*recipe).lora.rank, validated(*recipe).lora.alpha) == (8, 16)
    assert validated(*recipe, "lora.rank=4").lora.rank == 4
    assert validated("experiment=hierarchical", "data=flickr8k", "data.root=x").lora.rank == 128  # LLaVA's


@pytest.mark.parametrize("suite", ["rlhf_v", "preferences", "json_preferences", "halva"])
def test_a_preference_suite_serves_the_inner_level_by_its_chosen_answers(validated: Compose, suite: str) -> None:
    kinds = ("hierarchical_dpo", "hierarchical_chip", *(("hierarchical_halva",) if suite == "halva" else ()))
    for experiment in kinds:
        config = validated(f"experiment={experiment}", f"data={suite}", "data.root=/nowhere")
        pairs = config.stages.prefer.inner.data.pairs
        assert pairs._target_ == "hialign.data.chosen_captions"
        assert pairs.preferences == config.stages.prefer.outer.data.preference
