"""A page of parts → one self-contained report.html, and the data of its charts and tables as CSV beside it.

The file needs no network and no other file: styles, scripts, plotly and all data are inside, and its content security
policy forbids every request. What is big and not needed at once (plotly, completions) is compressed until it is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path

from bsharp.reporting.page.embed import base64_gzip, data_script, escape
from bsharp.reporting.page.markup import run_html
from bsharp.reporting.page.palette import Style, palette
from bsharp.reporting.page.parts import Chart, Completions, GainedLost, Legend, Page, RunPage, every_part
from bsharp.reporting.page.place import Files
from bsharp.reporting.page.plotly_source import plotly_source

__all__ = ["render_page", "replace_file"]

SCRIPTS = ("page.js", "charts.js", "completions.js")
RELOAD_SECONDS = 30
USUAL = ("bar", "contour", "heatmap", "scatter")
"""Traces that every page can draw; compressing plotly takes a second, and pages of a process share the result."""
DASHES = {"dash": (6, 3), "dot": (2, 2), "dashdot": (6, 3, 2, 3), "longdash": (9, 3), "longdashdot": (9, 3, 2, 3)}
"""Plotly's dashes as lengths of line and gap in pixels, for the legends outside of charts."""
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


def render_page(page: Page, folder: Path, name: str = "report.html") -> Path:
    """Write `folder`/`name` and the CSV files beside it; returns the page's path.

    The files lie in report_data (for another `name`, in its stem + "_data"), with several runs in a folder per run.
    Every file is replaced whole, so a reader never sees half of one. Raises ValueError for a page without runs, an
    axis without a title, uneven tables or columns, and ids that are malformed or used twice.
    """
    if not page.runs:
        raise ValueError("the page has no run; give at least one")
    files = Files(f"{Path(name).stem}_data")
    text = _html(page, files)
    for path, content in files.csv.items():
        replace_file(folder / path, content)
    replace_file(folder / name, text)
    return folder / name


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: a reader or a crash sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(temporary).chmod(0o644)  # mkstemp's 0600 would hide the page from a reader beside us
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _html(page: Page, files: Files) -> str:
    styles = palette(_regimes(page))
    classes = {name: f"regime-{at}" for at, name in enumerate(styles)}
    several = len(page.runs) > 1
    runs = "".join(_run(run, at, files, classes, several) for at, run in enumerate(page.runs))
    files.scripts.append(data_script("palette", [[name, *style] for name, style in styles.items()], compress=False))
    live = any(run.status is not None for run in page.runs)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(page.title)}</title>",
            f"<style>{_asset('page.css')}{_regime_styles(list(styles.values()))}</style>",
            "</head><body>",
            f"<script>{_asset('theme.js')}</script>",
            _header(page, live),
            f'<main id="main">{runs}</main>',
            "<noscript><p class='callout warning'>Charts and completions need JavaScript.</p></noscript>",
            *files.scripts,
            _plotly_script(frozenset(_trace_types(page))),
            f"<script>(() => {{\n'use strict';\n{''.join(_asset(script) for script in SCRIPTS)}}})();</script>",
            "</body></html>",
        ]
    )


def _regimes(page: Page) -> Iterable[str]:
    """Every name that may need a colour, in order of appearance."""
    yield "base"
    for run in page.runs:
        for section in run.sections:
            for part in every_part(section.parts):
                match part:
                    case Chart():
                        yield from (
                            str(t["meta"]["regime"]) for t in part.traces if (t.get("meta") or {}).get("regime")
                        )
                    case GainedLost():
                        yield from (change.regime for change in part.changes)
                    case Legend():
                        yield from part.regimes
                    case Completions():
                        yield from (str(model["name"]) for model in part.index.get("models", ()))
                    case _:  # names in tables are coloured only where they are known from elsewhere
                        continue


def _dashes(dash: str) -> str:
    """The stops of a repeating gradient that looks like the dash."""
    stops, at = [], 0
    for place, length in enumerate(DASHES.get(dash, (1,))):
        stops.append(f"{'transparent' if place % 2 else 'var(--regime)'} {at}px {at + length}px")
        at += length
    return ",".join(stops)


def _regime_styles(styles: list[Style]) -> str:
    light = "".join(f"--regime-{at}:{style.light};" for at, style in enumerate(styles))
    dark = "".join(f"--regime-{at}:{style.dark};" for at, style in enumerate(styles))
    uses = "".join(
        f".regime-{at}{{--regime:var(--regime-{at});--dash:{_dashes(style.dash)}}}" for at, style in enumerate(styles)
    )
    return f":root{{{light}}}:root[data-theme=dark]{{{dark}}}@media print{{:root:root{{{light}}}}}{uses}"


def _header(page: Page, live: bool) -> str:
    tabs = ""
    if len(page.runs) > 1:
        buttons = "".join(
            f'<button type="button" role="tab" id="tab-{at}" aria-controls="run-{at}" '
            f'aria-selected="{"true" if at == 0 else "false"}" tabindex="{0 if at == 0 else -1}">{escape(run.name)}</button>'
            for at, run in enumerate(page.runs)
        )
        tabs = f'<div class="tabs" role="tablist" aria-label="Runs">{buttons}</div>'
    pause = (
        f'<span id="reload" data-seconds="{RELOAD_SECONDS}"><span class="live"></span> reloads every {RELOAD_SECONDS} s '
        '<button type="button" id="pause" aria-pressed="false">Pause</button></span>'
        if live
        else ""
    )
    return (
        '<a class="skip" href="#main">Skip to the report</a>'
        f'<header class="page"><div class="bar"><h1>{escape(page.title)}</h1><div class="tools">{pause}'
        '<button type="button" id="theme">Dark</button></div></div>'
        f"{tabs}</header>"
    )


def _run(run: RunPage, at: int, files: Files, classes: dict[str, str], several: bool) -> str:
    status = "" if run.status is None else f'<p class="status" role="status">{escape(run.status)}</p>'
    role = f' role="tabpanel" aria-labelledby="tab-{at}"{" hidden" if at else ""}' if several else ""
    return (
        f'<div class="run" id="run-{at}" data-run="{escape(run.run_id)}"{role}>{status}'
        f'<div class="columns">{run_html(run, files, classes, several)}</div></div>'
    )


@cache
def _asset(name: str) -> str:
    return package_files("bsharp.reporting.page").joinpath("assets", name).read_text(encoding="utf-8")


def _trace_types(page: Page) -> Iterable[str]:
    yield from USUAL
    for section in (section for run in page.runs for section in run.sections):
        for part in every_part(section.parts):
            if isinstance(part, Chart):
                yield from (str(trace.get("type", "scatter")) for trace in part.traces)


@cache
def _plotly_script(kinds: frozenset[str]) -> str:
    source = base64_gzip(plotly_source(kinds).encode("utf-8"))
    return f'<script type="text/plain" data-gzip id="plotly">{source}</script>'
