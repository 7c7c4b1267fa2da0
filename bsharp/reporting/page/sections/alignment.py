"""Section 5: how the gradients of the objectives align, over the modules and over training, and how noisy they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bsharp.reporting.cells import BASE, plain_text
from bsharp.reporting.page.charts import Curve, axis, buckets, lines
from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.heatmap import heatmap
from bsharp.reporting.page.load import RunData, finite
from bsharp.reporting.page.panels import panels
from bsharp.reporting.page.parts import Chart, Choice, DataTable, Fold, Legend, Paragraph, Part, Section
from bsharp.reporting.page.sections.common import figure_text, not_computed, section_of, task_objective
from bsharp.reporting.page.sections.mistakes import mistake_parts

__all__ = ["section"]

Point = Mapping[str, Any]
PROBES = 120  # points per curve of a panel


def section(run: RunData) -> Section:
    """Matrices at the base, cosines by module and by checkpoint, curves over training, and the mistakes."""
    points = run.diagnostics.get("alignment", {}).get("points") or []
    parts: list[Part | None] = []
    if points:
        base = _base(points)
        euclidean, fisher, debiased = _matrices(base)
        parts += [
            _introduction(base),
            Legend([str(name) for name in base["objectives"]]),
            euclidean,
            fisher,
            Fold("The Euclidean cosine without the pull of sampling noise", [debiased]),
            *_modules(base),
        ]
    along: list[tuple[str, Sequence[Part]]] = [
        (label, [chart]) for label, chart in (*_over_training(run), *_checkpoints(points))
    ]
    if points:
        along.append(("variance of the base's gradients", [_variance(_base(points))]))
    if along:
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


def _introduction(point: Point) -> Paragraph:
    return Paragraph(
        f"Gradients of every objective for the same samples ({point.get('problems')} problems, {point.get('samples')} samples "
        f"of {plain_text(point.get('checkpoint'))}). Two different questions: the Euclidean cosine is the angle between the "
        "steps that the network would take; the Fisher cosine is the pooled correlation of the objectives' scores, which is "
        "the cosine of the natural gradients of a tabular policy. They can differ even in sign."
    )


def _matrices(point: Point) -> Iterator[Chart]:
    names = [str(name) for name in point["objectives"]]
    euclidean = point["euclidean"]
    where = plain_text(point.get("checkpoint"))
    yield heatmap(
        "cosine_euclidean",
        f"Euclidean cosine of the gradients, {where}",
        "1: the same direction, −1: the opposite one; in brackets: the 95 % interval includes 0. Last row: an objective against "
        "itself on two half batches; where that is near 0, its column says little.",
        ("objective", "against", axis_title("cosine")),
        names,
        [*names, NOISE_ROW],
        [*euclidean["matrix"], euclidean["noise_floor"]],
        limits=(-1, 1),
        bar=False,
    )
    yield heatmap(
        "cosine_fisher",
        f"Fisher cosine: correlation of the scores, {where}",
        "Of task reward and sharpening: how well likelihood predicts correctness. Alarming: below 0, where likelier answers are "
        "wrong more often.",
        ("objective", "against", axis_title("fisher_cosine")),
        names,
        names,
        point["fisher"]["matrix"],
        limits=(-1, 1),
        bar=False,
    )
    yield heatmap(
        "cosine_debiased",
        f"Debiased cosine of the gradients, {where}",
        "The same without the pull of sampling noise towards 0. Undefined (–) where a gradient could not be told from noise.",
        ("objective", "against", axis_title("debiased_cosine")),
        names,
        names,
        euclidean["debiased"],
        limits=(-1, 1),
    )


NOISE_ROW = "noise floor"


def _modules(point: Point) -> Iterator[Chart]:
    """The cosine to the task gradient by module group, with the noise floor, and the shares of the squared norm."""
    names, groups = [str(name) for name in point["objectives"]], point.get("groups") or {}
    task = task_objective(names)
    across = axis("module group", type="category", tickangle=-35, automargin=True)
    places = [plain_text(group) for group in groups]
    if not groups:
        return
    if task is not None:
        row = names.index(task)
        drawn = [
            Curve(name, name, places, [figures["matrix"][row][column] for figures in groups.values()])
            for column, name in enumerate(names)
            if name != task
        ]
        drawn.append(Curve(f"noise floor of {task}", None, places, [f["noise_floor"][row] for f in groups.values()]))
        yield lines(
            "cosine_modules",
            f"Cosine to the {task} gradient by module",
            f"In network order, without intervals; in neutral ink the noise floor of {task}: near 0 a module says nothing.",
            across,
            axis(axis_title("cosine")),
            drawn,
            height=370,
            legend=False,
            wide=False,
        )
    positive = all(share > 0 for figures in groups.values() for share in figures["share_of_norm"])
    yield lines(
        "norm_modules",
        "Where the gradients lie",
        "Share of each objective's squared gradient norm. Modules with a small share matter little in the chart beside.",
        across,
        axis(axis_title("share_of_norm"), **({"type": "log"} if positive else {})),
        [
            Curve(name, name, places, [100 * figures["share_of_norm"][column] for figures in groups.values()])
            for column, name in enumerate(names)
        ],
        height=370,
        legend=False,
        wide=False,
    )


def _checkpoints(points: Sequence[Point]) -> Iterator[tuple[str, Chart]]:
    """The cosine of every objective to the task's, and its signal-to-noise, at each checkpoint, where there are several."""
    if len(points) < 2:
        return
    for kind, title in (("euclidean", "cosine"), ("fisher", "fisher_cosine")):
        found = []
        for point in points:
            names = [str(name) for name in point["objectives"]]
            task = task_objective(names)
            if task is None:
                continue
            row = point[kind]["matrix"][names.index(task)]
            found += [
                Dot(name, name, _place(point), cell) for name, cell in zip(names, row, strict=True) if name != task
            ]
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
        for name in dict.fromkeys(str(name) for _, row in rows for name in row.get("objectives") or []):
            panel = f"training {plain_text(regime)}"
            if name != "task_reward":
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
