"""The one place where a config's ``_target_`` becomes an object."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

Node = Mapping[str, Any]


def is_target(node: object) -> bool:
    """Whether a config node describes an object to build."""
    return isinstance(node, Mapping | DictConfig) and "_target_" in node


def build(node: Node | DictConfig, path: str, allow: Sequence[str] = (), **given: Any) -> Any:
    """The object that ``node`` describes, called with ``given`` besides the node's own arguments.

    Only targets in hialign, or in a package named in ``allow``, are built. ``ValueError`` with the key's path for a
    target that is not allowed or not found, an argument it does not take or of the wrong kind, one that is missing,
    and for what the target itself refuses.
    """
    check(node, path, allow, set(given))
    try:
        return hydra.utils.instantiate(_plain(node), **given, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | OSError):
            raise ValueError(f"{path}: {cause}") from cause
        raise


def build_benchmark(config: DictConfig, name: str) -> Any:
    """The benchmark that ``config.benchmark`` describes under ``name``; a ValueError names a key that is not given."""
    if missing := sorted(map(str, OmegaConf.missing_keys(config.benchmark[name]))):
        raise ValueError(f"{missing[0]}: not given; set {missing[0]}=...")
    return build(config.benchmark[name], f"benchmark.{name}", config.allow)


def check(node: Node | DictConfig, path: str, allow: Sequence[str] = (), given: Collection[str] = ()) -> None:
    """Raises what ``build`` would of ``node``'s targets and arguments, and builds nothing."""
    _check(_plain(node), path, allow, given)


def target_class(node: Node | DictConfig, path: str, allow: Sequence[str] = ()) -> Any:
    """What ``node``'s ``_target_`` names, not called."""
    if not is_target(node):
        raise ValueError(f"{path}: no _target_ in {dict(node)}; wanted one that names what to build")
    name = node["_target_"]
    packages = ("hialign", *allow)
    if not isinstance(name, str) or name.split(".")[0] not in packages:
        raise ValueError(
            f"{path}._target_: got {name!r}, wanted something in {', '.join(packages)}; "
            "allow=[package] admits a package of yours"
        )
    try:
        found = hydra.utils.get_object(name)
    except Exception as error:  # Hydra wraps whatever the import raised
        raise ValueError(f"{path}._target_: {name} cannot be imported: {error}") from error
    if getattr(found, "__module__", "").split(".")[0] not in packages:  # hialign.x.torch.load is torch's, not ours
        raise ValueError(f"{path}._target_: {name} is not of {', '.join(packages)} but only imported there")
    return found


def _plain(node: Node | DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)


def _check(node: Any, path: str, allow: Sequence[str], given: Collection[str]) -> None:
    if isinstance(node, list):
        for place, item in enumerate(node):
            _check(item, f"{path}[{place}]", allow, ())
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        _check(value, f"{path}.{key}", allow, ())
    if "_target_" in node:
        _check_arguments(node, path, target_class(node, path, allow), given)


def _check_arguments(node: dict[str, Any], path: str, target: Any, given: Collection[str]) -> None:
    parameters = inspect.signature(target).parameters
    hints = _hints(target)
    own = {key: value for key, value in node.items() if not key.startswith("_")}
    for key, value in own.items():
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(parameters) or 'nothing'}"
            raise ValueError(f"{path}.{key}: {node['_target_']} takes no {key}; {hint}")
        if key in hints and not is_target(value) and not _fits(value, hints[key]):
            raise ValueError(f"{path}.{key}: got {value!r}, wanted {_name(hints[key])}")
    for key, parameter in parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        needed = not variadic and parameter.default is parameter.empty and not node.get("_partial_")
        if needed and key not in own and key not in given:
            raise ValueError(f"{path}.{key}: not given; {node['_target_']} needs it")


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # a name that is imported for type checking alone
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that yaml can hold suits an annotation; what cannot be told, does."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inside)
    if hint in (bool, str, type(None)):
        return value is None if hint is type(None) else isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    return True


def _name(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint)
