"""The comparison as a table: for the screen (rich), for table.md, and as a picture. Reads a results object, nothing else.

Accuracies, pass@k and maj@k are printed in per cent, differences in points, lengths in tokens, the KL in nats per sequence,
the entropy in nats per token. Every name that a user or a model can choose is printed literally: no markup, no control
characters.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = [
    "families_tables",
    "plain_text",
    "print_results",
    "results_markdown",
    "results_table",
    "results_view",
    "table_svg",
]

Results = Mapping[str, Any]
Figure = Mapping[str, Any] | None

DEFAULT_WIDTH = 120
MISSING = "–"
BASE = "base"
_ROLE_ORDER = ("standard", "rare", "unsolved", "transfer")
_ROLE_MEANING = {
    "standard": "standard families",
    "rare": "rare: the base is right in a few per cent of samples",
    "unsolved": "unsolved: the base never succeeds on most problems",
    "transfer": "transfer: never in training",
}
_TEXT_COLUMNS = ("stability", "steps")
_WORD_STYLES = {"stable": "green", "noisy": "yellow", "declining": "yellow", "collapsed": "bold red"}


@dataclass(frozen=True)
class _Column:
    """One column: two header lines, how to print a row's summary, and when it gives way (the highest goes first)."""

    title: str
    unit: str
    cell: Callable[[Mapping[str, Any]], str]
    drop: int = 0
    narrow: _Column | None = None  # what stands in where nothing is left to drop


class _Row(NamedTuple):
    name: str
    summary: Mapping[str, Any]


def plain_text(value: object) -> str:
    """`value` on one line, with every control or invisible formatting character replaced by U+FFFD."""
    text = " ".join(str(value).split())
    return "".join("\ufffd" if unicodedata.category(character)[0] == "C" else character for character in text)


# ------------------------------------------------------------------------------------------------------- numbers


def _number(value: float | None, scale: float = 1.0, digits: int = 1, signed: bool = False) -> str:
    if value is None:
        return MISSING
    text = f"{value * scale:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("-+") if float(text) == 0 else text  # "-0.0" says more than was measured


def _percent(figure: Figure) -> str:
    return MISSING if figure is None else _number(figure["estimate"], 100)


def _interval(figure: Figure, signed: bool = False) -> str:
    """`92.1 [90.8, 93.4]`, in per cent or points; without the bracket where there is no interval."""
    if figure is None or figure["estimate"] is None:
        return MISSING
    text = _number(figure["estimate"], 100, signed=signed)
    if figure["low"] is None or figure["high"] is None:
        return text
    low, high = (_number(figure[end], 100, signed=signed) for end in ("low", "high"))
    return f"{text} [{low}, {high}]"


def _largest_k(by_k: Mapping[str, Any]) -> str:
    return max(by_k, key=int)


def _columns(results: Results) -> list[_Column]:
    k = _largest_k(results["base"]["pass_at_k"])
    accuracy = _Column("accuracy", "%", lambda s: _percent(s["accuracy"]))
    delta = _Column("Δ to base", "points", lambda s: _delta(s).partition(" ")[0])
    return [
        _Column("accuracy", "% [95 %]", lambda s: _interval(s["accuracy"]), narrow=accuracy),
        _Column("Δ to base", "points [95 %]", lambda s: _delta(s), narrow=delta),
        _Column("greedy", "%", lambda s: _percent(s["greedy_accuracy"]), drop=3),
        _Column(f"pass@{k}", "%", lambda s: _percent(s["pass_at_k"].get(k)), drop=1),
        _Column(f"maj@{k}", "%", lambda s: _percent(s["maj_at_k"].get(k)), drop=4),
        _Column("length", "tokens", lambda s: _number(s["length"]["estimate"]), drop=5),
        _Column("KL", "nats", lambda s: _number(s["kl_to_base"]["estimate"], digits=2), drop=6),
        _Column("entropy", "nats/tok", lambda s: _number(s["entropy"]["estimate"], digits=3), drop=7),
        _Column("stability", "", lambda s: _stability_word(s), drop=2),
    ]


def _delta(summary: Mapping[str, Any]) -> str:
    return _interval(summary["delta"], signed=True) if "objective" in summary or "steps" in summary else ""


def _steps(summary: Mapping[str, Any]) -> str:
    return ", ".join(MISSING if step is None else str(step) for step in summary["steps"])


def _stability_word(summary: Mapping[str, Any]) -> str:
    return plain_text(summary["stability"]["word"]) if "stability" in summary else ""


def _rows(results: Results) -> list[_Row]:
    return [_Row(BASE, results["base"]), *(_Row(name, regime) for name, regime in results["regimes"].items())]


def _best_rows(results: Results) -> list[_Row]:
    """Regimes whose best checkpoint by validation is not the last one in every seed; the others would repeat."""
    found = []
    for name, regime in results["regimes"].items():
        best = regime["best_by_validation"]
        if best is not None and any(best[key] != regime[key] for key in best if key != "steps"):
            found.append(_Row(name, best))
    return found


# -------------------------------------------------------------------------------------------------------- screen


def _empty_table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _build(title: str, columns: Sequence[_Column], rows: Sequence[_Row]) -> Table:
    table = _empty_table(title)
    table.add_column("", no_wrap=True, overflow="ellipsis")
    for column in columns:
        header = f"{column.title}\n{column.unit}" if column.unit else column.title
        left = column.title in _TEXT_COLUMNS
        table.add_column(Text(header), justify="left" if left else "right", no_wrap=True)
    for row in rows:
        cells = [column.cell(row.summary) for column in columns]
        styled = [Text(cell, style=_WORD_STYLES.get(cell, "")) for cell in cells]
        table.add_row(Text(plain_text(row.name), style="dim" if row.name == BASE else ""), *styled)
    return table


def _fits(table: Table, width: int) -> bool:
    title, table.title = table.title, None  # a long title may wrap, it must not cost a column
    ruler = Console(width=10_000, file=io.StringIO())
    fits = Measurement.get(ruler, ruler.options, table).maximum <= width
    table.title = title
    return fits


def _fit(title: str, columns: Sequence[_Column], rows: Sequence[_Row], width: int) -> Table:
    """The table with as many columns as fit: the least needed give way, then the intervals, rather than wrap."""
    kept = list(columns)
    while not _fits(_build(title, kept, rows), width):
        last = max(kept, key=lambda column: column.drop)
        if not last.drop:
            kept = [column.narrow or column for column in kept]
            break
        kept.remove(last)
    return _build(title, kept, rows)


def results_table(results: Results, width: int = DEFAULT_WIDTH) -> Table:
    """The base and each regime at its last checkpoint, at most `width` characters wide if two columns allow it."""
    return _fit("test problems, last checkpoint", _columns(results), _rows(results), width)


def results_view(results: Results, width: int = DEFAULT_WIDTH, families: bool = False) -> RenderableType:
    """Everything that is shown at the end: tables, the figures behind the stability words, verdict and notes."""
    parts: list[RenderableType] = [results_table(results, width)]
    best = _best_rows(results)
    if best:
        steps = _Column("steps", "by seed", _steps, drop=2)
        columns = [column for column in _columns(results) if column.title != "stability"]
        parts += ["", _fit("test problems, best checkpoint by validation", [*columns, steps], best, width)]
    if families:
        for table in families_tables(results, width):
            parts += ["", table]
        parts += ["", Text("* the 95 % interval of the change excludes 0", style="dim")]
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, regime in results["regimes"].items():
        grid.add_row(Text(plain_text(name)), Text(_stability_text(regime)))
    parts += ["", grid, "", Text(plain_text(results["verdict"]["sentence"]), style="bold"), ""]
    parts += [Text(note, style="dim") for note in _notes(results)]
    return Group(*parts)


def print_results(results: Results, console: Console | None = None, families: bool = False) -> None:
    """Print `results_view` at the console's width.

    Where the output is not a terminal it is plain text, without colour or trailing blanks, and 120 characters wide
    unless COLUMNS says otherwise.
    """
    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=DEFAULT_WIDTH)
    view = results_view(results, console.width, families)
    if console.is_terminal:
        console.print(view)
        return
    with console.capture() as capture:
        console.print(view)
    console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def families_tables(results: Results, width: int = DEFAULT_WIDTH) -> list[Table]:
    """Per role one table: families × models, accuracy of the base and of each regime with its change in points.

    Where not all regimes fit beside each other the table is continued below with the remaining ones.
    """
    return [table for role in _roles(results) for table in _role_tables(results, role, width)]


def _role_tables(results: Results, role: str, width: int) -> Iterator[Table]:
    title = _ROLE_MEANING.get(role, plain_text(role))
    families = [name for name, family in results["base"]["families"].items() if family["role"] == role]
    chunk: list[str] = []
    for name in results["regimes"]:
        if chunk and not _fits(_role_table(results, title, families, [*chunk, name]), width):
            yield _role_table(results, title, families, chunk)
            chunk = []
        chunk.append(name)
    yield _role_table(results, title, families, chunk)


def _role_table(results: Results, title: str, families: Sequence[str], regimes: Sequence[str]) -> Table:
    table = _empty_table(title)
    table.add_column(Text("% (Δ points)"), no_wrap=True, overflow="ellipsis")
    for name in (BASE, *regimes):
        table.add_column(Text(plain_text(name)), justify="right", no_wrap=True, overflow="ellipsis")
    for family in families:
        cells = [_percent(results["base"]["families"][family]["accuracy"])]
        cells += [_family_cell(results["regimes"][name]["families"][family]) for name in regimes]
        table.add_row(Text(plain_text(family)), *(Text(cell) for cell in cells))
    return table


def _family_cell(family: Mapping[str, Any]) -> str:
    delta = family["delta"]
    clear = delta["low"] is not None and (delta["low"] > 0 or delta["high"] < 0)
    return f"{_percent(family['accuracy'])} ({_number(delta['estimate'], 100, signed=True)}){'*' if clear else ' '}"


def _roles(results: Results) -> list[str]:
    present = {family["role"] for family in results["base"]["families"].values()}
    known = [role for role in _ROLE_ORDER if role in present]
    return known + sorted(present - set(known))


def table_svg(results: Results, width: int = DEFAULT_WIDTH, title: str = "bsharp compare") -> str:
    """The table of last checkpoints and the verdict as an SVG picture of a terminal, with no reference to the network."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(results_table(results, width))
    console.print()
    console.print(Text(plain_text(results["verdict"]["sentence"]), style="bold"))
    # rich names a web font; a monospace font of the reader's own machine serves as well.
    return re.sub(r"@font-face\s*\{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)


# --------------------------------------------------------------------------------------------------------- notes


def _stability_text(regime: Mapping[str, Any]) -> str:
    return f"{plain_text(regime['stability']['word'])}: {plain_text(regime['stability']['why'])}"


def _notes(results: Results) -> list[str]:
    counts = results["base"]["counts"]
    seeds = max((regime["counts"]["seeds"] for regime in results["regimes"].values()), default=1)
    notes = [
        f"{counts['problems']} problems × {counts['samples_per_problem']} samples, {seeds} training seed{'s' * (seeds != 1)}. "
        "Brackets: 95 % intervals, bootstrap over problems combined with a t interval over seeds; base: problems only. "
        "Δ is paired: same problems, same random streams.",
        "KL: policy‖base, per sequence.",
    ]
    repeated = [name for name in results["regimes"] if results["regimes"][name]["best_by_validation"] is not None]
    repeated = [plain_text(name) for name in repeated if name not in {row.name for row in _best_rows(results)}]
    if repeated:
        notes.append(f"The best checkpoint by validation is the last one in every seed: {', '.join(repeated)}.")
    ungraded = sum(row.summary["counts"]["ungraded_samples"] for row in _rows(results))
    if ungraded:
        notes.append(f"{ungraded} samples could not be graded (timeout or error); they count in no accuracy.")
    flagged: dict[str, list[str]] = {}
    for row in _rows(results):
        note = row.summary["accuracy"].get("note")
        if note and row.name != BASE:
            flagged.setdefault(plain_text(note), []).append(plain_text(row.name))
    notes += [f"{note} ({', '.join(names)})." for note, names in flagged.items()]
    if results["choices_using_labels"]:
        notes.append(
            "Choices that used labels: " + "; ".join(plain_text(c) for c in results["choices_using_labels"]) + "."
        )
    return notes


# ------------------------------------------------------------------------------------------------------ markdown


# A bracket before a number is an interval, an underscore inside a word is a name: both are literal in Markdown.
_SPECIAL = re.compile(r"[\\`*|#!~$]|\[(?![-+\d])|(?<!\w)_|_(?!\w)")


def _escape(value: object) -> str:
    """`plain_text` in which no character means anything to Markdown or HTML."""
    text = plain_text(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", text)


def _markdown_rows(columns: Sequence[_Column], rows: Sequence[_Row]) -> Iterator[str]:
    yield "| | " + " | ".join(f"{column.title} {column.unit}".strip() for column in columns) + " |"
    yield "|---|" + "".join("---|" if column.title in ("stability", "steps") else "--:|" for column in columns)
    for row in rows:
        yield f"| {_escape(row.name)} | " + " | ".join(_escape(column.cell(row.summary)) for column in columns) + " |"


def results_markdown(results: Results) -> str:
    """table.md: verdict, all columns, stability with its figures, best checkpoints, one matrix per role, notes."""
    columns = _columns(results)
    lines = [f"**{_escape(results['verdict']['sentence'])}**", ""]
    lines += ["Test problems, last checkpoint:", "", *_markdown_rows(columns, _rows(results)), ""]
    best = _best_rows(results)
    if best:
        steps = _Column("steps", "by seed", _steps)
        kept = [*(column for column in columns if column.title != "stability"), steps]
        lines += ["Test problems, best checkpoint by validation:", "", *_markdown_rows(kept, best), ""]
    lines += [f"- {_escape(name)}: {_escape(_stability_text(regime))}" for name, regime in results["regimes"].items()]
    names = list(results["regimes"])
    for role in _roles(results):
        lines += [
            "",
            f"{_escape(_ROLE_MEANING.get(role, role))} (accuracy %, change in points, * where its interval excludes 0):",
            "",
        ]
        lines += [
            "| | base | " + " | ".join(_escape(name) for name in names) + " |",
            "|---|" + "--:|" * (len(names) + 1),
        ]
        for family, figures in results["base"]["families"].items():
            if figures["role"] == role:
                cells = [_percent(figures["accuracy"])]
                cells += [_family_cell(results["regimes"][name]["families"][family]).strip() for name in names]
                lines.append(f"| {_escape(family)} | " + " | ".join(_escape(cell) for cell in cells) + " |")
    lines += ["", *(f"- {_escape(note)}" for note in _notes(results)), ""]
    return "\n".join(lines)
