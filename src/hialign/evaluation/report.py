"""Scores as a file and as a table."""

from __future__ import annotations

from collections.abc import Mapping

Scores = Mapping[str, Mapping[str, float]]


def table(scores: Scores) -> str:
    """One line a number, under its benchmark."""
    width = max(len(name) for numbers in scores.values() for name in numbers)
    lines = []
    for benchmark, numbers in scores.items():
        lines.append(benchmark)
        lines += [f"  {name:<{width}}  {_text(value)}" for name, value in numbers.items()]
    return "\n".join(lines)


def _text(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1 and value.is_integer() else f"{value:.4f}"
