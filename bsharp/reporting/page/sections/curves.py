"""Section 2: learning curves per regime with the spread over seeds."""

from __future__ import annotations

from typing import NamedTuple

from bsharp.reporting.cells import plain_text
from bsharp.reporting.page.charts import curves
from bsharp.reporting.page.glossary import axis_title
from bsharp.reporting.page.load import RunData
from bsharp.reporting.page.parts import Chart, Legend, Paragraph, Part, Section
from bsharp.reporting.page.sections.common import section_of

__all__ = ["CURVES", "Shown", "alarm_marks", "section"]


class Shown(NamedTuple):
    """A curve: id, metric of the glossary, key in metrics.jsonl, factor, whether a log axis fits, how to read it, heavy tails."""

    chart_id: str
    metric: str
    key: str
    scale: float
    log: bool
    reading: str
    robust: bool = False


CURVES = (
    Shown(
        "validation_accuracy", "validation_accuracy", "validation/accuracy", 100, False,
        "Step 0 is the base. Alarming: a curve that turns down, or seeds that part.",
    ),
    Shown(
        "reward", "reward", "reward", 1, False,
        "Measured on the rollouts of every regime, used by few. Alarming: it falls while the objective score rises.",
    ),
    Shown(
        "score", "score", "score/mean", 1, False,
        "What each regime maximises, in its own units: compare the shape, not the height. Alarming: a flat or falling curve.",
    ),
    Shown(
        "base_logprob", "base_logprob", "base_logprob/mean_nats_per_sequence", 1, False,
        "How likely the base finds what the policy says. Alarming: a rise to 0 together with falling length.",
    ),
    Shown(
        "kl", "kl", "kl(policy||base)/k1_nats_per_sequence", 1, False,
        "Distance from the base. Alarming: a sudden jump.",
    ),
    Shown(
        "entropy", "entropy", "entropy/exact_nats_per_token", 1, False,
        "How undecided the policy still is. Alarming: below 0.05 while accuracy falls, or a sudden rise.",
    ),
    Shown(
        "length", "length", "completions/mean_length", 1, False,
        "Mean over the rollouts of a step. Alarming: below a quarter of its start, or growth to the token limit.",
    ),
    Shown(
        "truncated", "truncated", "completions/clipped_ratio", 100, False,
        "Completions cut at the token limit. Alarming: a rise, which mostly means loops.",
    ),
    Shown(
        "repetition", "repetition", "completions/repetition_rate", 100, False,
        "How much of a completion repeats itself. Alarming: a rise away from the start.",
    ),
    Shown(
        "zero_variance", "zero_variance", "frac_score_zero_std", 100, False,
        "Problems whose rollouts all score the same and teach nothing. Alarming: close to 100 % while accuracy is low.",
    ),
    Shown(
        "distinct_answers", "distinct_answers", "completions/distinct_answers_per_problem", 1, False,
        "Different answers among the rollouts of a problem. Alarming: a fall to 1 while accuracy is low.",
    ),
    Shown(
        "grad_norm", "grad_norm", "grad_norm", 1, True,
        "Length of each step's gradient before clipping. Alarming: spikes far above the rest.",
    ),
    Shown(
        "variance_trace", "variance_trace", "gradient/variance_trace", 1, True,
        "Noise of a step's gradient, from its problems' own contributions. It scales with the squared score: read it with "
        "the next chart.", robust=True,
    ),
    Shown(
        "signal_to_noise", "snr", "gradient/signal_to_noise", 1, False,
        "Signal over noise of one step's batch; the estimate can fall below 0. Alarming: it stays near 0.",
        robust=True,
    ),
)  # fmt: skip

SPREAD = (
    "The line is the mean over seeds, the band runs from the lowest to the highest seed, thin lines are single seeds."
)


def section(run: RunData) -> Section:
    """One chart per metric that was logged."""
    marks = alarm_marks(run)
    parts: list[Part | None] = [_chart(run, shown, marks) for shown in CURVES]
    if any(parts):
        crosses = " Crosses are collapse alarms." if marks else ""
        parts[:0] = [Paragraph(f"{SPREAD}{crosses} A metric that no run logged has no chart."), Legend(run.regimes)]
    absent = "No training step has been logged yet; this page fills while `bsharp compare` or `bsharp train` runs."
    if run.kind == "evaluation":
        absent = "An evaluation has no training; run `bsharp compare` or `bsharp train` for learning curves."
    return section_of("curves", "Learning curves", parts, absent)


def alarm_marks(run: RunData) -> dict[str, dict[int, dict[int, str]]]:
    """Sentences of the alarms by regime, seed and step."""
    marks: dict[str, dict[int, dict[int, str]]] = {}
    for job in run.runs:
        for alarm in job.alarms:
            said = plain_text(alarm.get("sentence", "alarm"))
            marks.setdefault(job.regime, {}).setdefault(job.seed, {})[alarm["step"]] = said
    return marks


def _chart(run: RunData, shown: Shown, marks: dict[str, dict[int, dict[int, str]]]) -> Chart | None:
    title = axis_title(shown.metric)
    series = {regime: {job.seed: job.series(shown.key) for job in run.of(regime)} for regime in run.regimes}
    heading = title.partition(" (")[0] if shown.metric != "kl" else "KL(policy‖base)"
    return curves(
        f"curve_{shown.chart_id}",
        heading[0].upper() + heading[1:],
        shown.reading,
        title,
        series,
        marks=marks,
        log=shown.log,
        scale=shown.scale,
        robust=shown.robust,
    )
