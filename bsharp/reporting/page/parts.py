"""What a page is made of: plain data, no markup. Every string may come from a model or a file; rendering escapes it.

A Page has RunPages (tabs where there are several), a RunPage has Sections, a Section has Parts. Parts are drawn in
order. Ids name things within their run: a chart's id is also the name of its CSV file, so an id is letters, digits,
`_`, `-` and `.`, and no two parts of a run share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Callout",
    "Cell",
    "Chart",
    "Choice",
    "Completions",
    "DataTable",
    "Definitions",
    "FileLinks",
    "Fold",
    "GainedLost",
    "Glossary",
    "Legend",
    "Page",
    "Paragraph",
    "Part",
    "Preformatted",
    "ProblemLink",
    "RegimeChange",
    "RunPage",
    "Section",
    "Verdict",
    "every_part",
]


@dataclass(frozen=True)
class Chart:
    """A plotly chart and its data.

    `traces` are plotly traces as mappings with plain lists (NaN and infinities are drawn as gaps). A trace of a line,
    band or bar carries no colour but `"meta": {"regime": name, "role": role}`, role one of

    | role | drawn as |
    |---|---|
    | line | the regime's colour, dash and marker |
    | seed | the same colour, thin and faint, not in the legend |
    | band | no line, filled in the colour at low opacity; set `fill` ("tonexty" or "toself") in the trace |
    | marker | markers only, the regime's symbol |
    | bar | a bar in the colour; `"shade": 0 … 1` in meta lightens it (stacked bars of one regime) |

    A heatmap or contour carries `"meta": {"scale": "sequential" | "diverging"}`. A trace without a regime takes
    neutral ink. The page applies the colours, for light and dark. A trace may set anything else plotly knows.

    Every axis that a trace uses needs a title in `layout`, with the unit; rendering raises ValueError otherwise (an
    axis with `showticklabels` or `visible` false is let off). `columns` (name → values, equally many) becomes
    report_data/<chart_id>.csv. `height` is in CSS pixels. Charts that are not `wide` stand two in a row where there is
    room; None: wide if it has several panels or more than six categories on an axis. Without `legend` the chart relies
    on a Legend of its section; a saved image has one all the same.

    `meta` may carry a "tone" instead of a regime: "good", "bad" or "neutral", for what a bar counts.
    """

    chart_id: str
    title: str
    caption: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]]
    height: int = 380
    wide: bool | None = None
    legend: bool = True


@dataclass(frozen=True)
class ProblemLink:
    """A table cell that opens the completions browser on these problems; `regime` is put beside the base there."""

    text: str
    problem_ids: Sequence[str]
    regime: str | None = None


Cell = str | ProblemLink


@dataclass(frozen=True)
class DataTable:
    """A table. `numeric` are the indices of the columns that align right. Rows as long as `headers`.

    Also written to report_data/<table_id>.csv, as shown. A first cell that is a regime's name gets its colour. `folded`:
    only its title shows until it is opened.
    """

    table_id: str
    title: str
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[int] = ()
    folded: bool = False


@dataclass(frozen=True)
class Verdict:
    """The answer of the run. `figure`, its `unit` and its 95 % `interval` stand large, `meaning` says what they mean and
    `basis` what they rest on."""

    text: str
    figure: str = ""
    unit: str = ""
    interval: str = ""
    meaning: str = ""
    basis: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    text: str


@dataclass(frozen=True)
class Callout:
    """A sentence set apart: `warning` (something is wrong), `note` (mind this) or `ok`."""

    kind: Literal["warning", "note", "ok"]
    text: str


@dataclass(frozen=True)
class Definitions:
    """Terms and what they mean."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class FileLinks:
    """Links to files: (text, path relative to the page)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Preformatted:
    """Text as it is (a config, say), folded under its title."""

    title: str
    text: str


@dataclass(frozen=True)
class RegimeChange:
    """Which problems a regime changed: ids of those right under both, gained, lost, and wrong under both."""

    regime: str
    kept: Sequence[str]
    gained: Sequence[str]
    lost: Sequence[str]
    never: Sequence[str]
    p_value: float | None


@dataclass(frozen=True)
class GainedLost:
    """Base right or wrong × regime right or wrong, one table per regime; each count lists its problems."""

    part_id: str
    definition: str
    changes: Sequence[RegimeChange]


@dataclass(frozen=True)
class Completions:
    """Completions of the same problems under every model, side by side. Built by `completions.completions_part`.

    `index` is a JSON object that names models, seeds and problems (with the figures the filters need) and says in
    which chunk each problem lies; `chunks` are gzip-compressed JSON arrays, one entry per problem. `left_out` of
    `problems` problems had to be left out for size; `sources` are (text, relative path) links to the full records.
    """

    part_id: str
    index: Mapping[str, Any]
    chunks: Sequence[bytes]
    problems: int
    left_out: int
    sources: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Legend:
    """The colours of the regimes, once for the charts of a section; each name hides and shows its regime in all charts."""

    regimes: Sequence[str]


@dataclass(frozen=True)
class Glossary:
    """Terms and what they mean: (key, term, text), folded and searchable. Titles and headers that start with a term link here."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Fold:
    """Parts behind their title, shown when it is opened."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Choice:
    """One of several options at a time, chosen by buttons: (what its button says, parts). `label` says what is chosen."""

    choice_id: str
    label: str
    options: Sequence[tuple[str, Sequence[Part]]]


Part = (
    Chart
    | Choice
    | Fold
    | Glossary
    | Legend
    | DataTable
    | Verdict
    | Paragraph
    | Callout
    | Definitions
    | FileLinks
    | Preformatted
    | GainedLost
    | Completions
)


def every_part(parts: Iterable[Part]) -> Iterator[Part]:
    """All parts in order, those inside of folds and choices too."""
    for part in parts:
        yield part
        if isinstance(part, Fold):
            yield from every_part(part.parts)
        elif isinstance(part, Choice):
            for _, inside in part.options:
                yield from every_part(inside)


@dataclass(frozen=True)
class Section:
    """A numbered section. `absent` says why there is nothing to show, and the command that computes it."""

    section_id: str
    title: str
    parts: Sequence[Part] = ()
    absent: str | None = None


@dataclass(frozen=True)
class RunPage:
    """One run. `status`, such as "running: 5 of 19 runs done", makes the page reload itself every 30 s."""

    run_id: str
    name: str
    sections: Sequence[Section]
    status: str | None = None


@dataclass(frozen=True)
class Page:
    """The whole page; tabs where there are several runs."""

    title: str
    runs: Sequence[RunPage] = field(default_factory=tuple)
