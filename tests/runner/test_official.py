"""The baselines' configs at full size, against the official values in official.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

DATA = {"hacl": "hacl", "llava": "llava_instruct", "llava_lora": "llava_instruct", "halva": "halva"}
TABLE: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "official.yaml").read_text())


def number(value: Any) -> Any:
    """PyYAML reads 1e-3 as a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def composed_of(compose: Any, row: dict[str, Any]) -> Any:
    experiment, model = row["of"]
    data = DATA.get(experiment, "rlhf_v")
    outer = ["outer=instruct"] if data == "llava_instruct" else []
    return compose(f"experiment={experiment}", f"model={model}", f"data={data}", "data.root=/nowhere", *outer)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(row["of"]))
def test_a_full_size_config_has_the_official_values(validated: Any, row: dict[str, Any]) -> None:
    config = composed_of(validated, row)
    for path, wanted, source in row["values"]:
        found = OmegaConf.select(config, path)
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        assert found == number(wanted), f"{path}: {found}, and {source} of {row['source']} has {wanted}"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(row["of"]))
def test_a_full_size_config_trains_the_official_parts(validated: Any, row: dict[str, Any]) -> None:
    config = composed_of(validated, row)
    for stage, wanted in row["trains"].items():
        found = {str(part): mode for part, mode in config.stages[stage].train.items() if mode != "frozen"}
        assert found == wanted, f"stages.{stage}.train of {row['source']}"
