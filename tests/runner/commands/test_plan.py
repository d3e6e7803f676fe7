"""``hialign plan``, as it is typed: full-size numbers, and what it says to what cannot be planned."""

from __future__ import annotations

import re
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
    # 98 % of 5,733 pairs
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
    said = plan(workshop, "experiment=mdpo", "model=llava_1_5_7b", "gpus=8")
    assert "reference states of preference: pays: saves" in said


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
    assert "GiB too many" in plan(workshop, *words, "stages.prefer.micro_batch_size=4")


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
        (("experiment=joint", "model=vicuna_7b"), "no configs/recipe/joint_vicuna_7b.yaml.*hacl_vicuna_7b, llava"),
        ((*CHIP, "model.from_run=nowhere"), "model.from_run: nowhere has no model/"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(workshop: Any, words: tuple[str, ...], wanted: str) -> None:
    assert re.search(wanted, refusal(workshop, *words))


def test_another_models_recipe_may_be_taken(workshop: Any) -> None:
    words = ("experiment=hierarchical_hacl", "model=vicuna_7b", "recipe=hacl_vicuna_7b", "gpus=8")
    said = plan(workshop, *words)
    assert "inner batch: 64 at a time x 1 x 8 GPUs = 512 as configured" in said


def test_a_plan_of_a_folder_reads_its_config_alone(workshop: Any, checkpoints: Any, tmp_path: Path) -> None:
    words = ("experiment=llava", "model=vicuna_7b", f"model.llm={checkpoints.llama}")
    said = plan(workshop, *words, f"model.clip.name={checkpoints.clip}", "output=" + str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert "stage finetune, Single" in said
