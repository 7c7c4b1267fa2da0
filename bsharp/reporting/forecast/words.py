"""The sentences of a forecast: what its figures say in plain words, the same on the screen, in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bsharp.reporting.cells import MISSING, plain_text
from bsharp.reporting.forecast.along import LIMITS
from bsharp.reporting.forecast.figures import (
    NORMALISATIONS,
    Forecast,
    by_likelihood,
    counted,
    entries,
    points_text,
    samples_of,
    shape,
    share_text,
    text_of,
    value_of,
)
from bsharp.reporting.forecast.grids import number_text
from bsharp.reporting.forecast.parted import leading
from bsharp.reporting.page.load import finite

__all__ = [
    "advice",
    "base_sentence",
    "cut_sentence",
    "likelihood_sentences",
    "limit_sentences",
    "no_correct_sentence",
    "rests_on",
    "tilt_sentence",
    "warnings",
]

SETTLED = 0.02
"""A limit that moved by less than this share between half of the samples and all of them is called settled."""
FEW_PROBLEMS = 30
FEW_SAMPLES = 8
MORE_SAMPLES = 64
"""How many samples a problem are advised where no regime is reliable; twice as many as there are, if that is more."""


def rests_on(forecast: Forecast) -> str:
    """`96 problems × 16 samples of embedded:tiny (math_mini, train) at temperature 1`."""
    source = forecast["source"]
    where = [plain_text(task) for task in source.get("tasks") or []]
    where += [plain_text(source["split"])] if source.get("split") else []
    model = plain_text(source.get("model") or "an unnamed base")
    text = f"{shape(forecast)} of {model}" + (f" ({', '.join(where)})" if where else "")
    text += f" at temperature {number_text(source.get('temperature', 1.0))}"
    if source.get("fixed_length"):
        text += ", all of fixed length"
    if source.get("records"):
        text += f", from {plain_text(source['records'])}"
    return f"{text}."


def warnings(forecast: Forecast) -> Iterator[tuple[bool, str]]:
    """Reasons to doubt every figure, each with whether it is serious: few problems or samples, what was left out."""
    source = forecast["source"]
    problems, samples = finite(source.get("problems")), finite(samples_of(forecast))
    if problems is not None and problems < FEW_PROBLEMS:
        yield (
            True,
            f"Only {counted(int(problems), 'problem')}: the intervals cover other problems badly; "
            f"{FEW_PROBLEMS} or more are advised.",
        )
    if samples is not None and samples < FEW_SAMPLES:
        yield (
            True,
            f"Only {counted(int(samples), 'sample')} a problem: weights and limits carry little; "
            f"{FEW_SAMPLES} or more are advised.",
        )
    regimes = list((forecast["regimes"] or {}).values())
    if regimes and not any(regime.get("reliable") or regime.get("lower_bound") for regime in regimes):
        advised = max(MORE_SAMPLES, 2 * int(samples or 0))
        yield True, f"No regime's forecast is reliable: draw more samples, e.g. --samples {advised}."
    yield from _doubts_of_records(source)


def _doubts_of_records(source: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """What the records do not say or were not used for."""
    partial, ungraded, left_out = source.get("partial_rewards"), source.get("ungraded"), source.get("left_out")
    if partial:
        verb = "has" if partial == 1 else "have"
        yield (
            True,
            f"{counted(partial, 'sample')} {verb} a partial reward, between 0 and 1: none of them counts as right.",
        )
    if source.get("temperature_known") is False:
        assumed = number_text(source.get("temperature", 1.0))
        yield False, f"Not every record says its temperature: {assumed} is assumed; at another, every weight is wrong."
    if ungraded:
        them = "it counts" if ungraded == 1 else "they count"
        yield False, f"{counted(ungraded, 'sample')} could not be graded (timeout or error); {them} in no figure."
    if left_out:
        verb, was = ("has", "was") if left_out == 1 else ("have", "were")
        yield False, f"{counted(left_out, 'problem')} {verb} too few graded samples and {was} left out."
    if source.get("note"):
        yield False, _sentence(plain_text(source["note"]))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def base_sentence(forecast: Forecast) -> str:
    """Accuracy, pass@n and length of the base in one sentence."""
    base, samples = forecast["base"], plain_text(samples_of(forecast))
    greedy = value_of(base.get("greedy_accuracy"))
    return (
        f"The base is right in {share_text(base['accuracy'])} % of responses"
        + (f" ({share_text(base['greedy_accuracy'])} % greedily)" if greedy is not None else "")
        + f" and at least once in {samples} on {share_text(base['pass_at_n'])} % of problems; "
        f"a response has {text_of(base['length'], 1)} tokens."
    )


def no_correct_sentence(forecast: Forecast) -> str:
    """How many problems have no right sample, and how rare success may still be on each of them."""
    base = forecast["base"]
    count, share = len(base.get("no_correct_ids") or []), base["no_correct_share"]
    if not count:
        return "Every problem has at least one right sample."
    problems = f"{counted(count, 'problem')} ({share_text(share)} %)"
    text = f"On {problems} no sample is right: there a reward finds nothing to reinforce."
    bound = finite(base.get("no_correct_upper_bound"))
    if bound is None:
        return text
    return f"{text} On such a problem the base may still succeed in up to {100 * bound:.1f} % of samples (95 % bound)."


def likelihood_sentences(forecast: Forecast) -> Iterator[str]:
    """For each likelihood: does it tell right from wrong within a problem, what does that give at first, and between problems."""
    for name, meaning in NORMALISATIONS.items():
        found = by_likelihood(forecast, "likelihood", name)
        within, between = found.get("within") or {}, found.get("between") or {}
        head = f"By the {meaning},"
        correlation, covariance = within.get("correlation"), within.get("covariance")
        word = _side(correlation, "right", "wrong")
        if word is None:
            yield f"{head} nothing can be said: {_reason(correlation)}."
            continue
        text = f"{head} likelier samples of a problem are {word} (correlation {text_of(correlation, 2, True)})"
        if value_of(covariance) is not None:
            text += f"; accuracy changes at first by {points_text(covariance)} points per unit of α"
        if value_of(found.get("positive_share")) is not None:
            text += f"; the covariance is positive on {share_text(found['positive_share'])} % of problems with both"
        across = _side(between.get("correlation"), "right", "wrong")
        if across is not None:
            text += (
                f". Between problems, likelier means {across} (correlation {text_of(between['correlation'], 2, True)})"
            )
        yield f"{text}."


def _side(figure: object, above: str, below: str) -> str | None:
    """`more often right`, `more often wrong` or undecided, by the interval; None where the figure is undefined."""
    value = value_of(figure)
    if value is None or not isinstance(figure, Mapping):
        return None
    low, high = finite(figure.get("low")), finite(figure.get("high"))
    if low is not None and low > 0:
        return f"more often {above}"
    if high is not None and high < 0:
        return f"more often {below}"
    if low is None or high is None:
        return f"more often {above if value > 0 else below}, without an interval"
    return f"neither more often {above} nor {below}: the interval includes 0"


def _reason(figure: object) -> str:
    note = plain_text(figure.get("note") or "") if isinstance(figure, Mapping) else ""
    return note or "the correlation is undefined"


def cut_sentence(forecast: Forecast, normalisation: str) -> str:
    """How far the curve along α carries, and why not further."""
    found = by_likelihood(forecast, "tempered", normalisation)
    flags = list(entries(found, "alpha", "reliable"))
    note = plain_text(found.get("note") or "")
    more = f"; {note}" if note else ""
    if not flags:
        return f"There is no curve by the {NORMALISATIONS[normalisation]}{more}."
    firm = leading([reliable for _, reliable in flags])
    if firm == len(flags):
        return f"Reliable up to α = {number_text(flags[-1][0])}, the end of the curve{more}."
    head = f"Reliable up to α = {number_text(flags[firm - 1][0])}" if firm else "Reliable nowhere"
    return f"{head}{more}. What lies beyond is shown, marked."


def tilt_sentence(forecast: Forecast) -> str:
    """What the strongest tilt would give and cost; `at least` where that is a lower bound."""
    every = list(entries(forecast["tilt"], "beta_inv", "accuracy", "delta", "kl", "lower_bound"))
    if not every:
        return "There is no forecast of the tilt."
    knob, accuracy, delta, kl, lower_bound = max(every, key=lambda row: finite(row[0]) or 0.0)
    forecast_at = "forecast to reach at least" if lower_bound else "forecast at"
    return (
        f"With β⁻¹ = {number_text(knob)} the tilt is {forecast_at} {share_text(accuracy)} % "
        f"({points_text(delta)} points) for {text_of(kl, 2)} nats of KL."
    )


def limit_sentences(forecast: Forecast) -> Iterator[str]:
    """Where each limit of sharpening lies, and whether it has settled with the samples there are."""
    for name, meaning in LIMITS.items():
        found = by_likelihood(forecast, "limit", name)
        if value_of(found.get("accuracy")) is None:
            continue
        change = points_text(found.get("delta"))
        text = f"The {meaning} is right on {share_text(found['accuracy'])} % of problems ({change} points"
        moved = _moved(found.get("by_k"))
        if moved is None:
            yield f"{text})."
            continue
        half, full, last = moved
        state = "settled" if abs(last) < SETTLED else "still moving"
        yield f"{text}); {state}: {points_text(last)} points from k = {half} to {full}."


def _moved(by_k: object) -> tuple[int, int, float] | None:
    """Half of the samples, all of them, and the change of the limit between."""
    known = [
        (int(k), value) for k, share in entries(by_k, "k", "accuracy") if k and (value := value_of(share)) is not None
    ]
    before = [pair for pair in known if pair[0] <= known[-1][0] / 2]
    if not before:
        return None
    return before[-1][0], known[-1][0], known[-1][1] - before[-1][1]


def advice(forecast: Forecast) -> tuple[str, str]:
    """The recommendation's word and its sentence."""
    found: Mapping[str, Any] = forecast["recommendation"]
    return plain_text(found.get("word") or MISSING), plain_text(found.get("sentence") or "")
