"""Predictions of forecast_validation.py beside what training did: tables and the scatter plot of docs/forecast.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bsharp.config import CompareConfig
from bsharp.experiment import regimes_of
from bsharp.seeding import generator
from bsharp.statistics import Estimate, paired_difference

Record = Mapping[str, Any]
COLOURS = {
    "task_reward": "#0072b2",
    "tilted": "#56b4e9",
    "sharpening": "#d55e00",
    "sharpening_mean": "#e69f00",
    "tempered": "#009e73",
}
NAMES = {
    "task_reward": "task reward",
    "tilted": "tilted, α = 1, β⁻¹ = 2",
    "sharpening": "sharpening, sum",
    "sharpening_mean": "sharpening, mean",
    "tempered": "tempered, α = 2",
}


@dataclass(frozen=True)
class Row:
    """One base under one regime; changes of accuracy in points, on problems of families that are rewarded."""

    base: str
    regime: str
    accuracy: float  # of the base on the test problems, per cent
    predicted: Estimate  # the forecast, from training problems
    reliable: bool
    target: Estimate  # the same estimator on the test problems, from other samples
    measured: Estimate
    predicted_kl: float  # of the optimum, nats per sequence; NaN where undefined
    kl: float  # that training reached


def rows_of(name: str, runs: Path, config: CompareConfig) -> list[Row]:
    forecast = json.loads((runs / "forecasts" / name / "forecast.json").read_text(encoding="utf-8"))
    target = json.loads((runs / "targets" / name / "target.json").read_text(encoding="utf-8"))
    folder = runs / "compare" / name
    base = by_problem(folder / "base" / "records_last.jsonl")
    found = []
    for spec, regime in zip(config.regimes, regimes_of(config), strict=True):
        trained = by_problem(folder / regime / "seed_0" / "records_last.jsonl")
        predicted = forecast["regimes"][spec]
        found.append(
            Row(
                base=name,
                regime=regime,
                accuracy=100 * float(np.mean([problem["accuracy"] for problem in base.values()])),
                predicted=points(predicted["delta"]),
                reliable=predicted["reliable"],
                target=points(target["regimes"][spec]["delta"]),
                measured=measured_change(base, trained, f"{name}/{regime}"),
                predicted_kl=math.nan if predicted["kl"] is None else predicted["kl"]["estimate"] or math.nan,
                kl=float(np.mean([problem["kl"] for problem in trained.values()])),
            )
        )
    return found


def by_problem(path: Path) -> dict[str, dict[str, Any]]:
    """Accuracy, KL and family of each problem that is not of a transfer family."""
    groups: dict[str, list[Record]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["role"] != "transfer" and not record["greedy"]:
            groups.setdefault(record["problem_id"], []).append(record)
    return {
        problem: {
            "accuracy": float(np.mean([record["status"] == "correct" for record in records])),
            "kl": float(np.mean([record["logprob"] - record["base_logprob"] for record in records])),
            "family": records[0]["family"],
        }
        for problem, records in groups.items()
    }


def measured_change(base: Mapping[str, Any], trained: Mapping[str, Any], key: str) -> Estimate:
    ids = sorted(base)
    return paired_difference(
        np.array([[trained[i]["accuracy"] for i in ids]]),
        np.array([base[i]["accuracy"] for i in ids]),
        rng=generator(0, "forecast_validation", key),
        strata=[base[i]["family"] for i in ids],
    ).scaled(100, "points")


def points(figure: Mapping[str, Any]) -> Estimate:
    values = [math.nan if figure[key] is None else 100 * figure[key] for key in ("estimate", "low", "high")]
    return Estimate(*values, n=figure["n"], unit="points")


# ------------------------------------------------------------------------------------------------------- figures


def sign_agreement(a: Sequence[float], b: Sequence[float]) -> float:
    return float(np.mean([np.sign(x) == np.sign(y) for x, y in zip(a, b, strict=True)]))


def rank_correlation(rows: Sequence[Row], a: Sequence[float], b: Sequence[float], key: str) -> str:
    """Spearman's ρ with a 95 % percentile bootstrap over the bases, all regimes of one moving together."""
    values = np.array([a, b])
    places = [
        [place for place, row in enumerate(rows) if row.base == base]
        for base in dict.fromkeys(row.base for row in rows)
    ]
    if len(places) < 4:
        return f"– ({len(places)} bases)"
    rng = generator(0, "forecast_validation/spearman", key)
    found = []
    for _ in range(2000):
        drawn = values[:, np.concatenate([places[i] for i in rng.integers(len(places), size=len(places))])]
        if np.ptp(drawn[0]) > 0 and np.ptp(drawn[1]) > 0:
            found.append(spearmanr(drawn[0], drawn[1]).statistic)
    low, high = np.percentile(found, [2.5, 97.5])
    return f"{spearmanr(values[0], values[1]).statistic:.2f} [{low:.2f}, {high:.2f}]"


def covered(rows: Sequence[Row], figure: str) -> str:
    """How many of the forecast's intervals hold the other figure, and how many hold it beyond its own interval too."""
    inside = sum(row.predicted.low <= getattr(row, figure).estimate <= row.predicted.high for row in rows)
    overlap = sum(
        row.predicted.low <= getattr(row, figure).high and getattr(row, figure).low <= row.predicted.high
        for row in rows
    )
    return f"{inside} ({overlap}) of {len(rows)}"


def comparison_rows(rows: Sequence[Row]) -> list[list[str]]:
    table = []
    for regime in [*NAMES, "all"]:
        chosen = [row for row in rows if regime in (row.regime, "all")]
        predicted = [row.predicted.estimate for row in chosen]
        for label, other in (
            ("forecast → measured", [row.measured.estimate for row in chosen]),
            ("forecast → target", [row.target.estimate for row in chosen]),
            ("target → measured", None),
        ):
            first = predicted if other is not None else [row.target.estimate for row in chosen]
            second = other if other is not None else [row.measured.estimate for row in chosen]
            errors = np.array(first) - np.array(second)
            coverage = "" if other is None else covered(chosen, "measured" if "measured" in label else "target")
            table.append(
                [
                    NAMES.get(regime, "all regimes"),
                    label,
                    rank_correlation(chosen, first, second, f"{regime}/{label}"),
                    f"{100 * sign_agreement(first, second):.0f} %",
                    f"{errors.mean():+.1f}",
                    f"{np.abs(errors).mean():.1f}",
                    coverage,
                ]
            )
    return table


def detail_rows(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [
            row.base,
            f"{row.accuracy:.1f}",
            NAMES[row.regime],
            row.predicted.format(signed=True) + ("" if row.reliable else " ⚑"),
            row.target.format(signed=True),
            row.measured.format(signed=True),
            "–" if math.isnan(row.predicted_kl) else f"{row.predicted_kl:.2f}",
            f"{row.kl:.2f}",
        ]
        for row in rows
    ]


def recommendation_rows(rows: Sequence[Row], runs: Path) -> list[list[str]]:
    table = []
    for base in dict.fromkeys(row.base for row in rows):
        forecast = json.loads((runs / "forecasts" / base / "forecast.json").read_text(encoding="utf-8"))
        here = {row.regime: row.measured for row in rows if row.base == base}
        free = max(("sharpening", "sharpening_mean", "tempered"), key=lambda name: here[name].estimate)
        table.append(
            [
                base,
                forecast["recommendation"]["word"],
                here["task_reward"].format(signed=True),
                f"{NAMES[free]}: {here[free].format(signed=True)}",
                "task reward"
                if here["task_reward"].low > here[free].high
                else "label-free"
                if here[free].low > here["task_reward"].high
                else "undecided",
            ]
        )
    return table


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------------------------------------------- the picture


def scatter(rows: Sequence[Row], path: Path) -> None:
    """Two panels: what training did against the forecast, and against the same ideal on the test problems themselves."""
    width, panel, top = 1000, 400, 40
    drawn = [row for row in rows if math.isfinite(row.predicted.estimate)]
    figures = [figure for row in drawn for figure in (row.predicted, row.target, row.measured)]
    values = [value for figure in figures for value in (figure.low, figure.high)]
    low, high = 10 * math.floor(min([*values, 0]) / 10), 10 * math.ceil(max(values) / 10)

    def place(value: float, start: float, flip: bool) -> float:
        share = (value - low) / (high - low)
        return start + panel * ((1 - share) if flip else share)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 530" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="530" fill="white"/>',
    ]
    panels = (
        ("forecast from training problems", lambda row: row.predicted),
        ("the same ideal, estimated on the test problems", lambda row: row.target),
    )
    for index, (title, value_of) in enumerate(panels):
        left = 70 + index * 500
        for tick in range(20 * math.ceil(low / 20), high + 1, 20):
            x, y = place(tick, left, False), place(tick, top, True)
            weight = 1.2 if tick == 0 else 0.4
            parts.append(
                f'<path d="M{x:.1f} {top}V{top + panel}M{left} {y:.1f}H{left + panel}" stroke="#999" stroke-width="{weight}"/>'
            )
            parts.append(f'<text x="{x:.1f}" y="{top + panel + 18}" text-anchor="middle">{tick:+d}</text>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:+d}</text>')
        parts.append(f'<path d="M{left} {top + panel}L{left + panel} {top}" stroke="#333" stroke-dasharray="5 4"/>')
        parts.append(f'<text x="{left + panel / 2}" y="{top + panel + 38}" text-anchor="middle">{title}, points</text>')
        for row in drawn:
            value = value_of(row).estimate
            x, y = place(value, left, False), place(row.measured.estimate, top, True)
            low_y, high_y = place(row.measured.low, top, True), place(row.measured.high, top, True)
            colour = COLOURS[row.regime]
            parts.append(f'<path d="M{x:.1f} {low_y:.1f}V{high_y:.1f}" stroke="{colour}" stroke-width="1"/>')
            left_x, right_x = place(value_of(row).low, left, False), place(value_of(row).high, left, False)
            parts.append(f'<path d="M{left_x:.1f} {y:.1f}H{right_x:.1f}" stroke="{colour}" stroke-width="1"/>')
            filled = colour if row.reliable else "white"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{filled}" stroke="{colour}" stroke-width="2">'
                f"<title>{row.base}, {NAMES[row.regime]}</title></circle>"
            )
    middle = top + panel / 2
    label = "measured change of accuracy, points"
    parts.append(f'<text x="16" y="{middle}" transform="rotate(-90 16 {middle})" text-anchor="middle">{label}</text>')
    for index, (regime, name) in enumerate(NAMES.items()):
        x = 70 + index * 185
        parts.append(
            f'<circle cx="{x}" cy="505" r="5" fill="{COLOURS[regime]}"/><text x="{x + 12}" y="509">{name}</text>'
        )
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
