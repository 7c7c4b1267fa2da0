"""What the views of a comparison share: numbers as text, columns and rows. Reads a results object, nothing else."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "BASE",
    "RESULTS_VERSION",
    "Column",
    "Figure",
    "Results",
    "Row",
    "best_columns",
    "best_rows",
    "columns",
    "comparable",
    "family_columns",
    "family_mode",
    "interval",
    "largest_k",
    "number",
    "percent",
    "plain_text",
    "problems_title",
    "require_results",
    "role_title",
    "roles",
    "rows",
    "stability_text",
]

Results = Mapping[str, Any]
Figure = Mapping[str, Any] | None

RESULTS_VERSION = 1
"""The schema_version of results.json that is read here."""
MISSING = "–"
BASE = "base"
_ROLE_ORDER = ("standard", "rare", "unsolved", "transfer", "none")
_ROLE_MEANING = {
    "standard": "standard families",
    "rare": "rare: the base is right in a few per cent of samples",
    "unsolved": "unsolved: the base never succeeds on most problems",
    "transfer": "transfer: never in training",
    "none": "by subject or task",
}
_KEYS = ("base", "regimes", "verdict", "choices_using_labels", "config")


class Row(NamedTuple):
    """A model and its figures: a summary, or a slice of one."""

    name: str
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: two header lines, how to print a row, and when it gives way (the highest goes first)."""

    title: str
    unit: str
    cell: Callable[[Row], str]
    figure: Callable[[Mapping[str, Any]], Figure] | None = None  # what is printed, for its note
    drop: int = 0
    narrow: Column | None = None  # what stands in where nothing is left to drop


def require_results(results: object) -> Results:
    """`results` if it is a results object of the version that is read here; ValueError, one line, otherwise."""
    if not isinstance(results, Mapping):
        raise ValueError(f"results.json holds a {type(results).__name__}, not an object; rerun the comparison")
    version = results.get("schema_version")
    if version != RESULTS_VERSION:
        raise ValueError(
            f"results have schema_version {version!r}, this version of bsharp reads {RESULTS_VERSION}; rerun the comparison"
        )
    missing = [key for key in _KEYS if key not in results]
    if missing:
        raise ValueError(f"results lack {', '.join(missing)}; rerun the comparison")
    return results


def comparable(results: Results) -> bool:
    """Whether the models answered enough for any figure to say which of them is better; the verdict's sentence says why not."""
    return bool(results["verdict"].get("comparable", True))


def plain_text(value: object) -> str:
    """`value` on one line, with every control or invisible formatting character replaced by U+FFFD."""
    text = " ".join(str(value).split())
    return "".join("\ufffd" if unicodedata.category(character)[0] == "C" else character for character in text)


def number(value: float | None, scale: float = 1.0, digits: int = 1, signed: bool = False) -> str:
    """`value` · `scale`; a dash where there is none."""
    if value is None:
        return MISSING
    text = f"{value * scale:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("-+") if float(text) == 0 else text  # "-0.0" says more than was measured


def percent(figure: Figure) -> str:
    """The estimate of a share in per cent."""
    return MISSING if figure is None else number(figure["estimate"], 100)


def interval(figure: Figure, signed: bool = False) -> str:
    """`92.1 [90.8, 93.4]`, in per cent or points; without the bracket where there is no interval."""
    if figure is None or figure["estimate"] is None:
        return MISSING
    text = number(figure["estimate"], 100, signed=signed)
    if figure["low"] is None or figure["high"] is None:
        return text
    low, high = (number(figure[end], 100, signed=signed) for end in ("low", "high"))
    return f"{text} [{low}, {high}]"


def largest_k(summary: Mapping[str, Any]) -> str:
    """The n of pass@n, as the key it has."""
    return str(max(summary["pass_at_k"], key=int))


def family_columns(k: str) -> list[Column]:
    """The figures that every summary and every slice of one has."""
    accuracy = Column("accuracy", "%", lambda row: percent(row.summary["accuracy"]))
    delta = Column("Δ to base", "points", lambda row: _delta(row).partition(" ")[0])
    return [
        Column(
            "accuracy",
            "% [95 %]",
            lambda row: interval(row.summary["accuracy"]),
            lambda s: s["accuracy"],
            narrow=accuracy,
        ),
        Column("Δ to base", "points [95 %]", _delta, lambda s: s["delta"], narrow=delta),
        _share("greedy", lambda s: s["greedy_accuracy"], 3),
        _share(f"pass@{k}", lambda s: s["pass_at_k"].get(k), 1),
        _share(f"maj@{k}", lambda s: s["maj_at_k"].get(k), 4),
        Column("length", "tokens", lambda row: number(row.summary["length"]["estimate"]), lambda s: s["length"], 5),
        Column(
            "KL",
            "nats",
            lambda row: number(row.summary["kl_to_base"]["estimate"], digits=2),
            lambda s: s["kl_to_base"],
            6,
        ),
    ]


def columns(results: Results) -> list[Column]:
    """The columns of the main table."""
    return [
        *_summary_columns(results),
        Column(
            "stability", "", lambda row: plain_text(row.summary["stability"]["word"]) if _trained(row) else "", drop=2
        ),
    ]


def best_columns(results: Results) -> list[Column]:
    """The columns of the best checkpoints."""
    steps = Column("steps", "by seed", lambda row: ", ".join(_step(step) for step in row.summary["steps"]), drop=2)
    return [*_summary_columns(results), steps]


def _summary_columns(results: Results) -> list[Column]:
    entropy = Column(
        "entropy",
        "nats/tok",
        lambda row: number(row.summary["entropy"]["estimate"], digits=3),
        lambda s: s["entropy"],
        7,
    )
    return [*family_columns(largest_k(results["base"])), entropy]


def _share(title: str, figure: Callable[[Mapping[str, Any]], Figure], drop: int) -> Column:
    return Column(title, "%", lambda row: percent(figure(row.summary)), figure, drop)


def _trained(row: Row) -> bool:
    return row.name != BASE  # no regime can have that name


def _delta(row: Row) -> str:
    return interval(row.summary["delta"], signed=True) if _trained(row) else ""


def _step(step: int | None) -> str:
    return MISSING if step is None else str(step)


def rows(results: Results) -> list[Row]:
    """The base and every regime at its last checkpoint."""
    return [Row(BASE, results["base"]), *(Row(name, regime) for name, regime in results["regimes"].items())]


def best_rows(results: Results) -> list[Row]:
    """Regimes whose best checkpoint by validation is not the last one in every seed; the others would repeat."""
    found = []
    for name, regime in results["regimes"].items():
        best = regime["best_by_validation"]
        if best is not None and any(best[key] != regime[key] for key in best if key != "steps"):
            found.append(Row(name, best))
    return found


def problems_title(results: Results) -> str:
    """`test problems`, by the split of the evaluation."""
    return f"{plain_text(results['config'].get('evaluation', {}).get('split', ''))} problems".strip()


def stability_text(regime: Mapping[str, Any]) -> str:
    """The word and the figures behind it."""
    return f"{plain_text(regime['stability']['word'])}: {plain_text(regime['stability']['why'])}"


def roles(results: Results) -> list[str]:
    """The roles that occur, in a fixed order."""
    present = {family["role"] for family in results["base"]["families"].values()}
    known = [role for role in _ROLE_ORDER if role in present]
    return known + sorted(present - set(known))


def role_title(role: str) -> str:
    """The role with what it means."""
    return _ROLE_MEANING.get(role, plain_text(role))


def family_mode(family: Mapping[str, Any]) -> str:
    """The mode of a family; nothing where it has none."""
    return "" if family["mode"] == "none" else plain_text(family["mode"])
