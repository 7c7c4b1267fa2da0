"""The comparison by problem family: one matrix per role, and one table per family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from bsharp.reporting.cells import (
    BASE,
    Results,
    Row,
    comparable,
    family_columns,
    family_mode,
    largest_k,
    number,
    percent,
    plain_text,
    role_title,
    roles,
    rows,
)
from bsharp.reporting.grid import DEFAULT_WIDTH, empty_table, fit, fits

__all__ = ["families_tables", "family_cell", "roles_tables"]


def roles_tables(results: Results, width: int = DEFAULT_WIDTH) -> list[Table]:
    """Per role one table: families × models, accuracy of the base and of each regime with its change in points.

    Where not all regimes fit beside each other the table is continued below with the remaining ones.
    """
    return [table for role in roles(results) for table in _role_tables(results, role, width)]


def families_tables(results: Results, width: int = DEFAULT_WIDTH) -> list[Table]:
    """Per family one table: models × accuracy, change, greedy, pass@n, maj@n, length and KL, grouped by role."""
    shown = family_columns(largest_k(results["base"]))
    tables = []
    for role in roles(results):
        for name, family in results["base"]["families"].items():
            if family["role"] == role:
                mode = f", mode {family_mode(family)}" if family_mode(family) else ""
                title = f"{plain_text(name)} ({plain_text(role)}{mode}): {family['problems']} problems"
                models = [Row(row.name, row.summary["families"][name]) for row in rows(results)]
                tables.append(fit(title, shown, models, width))
    return tables


def _role_tables(results: Results, role: str, width: int) -> Iterator[Table]:
    title = role_title(role)
    families = [name for name, family in results["base"]["families"].items() if family["role"] == role]
    chunk: list[str] = []
    for name in results["regimes"]:
        if chunk and not fits(_role_table(results, title, families, [*chunk, name]), width):
            yield _role_table(results, title, families, chunk)
            chunk = []
        chunk.append(name)
    yield _role_table(results, title, families, chunk)


def _role_table(results: Results, title: str, families: Sequence[str], regimes: Sequence[str]) -> Table:
    table = empty_table(title)
    table.add_column(Text("% (Δ points)"), no_wrap=True, overflow="ellipsis")
    modes = any(family_mode(results["base"]["families"][family]) for family in families)
    if modes:
        table.add_column("mode", no_wrap=True)
    for name in (BASE, *regimes):
        table.add_column(Text(plain_text(name)), justify="right", no_wrap=True, overflow="ellipsis")
    for family in families:
        cells = [family_mode(results["base"]["families"][family])] if modes else []
        cells += [percent(results["base"]["families"][family]["accuracy"])]
        starred = comparable(results)
        cells += [family_cell(results["regimes"][name]["families"][family], starred) for name in regimes]
        table.add_row(Text(plain_text(family)), *(Text(cell) for cell in cells))
    return table


def family_cell(family: Mapping[str, Any], starred: bool = True) -> str:
    """Accuracy with its change and, where it is `starred`, a star if that is clear."""
    delta = family["delta"]
    clear = starred and delta["low"] is not None and (delta["low"] > 0 or delta["high"] < 0)
    return f"{percent(family['accuracy'])} ({number(delta['estimate'], 100, signed=True)}){'*' if clear else ' '}"
