"""What the README promises, run."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hialign.cli import COMMANDS
from hialign.runner.commands.demo import ROWS


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


def configs_named(text: str, repo: Path) -> set[tuple[str, str]]:
    """The (group, file) of every choice in a text, of each in a list too: a=x, a=[x,y], and a sweep's a=x,y."""
    groups = "|".join(sorted(folder.name for folder in (repo / "configs").iterdir() if folder.is_dir()))
    found = re.findall(rf"(?<![\w.])({groups})=\[?([a-z][a-z0-9_]*(?:,[a-z][a-z0-9_]*)*)", text)
    return {(group, name) for group, names in found for name in names.split(",")}


def test_configs_are_found_in_lists_and_sweeps_too(repo: Path) -> None:
    text = """`benchmark=[retrieval,captions]` and `solver=joint,alternating seed=0,1` data=x. inner=,
    stages.pretrain.solver=own model.llm=Name [benchmark=[NAME,...]] experiment=hierarchical`"""
    assert configs_named(text, repo) == {
        *(("benchmark", "retrieval"), ("benchmark", "captions"), ("solver", "joint"), ("solver", "alternating")),
        *(("data", "x"), ("experiment", "hierarchical")),
    }


def test_every_config_that_the_readme_names_exists(readme: str, repo: Path) -> None:
    own = {("experiment", "careful")}  # the example of a user's own file
    named = configs_named(re.sub(r"```python\n.*?```", "", readme, flags=re.DOTALL), repo) - own
    in_lists = {("benchmark", "tabletop_captions"), ("benchmark", "tabletop_zero_shot"), ("tracker", "tensorboard")}
    assert in_lists <= named
    for group, name in named:
        assert (repo / "configs" / group / f"{name}.yaml").is_file(), f"{group}={name}"


@pytest.fixture
def script(repo: Path) -> ModuleType:
    """``scripts/write_readme.py``."""
    found = importlib.util.spec_from_file_location("write_readme", repo / "scripts" / "write_readme.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_demo_on_the_first_screen_is_what_its_script_writes(readme: str, repo: Path, script: ModuleType) -> None:
    assert script.block(json.loads((repo / "docs" / "demo.json").read_text())) in readme
    assert (repo / "docs" / "demo.png").read_bytes().startswith(b"\x89PNG")


SETUP = {"seed": 0, "steps": {"pretrain": 80, "finetune": 160}, "scenes": 100}
SETUP |= {"zero_shot_scenes": 300, "retrieval_images": 300}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: ModuleType) -> Path:
    """A folder with a README, and with a demo's files in ``demo``; the script is called there."""
    (tmp_path / "README.md").write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    (tmp_path / "demo").mkdir()
    scores = {"setup": SETUP, "arms": {"llava": dict.fromkeys(ROWS, 0.5)}}
    (tmp_path / "demo" / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "demo" / "figure.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["write_readme.py", str(tmp_path / "demo")])
    return tmp_path


def test_the_script_writes_between_its_marks_alone(checkout: Path, script: ModuleType) -> None:
    script.main()
    told = (checkout / "README.md").read_text()
    assert told == f"before\n{script.block(json.loads((checkout / 'docs' / 'demo.json').read_text()))}\nafter\n"
    assert "One seed (0), 80 + 160 steps of training; 100 scenes of each split" in told
    script.main()
    assert (checkout / "README.md").read_text() == told


SPOILT = {
    "no first mark": ("README.md", "no mark\n{end}\n", "README.md: {begin} stands there 0 times, wanted once"),
    "no last mark": ("README.md", "{begin}\n", "README.md: {end} stands there 0 times, wanted once"),
    "two first marks": ("README.md", "{begin}{begin}{end}", "README.md: {begin} stands there 2 times"),
    "marks the wrong way": ("README.md", "{end}{begin}", "{end} stands before {begin}"),
    "no figure": ("demo/figure.png", None, "no figure.png there; wanted the folder of a finished"),
    "no scores": ("demo/scores.json", None, "no scores.json there"),
    "old scores": ("demo/scores.json", '{"arms": {}}', "the demo's scores lack setup; run `hialign demo`"),
    "a score less": (
        "demo/scores.json",
        json.dumps({"setup": SETUP, "arms": {"llava": {}}}),
        "llava: there is no score",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_amiss_is_said_and_nothing_is_written(checkout: Path, script: ModuleType, case: str) -> None:
    name, text, told = SPOILT[case]
    marks = {"begin": script.BEGIN, "end": script.END}
    if text is None:
        (checkout / name).unlink()
    else:
        (checkout / name).write_text(text.replace("{begin}", script.BEGIN).replace("{end}", script.END))
    before = (checkout / "README.md").read_text()
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert told.format(**marks) in str(stop.value)
    assert (checkout / "README.md").read_text() == before
    assert not (checkout / "docs").exists()
