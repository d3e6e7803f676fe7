"""Two processes that read a stream: each its own rows, and each goes on at its own row."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from hialign.models import load

pytestmark = pytest.mark.distributed


def train(folder, tables, *overrides):
    """The command under torchrun, in ``folder``."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hialign"),
        *("train", "experiment=llava", "data=hub_stream", f"data.root={tables}", "data.shuffle_buffer=6"),
        *("trainer.device=cpu", "~stages.finetune", "stages.pretrain.steps=5", "stages.pretrain.batch_size=8"),
        *("trainer.save_every=2", "trainer.keep=9", "model.width=32", "model.layers=2", "model.image_size=32"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *overrides], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_ranks_on_a_stream_of_uneven_files_resume_to_the_same_bits(tmp_path, draw_captioned):
    import pyarrow
    import pyarrow.parquet

    drawn = draw_captioned(tmp_path / "drawn", 29, seed=0)
    files = sorted((drawn / "images").iterdir())
    (tmp_path / "tables").mkdir()
    for number, chosen in enumerate((files[:6], files[6:29])):  # a file a rank: their places differ
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in chosen]
        table = pyarrow.table({"image": images, "caption": [f"a picture called {file.stem}" for file in chosen]})
        pyarrow.parquet.write_table(table, tmp_path / "tables" / f"train-{number}.parquet", row_group_size=4)
    said = train(tmp_path, tmp_path / "tables", "name=whole")
    assert said.count("input pretrain/outer/caption: ") == 1  # of the first rank alone
    whole, again = (tmp_path / "runs" / "llava" / name for name in ("whole", "again"))
    places = [
        torch.load(whole / "checkpoints/pretrain/step-000002" / f"random-{rank}.pt", weights_only=False)["own"][
            "streams"
        ]
        for rank in (0, 1)
    ]
    assert places[0] != places[1]
    shutil.copytree(whole, again)
    for late in ("step-000004", "step-000005"):
        shutil.rmtree(again / "checkpoints" / "pretrain" / late)
    shutil.rmtree(again / "model")
    (again / "status.json").write_text(json.dumps({"state": "failed"}))
    train(tmp_path, tmp_path / "tables", "name=again", "resume=auto")
    first, second = (load(str(folder / "model")).root.state_dict() for folder in (whole, again))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
