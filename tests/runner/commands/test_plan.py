"""``hialign plan``, as it is typed: full-size numbers, and what it says to what cannot be planned."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHIP = ("experiment=chip", "model=llava_1_5_7b")


def plan(workshop: Any, *arguments: str) -> str:
    done = workshop.hialign("plan", *arguments)
    assert done.code == 0, done.err
    return done.out


def refusal(workshop: Any, *arguments: str) -> str:
    done = workshop.hialign("plan", *arguments)
    assert done.code == 1
    return done.err


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in\n{text}"
    return float(found[1].replace(",", ""))


def test_chip_at_full_size_needs_no_data_and_no_download(workshop: Any) -> None:
    said = plan(workshop, *CHIP, "gpus=8")
    assert number(r"the Llava +([\d,]+)", said) == 7_063_427_072
    assert re.search(r"projector +20,979,712 +20,979,712\n", said)
    assert re.search(r"llm +6,738,939,904 +6,738,939,904\n", said)
    assert "1 at a time x 4 x 8 GPUs = 32 as configured: fits" in said
    assert "hialign train does not shard yet" in said
    # two moments in float32 of all that trains, an eighth of them on each GPU
    assert number(r"optimizer +([\d.]+) GiB", said) == pytest.approx(6_759_919_616 * 8 / 8 / 2**30, abs=0.005)
    # the reference saves nothing in a single epoch
    assert "reference states of preference: does not pay: saves nothing: with epochs=1" in said
    assert "5,618 records (RLHF-V-Dataset; 5,733 less 2 % held out)" in said
    assert "176 steps" in said
    assert not (workshop.folder / "runs").exists() or not list((workshop.folder / "runs").glob("chip*"))


def test_the_hours_are_the_operations_at_the_stated_share_of_the_peak(workshop: Any) -> None:
    said = plan(workshop, *CHIP, "gpus=4", "mfu=0.5", "peak_flops=312e12", "records=3200")
    step = number(r"in all +([\d.,]+)\n", said) * 1e12 / (4 * 312e12 * 0.5)
    assert number(r"100 steps of ([\d.]+) s at 50% of 312", said) == pytest.approx(step, rel=2e-3)
    assert number(r"([\d.]+) hours", said) == pytest.approx(100 * step / 3600, rel=5e-3)


def test_llavas_stages_have_the_published_sizes_and_the_operations_by_hand(workshop: Any) -> None:
    said = plan(workshop, "experiment=llava_lora", "model=vicuna_7b", "data=llava_instruct", "outer=instruct")
    assert re.search(r"llm +6,738,939,904 +- +319,815,680\n", said)
    assert re.search(r"projector +20,979,712 +20,979,712 +20,979,712\n", said)
    assert "557,570 records" in said  # 558,128 less a thousandth
    assert "665,298 records" in said
    # the head of 256 rows of 576 + 1 + 25 places: 32,064 x 4,096 numbers, a multiplication and an addition each
    assert number(r"head +([\d.]+)", said) == pytest.approx(256 * 602 * 2 * 32_064 * 4096 / 1e12, rel=1e-3)
    # float32 where it trains (projector, LoRA) and beside the Llava, bfloat16 elsewhere; rotary frequencies apart
    whole = (319_815_680 + 20_979_712 + 123_060_480 + 13_959_168) * 4 + (303_507_456 + 6_738_939_904) * 2
    assert number(r"weights +([\d.]+) GiB", said) == pytest.approx(whole / 2**30, abs=0.01)


def test_a_cache_pays_where_the_data_are_read_again(workshop: Any) -> None:
    """Caching runs in one process: what three epochs on two GPUs save, on eight they do not."""
    words = ("experiment=mdpo", "model=llava_1_5_7b")
    assert "reference states of preference: pays: saves" in plan(workshop, *words, "gpus=2")
    said = plan(workshop, *words, "gpus=8")
    assert "reference states of preference: does not pay: saves nothing: its forward passes take" in said


def test_only_what_can_be_cached_is_weighed(workshop: Any) -> None:
    """Outer levels, towers that no stage has trained, and log-probabilities alone where the loss reads no states."""
    said = plan(workshop, "experiment=hacl", "model=vicuna_7b", "gpus=8")
    assert "features of caption" in said
    assert "of pairs:" not in said
    said = plan(workshop, "experiment=hierarchical", "model=tiny", "data=tabletop")
    assert "features of" not in said, "the tower trains"
    words = ("experiment=halva", "model=llava_1_5_7b", "records=21500", "stages.prefer.epochs=3")
    states, alone = (
        number(r"reference states of reference: .*\(([\d.]+) GB\)", plan(workshop, *words, f"outer.objective.kl={kl}"))
        for kl in ("vocabulary", "target")
    )
    assert states > 10
    assert alone < 0.1


def test_what_does_not_fit_is_told_what_would_and_it_does(workshop: Any) -> None:
    said = refusal(workshop, *CHIP, "gpus=1")
    assert "stages.prefer: does not fit: one row at a time takes " in said
    assert "82.8 more than gpu_memory=80" in said
    assert "gpus=4 sharding=fsdp, or gpu_memory=162.8" in said
    for remedy in (("gpus=4", "sharding=fsdp"), ("gpu_memory=162.8",)):
        assert "1 at a time" in plan(workshop, *CHIP, *remedy)


def test_the_largest_split_fits_and_the_next_does_not(workshop: Any) -> None:
    words = (*CHIP, "gpus=8", "gpu_memory=27", "longest_answer=700")
    said = plan(workshop, *words, "stages.prefer.micro_batch_size=2")
    assert "2 at a time x 2 x 8 GPUs = 32 as configured: fits; the largest that fits is 2 at a time" in said
    said = refusal(workshop, *words, "stages.prefer.micro_batch_size=4")
    assert "stages.prefer: does not fit: as configured: 4 outer rows at a time take " in said
    assert "what makes that fit: stages.prefer.micro_batch_size=2\n" in said


def test_two_levels_are_planned_with_their_solver_and_their_inner_batch(workshop: Any) -> None:
    said = plan(workshop, "experiment=hierarchical_chip", "model=tiny", "data=tabletop")
    assert "stage prefer, DynamicBarrier" in said
    assert "inner: similarities: loss" in said
    assert "20,000 records (as the config makes them)" in said
    assert "inner batch: 8 at a time x 1 x 1 GPUs = 8" in said


def test_data_of_unknown_size_leave_the_hours_open(workshop: Any) -> None:
    said = plan(workshop, "experiment=dpo", "model=tiny", "data=json_preferences")
    assert "hours unknown (of data=json_preferences the size is not known): give records=, or records.prefer=" in said
    assert "800 records (as given)" in plan(
        workshop, "experiment=dpo", "model=tiny", "data=json_preferences", "records.prefer=800"
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((*CHIP, "gpu=8"), "there is no setting gpu; did you mean gpus=?"),
        ((*CHIP, "stages.prefer.lrr=3"), "stages.prefer.lrr"),
        ((*CHIP, "gpus=0"), "gpus=0, wanted a whole number from 1 up"),
        ((*CHIP, "gpus=7"), "stages.prefer.batch_size: 32 rows do not divide by gpus=7; use .*batch_size=28 or 35"),
        ((*CHIP, "mfu=40"), "mfu=40, wanted a share of the peak, above 0 and at most 1"),
        ((*CHIP, "gpu_memory=much"), "gpu_memory=much, wanted a number above 0"),
        ((*CHIP, "sharding=zero3"), "sharding=zero3, wanted replicate or fsdp"),
        ((*CHIP, "records.instruct=5"), "records.instruct: there is no such stage; wanted one of prefer"),
        ((*CHIP, "gpus.prefer=5"), "there is no setting gpus.prefer; did you mean gpus=?"),
        ((*CHIP, "-m", "gpus=8"), "got -m, wanted one plan at a time"),
        ((*CHIP, "prompt_tokens=2000"), "2000 . 100 tokens of text do not fit into max_length, which leaves 1472"),
        ((*CHIP, "model.checkpoint=some/other"), "architecture of 'some/other' is not kept here"),
        ((*CHIP, "solver=null"), "solver: got null, wanted a name of those that `hialign configs solver` lists"),
        ((*CHIP, "model.from_run=nowhere"), "model.from_run: nowhere has no model/"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(workshop: Any, words: tuple[str, ...], wanted: str) -> None:
    said = refusal(workshop, *words)
    assert re.search(wanted, said)
    assert said.startswith("hialign plan: ") or "lrr" in wanted  # Hydra words a key that is unknown


def test_another_models_recipe_may_be_taken(workshop: Any) -> None:
    words = ("experiment=hierarchical_hacl", "model=vicuna_7b", "recipe=hacl_vicuna_7b", "gpus=8")
    said = plan(workshop, *words)
    assert "inner batch: 64 at a time x 1 x 8 GPUs = 512 as configured" in said


def test_a_plan_of_a_folder_reads_its_config_alone(workshop: Any, checkpoints: Any, tmp_path: Path) -> None:
    words = ("experiment=llava", "model=vicuna_7b", f"model.llm={checkpoints.llama}")
    said = plan(workshop, *words, f"model.clip.name={checkpoints.clip}", "output=" + str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert "stage finetune, Single" in said


@pytest.mark.parametrize(
    "words",
    [
        ("experiment=hierarchical", "model=vicuna_7b", "gpus=8", "gpu_memory=900"),
        ("experiment=joint", "model=qwen2_0_5b", "data=flickr8k", "gpu_memory=900"),
    ],
)
def test_without_a_recipe_the_stages_own_values_hold_as_in_train(workshop: Any, words: tuple[str, ...]) -> None:
    said = plan(workshop, *words)
    experiment, model = (word.partition("=")[2] for word in words[:2])
    assert f"NOTE: there is no configs/recipe/{experiment}_{model}.yaml: the stages' own lengths and rates hold" in said
    # configs/stage/pretrain.yaml's rows, over all GPUs, and all of a GPU's at a time
    assert re.search(r"outer batch: (256|32) at a time x 1 x [18] GPUs = 256 as configured", said)
    assert ("of this model's: hacl_vicuna_7b, llava_lora_vicuna_7b, llava_vicuna_7b" in said) == ("vicuna" in model)


def test_a_recipe_of_null_is_no_recipe(workshop: Any) -> None:
    words = ("experiment=hacl", "model=vicuna_7b", "gpus=8", "gpu_memory=900")
    assert "x 8 GPUs = 512 as configured" in plan(workshop, *words)  # the recipe's batch
    assert "x 8 GPUs = 256 as configured" in plan(workshop, *words, "recipe=null")  # the stage's own


def test_each_level_is_told_its_own_need_and_the_end_names_every_stage(workshop: Any) -> None:
    done = workshop.hialign("plan", "experiment=hacl", "model=vicuna_7b", "gpus=1")
    assert done.code == 1
    assert "outer batch: 16 at a time x 32 x 1 GPUs = 512 as configured: fits; the largest" in done.out
    many = number(r"inner batch: 512 .* as configured: ([\d.]+) GiB too many \(inner level, backward pass\)", done.out)
    assert many == pytest.approx(
        number(r"inner level, backward pass\)[^:]*:[\s\S]*?in all +([\d.]+)", done.out) - 80, abs=0.06
    )
    assert f"512 inner rows at a time take {80 + many:.1f} GiB a GPU, {many:.1f} more than gpu_memory=80" in done.err
    assert re.search(r"stages.pretrain: does not fit: .*=64; stages.finetune: does not fit: one row", done.err)


def test_what_tensors_take_and_the_reserve_are_what_the_end_says(workshop: Any) -> None:
    done = workshop.hialign("plan", "experiment=llava", "model=vicuna_7b", "gpus=1")
    table = done.out.partition("stage finetune")[2]
    items = re.findall(r"^    [a-z' ]+? +([\d.]+) GiB", table, flags=re.MULTILINE)
    *tensors, reserve, whole = map(float, items)
    assert "reserve" in table
    assert "of 80 GiB tensors may take 74.1\n" in table  # (80 - 2) * 0.95
    assert whole == pytest.approx(sum(tensors) / 0.95 + 2, abs=0.05)
    assert whole == pytest.approx(sum(tensors) + reserve, abs=0.05)
    assert f"one row at a time takes {whole:.1f} GiB a GPU, {whole - 80:.1f} more than gpu_memory=80" in done.err
    assert f"{whole - 80:.1f} GiB too many (optimizer's step); no split fits" in table


def test_hacls_second_stage_is_llavas_and_what_train_does_is_told(workshop: Any) -> None:
    said = plan(workshop, "experiment=hacl", "model=tiny")
    assert "no data= given: planned with data=hacl outer=instruct" in said
    assert "outer/instruct: 665,298 records (LLaVA-1.5's llava_v1_5_mix665k.json)" in said
    assert "hialign train has this stage on captions, unless outer=instruct 'data.instruct={_target_: " in said
    # who names data gets what train would take: captions
    said = plan(workshop, "experiment=hacl", "model=tiny", "data=hacl")
    assert said.count("outer/caption: 546,965 records") == 2
    assert "stages.finetune is planned on captions (outer=caption), on which hialign train has it too" in said
    # and records of their own are not counted as the publication's
    own = "data.instruct={_target_: hialign.data.llava_conversations, annotations: my.json, images: here}"
    said = plan(workshop, "experiment=hacl", "model=tiny", "data=hacl", "outer=instruct", own)
    assert "hours unknown (of data=hacl the size is not known)" in said


def test_a_slip_in_the_commands_own_settings_is_told_without_torch_or_hydra() -> None:
    code = (
        "import sys; from hialign import cli; code = cli.main(['plan', 'experiment=chip', 'gpu=8']); "
        "sys.exit(code + 2 * bool({'torch', 'transformers', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "hialign plan: there is no setting gpu; did you mean gpus=?\n"
    assert done.returncode == 1


def test_data_that_lack_a_role_are_refused_in_trains_words(workshop: Any) -> None:
    words = ("experiment=dpo", "model=tabletop", "data=flickr8k")
    done = workshop.hialign("train", *words, "data.root=pictures")
    assert done.code == 1
    assert refusal(workshop, *words) == done.err.replace("hialign train: ", "hialign plan: ")
