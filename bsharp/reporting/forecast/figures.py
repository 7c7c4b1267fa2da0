"""What the views of a forecast share: its check, and its figures as text. Reads the content of forecast.json, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import MISSING, plain_text
from bsharp.reporting.page.load import finite
from bsharp.reporting.page.sections.common import figure_text

__all__ = [
    "FORECAST_SCHEMA",
    "NORMALISATIONS",
    "Forecast",
    "by_likelihood",
    "counted",
    "entries",
    "points_text",
    "require_forecast",
    "samples_of",
    "scaled",
    "shape",
    "share_text",
    "text_of",
    "value_of",
]

Forecast = Mapping[str, Any]

FORECAST_SCHEMA = 1
"""The schema of forecast.json that is read here."""
NORMALISATIONS: Mapping[str, str] = {"sum": "sum of log-probabilities", "mean": "mean log-probability per token"}
"""The two likelihoods of a forecast and what they are called."""
_KEYS = (
    "source",
    "base",
    "likelihood",
    "tempered",
    "tilt",
    "limit",
    "regimes",
    "families",
    "per_problem",
    "recommendation",
)
_DIGITS = {"tokens": 1, "nats/sequence": 2}


def require_forecast(forecast: object) -> Forecast:
    """`forecast` if it is the content of a forecast.json of the schema read here; ValueError, one line, otherwise."""
    if not isinstance(forecast, Mapping):
        raise ValueError(f"forecast.json holds a {type(forecast).__name__}, not an object; make the forecast again")
    schema = forecast.get("schema")
    if schema != FORECAST_SCHEMA:
        raise ValueError(
            f"the forecast has schema {schema!r}, this version of bsharp reads {FORECAST_SCHEMA}; make the forecast again"
        )
    missing = [key for key in _KEYS if key not in forecast]
    if missing:
        raise ValueError(f"the forecast lacks {', '.join(missing)}; make the forecast again")
    return forecast


def value_of(figure: object) -> float | None:
    """The number of an estimate or of a plain number; None where it is undefined."""
    return finite(figure.get("estimate")) if isinstance(figure, Mapping) else finite(figure)


def scaled(figure: object, scale: float = 100.0) -> dict[str, Any]:
    """Estimate, ends and count of a figure, times `scale`; a plain number has no ends. Always has all keys."""
    known = figure if isinstance(figure, Mapping) else {"estimate": figure}
    found: dict[str, Any] = {}
    for key in ("estimate", "low", "high"):
        number = finite(known.get(key))
        found[key] = None if number is None else number * scale
    return found | {"n": known.get("n"), "note": known.get("note", "")}


def share_text(figure: object, signed: bool = False) -> str:
    """`46.2 [43.1, 49.3]`: a share in per cent, a difference of shares in points (`signed`)."""
    return figure_text({"estimate": figure} if not isinstance(figure, Mapping) else figure, 100, 1, signed)


def points_text(figure: object) -> str:
    """A difference of shares in points, with its sign."""
    return share_text(figure, signed=True)


def text_of(figure: object, digits: int | None = None, signed: bool = False) -> str:
    """`31.4 [30.2, 32.6]` of a figure or a plain number, in its own unit."""
    known = figure if isinstance(figure, Mapping) else {"estimate": figure}
    chosen = _DIGITS.get(str(known.get("unit")), 2) if digits is None else digits
    return figure_text(known, 1.0, chosen, signed)


def entries(content: object, *keys: str) -> Iterator[tuple[Any, ...]]:
    """The rows of lists that stand beside each other in a mapping; None where a list is missing or short."""
    lists = [content.get(key) if isinstance(content, Mapping) else None for key in keys]
    columns = [list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [] for values in lists]
    for place in range(len(columns[0]) if columns else 0):
        yield tuple(column[place] if place < len(column) else None for column in columns)


def by_likelihood(forecast: Forecast, key: str, normalisation: str) -> Mapping[str, Any]:
    """The part `key` for one of the likelihoods; empty where the forecast has none."""
    found = (forecast.get(key) or {}).get(normalisation)
    return found if isinstance(found, Mapping) else {}


def shape(forecast: Forecast) -> str:
    """`96 problems × 16 samples`, or the smallest and largest number of samples."""
    source = forecast["source"]
    problems, least = source.get("problems", MISSING), source.get("samples")
    most = source.get("samples_max", least)
    samples = counted(most, "sample") if least == most else f"{plain_text(least)} to {counted(most, 'sample')}"
    return f"{counted(problems, 'problem')} × {samples}"


def counted(count: object, noun: str) -> str:
    """`1 problem`, `2 problems`."""
    return f"{plain_text(count)} {noun}" + ("" if finite(count) == 1 else "s")


def samples_of(forecast: Forecast) -> object:
    """The n of pass@n and of the limits: the samples of the median problem, of the smallest where that is not said."""
    source = forecast["source"]
    return source.get("samples_median", source.get("samples"))
