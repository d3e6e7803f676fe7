"""The console script: a table of commands, each imported only when it is called.

Nothing here imports torch or Hydra, so that help and typing mistakes are answered at once.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Sequence

from hialign import __version__
from hialign.runner.settings import print_traceback, without_null

# name -> (module:function, one line of help). The functions take no arguments and read sys.argv, as Hydra's do.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("hialign.runner.commands.train:main", "train an experiment, one stage after another"),
    "cache": ("hialign.runner.commands.cache:main", "write what a run would compute again in each epoch"),
    "plan": ("hialign.runner.commands.plan:main", "parameters, operations, memory and hours of a run; reads no data"),
    "evaluate": ("hialign.runner.commands.evaluate:main", "answer a benchmark with a run's model and score it"),
    "score": ("hialign.runner.commands.score:main", "score answers that any system gave, from their file"),
    "compare": ("hialign.runner.commands.compare:main", "tell whether one run is better than another"),
    "ask": ("hialign.runner.commands.ask:main", "ask a model one question about one image"),
    "export": ("hialign.runner.commands.export:main", "write a run's model for plain transformers or PEFT"),
    "data": ("hialign.runner.commands.data:main", "make data of data: hallucinated captions for HACL and HALVA"),
    "demo": ("hialign.runner.commands.demo:main", "show the whole thing on a laptop in minutes, no downloads"),
    "configs": ("hialign.runner.commands.configs:main", "list what can be chosen: experiments, models, data, ..."),
}

EXAMPLES = """\
  hialign demo
  hialign train experiment=hierarchical data=flickr8k data.root=FOLDER
  hialign train experiment=hierarchical data=flickr8k data.root=FOLDER solver=joint seed=3
  hialign train -m experiment=hierarchical data=flickr8k data.root=FOLDER solver=joint,alternating seed=0,1,2
  hialign train experiment=hierarchical data=flickr8k data.root=FOLDER --cfg job     show the config, train nothing
  hialign cache experiment=dpo data=rlhf_v data.root=FOLDER cache=FOLDER
  hialign plan experiment=chip model=llava_1_5_7b gpus=8
  hialign evaluate run=runs/hierarchical/NAME
  hialign score benchmark=pope benchmark.pope.root=FOLDER answers=answers.jsonl
  hialign compare runs/hierarchical/NAME runs/joint/NAME
  hialign ask run=runs/hierarchical/NAME image.jpg "What is on the table?"
  hialign export run=runs/hierarchical/NAME out=FOLDER
  hialign data hallucinate data=flickr8k data.root=FOLDER out=FOLDER sample=20
  hialign configs                                what there is to choose from"""

# Hydra's flags. argparse takes any unambiguous prefix of them, so that `--experiment x` would be read as
# `--experimental-rerun x` and crash; only what is written in full here is let through.
HYDRA_FLAGS = {
    *("--help", "-h", "--hydra-help", "--version"),
    *("--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i"),
    *("--run", "-r", "--multirun", "-m", "--experimental-rerun"),
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--shell-completion", "-sc"),
}

FLAGS_WITH_VALUE = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
}

# What a command raises when the user's input is at fault. Anything else is a bug of ours and keeps its traceback.
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def help_text() -> str:
    """The table of commands, with examples."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return (
        f"hialign {__version__}: multimodal LLMs that hallucinate less\n\n"
        f"usage: hialign COMMAND [key=value ...] [Hydra's flags]\n\n{rows}\n\nexamples:\n{EXAMPLES}\n\n"
        "HIALIGN_TRACEBACK=1 shows the full traceback of an error."
    )


def unknown_command(name: str) -> str:
    """What to say to a command that is not in the table."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(COMMANDS)}"
    return f"hialign: no command '{name}'; {hint}"


def refused_flag(command: str, arguments: Sequence[str]) -> str | None:
    """What to say to the first flag that is not one of Hydra's, or None if there is none."""
    for place, argument in enumerate(arguments):
        if not re.match(r"--?[a-zA-Z]", argument):
            continue
        flag, has_value, value = argument.partition("=")
        if flag in HYDRA_FLAGS:
            continue
        if not has_value:
            following = next(iter(arguments[place + 1 :]), "")
            value = following if following and not re.search(r"^-|=", following) else "..."
        near = difflib.get_close_matches(flag, HYDRA_FLAGS, n=1, cutoff=0.8)
        hint = f" (or did you mean Hydra's {near[0]}?)" if near else ""
        wanted = f"{flag.lstrip('-')}={value}"
        return f"hialign {command}: settings are written without dashes: instead of '{flag}' write {wanted}{hint}"
    return None


def flags_first(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with Hydra's flags and their values before the settings: argparse takes none between them."""
    flags, settings, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            settings.append(argument)
            continue
        flags.append(argument)
        if argument in FLAGS_WITH_VALUE and rest:
            flags.append(rest.pop(0))
    return [*flags, *settings]


def load(target: str) -> Callable[[], object]:
    """The function behind ``module:function``."""
    module, _, function = target.partition(":")
    command: Callable[[], object] = getattr(importlib.import_module(module), function)
    return command


def call(name: str, arguments: Sequence[str]) -> int:
    """The exit code of one command, run with ``arguments`` in sys.argv."""
    target, _ = COMMANDS[name]
    try:
        sys.argv = [f"hialign {name}", *flags_first([without_null(argument) for argument in arguments])]
        code = load(target)()
    except KeyboardInterrupt:
        print(f"\nhialign {name}: interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        print_traceback()
        print(f"hialign {name}: {str(error).removeprefix(f'{name}: ')}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that ``arguments`` (by default the command line) name; returns the exit code."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if name in ("-V", "--version"):
        print(f"hialign {__version__}")
        return 0
    if name not in COMMANDS:
        print(unknown_command(name), file=sys.stderr)
        return 2
    if refusal := refused_flag(name, rest):
        print(refusal, file=sys.stderr)
        return 2
    return call(name, rest)


if __name__ == "__main__":
    raise SystemExit(main())
