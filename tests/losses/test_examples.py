"""The examples in the docstrings of the losses give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from hialign import losses

MODULES = [module.name for module in pkgutil.iter_modules(losses.__path__)]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_give_what_they_say(module: str):
    assert doctest.testmod(importlib.import_module(f"{losses.__name__}.{module}")).failed == 0


@pytest.mark.parametrize("name", [n for n in losses.__all__ if not getattr(losses, n).__module__.endswith(".token")])
def test_every_loss_shows_how_it_is_called(name: str):
    assert any(f"{name}(" in line for line in getattr(losses, name).__doc__.splitlines() if ">>> " in line)
