"""Losses: functions of tensors that return a tensor, and know neither model, rank nor config.

This folder needs nothing but torch (2.2 or newer), so it can be copied into another project as it is.
"""

from .chunked import info_nce_chunked, symmetric_info_nce_chunked
from .contrastive import hacl, info_nce, symmetric_info_nce
from .crossmodal import chip, cross_modal_dpo, mdpo
from .floor import info_nce_floor
from .head import chunked_next_token, chunked_token_kl, chunked_token_logps
from .modules import MemoryQueue, Temperature
from .pairwise import contrastive_margin, cyclip, siglip, triplet
from .phrase import changed_token_weights, halva, phrase_sums
from .preference import PreferenceLoss, ddpo, dpo, tdpo
from .token import count_targets, next_token, sequence_logps, token_kl, token_logps

__all__ = [
    "MemoryQueue",
    "PreferenceLoss",
    "Temperature",
    "changed_token_weights",
    "chip",
    "chunked_next_token",
    "chunked_token_kl",
    "chunked_token_logps",
    "contrastive_margin",
    "count_targets",
    "cross_modal_dpo",
    "cyclip",
    "ddpo",
    "dpo",
    "hacl",
    "halva",
    "info_nce",
    "info_nce_chunked",
    "info_nce_floor",
    "mdpo",
    "next_token",
    "phrase_sums",
    "sequence_logps",
    "siglip",
    "symmetric_info_nce",
    "symmetric_info_nce_chunked",
    "tdpo",
    "token_kl",
    "token_logps",
    "triplet",
]
