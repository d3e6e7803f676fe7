"""A world of rendered tables whose content is known exactly, made to study hallucination; no files, no downloads."""

from hialign.tabletop.files import write
from hialign.tabletop.model import base
from hialign.tabletop.records import captions, hallucinations, instruct, preferences, vqa

__all__ = ["base", "captions", "hallucinations", "instruct", "preferences", "vqa", "write"]
