"""The examples in the docstrings of the losses give what they say, and the folder is enough for them."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

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


def test_the_folder_copied_elsewhere_imports_torch_and_the_standard_library_alone(tmp_path: Path):
    shutil.copytree(Path(losses.__file__).parent, tmp_path / "borrowed", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
before = set(sys.modules)
import borrowed
print(borrowed.__file__, borrowed.info_nce(torch.eye(3), torch.eye(3), temperature=1.0).item())
roots = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(roots - sys.stdlib_module_names - {{"torch"}}))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    place, others = done.stdout.splitlines()
    assert place.startswith(f"{tmp_path / 'borrowed' / '__init__.py'} 0.5514")
    assert others == "['borrowed']"
