"""The charts of a forecast's page: regimes, accuracy along α, limits by k, the tilt against its KL, families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bsharp.reporting.cells import BASE, plain_text
from bsharp.reporting.forecast.along import LIMITS
from bsharp.reporting.forecast.figures import Forecast, by_likelihood, entries, scaled, value_of
from bsharp.reporting.forecast.grids import LOWER_BOUND, NOT_RELIABLE, flag, number_text, short_name
from bsharp.reporting.forecast.parted import (
    Drawn,
    Point,
    ends_of,
    leading,
    parted,
    parted_columns,
    parted_traces,
)
from bsharp.reporting.page.charts import (
    Curve,
    axis,
    interval_bars,
    lines,
    significant,
    told,
)
from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.heatmap import heatmap
from bsharp.reporting.page.load import finite
from bsharp.reporting.page.parts import Chart

__all__ = ["alpha_charts", "by_k_chart", "families_chart", "gains_chart", "tilt_chart"]

ACCURACY = "accuracy (%)"
COLOURS: Mapping[str, str] = {"sum": "sharpening", "mean": "sharpening_mean", "majority": "tilted_alpha_2"}
"""The palette's names of the likelihoods and limits; the same colours as of the regimes in a report."""
APART = 0.05
"""Points of the tilt whose accuracies differ by less, and whose KL is as near, share a label."""
_MARKS = {"": "", LOWER_BOUND: "≥ ", NOT_RELIABLE: "* "}
_REGIMES = ("task_reward", "sharpening", "tempered", "tilted")


def colour(regime: str) -> str | None:
    """The palette's name for a regime as it is written: `sharpening(normalisation=mean)` is `sharpening_mean`."""
    head = regime.partition("=")[2] if "=" in regime.partition("(")[0] else regime
    name = head.partition("(")[0].strip()
    if name == "sharpening" and "mean" in head:
        return COLOURS["mean"]
    return name if name in _REGIMES else None


def gains_chart(forecast: Forecast) -> Chart | None:
    """The forecast change of every regime, with intervals."""
    found = []
    for name, regime in (forecast["regimes"] or {}).items():
        # The mark stands first: the end of a long name is cut.
        shown = _MARKS[flag(regime.get("reliable"), regime.get("lower_bound"))] + short_name(name)
        found.append(Dot(shown, colour(str(name)), shown, regime["delta"]))
    return dots(
        "gains",
        "Forecast change of accuracy at the optimum of each regime",
        "How to read this: right of 0 the regime's optimum is better than the base on these problems; where the interval "
        "includes 0 the samples cannot tell. An asterisk: not reliable, for the reason given below the table. ≥: a lower bound.",
        "Δ to base (points)",
        "regime",
        found,
        scale=100,
        legend=False,
        wide=True,
        zero=True,
    )


def alpha_charts(forecast: Forecast) -> list[tuple[str, Chart]]:
    """What is drawn along α: accuracy, length, KL and effective samples, each with what its button says."""
    charts = [("accuracy", _accuracy(forecast))]
    for key, label, title, unit, reading in (
        ("length", "length", "Length along α", "length (tokens)", "A falling line: likelier responses are shorter."),
        ("kl", "KL", "Distance to the base along α", "KL to the base (nats/sequence)", "0 is the base itself."),
        ("ess", "effective samples", "Effective samples along α", "effective samples (median problem)",
         "How many samples share the weight in the median problem. At 1 a single sample decides."),
    ):  # fmt: skip
        drawn = _tempered(forecast, key, 1.0)
        if drawn:
            caption = f"How to read this: {reading} Pale: not reliable."
            charts.append((label, _along(f"alpha_{key}", title, caption, unit, forecast, drawn)))
    return [(label, chart) for label, chart in charts if chart is not None]


def _tempered(forecast: Forecast, key: str, scale: float) -> list[Drawn]:
    """Each likelihood's curve along α."""
    drawn: list[Drawn] = []
    for name in ("sum", "mean"):
        rows = entries(by_likelihood(forecast, "tempered", name), "alpha", key, "reliable")
        points = [Point(float(knob), figure, bool(reliable), f"{name}, α = {number_text(knob)}")
                  for knob, figure, reliable in rows if finite(knob) is not None]  # fmt: skip
        drawn += parted(name, COLOURS[name], points, scale)
    return drawn


def _along(
    chart_id: str,
    title: str,
    caption: str,
    y_title: str,
    forecast: Forecast,
    drawn: Sequence[Drawn],
    extra: Sequence[Mapping[str, Any]] = (),
    more: Mapping[str, Any] | None = None,
    height: int = 420,
) -> Chart:
    """Curves along α, with a mark where each stops being reliable."""
    values = [value for curve, _ in drawn for value in (*curve.y, *curve.low, *curve.high) if value is not None]
    traces = [*parted_traces(drawn), *_cuts(forecast, min(values), max(values)), *extra]
    layout = {"xaxis": axis("α", **(more or {})), "yaxis": axis(y_title)}
    return Chart(chart_id, title, caption, traces, layout, parted_columns(drawn, ("α", y_title)), height, wide=True)


def _cuts(forecast: Forecast, low: float, high: float) -> Iterator[dict[str, Any]]:
    """A vertical line at the last reliable α of each likelihood that has an unreliable one."""
    found: dict[float, list[str]] = {}
    for name in ("sum", "mean"):
        flags = list(entries(by_likelihood(forecast, "tempered", name), "alpha", "reliable"))
        firm = leading([reliable for _, reliable in flags])
        if firm < len(flags):
            found.setdefault(float(flags[max(firm - 1, 0)][0]), []).append(name)
    for alpha, names in found.items():
        yield {
            "type": "scatter",
            "mode": "lines+text",
            "name": "end of what is reliable",
            "x": [alpha, alpha],
            "y": [significant(low - 0.08 * (high - low)), significant(high)],  # the label stands below the curves
            "text": [f"\u00a0{' and '.join(names)}: reliable to here", ""],
            "textposition": "top right",
            "hoverinfo": "skip",
            "showlegend": False,
            "line": {"dash": "dash", "width": 1},
            "meta": {"role": "line"},
        }


def _accuracy(forecast: Forecast) -> Chart | None:
    drawn = _tempered(forecast, "accuracy", 100.0)
    if not drawn:
        return None
    knobs = [float(x) for curve, _ in drawn for x in curve.x]
    first, last = min(knobs), max(knobs)
    end = last + 0.09 * max(last - first, 0.1)
    ticks = [tick for tick in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0) if first <= tick <= last] or sorted(set(knobs))
    extra = [*_base_line(forecast, first, end), *_limit_marks(forecast, end, 0.018 * (end - first))]
    return _along(
        "alpha_accuracy",
        "Forecast accuracy of the tempered policy along α",
        "How to read this: α = 1 is the base; rightwards likely responses gain weight. Rising: likely answers are right. "
        "At the right edge the limits: the likeliest of the samples by the sum and by the mean, and the most frequent answer. "
        "Bands and bars: 95 % intervals. Pale: not reliable, the samples do not carry the estimate.",
        ACCURACY,
        forecast,
        drawn,
        extra,
        {
            "tickvals": [*ticks, end],
            "ticktext": [*map(number_text, ticks), "limit"],
            "range": [first - 0.03 * (end - first), end + 0.05 * (end - first)],
        },
        460,
    )


def _base_line(forecast: Forecast, first: float, end: float) -> Iterator[dict[str, Any]]:
    value = value_of(forecast["base"]["accuracy"])
    if value is not None:
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": BASE,
            "x": [first, end],
            "y": [significant(100 * value)] * 2,
            "line": {"width": 1.5},
            "meta": {"regime": BASE, "role": "line"},
        }


_SHORT = {"sum": "likeliest, sum", "mean": "likeliest, mean", "majority": "most frequent answer"}


def _limit_marks(forecast: Forecast, end: float, apart: float) -> Iterator[dict[str, Any]]:
    """The limits as points with intervals at the right edge, beside each other."""
    for place, name in enumerate(LIMITS):
        limit = by_likelihood(forecast, "limit", name)
        figure, reliable = scaled(limit.get("accuracy")), limit.get("reliable", True)
        if figure["estimate"] is None:
            continue
        flag = "" if reliable else f", {NOT_RELIABLE}"
        ends = [[significant(figure[key])] for key in ("estimate", "low", "high")]
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": _SHORT[name],
            "x": [end + (place - 1) * apart],
            "y": ends[0],
            "error_y": interval_bars(*ends),
            "text": [f"{LIMITS[name]}: {told(*ends_of(figure))}{flag}"],
            "hoverinfo": "text",
            "marker": {"size": 10},
            "opacity": 1 if reliable else 0.5,
            "meta": {"regime": COLOURS[name], "role": "marker"},
        }


def by_k_chart(forecast: Forecast) -> Chart | None:
    """Each limit with k of the samples instead of all."""
    curves = []
    for name in LIMITS:
        rows = list(entries(by_likelihood(forecast, "limit", name).get("by_k"), "k", "accuracy"))
        known = [(float(k), 100 * value) for k, share in rows if finite(k) and (value := value_of(share)) is not None]
        if known:
            curves.append(Curve(_SHORT[name], COLOURS[name], [k for k, _ in known], [y for _, y in known]))
    if not curves:
        return None
    ticks = sorted({x for curve in curves for x in curve.x if isinstance(x, float)})
    return lines(
        "limits_by_k",
        "The limits with k of the samples",
        "How to read this: the likeliest (or most frequent) of k samples, averaged over all choices of k. Where the line still "
        "climbs or falls at its end, more samples would move the limit further.",
        axis("k (samples)", type="log", tickvals=ticks, ticktext=list(map(number_text, ticks))),
        axis(ACCURACY),
        curves,
        wide=True,
        height=360,
    )


def tilt_chart(forecast: Forecast) -> Chart | None:
    """Accuracy against KL: the tilt along β⁻¹, the tempered policy beside it, and what no tilt can pass."""
    tilt = [(0.0, forecast["base"]["accuracy"], 0.0, True, False)]  # no tilt: the base itself
    tilt += entries(forecast["tilt"], "kl", "accuracy", "beta_inv", "reliable", "lower_bound")
    curve = by_likelihood(forecast, "tempered", "sum")
    tempered = list(entries(curve, "kl", "accuracy", "alpha", "reliable", "lower_bound"))
    # Where its weights no longer carry, the tempered policy's KL would only stretch the axis.
    tempered = tempered[: leading([row[3] for row in tempered])]
    drawn: list[Drawn] = []
    for name, regime, knob, rows in (("tilt", "tilted", "β⁻¹", tilt), ("tempered (sum)", "tempered", "α", tempered)):
        points = [Point(x, accuracy, bool(reliable), f"{knob} = {number_text(value)}, {x:.3g} nats, accuracy (%)",
                        bool(lower))
                  for kl, accuracy, value, reliable, lower in rows if (x := value_of(kl)) is not None]  # fmt: skip
        drawn += parted(name, regime, points, 100.0)
    if not drawn:
        return None
    reach = max(float(x) for curve, _ in drawn for x in curve.x) or 1.0
    ends = [value for curve, _ in drawn for value in (*curve.y, *curve.low, *curve.high) if value is not None]
    ends += [100 * (1 - none) for none in [value_of(forecast["base"]["no_correct_share"])] if none is not None]
    low, high, span = min(ends), max(ends), max(ends) - min(ends) or 1.0
    x_title = "KL to the base (nats/sequence)"
    return Chart(
        "tilt_kl",
        "What a nat of KL buys",
        "How to read this: the numbers beside the tilt are its β⁻¹, larger ones further right; ≥ is a lower bound. The dotted "
        "line is the share of problems with a right sample, which no tilt of these samples can pass. Where likelihood predicts "
        "correctness badly, the tempered policy pays KL and gains little. Pale: not reliable; of the tempered policy that part "
        "is left out.",
        [*parted_traces(drawn), *_ceiling(forecast, reach), *_knobs(forecast, reach, 0.02 * span)],
        {
            # Room for the labels: left of the first points and above the last, where no curve runs.
            "xaxis": axis(x_title, range=[-0.08 * reach, 1.04 * reach], automargin=True),
            "yaxis": axis(ACCURACY, range=[low - 0.06 * span, high + 0.14 * span]),
        },
        parted_columns(drawn, (x_title, ACCURACY)),
        400,
        wide=True,
    )


def _knobs(forecast: Forecast, reach: float, lift: float) -> Iterator[dict[str, Any]]:
    """β⁻¹ beside the points of the tilt; those too near to each other have one label; the last `lift` points above its own."""
    labels: list[tuple[float, float, list[str], bool]] = []
    for kl, accuracy, knob, lower in entries(forecast["tilt"], "kl", "accuracy", "beta_inv", "lower_bound"):
        x, y = value_of(kl), value_of(accuracy)
        if x is None or y is None:
            continue
        near = labels and abs(x - labels[-1][0]) < 0.12 * reach and abs(y - labels[-1][1]) < APART
        if near and bool(lower) == labels[-1][3]:
            labels[-1] = (x, y, [*labels[-1][2], number_text(knob)], bool(lower))
        else:
            labels.append((x, y, [number_text(knob)], bool(lower)))
    if labels:
        last = len(labels) - 1
        yield {
            "type": "scatter",
            "mode": "text",
            "name": "β⁻¹",
            "x": [significant(x) for x, *_ in labels],
            "y": [significant(100 * y + lift * (place == last)) for place, (_, y, *_) in enumerate(labels)],
            # Only the last label has room for the symbol; the curve climbs and bends down, so left of it is free.
            "text": [
                ("β⁻¹ = " if place == last else "")
                + (knobs[0] if len(knobs) == 1 else f"{knobs[0]} to {knobs[-1]}")
                + (" (≥)" if lower else "")
                + "\u00a0\u00a0"
                for place, (_, _, knobs, lower) in enumerate(labels)
            ],
            "textposition": ["top left" if place == last else "middle left" for place in range(len(labels))],
            "hoverinfo": "skip",
            "showlegend": False,
            "cliponaxis": False,
            "meta": {"role": "marker"},
        }


def _ceiling(forecast: Forecast, reach: float) -> Iterator[dict[str, Any]]:
    none = value_of(forecast["base"]["no_correct_share"])
    if none is not None:
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": "problems with a right sample",
            "x": [0, significant(reach)],
            "y": [significant(100 * (1 - none))] * 2,
            "line": {"dash": "dot", "width": 1.5},
            "meta": {"role": "line"},
        }


def families_chart(forecast: Forecast) -> Chart | None:
    """Families × what is done: the change of accuracy in points."""
    families = forecast["families"] or {}
    keys = {"tempered_2": "tempered, α = 2", "limit_sum": "likeliest sample", "tilt_100": "tilt, β⁻¹ = 100"}
    values = []
    for family in families.values():
        base = value_of(family.get("accuracy"))
        found = [value_of(family.get(key)) for key in keys]
        values.append([None if base is None or value is None else 100 * (value - base) for value in found])
    if not any(value is not None for row in values for value in row):
        return None
    chart = heatmap(
        "families_change",
        "Forecast change of accuracy by family",
        "How to read this: points of accuracy against the base; orange is worse, blue better. A family whose likeliest samples "
        "are wrong loses by sharpening and gains by the tilt. Differences of means, without intervals: few problems a family.",
        ("what is done", "family", "Δ to base (points)"),
        list(keys.values()),
        [plain_text(name) for name in families],
        values,
        compact=True,
        digits=1,
    )
    # Beside the bar the title would stand on its numbers.
    bar = {"title": {"text": "points", "side": "top"}}
    return replace(chart, traces=[trace | {"colorbar": bar} for trace in map(dict, chart.traces)])
