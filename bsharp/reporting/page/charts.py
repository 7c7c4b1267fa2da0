"""Charts from plain numbers: curves over training with the spread over seeds, lines with intervals.

Each builder returns a Chart whose CSV columns hold exactly what is drawn. Values are rounded to five significant digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bsharp.reporting.page.load import finite
from bsharp.reporting.page.parts import Chart

__all__ = [
    "LEGEND_BELOW",
    "LONGEST",
    "STEP",
    "Curve",
    "Series",
    "axis",
    "buckets",
    "curve_columns",
    "curve_traces",
    "curves",
    "interval_bars",
    "lines",
    "robust_range",
    "seed_band",
    "shortened",
    "significant",
    "told",
]

Series = tuple[Sequence[int], Sequence[float]]  # steps, values

LONGEST = 400
"""Points per curve; a longer one is averaged over equal runs of steps."""
LEGEND_BELOW = {"yref": "container", "y": 0, "yanchor": "bottom"}
"""At the bottom whatever the height: as a share of the plot's height it would meet the axis title of a short chart."""
STEP = "training step (optimizer updates)"


@dataclass(frozen=True)
class Curve:
    """A line with its interval at every point; `regime` chooses the colour, None is neutral ink."""

    name: str
    regime: str | None
    x: Sequence[float | str]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    text: Sequence[str] = ()
    panel: str = ""
    markers: bool = False  # points without a line between them


def significant(value: object, digits: int = 5) -> float | None:
    """`value` to that many significant digits; None where it is no finite number."""
    number = finite(value)
    return None if number is None else float(f"{number:.{digits}g}")


def axis(title: str, **more: Any) -> dict[str, Any]:
    """A plotly axis with its title, unit included."""
    return {"title": {"text": title}, **more}


def buckets(steps: Sequence[int], longest: int = LONGEST) -> list[list[int]]:
    """The steps in at most `longest` runs of equally many neighbours (the last one may be shorter); one each if they fit."""
    size = -(-len(steps) // longest) if steps else 1
    return [list(steps[start : start + size]) for start in range(0, len(steps), size)]


def seed_band(seeds: Mapping[int, Series], longest: int = LONGEST, middle: str = "mean") -> dict[str, list[Any]]:
    """Mean (or median), minimum and maximum over seeds at the steps that all seeds have, and every seed's own curve.

    Returns {"step": […], middle: […], "low": […], "high": […], seed: […]}. With more than `longest` steps every point
    is the mean over a run of neighbouring steps, put at the last of them; low and high are then over that run as well.
    A step that some seed lacks (it stopped early, or has not got there) has no mean and no band; None stands there.
    """
    by_seed = {seed: dict(zip(*series, strict=True)) for seed, series in seeds.items()}
    table: dict[str, list[Any]] = {"step": [], middle: [], "low": [], "high": [], **{str(seed): [] for seed in seeds}}
    for run in buckets(sorted({step for values in by_seed.values() for step in values}), longest):
        inside = {seed: [values[step] for step in run if step in values] for seed, values in by_seed.items()}
        full = all(inside.values())
        everything = [value for values in inside.values() for value in values]
        table["step"].append(run[-1])
        over = np.median if middle == "median" else np.mean
        table[middle].append(significant(over([np.mean(values) for values in inside.values()])) if full else None)
        table["low"].append(significant(min(everything)) if full else None)
        table["high"].append(significant(max(everything)) if full else None)
        for seed, values in inside.items():
            table[str(seed)].append(significant(np.mean(values)) if values else None)
    return table


def curves(
    chart_id: str,
    title: str,
    caption: str,
    y_title: str,
    regimes: Mapping[str, Mapping[int, Series]],
    *,
    marks: Mapping[str, Mapping[int, Mapping[int, str]]] | None = None,
    log: bool = False,
    scale: float = 1.0,
    longest: int = LONGEST,
    robust: bool = False,
) -> Chart | None:
    """Curves over training: per regime the mean over seeds, a band from the lowest to the highest seed, thin single seeds.

    `robust`: the line is the median over seeds, and outliers that would flatten all the rest lie outside of the axis,
    which the caption says; for estimates with heavy tails.

    `marks` (regime → seed → step → sentence) are drawn as crosses on the seed's curve. None where there is no value at all.
    A log axis is used where `log` asks for it and every value is above 0. The CSV has one column of steps and, per
    regime, mean, low, high and each seed; a step at which a regime was not measured is empty.
    """
    scaled = {
        regime: {seed: (steps, [value * scale for value in values]) for seed, (steps, values) in seeds.items() if steps}
        for regime, seeds in regimes.items()
    }
    middle = "median" if robust else "mean"
    tables = {regime: seed_band(seeds, longest, middle) for regime, seeds in scaled.items() if seeds}
    if not tables:
        return None
    steps = sorted({step for table in tables.values() for step in table["step"]})
    columns: dict[str, list[Any]] = {"step": list(steps)}
    traces: list[dict[str, Any]] = []
    for regime, table in tables.items():
        traces += _seed_traces(regime, table, middle)
        for key in [key for key in table if key != "step"]:
            values = dict(zip(table["step"], table[key], strict=True))
            name = f"{regime} {key if key in (middle, 'low', 'high') else f'seed {key}'}"
            columns[name] = [values.get(step) for step in steps]
        marked = (marks or {}).get(regime, {})
        traces += [trace for trace in [_mark_trace(regime, table, marked)] if trace]
    positive = all(value > 0 for seeds in scaled.values() for _, values in seeds.values() for value in values)
    y_axis = axis(y_title, type="log") if log and positive else axis(y_title)
    size = max(
        (len(buckets(series[0], longest)[0]) for seeds in scaled.values() for series in seeds.values()), default=1
    )
    if size > 1:
        caption += f" Each point is the mean of {size} consecutive steps, because the run is long."
    if robust:
        caption += " The line is the median over seeds."
        reach = robust_range(
            [value for table in tables.values() for key in (middle, "low", "high") for value in table[key]]
        )
        if reach is not None and "type" not in y_axis:
            y_axis["range"] = list(reach)
            seeds = [value for per in scaled.values() for _, values in per.values() for value in values]
            outside = sum(not reach[0] <= value <= reach[1] for value in seeds)
            caption += f" {outside} of {len(seeds)} single values lie outside of the axis; double-click to see them."
    layout = {"xaxis": axis(STEP), "yaxis": y_axis}
    return Chart(chart_id, title, caption, traces, layout, columns, 270, legend=False)


def robust_range(values: Sequence[float | None]) -> tuple[float, float] | None:
    """The 3rd to the 97th percentile and a fifth of it on both sides; None where the whole range is not twice as wide."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = (float(end) for end in np.quantile(known, (0.03, 0.97)))
    space = (high - low) / 5
    low, high = max(low - space, min(known)), high + space
    return None if max(known) - min(known) < 2 * (high - low) else (float(f"{low:.3g}"), float(f"{high:.3g}"))


def _seed_traces(regime: str, table: Mapping[str, Sequence[Any]], middle: str) -> list[dict[str, Any]]:
    seeds = [key for key in table if key not in ("step", middle, "low", "high")]
    steps = list(table["step"])
    traces = []
    if len(seeds) > 1:
        kept = [place for place, value in enumerate(table[middle]) if value is not None]
        low, high = ([table[end][i] for i in kept] for end in ("low", "high"))
        traces.append(_band(regime, [steps[i] for i in kept], low, high))
        # All seeds are one trace, with a gap between them: drawing time goes with the number of traces.
        known = [[(x, y) for x, y in zip(steps, table[seed], strict=True) if y is not None] for seed in seeds]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{regime}, single seeds",
                "legendgroup": regime,
                "showlegend": False,
                "x": [x for points in known for x in [*(x for x, _ in points), None]][:-1],
                "y": [y for points in known for y in [*(y for _, y in points), None]][:-1],
                "meta": {"regime": regime, "role": "seed"},
            }
        )
    mean: dict[str, Any] = {"type": "scatter", "mode": "lines+markers" if len(steps) <= 12 else "lines", "name": regime}
    mean |= {"legendgroup": regime, "x": steps, "y": list(table[middle]), "connectgaps": True}
    return [*traces, mean | {"meta": {"regime": regime, "role": "line"}}]


def _mark_trace(
    regime: str, table: Mapping[str, Sequence[Any]], marks: Mapping[int, Mapping[int, str]]
) -> dict[str, Any] | None:
    """A cross for each alarm, on the point of its seed's curve that holds the step."""
    found = []
    for seed, sentences in marks.items():
        for step, sentence in sentences.items():
            place = next((i for i, last in enumerate(table["step"]) if last >= step), None)
            if place is None or str(seed) not in table:
                continue
            value = table[str(seed)][place]
            if value is not None:
                found.append((table["step"][place], value, f"seed {seed}, step {step}: {sentence}"))
    if not found:
        return None
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{regime}: alarm",
        "legendgroup": regime,
        "x": [x for x, _, _ in found],
        "y": [y for _, y, _ in found],
        "text": [text for _, _, text in found],
        "hoverinfo": "text",
        "marker": {"symbol": "x", "size": 11},
        "meta": {"regime": regime, "role": "marker"},
    }


def _band(
    regime: str | None, x: Sequence[Any], low: Sequence[Any], high: Sequence[Any], group: str = ""
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "toself",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group or regime,
        "meta": {"regime": regime, "role": "band"},
    }


def lines(
    chart_id: str,
    title: str,
    caption: str,
    x_axis: Mapping[str, Any],
    y_axis: Mapping[str, Any],
    drawn: Sequence[Curve],
    *,
    band: bool = True,
    extra: Sequence[Mapping[str, Any]] = (),
    height: int = 380,
    legend: bool = True,
    wide: bool | None = None,
) -> Chart:
    """Curves with their intervals, as bands or as error bars. The CSV is long: series, x, y, low, high (and text)."""
    traces = [trace for curve in drawn for trace in curve_traces(curve, band)]
    layout = {"xaxis": dict(x_axis), "yaxis": dict(y_axis)}
    names = (_plain(x_axis), _plain(y_axis))
    return Chart(chart_id, title, caption, [*traces, *extra], layout, curve_columns(drawn, names), height, wide, legend)


def _plain(described: Mapping[str, Any]) -> str:
    return str(described["title"]["text"])


def curve_columns(drawn: Sequence[Curve], names: tuple[str, str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"series": [], names[0]: [], names[1]: [], "low": [], "high": []}
    if any(curve.panel for curve in drawn):
        columns = {"panel": [], **columns}
    if any(curve.text for curve in drawn):
        columns["text"] = []
    for curve in drawn:
        count = len(curve.x)
        values: dict[str, list[Any]] = {
            "panel": [curve.panel] * count,
            "series": [curve.name] * count,
            names[0]: [significant(x) if finite(x) is not None else x for x in curve.x],
            names[1]: [significant(y) for y in curve.y],
            "low": [significant(y) for y in curve.low] or [None] * count,
            "high": [significant(y) for y in curve.high] or [None] * count,
            "text": list(curve.text) or [""] * count,
        }
        for name, column in columns.items():
            column += values[name]
    return columns


def curve_traces(curve: Curve, band: bool = True, axes: tuple[str, str] = ("x", "y"), legend: bool = True) -> list[Any]:
    """The plotly traces of a curve: its band or error bars, and the line."""
    x, y = list(curve.x), [significant(value) for value in curve.y]
    low, high = [significant(value) for value in curve.low], [significant(value) for value in curve.high]
    mode, role = ("markers", "marker") if curve.markers else ("lines+markers", "line")
    line: dict[str, Any] = {"type": "scatter", "mode": mode, "name": curve.name, "legendgroup": curve.name}
    line |= {"x": x, "y": y, "meta": {"regime": curve.regime, "role": role}, "showlegend": legend}
    if curve.text:
        line |= {"text": list(curve.text)}
    traces: list[dict[str, Any]] = [line]
    kept = [i for i in range(len(low)) if low[i] is not None and high[i] is not None]
    if kept and band:
        area = _band(curve.regime, [x[i] for i in kept], [low[i] for i in kept], [high[i] for i in kept], curve.name)
        traces.insert(0, area)
    elif kept:
        line["error_y"] = interval_bars(y, low, high)
    return [trace | {"xaxis": axes[0], "yaxis": axes[1]} for trace in traces] if axes != ("x", "y") else traces


def interval_bars(values: Sequence[Any], low: Sequence[Any], high: Sequence[Any]) -> dict[str, Any]:
    """Plotly's error bars from the ends of intervals."""

    def distance(far: Any, near: Any) -> float | None:
        return 0.0 if far is None or near is None else significant(max(far - near, 0.0))

    return {
        "type": "data",
        "symmetric": False,
        "array": [distance(end, value) for end, value in zip(high, values, strict=True)],
        "arrayminus": [distance(value, end) for end, value in zip(low, values, strict=True)],
        "thickness": 1.2,
    }


def told(value: float | None, low: float | None, high: float | None) -> str:
    """`0.3 [0.2, 0.4]`, as hover text."""
    return f"{value:g}" if low is None or high is None else f"{value:g} [{low:g}, {high:g}]"


def shortened(text: str, longest: int = 34) -> str:
    """`text`, cut where it would push the chart aside."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
