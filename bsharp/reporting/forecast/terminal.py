"""A forecast on the screen (rich): figures first, the recommendation at the end, next to the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from functools import cache
from itertools import combinations, pairwise

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bsharp.reporting.cells import plain_text
from bsharp.reporting.forecast.along import alpha_grid, limits_grid, tilt_grid
from bsharp.reporting.forecast.figures import NORMALISATIONS, Forecast, by_likelihood, require_forecast
from bsharp.reporting.forecast.grids import (
    LOWER_BOUND,
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
from bsharp.reporting.grid import DEFAULT_WIDTH, empty_table, print_view

__all__ = ["forecast_view", "print_forecast"]

WORDS = 26
"""Characters after which words go on in the next line where a table is too wide."""
CONTINUED = "(continued)"
"""What stands below the title of the first column where a table goes on in a further block."""
_VERDICT_STYLES = {"holds": "green", "does not hold": "dim", "cannot tell": "dim"}


class Parting(Enum):
    """What is put into several lines to save width."""

    NONE = "nothing"
    NAMES = "names, flags and headers"
    INTERVALS = "intervals as well"


def print_forecast(forecast: Forecast, console: Console | None = None, families: bool = False) -> None:
    """Print `forecast_view` as `print_view` does. Raises ValueError, one line, for what is no forecast."""
    print_view(lambda width: forecast_view(forecast, width, families), console)


def forecast_view(forecast: Forecast, width: int = DEFAULT_WIDTH, families: bool = False) -> RenderableType:
    """Base, likelihood against correctness, regimes, α, tilt, limits, families on request, the recommendation.

    Tables that are wider than `width` part names, then intervals, into lines, then go on in further blocks; nothing is
    cut. Raises ValueError, one line, for what is no forecast or lacks a key.
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


def _tables(grid: Grid, width: int) -> Iterator[RenderableType]:
    """The grid in as few blocks as fit, each with the names of the rows; what fits in one line is not put into two."""
    first, *rest = grid.columns()
    for pieces in range(1, len(rest) + 1):
        for parting in Parting:
            ends = _balanced(grid, pieces, parting, width)
            if ends or (pieces == len(rest) and parting is Parting.INTERVALS):  # the last resort: the screen wraps
                ends = ends or list(range(len(rest) + 1))
                for place, (start, end) in enumerate(pairwise(ends)):
                    if place:
                        yield ""
                    yield _build(grid, [first, *rest[start:end]], parting, continued=place > 0)
                return


def _balanced(grid: Grid, pieces: int, parting: Parting, width: int) -> list[int]:
    """Where to part the columns for the narrowest widest block; empty where no parting into so many blocks fits."""
    first, *rest = grid.columns()

    @cache
    def wide(start: int, end: int) -> int:
        ruler = Console(width=10_000)
        block = _build(grid, [first, *rest[start:end]], parting, continued=start > 0)
        return Measurement.get(ruler, ruler.options, block).maximum

    found = [[0, *cuts, len(rest)] for cuts in combinations(range(1, len(rest)), pieces - 1)]
    narrowest = min(found, key=lambda ends: max(wide(*block) for block in pairwise(ends)))
    return narrowest if max(wide(*block) for block in pairwise(narrowest)) <= width else []


def _build(grid: Grid, columns: Sequence[int], parting: Parting, continued: bool = False) -> Table:
    table = empty_table("")
    table.title = None
    texts = [[_parted(row[at], at, parting) for at in columns] for row in grid.rows]
    for place, at in enumerate(columns):
        title, unit = (_parted(text, 1, parting) for text in grid.headers[at])
        if continued and place == 0:
            unit = CONTINUED
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
            width=None if parting is Parting.NONE else widest,
            no_wrap=parting is Parting.NONE,
        )
    for place, row in enumerate(texts):
        table.add_row(*map(Text, row), style="dim" if place in grid.faint else "")
    return table


def _parted(cell: str, at: int, parting: Parting) -> str:
    """The knobs of a regime below its name and flags in two lines; then intervals below their figure too."""
    if parting is Parting.NONE:
        return cell
    if at == 0:
        return cell if cell.startswith("(") else cell.replace("(", "\n(", 1)
    if cell in (NOT_RELIABLE, LOWER_BOUND):
        return "\n".join(cell.rsplit(" ", 1))
    return cell.replace(" [", "\n[") if parting is Parting.INTERVALS else cell


def _recommendation(forecast: Forecast, width: int) -> Iterator[RenderableType]:
    """What it rests on and what it cannot know, then the recommendation itself, the last thing on the screen."""
    rules = forecast["recommendation"].get("rules") or []
    if rules:
        yield ""
        yield Text("What the recommendation rests on", style="bold")
    for rule in rules:
        verdict = verdict_word(rule.get("holds"))
        line = Text(f"{verdict}: ", style=_VERDICT_STYLES[verdict])
        line.append(plain_text(rule.get("rule", "")), style="default")
        yield Padding(line, (0, 0, 0, 2))
        said = "; ".join(text for key in ("figures", "source") if (text := plain_text(rule.get(key) or "")))
        yield Padding(Text(said, style="dim"), (0, 0, 0, 4))
    unknown = forecast["recommendation"].get("cannot_know") or []
    if unknown:
        yield ""
        yield Text("What base samples cannot know", style="bold")
    for item in unknown:
        yield Padding(Text(f"- {plain_text(item)}"), (0, 0, 0, 2))
    word, sentence = advice(forecast)
    yield ""
    yield Panel(
        Text(sentence), title=Text(f" {word} ", style="bold"), title_align="left", width=min(width, DEFAULT_WIDTH)
    )
