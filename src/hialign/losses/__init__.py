"""Losses: functions of tensors that return a tensor, and know neither model, rank nor config.

This folder needs nothing but torch (2.2 or newer), so it can be copied into another project as it is.
"""

from .contrastive import hacl, info_nce, symmetric_info_nce
from .token import count_targets, next_token

__all__ = ["count_targets", "hacl", "info_nce", "next_token", "symmetric_info_nce"]
