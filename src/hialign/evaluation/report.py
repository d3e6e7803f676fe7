"""Scores as a file and as a table."""

from __future__ import annotations

from collections.abc import Mapping

Scores = Mapping[str, Mapping[str, float | str]]


def table(scores: Scores) -> str:
    """One line a number, or what is said in its place, under its benchmark."""
    width = max(len(name) for numbers in scores.values() for name in numbers)
    lines = []
    for benchmark, numbers in scores.items():
        lines.append(benchmark)
        lines += [f"  {name:<{width}}  {_text(value)}" for name, value in numbers.items()]
    return "\n".join(lines)


def side_by_side(columns: Mapping[str, Mapping[str, float]], rows: Mapping[str, str]) -> str:
    """A markdown table, aligned to be read as it is: a column each of ``columns``, a line for each key of ``rows``.

    ``rows`` gives the names of its lines; numbers have three digits behind the point, or none above 10.
    """
    cells = [["", *columns]]
    for key, name in rows.items():
        cells.append(
            [name, *(f"{numbers[key]:.{0 if abs(numbers[key]) >= 10 else 3}f}" for numbers in columns.values())]
        )
    first, *others = (max(len(row[i]) for row in cells) for i in range(len(cells[0])))
    lines = [
        "| " + " | ".join([row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))]) + " |"
        for row in cells
    ]
    rule = "|" + "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 1 and value.is_integer() else f"{value:.4f}"
