"""The task level: text predicted from images."""

from __future__ import annotations

from hialign.batch import Batch, LanguageBatch
from hialign.losses import count_targets, next_token
from hialign.objectives.result import Parts, Result


class NextToken:
    """Mean cross-entropy of the caption's or answer's tokens given the image and the tokens before.

    The mean runs over all target tokens of a step, whatever micro-batch or rank they fall on.

    Source: Liu et al. 2023, arXiv:2304.08485, eq. 1; code haotian-liu/LLaVA@c121f04.
    Differs: the released code averages micro-batch means, so that a short caption weighs more in a small micro-batch.
    """

    batch_type: type[Batch] = LanguageBatch
    whole_batch = False

    def __call__(self, parts: Parts, batch: Batch) -> Result:
        """The summed cross-entropy and the number of target tokens."""
        assert isinstance(batch, LanguageBatch)
        logits = parts.next_token_logits(batch.pixel_values, batch.text)
        return Result(next_token(logits, batch.text.labels, reduction="sum"), count_targets(batch.text.labels))
