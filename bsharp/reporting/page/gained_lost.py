"""Problems gained and lost: what diagnostics/problems.json holds, as parts of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.load import finite
from bsharp.reporting.page.parts import Cell, Chart, DataTable, GainedLost, Legend, Part, ProblemLink, RegimeChange

__all__ = ["gained_lost_parts"]

_CHANGES = ("kept", "gained", "lost", "never")
_GROUPINGS = {
    "by_family": ("family", "problem family"),
    "by_base": ("base", "how often the base is right (share of samples)"),
    "by_difficulty": ("difficulty", "difficulty (the task's own scale)"),
}
_CAPTIONS = {
    "base": "Among problems that the base solves rarely, on the left, and often, on the right: bars up are gained, down and "
    "paler lost; the data file counts those kept as well. A share of 50 % counts as solved and stands in 50–75 %, so only "
    "problems below 50 % can be gained and only those from 50 % lost; 0 stands alone. Changes close to 50 % may be chance; "
    "alarming are losses at 75–100 %, among problems that the base solves nearly always.",
}


def gained_lost_parts(problems: Mapping[str, Any]) -> list[Part]:
    """The 2×2 tables, the counts against those that chance gives, and the charts by group.

    `problems` is the object of diagnostics/problems.json. No regime in it: no parts.
    """
    regimes = {str(name): regime for name, regime in (problems.get("regimes") or {}).items()}
    if not regimes:
        return []
    changes = [_change(name, regime) for name, regime in regimes.items()]
    definition = str(problems.get("definition") or f"right: in more than {problems.get('threshold')} of the samples")
    definition = definition[:1].upper() + definition[1:].rstrip(".") + "."
    parts: list[Part] = [GainedLost("gained-lost", definition, changes), _table(changes, regimes)]
    parts += [chart for change in ("gained", "lost") if (chart := _against_chance(change, regimes)) is not None]
    parts.append(Legend([change.regime for change in changes]))
    for key, (name, axis) in _GROUPINGS.items():
        groups = list(dict.fromkeys(group for regime in regimes.values() for group in regime.get(key) or {}))
        if groups:
            parts.append(_chart(name, axis, key, groups, regimes))
    return parts


def _change(name: str, regime: Mapping[str, Any]) -> RegimeChange:
    kept, gained, lost, never = ([str(key) for key in regime.get(change) or ()] for change in _CHANGES)
    return RegimeChange(name, kept, gained, lost, never, regime.get("p_value"))


def _by_chance(regime: Mapping[str, Any], change: str) -> Mapping[str, Any]:
    return (regime.get("expected_by_chance") or {}).get(change) or {}


def _range_text(figure: Mapping[str, Any]) -> str:
    value, low, high = (finite(figure.get(key)) for key in ("estimate", "low", "high"))
    if value is None:
        return "–"
    return f"{value:.0f}" if low is None or high is None else f"{value:.0f} [{low:.0f}, {high:.0f}]"


def _table(changes: list[RegimeChange], regimes: Mapping[str, Mapping[str, Any]]) -> DataTable:
    rows: list[list[Cell]] = []
    for change in changes:
        net = len(change.gained) - len(change.lost)
        rows.append(
            [
                change.regime,
                ProblemLink(str(len(change.gained)), change.gained, change.regime),
                _range_text(_by_chance(regimes[change.regime], "gained")),
                ProblemLink(str(len(change.lost)), change.lost, change.regime),
                _range_text(_by_chance(regimes[change.regime], "lost")),
                f"{net:+d}".replace("-", "−") if net else "0",
                "–" if change.p_value is None else _p_text(float(change.p_value)),
            ]
        )
    return DataTable(
        "gained-lost-test",
        "Is the change more than chance?",
        "By chance: what the base, evaluated a second time with as many samples, would gain and lose without any training, with "
        "95 % ranges. McNemar p: how likely so uneven a split of gained and lost is if both were equally likely.",
        (
            "regime",
            "gained (problems)",
            "by chance (problems)",
            "lost (problems)",
            "by chance (problems)",
            "net (problems)",
            "McNemar p",
        ),
        rows,
        numeric=(1, 2, 3, 4, 5, 6),
    )


def _against_chance(change: str, regimes: Mapping[str, Mapping[str, Any]]) -> Chart | None:
    """The number of problems gained (lost) beside the number that chance gives; None where that was not computed."""
    if not any(_by_chance(regime, change) for regime in regimes.values()):
        return None
    found = [Dot(name, name, name, {"estimate": len(regime.get(change) or ())}) for name, regime in regimes.items()]
    found += [Dot("by chance", None, name, _by_chance(regime, change)) for name, regime in regimes.items()]
    return dots(
        f"{change}-by-chance",
        f"Problems {change}, against chance",
        "Coloured: observed. Neutral, with 95 % range: the base evaluated a second time.",
        f"{change} (problems)",
        "regime",
        found,
        legend=False,
        wide=False,
        apart=False,
    )


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _chart(name: str, axis: str, key: str, groups: list[Any], regimes: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Bars up for problems gained and down for problems lost, side by side per regime."""
    labels = [str(group) for group in groups]
    traces = []
    columns: dict[str, list[Any]] = {"regime": [], name: [], **{change: [] for change in _CHANGES}}
    for regime, content in regimes.items():
        counts = content.get(key) or {}
        for change, sign in (("gained", 1), ("lost", -1)):
            values = [(counts.get(group) or {}).get(change, 0) for group in groups]
            traces.append(
                {
                    "type": "bar",
                    "name": regime,
                    "legendgroup": regime,
                    "offsetgroup": regime,
                    "showlegend": change == "gained",
                    "x": labels,
                    "y": [sign * value for value in values],
                    "customdata": values,
                    "hovertemplate": f"%{{customdata}} problems {change}<br>%{{x}}",
                    "meta": {"regime": regime, "role": "bar", "shade": 0 if change == "gained" else 0.5},
                }
            )
        for group, label in zip(groups, labels, strict=True):
            columns["regime"].append(regime)
            columns[name].append(label)
            for change in _CHANGES:
                columns[change].append((counts.get(group) or {}).get(change))
    return Chart(
        f"gained-lost-by-{name}",
        f"Problems gained and lost by {name if name != 'base' else 'base difficulty'}",
        _CAPTIONS.get(name, "Bars up: problems gained; down, paler: lost. The data file counts the kept as well."),
        traces,
        {
            "barmode": "relative",
            "xaxis": {"title": {"text": axis}, "type": "category"},
            "yaxis": {"title": {"text": "problems (gained up, lost down)"}},
        },
        columns,
        340,
        legend=False,
    )
