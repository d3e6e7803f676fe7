"""``hialign export``: a run's model as a folder that plain transformers or PEFT loads."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hialign.models import Model, lora_parts, save, save_adapter, save_beside
from hialign.runner import assemble, settings

USAGE = "hialign export run=RUN_FOLDER out=FOLDER [format=merged|adapter]"
ABOUT = """\
merged (the default): the run's model, of a run under way its last checkpoint, as a Llava folder; LoRA is worked in.
adapter: the LoRA weights as PEFT reads them, with whole projector and tower where these trained in full, and text tower
and heads in FOLDER/alignment. If the run did not start from a checkpoint that its adapter fits, what the adapter is to
be put on is written to FOLDER/base."""

# What PEFT calls the parts of a Llava that an adapter's file can hold whole.
WHOLE = {"vision": "vision_tower", "projector": "multi_modal_projector"}


def main() -> None:
    """Reads its settings from the command line and writes the folder."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {USAGE}\n\n{ABOUT}")
        return
    given = settings.read("export", sys.argv[1:], needed=("run", "out"), optional=("format",), usage=USAGE)
    run, out, form = Path(given["run"]), Path(given["out"]), given.get("format", "merged")
    if form not in ("merged", "adapter"):
        raise ValueError(f"format: got {form!r}, wanted merged or adapter")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out}: there is something already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    if form == "merged":
        export_merged(run, out)
        print(f'wrote {out}; load it with AutoModelForImageTextToText.from_pretrained("{out}")')
        return
    base = export_adapter(run, out)
    print(
        f'wrote {out}; load it with PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("{base}"), '
        f'"{out}")'
    )


def export_merged(run: Path, out: Path) -> None:
    """Writes the run's model: a copy of the one it ended with, or that of its last checkpoint."""
    config = assemble.run_config(run)
    if not (run / "model").is_dir():
        assemble.save_whole(assemble.load_run(run, dtype=config.model.get("dtype", "fp32")), out)
        return
    with assemble.written_whole(out) as partial:
        shutil.copytree(run / "model", partial, dirs_exist_ok=True)


def export_adapter(run: Path, out: Path) -> str:
    """Writes the run's adapters from its last checkpoint; returns the name of the model that they are to be put on."""
    config = assemble.run_config(run)
    if not assemble.trained_parts(config, "lora"):
        raise ValueError(f"format=adapter: no stage of {run} trains by lora; wanted format=merged")
    model = assemble.load_checkpoint(run, config)
    checkpoint, whole = _fits_on(config, model)
    base = checkpoint or str((out / "base").resolve())
    revision = config.model.get("revision") if checkpoint else None
    generation: Any = model.root.llava.generation_config
    with assemble.written_whole(out) as partial:
        if not checkpoint:
            save(model, partial / "base", merge=False)
        save_adapter(model.root, partial, base=base, revision=revision, whole=whole)
        save_beside(model, partial)
        model.processor.save_pretrained(partial)
        generation.save_pretrained(partial)
    return base


def _fits_on(config: DictConfig, model: Model) -> tuple[str | None, dict[str, str]]:
    """The checkpoint that the adapter can be put on, if there is one, and the parts that its file must then hold."""
    full = assemble.trained_parts(config, "full") & {"vision", "projector", "llm"}
    whole = {part: name for part, name in WHOLE.items() if part in full - lora_parts(model.root)}
    checkpoint = None if config.model.get("from_run") or model.note else config.model.get("checkpoint")
    return (checkpoint if full == set(whole) else None), whole
