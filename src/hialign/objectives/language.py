"""The task level: text predicted from images."""

from __future__ import annotations

from collections.abc import Mapping

from hialign.batch import Batch, LanguageBatch
from hialign.losses import count_targets, next_token
from hialign.objectives.result import Parts, Result


class NextToken:
    """Mean cross-entropy of the caption's or answer's tokens given the image and the tokens before.

    ``mean="tokens"`` runs over all target tokens of a step, whatever micro-batch or rank they fall on.
    ``mean="micro_batch"`` is the mean of the micro-batches' means, so that how a batch is split changes the loss.

    Source: Liu et al. 2023, arXiv:2304.08485, eq. 1; code haotian-liu/LLaVA@c121f04, which does the latter.
    Differs: the former is the default.
    """

    batch_type: type[Batch] | Mapping[str, type[Batch]] = LanguageBatch
    whole_batch = False
    bounded = False

    def __init__(self, mean: str = "tokens") -> None:
        if mean not in ("tokens", "micro_batch"):
            raise ValueError(f"mean: got {mean!r}, wanted 'tokens' or 'micro_batch'")
        self.mean = mean

    def __call__(self, parts: Parts, batch: Batch) -> Result:
        """The summed cross-entropy and the number of target tokens, or their ratio and one."""
        assert isinstance(batch, LanguageBatch)
        logits = parts.next_token_logits(batch.pixel_values, batch.text)
        loss_sum = next_token(logits, batch.text.labels, reduction="sum")
        targets = count_targets(batch.text.labels)
        if self.mean == "tokens":
            return Result(loss_sum, targets)
        return Result(loss_sum / targets.clamp(min=1), (targets > 0).to(loss_sum.dtype))
