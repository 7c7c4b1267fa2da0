"""Section 7: is confidence earned, before and after; and how far each regime drifted, by problem family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import BASE, plain_text
from bsharp.reporting.page.charts import Curve
from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.heatmap import heatmap
from bsharp.reporting.page.load import RunData, finite
from bsharp.reporting.page.panels import panels
from bsharp.reporting.page.parts import Chart, DataTable, Fold, Legend, Paragraph, Part, Preformatted, Section
from bsharp.reporting.page.sections.common import figure_text, not_computed, percent_text, section_of

__all__ = ["section"]

Models = Mapping[str, Mapping[str, Any]]
SHARES = (
    "right_and_more_certain",
    "right_and_less_certain",
    "wrong_and_more_certain",
    "wrong_and_less_certain",
    "same_wrong_answer_more_certain",
)
"""More beside less certain: by chance alone a good part of the problems moves either way."""
MOVED = {
    "modal_share_change_where_right": "modal share, right",
    "modal_share_change_where_wrong": "modal share, wrong",
    "answer_share_change_where_right": "same answer, right",
    "answer_share_change_where_wrong": "same answer, wrong",
}
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
            Legend(list(models)),
            _diagram(models),
            _moved(calibration.get("changes") or {}),
            _errors(models),
            _changes(calibration.get("changes") or {}),
            _ece(models, calibration.get("changes") or {}),
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
                if entry and _estimate(entry, "estimate") is not None
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
        legend=False,
    )


def _moved(changes: Models) -> Chart | None:
    """How much more certain each regime became than the base, where it is right and where it is wrong."""
    found = [
        Dot(name, name, place, figures[key])
        for key, place in MOVED.items()
        for name, figures in changes.items()
        if figures.get(key)
    ]
    return dots(
        "certainty",
        "How much more certain than the base",
        "Change of the modal share, with 95 % intervals; same answer: against the base's share of the regime's answer, which "
        "rises by chance too. Alarming: as large where the answer is wrong as where it is right.",
        axis_title("modal_share"),
        "which share",
        found,
        scale=100,
        legend=False,
        wide=False,
    )


def _errors(models: Models) -> Chart | None:
    return dots(
        "calibration_error",
        "Expected calibration error",
        "How far confidence is from accuracy, on average; with 95 % intervals. Alarming: right of the base.",
        axis_title("ece"),
        "model",
        [Dot(name, name, name, figures.get("ece") or {}) for name, figures in models.items()],
        scale=100,
        legend=False,
        wide=False,
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
        "Expected calibration error, and its change",
        "With 95 % intervals. Alarming: a change wholly above 0.",
        ("model", axis_title("ece"), axis_title("ece", "Δ to base", "points")),
        rows,
        numeric=(1, 2),
        folded=True,
    )


def _changes(changes: Models) -> DataTable:
    shares = [key for key in SHARES if any(key in figures for figures in changes.values())]
    rows = [
        [
            name,
            *(percent_text(figures.get(key)) for key in shares),
        ]
        for name, figures in changes.items()
    ]
    return DataTable(
        "overconfident",
        "Over-confident and wrong",
        "Shares of all problems by whether the regime's modal answer is right and whether it became more certain than the base "
        "was. Two evaluations of one model differ too, in about as many problems up as down: compare more with less certain. "
        "Alarming: far more that are wrong and more certain than wrong and less certain.",
        ("regime", *(axis_title(key) for key in shares)),
        rows,
        numeric=range(1, len(shares) + 1),
    )


def _drift(models: Models) -> list[Part | None]:
    headers = [axis_title(metric) for _, metric, _, _ in DRIFT]
    overall = [[name, *_cells(figures.get("overall") or {})] for name, figures in models.items()]
    families = [
        [name, plain_text(family), str(figures.get("problems", "–")), *_cells(figures)]
        for name, model in models.items()
        for family, figures in (model.get("families") or {}).items()
    ]
    moved = [name for name in models if name != BASE]  # the base's is 0 by definition
    kinds = list(dict.fromkeys(family for name in moved for family in models[name].get("families") or {}))
    kl = [[(((models[name].get("families") or {}).get(kind)) or {}).get("kl") for name in moved] for kind in kinds]
    return [
        DataTable(
            "drift",
            "Drift, all problems",
            "How far each model is from the base and what became of its completions, on the test samples; 95 % intervals.",
            ("model", *headers),
            overall,
            numeric=range(1, len(headers) + 1),
        ),
        Fold(
            "Drift from the base by problem family",
            [
                heatmap(
                    "drift_kl",
                    "KL(policy‖base) by problem family",
                    "95 % intervals on hover. A family that moved far more than the others was rewritten, for better or worse.",
                    ("regime", "problem family", axis_title("kl")),
                    moved,
                    [plain_text(kind) for kind in kinds],
                    kl,
                    compact=True,
                )
            ],
        )
        if kinds
        else None,
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
