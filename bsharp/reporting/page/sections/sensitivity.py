"""Input sensitivity: how much answers change when the prompt changes harmlessly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.reporting.cells import plain_text
from bsharp.reporting.page.charts import Dot, dots
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.load import RunData
from bsharp.reporting.page.parts import Callout, DataTable, Definitions, Part, Section
from bsharp.reporting.page.sections.common import not_computed, percent_text, section_of

__all__ = ["section"]

KEEPING = "all that keep the answer"
CONTROL = "none (the same prompt again)"


def section(run: RunData) -> Section:
    """Shares of changed answers and changed grades by kind of change, and every figure in a table."""
    found = run.diagnostics.get("sensitivity")
    absent = not_computed(run, "Input sensitivity", "sensitivity")
    changes = (found or {}).get("changes") or []
    if not found or not changes:
        return section_of("sensitivity", "Input sensitivity", [], absent)
    parts: list[Part | None] = [Definitions([_described(change) for change in changes])]
    for key, reading in (
        (
            "answer_changed",
            "The right answer stays the same, so every change of the answer is unstable. 95 % intervals.",
        ),
        (
            "correctness_changed",
            "Includes other numbers of the same size, where the answer must change. 95 % intervals.",
        ),
    ):
        drawn = [
            Dot(str(model), str(model), plain_text(change["change"]), figures[key])
            for model in dict.fromkeys(model for change in changes for model in change["models"])
            for change in [*changes, {"change": KEEPING, "models": found.get("overall") or {}}]
            if (figures := change["models"].get(model)) and figures.get(key)
        ]
        title = axis_title(key)
        parts.append(
            dots(
                f"sensitivity_{key}",
                f"{title.partition(' (')[0].capitalize()} by a harmless change of the prompt",
                f"{reading} Alarming: a regime right of the base.",
                title,
                "change of the prompt",
                drawn,
                scale=100,
            )
        )
    parts.append(_table(found))
    parts += [Callout("note", plain_text(note)) for note in found.get("notes") or []]
    return section_of("sensitivity", "Input sensitivity", parts, absent)


def _described(change: Mapping[str, Any]) -> tuple[str, str]:
    example = change.get("example")
    text = plain_text(change.get("description", ""))
    if isinstance(example, list) and len(example) == 2:
        before, after = (plain_text(shown) for shown in example)
        if before == after:  # they differ in blanks, which plain_text joins
            before, after = (plain_text(str(shown).replace(" ", "␣")) for shown in example)
        text = f"{text.rstrip('.')}. Example: “{before}” → “{after}”"
    return plain_text(change["change"]), f"{text} ({change.get('problems')} problems)"


def _table(content: Mapping[str, Any]) -> DataTable:
    rows = []
    named = [(plain_text(change["change"]), change["models"]) for change in content.get("changes") or []]
    for change, models in [*named, (KEEPING, content.get("overall") or {}), (CONTROL, content.get("control") or {})]:
        for model, figures in models.items():
            rows.append(
                [
                    str(model),
                    change,
                    *(percent_text(figures.get(key)) for key in ("answer_changed", "correctness_changed")),
                    *(
                        percent_text(figures.get(f"{key}_delta"), True)
                        for key in ("answer_changed", "correctness_changed")
                    ),
                    *(percent_text(figures.get(key)) for key in ("accuracy_original", "accuracy_changed")),
                ]
            )
    return DataTable(
        "sensitivity",
        "Input sensitivity",
        "Δ is the regime minus the base, paired by problem; an interval wholly above 0 means that the regime is less stable.",
        (
            "model",
            "change of the prompt",
            axis_title("answer_changed"),
            axis_title("correctness_changed"),
            axis_title("answer_changed", "Δ to base", "points"),
            axis_title("correctness_changed", "Δ to base", "points"),
            axis_title("accuracy", "original"),
            axis_title("accuracy", "changed"),
        ),
        rows,
        numeric=(2, 3, 4, 5, 6, 7),
    )
