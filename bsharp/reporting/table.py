"""The comparison as a table: on the screen (rich) and as a picture. Reads a results object, nothing else.

Accuracies, pass@k and maj@k are printed in per cent, differences in points, lengths in tokens, the KL in nats per sequence,
the entropy in nats per token. Every name that a user or a model can choose is printed literally: no markup, no control
characters.
"""

from __future__ import annotations

import io
import re

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bsharp.reporting.cells import (
    Results,
    best_columns,
    best_rows,
    columns,
    comparable,
    plain_text,
    problems_title,
    require_results,
    rows,
    stability_text,
)
from bsharp.reporting.families import families_tables, roles_tables
from bsharp.reporting.grid import DEFAULT_WIDTH, fit, print_view
from bsharp.reporting.notes import STARS, notes

__all__ = ["print_results", "results_table", "results_view", "table_svg"]


def results_table(results: Results, width: int = DEFAULT_WIDTH) -> Table:
    """The base and each regime at its last checkpoint, at most `width` characters wide if two columns allow it."""
    return fit(f"{problems_title(results)}, last checkpoint", columns(results), rows(results), width)


def results_view(results: Results, width: int = DEFAULT_WIDTH, families: bool = False) -> RenderableType:
    """Everything that is shown at the end: tables, the figures behind the stability words, verdict and notes."""
    parts: list[RenderableType] = [results_table(results, width)]
    best = best_rows(results)
    if best:
        title = f"{problems_title(results)}, best checkpoint by validation"
        parts += ["", fit(title, best_columns(results), best, width)]
    if families:
        for table in roles_tables(results, width):
            parts += ["", table]
        parts += ["", Text(STARS, style="dim")] if comparable(results) else []
        for table in families_tables(results, width):
            parts += ["", table]
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, regime in results["regimes"].items():
        grid.add_row(Text(plain_text(name)), Text(stability_text(regime)))
    parts += ["", grid, "", Text(plain_text(results["verdict"]["sentence"]), style="bold"), ""]
    parts += [Text(note, style="dim") for note in notes(results, families)]
    return Group(*parts)


def print_results(results: Results, console: Console | None = None, families: bool = False) -> None:
    """Print `results_view` as `print_view` does. Raises ValueError, one line, for what is no results object."""
    require_results(results)
    try:
        print_view(lambda width: results_view(results, width, families), console)
    except KeyError as error:
        raise ValueError(f"results lack the key {error}; docs/results-schema.md lists the keys") from None


def table_svg(results: Results, width: int = DEFAULT_WIDTH, title: str = "bsharp compare") -> str:
    """The table of last checkpoints and the verdict as an SVG picture of a terminal, with no reference to the network."""
    require_results(results)
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(results_table(results, width))
    console.print()
    console.print(Text(plain_text(results["verdict"]["sentence"]), style="bold"))
    # rich names a web font; a monospace font of the reader's own machine serves as well.
    return re.sub(r"@font-face\s*\{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)
