"""How a composed command ends on a user's mistake."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from hialign.runner.settings import print_traceback


@contextmanager
def told(command: str) -> Iterator[None]:
    """Within it, a mistake of the user's becomes a line on stderr and exit code 1; a sweep is told, and goes on.

    Hydra would print a traceback of its own; in a sweep it raises the first failure at the end.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"hialign {command}: {error}", file=sys.stderr)
        print_traceback()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(1)
