"""Losses on a model: ``objective(parts, batch)`` gives a sum, its weight and numbers to log."""

from hialign.objectives.contrastive import Contrastive, Hacl, check_pairs
from hialign.objectives.language import NextToken
from hialign.objectives.preference import Halva, Preference
from hialign.objectives.result import Objective, Parts, Result

__all__ = ["Contrastive", "Hacl", "Halva", "NextToken", "Objective", "Parts", "Preference", "Result", "check_pairs"]
