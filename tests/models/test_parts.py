"""Parts cover the model, and train as told."""

from __future__ import annotations

import pytest

from hialign.models import PARTS, count, part_of, set_trainable, tiny


@pytest.fixture
def root():
    return tiny(seed=0, width=64, layers=2, vocabulary=600).root


def test_every_parameter_is_in_exactly_one_part(root):
    names = [name for name, _ in root.named_parameters()]
    parts = {part: {name for name in names if part_of(name) == part} for part in PARTS}
    assert all(parts.values())  # no part is empty
    assert sum(map(len, parts.values())) == len(names)
    assert sum(row.total for row in count(root)) == sum(p.numel() for p in root.parameters())


def test_parts_are_the_modules_that_they_are_named_after(root):
    llava, alignment = root.llava, root.alignment
    modules = {
        "vision": llava.model.vision_tower,
        "projector": llava.model.multi_modal_projector,
        "llm": llava.model.language_model,  # its embedding table is the head's
        "text": alignment.text,
        "heads": alignment.heads,
    }
    sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    assert {row.part: row.total for row in count(root)} == {**sizes, "temperature": 1}
    assert llava.lm_head.weight is llava.get_input_embeddings().weight


def test_an_untied_head_belongs_to_the_llm():
    assert part_of("llava.lm_head.weight") == "llm"


def test_a_name_in_no_part_is_a_bug():
    with pytest.raises(AssertionError, match=r"llava\.model\.audio\.weight is in no part"):
        part_of("llava.model.audio.weight")


@pytest.mark.parametrize("part", PARTS)
def test_one_part_trains_and_all_others_are_frozen(root, part: str):
    set_trainable(root, {part: "full"})
    trains = {part_of(name) for name, p in root.named_parameters() if p.requires_grad}
    assert trains == {part}
    for row in count(root):
        assert row.trainable == (row.total if row.part == part else 0)


def test_set_trainable_starts_anew_each_time(root):
    set_trainable(root, dict.fromkeys(PARTS, "full"))
    assert all(p.requires_grad for p in root.parameters())
    set_trainable(root, {"projector": "full", "llm": "frozen"})
    assert {part_of(name) for name, p in root.named_parameters() if p.requires_grad} == {"projector"}
    set_trainable(root, {})
    assert not any(p.requires_grad for p in root.parameters())


def test_the_rows_of_count_are_in_the_order_of_the_parts(root):
    assert tuple(row.part for row in count(root)) == PARTS


@pytest.mark.parametrize("modes", [{"visoin": "full"}, {"llm": "lora"}, {"llm": "Full"}])
def test_a_misspelt_part_or_mode_is_an_error_and_changes_nothing(root, modes: dict[str, str]):
    set_trainable(root, {"llm": "full"})
    with pytest.raises(
        ValueError,
        match=r"modes: (got .*, wanted one of frozen, full, lora for parts of vision|llm .* has no adapters)",
    ):
        set_trainable(root, modes)
    assert {part_of(name) for name, p in root.named_parameters() if p.requires_grad} == {"llm"}
