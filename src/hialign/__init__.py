"""hialign: multimodal LLMs that hallucinate less.

Cross-modal alignment is the inner level, the task is the outer level, and every baseline is a choice of the two and of
a solver that combines them. Importing this package imports nothing else: take what you need from its rooms, such as
``from hialign.losses import info_nce``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hialign")
except PackageNotFoundError:  # the source tree on sys.path, never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
