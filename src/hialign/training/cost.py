"""What training costs, as arithmetic on counts and shapes: no model is built or run here."""

from __future__ import annotations

DISK_RATE = 1e9  # bytes a second: of one good disk, or of a shared one under load


def feature_bytes(images: int, tokens: int, width: int, bytes_each: int = 2) -> int:
    """Bytes of a frozen tower's features, ``tokens`` of ``width`` numbers for each image."""
    return images * tokens * width * bytes_each


def reference_bytes(answers: int, tokens: float, width: int, bytes_each: int = 2) -> int:
    """Bytes of a reference's log-probability (float32) and last hidden state at each of an answer's ``tokens``.

    ``width`` 0 is of log-probabilities alone, which serve a loss without divergences.
    """
    return round(answers * tokens * (width * bytes_each + 4))


def cache_pays(
    num_bytes: int,
    forward_seconds: float,
    epochs: float,
    *,
    disk_rate: float = DISK_RATE,
    free_bytes: int | None = None,
) -> tuple[bool, str]:
    """Whether a cache saves time, and the sentence that says why.

    The first reading of the data costs the same forward passes with a cache as without, so that ``epochs`` - 1 of them
    are saved, for writing the cache once and reading it in every epoch.

    Args:
        num_bytes: of the cache, over all records.
        forward_seconds: what the forward passes take that an epoch spends and the cache would hold.
        epochs: how often training reads each record.
        disk_rate: bytes a second, to and from the disk.
        free_bytes: what the disk has left; None where that is not known.
    """
    _check(num_bytes=num_bytes, forward_seconds=forward_seconds, epochs=epochs)
    if not disk_rate > 0:
        raise ValueError(f"cache_pays: disk_rate={disk_rate}, wanted bytes a second, above 0")
    size = f"{num_bytes / 1e9:,.1f} GB"
    if epochs <= 1:
        return False, f"saves nothing: each record is read once ({epochs:g} epochs), and to fill it costs that reading"
    if free_bytes is not None and num_bytes > free_bytes:
        return False, f"does not fit: it takes {size}, and the disk has {free_bytes / 1e9:,.1f} GB left"
    saved, spent = (epochs - 1) * forward_seconds, (epochs + 1) * num_bytes / disk_rate
    sums = f"saves {saved:,.0f} s of forward passes in {epochs:g} epochs, for {spent:,.0f} s of disk ({size})"
    return saved > spent, sums


def _check(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"cache_pays: {name}={number}, wanted 0 or more")
