"""What commands are told besides Hydra's overrides: ``key=value`` settings, and HIALIGN_TRACEBACK."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Sequence
from importlib.resources import files


def read(
    command: str, arguments: Sequence[str], *, needed: Sequence[str] = (), optional: Sequence[str] = (), usage: str
) -> dict[str, str]:
    """The settings by key; ``ValueError`` for one that is missing, unknown or no ``key=value``."""
    pairs = [argument.split("=", 1) for argument in arguments if "=" in argument]
    given = {key: value for key, value in pairs}
    known = [*needed, *optional]
    bare = [argument for argument in arguments if "=" not in argument]
    if bare:
        raise ValueError(f"{command}: got {bare[0]!r}, wanted key=value, as in: {usage}")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}=?" if near else f"it takes {', '.join(known)}"
            raise ValueError(f"{command}: there is no setting {key}; {hint}")
    if len(given) < len(pairs):
        raise ValueError(f"{command}: a setting is given twice among {' '.join(arguments)}; give it once")
    lacking = [key for key in needed if not given.get(key)]
    if lacking:
        raise ValueError(f"{command}: {lacking[0]}= is not given, as in: {usage}")
    return given


def whole(name: str, value: str) -> int:
    """The number that ``value`` writes; ``ValueError`` for anything but 0, 1, 2, ..."""
    if not value.isdecimal():
        raise ValueError(f"{name}: got {value!r}, wanted a whole number")
    return int(value)


def without_null(word: str) -> str:
    """``recipe=null`` as Hydra writes it; ``ValueError`` for another group's, which Hydra would answer by a crash."""
    key, _, value = word.partition("=")
    if value != "null":
        return word
    if key == "recipe":
        return "~recipe"
    if "." not in key and key.isidentifier() and files("hialign.configs").joinpath(key).is_dir():
        raise ValueError(f"{key}: got null, wanted a name of those that `hialign configs {key}` lists; or leave it out")
    return word


def print_traceback() -> None:
    """Prints the traceback of the error that is being handled, where HIALIGN_TRACEBACK asks for it."""
    if os.environ.get("HIALIGN_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exc()
