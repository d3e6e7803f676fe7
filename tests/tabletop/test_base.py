"""The packaged base model: small, a standard Llava, and able to see and to speak before anything joins the two."""

from __future__ import annotations

import json

import pytest
import torch

from hialign.models import count
from hialign.tabletop import base
from hialign.tabletop.card import CURVES, write_base
from hialign.tabletop.model import FOLDER, untrained
from hialign.tabletop.scores import base_scores


@pytest.fixture(scope="module")
def model():
    return base(seed=0)


def test_it_is_small_enough_to_be_packaged(model):
    assert sum(file.stat().st_size for file in FOLDER.rglob("*.safetensors")) < 24e6
    assert 2e6 < sum(row.total for row in count(model.root)) < 6e6


def test_it_comes_with_its_card_and_its_curves():
    made_by = json.loads((FOLDER / "made_by.json").read_text())
    card = (FOLDER / "README.md").read_text()
    assert made_by["command"] in card
    for key in ("seed", "versions", "scores"):
        assert made_by[key] is not None
    assert made_by["minutes"] <= 60
    for curve, part in zip(CURVES, ("language", "reading", "reading", "towers", "answering"), strict=True):
        last = (FOLDER / curve).read_text().splitlines()[-1]
        assert int(last.split(",")[0]) == made_by[part]["steps"]


def test_the_card_says_what_is_measured_again(model):
    """On fewer scenes than the card's, so within the error of a share of 100."""
    said = json.loads((FOLDER / "made_by.json").read_text())["scores"]
    found = base_scores(model, number=100)
    assert found.keys() == said.keys()
    for key in ("zero_shot_kind", "zero_shot_colour", "zero_shot_place", "probe_kind", "probe_empty"):
        assert abs(found[key] - said[key]) < 4 * (0.25 / 100) ** 0.5, key
    for key in ("loss_val", "loss_val_counterfactual"):
        assert found[key] == pytest.approx(said[key], abs=0.1)


def test_its_language_model_expects_partners(model):
    found = base_scores(model, number=100)
    assert found["loss_val"] < found["loss_val_counterfactual"]


def test_untrained_it_scores_by_chance():
    """So that what the card says is the pretraining's doing and not the measure's."""
    found = base_scores(untrained(seed=0), number=100)
    assert found["zero_shot_kind"] < 0.3
    assert found["r1_i2t_even"] < 0.1
    assert found["loss_val"] > 5


def test_the_seed_draws_the_projector_and_the_heads_behind_it_and_nothing_else(model):
    again, other = base(seed=0).root.state_dict(), base(seed=1).root.state_dict()
    first = model.root.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    differ = {key for key in first if not torch.equal(first[key], other[key])}
    fresh = ("multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_2.weight")
    heads = [f"alignment.heads.{pair}_{side}.weight" for pair in ("projector", "llm") for side in ("image", "text")]
    assert differ == {*(f"llava.model.{name}" for name in fresh), *heads}


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    base(seed=3)
    assert torch.equal(torch.rand(3), wanted)


def test_the_build_writes_a_folder_that_base_reads(tmp_path):
    for name in CURVES:
        (tmp_path / name).write_text("step,loss\n1,2.0\n")
    scores = {"r1_i2t_even": 0.5}
    for _ in range(2):  # the second replaces the first
        write_base(
            untrained(seed=1), tmp_path / "out", tmp_path, scores, seed=1, command="python build.py", minutes=3.0
        )
    made = base(seed=0, folder=str(tmp_path / "out"))
    assert sum(row.total for row in count(made.root)) == sum(row.total for row in count(untrained(seed=1).root))
    assert "| 0.500 |" in (tmp_path / "out" / "README.md").read_text()
