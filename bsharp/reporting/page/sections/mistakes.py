"""Part of section 5: what the gradients and the trained policies do to each type of mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import plain_text
from bsharp.reporting.page.charts import Curve, axis
from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.heatmap import heatmap
from bsharp.reporting.page.load import finite
from bsharp.reporting.page.panels import panels
from bsharp.reporting.page.parts import Chart, Choice, DataTable, Fold, Paragraph, Part, Preformatted
from bsharp.reporting.page.sections.common import estimate, shown

__all__ = ["mistake_parts"]

Mistakes = Mapping[str, Any]
COSINES = {"margin_cosine": "right against mistaken", "oracle_cosine": "right solutions"}
"""The first leads: it does not count what right and mistaken solutions have in common."""
FIRST_STEP_UNIT = "nats per unit distance"
STAGES = {"first_step": "first step", "trained": "trained policy"}


def mistake_parts(mistakes: Mistakes) -> list[Part]:
    """Counts of corrected and amplified types first, then one chart of the types at a time, then the cosines."""
    # Families of wrong mode first: there the base's preference is a systematic error.
    types = sorted(filter(None, mistakes.get("types") or []), key=lambda entry: entry.get("mode") != "wrong")
    parts: list[Part | None] = []
    if types:
        parts.append(
            Paragraph(
                f"Every mistake of the test problems has a type ({len(types)} types, {mistakes.get('problems')} problems). The "
                "margin is the log-probability of the right solution minus that of the solution with the mistake: an objective "
                "that raises it corrects the mistake, one that lowers it amplifies it."
            )
        )
        parts += [_counts(mistakes), _summary(mistakes)]
        found = [*_charts(types, mistakes), *_moved(types, mistakes)]
        options: list[tuple[str, Sequence[Part]]] = [(label, [chart]) for label, chart in found]
        parts.append(Choice("mistakes", "By type of mistake", options) if options else None)
    parts.append(_cosines(mistakes))
    families = [
        (label, [chart]) for key, label in COSINES.items() if (chart := _by_family(mistakes, key, types)) is not None
    ]
    if families:
        parts.append(Fold("These cosines by problem family", [Choice("mistake_cosines", "Cosine to", families)]))
    told = [mistakes.get("note"), *(mistakes.get("notes") or [])]
    notes = "\n".join(plain_text(note) for note in told if note)
    if notes and not types:
        parts.append(Paragraph(f"Mistakes: {notes}."))
    elif notes:
        parts.append(Preformatted("How mistakes were measured", notes))
    return [part for part in parts if part is not None]


def _label(entry: Mapping[str, Any]) -> str:
    """Family and type; [wrong] where the base prefers the wrong way, else the role where it is not the standard one."""
    mode, role = plain_text(entry.get("mode", "")), plain_text(entry.get("role", ""))
    detail = " [wrong]" if mode == "wrong" else f" ({role})" if role not in ("standard", "none", "") else ""
    return f"{plain_text(entry.get('family'))}: {plain_text(entry.get('type')).replace('_', ' ')}{detail}"


OUTCOMES = {"amplified": "bad", "undecided": "neutral", "corrected": "good"}
GROUPS = {"wrong_mode_summary": "wrong-mode families", "summary": "all types"}


def _rows(mistakes: Mistakes) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """(group, stage, name, counts), families of wrong mode first."""
    return [
        (group, stage, str(name), counts)
        for key, group in GROUPS.items()
        for stage in STAGES
        for name, counts in shown(shown(mistakes.get(key)).get(stage)).items()
    ]


def _counts(mistakes: Mistakes) -> Chart | None:
    """Stacked bars of the counts: a panel per stage and group."""
    rows = _rows(mistakes)
    panels = list(dict.fromkeys((group, stage) for group, stage, _, _ in rows))
    if not rows:
        return None
    layout: dict[str, Any] = {"barmode": "stack", "annotations": [], "bargap": 0.3}
    layout["grid"] = {"rows": -(-len(panels) // 2), "columns": 2, "pattern": "independent", "xgap": 0.32, "ygap": 0.5}
    traces: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {"group": [], "stage": [], "name": [], "outcome": [], "types": []}
    for place, (group, stage) in enumerate(panels):
        suffix = "" if place == 0 else str(place + 1)
        own = [(name, counts) for g, s, name, counts in rows if (g, s) == (group, stage)]
        layout[f"xaxis{suffix}"] = axis("types of mistake (count)")
        layout[f"yaxis{suffix}"] = axis("objective", type="category", autorange="reversed")
        heading = {"text": f"{STAGES[stage]}: {group}", "showarrow": False, "x": 0, "y": 1.02, "font": {"size": 12}}
        heading |= {"xanchor": "left", "yanchor": "bottom", "xref": f"x{suffix} domain", "yref": f"y{suffix} domain"}
        layout["annotations"].append(heading)
        for outcome, tone in OUTCOMES.items():
            values = [counts.get(outcome) for _, counts in own]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": outcome,
                    "legendgroup": outcome,
                    "showlegend": place == 0,
                    "x": values,
                    "y": [name for name, _ in own],
                    "text": [str(value) if value else "" for value in values],
                    "textangle": 0,
                    "xaxis": f"x{suffix}",
                    "yaxis": f"y{suffix}",
                    "meta": {"tone": tone, "role": "bar"},
                }
            )
            for (name, _), value in zip(own, values, strict=True):
                for column, cell in zip(columns.values(), (group, stage, name, outcome, value), strict=True):
                    column.append(cell)
    return Chart(
        "mistakes_outcomes",
        "Mistakes corrected and amplified",
        "Corrected: the interval of the margin's change lies above 0; amplified: below; undecided: neither. Wrong mode: "
        "the usual mistakes of families in which the base prefers the wrong way. "
        "Alarming: amplified types there, a systematic error grown.",
        traces,
        layout,
        columns,
        130 + (70 + 22 * len({name for _, _, name, _ in rows})) * -(-len(panels) // 2),
        wide=True,
    )


def _summary(mistakes: Mistakes) -> DataTable | None:
    rows = [
        [
            name,
            STAGES[stage],
            group,
            *(str(counts.get(word, "–")) for word in ("corrected", "amplified", "undecided", "types")),
        ]
        for group, stage, name, counts in _rows(mistakes)
    ]
    if not rows:
        return None
    return DataTable(
        "mistakes_summary",
        "The same counts as a table",
        "Types whose margin's change has an interval wholly above 0 (corrected) or wholly below 0 (amplified).",
        (
            "objective or regime",
            "stage",
            "mistakes",
            "corrected (types)",
            "amplified (types)",
            "undecided (types)",
            "all (types)",
        ),
        rows,
        numeric=(3, 4, 5, 6),
        folded=True,
    )


def _charts(types: Sequence[Mapping[str, Any]], mistakes: Mistakes) -> Iterator[tuple[str, Chart]]:
    for stage, names, unit, what in (
        ("trained", mistakes.get("regimes") or [], "nats", "by training, against the base, mean over seeds"),
        ("first_step", mistakes.get("objectives") or [], FIRST_STEP_UNIT, "along each objective's unit gradient"),
    ):
        kept = [entry for entry in types if any(name in (entry.get(stage) or {}) for name in names)]
        if not kept:
            continue
        margin = axis_title("margin", "change", unit)
        yield (
            f"margin, {STAGES[stage]}",
            heatmap(
                f"mistakes_{stage}",
                f"Change of the margin, {STAGES[stage]}",
                f"Change {what}. Above 0 (blue) the mistake is corrected, below 0 (orange) amplified; in brackets: the 95 % "
                "interval, on hover, includes 0. Families in which the base prefers the wrong way come first, marked [wrong].",
                ("objective", "type of mistake", margin),
                [str(name) for name in names],
                [_label(entry) for entry in kept],
                [[(entry[stage].get(name) or {}).get("margin") for name in names] for entry in kept],
                compact=True,
                digits=1,
            ),
        )


def _moved(types: Sequence[Mapping[str, Any]], mistakes: Mistakes) -> Iterator[tuple[str, Chart]]:
    """Both log-probabilities at once: one panel per objective or regime, one point per type of mistake."""
    for stage, names, unit in (
        ("trained", mistakes.get("regimes") or [], "nats"),
        ("first_step", mistakes.get("objectives") or [], FIRST_STEP_UNIT),
    ):
        drawn = []
        for name in names:
            moved = [(entry, entry[stage][name]) for entry in types if (entry.get(stage) or {}).get(name)]
            known = [
                (entry, m) for entry, m in moved if None not in (estimate(m.get("right")), estimate(m.get("mistake")))
            ]
            mistake, right = ([estimate(figures[key]) for _, figures in known] for key in ("mistake", "right"))
            low, high = ([finite(figures["right"].get(end)) for _, figures in known] for end in ("low", "high"))
            labels = [_label(entry) for entry, _ in known]
            across = [value for value in mistake if value is not None]
            if known:
                drawn.append(
                    Curve(str(name), str(name), across, right, low, high, labels, plain_text(name), markers=True)
                )
        chart = panels(
            f"mistakes_moved_{stage}",
            f"Right solutions and mistakes, {STAGES[stage]}",
            "One point per type of mistake, bars are 95 % intervals of the right solution. Above the dotted diagonal the right "
            "solution gains on the mistake; below it the mistake gains.",
            axis_title("mistake", unit=unit),
            axis_title("right", unit=unit),
            drawn,
            band=False,
            diagonal=True,
            legend=False,
        )
        if chart:
            yield f"right and mistaken, {STAGES[stage]}", chart


def _cosines(mistakes: Mistakes) -> Chart | None:
    """Both cosines over all families."""
    found = [
        Dot(str(name), str(name), f"gradient of {label}", cosines.get("all") or {})
        for key, label in COSINES.items()
        for name, cosines in shown(mistakes.get(key)).items()
    ]
    return dots(
        "mistake_cosine",
        "Do first steps point towards right solutions?",
        "Cosine of each objective's gradient, with 95 % intervals where they exist. Right against mistaken solutions in the same "
        "form leads: right solutions alone also count what only makes the usual form likelier. Alarming: below 0.",
        axis_title("cosine"),
        "direction",
        found,
        legend=False,
        wide=True,
    )


def _by_family(mistakes: Mistakes, key: str, types: Sequence[Mapping[str, Any]]) -> Chart | None:
    cosines = shown(mistakes.get(key))
    names = [str(name) for name in cosines]
    families = list(dict.fromkeys(family for content in cosines.values() for family in content.get("families") or {}))
    if not families:
        return None
    modes = {str(entry.get("family")): entry.get("mode") for entry in types}
    families.sort(key=lambda family: modes.get(family) != "wrong")
    return heatmap(
        key,
        f"Cosine to the gradient of {COSINES[key]}{' solutions' if key == 'margin_cosine' else ''}, by family",
        "Families in which the base prefers the wrong way come first; in brackets: the 95 % interval includes 0.",
        ("objective", "problem family", axis_title(key)),
        names,
        [plain_text(family) + (" [wrong]" if modes.get(family) == "wrong" else "") for family in families],
        [[(cosines[name].get("families") or {}).get(family) for name in names] for family in families],
        compact=True,
    )
