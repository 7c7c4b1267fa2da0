"""A forecast as Markdown: the same tables and sentences as on the screen."""

from __future__ import annotations

from collections.abc import Iterator

from bsharp.reporting.cells import plain_text
from bsharp.reporting.forecast.along import alpha_grid, limits_grid, tilt_grid
from bsharp.reporting.forecast.figures import NORMALISATIONS, Forecast, by_likelihood, require_forecast
from bsharp.reporting.forecast.grids import (
    Grid,
    base_grid,
    families_grid,
    likelihood_grid,
    regimes_grid,
    rules_grid,
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
from bsharp.reporting.markdown import escape

__all__ = ["forecast_markdown"]


def forecast_markdown(forecast: Forecast) -> str:
    """The forecast as a Markdown file, the recommendation first, all families and all values of α.

    Names from files and models are literal: nothing in them is Markdown or HTML. Raises ValueError, one line, for what
    is no forecast or lacks a key.
    """
    require_forecast(forecast)
    try:
        return "\n".join(_lines(forecast))
    except KeyError as error:
        raise ValueError(f"the forecast lacks the key {error}; make the forecast again") from None


def _lines(forecast: Forecast) -> Iterator[str]:
    word, sentence = advice(forecast)
    yield from ("# Forecast", "", f"**{escape(word)}**: {escape(sentence)}", "")
    yield from (f"From base samples only, before any training: {escape(rests_on(forecast))}", "")
    for _, warning in warnings(forecast):
        yield from (f"> {escape(warning)}", "")
    yield from _section(base_grid(forecast), base_sentence(forecast), no_correct_sentence(forecast))
    yield from _section(likelihood_grid(forecast), *likelihood_sentences(forecast))
    yield from _section(regimes_grid(forecast))
    for name in NORMALISATIONS:
        if by_likelihood(forecast, "tempered", name):
            grid = alpha_grid(forecast, name, rows=len(forecast["tempered"][name]["alpha"]))
            yield from _section(grid, cut_sentence(forecast, name))
    yield from _section(tilt_grid(forecast), tilt_sentence(forecast))
    yield from _section(limits_grid(forecast), *limit_sentences(forecast))
    if forecast["families"]:
        yield from _section(families_grid(forecast))
    yield from _section(rules_grid(forecast))
    yield from ("## What base samples cannot know", "")
    yield from (f"- {escape(plain_text(item))}" for item in forecast["recommendation"].get("cannot_know") or [])
    yield ""


def _section(grid: Grid, *sentences: str) -> Iterator[str]:
    yield from (f"## {escape(grid.title)}", "")
    for sentence in sentences:
        yield from (escape(sentence), "")
    columns = grid.columns()
    yield "| " + " | ".join(escape(" ".join(grid.headers[at]).strip()) for at in columns) + " |"
    yield "|" + "".join("--:|" if at in grid.numeric else "---|" for at in columns)
    for row in grid.rows:
        yield "| " + " | ".join(escape(row[at]) for at in columns) + " |"
    yield from ("", escape(grid.caption), "")
    for whose, note in grid.notes:
        yield f"- {escape(whose)}: {escape(note)}"
    if grid.notes:
        yield ""
