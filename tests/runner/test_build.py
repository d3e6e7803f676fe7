"""A ``_target_`` becomes an object, or an error that names its key."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from hialign.runner.build import build, check, is_target, target_class
from hialign.solvers import Joint


def takes(
    count: int = 0,
    share: float = 0.0,
    word: str = "",
    flag: bool = False,
    names: list[str] | None = None,
    table: dict[str, float] | None = None,
    mode: Literal["a", "b"] = "a",
    anything: Any = None,
) -> dict[str, Any]:
    """A target with an argument of every kind that a yaml holds."""
    return locals()


def needs(first: int, *, second: int = 2) -> tuple[int, int]:
    """A target with an argument that must be given."""
    return first, second


def breaks(error: str) -> None:
    """A target that fails by itself."""
    raise {"value": ValueError("too loud"), "os": FileNotFoundError("no such file: x"), "ours": KeyError("bug")}[error]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "of_a_user", sys.modules[__name__])
    for target in (takes, needs, breaks):
        monkeypatch.setattr(target, "__module__", "of_a_user")


def node(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"of_a_user.{name}", **arguments}


GOOD = [("count", 3), ("share", 1), ("share", 0.5), ("word", "x"), ("flag", True), ("names", ["a"]), ("names", None)]
GOOD += [("table", {"a": 1}), ("mode", "a"), ("anything", {"a": [1]}), ("anything", "x")]
BAD = [("count", 1.5), ("count", "1"), ("count", True), ("count", None), ("share", "x"), ("share", True), ("word", 3)]
BAD += [("flag", 1), ("flag", "true"), ("names", "a"), ("names", {"a": 1}), ("table", [1]), ("table", 3)]


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_a_value_of_the_annotated_kind_goes_in_as_it_is(key: str, value: Any) -> None:
    assert build(node("takes", **{key: value}), "x", ["of_a_user"])[key] == value


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_value_of_another_kind_is_refused_by_its_path(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^x\.{key}: got {re.escape(repr(value))}, wanted "):
        build(node("takes", **{key: value}), "x", ["of_a_user"])


def test_what_the_target_refuses_is_passed_on_with_the_path() -> None:
    with pytest.raises(ValueError, match=r"^a\.b: too loud$"):
        build(node("breaks", error="value"), "a.b", ["of_a_user"])
    with pytest.raises(ValueError, match=r"^a\.b: no such file: x$"):
        build(node("breaks", error="os"), "a.b", ["of_a_user"])


def test_an_error_of_ours_is_not_made_the_user_s() -> None:
    with pytest.raises(Exception, match="KeyError") as caught:
        build(node("breaks", error="ours"), "a.b", ["of_a_user"])
    assert not isinstance(caught.value, ValueError)


def test_a_nested_target_is_checked_and_built_and_its_refusal_passed_on() -> None:
    inside = {"_target_": "hialign.solvers.Joint", "weight": 2.0}
    assert build(node("takes", anything=inside), "x", ["of_a_user"])["anything"].weight == 2.0
    with pytest.raises(ValueError, match=r"^x\.anything\.weigth: hialign.solvers.Joint takes no weigth"):
        build(node("takes", anything={**inside, "weigth": 1}), "x", ["of_a_user"])
    with pytest.raises(ValueError, match=r"^x\.anything\[1\]\.weight: got 'a'"):
        build(node("takes", anything=[inside, {**inside, "weight": "a"}]), "x", ["of_a_user"])
    with pytest.raises(ValueError, match=r"^x: weight: got -1"):
        build(node("takes", anything={**inside, "weight": -1}), "x", ["of_a_user"])


def test_what_the_caller_gives_counts_as_given() -> None:
    with pytest.raises(ValueError, match=r"^x\.first: not given; of_a_user.needs needs it$"):
        build(node("needs"), "x", ["of_a_user"])
    assert build(node("needs"), "x", ["of_a_user"], first=5) == (5, 2)
    check(node("needs"), "x", ["of_a_user"], ["first"])


def test_a_partial_target_may_lack_arguments_and_may_not_have_wrong_ones() -> None:
    assert build(node("needs", _partial_=True, second=3), "x", ["of_a_user"])(1) == (1, 3)
    with pytest.raises(ValueError, match=r"^x\.third: "):
        build(node("needs", _partial_=True, third=3), "x", ["of_a_user"])


def test_check_builds_nothing() -> None:
    check(node("breaks", error="value"), "x", ["of_a_user"])


def test_interpolations_are_resolved_and_the_node_stays_as_it_was() -> None:
    config = OmegaConf.create({"w": 0.5, "solver": {"_target_": "hialign.solvers.Joint", "weight": "${w}"}})
    before = OmegaConf.to_yaml(config)
    solver = build(config.solver, "solver")
    assert isinstance(solver, Joint)
    assert solver.weight == 0.5
    assert OmegaConf.to_yaml(config) == before


def test_a_node_without_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^x: no _target_"):
        target_class({"weight": 1}, "x")
    assert not is_target({"weight": 1})
    assert not is_target("hialign.solvers.Joint")


def test_a_missing_file_of_a_data_set_names_the_stream_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^stages\.a\.outer\.data\.b: {re.escape(str(tmp_path))}/captions.txt: "):
        build({"_target_": "hialign.data.flickr8k", "root": str(tmp_path)}, "stages.a.outer.data.b")


def test_what_a_package_of_ours_only_imports_is_not_ours_to_build() -> None:
    with pytest.raises(ValueError, match=r"x\._target_: hialign\.training\.checkpoint\.torch\.load is not of hialign"):
        build({"_target_": "hialign.training.checkpoint.torch.load", "f": "state.pt"}, "x")
