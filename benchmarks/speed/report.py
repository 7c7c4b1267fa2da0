"""Medians and spreads of repeated measurements, ratios of medians, and Markdown tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["MIB", "interval", "mebibytes", "median", "ratio", "table"]

MIB = 2**20


def median(values: Sequence[float]) -> float:
    """The middle value, of an even number the mean of the two in the middle; NaN of none."""
    return statistics.median(values) if values else float("nan")


def interval(values: Sequence[float], digits: int = 3) -> str:
    """`median (lowest–highest)` to so many significant digits; – of none."""
    if not values:
        return "–"
    parts = [number(value, digits) for value in (median(values), min(values), max(values))]
    return parts[0] if len(values) == 1 else f"{parts[0]} ({parts[1]}–{parts[2]})"


def number(value: float, digits: int = 3) -> str:
    """`value` to so many significant digits, without an exponent."""
    if value != value:
        return "–"
    if value == 0:
        return "0"
    before = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - before)}f}"


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median of `slower` over median of `faster`: how many times as fast the second is; NaN where one is empty."""
    return median(slower) / median(faster) if slower and faster else float("nan")


def mebibytes(values: Sequence[float]) -> str:
    return f"{max(values) / MIB:,.0f}" if values else "–"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; figures are written as they are given."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
