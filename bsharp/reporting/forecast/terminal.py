"""A forecast on the screen (rich): figures first, the recommendation at the end, next to the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bsharp.reporting.cells import plain_text
from bsharp.reporting.forecast.along import alpha_grid, limits_grid, tilt_grid
from bsharp.reporting.forecast.figures import NORMALISATIONS, Forecast, by_likelihood, require_forecast
from bsharp.reporting.forecast.grids import (
    NOT_RELIABLE,
    Grid,
    families_grid,
    likelihood_grid,
    regimes_grid,
    verdict_word,
)
from bsharp.reporting.forecast.words import (
    advice,
    base_sentence,
    cut_sentence,
    likelihood_sentences,
    limit_sentences,
    no_correct_sentence,
    rests_on,
    tilt_sentence,
    warnings,
)
from bsharp.reporting.grid import DEFAULT_WIDTH, empty_table, fits, print_view

__all__ = ["forecast_view", "print_forecast"]

WORDS = 26
"""Characters after which words go on in the next line where a table is too wide."""
_VERDICT_STYLES = {"holds": "green", "does not hold": "dim", "cannot tell": "dim"}


def print_forecast(forecast: Forecast, console: Console | None = None, families: bool = False) -> None:
    """Print `forecast_view` as `print_view` does. Raises ValueError, one line, for what is no forecast."""
    print_view(lambda width: forecast_view(forecast, width, families), console)


def forecast_view(forecast: Forecast, width: int = DEFAULT_WIDTH, families: bool = False) -> RenderableType:
    """Base, likelihood against correctness, regimes, α, tilt, limits, families on request, the recommendation.

    Tables that are wider than `width` put intervals on a line of their own; nothing is cut. Raises ValueError, one line,
    for what is no forecast or lacks a key.
    """
    require_forecast(forecast)
    try:
        return Group(*_parts(forecast, width, families))
    except KeyError as error:
        raise ValueError(f"the forecast lacks the key {error}; make the forecast again") from None


def _parts(forecast: Forecast, width: int, families: bool) -> Iterator[RenderableType]:
    yield Text("Forecast from the base's own samples, before any training", style="bold")
    yield Text(rests_on(forecast), style="dim")
    for serious, warning in warnings(forecast):
        yield Text(f"! {warning}", style="yellow" if serious else "dim")
    yield ""
    yield Text(base_sentence(forecast))
    yield Text(no_correct_sentence(forecast))
    yield from _table(likelihood_grid(forecast), width, *likelihood_sentences(forecast))
    yield from _table(regimes_grid(forecast), width)
    for name in NORMALISATIONS:
        if by_likelihood(forecast, "tempered", name):
            yield from _table(alpha_grid(forecast, name), width, cut_sentence(forecast, name))
    yield from _table(tilt_grid(forecast), width, tilt_sentence(forecast))
    yield from _table(limits_grid(forecast), width, *limit_sentences(forecast))
    if families and forecast["families"]:
        yield from _table(families_grid(forecast), width)
    yield from _recommendation(forecast, width)


def _table(grid: Grid, width: int, *sentences: str) -> Iterator[RenderableType]:
    """Title, sentences, the table, its caption and notes."""
    yield ""
    yield Text(grid.title, style="bold")
    for sentence in sentences:
        yield Text(sentence)
    yield from _tables(grid, width)
    yield Text(grid.caption, style="dim")
    for whose, note in grid.notes:
        yield Text(f"- {whose}: {note}", style="dim")


def _tables(grid: Grid, width: int) -> Iterator[Table]:
    """The grid as one table; where it is too wide with intervals below their figures, then in pieces that repeat the names."""
    columns = grid.columns()
    whole = _build(grid, columns, stacked=False)
    if fits(whole, width):
        yield whole
        return
    kept = columns[:1]
    for at in columns[1:]:
        if len(kept) > 1 and not fits(_build(grid, [*kept, at], stacked=True), width):
            yield _build(grid, kept, stacked=True)
            kept = columns[:1]
        kept = [*kept, at]
    yield _build(grid, kept, stacked=True)


def _build(grid: Grid, columns: Sequence[int], stacked: bool) -> Table:
    table = empty_table("")
    table.title = None
    texts = [[_stacked(row[at], at) if stacked else row[at] for at in columns] for row in grid.rows]
    for place, at in enumerate(columns):
        title, unit = (_stacked(text, at=1) if stacked else text for text in grid.headers[at])
        lines = [line for row in texts for line in row[place].split("\n")]
        # A figure is never parted; words, in headers and cells, go on in the next line.
        widest = max(map(len, lines), default=1) if at in grid.numeric else min(max(map(len, lines), default=1), WORDS)
        heads = [
            *title.split(),
            *(w for part in unit.split("\n") for w in ([part] if part.startswith("[") else part.split())),
        ]
        widest = max([widest, *map(len, heads)])
        table.add_column(
            Text(f"{title}\n{unit}" if unit else title),
            justify="right" if at in grid.numeric else "left",
            overflow="fold",
            width=widest if stacked else None,
            no_wrap=not stacked,
        )
    for place, row in enumerate(texts):
        table.add_row(*map(Text, row), style="dim" if place in grid.faint else "")
    return table


def _stacked(cell: str, at: int) -> str:
    """Intervals below their figure, the knobs of a regime below its name."""
    if at == 0:
        return cell if cell.startswith("(") else cell.replace("(", "\n(", 1)
    return cell.replace(" ", "\n") if cell == NOT_RELIABLE else cell.replace(" [", "\n[")


def _recommendation(forecast: Forecast, width: int) -> Iterator[RenderableType]:
    word, sentence = advice(forecast)
    yield ""
    yield Panel(
        Text(sentence), title=Text(f" {word} ", style="bold"), title_align="left", width=min(width, DEFAULT_WIDTH)
    )
    rules = forecast["recommendation"].get("rules") or []
    if rules:
        yield Text("It rests on", style="bold")
    for rule in rules:
        verdict = verdict_word(rule.get("holds"))
        line = Text(f"{verdict}: ", style=_VERDICT_STYLES[verdict])
        line.append(plain_text(rule.get("rule", "")), style="default")
        yield Padding(line, (0, 0, 0, 2))
        said = "; ".join(text for key in ("figures", "source") if (text := plain_text(rule.get(key) or "")))
        yield Padding(Text(said, style="dim"), (0, 0, 0, 4))
    unknown = forecast["recommendation"].get("cannot_know") or []
    if unknown:
        yield Text("What base samples cannot know", style="bold")
    for item in unknown:
        yield Padding(Text(f"- {plain_text(item)}"), (0, 0, 0, 2))
