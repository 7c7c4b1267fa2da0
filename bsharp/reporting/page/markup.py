"""Parts → HTML. Every string goes through `escape`, `href` or a data script; nothing else puts text into the page."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from bsharp.reporting.page.embed import csv_text, data_script, escape, href, plain_data, prose
from bsharp.reporting.page.parts import (
    Callout,
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
    RunPage,
    Section,
    Verdict,
    every_part,
)
from bsharp.reporting.page.place import Files, Place
from bsharp.reporting.page.tables import gained_lost_html, table_html

__all__ = ["run_html"]

_FORMATTING = re.compile(r"&lt;(/?(?:br|b|i|sub|sup|extra))>")
_LABELS = ("x", "y", "name")
_LABEL_LENGTH = 40  # a longer name would push the chart out of its frame; its checksum keeps it apart from others
_KINDS = {"warning": "Warning", "note": "Note", "ok": "Fine"}


def run_html(run: RunPage, files: Files, regime_class: Mapping[str, str], several: bool) -> str:
    """The sections of one run and its table of contents; its data goes to `files`."""
    folder = PurePosixPath(files.data_folder) / (run.run_id if several else "")
    found = [part for section in run.sections for part in every_part(section.parts) if isinstance(part, Glossary)]
    terms = [(term, _term_id(run.run_id, key)) for part in found for key, term, _ in part.items]
    place = Place(run.run_id, folder, files, regime_class, sorted(terms, key=lambda term: -len(term[0])))
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


def _section(section: Section, element: str, number: int, place: Place) -> str:
    absent = "" if section.absent is None else f'<p class="absent">{prose(section.absent)}</p>'
    return (
        f'<section id="{element}" aria-labelledby="{element}-h" tabindex="-1">'
        f'<h2 id="{element}-h"><span class="number">{number}</span> {escape(section.title)}</h2>{absent}'
        f"{_parts(section.parts, place)}</section>"
    )


def _parts(parts: Sequence[Part], place: Place) -> str:
    """The parts in order; neighbouring charts that are not wide stand beside each other."""
    grouped = groupby(parts, lambda part: isinstance(part, Chart) and not _is_wide(part))
    rendered = ((narrow, "".join(_part(part, place) for part in group)) for narrow, group in grouped)
    return "".join(f'<div class="pair">{html}</div>' if narrow else html for narrow, html in rendered)


def _part(part: Part, place: Place) -> str:
    match part:
        case Verdict():
            return _verdict(part)
        case Paragraph():
            return f"<p>{prose(part.text)}</p>"
        case Callout():
            kind = part.kind if part.kind in _KINDS else "note"
            return f'<p class="callout {kind}" role="note"><strong>{_KINDS[kind]}.</strong> {prose(part.text)}</p>'
        case Definitions():
            items = "".join(f"<div><dt>{escape(term)}</dt><dd>{prose(text)}</dd></div>" for term, text in part.items)
            return f"<dl>{items}</dl>"
        case FileLinks():
            return f'<ul class="files">{_links(part.items)}</ul>'
        case Preformatted():
            pre = f'<pre tabindex="0">{escape(part.text)}</pre>'
            return f"<details><summary>{escape(part.title)}</summary>{pre}</details>"
        case Chart():
            return _chart(part, place)
        case DataTable():
            return table_html(part, place)
        case GainedLost():
            return gained_lost_html(part, place)
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
        return f'<p class="verdict">{escape(part.text)}</p>{_basis(part)}'
    return (
        f'<div class="answer"><p class="figure"><span>{escape(part.figure)}</span> {escape(part.unit)} '
        f'<span class="interval">{escape(part.interval)}</span></p><p class="verdict">{escape(part.meaning)}</p>'
        f'{_basis(part)}<p class="said">{escape(part.text)}</p></div>'
    )


def _basis(part: Verdict) -> str:
    return f'<p class="basis">{escape(part.basis)}</p>' if part.basis else ""


def _choice(part: Choice, place: Place) -> str:
    if len(part.options) == 1:
        return _parts(part.options[0][1], place)
    element = place.files.claim(place.run_id, part.choice_id)
    buttons = "".join(
        f'<button type="button" aria-pressed="{"false" if at else "true"}" aria-controls="{element}-{at}">'
        f"{escape(label)}</button>"
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


def _legend(part: Legend, place: Place) -> str:
    names = "".join(
        f'<button type="button" class="key {place.regime_class.get(name, "")}" data-regime="{escape(name)}" '
        f'aria-pressed="true"><i aria-hidden="true"></i>'
        f"<bdi>{escape(name)}</bdi></button>"
        for name in part.regimes
    )
    return f'<div class="legend" role="group" aria-label="Regimes shown in all charts">{names}</div>'


def _term_id(run_id: str, key: str) -> str:
    return f"{run_id}--term--{key}"


def _glossary(part: Glossary, place: Place) -> str:
    items = "".join(
        f'<div id="{escape(_term_id(place.run_id, key))}" tabindex="-1"><dt>{escape(term)}</dt><dd>{prose(text)}</dd></div>'
        for key, term, text in part.items
    )
    search = '<input type="search" placeholder="term or word" aria-label="Search the glossary">'
    return (
        f'<details class="fold glossary"><summary>Glossary: all {len(part.items)} metrics of this page</summary>'
        f"<p>{search}</p><dl>{items}</dl></details>"
    )


def _help(texts: Sequence[str], place: Place) -> str:
    """Small links to the glossary for the metrics that a chart shows."""
    entries = dict.fromkeys(element for text in texts if (element := place.entry(text)) is not None)
    names = {element: term for term, element in place.terms}
    links = "".join(
        f'<a class="help" href="#{escape(element)}" aria-label="What is {escape(names[element])}?" '
        f'title="{escape(names[element])}: what it is">?</a>'
        for element in list(entries)[:2]
    )
    return f' <span class="helps">{links}</span>' if links else ""


def _links(items: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<li><a href="{escape(href(path))}"><bdi>{escape(text)}</bdi></a></li>' for text, path in items)


def _chart(chart: Chart, place: Place) -> str:
    _require_axis_titles(chart)
    element = place.files.claim(place.run_id, chart.chart_id)
    text = csv_text(chart.columns)
    path = place.csv(chart.chart_id, text)
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
        f"<figcaption>{prose(chart.caption)}</figcaption>"
        '<p class="save">Save as <button type="button" data-save="svg">SVG</button>'
        '<button type="button" data-save="png">PNG</button><button type="button" data-save="csv">CSV</button>'
        f'<a href="{escape(href(path))}">data file</a></p></figure>'
    )


def _axis_titles(chart: Chart) -> list[str]:
    titles = [axis.get("title") for name, axis in chart.layout.items() if re.fullmatch(r"[xy]axis\d*", name)]
    titles += [(trace.get("colorbar") or {}).get("title") for trace in chart.traces]
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


def _completions(part: Completions, place: Place) -> str:
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
