"""The tables of a forecast, once for the screen, Markdown and the page: texts in rows, nothing of how they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bsharp.reporting.cells import MISSING, plain_text
from bsharp.reporting.forecast.figures import (
    NORMALISATIONS,
    Forecast,
    by_likelihood,
    points_text,
    samples_of,
    share_text,
    text_of,
    value_of,
)
from bsharp.reporting.page.load import finite

__all__ = [
    "LOWER_BOUND",
    "NOT_RELIABLE",
    "Grid",
    "base_grid",
    "families_grid",
    "flag",
    "gathered",
    "likelihood_grid",
    "note_of",
    "number_or_dash",
    "number_text",
    "regimes_grid",
    "rules_grid",
    "short_name",
    "verdict_word",
]

NOT_RELIABLE = "not reliable"
"""What stands beside a figure that rests on too little."""
LOWER_BOUND = "≥, lower bound"
"""What stands beside a figure that more samples can only raise."""


@dataclass(frozen=True)
class Grid:
    """A table: headers as (title, unit), rows of texts as long as `headers`; `numeric` columns align right.

    `faint` are the rows that rest on too little. `notes` stand below: (whose they are, what they say).
    """

    grid_id: str
    title: str
    caption: str
    headers: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()
    faint: frozenset[int] = frozenset()
    notes: Sequence[tuple[str, str]] = ()

    def columns(self) -> list[int]:
        """The columns that say something: an empty column of flags is none."""
        return [at for at in range(len(self.headers)) if at == 0 or any(row[at] for row in self.rows)]


def number_text(value: object) -> str:
    """`1.25`, `100`, `10,000`: a knob of an objective."""
    number = finite(value)
    return MISSING if number is None else f"{number:,.6g}"


def base_grid(forecast: Forecast) -> Grid:
    """The figures of the base itself."""
    base = forecast["base"]
    samples = samples_of(forecast)
    sampled = (
        [["right samples", _share(base["sampled_accuracy"]), "their plain share"]]
        if base.get("sampled_accuracy")
        else []
    )
    rows = [
        [
            "accuracy",
            f"{share_text(base['accuracy'])} %",
            "share of right responses, by the samples and their log-probabilities",
        ],
        *sampled,
        [
            "greedy accuracy",
            _share(base.get("greedy_accuracy")),
            "most likely token by token, one completion a problem",
        ],
        [f"pass@{plain_text(samples)}", _share(base["pass_at_n"]), "at least one of the samples is right"],
        ["all samples right", _share(base["all_correct_share"]), "of the problems: nothing left to gain"],
        ["no sample right", _share(base["no_correct_share"]), "of the problems: nothing found to reinforce"],
        ["length", f"{text_of(base['length'])} tokens", "mean over samples, EOS included"],
        ["entropy", f"{text_of(base['entropy'], 2)} nats/sequence", "mean of −log π_ref of a sample"],
    ]
    caption = "95 % intervals over problems in brackets."
    headers = (("figure", ""), ("base", ""), ("what it is", ""))
    return Grid("base", "The base", caption, headers, rows, (1,), notes=_notes(base))


def _share(figure: object) -> str:
    text = share_text(figure)
    return text if text == MISSING else f"{text} %"


def likelihood_grid(forecast: Forecast) -> Grid:
    """Does likelihood tell right from wrong: covariance and correlations, per normalisation."""
    rows: list[list[str]] = []
    notes: list[tuple[str, str]] = []
    for name, meaning in NORMALISATIONS.items():
        found = by_likelihood(forecast, "likelihood", name)
        within, between = found.get("within") or {}, found.get("between") or {}
        figures = (
            within.get("correlation"),
            within.get("covariance"),
            found.get("positive_share"),
            between.get("correlation"),
        )
        rows.append(
            [
                meaning,
                text_of(figures[0], 2, True),
                points_text(figures[1]),
                share_text(figures[2]),
                text_of(figures[3], 2, True),
            ]
        )
        notes += [(meaning, note) for note in dict.fromkeys(map(note_of, figures)) if note]
    return Grid(
        "likelihood",
        "Likelihood and correctness",
        "Within: between the samples of a problem, pooled over problems; between: of the problems' means. The covariance is the "
        "slope of accuracy at α = 1. Positive: the share, among problems with right and wrong samples, whose covariance is "
        "above 0.",
        (
            ("likelihood", ""),
            ("correlation within", "[95 %]"),
            ("covariance within", "points per unit of α"),
            ("positive", "% of problems"),
            ("correlation between", "[95 %]"),
        ),
        rows,
        (1, 2, 3, 4),
        notes=gathered(notes),
    )


def regimes_grid(forecast: Forecast) -> Grid:
    """The forecast of every regime at its optimum."""
    rows: list[list[str]] = []
    notes: list[tuple[str, str]] = []
    faint: set[int] = set()
    for place, (name, regime) in enumerate((forecast["regimes"] or {}).items()):
        mark = flag(regime.get("reliable"), regime.get("lower_bound"))
        if mark == NOT_RELIABLE:
            faint.add(place)
        rows.append(
            [
                plain_text(name),
                share_text(regime["accuracy"]),
                points_text(regime["delta"]),
                mark,
                text_of(regime.get("kl"), 2).partition(" ")[0],
                text_of(regime["length"], 1).partition(" ")[0],
                number_or_dash(regime.get("ess")),
                "none" if regime.get("label_free") else "needed",
            ]
        )
        notes += _regime_notes(name, regime)
    return Grid(
        "regimes",
        "Forecast at the optimum of each regime",
        "What the objective's own optimum would score on these problems; training may stop short of it or leave it. Δ is "
        "paired with the base. ESS: effective samples of the median problem; of a limit, how often its response was drawn.",
        (
            ("regime", ""),
            ("accuracy", "% [95 %]"),
            ("Δ to base", "points [95 %]"),
            ("flag", ""),
            ("KL", "nats/seq"),
            ("length", "tokens"),
            ("ESS", ""),
            ("labels", ""),
        ),
        rows,
        (1, 2, 4, 5, 6),
        frozenset(faint),
        gathered(notes),
    )


def short_name(regime: object) -> str:
    """`sharpening_mean` of `sharpening_mean=sharpening(normalisation=mean)`: the name given to a regime, else all of it."""
    name = plain_text(regime)
    given, equals, _ = name.partition("=")
    return given if equals and "(" not in given else name


def _regime_notes(name: str, regime: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    own = [regime.get("note"), *(note_of(regime.get(key)) for key in ("accuracy", "delta", "length", "kl"))]
    for note in dict.fromkeys(plain_text(text) for text in own if text):
        yield plain_text(name), note


def gathered(notes: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each note once, with all whose it is."""
    found: dict[str, dict[str, None]] = {}
    for name, note in notes:
        found.setdefault(note, {})[name] = None
    return [(", ".join(names), note) for note, names in found.items()]


def number_or_dash(value: object, digits: int = 1) -> str:
    """A plain number with so many digits."""
    number = value_of(value)
    return MISSING if number is None else f"{number:.{digits}f}"


def flag(reliable: object, lower_bound: object = False) -> str:
    """The mark of a figure, empty where it is reliable; a lower bound is marked as that, not as unreliable."""
    return LOWER_BOUND if lower_bound else "" if reliable else NOT_RELIABLE


def families_grid(forecast: Forecast) -> Grid:
    """One row a family."""
    rows = [
        [
            plain_text(name),
            plain_text(family.get("problems", MISSING)),
            share_text(family.get("accuracy")),
            text_of(family.get("within_correlation"), 2, True),
            share_text(family.get("no_correct_share")),
            share_text(family.get("tempered_2")),
            share_text(family.get("limit_sum")),
            share_text(family.get("tilt_100")),
        ]
        for name, family in (forecast["families"] or {}).items()
    ]
    return Grid(
        "families",
        "By family",
        "Few problems a family: read the intervals, not the order.",
        (
            ("family", ""),
            ("problems", ""),
            ("accuracy", "% [95 %]"),
            ("correlation within", "[95 %]"),
            ("no sample right", "% of problems"),
            ("tempered, α = 2", "% [95 %]"),
            ("likeliest sample", "% [95 %]"),
            ("tilt, β⁻¹ = 100", "% [95 %]"),
        ),
        rows,
        tuple(range(1, 8)),
    )


def verdict_word(holds: object) -> str:
    """`holds`, `does not hold`, or `cannot tell` where that is not decided."""
    return "cannot tell" if holds is None else "holds" if holds else "does not hold"


def rules_grid(forecast: Forecast) -> Grid:
    """The rules behind the recommendation."""
    rows = [
        [verdict_word(rule.get("holds")), *(plain_text(rule.get(key, "")) for key in ("rule", "figures", "source"))]
        for rule in forecast["recommendation"].get("rules") or []
    ]
    return Grid(
        "rules",
        "The rules behind it",
        "Each rule with the figures it was held against and where it comes from.",
        (("verdict", ""), ("rule", ""), ("figures", ""), ("source", "")),
        rows,
    )


def note_of(figure: object) -> str:
    """The note of an estimate; empty without one."""
    return plain_text(figure.get("note") or "") if isinstance(figure, Mapping) else ""


def _notes(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    return gathered([(name.replace("_", " "), note) for name, figure in content.items() if (note := note_of(figure))])
