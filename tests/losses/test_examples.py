"""The examples in the docstrings of the losses give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

from hialign import losses

MODULES = [module.name for module in pkgutil.iter_modules(losses.__path__)]
FUNCTIONS = [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_give_what_they_say(module: str):
    assert doctest.testmod(importlib.import_module(f"{losses.__name__}.{module}")).failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_loss_says_where_it_comes_from_and_shows_how_it_is_called(name: str):
    text = inspect.getdoc(getattr(losses, name)) or ""
    assert "Source:" in text
    assert "Differs:" in text
    assert any(f"{name}(" in line for line in text.splitlines() if ">>> " in line)
