"""Tables → HTML: figures, and problems gained and lost, whose counts open the completions browser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bsharp.reporting.page.embed import csv_text, data_script, escape, href, prose
from bsharp.reporting.page.parts import Cell, DataTable, GainedLost, ProblemLink, RegimeChange
from bsharp.reporting.page.place import Place

__all__ = ["gained_lost_html", "table_html"]

_HEADER = re.compile(r"(?P<name>.*\S) \((?P<unit>[^()]*)\)")
_MINUS = re.compile(r"(?<!\w)-(?=\d)")
_LONG = 48  # characters of a cell that takes several lines


def table_html(table: DataTable, place: Place) -> str:
    element = place.files.claim(place.run_id, table.table_id)
    uneven = [row for row in table.rows if len(row) != len(table.headers)]
    if uneven:
        raise ValueError(
            f"table {table.table_id!r}: a row has {len(uneven[0])} cells under {len(table.headers)} headers; make them equal"
        )
    cells = [[cell.text if isinstance(cell, ProblemLink) else cell for cell in row] for row in table.rows]
    names = [header or f"column {at + 1}" for at, header in enumerate(table.headers)]
    names = [name if names.index(name) == at else f"{name} ({at + 1})" for at, name in enumerate(names)]
    path = place.csv(table.table_id, csv_text({name: [row[at] for row in cells] for at, name in enumerate(names)}))
    numeric = set(table.numeric)

    def class_of(at: int) -> str:
        return ' class="num"' if at in numeric else ""

    head = "".join(
        f'<th scope="col"{class_of(at)}>{_header(header, place)}</th>' for at, header in enumerate(table.headers)
    )
    links: list[list[Any]] = []
    body = "".join(
        "<tr>" + "".join(_cell(cell, at, class_of(at), links, element, place) for at, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    if links:
        place.files.scripts.append(data_script(f"{element}-links", links))
    heading = f'<h3 id="{element}-t">{escape(table.title)}</h3>'
    content = (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{element}-t"><table aria-labelledby="{element}-t">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="caption">{prose(table.caption)} <a href="{escape(href(path))}">data file</a></p>'
    )
    if table.folded:
        rows = f'<span class="rows">{len(table.rows)} rows</span>'
        return f'<details class="table fold" id="{element}"><summary>{heading} {rows}</summary><div>{content}</div></details>'
    return f'<div class="table" id="{element}">{heading}{content}</div>'


def _header(header: str, place: Place) -> str:
    """A column's header: its name, a link where the glossary has it, and its unit below."""
    split = _HEADER.fullmatch(header)
    name, unit = (split["name"], f" <small>({escape(split['unit'])})</small>") if split else (header, "")
    entry = place.entry(header)
    link = escape(name) if entry is None else f'<a href="#{escape(entry)}">{escape(name)}</a>'
    return f"{link}{unit}"


def _cell(cell: Cell, at: int, css: str, links: list[list[Any]], element: str, place: Place) -> str:
    if isinstance(cell, ProblemLink):
        content = problems_button(cell.text, cell.problem_ids, cell.regime, f"{element}-links", links)
    else:
        content = place.chip(cell) if at == 0 else f"<bdi>{escape(_MINUS.sub('−', cell) if css else cell)}</bdi>"
        if not css and len(cell) > _LONG:
            css = ' class="long"'
    return f'<th scope="row"{css}>{content}</th>' if at == 0 else f"<td{css}>{content}</td>"


def problems_button(
    text: str, problem_ids: Sequence[str], regime: str | None, script: str, links: list[list[Any]]
) -> str:
    """A button that opens the completions browser on the problems, which are put into `links`."""
    if not problem_ids:
        return escape(text)
    links.append([list(problem_ids), regime])
    what = f"{text}: show these problems"
    return (
        f'<button type="button" class="problems" data-links="{script}" data-at="{len(links) - 1}" '
        f'aria-label="{escape(what)}">{escape(text)}</button>'
    )


def gained_lost_html(part: GainedLost, place: Place) -> str:
    element = place.files.claim(place.run_id, part.part_id)
    links: list[list[Any]] = []
    tables = "".join(_two_by_two(change, f"{element}-links", links, place) for change in part.changes)
    place.files.scripts.append(data_script(f"{element}-links", links))
    return (
        f'<div class="gained-lost" id="{element}"><p>{escape(part.definition)} '
        "Each count is a button that lists its problems, side by side in the completions browser.</p>"
        f'<div class="grid">{tables}</div></div>'
    )


def _two_by_two(change: RegimeChange, script: str, links: list[list[Any]], place: Place) -> str:
    def cell(kind: str, ids: Sequence[str]) -> str:
        button = problems_button(str(len(ids)), ids, change.regime, script, links)
        return f'<td class="num {kind}">{button}<small>{kind}</small></td>'

    return (
        f'<table class="two"><caption>{place.chip(change.regime)}</caption>'
        '<thead><tr><td></td><th scope="col">regime right</th><th scope="col">regime wrong</th></tr></thead><tbody>'
        f'<tr><th scope="row">base right</th>{cell("kept", change.kept)}{cell("lost", change.lost)}</tr>'
        f'<tr><th scope="row">base wrong</th>{cell("gained", change.gained)}{cell("never", change.never)}</tr>'
        "</tbody></table>"
    )
