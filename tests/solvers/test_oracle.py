"""axpy and assign_groups."""

from __future__ import annotations

import pytest
import torch

from hialign.solvers import assign_groups, axpy


def test_axpy_covers_the_union_of_names():
    x = {"both": torch.tensor([1.0, 2.0]), "left": torch.tensor([3.0])}
    y = {"both": torch.tensor([10.0, 20.0]), "right": torch.tensor([4.0])}
    total = {name: tensor.tolist() for name, tensor in axpy(0.5, x, y).items()}
    assert total == {"both": [10.5, 21.0], "left": [1.5], "right": [4.0]}


def test_axpy_makes_no_new_tensors():
    x, y = {"left": torch.ones(1), "both": torch.ones(1)}, {"both": torch.ones(1)}
    left, both = x["left"], y["both"]
    total = axpy(2.0, x, y)
    assert total["left"] is left
    assert total["both"] is both


def test_axpy_of_nothing_is_the_other():
    assert axpy(2.0, {}, {}) == {}
    assert axpy(2.0, {"a": torch.ones(1)}, {})["a"].item() == 2
    assert axpy(2.0, {}, {"a": torch.ones(1)})["a"].item() == 1


def test_a_name_is_in_the_group_of_the_levels_that_reach_it():
    groups = assign_groups(["head", "tower", "llm", "unused"], {"inner": {"head", "tower"}, "outer": {"tower", "llm"}})
    assert groups == {"head": "inner", "tower": "shared", "llm": "outer"}


def test_the_groups_come_in_the_order_of_the_names():
    names = [f"p{i}" for i in range(20)]
    assert list(assign_groups(names, {"outer": set(names)})) == names


def test_a_lone_level_needs_no_shared_parameter():
    assert assign_groups(["a", "b"], {"outer": {"a", "b"}}) == {"a": "outer", "b": "outer"}
    assert assign_groups(["a"], {"inner": {"a"}}) == {"a": "inner"}


def test_levels_that_do_not_meet_are_named_with_the_parts_that_each_reaches():
    names = ["tower.0", "tower.1", "projector.0"]
    with pytest.raises(
        ValueError,
        match="share no parameter that trains: the inner loss reaches tower, the outer loss projector; train",
    ):
        assign_groups(names, {"inner": names[:2], "outer": names[2:]}, part_of=lambda name: name.partition(".")[0])


def test_a_level_that_reaches_nothing_is_said_to_reach_nothing():
    with pytest.raises(ValueError, match="the inner loss reaches nothing, the outer loss a;"):
        assign_groups(["a"], {"inner": [], "outer": ["a"]})


def test_a_long_list_of_parts_is_cut():
    names = [f"part{i}" for i in range(9)]
    with pytest.raises(ValueError, match="part0, part1, part2, part3, part4, part5 and 3 more, the outer loss nothing"):
        assign_groups(names, {"inner": names, "outer": []})
