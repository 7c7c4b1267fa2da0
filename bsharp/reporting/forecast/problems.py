"""Likelihood against correctness, problem by problem: correlation over accuracy, and by family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import plain_text
from bsharp.reporting.forecast.figures import Forecast, scaled, value_of
from bsharp.reporting.page.charts import LEGEND_BELOW, axis, interval_bars, significant, told
from bsharp.reporting.page.parts import Chart

__all__ = ["NO_FAMILY", "problem_charts"]

NO_FAMILY = "no family"
CORRELATION = "correlation of likelihood and correctness"
MOST_FAMILIES = 12
"""Families drawn apart from each other; the smallest of more share one colour."""
OTHERS = "other families"
# Colours that no other chart of the page uses, and a symbol for each family: with more families colours come again.
_COLOURS = ("task_reward", "tempered", *(f"family colour {at}" for at in range(1, 5)))
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "pentagon", "triangle-down", "hexagon", "x",
            "hourglass", "bowtie")  # fmt: skip

Problem = Mapping[str, Any]


def problem_charts(forecast: Forecast) -> list[tuple[str, Chart]]:
    """The charts with what their buttons say; none where no problem has a correlation."""
    every = list(forecast["per_problem"] or [])
    drawn = [problem for problem in every if value_of(problem.get("correlation")) is not None]
    if not drawn:
        return []
    undefined = len(every) - len(drawn)
    left = (
        f" {undefined} of {len(every)} problems have no correlation (all samples right, all wrong, or equally likely)."
    )
    charts = [("against accuracy", _against_accuracy(drawn, left if undefined else ""))]
    if len({_family(problem) for problem in drawn}) > 1:
        charts.append(("by family", _by_family(forecast, drawn, left if undefined else "")))
    return charts


def _family(problem: Problem) -> str:
    return plain_text(problem.get("family") or NO_FAMILY)


def _groups(drawn: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Problems by family, largest first; what is beyond the most that can be told apart under one name."""
    found: dict[str, list[Problem]] = {}
    for problem in drawn:
        found.setdefault(_family(problem), []).append(problem)
    ordered = dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))
    if len(ordered) <= MOST_FAMILIES:
        return ordered
    names = list(ordered)[: MOST_FAMILIES - 1]
    rest = [problem for name, problems in ordered.items() if name not in names for problem in problems]
    return {name: ordered[name] for name in names} | {OTHERS: rest}


def _points(
    name: str, place: int, problems: Sequence[Problem], across: Sequence[Any], down: Sequence[Any]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(across),
        "y": list(down),
        "text": [_told(problem) for problem in problems],
        "hoverinfo": "text",
        "marker": {"size": 8, "opacity": 0.8, "symbol": _SYMBOLS[place % len(_SYMBOLS)]},
        "meta": {"regime": _COLOURS[place % len(_COLOURS)], "role": "marker"},
    }


def _told(problem: Problem) -> str:
    figure = scaled(problem.get("correlation"), 1.0)
    value, low, high = (significant(figure[key], 2) for key in ("estimate", "low", "high"))
    return f"{plain_text(problem.get('problem_id'))} ({_family(problem)}): {told(value, low, high)}, {_right(problem)}"


def _right(problem: Problem) -> str:
    """`4 of 16 right`; in per cent where the count is not known."""
    accuracy, count = value_of(problem.get("accuracy")), problem.get("correct")
    right = f"{100 * (accuracy or 0.0):.0f} %" if count is None else plain_text(count)
    return f"{right} of {problem.get('samples')} right"


def _columns(drawn: Sequence[Problem]) -> dict[str, list[Any]]:
    figures = [scaled(problem.get("correlation"), 1.0) for problem in drawn]
    return {
        "problem": [plain_text(problem.get("problem_id")) for problem in drawn],
        "family": [_family(problem) for problem in drawn],
        "samples": [problem.get("samples") for problem in drawn],
        "accuracy": [significant(value_of(problem.get("accuracy"))) for problem in drawn],
        "covariance": [significant(value_of(problem.get("covariance"))) for problem in drawn],
        CORRELATION: [significant(figure["estimate"]) for figure in figures],
        "low": [significant(figure["low"]) for figure in figures],
        "high": [significant(figure["high"]) for figure in figures],
    }


def _against_accuracy(drawn: Sequence[Problem], left: str) -> Chart:
    traces = []
    for place, (name, problems) in enumerate(_groups(drawn).items()):
        accuracy = [significant(100 * (value_of(problem.get("accuracy")) or 0.0)) for problem in problems]
        correlation = [significant(value_of(problem.get("correlation"))) for problem in problems]
        traces.append(_points(name, place, problems, accuracy, correlation))
    return Chart(
        "problems",
        "Likelihood against correctness, one point a problem",
        "How to read this: above 0 the likelier samples of the problem are more often right, so sharpening helps there at first; "
        "below 0 it hurts. Few samples a problem: single points are loose, their intervals show on hover. A family's name hides "
        f"it; twice, and it stands alone.{left}",
        traces,
        {
            "xaxis": axis("accuracy of the base (%)", range=[-3, 103], automargin=True),
            "yaxis": axis(CORRELATION, range=[-1.05, 1.05]),
            "legend": LEGEND_BELOW,
        },
        _columns(drawn),
        460,
        wide=True,
    )


def _by_family(forecast: Forecast, drawn: Sequence[Problem], left: str) -> Chart:
    groups: dict[str, list[Problem]] = {}
    for problem in drawn:
        groups.setdefault(_family(problem), []).append(problem)
    names = sorted(groups, key=lambda name: (-_mean(groups[name]), name))
    traces = []
    for place, name in enumerate(names):
        problems = groups[name]
        correlation = [significant(value_of(problem.get("correlation"))) for problem in problems]
        # Spread over the row by place, so that equal values are seen as several; nothing random in a page.
        down = [round(place + 0.5 * ((0.618 * at) % 1 - 0.5), 3) for at in range(len(problems))]
        trace = _points(name, 0, problems, correlation, down)
        traces.append(trace | {"showlegend": False, "meta": {"role": "marker"}, "marker": {"size": 6, "opacity": 0.55}})
    pooled = [(place, scaled(_pooled(forecast, name), 1.0)) for place, name in enumerate(names)]
    known = [(place, figure) for place, figure in pooled if figure["estimate"] is not None]
    if known:
        ends = [[significant(figure[key]) for _, figure in known] for key in ("estimate", "low", "high")]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "pooled over the family",
                "x": ends[0],
                "y": [place for place, _ in known],
                "error_x": interval_bars(*ends),
                "text": [
                    f"{names[place]}, pooled: {told(*(row[at] for row in ends))}" for at, (place, _) in enumerate(known)
                ],
                "hoverinfo": "text",
                "marker": {"size": 11, "symbol": "diamond"},
                "meta": {"regime": "task_reward", "role": "marker"},
            }
        )
    ticks = {
        "tickvals": list(range(len(names))),
        "ticktext": [name if len(name) <= 34 else f"{name[:33]}…" for name in names],
    }
    layout = {
        "xaxis": axis(CORRELATION, range=[-1.05, 1.05], zeroline=True, automargin=True),
        "yaxis": axis("family", range=[len(names) - 0.4, -0.6], automargin=True, zeroline=False, **ticks),
        "legend": LEGEND_BELOW,
    }
    return Chart(
        "problems_by_family",
        "Likelihood against correctness by family",
        "How to read this: small points are problems; the diamond is the family's pooled correlation with its 95 % interval. "
        f"Families whose interval lies left of 0 are made worse by sharpening at first.{left}",
        traces,
        layout,
        _columns(drawn),
        130 + 26 * len(names),
        wide=True,
    )


def _mean(problems: Sequence[Problem]) -> float:
    values = [value for problem in problems if (value := value_of(problem.get("correlation"))) is not None]
    return sum(values) / max(len(values), 1)


def _pooled(forecast: Forecast, name: str) -> object:
    found = {plain_text(family): figures for family, figures in (forecast["families"] or {}).items()}
    return (found.get(name) or {}).get("within_correlation")
