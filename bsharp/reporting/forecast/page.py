"""`write_forecast_page`: a forecast → one self-contained page, made of the parts of the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bsharp.reporting.cells import MISSING, plain_text
from bsharp.reporting.forecast.along import alpha_grid, limits_grid, tilt_grid
from bsharp.reporting.forecast.charts import alpha_charts, by_k_chart, families_chart, gains_chart, tilt_chart
from bsharp.reporting.forecast.figures import NORMALISATIONS, Forecast, by_likelihood, require_forecast
from bsharp.reporting.forecast.grids import (
    Grid,
    base_grid,
    families_grid,
    likelihood_grid,
    regimes_grid,
    rules_grid,
    short_name,
)
from bsharp.reporting.forecast.problems import problem_charts
from bsharp.reporting.forecast.terms import TERMS
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
from bsharp.reporting.page.parts import (
    Callout,
    Cell,
    Choice,
    DataTable,
    Definitions,
    Fold,
    Glossary,
    Page,
    Paragraph,
    Part,
    Preformatted,
    ProblemLink,
    RunPage,
    Section,
    Verdict,
)
from bsharp.reporting.page.render import render_page
from bsharp.reporting.page.sections.common import section_of

__all__ = ["write_forecast_page"]

NAME = "forecast.html"
TERM = 30
"""Characters before a colon that are still a heading and no half of a sentence."""
RUN = "forecast"
_MINUS = re.compile(r"(?<!\w)-(?=\d)")


def write_forecast_page(forecast: Forecast, path: str | Path) -> Path:
    """Write the page of a forecast and return its path; the data of its charts and tables lie as CSV beside it.

    `path` is the page's (a directory, or a name that does not end in .html: forecast.html inside it). The page needs no
    network. Raises ValueError, one line, for what is no forecast or lacks a key.
    """
    require_forecast(forecast)
    target = Path(path)
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        target = target / NAME
    try:
        sections = [build(forecast) for build in _SECTIONS]
    except KeyError as error:
        raise ValueError(f"the forecast lacks the key {error}; make the forecast again") from None
    model = plain_text(forecast["source"].get("model") or "records")
    return render_page(Page(f"bsharp forecast: {model}", [RunPage(RUN, model, sections)]), target.parent, target.name)


def _table(grid: Grid, folded: bool = False) -> list[Part | None]:
    """The table, and its notes below it."""
    columns = grid.columns()
    units = [unit.replace("[95 %]", "").strip() for _, unit in grid.headers]
    names = [f"{title} ({unit})" if unit else title for (title, _), unit in zip(grid.headers, units, strict=True)]
    brackets = " Brackets: 95 % intervals." if any("[95 %]" in unit for _, unit in grid.headers) else ""
    # A first cell that is a colour's name would get its chip, and only some regimes have one.
    rows: list[list[Cell]] = [[ProblemLink(row[0], ()), *(row[at] for at in columns[1:])] for row in grid.rows]
    numeric = [place for place, at in enumerate(columns) if at in grid.numeric]
    caption = grid.caption + brackets
    table = DataTable(grid.grid_id, grid.title, caption, [names[at] for at in columns], rows, numeric, folded)
    return [table, Definitions(grid.notes)] if grid.notes else [table]


def _said(text: str) -> Paragraph:
    """A sentence with typographic minus signs, as tables have them."""
    return Paragraph(_MINUS.sub("−", text))


def _recommendation(forecast: Forecast) -> Section:
    word, sentence = advice(forecast)
    said = "A forecast of where each objective's optimum lies, from the base's own samples: nothing was trained for it."
    parts: list[Part | None] = [Verdict(said, word[:1].upper() + word[1:], meaning=sentence, basis=rests_on(forecast))]
    parts += [Callout("warning" if serious else "note", text) for serious, text in warnings(forecast)]
    parts += [_said(base_sentence(forecast)), _said(no_correct_sentence(forecast)), gains_chart(forecast)]
    return section_of("recommendation", "Recommendation", parts, "")


def _unknown(forecast: Forecast) -> Section:
    items = []
    for number, item in enumerate(forecast["recommendation"].get("cannot_know") or [], start=1):
        term, colon, text = plain_text(item).partition(": ")
        items.append((term, text) if colon and len(term) <= TERM else (str(number), plain_text(item)))
    return section_of(
        "unknown", "What base samples cannot know", [Definitions(items)] if items else [], "Nothing was named."
    )


def _regimes(forecast: Forecast) -> Section:
    objectives = [(plain_text(name), plain_text(regime.get("objective", MISSING)))
                  for name, regime in (forecast["regimes"] or {}).items()]  # fmt: skip
    grid = regimes_grid(forecast)
    # All of a regime stands in the fold below: beside its figures there is room for its name only.
    grid = replace(grid, rows=[[short_name(row[0]), *row[1:]] for row in grid.rows])
    parts: list[Part | None] = _table(grid) if objectives else []
    if objectives:
        parts.append(Fold("What each regime maximises", [Definitions(objectives)]))
    parts += _table(base_grid(forecast))
    missed = [plain_text(name) for name in forecast["base"].get("no_correct_ids") or []]
    if missed:
        parts.append(Preformatted(f"The {len(missed)} problems without a right sample", "\n".join(missed)))
    return section_of("regimes", "Every regime, and the base", parts, "")


def _likelihood(forecast: Forecast) -> Section:
    parts: list[Part | None] = [_said(sentence) for sentence in likelihood_sentences(forecast)]
    charts = problem_charts(forecast)
    if charts:
        parts.append(Choice("problems_shown", "Problems", [(label, [chart]) for label, chart in charts]))
    parts += _table(likelihood_grid(forecast))
    return section_of("likelihood", "Does likelihood predict correctness?", parts, "")


def _sharpening(forecast: Forecast) -> Section:
    names = [name for name in NORMALISATIONS if by_likelihood(forecast, "tempered", name)]
    parts: list[Part | None] = [
        _said(f"By the {NORMALISATIONS[name]}: {_lowered(cut_sentence(forecast, name))}") for name in names
    ]
    charts = alpha_charts(forecast)
    if charts:
        parts.append(Choice("along_alpha", "Along α", [(label, [chart]) for label, chart in charts]))
    parts += [part for name in names for part in _table(alpha_grid(forecast, name, rows=10_000), folded=True)]
    parts += [_said(sentence) for sentence in limit_sentences(forecast)]
    parts += [by_k_chart(forecast), *_table(limits_grid(forecast))]
    return section_of("sharpening", "Sharpening", parts, "")


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _tilt(forecast: Forecast) -> Section:
    parts: Sequence[Part | None] = [
        _said(tilt_sentence(forecast)),
        tilt_chart(forecast),
        *_table(tilt_grid(forecast)),
    ]
    return section_of("tilt", "Tilt towards the reward", parts, "")


def _families(forecast: Forecast) -> Section:
    parts: list[Part | None] = []
    if forecast["families"]:
        parts = [families_chart(forecast), *_table(families_grid(forecast))]
    return section_of("families", "Families", parts, "The records name no families.")


def _rules(forecast: Forecast) -> Section:
    grid = rules_grid(forecast)
    return section_of(
        "rules", "The rules behind the recommendation", _table(grid) if grid.rows else [], "No rule was held."
    )


def _source(forecast: Forecast) -> Section:
    items = [(str(key).replace("_", " "), _plain(value)) for key, value in forecast["source"].items()]
    return Section("source", "Source and glossary", [Definitions(items), Glossary(TERMS)])


def _plain(value: object) -> str:
    if value is None or value == []:
        return MISSING
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_text, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else plain_text(value)


_SECTIONS = (_recommendation, _rules, _regimes, _likelihood, _sharpening, _tilt, _families, _unknown, _source)
