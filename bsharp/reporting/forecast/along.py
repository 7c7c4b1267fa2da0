"""The tables of a forecast that go along a knob: α, β⁻¹, and the number of samples of a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bsharp.reporting.cells import plain_text
from bsharp.reporting.forecast.figures import (
    NORMALISATIONS,
    Forecast,
    by_likelihood,
    entries,
    points_text,
    samples_of,
    share_text,
    text_of,
    value_of,
)
from bsharp.reporting.forecast.grids import NOT_RELIABLE, Grid, flag, gathered, note_of, number_or_dash, number_text
from bsharp.reporting.page.load import finite

__all__ = ["LIMITS", "alpha_grid", "limits_grid", "tilt_grid"]

ROWS = 12
"""Longer curves are shown at some of their values, which the title says."""
_LANDMARKS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)


def alpha_grid(forecast: Forecast, normalisation: str, rows: int = ROWS) -> Grid:
    """The tempered policy along α for one likelihood, at most `rows` values of α where there are more."""
    found = by_likelihood(forecast, "tempered", normalisation)
    every = list(entries(found, "alpha", "accuracy", "delta", "length", "kl", "ess", "reliable"))
    chosen = _chosen([finite(row[0]) or 0.0 for row in every], [bool(row[6]) for row in every], rows)
    shown = [every[place] for place in chosen]
    title = f"Tempered policy along α, {NORMALISATIONS[normalisation]}"
    if len(shown) < len(every):
        title += f" ({len(shown)} of {len(every)} values of α)"
    formula = "π ∝ π_ref^α" if normalisation == "sum" else "π ∝ π_ref · exp((α − 1) ℓ_ref/T)"
    return Grid(
        f"alpha_{normalisation}",
        title,
        f"{formula}; α = 1 is the base. Estimated from the base's samples by reweighting, as far as the effective samples carry.",
        (
            ("α", ""),
            ("accuracy", "% [95 %]"),
            ("Δ to base", "points [95 %]"),
            ("length", "tokens"),
            ("KL", "nats/seq"),
            ("ESS", "samples"),
            ("flag", ""),
        ),
        [_along(row) for row in shown],
        (0, 1, 2, 3, 4, 5),
        frozenset(place for place, row in enumerate(shown) if not row[6]),
    )


def _along(row: Sequence[Any]) -> list[str]:
    knob, accuracy, delta, length, kl, ess, reliable = row
    return [
        number_text(knob),
        share_text(accuracy),
        points_text(delta),
        text_of(length, 1).partition(" ")[0],
        text_of(kl, 2).partition(" ")[0],
        number_or_dash(ess),
        flag(reliable),
    ]


def _chosen(knobs: Sequence[float], reliable: Sequence[bool], most: int) -> list[int]:
    """All places, or those nearest to the landmarks with the last reliable and the first unreliable one."""
    if len(knobs) <= most:
        return list(range(len(knobs)))
    places = {min(range(len(knobs)), key=lambda at: abs(knobs[at] - mark)) for mark in _LANDMARKS}
    firm = [at for at, fine in enumerate(reliable) if fine]
    loose = [at for at, fine in enumerate(reliable) if not fine]
    return sorted(places | set(firm[-1:]) | set(loose[:1]))


def tilt_grid(forecast: Forecast) -> Grid:
    """The tilted policy along β⁻¹."""
    found = forecast["tilt"]
    every = list(entries(found, "beta_inv", "accuracy", "delta", "kl", "ess", "reliable", "lower_bound"))
    marks = [flag(row[5], row[6]) for row in every]
    return Grid(
        "tilt",
        "Tilt towards the reward along β⁻¹",
        "π ∝ π_ref · exp(β⁻¹ r), and what it costs in KL to the base.",
        (
            ("β⁻¹", ""),
            ("accuracy", "% [95 %]"),
            ("Δ to base", "points [95 %]"),
            ("KL", "nats/seq [95 %]"),
            ("ESS", "samples"),
            ("flag", ""),
        ),
        [
            [
                number_text(row[0]),
                share_text(row[1]),
                points_text(row[2]),
                text_of(row[3], 2),
                number_or_dash(row[4]),
                mark,
            ]
            for row, mark in zip(every, marks, strict=True)
        ],
        (0, 1, 2, 3, 4),
        frozenset(place for place, mark in enumerate(marks) if mark == NOT_RELIABLE),
        [("tilt", plain_text(found["note"]))] if found.get("note") else [],
    )


LIMITS = {
    "sum": "likeliest sample by the sum",
    "mean": "likeliest sample by the mean per token",
    "majority": "most frequent answer",
}
"""The limits of a forecast and what they are called."""


def limits_grid(forecast: Forecast) -> Grid:
    """Where sharpening ends: the likeliest of k samples, and the majority of k."""
    samples = plain_text(samples_of(forecast))
    limit = {name: by_likelihood(forecast, "limit", name) for name in LIMITS}
    ks = sorted({int(k) for found in limit.values() for k, _ in entries(found.get("by_k"), "k", "accuracy") if k})
    # From k = 1 to all samples by halving: what moves at the end is seen there.
    shown = [k for k in ks if k in (1, *(ks[-1] // part for part in (1, 2, 4)))]
    rows: list[list[str]] = []
    notes: list[tuple[str, str]] = []
    faint: set[int] = set()
    for name, meaning in LIMITS.items():
        found = limit[name]
        if value_of(found.get("accuracy")) is None:
            notes.append((meaning, note_of(found.get("accuracy")) or "not forecast"))
            continue
        if not found.get("reliable", True):
            faint.add(len(rows))
        by_k = {int(k): share for k, share in entries(found.get("by_k"), "k", "accuracy") if k}
        length = text_of(found.get("length"), 1).partition(" ")[0]
        rows.append(
            [
                meaning,
                share_text(found.get("accuracy")),
                points_text(found.get("delta")),
                flag(found.get("reliable", True)),
                length,
                *(share_text(by_k.get(k)).partition(" ")[0] for k in shown),
            ]
        )
        own = (plain_text(found.get("note") or ""), *map(note_of, map(found.get, ("accuracy", "delta", "by_k"))))
        notes += [(meaning, note) for note in dict.fromkeys(own) if note]
    return Grid(
        "limits",
        "Where sharpening ends",
        f"Mode-of-n: the likeliest of the {samples} samples of a problem is its only answer; the majority stands for answers. "
        "k columns: the same with k of the samples; still moving at the end means that the limit is not reached.",
        (
            ("limit", ""),
            ("accuracy", "% [95 %]"),
            ("Δ to base", "points [95 %]"),
            ("flag", ""),
            ("length", "tokens"),
            *((f"k={k}", "%") for k in shown),
        ),
        rows,
        (1, 2, *range(4, 5 + len(shown))),
        frozenset(faint),
        gathered(notes),
    )
