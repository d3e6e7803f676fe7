"""``hialign ask``: one question about one image, answered as the words come."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, TextStreamer

from hialign.data import BadRecord, CaptionedImage, load_image
from hialign.models import evaluating
from hialign.models.pretrained import pretrained
from hialign.runner import assemble, settings

USAGE = 'hialign ask run=RUN IMAGE ["QUESTION"] [max_new_tokens=256] [device=auto] [dtype=auto]'
ABOUT = """\
RUN is a run folder (of a run under way: its last checkpoint), a folder that `hialign export` wrote, merged or adapter,
or the name of a model on the hub. Without a question the image alone is shown: the model captions it, if it learnt to.
The answer is greedy."""
KEYS = ("run", "max_new_tokens", "device", "dtype")
DTYPES = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Reads its settings, the image and the question from the command line and prints the answer."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: {USAGE}\n\n{ABOUT}")
        return
    keyed = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in KEYS and "=" in argument]
    words = [argument for argument in sys.argv[1:] if argument not in keyed]
    for word in words:
        if near := difflib.get_close_matches(word.partition("=")[0], KEYS, n=1) if "=" in word else ():
            raise ValueError(f"ask: there is no setting {word.partition('=')[0]}; did you mean {near[0]}=?")
    given = settings.read("ask", keyed, needed=("run",), optional=KEYS[1:], usage=USAGE)
    if len(words) not in (1, 2):
        raise ValueError(f"ask: got {len(words)} arguments besides settings, wanted an image and a question: {USAGE}")
    length = given.get("max_new_tokens", "256")
    if not length.isdecimal() or int(length) < 1:
        raise ValueError(f"max_new_tokens: got {length!r}, wanted a whole number above 0")
    image = _image(words[0])
    device = assemble.choose_device(given.get("device", "auto"), "device")
    llava, processor = load_any(given["run"], dtype=given.get("dtype", "auto"))
    answer(llava.to(device), processor, image, words[1:], max_new_tokens=int(length))


def _image(name: str) -> Image.Image:
    try:
        return load_image(CaptionedImage(name, Path(name), ("",)))
    except BadRecord as error:
        raise ValueError(f"{name}: {error.problem}; wanted an image file before the question") from error


def answer(llava: Any, processor: Any, image: Image.Image, question: Sequence[str], *, max_new_tokens: int) -> None:
    """Prints what the model says of the image, word by word; ``question`` is one or none."""
    parts = [{"type": "image", "image": image}, *({"type": "text", "text": text} for text in question)]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(llava.device, llava.dtype)
    streamer: Any = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with torch.no_grad(), evaluating(llava):
        llava.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)


def load_any(name: str, *, dtype: str) -> tuple[Any, Any]:
    """The Llava and the processor of a run folder, an exported folder or a hub name."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, wanted one of {', '.join(DTYPES)}")
    folder = Path(name)
    if (folder / "config.yaml").is_file():
        if not (folder / "model").is_dir():
            own = assemble.run_config(folder).model.get("dtype", "fp32")
            model = assemble.load_run(folder, dtype=own if dtype == "auto" else dtype)
            return model.root.llava, model.processor
        folder = folder / "model"
    elif folder.exists() and not any((folder / f"{kind}.json").is_file() for kind in ("config", "adapter_config")):
        raise ValueError(
            f"run={name}: no run and no model in this folder; wanted one that has config.yaml, or export's"
        )
    if (folder / "adapter_config.json").is_file():
        return _load_adapter(folder, DTYPES[dtype])
    source = str(folder) if folder.exists() else name
    llava = pretrained(AutoModelForImageTextToText, "run", source, dtype=DTYPES[dtype])
    return llava, pretrained(AutoProcessor, "run", source)


def _load_adapter(folder: Path, dtype: Any) -> tuple[Any, Any]:
    """The adapter's base, which lies in its folder where export wrote it there, with the adapter on it."""
    from peft import PeftConfig, PeftModel

    config: Any = PeftConfig.from_pretrained(str(folder))
    beside = folder / "base"
    base, revision = (str(beside), None) if beside.is_dir() else (config.base_model_name_or_path, config.revision)
    under = pretrained(
        AutoModelForImageTextToText,
        "base_model_name_or_path in adapter_config.json",
        base,
        dtype=dtype,
        revision=revision,
    )
    adapted: Any = PeftModel.from_pretrained(under, str(folder))
    adapted.generation_config = GenerationConfig.from_pretrained(folder)
    return adapted, pretrained(AutoProcessor, "run", str(folder))
