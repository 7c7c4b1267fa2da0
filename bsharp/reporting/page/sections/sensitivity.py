"""Input sensitivity: how much answers change when the prompt changes harmlessly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import plain_text
from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.load import RunData
from bsharp.reporting.page.parts import Chart, Choice, DataTable, Legend, Part, Preformatted, Section
from bsharp.reporting.page.sections.common import estimate, not_computed, percent_text, section_of, shown

__all__ = ["section"]

AROUND = 80
"""Characters of a long question that are shown before and after the place where a change begins."""
KEEPING = "all that keep the answer"
CONTROL = "none (the same prompt again)"
SHOWN = (
    ("answer_changed", "answers changed", "The right answer stays the same, so every change of the answer is unstable. Alarming: "
     "a regime right of the base."),
    ("right_kept", "right answers kept", "Of the problems solved before the change, those still solved after it. Alarming: "
     "a regime left of the base."),
    ("correctness_changed", "grades changed", "Includes other numbers of the same size, where the answer must change. A model "
     "that is seldom right has little to lose: read it with the right answers kept."),
)  # fmt: skip


def section(run: RunData) -> Section:
    """Shares of changed answers and changed grades by kind of change, and every figure in a table."""
    found = dict(run.diagnostics.get("sensitivity") or {})
    absent = not_computed(run, "Input sensitivity", "sensitivity")
    changes = [
        dict(change) | {"models": shown(change.get("models"))} for change in found.get("changes") or [] if change
    ]
    found["changes"] = changes
    if not changes:
        return section_of("sensitivity", "Input sensitivity", [], absent)
    parts: list[Part] = [
        _described(changes),
        Legend(list(dict.fromkeys(str(m) for change in changes for m in change["models"]))),
    ]
    options = [
        (label, [chart]) for key, label, reading in SHOWN if (chart := _chart(found, key, label, reading)) is not None
    ]
    parts += [Choice("sensitivity_figure", "Share of", options)] if options else []
    parts += [_overall(found), _table(found)]
    notes = "\n".join(plain_text(note) for note in found.get("notes") or [])
    parts += [Preformatted("How to read these shares", notes)] if notes else []
    return section_of("sensitivity", "Input sensitivity", parts, absent)


def _chart(found: Mapping[str, Any], key: str, label: str, reading: str) -> Chart | None:
    changes = found["changes"]
    drawn = [
        Dot(str(model), str(model), plain_text(change["change"]), figures[key])
        for model in dict.fromkeys(model for change in changes for model in change["models"])
        for change in [*changes, {"change": KEEPING, "models": found.get("overall") or {}}]
        if (figures := change["models"].get(model)) and figures.get(key)
    ]
    title = axis_title(key)
    return dots(
        f"sensitivity_{key}",
        f"{label.capitalize()}, by change of the prompt",
        f"{reading} 95 % intervals.",
        title,
        "change of the prompt",
        drawn,
        scale=100,
        legend=False,
        wide=True,
    )


def _described(changes: Sequence[Mapping[str, Any]]) -> DataTable:
    rows = []
    for change in changes:
        example = change.get("example")
        before, after = example if isinstance(example, list) and len(example) == 2 else ("", "")
        before, after = _around_the_change(str(before), str(after))
        if plain_text(before) == plain_text(after):  # they differ in blanks, which plain_text joins
            before, after = (text.replace(" ", "␣").replace("\n", "⏎") for text in (before, after))
        told = (change["change"], change.get("description", ""), before, after, change.get("problems", "–"))
        rows.append([plain_text(cell) for cell in told])
    return DataTable(
        "sensitivity_changes",
        "The changes of the prompt",
        "One example each; ␣ is a blank, ⏎ a line break. All but other numbers keep the right answer.",
        ("change", "what it does", "prompt", "changed prompt", "problems"),
        rows,
        numeric=(4,),
    )


def _around_the_change(before: str, after: str) -> tuple[str, str]:
    """Both texts as they are where they are short, else what stands around the first difference."""
    if max(len(before), len(after)) <= 2 * AROUND:
        return before, after
    both = min(len(before), len(after))
    same = next((place for place in range(both) if before[place] != after[place]), both)
    start = max(0, same - AROUND)

    def cut(text: str) -> str:
        end = start + 2 * AROUND
        return "…" * (start > 0) + text[start:end] + "…" * (end < len(text))

    return cut(before), cut(after)


def _overall(content: Mapping[str, Any]) -> DataTable:
    """All changes that keep the answer, one row per model."""
    keys = ("answer_changed", "right_kept")
    rows = [
        [
            str(model),
            *(text for key in keys for text in (percent_text(f.get(key)), percent_text(f.get(f"{key}_delta"), True))),
        ]
        for model, f in (content.get("overall") or {}).items()
    ]
    headers = [header for key in keys for header in (axis_title(key), axis_title("delta"))]
    control = [
        value
        for figures in (content.get("control") or {}).values()
        if (value := estimate(figures.get("answer_changed"), 100)) is not None
    ]
    told = f" The unchanged prompt, decoded again, changed at most {max(control):.1f} % of answers." if control else ""
    return DataTable(
        "sensitivity_overall",
        "All changes that keep the answer",
        f"95 % intervals. Δ is the regime minus the base, paired by problem, of the share before it.{told}",
        ("model", *headers),
        rows,
        numeric=range(1, len(headers) + 1),
    )


def _table(content: Mapping[str, Any]) -> DataTable:
    rows = []
    named = [(plain_text(change["change"]), change["models"]) for change in content.get("changes") or []]
    for change, models in [*named, (KEEPING, content.get("overall") or {}), (CONTROL, content.get("control") or {})]:
        for model, figures in models.items():
            rows.append(
                [
                    str(model),
                    change,
                    *(percent_text(figures.get(key)) for key, _, _ in SHOWN),
                    *(percent_text(figures.get(f"{key}_delta"), True) for key, _, _ in SHOWN),
                    *(percent_text(figures.get(key)) for key in ("accuracy_original", "accuracy_changed")),
                ]
            )
    return DataTable(
        "sensitivity",
        "Every figure by model and change",
        "Δ is the regime minus the base, paired by problem; an interval wholly above 0 means that the regime is less stable.",
        (
            "model",
            "change of the prompt",
            *(axis_title(key) for key, _, _ in SHOWN),
            *(axis_title(key, "Δ to base", "points") for key, _, _ in SHOWN),
            axis_title("accuracy", "original"),
            axis_title("accuracy", "changed"),
        ),
        rows,
        numeric=range(2, 10),
        folded=True,
    )
