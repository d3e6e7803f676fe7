"""Two answers behind one prompt in one row: image and prompt are read once, and neither answer sees the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hialign.batch import Tokens

PROMPT, CHOSEN, REJECTED, PADDING = range(4)


@dataclass(frozen=True)
class Shared:
    """Rows of prompt, chosen answer and rejected answer, one behind the other, then padding."""

    ids: Tensor  # (batch, length)
    segments: Tensor  # (batch, length): PROMPT, CHOSEN, REJECTED or PADDING
    positions: Tensor  # (batch, length): both answers go on where the prompt ends
    chosen: Tensor  # (batch, 1 + longest answer): the places whose states predict the answer's tokens, and its last
    rejected: Tensor


def share(chosen: Tokens, rejected: Tokens, prompt_lengths: Tensor) -> Shared:
    """The rows of both sides with what they share written once; the first ``prompt_lengths`` ids of both are the same.

    Source: the ordinary causal model, on each side by itself; what is saved is the prompt's second reading.
    """
    ends = [tokens.mask.sum(dim=1) for tokens in (chosen, rejected)]
    lengths = [end - prompt_lengths for end in ends]
    rows = [
        torch.cat([chosen.ids[row, : ends[0][row]], rejected.ids[row, prompt_lengths[row] : ends[1][row]]])
        for row in range(len(chosen.ids))
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ends_with = torch.stack([row[-1] for row in rows]).unsqueeze(1)  # pads: zero might be the image's placeholder
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    prompt, first, second = (column.unsqueeze(1) for column in (prompt_lengths, *lengths))
    behind = place >= prompt + first  # the rejected answer, and padding
    segments = torch.where(place < prompt, PROMPT, torch.where(behind, REJECTED, CHOSEN))
    segments = segments.masked_fill(place >= prompt + first + second, PADDING)
    return Shared(
        ids=torch.where(segments == PADDING, ends_with, ids),
        segments=segments,
        positions=torch.where(behind, place - first, place),
        chosen=_places(prompt, torch.zeros_like(first), first),
        rejected=_places(prompt, first, second),
    )


def _places(prompt: Tensor, skipped: Tensor, lengths: Tensor) -> Tensor:
    """The last place of the prompt, then those of the answer; rows that are shorter stay at their last one."""
    steps = torch.arange(int(lengths.max()) + 1, device=lengths.device)
    steps = torch.minimum(steps, lengths)  # (batch, longest + 1)
    return prompt - 1 + steps + skipped * (steps > 0)


def shared_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, 1, length, length), to be added to attention scores: 0 where a place sees another, else very low.

    A place sees what lies before it of the prompt and of its own answer. Padding sees itself: a row of a softmax with
    nothing to see is NaN. Additive, since a mask of truth values is read differently by the attention kernels.
    """
    place = torch.arange(segments.shape[1], device=segments.device)
    before = place[None, :] <= place[:, None]
    same = segments[:, None, :] == segments[:, :, None]
    sees = before & (same | (segments == PROMPT)[:, None, :]) & (segments != PADDING)[:, None, :]
    sees |= torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    low = torch.finfo(dtype).min
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, low).unsqueeze(1)
