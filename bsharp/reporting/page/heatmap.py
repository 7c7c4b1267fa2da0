"""A matrix with its numbers printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bsharp.reporting.page.charts import axis, shortened, significant, told
from bsharp.reporting.page.parts import Chart

__all__ = ["heatmap"]

LONG = 40  # characters of a label beside a wide matrix; the page cuts longer ones anyway


def heatmap(
    chart_id: str,
    title: str,
    caption: str,
    titles: tuple[str, str, str],
    across: Sequence[str],
    down: Sequence[str],
    values: Sequence[Sequence[Any]],
    *,
    limits: tuple[float, float] | None = None,
    compact: bool = False,
    digits: int = 2,
    bar: bool = True,
) -> Chart:
    """A matrix with its numbers printed. `titles`: of the columns, of the rows, of the values.

    A value is a number, an estimate (its interval shows on hover) or None. Where an estimate has an
    interval that includes 0 its number stands in brackets. Without `limits` the colour is symmetric around 0 and full
    from the 95th percentile of the sizes on, so that one outlier does not pale the others; the caption says from where.
    `compact` rows are one line high. `bar`: with a colour bar. The CSV is long: row, column, value, low, high.
    """
    columns: dict[str, list[Any]] = {titles[1]: [], titles[0]: [], titles[2]: [], "low": [], "high": []}
    numbers: list[list[Any]] = []
    hover: list[list[str]] = []
    printed: list[list[str]] = []
    for name, row in zip(down, values, strict=True):
        for cells in (numbers, hover, printed):
            cells.append([])
        for other, cell in zip(across, row, strict=True):
            figure = cell if isinstance(cell, Mapping) else {"estimate": cell}
            value, low, high = (significant(figure.get(key)) for key in ("estimate", "low", "high"))
            printed[-1].append(_printed(value, low, high, digits))
            numbers[-1].append(value)
            hover[-1].append(f"{name} × {other}: {'undefined' if value is None else told(value, low, high)}")
            for column, entry in zip(columns.values(), (name, other, value, low, high), strict=True):
                column.append(entry)
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": _labels(across, 20),
        "y": _labels(down, LONG if compact else 20),
        "z": numbers,
        "text": printed,
        "texttemplate": "%{text}",
        "customdata": hover,
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorbar": {"title": {"text": titles[2], "side": "right"}},
        "showscale": bar,
        "meta": {"scale": "diverging"},
    }
    if limits is None:
        reach = _reach(numbers)
        limits = (-reach, reach)
        caption += f" Colour is full from ±{reach:g} on."
    trace |= {"zmin": limits[0], "zmax": limits[1]}
    layout = {
        "xaxis": axis(titles[0], type="category", automargin=True),
        "yaxis": axis(titles[1], type="category", autorange="reversed", automargin=True),
    }
    height = 110 + 25 * len(down) if compact else max(300, 150 + 40 * len(down))
    return Chart(chart_id, title, caption, [trace], layout, columns, height, wide=bar, legend=False)


def _labels(names: Sequence[str], longest: int) -> list[str]:
    """The names, cut; numbered where two are cut to the same, which the chart would take for one."""
    cut = [shortened(name, longest) for name in names]
    return [
        label if cut.count(label) == 1 else f"{label} ({cut[:at].count(label) + 1})" for at, label in enumerate(cut)
    ]


def _printed(value: float | None, low: float | None, high: float | None, digits: int) -> str:
    if value is None:
        return "–"
    text = f"{value:.{digits}f}".replace("-", "−")
    if not text.strip("−0."):
        text = text.lstrip("−")
    return f"({text})" if low is not None and high is not None and low <= 0 <= high else text


def _reach(numbers: Sequence[Sequence[float | None]]) -> float:
    sizes = [abs(value) for row in numbers for value in row if value is not None]
    return significant(float(np.quantile(sizes, 0.95)) if sizes else 1.0, 2) or 1.0
