"""Scores as a file and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Numbers = Mapping[str, float | None]
Scores = Mapping[str, Mapping[str, float | str | None]]
LOW, HIGH = "/low", "/high"  # behind a number's name: the ends of its 95 % interval
NO_NUMBER = "-"
WHY_NO_NUMBER = f"{NO_NUMBER}: the score was no finite number (null in scores.json)"


def table(scores: Scores) -> str:
    """One line a number, or what is said in its place, under its benchmark; behind it its interval, if there is one."""
    width = max(len(name) for numbers in scores.values() for name in _names(numbers))
    lines = []
    for benchmark, numbers in scores.items():
        lines.append(benchmark)
        lines += [
            f"  {name:<{width}}  {_text(numbers[name])}{_interval(numbers, name, digits=3)}" for name in _names(numbers)
        ]
    return "\n".join(lines)


def side_by_side(columns: Mapping[str, Numbers], rows: Mapping[str, str]) -> str:
    """A markdown table, aligned to be read as it is: a column each of ``columns``, a line for each key of ``rows``.

    ``rows`` gives the names of its lines; numbers have three digits behind the point, or none above 10, and their
    intervals two. A number that is None is a dash, which a line under the table explains; a ValueError names one that
    a column lacks.
    """
    cells = [["", *columns]]
    for key, name in rows.items():
        cells.append([name, *(_cell(column, numbers, key) for column, numbers in columns.items())])
    first, *others = (max(len(row[i]) for row in cells) for i in range(len(cells[0])))
    lines = [
        "| " + " | ".join([row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))]) + " |"
        for row in cells
    ]
    rule = "|" + "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)]) + "|"
    why = ["", WHY_NO_NUMBER] if any(NO_NUMBER in row[1:] for row in cells) else []
    return "\n".join([lines[0], rule, *lines[1:], *why])


def row(benchmark: str, system: str, numbers: Numbers) -> str:
    """A markdown table of one line: the system and its numbers by the official rules, intervals behind them."""
    names = [name for name in _names(numbers) if not name.endswith("_strict")]
    cells = [f"{_text(numbers[name])}{_interval(numbers, name, digits=3)}" for name in names]
    lines = ([benchmark, *names], ["---", *["---:"] * len(names)], [system, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(column: str, numbers: Numbers, key: str) -> str:
    if key not in numbers:
        raise ValueError(f"{column}: there is no score {key}; it has {', '.join(numbers) or 'none'}")
    value = numbers[key]
    if value is None:
        return NO_NUMBER
    return f"{value:.{0 if abs(value) >= 10 else 3}f}{_interval(numbers, key)}"


def _interval(numbers: Mapping[str, Any], name: str, *, digits: int = 2) -> str:
    low, high = numbers.get(f"{name}{LOW}"), numbers.get(f"{name}{HIGH}")
    return "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"


def _names(numbers: Mapping[str, Any]) -> list[str]:
    """All but the ends of intervals."""
    ends = {f"{name}{end}" for name in numbers for end in (LOW, HIGH)}
    return [name for name in numbers if name not in ends]


def _text(value: float | str | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 1 and value.is_integer() else f"{value:.4f}"
