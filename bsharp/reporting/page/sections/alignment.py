"""Section 5: how the gradients of the objectives align, over the modules and over training, and how noisy they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bsharp.reporting.cells import BASE, plain_text
from bsharp.reporting.page.charts import Curve, axis, buckets, lines
from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.heatmap import heatmap
from bsharp.reporting.page.load import RunData, finite
from bsharp.reporting.page.panels import panels
from bsharp.reporting.page.parts import Callout, Chart, Choice, DataTable, Fold, Legend, Paragraph, Part, Section
from bsharp.reporting.page.sections.common import (
    figure_text,
    not_computed,
    numbers,
    section_of,
    shown,
    task_objective,
)
from bsharp.reporting.page.sections.mistakes import mistake_parts

__all__ = ["section"]

Point = Mapping[str, Any]
PROBES = 120  # points per curve of a panel


def section(run: RunData) -> Section:
    """Matrices at the base, cosines by module and by checkpoint, curves over training, and the mistakes."""
    points = [point for point in run.diagnostics.get("alignment", {}).get("points") or [] if point]
    parts: list[Part | None] = [*_notes(run, points)]
    if points:
        base = _base(points)
        euclidean, fisher, debiased = _matrices(base)
        parts += [_introduction(run, base), Legend(_names(base)), euclidean, fisher]
        parts += [Fold("The Euclidean cosine with the shared noise taken out", [debiased])] if debiased else []
        parts += _modules(base, task_objective(run, _names(base)))
    along: list[tuple[str, Sequence[Part]]] = [
        (label, [chart]) for label, chart in (*_over_training(run), *_checkpoints(run, points))
    ]
    if points:
        along.append(("variance of the base's gradients", [_variance(_base(points))]))
    if along:
        parts += _probes_said(run)
        parts.append(Choice("gradients_along", "Along training", along))
    mistakes = run.diagnostics.get("mistakes")
    parts += mistake_parts(mistakes) if mistakes else []
    absent = not_computed(run, "Gradient alignment and what the gradients correct", "alignment", "mistakes")
    if parts and not points:
        parts.insert(0, Paragraph(not_computed(run, "Alignment matrices", "alignment")))
    if parts and not mistakes:
        parts.append(Paragraph(not_computed(run, "What the gradients correct", "mistakes")))
    return section_of("gradients", "Gradient alignment", parts, absent)


def _base(points: Sequence[Point]) -> Point:
    return next((point for point in points if point.get("checkpoint") == BASE), points[0])


def _names(point: Point) -> list[str]:
    return [str(name) for name in point.get("objectives") or []]


def _notes(run: RunData, points: Sequence[Point]) -> Iterator[Callout]:
    """Why figures are missing as a whole: for a checkpoint, or for the probes of a run."""
    for point in points:
        if point.get("note"):
            yield Callout("warning", f"Gradients of {_place(point)}: {plain_text(point['note'])}.")
    for job in run.runs:
        for note, count in Counter(plain_text(row["note"]) for row in job.gradients if row.get("note")).items():
            yield Callout("warning", f"{count} probes of gradients while {plain_text(job.name)} trained: {note}.")


def _introduction(run: RunData, point: Point) -> Paragraph:
    return Paragraph(
        f"Gradients of every objective for the same samples ({point.get('problems')} problems, {point.get('samples')} samples "
        f"of {plain_text(point.get('checkpoint'))}){_advantage(run, {point.get('advantage')})}. Two different questions: the "
        "Euclidean cosine is the angle between the steps that the network would take; the Fisher cosine is the pooled "
        "correlation of the objectives' scores, which is the cosine of the natural gradients of a tabular policy. They can "
        "differ even in sign."
    )


def _probes_said(run: RunData) -> Iterator[Paragraph]:
    used = {row.get("advantage") for job in run.runs for row in job.gradients}
    if said := _advantage(run, used):
        yield Paragraph(f"Gradients over training{said}.")


def _advantage(run: RunData, used: Iterable[object]) -> str:
    """`, with the advantage leave_one_out`, and that of training where it is another; empty where neither is known."""
    told = sorted({plain_text(name) for name in used if name})
    trained = plain_text((run.config.get("algorithm") or {}).get("advantage") or "")
    if not told:
        return ""
    other = f" (training itself used {trained})" if trained and told != [trained] else ""
    return f", with the advantage {' and '.join(told)}{other}"


def _matrices(point: Point) -> Iterator[Chart | None]:
    names = _names(point)
    euclidean, fisher = (point.get(kind) or {} for kind in ("euclidean", "fisher"))
    where = plain_text(point.get("checkpoint"))
    yield _matrix(
        "cosine_euclidean",
        f"Euclidean cosine of the gradients, {where}",
        "1: the same direction, −1: the opposite one; in brackets: the 95 % interval includes 0. Last row: an objective against "
        "itself on two half batches; near 0 the batch says nothing about that objective's direction.",
        "cosine",
        names,
        [*names, NOISE_ROW],
        [*_rows_of(euclidean.get("matrix"), len(names)), euclidean.get("noise_floor")],
        bar=False,
    )
    yield _matrix(
        "cosine_fisher",
        f"Fisher cosine: correlation of the scores, {where}",
        "Of task reward and sharpening: how well likelihood predicts correctness. Alarming: below 0, where likelier answers are "
        "wrong more often.",
        "fisher_cosine",
        names,
        names,
        _rows_of(fisher.get("matrix"), len(names)),
        bar=False,
    )
    yield _matrix(
        "cosine_debiased",
        f"Debiased cosine of the gradients, {where}",
        "Two objectives on the same samples share noise, which may raise or lower their cosine; here it is taken out. "
        "Undefined (–) where a gradient could not be told from noise.",
        "debiased_cosine",
        names,
        names,
        _rows_of(euclidean.get("debiased"), len(names)),
    )


def _rows_of(matrix: object, count: int) -> list[Any]:
    """The rows of a matrix, None where one is missing."""
    found = list(matrix) if isinstance(matrix, list) else []
    return (found + [None] * count)[:count]


def _matrix(
    chart_id: str,
    title: str,
    caption: str,
    metric: str,
    across: list[str],
    down: list[str],
    rows: Sequence[Any],
    bar: bool = True,
) -> Chart | None:
    """A heatmap with limits −1 and 1; None where no value is known."""
    cells = [(list(row or []) + [None] * len(across))[: len(across)] for row in rows]
    if not any(value is not None for row in cells for value in numbers(row, len(across))):
        return None
    titles = ("objective", "against", axis_title(metric))
    return heatmap(chart_id, title, caption, titles, across, down, cells, limits=(-1, 1), bar=bar)


NOISE_ROW = "noise floor"


def _modules(point: Point, task: str | None) -> Iterator[Chart]:
    """The cosine to the task gradient by module group, with the noise floor, and the shares of the squared norm."""
    names, groups = _names(point), shown(point.get("groups"))
    count, places = len(names), [plain_text(group) for group in groups]
    across = axis("module group", type="category", tickangle=-35, automargin=True)
    drawn: list[Curve] = []
    if task is not None:
        row = names.index(task)
        cosines = [numbers(_rows_of(figures.get("matrix"), count)[row], count) for figures in groups.values()]
        floors = [numbers(figures.get("noise_floor"), count)[row] for figures in groups.values()]
        drawn = [Curve(name, name, places, [c[at] for c in cosines]) for at, name in enumerate(names) if name != task]
        drawn.append(Curve(f"noise floor of {task}", None, places, floors))
    if any(value is not None for curve in drawn for value in curve.y):
        yield lines(
            "cosine_modules",
            f"Cosine to the {plain_text(task)} gradient by module",
            f"In network order, without intervals; in neutral ink {plain_text(task)} against itself on two half batches: near 0 "
            "the batch says nothing about its direction in that module.",
            across,
            axis(axis_title("cosine")),
            drawn,
            height=370,
            legend=False,
            wide=False,
        )
    shares = [numbers(figures.get("share_of_norm"), count) for figures in groups.values()]
    known = [share for row in shares for share in row if share is not None]
    if known:
        yield lines(
            "norm_modules",
            "Where the gradients lie",
            "Share of each objective's squared gradient norm. Modules with a small share matter little in the chart beside.",
            across,
            axis(axis_title("share_of_norm"), **({"type": "log"} if min(known) > 0 else {})),
            [
                Curve(
                    name,
                    name,
                    places,
                    [None if share is None else 100 * share for share in (row[at] for row in shares)],
                )
                for at, name in enumerate(names)
            ],
            height=370,
            legend=False,
            wide=False,
        )


def _checkpoints(run: RunData, points: Sequence[Point]) -> Iterator[tuple[str, Chart]]:
    """The cosine of every objective to the task's, and its signal-to-noise, at each checkpoint, where there are several."""
    if len(points) < 2:
        return
    for kind, title in (("euclidean", "cosine"), ("fisher", "fisher_cosine")):
        found = []
        for point in points:
            names = _names(point)
            task = task_objective(run, names)
            if task is None:
                continue
            row = _rows_of((point.get(kind) or {}).get("matrix"), len(names))[names.index(task)] or []
            cells = zip(names, row, strict=False)
            found += [Dot(name, name, _place(point), cell) for name, cell in cells if name != task and cell]
        term = axis_title(title).partition(" (")[0]
        chart = dots(
            f"checkpoints_{kind}",
            f"{term.capitalize()} to the task gradient at each checkpoint",
            "On the checkpoint's own samples, with 95 % intervals. Alarming: an objective whose cosine turns negative.",
            axis_title(title),
            "checkpoint",
            found,
            legend=False,
            wide=True,
        )
        if chart:
            yield f"{term}, checkpoints", chart
    found = [
        Dot(str(entry["objective"]), str(entry["objective"]), _place(point), entry.get("signal_to_noise") or {})
        for point in points
        for entry in point.get("variance") or []
        if entry
    ]
    chart = dots(
        "checkpoints_snr",
        "Signal-to-noise of every objective at each checkpoint",
        "On the checkpoint's own samples, with 95 % intervals. Alarming: an interval around 0, where steps are mostly noise.",
        axis_title("snr"),
        "checkpoint",
        found,
        legend=False,
        wide=True,
    )
    if chart:
        yield "signal-to-noise, checkpoints", chart


def _variance(point: Point) -> DataTable:
    keys = {"variance_trace": "variance_trace", "signal_squared": "signal_squared", "signal_to_noise": "snr"}
    return DataTable(
        "gradient_noise",
        f"Variance and signal-to-noise of every objective, {plain_text(point.get('checkpoint'))}",
        "On the same samples, with 95 % intervals. Variances of objectives on different scales cannot be compared; their "
        "signal-to-noise ratios can.",
        ("objective", *(axis_title(metric) for metric in keys.values())),
        [
            [str(entry["objective"]), *(figure_text(entry.get(key), 1, 3) for key in keys)]
            for entry in point.get("variance") or []
            if entry
        ],
        numeric=(1, 2, 3),
    )


def _place(point: Point) -> str:
    return f"{plain_text(point.get('checkpoint'))}, step {point.get('step')}"


def _over_training(run: RunData) -> Iterator[tuple[str, Chart]]:
    """Panels, one per regime trained: cosine to the task gradient and signal-to-noise of every objective, by step."""
    cosines, noise = [], []
    for regime in run.regimes:
        rows = [(job.seed, row) for job in run.of(regime) for row in job.gradients]
        names = list(dict.fromkeys(str(name) for _, row in rows for name in row.get("objectives") or []))
        task = task_objective(run, names)
        for name in names:
            panel = f"training {plain_text(regime)}"
            if name != task:
                cosines += _curve(rows, name, "cosine_to_task", panel)
            noise += _curve(rows, name, "signal_to_noise", panel)
    seeds = "Median over seeds; with one seed the band is its 95 % interval, with several it runs from the lowest to the highest."
    for chart_id, metric, heading, reading, drawn in (
        (
            "cosine_training",
            "cosine",
            "Cosine to the task gradient over training",
            "One panel per policy that was trained; each line an objective, on that policy's own rollouts.",
            cosines,
        ),
        (
            "snr_training",
            "snr",
            "Signal-to-noise of every objective over training",
            "Whether a gradient is noisier relative to its signal.",
            noise,
        ),
    ):
        chart = panels(
            chart_id,
            heading,
            f"{reading} {seeds}",
            "training step",
            axis_title(metric),
            drawn,
            legend=False,
            robust=metric == "snr",
        )
        if chart:
            yield f"{axis_title(metric).partition(' (')[0]}, step by step", chart


def _curve(rows: Sequence[tuple[int, Mapping[str, Any]]], name: str, key: str, panel: str) -> list[Curve]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for _, row in rows:
        names = [str(other) for other in row.get("objectives") or []]
        figures = row.get(key) or []
        if name in names and names.index(name) < len(figures):
            figure = figures[names.index(name)]
            if isinstance(figure, Mapping) and finite(figure.get("estimate")) is not None:
                found.setdefault(row["step"], []).append(figure)
    if not found:
        return []
    steps, values, low, high = [], [], [], []
    for run in buckets(sorted(found), PROBES):
        figures = [figure for step in run for figure in found[step]]
        estimates = [figure["estimate"] for figure in figures]
        alone = len(figures) == 1
        steps.append(run[-1])
        values.append(float(np.median(estimates)))
        low.append(finite(figures[0].get("low")) if alone else min(estimates))
        high.append(finite(figures[0].get("high")) if alone else max(estimates))
    return [Curve(name, name, steps, values, low, high, panel=panel)]
