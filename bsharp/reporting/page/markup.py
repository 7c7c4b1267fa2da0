"""Parts → HTML. Every string goes through `escape`, `href` or a data script; nothing else puts text into the page."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from bsharp.reporting.page.embed import csv_text, data_script, escape, href, plain_data
from bsharp.reporting.page.parts import (
    Callout,
    Cell,
    Chart,
    Choice,
    Completions,
    DataTable,
    Definitions,
    FileLinks,
    Fold,
    GainedLost,
    Glossary,
    Legend,
    Paragraph,
    Part,
    Preformatted,
    ProblemLink,
    RegimeChange,
    RunPage,
    Section,
    Verdict,
    every_part,
)

__all__ = ["Files", "run_html"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FORMATTING = re.compile(r"&lt;(/?(?:br|b|i|sub|sup|extra))>")
_LABELS = ("x", "y", "name")
_LABEL_LENGTH = 40  # a longer name would push the chart out of its frame; its checksum keeps it apart from others
_HEADER = re.compile(r"(?P<name>.*\S) \((?P<unit>[^()]*)\)")
_LONG = 48  # characters of a cell that takes several lines
_KINDS = {"warning": "Warning", "note": "Note", "ok": "Fine"}


@dataclass
class Files:
    """The CSV files beside a page, and the data scripts inside it, gathered while a run is rendered."""

    data_folder: str
    csv: dict[str, str] = field(default_factory=dict)  # path relative to the page → content
    scripts: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def claim(self, run_id: str, part_id: str, kind: str = "part") -> str:
        """The element id of a part or section; ValueError where it is no id or taken."""
        for name in (run_id, part_id):
            if not _ID.fullmatch(name):
                raise ValueError(f"{name!r} is no id; use letters, digits, '_', '-' and '.', a letter or digit first")
        element = f"{run_id}--{kind}--{part_id}"
        if element in self.ids:
            raise ValueError(f"two {kind}s of run {run_id!r} have the id {part_id!r}; give each its own")
        self.ids.add(element)
        return element


@dataclass(frozen=True)
class _Place:
    """Where a part stands: its run, the files it may add to, and the colour class of each regime."""

    run_id: str
    csv_folder: PurePosixPath
    files: Files
    regime_class: Mapping[str, str]
    terms: Sequence[tuple[str, str]] = ()  # glossary: term, element id; longer terms first

    def entry(self, text: str) -> str | None:
        """The element id of the glossary's entry that `text` (an axis title, a header) begins with."""
        bare = re.sub(r"@\d+", "@k", text.partition(" (")[0]).strip()
        for term, element in self.terms if bare else ():
            if bare == term or bare.startswith((f"{term} ", f"{term},")) or term.startswith(f"{bare}("):
                return element
        return None

    def chip(self, name: str) -> str:
        """A regime's name with its colour."""
        mark = (
            f'<span class="chip {self.regime_class[name]}" aria-hidden="true"></span>'
            if name in self.regime_class
            else ""
        )
        return f"{mark}<bdi>{escape(name)}</bdi>"


def run_html(run: RunPage, files: Files, regime_class: Mapping[str, str], several: bool) -> str:
    """The sections of one run and its table of contents; its data goes to `files`."""
    folder = PurePosixPath(files.data_folder) / (run.run_id if several else "")
    found = [part for section in run.sections for part in every_part(section.parts) if isinstance(part, Glossary)]
    terms = [(term, _term_id(run.run_id, key)) for part in found for key, term, _ in part.items]
    place = _Place(run.run_id, folder, files, regime_class, sorted(terms, key=lambda term: -len(term[0])))
    ids = [files.claim(run.run_id, section.section_id, "section") for section in run.sections]
    contents = "".join(
        f'<li><a href="#{element}">{escape(section.title)}</a></li>'
        for element, section in zip(ids, run.sections, strict=True)
    )
    body = "".join(
        _section(section, element, number, place)
        for number, (element, section) in enumerate(zip(ids, run.sections, strict=True), start=1)
    )
    return (
        f'<nav class="toc" aria-label="Contents"><details open><summary>Contents</summary><ol>{contents}</ol></details></nav>'
        f'<div class="sections">{body}</div>'
    )


def _section(section: Section, element: str, number: int, place: _Place) -> str:
    absent = "" if section.absent is None else f'<p class="absent">{escape(section.absent)}</p>'
    return (
        f'<section id="{element}" aria-labelledby="{element}-h" tabindex="-1">'
        f'<h2 id="{element}-h"><span class="number">{number}</span> {escape(section.title)}</h2>{absent}'
        f"{_parts(section.parts, place)}</section>"
    )


def _parts(parts: Sequence[Part], place: _Place) -> str:
    """The parts in order; neighbouring charts that are not wide stand beside each other."""
    grouped = groupby(parts, lambda part: isinstance(part, Chart) and not _is_wide(part))
    rendered = ((narrow, "".join(_part(part, place) for part in group)) for narrow, group in grouped)
    return "".join(f'<div class="pair">{html}</div>' if narrow else html for narrow, html in rendered)


def _part(part: Part, place: _Place) -> str:
    match part:
        case Verdict():
            return _verdict(part)
        case Paragraph():
            return f"<p>{escape(part.text)}</p>"
        case Callout():
            kind = part.kind if part.kind in _KINDS else "note"
            return f'<p class="callout {kind}" role="note"><strong>{_KINDS[kind]}.</strong> {escape(part.text)}</p>'
        case Definitions():
            items = "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>" for term, text in part.items)
            return f"<dl>{items}</dl>"
        case FileLinks():
            return f'<ul class="files">{_links(part.items)}</ul>'
        case Preformatted():
            pre = f'<pre tabindex="0">{escape(part.text)}</pre>'
            return f"<details><summary>{escape(part.title)}</summary>{pre}</details>"
        case Chart():
            return _chart(part, place)
        case DataTable():
            return _table(part, place)
        case GainedLost():
            return _gained_lost(part, place)
        case Fold():
            inside = _parts(part.parts, place)
            return f'<details class="fold"><summary>{escape(part.title)}</summary><div>{inside}</div></details>'
        case Choice():
            return _choice(part, place)
        case Legend():
            return _legend(part, place)
        case Glossary():
            return _glossary(part, place)
        case Completions():
            return _completions(part, place)
    raise ValueError(f"{type(part).__name__} is no part of a page; see parts.Part")


def _verdict(part: Verdict) -> str:
    if not part.figure:
        return f'<p class="verdict">{escape(part.text)}</p>'
    return (
        f'<div class="answer"><p class="figure"><span>{escape(part.figure)}</span> {escape(part.unit)} '
        f'<span class="interval">{escape(part.interval)}</span></p><p class="verdict">{escape(part.meaning)}</p>'
        f'<p class="said">{escape(part.text)}</p></div>'
    )


def _choice(part: Choice, place: _Place) -> str:
    element = place.files.claim(place.run_id, part.choice_id)
    buttons = "".join(
        f'<button type="button" aria-pressed="{"false" if at else "true"}" aria-controls="{element}-{at}">{escape(label)}</button>'
        for at, (label, _) in enumerate(part.options)
    )
    options = "".join(
        f'<div class="option" id="{element}-{at}"{" hidden" if at else ""}>{_parts(parts, place)}</div>'
        for at, (_, parts) in enumerate(part.options)
    )
    return (
        f'<div class="choose" id="{element}"><div class="choice" role="group" aria-label="{escape(part.label)}">'
        f'<span aria-hidden="true">{escape(part.label)}</span>{buttons}</div>{options}</div>'
    )


def _legend(part: Legend, place: _Place) -> str:
    names = "".join(
        f'<button type="button" class="key {place.regime_class.get(name, "")}" data-regime="{escape(name)}" '
        f'aria-pressed="true"><svg width="30" height="10" aria-hidden="true"><line x1="0" x2="30" y1="5" y2="5"/></svg>'
        f"<bdi>{escape(name)}</bdi></button>"
        for name in part.regimes
    )
    return f'<div class="legend" role="group" aria-label="Regimes shown in all charts">{names}</div>'


def _term_id(run_id: str, key: str) -> str:
    return f"{run_id}--term--{key}"


def _glossary(part: Glossary, place: _Place) -> str:
    items = "".join(
        f'<div id="{escape(_term_id(place.run_id, key))}" tabindex="-1"><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>'
        for key, term, text in part.items
    )
    search = '<input type="search" placeholder="term or word" aria-label="Search the glossary">'
    return (
        f'<details class="fold glossary"><summary>Glossary: all {len(part.items)} metrics of this page</summary>'
        f"<p>{search}</p><dl>{items}</dl></details>"
    )


def _help(texts: Sequence[str], place: _Place) -> str:
    """Small links to the glossary for the metrics that a chart shows."""
    entries = dict.fromkeys(element for text in texts if (element := place.entry(text)) is not None)
    names = {element: term for term, element in place.terms}
    return "".join(
        f' <a class="help" href="#{escape(element)}" aria-label="What is {escape(names[element])}?" '
        f'title="{escape(names[element])}: what it is">?</a>'
        for element in list(entries)[:2]
    )


def _links(items: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<li><a href="{escape(href(path))}"><bdi>{escape(text)}</bdi></a></li>' for text, path in items)


def _csv_path(place: _Place, part_id: str, text: str) -> str:
    path = str(place.csv_folder / f"{part_id}.csv")
    place.files.csv[path] = text
    return path


def _chart(chart: Chart, place: _Place) -> str:
    _require_axis_titles(chart)
    element = place.files.claim(place.run_id, chart.chart_id)
    text = csv_text(chart.columns)
    path = _csv_path(place, chart.chart_id, text)
    figure = {
        "traces": [_formatted(trace) for trace in chart.traces],
        "layout": _formatted(chart.layout),
        "legend": chart.legend,
    }
    help_links = _help([*_axis_titles(chart), *chart.columns], place)
    place.files.scripts += [data_script(f"{element}-data", figure), data_script(f"{element}-csv", text)]
    return (
        f'<figure class="chart" id="{element}" data-name="{chart.chart_id}" aria-labelledby="{element}-t">'
        f'<h3><span id="{element}-t">{escape(chart.title)}</span>{help_links}</h3>'
        f'<div class="plot" style="height:{int(chart.height)}px" role="img" aria-labelledby="{element}-t"></div>'
        f"<figcaption>{escape(chart.caption)}</figcaption>"
        '<p class="save">Save as <button type="button" data-save="svg">SVG</button>'
        '<button type="button" data-save="png">PNG</button><button type="button" data-save="csv">CSV</button>'
        f'<a href="{escape(href(path))}">data file</a></p></figure>'
    )


def _axis_titles(chart: Chart) -> list[str]:
    titles = [axis.get("title") for name, axis in chart.layout.items() if re.fullmatch(r"[xy]axis\d*", name)]
    return [str(title.get("text") or "") if isinstance(title, Mapping) else str(title or "") for title in titles][::-1]


def _is_wide(chart: Chart) -> bool:
    if chart.wide is not None:
        return chart.wide
    panels = {(trace.get("xaxis", "x"), trace.get("yaxis", "y")) for trace in chart.traces}
    names = [{value for t in chart.traces for value in t.get(axis) or () if isinstance(value, str)} for axis in "xy"]
    return len(panels) > 1 or max(map(len, names)) > 6


def _require_axis_titles(chart: Chart) -> None:
    """ValueError where a trace lies on an axis without a title; charts without axes (tables, pies) have none."""
    for trace in chart.traces:
        if trace.get("type", "scatter") in ("table", "pie", "indicator"):
            continue
        for letter in "xy":
            name = f"{letter}axis{str(trace.get(f'{letter}axis', letter))[1:]}"
            axis = chart.layout.get(name) or {}
            title = axis.get("title") or ""
            title = title.get("text") or "" if isinstance(title, Mapping) else title
            hidden = axis.get("showticklabels") is False or axis.get("visible") is False
            if not str(title).strip() and not hidden:
                raise ValueError(
                    f"chart {chart.chart_id!r}: {name} has no title; give layout.{name}.title with the unit"
                )


def _formatted(value: Any, key: str = "") -> Any:
    """Chart data with its strings as text: plotly reads HTML-like tags in labels, so all but plain formatting is escaped."""
    if key == "meta":  # read by the page, by exact name
        return plain_data(value)
    if isinstance(value, str):
        if key in _LABELS and len(value) > _LABEL_LENGTH:
            value = f"{value[: _LABEL_LENGTH - 6]}…{zlib.crc32(value.encode('utf-8', 'replace')):08x}"[:_LABEL_LENGTH]
        return _FORMATTING.sub(r"<\1>", value.replace("&", "&amp;").replace("<", "&lt;").replace("$", "&#36;"))
    if isinstance(value, Mapping):
        return {str(name): _formatted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_formatted(item, key) for item in value]
    return plain_data(value)


def _table(table: DataTable, place: _Place) -> str:
    element = place.files.claim(place.run_id, table.table_id)
    uneven = [row for row in table.rows if len(row) != len(table.headers)]
    if uneven:
        raise ValueError(
            f"table {table.table_id!r}: a row has {len(uneven[0])} cells under {len(table.headers)} headers; make them equal"
        )
    cells = [[cell.text if isinstance(cell, ProblemLink) else cell for cell in row] for row in table.rows]
    names = [header or f"column {at + 1}" for at, header in enumerate(table.headers)]
    names = [name if names.index(name) == at else f"{name} ({at + 1})" for at, name in enumerate(names)]
    path = _csv_path(
        place, table.table_id, csv_text({name: [row[at] for row in cells] for at, name in enumerate(names)})
    )
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
        f'<p class="caption">{escape(table.caption)} <a href="{escape(href(path))}">data file</a></p>'
    )
    if table.folded:
        rows = f'<span class="rows">{len(table.rows)} rows</span>'
        return (
            f'<details class="table fold" id="{element}"><summary>{heading} {rows}</summary><div>{content}</div></details>'
        )
    return f'<div class="table" id="{element}">{heading}{content}</div>'


def _header(header: str, place: _Place) -> str:
    """A column's header: its name, a link where the glossary has it, and its unit below."""
    split = _HEADER.fullmatch(header)
    name, unit = (split["name"], f" <small>({escape(split['unit'])})</small>") if split else (header, "")
    entry = place.entry(header)
    link = escape(name) if entry is None else f'<a href="#{escape(entry)}">{escape(name)}</a>'
    return f"{link}{unit}"


def _cell(cell: Cell, at: int, css: str, links: list[list[Any]], element: str, place: _Place) -> str:
    if isinstance(cell, ProblemLink):
        content = _problems_button(cell.text, cell.problem_ids, cell.regime, f"{element}-links", links)
    else:
        content = place.chip(cell) if at == 0 else f"<bdi>{escape(cell)}</bdi>"
        if not css and len(cell) > _LONG:
            css = ' class="long"'
    return f'<th scope="row"{css}>{content}</th>' if at == 0 else f"<td{css}>{content}</td>"


def _problems_button(
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


def _gained_lost(part: GainedLost, place: _Place) -> str:
    element = place.files.claim(place.run_id, part.part_id)
    links: list[list[Any]] = []
    tables = "".join(_two_by_two(change, f"{element}-links", links, place) for change in part.changes)
    place.files.scripts.append(data_script(f"{element}-links", links))
    return (
        f'<div class="gained-lost" id="{element}"><p>{escape(part.definition)} '
        "Each count is a button that lists its problems, side by side in the completions browser.</p>"
        f'<div class="grid">{tables}</div></div>'
    )


def _two_by_two(change: RegimeChange, script: str, links: list[list[Any]], place: _Place) -> str:
    def cell(kind: str, ids: Sequence[str]) -> str:
        button = _problems_button(str(len(ids)), ids, change.regime, script, links)
        return f'<td class="num {kind}">{button}<small>{kind}</small></td>'

    return (
        f'<table class="two"><caption>{place.chip(change.regime)}</caption>'
        '<thead><tr><td></td><th scope="col">regime right</th><th scope="col">regime wrong</th></tr></thead><tbody>'
        f'<tr><th scope="row">base right</th>{cell("kept", change.kept)}{cell("lost", change.lost)}</tr>'
        f'<tr><th scope="row">base wrong</th>{cell("gained", change.gained)}{cell("never", change.never)}</tr>'
        "</tbody></table>"
    )


def _completions(part: Completions, place: _Place) -> str:
    element = place.files.claim(place.run_id, part.part_id)
    if not part.index.get("problems"):
        return '<p class="absent">No completions were recorded.</p>'
    place.files.scripts.append(data_script(f"{element}-index", part.index))
    place.files.scripts += [
        f'<script type="text/plain" data-gzip id="{element}-chunk-{at}">{base64.b64encode(chunk).decode("ascii")}</script>'
        for at, chunk in enumerate(part.chunks)
    ]
    left_out = ""
    if part.left_out:
        left_out = (
            f'<p class="callout note" role="note"><strong>Note.</strong> The completions of {part.left_out} of '
            f"{part.problems} problems, spread evenly, were left out to keep the page small; the files hold them all.</p>"
        )
    files = f'<p>The records in full:</p><ul class="files">{_links(part.sources)}</ul>' if part.sources else ""
    return f'<div class="completions" id="{element}"></div>{left_out}{files}'
