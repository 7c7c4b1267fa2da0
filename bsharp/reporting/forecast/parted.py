"""Curves of which a part is not reliable: that part is drawn pale and dotted, from the last reliable point on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bsharp.reporting.forecast.figures import scaled, value_of
from bsharp.reporting.forecast.grids import NOT_RELIABLE, flag
from bsharp.reporting.page.charts import Curve, curve_columns, curve_traces, significant, told

__all__ = ["Point", "ends_of", "leading", "parted", "parted_columns", "parted_traces"]

_PALE = {"opacity": 0.5, "showlegend": False}
_DOTTED = {"line": {"dash": "dot", "width": 1.5}, "marker": {"size": 5}}

Drawn = tuple[Curve, bool]


class Point(NamedTuple):
    """A figure at x; `said` is what its hover text begins with. A lower bound counts as reliable and says what it is."""

    x: float
    figure: object
    reliable: bool
    said: str
    lower_bound: bool = False


def leading(flags: Sequence[object]) -> int:
    """How many are reliable before the first that is not."""
    return next((place for place, flag in enumerate(flags) if not flag), len(flags))


def parted(name: str, regime: str, points: Sequence[Point], scale: float = 1.0) -> Iterator[Drawn]:
    """The reliable part of a curve and the rest, each with whether it is reliable; points without a figure are left out."""
    known = [point for point in points if value_of(point.figure) is not None]
    firm = leading([point.reliable or point.lower_bound for point in known])
    if firm:
        yield _curve(name, regime, known[:firm], scale), True
    if firm < len(known):
        yield _curve(name, regime, known[max(firm - 1, 0) :], scale), False


def ends_of(figure: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Estimate and interval as they are told on hover."""
    value, low, high = (significant(figure[key], 4) for key in ("estimate", "low", "high"))
    return value, low, high


def _curve(name: str, regime: str, points: Sequence[Point], scale: float) -> Curve:
    figures = [scaled(point.figure, scale) for point in points]
    marks = [flag(point.reliable, point.lower_bound) for point in points]
    text = [f"{point.said}: {told(*ends_of(figure))}" + (f", {mark}" if mark else "")
            for point, figure, mark in zip(points, figures, marks, strict=True)]  # fmt: skip
    middle, low, high = ([figure[end] for figure in figures] for end in ("estimate", "low", "high"))
    return Curve(name, regime, [significant(point.x) or 0.0 for point in points], middle, low, high, text)


def parted_traces(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Plotly's traces; only a reliable part, or a curve without one, is named in the legend."""
    named = {curve.name for curve, reliable in drawn if reliable}
    traces: list[dict[str, Any]] = []
    for curve, reliable in drawn:
        for trace in curve_traces(curve):
            trace = trace | ({"hoverinfo": "text"} if "text" in trace else {})
            if not reliable:
                band = trace["meta"]["role"] == "band"
                trace |= _PALE | ({} if band else _DOTTED | {"showlegend": curve.name not in named})
            traces.append(trace)
    return traces


def parted_columns(drawn: Sequence[Drawn], names: tuple[str, str]) -> dict[str, list[Any]]:
    """The columns of the CSV: every point once, the series of the rest named as not reliable."""
    return curve_columns([curve if reliable else _rest(curve) for curve, reliable in drawn], names)


def _rest(curve: Curve) -> Curve:
    """The part that is not reliable, without the reliable point at which it begins."""
    start = 0 if curve.text[0].endswith(NOT_RELIABLE) else 1
    return replace(
        curve,
        name=f"{curve.name}, {NOT_RELIABLE}",
        x=curve.x[start:],
        y=curve.y[start:],
        low=curve.low[start:],
        high=curve.high[start:],
        text=curve.text[start:],
    )
