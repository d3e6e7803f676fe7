"""A world of rendered tables whose content is known exactly, made to study hallucination; no files, no downloads."""

from hialign.tabletop.files import write
from hialign.tabletop.records import captions, instruct, vqa

__all__ = ["captions", "instruct", "vqa", "write"]
