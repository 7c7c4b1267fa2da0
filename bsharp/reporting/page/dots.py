"""Estimates with their intervals, categories downwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bsharp.reporting.page.charts import LEGEND_BELOW, axis, interval_bars, shortened, significant, told
from bsharp.reporting.page.load import finite
from bsharp.reporting.page.parts import Chart

__all__ = ["Dot", "dots"]

Estimated = Mapping[str, Any]


@dataclass(frozen=True)
class Dot:
    """One estimate of a chart of estimates: the series it belongs to, its place on the category axis and its figure."""

    series: str
    regime: str | None
    place: str
    figure: Estimated


def dots(
    chart_id: str,
    title: str,
    caption: str,
    x_title: str,
    y_title: str,
    drawn: Sequence[Dot],
    *,
    scale: float = 1.0,
    legend: bool = True,
    wide: bool | None = None,
    apart: bool = True,
    zero: bool = False,
) -> Chart | None:
    """Estimates with their 95 % intervals: categories downwards, one symbol per series. None without any.

    Series stand below each other within a category (not `apart`: on one line) where it holds several. `zero`: the axis
    includes 0.

    The CSV is long: series, category, estimate, low, high, n.
    """
    kept = [dot for dot in drawn if finite(dot.figure.get("estimate")) is not None]
    if not kept:
        return None
    places = list(dict.fromkeys(dot.place for dot in kept))
    names = list(dict.fromkeys(dot.series for dot in kept))
    several = apart and len({(dot.place, dot.series) for dot in kept}) > len(places)
    rows = len(names) if several else 1
    columns: dict[str, list[Any]] = {"series": [], y_title: [], x_title: [], "low": [], "high": [], "n": []}
    traces = []
    for position, name in enumerate(names):
        own = [dot for dot in kept if dot.series == name]
        value, low, high = ([_scaled(dot.figure, key, scale) for dot in own] for key in ("estimate", "low", "high"))
        offset = 0.0 if rows == 1 else 0.64 * (position / (len(names) - 1) - 0.5)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": value,
                "y": [round(places.index(dot.place) + offset, 3) for dot in own],
                "error_x": interval_bars(value, low, high),
                "text": [
                    f"{dot.place}, {name}: {told(v, a, b)}" for dot, v, a, b in zip(own, value, low, high, strict=True)
                ],
                "hoverinfo": "text",
                "marker": {"size": 9},
                "meta": {"regime": own[0].regime, "role": "marker"},
            }
        )
        for dot, *numbers in zip(own, value, low, high, strict=True):
            for column, cell in zip(columns.values(), [name, dot.place, *numbers, dot.figure.get("n")], strict=True):
                column.append(cell)
    height = (170 if legend else 90) + len(places) * max(28, 8 * rows + 6)
    layout = {
        "xaxis": axis(x_title, zeroline=True, **({"rangemode": "tozero"} if zero else {})),
        "yaxis": _category_axis(y_title, places),
        "legend": LEGEND_BELOW,
    }
    return Chart(chart_id, title, caption, traces, layout, columns, height, wide, legend)


def _scaled(figure: Estimated, key: str, scale: float) -> float | None:
    value = finite(figure.get(key))
    return None if value is None else significant(value * scale)


def _category_axis(title: str, places: Sequence[str]) -> dict[str, Any]:
    """The first category on top; positions between them are free for series of one category."""
    ticks = {"tickvals": list(range(len(places))), "ticktext": [shortened(place) for place in places]}
    return axis(title, **ticks, range=[len(places) - 0.4, -0.6], automargin=True, zeroline=False)
