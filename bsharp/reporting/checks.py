"""The statements of the theory with both sides, for the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

__all__ = ["print_checks"]

Row = Mapping[str, Any]
_BETWEEN = {"equality": "=", "inequality": "≤", "limit": "→"}


def print_checks(rows: Sequence[Row], console: Console, worlds: bool = False) -> None:
    """Every statement with both sides, the error and the bound it must keep: in its tightest world, or in all `worlds`.

    A row holds `statement`, `equation`, `world`, `left`, `right`, `error`, `bound`, `kind` and `holds`; one that does not hold
    is always printed. The tightest world is the one whose error comes closest to the bound.
    """

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    statements: dict[str, list[Row]] = {}
    for row in rows:
        statements.setdefault(row["statement"], []).append(row)
    where = "in every world" if worlds else "in the world that comes closest to it"
    line(f"Both sides, then the error and the bound it must keep, {where}.", style="dim")
    for name, here in statements.items():
        tightest = max(here, key=lambda row: row["error"] / row["bound"] if row["bound"] else row["error"])
        line(f"{name:<4}{here[0]['equation']}", style="bold")
        for row in here if worlds else [row for row in here if row is tightest or not row["holds"]]:
            count = "" if worlds or len(here) == 1 else f" (1 of {len(here)})"
            if row["kind"] == "inequality" and row["holds"]:
                margin = f"by {row['right'] - row['left']:.1e}"
            else:
                margin = f"{row['error']:.1e} {'<' if row['holds'] else '>'} {row['bound']:.0e}"
            line(
                f"    {'✓' if row['holds'] else '✗'} {row['left']:.6g} {_BETWEEN[row['kind']]} {row['right']:.6g}   "
                f"{margin}   {row['world']}{count}",
                style="" if row["holds"] else "bold red",
            )
    failed = sum(not row["holds"] for row in rows)
    verdict = "all hold" if not failed else f"{failed} do not hold"
    line(f"{len(statements)} statements, {len(rows)} checks: {verdict}")
