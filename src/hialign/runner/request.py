"""The settings that ``hialign plan`` has of its own. Nothing here imports torch or Hydra: slips are told at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OWN = (
    *("gpus", "gpu_memory", "mfu", "peak_flops", "sharding", "records"),
    *("prompt_tokens", "answer_tokens", "longest_answer"),
)


@dataclass(frozen=True)
class Request:
    """The command's own settings."""

    gpus: int = 1
    gpu_memory: float = 80.0
    mfu: float = 0.4
    peak_flops: float = 989e12
    sharding: str | None = None
    records: Mapping[str, int] | None = None  # by stage; "" is of all
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    longest_answer: int | None = None


def read(words: Sequence[str]) -> tuple[Request, list[str]]:
    """The command's own settings, and what is left for Hydra."""
    if {"-m", "--multirun"} & set(words):
        raise ValueError("got -m, wanted one plan at a time; call it once for each")
    own = [word for word in words if word.partition("=")[0].partition(".")[0] in OWN and "=" in word]
    rest = [word for word in words if word not in own]
    _refuse_near(rest)
    return _request(own), rest


def _refuse_near(words: Sequence[str]) -> None:
    """A slip in one of the command's own settings, before Hydra takes it for one of train's."""
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        near = difflib.get_close_matches(key, OWN, n=1, cutoff=0.75)
        if near and "=" in word:
            raise ValueError(f"there is no setting {key}; did you mean {near[0]}=?")


def _request(words: Sequence[str]) -> Request:
    records: dict[str, int] = {}
    given: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith("records"):
            records[key.removeprefix("records").removeprefix(".")] = _whole(key, value)
        elif key not in OWN:
            raise ValueError(f"there is no setting {key}; did you mean {key.partition('.')[0]}=?")
        else:
            given[key] = value
    whole = {key: _whole(key, given[key]) for key in OWN if key in given and key.endswith(("gpus", "tokens", "answer"))}
    real = {key: _above(key, given[key]) for key in ("gpu_memory", "mfu", "peak_flops") if key in given}
    if real.get("mfu", 1.0) > 1:
        raise ValueError(f"mfu={given['mfu']}, wanted a share of the peak, above 0 and at most 1")
    sharding = given.get("sharding")
    if sharding not in (None, "replicate", "fsdp"):
        raise ValueError(f"sharding={sharding}, wanted replicate or fsdp")
    return Request(**whole, **real, sharding=sharding, records=records)  # type: ignore[arg-type]


def _whole(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{key}={text}, wanted a whole number from 1 up")
    return int(text)


def _above(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{key}={text}, wanted a number above 0")
    return value
