"""The examples in the losses' docstrings."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest
import torch

import hialign.losses

MODULES = ("crossmodal", "head", "phrase", "preference", "token")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_say_what_they_print(name: str):
    module = importlib.import_module(f"hialign.losses.{name}")
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_function_of_a_module_says_where_it_comes_from_and_shows_an_example(name: str):
    module = importlib.import_module(f"hialign.losses.{name}")
    exported = [
        value
        for key, value in vars(module).items()
        if key in hialign.losses.__all__ and inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    assert exported
    for function in exported:
        text = inspect.getdoc(function) or ""
        assert "Source:" in text, function.__name__
        assert "Differs:" in text, function.__name__
        assert ">>> " in text, function.__name__
