"""Losses: functions of tensors that return a tensor, and know neither model, rank nor config.

This folder needs nothing but torch (2.2 or newer), so it can be copied into another project as it is.
"""

from .chunked import info_nce_chunked, symmetric_info_nce_chunked
from .contrastive import hacl, info_nce, symmetric_info_nce
from .modules import MemoryQueue, Temperature
from .pairwise import contrastive_margin, cyclip, siglip, triplet
from .token import count_targets, next_token

__all__ = [
    "MemoryQueue",
    "Temperature",
    "contrastive_margin",
    "count_targets",
    "cyclip",
    "hacl",
    "info_nce",
    "info_nce_chunked",
    "next_token",
    "siglip",
    "symmetric_info_nce",
    "symmetric_info_nce_chunked",
    "triplet",
]
