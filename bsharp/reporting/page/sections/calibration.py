"""Section 7: is confidence earned, before and after; and how far each regime drifted, by problem family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import BASE, plain_text
from bsharp.reporting.page.charts import Curve, Dot, dots
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.load import RunData, finite
from bsharp.reporting.page.panels import panels
from bsharp.reporting.page.parts import Chart, DataTable, Paragraph, Part, Preformatted, Section
from bsharp.reporting.page.sections.common import figure_text, not_computed, percent_text, section_of

__all__ = ["section"]

Models = Mapping[str, Mapping[str, Any]]
SHARES = (
    "wrong_and_more_certain",
    "same_wrong_answer_more_certain",
    "wrong_and_less_certain",
    "right_and_more_certain",
    "right_and_less_certain",
)
MOVED = ("modal_share_change_where_right", "modal_share_change_where_wrong")
DRIFT = (
    ("kl", "kl", 1, 3),
    ("entropy", "entropy", 1, 3),
    ("length", "length", 1, 1),
    ("truncated", "truncated", 100, 1),
    ("repetition", "repetition", 100, 1),
    ("distinct_answers", "distinct_answers", 1, 2),
)


def section(run: RunData) -> Section:
    """Calibration diagrams, over-confident and wrong, drift by family."""
    parts: list[Part | None] = []
    calibration, drift = run.diagnostics.get("calibration"), run.diagnostics.get("drift")
    if calibration:
        models = calibration.get("models") or {}
        parts += [
            _diagram(models),
            _ece(models, calibration.get("changes") or {}),
            _changes(calibration.get("changes") or {}),
        ]
    elif drift:
        parts.append(Paragraph(not_computed(run, "Calibration", "calibration")))
    if drift:
        parts += _drift(drift.get("models") or {})
    elif calibration:
        parts.append(Paragraph(not_computed(run, "Drift by family", "drift")))
    return section_of(
        "calibration",
        "Calibration and drift",
        parts,
        not_computed(run, "Calibration and drift", "calibration", "drift"),
    )


def _diagram(models: Models) -> Chart | None:
    drawn = []
    for regime in [name for name in models if name != BASE] or list(models):
        for name in dict.fromkeys((BASE, regime)):
            bins = [
                entry
                for entry in (models.get(name) or {}).get("bins") or []
                if _estimate(entry, "estimate") is not None
            ]
            if not bins:
                continue
            drawn.append(
                Curve(
                    name,
                    name,
                    [_percent(entry.get("confidence")) or 0.0 for entry in bins],
                    *_accuracies(bins),
                    text=[f"{entry.get('problems')} problems" for entry in bins],
                    panel=f"base and {plain_text(regime)}" if regime != BASE else BASE,
                )
            )
    return panels(
        "calibration",
        "Calibration before and after",
        "Problems in bins by the share of samples that agree; height is how often that answer is right, with 95 % intervals. On "
        "the dotted diagonal confidence is earned; below it the model is over-confident.",
        axis_title("confidence"),
        axis_title("modal_accuracy"),
        drawn,
        band=False,
        square=(0.0, 100.0),
        diagonal=True,
    )


def _accuracies(bins: Sequence[Mapping[str, Any]]) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """The accuracies of the bins and their interval ends, in per cent."""
    value, low, high = ([_percent(_estimate(entry, end)) for entry in bins] for end in ("estimate", "low", "high"))
    return value, low, high


def _estimate(entry: Mapping[str, Any], key: str) -> float | None:
    return finite((entry.get("accuracy") or {}).get(key))


def _percent(value: object) -> float | None:
    number = finite(value)
    return None if number is None else 100 * number


def _ece(models: Models, changes: Models) -> DataTable:
    rows = [
        [name, percent_text(figures.get("ece")), percent_text((changes.get(name) or {}).get("ece_change"), True)]
        for name, figures in models.items()
    ]
    return DataTable(
        "ece",
        "Expected calibration error",
        "How far confidence is from accuracy, on average; with 95 % intervals. Alarming: a change wholly above 0.",
        ("model", axis_title("ece"), axis_title("ece", "Δ to base")),
        rows,
        numeric=(1, 2),
    )


def _changes(changes: Models) -> DataTable:
    shares = [key for key in SHARES if any(key in figures for figures in changes.values())]
    rows = [
        [
            name,
            *(percent_text(figures.get(key)) for key in shares),
            *(percent_text(figures.get(key), True) for key in MOVED),
        ]
        for name, figures in changes.items()
    ]
    return DataTable(
        "overconfident",
        "Over-confident and wrong",
        "Shares of all problems by whether the regime's modal answer is right and whether it became more certain than the base "
        "was. Alarming: a large share that is wrong and more certain.",
        (
            "regime",
            *(axis_title(key) for key in shares),
            axis_title("modal_share", "where right"),
            axis_title("modal_share", "where wrong"),
        ),
        rows,
        numeric=range(1, len(shares) + 3),
    )


def _drift(models: Models) -> list[Part | None]:
    headers = [axis_title(metric) for _, metric, _, _ in DRIFT]
    overall = [[name, *_cells(figures.get("overall") or {})] for name, figures in models.items()]
    families = [
        [name, plain_text(family), str(figures.get("problems", "–")), *_cells(figures)]
        for name, model in models.items()
        for family, figures in (model.get("families") or {}).items()
    ]
    drawn = [
        Dot(name, name, plain_text(family), figures.get("kl") or {})
        for name, model in models.items()
        if name != BASE  # 0 by definition
        for family, figures in (model.get("families") or {}).items()
    ]
    return [
        DataTable(
            "drift",
            "Drift, all problems",
            "How far each model is from the base and what became of its completions, on the test samples; 95 % intervals.",
            ("model", *headers),
            overall,
            numeric=range(1, len(headers) + 1),
        ),
        dots(
            "drift_kl",
            "Drift from the base by problem family",
            "KL by family, with 95 % intervals. A family that moved far more than the others was rewritten, for better or worse: "
            "look at its rows below.",
            axis_title("kl"),
            "problem family",
            drawn,
        ),
        Preformatted(
            "Drift by problem family, every figure", _aligned([("model", "family", "problems", *headers), *families])
        ),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text in columns: too many for a table that is always open."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(figures: Mapping[str, Any]) -> list[str]:
    return [figure_text(figures.get(key), scale, digits) for key, _, scale, digits in DRIFT]
