"""Section 3: pass@k and maj@k with bands, and where the base overtakes a regime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.reporting.cells import rows
from bsharp.reporting.page.charts import Curve, axis, lines
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.load import RunData, finite
from bsharp.reporting.page.parts import Chart, DataTable, Legend, Section
from bsharp.reporting.page.sections.common import estimate, figure_text, section_of

__all__ = ["crossover", "section"]

SAMPLES = "k (samples drawn, log scale)"


def section(run: RunData) -> Section:
    """Both curves of every model and the table of crossovers."""
    if run.results is not None:
        models = {row.name: row.summary for row in rows(run.results)}
    else:
        models = {"model": run.summary} if run.summary is not None else {}
    parts = [
        Legend(list(models)),
        _chart(
            "pass_at_k",
            models,
            "What a model can reach with k tries. Alarming: a regime's curve that meets the base's.",
        ),
        _chart(
            "maj_at_k", models, "What a vote among k samples gets right. Alarming: flat from k = 1, all samples agree."
        ),
        _crossovers(run.results) if run.results is not None else None,
    ]
    if not any(parts[1:]):
        parts = []
    absent = "pass@k and maj@k need the finished comparison; this section fills when `bsharp compare` has ended."
    if run.kind == "training":
        absent = "A training run draws no test samples; evaluate its policy with `bsharp evaluate --model …/last`."
    return section_of("at_k", "pass@k and maj@k", parts, absent)


def crossover(deltas: Mapping[str, Mapping[str, Any]]) -> tuple[int, bool] | None:
    """The first k at which the base's pass@k exceeds the regime's, and whether the paired interval excludes 0 there.

    `deltas`: regime − base by k. None where the regime is at or above the base at every k.
    """
    for k in sorted(deltas, key=int):
        value = estimate(deltas[k])
        if value is not None and value < 0:
            high = finite(deltas[k].get("high"))
            return int(k), high is not None and high < 0
    return None


def _solves(summary: Mapping[str, Any]) -> bool:
    """Whether the model is ever right."""
    return any(estimate(figure) for figure in summary["pass_at_k"].values())


def _chart(key: str, models: Mapping[str, Mapping[str, Any]], reading: str) -> Chart | None:
    drawn = []
    for name, summary in models.items():
        at_k = summary.get(key) or {}
        ks = sorted(at_k, key=int)
        if len(ks) < 2:
            continue
        values, low, high = ([_percent(at_k[k].get(end)) for k in ks] for end in ("estimate", "low", "high"))
        drawn.append(Curve(name, name, [int(k) for k in ks], values, low, high))
    if not drawn:
        return None
    ks = sorted({int(k) for curve in drawn for k in curve.x})
    x_axis = axis(SAMPLES, type="log", tickvals=ks, ticktext=list(map(str, ks)))
    caption = f"{reading} Bands are 95 % intervals of each curve; only the table below compares them in pairs."
    return lines(
        key, axis_title(key).partition(" ")[0], caption, x_axis, axis(axis_title(key)), drawn, height=330, legend=False
    )


def _percent(value: object) -> float | None:
    number = finite(value)
    return None if number is None else 100 * number


def _crossovers(results: Mapping[str, Any]) -> DataTable:
    found = []
    for name, regime in results["regimes"].items():
        deltas = regime["pass_at_k_delta"]
        largest = max(deltas, key=int)
        crossing = crossover(deltas)
        if not _solves(regime) and not _solves(results["base"]):
            text, at = "nothing to cross: neither is ever right", largest
        elif crossing is None:
            text, at = f"none up to k = {largest}", largest
        else:
            at = str(crossing[0])
            text = f"from k = {at}, {'clear' if crossing[1] else 'not clear'}"
        found.append(
            [name, text, at, figure_text(deltas[at], 100, 1, True), figure_text(deltas[largest], 100, 1, True)]
        )
    largest = max(results["base"]["pass_at_k"], key=int)
    return DataTable(
        "crossover",
        "Crossover",
        "The first k at which the base's pass@k exceeds the regime's: from there the regime reaches fewer problems than the "
        "base, so diversity was lost. It is clear where the paired 95 % interval at that k excludes 0.",
        ("regime", "crossover", "k", "pass@k Δ to base there (points)", f"pass@k Δ to base at k = {largest} (points)"),
        found,
        numeric=(2, 3, 4),
    )
