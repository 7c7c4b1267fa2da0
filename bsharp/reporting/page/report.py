"""`write_report`: run directories → one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bsharp.reporting.cells import BASE, MISSING, interval, percent, plain_text
from bsharp.reporting.page.load import RunData, load_run
from bsharp.reporting.page.parts import Cell, DataTable, FileLinks, Page, RunPage, Section
from bsharp.reporting.page.render import render_page
from bsharp.reporting.page.sections import build_sections
from bsharp.reporting.page.sections.verdict import sentence

__all__ = ["write_report"]

NAME = "report.html"


def write_report(runs: Sequence[str | Path], out: str | Path | None = None, status: str | None = None) -> Path:
    """Write one page about one or several run directories and return its path.

    `out` is the page's path (a directory: report.html inside it); by default report.html in the run's own directory.
    Several runs stand under tabs behind an overview and need `out`. `status`, e.g. "running: 5 of 19 runs done", makes
    the page reload itself. Raises ValueError, one line, for no run, for a directory that is none, and for several runs
    without `out`.
    """
    if not runs:
        raise ValueError("no run to report on; give at least one run directory")
    if out is None and len(runs) > 1:
        raise ValueError(f"{len(runs)} runs make one page; say where it goes with --out, e.g. --out runs/report.html")
    target = Path(runs[0]) / NAME if out is None else Path(out)
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        target = target / NAME
    loaded = [load_run(path) for path in runs]
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    pages = [
        RunPage(f"run{place}", name, build_sections(run, folder, status is not None), status)
        for place, (run, name) in enumerate(zip(loaded, _names(loaded), strict=True), start=1)
    ]
    if len(pages) > 1:
        pages.insert(0, RunPage("runs", "Runs", [_overview(loaded, _names(loaded), folder)], status))
    title = f"bsharp: {plain_text(loaded[0].name)}" if len(loaded) == 1 else f"bsharp: {len(loaded)} runs"
    return render_page(Page(title, pages), folder, target.name)


def _names(runs: Sequence[RunData]) -> list[str]:
    """The directories' names; with their parents' where two are equal."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else "/".join(run.path.resolve().parts[-3:])
        for run, name in zip(runs, names, strict=True)
    ]


def _overview(runs: Sequence[RunData], names: Sequence[str], folder: Path) -> Section:
    """One row per run: what it answers, the base, the best regimes."""
    rows: list[list[Cell]] = []
    for run, name in zip(runs, names, strict=True):
        base, free, task = MISSING, MISSING, MISSING
        if run.results is not None:
            base = percent(run.results["base"]["accuracy"])
            free = _best(run, label_free=True)
            task = _best(run, label_free=False)
        rows.append([name, run.kind, plain_text(run.config.get("model", MISSING)), sentence(run), base, free, task])
    table = DataTable(
        "runs",
        "Runs",
        "One row per run. Best by test accuracy, without correction for the choice; brackets are 95 % intervals of the change.",
        (
            "run",
            "kind",
            "model",
            "what it says",
            f"accuracy of the {BASE} (%)",
            "best label-free regime, Δ to base (points)",
            "best regime with labels, Δ to base (points)",
        ),
        rows,
        numeric=(4,),
    )
    links = FileLinks([(name, os.path.relpath(run.path, folder)) for run, name in zip(runs, names, strict=True)])
    return Section("overview", "Runs", [table, links])


def _best(run: RunData, label_free: bool) -> str:
    regimes = (run.results or {}).get("regimes") or {}
    found = {
        name: regime
        for name, regime in regimes.items()
        if regime["label_free"] == label_free and regime["accuracy"]["estimate"] is not None
    }
    if not found:
        return MISSING
    name = max(found, key=lambda regime: found[regime]["accuracy"]["estimate"])
    return f"{plain_text(name)}: {interval(found[name]['delta'], signed=True)}"
