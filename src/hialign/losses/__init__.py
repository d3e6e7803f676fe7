"""Losses: functions of tensors that return a tensor, and know neither model, rank nor config.

This folder needs nothing but torch (2.2 or newer), so it can be copied into another project as it is.
"""

from .contrastive import info_nce
from .crossmodal import chip, cross_modal_dpo, mdpo
from .head import chunked_next_token, chunked_token_kl, chunked_token_logps
from .phrase import changed_token_weights, halva, phrase_sums
from .preference import PreferenceLoss, ddpo, dpo, tdpo
from .token import count_targets, next_token, sequence_logps, token_kl, token_logps

__all__ = [
    "PreferenceLoss",
    "changed_token_weights",
    "chip",
    "chunked_next_token",
    "chunked_token_kl",
    "chunked_token_logps",
    "count_targets",
    "cross_modal_dpo",
    "ddpo",
    "dpo",
    "halva",
    "info_nce",
    "mdpo",
    "next_token",
    "phrase_sums",
    "sequence_logps",
    "tdpo",
    "token_kl",
    "token_logps",
]
