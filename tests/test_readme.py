"""What the README promises, run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from hialign.cli import COMMANDS


@pytest.fixture
def readme(repo: Path) -> str:
    return (repo / "README.md").read_text()


def test_the_python_of_the_readme_runs_and_ends_aligned(readme: str) -> None:
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code
    names: dict[str, object] = {}
    exec(code.group(1), names)
    end = names["end"]
    assert end.inner < 0.1  # type: ignore[attr-defined]  # chance is log(64) = 4.16
    assert end.outer < 20  # type: ignore[attr-defined]  # it begins at about 32


def test_every_command_of_the_readme_exists(readme: str) -> None:
    used = set(re.findall(r"`?hialign ([a-z]+)[ `\n]", readme))
    assert used >= {"train", "evaluate", "ask", "export", "configs", "demo"}
    assert used <= set(COMMANDS)


def test_every_config_that_the_readme_names_exists(readme: str, repo: Path) -> None:
    own = {"careful"}  # the example of a user's own file
    named = re.findall(r"\b(experiment|model|solver|data|benchmark|tracker)=([a-z0-9_]+)", readme)
    for group, name in [pair for pair in named if pair[1] not in own]:
        assert (repo / "configs" / group / f"{name}.yaml").is_file(), f"{group}={name}"


def test_the_demo_on_the_first_screen_is_what_its_script_writes(readme: str, repo: Path) -> None:
    found = importlib.util.spec_from_file_location("write_readme", repo / "scripts" / "write_readme.py")
    assert found
    assert found.loader
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    assert script.block(json.loads((repo / "docs" / "demo.json").read_text())["arms"]) in readme
    assert (repo / "docs" / "demo.png").read_bytes().startswith(b"\x89PNG")
