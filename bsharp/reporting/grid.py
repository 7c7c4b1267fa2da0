"""Columns and rows as tables for the screen that fit a width."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bsharp.reporting.cells import BASE, Column, Row, plain_text

__all__ = ["DEFAULT_WIDTH", "empty_table", "fit", "fits", "print_view"]

DEFAULT_WIDTH = 120
_TEXT_COLUMNS = ("stability", "steps")
_WORD_STYLES = {
    "stable": "green",
    "noisy": "yellow",
    "declining": "yellow",
    "collapsed": "bold red",
    "no signal": "dim",
}


def print_view(view: Callable[[int], RenderableType], console: Console | None) -> None:
    """Print what `view` makes for the console's width.

    Where the output is not a terminal it is plain text, without colour or trailing blanks, and 120 characters wide
    unless COLUMNS says otherwise.
    """
    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=DEFAULT_WIDTH)
    shown = view(console.width)
    if console.is_terminal:
        console.print(shown)
        return
    with console.capture() as capture:
        console.print(shown)
    console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def empty_table(title: str) -> Table:
    """A table in the common style."""
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _build(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    table = empty_table(title)
    table.add_column("", no_wrap=True, overflow="ellipsis")
    for column in columns:
        header = f"{column.title}\n{column.unit}" if column.unit else column.title
        left = column.title in _TEXT_COLUMNS
        table.add_column(Text(header), justify="left" if left else "right", no_wrap=True)
    for row in rows:
        cells = [column.cell(row) for column in columns]
        styled = [Text(cell, style=_WORD_STYLES.get(cell, "")) for cell in cells]
        table.add_row(Text(plain_text(row.name), style="dim" if row.name == BASE else ""), *styled)
    return table


def fits(table: Table, width: int) -> bool:
    """Whether no cell would have to be cut or wrapped."""
    title, table.title = table.title, None  # a long title may wrap, it must not cost a column
    ruler = Console(width=10_000, file=io.StringIO())
    fits = Measurement.get(ruler, ruler.options, table).maximum <= width
    table.title = title
    return fits


def fit(title: str, columns: Sequence[Column], rows: Sequence[Row], width: int) -> Table:
    """The table with as many columns as fit: the least needed give way, then the intervals, rather than wrap."""
    kept = list(columns)
    while not fits(_build(title, kept, rows), width):
        last = max(kept, key=lambda column: column.drop)
        if not last.drop:
            kept = [column.narrow or column for column in kept]
            break
        kept.remove(last)
    return _build(title, kept, rows)
