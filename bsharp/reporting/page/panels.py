"""Small multiples: the same axes once per regime or per run, in one chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bsharp.reporting.page.charts import (
    LEGEND_BELOW,
    Curve,
    axis,
    curve_columns,
    curve_traces,
    robust_range,
    shortened,
    significant,
)
from bsharp.reporting.page.parts import Chart

__all__ = ["panels"]

Range = tuple[float, float]


def panels(
    chart_id: str,
    title: str,
    caption: str,
    x_title: str,
    y_title: str,
    drawn: Iterable[Curve],
    *,
    band: bool = True,
    square: Range | None = None,
    diagonal: bool = False,
    legend: bool = True,
    robust: bool = False,
) -> Chart | None:
    """One panel per `Curve.panel`, three beside each other, all with the same axes. None without curves.

    `robust`: outliers that would flatten all the rest lie outside of the axis, which the caption says.
    `square` is the range of both axes where it is known; `diagonal` draws y = x over the range of the values.
    """
    kept = list(drawn)
    names = list(dict.fromkeys(curve.panel for curve in kept))
    if not names:
        return None
    across = min(3, len(names))
    down = -(-len(names) // across)
    layout: dict[str, Any] = {"annotations": [], "legend": LEGEND_BELOW}
    layout["grid"] = {"rows": down, "columns": across, "pattern": "independent", "xgap": 0.22, "ygap": 0.4}
    traces: list[dict[str, Any]] = []
    values = [value for curve in kept for value in (*curve.x, *curve.y) if value is not None]
    reach = [significant(end) for end in (square or (min(values), max(values)))] if diagonal else []
    told: set[str] = set()
    for place, name in enumerate(names):
        suffix = "" if place == 0 else str(place + 1)
        x, y = f"x{suffix}", f"y{suffix}"
        for letter, described in (("x", x_title), ("y", y_title)):
            shared: dict[str, Any] = {"matches": letter} if place else {}
            layout[f"{letter}axis{suffix}"] = axis(described, **({"range": list(square)} if square else shared))
        layout["annotations"].append(_heading(name, x, y))
        for curve in [curve for curve in kept if curve.panel == name]:
            traces += curve_traces(curve, band, (x, y), curve.name not in told)
            told.add(curve.name)
        if reach:
            traces.append(_diagonal(reach, x, y))
    across_all = [value for curve in kept for value in (*curve.y, *curve.low, *curve.high)]
    reach_y = robust_range(across_all) if robust else None
    if reach_y is not None:
        layout["yaxis"]["range"] = list(reach_y)
        caption += " Outliers lie outside of the axis; double-click to see them."
    return Chart(
        chart_id,
        title,
        caption,
        traces,
        layout,
        curve_columns(kept, (x_title, y_title)),
        (130 if legend else 60) + 250 * down,
        True,
        legend,
    )


def _heading(name: str, x: str, y: str) -> dict[str, Any]:
    """The panel's name above it."""
    place = {"x": 0, "y": 1.01, "xanchor": "left", "yanchor": "bottom", "xref": f"{x} domain", "yref": f"{y} domain"}
    return {"text": shortened(name), "showarrow": False, **place}


def _diagonal(reach: Sequence[float | None], x: str, y: str) -> dict[str, Any]:
    line = {"type": "scatter", "mode": "lines", "x": list(reach), "y": list(reach), "line": {"dash": "dot", "width": 1}}
    return line | {"name": "equal", "showlegend": False, "hoverinfo": "skip", "xaxis": x, "yaxis": y}
