"""The comparison as Markdown: table.md of a run directory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bsharp.reporting.cells import (
    Column,
    Results,
    Row,
    best_columns,
    best_rows,
    columns,
    comparable,
    family_mode,
    percent,
    plain_text,
    problems_title,
    require_results,
    role_title,
    roles,
    rows,
    stability_text,
)
from bsharp.reporting.families import family_cell
from bsharp.reporting.notes import notes

__all__ = ["escape", "results_markdown"]

# A bracket before a number is an interval, an underscore inside a word is a name: both are literal in Markdown.
_SPECIAL = re.compile(r"[\\`*|#!~$]|\[(?![-+\d])|(?<!\w)_|_(?!\w)")


def results_markdown(results: Results) -> str:
    """table.md: verdict, all columns, stability with its figures, best checkpoints, one matrix per role, notes."""
    require_results(results)
    title = escape(problems_title(results).capitalize())
    lines = [f"**{escape(results['verdict']['sentence'])}**", ""]
    lines += [f"{title}, last checkpoint:", "", *_markdown_rows(columns(results), rows(results)), ""]
    best = best_rows(results)
    if best:
        table = _markdown_rows(best_columns(results), best)
        lines += [f"{title}, best checkpoint by validation:", "", *table, ""]
    lines += [f"- {escape(name)}: {escape(stability_text(regime))}" for name, regime in results["regimes"].items()]
    for role in roles(results):
        lines += ["", *_role_matrix(results, role)]
    lines += ["", *(f"- {escape(note)}" for note in notes(results, families=True)), ""]
    return "\n".join(lines)


def _role_matrix(results: Results, role: str) -> Iterator[str]:
    starred = comparable(results)
    stars = ", * where its interval excludes 0, not corrected for the number of comparisons" if starred else ""
    yield f"{escape(role_title(role))} (accuracy %, change in points{stars}):"
    yield ""
    names = list(results["regimes"])
    families = {name: family for name, family in results["base"]["families"].items() if family["role"] == role}
    modes = any(map(family_mode, families.values()))
    yield "| | " + "mode | " * modes + " | ".join(["base", *map(escape, names)]) + " |"
    yield "|---|" + "---|" * modes + "--:|" * (len(names) + 1)
    for family, figures in families.items():
        cells = [family_mode(figures)] if modes else []
        cells += [percent(figures["accuracy"])]
        cells += [family_cell(results["regimes"][name]["families"][family], starred).strip() for name in names]
        yield f"| {escape(family)} | " + " | ".join(escape(cell) for cell in cells) + " |"


def escape(value: object) -> str:
    """`plain_text` in which no character means anything to Markdown or HTML."""
    text = plain_text(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", text)


def _markdown_rows(shown: Sequence[Column], rows: Sequence[Row]) -> Iterator[str]:
    yield "| | " + " | ".join(f"{column.title} {column.unit}".strip() for column in shown) + " |"
    yield "|---|" + "".join("---|" if column.title in ("stability", "steps") else "--:|" for column in shown)
    for row in rows:
        yield f"| {escape(row.name)} | " + " | ".join(escape(column.cell(row)) for column in shown) + " |"
