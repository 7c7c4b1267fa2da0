"""Section 1: the verdict, the table, alarms, paired tests and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bsharp.reporting.cells import (
    BASE,
    MISSING,
    Row,
    best_columns,
    best_rows,
    columns,
    comparable,
    number,
    plain_text,
    problems_title,
    rows,
)
from bsharp.reporting.page.dots import Dot, dots
from bsharp.reporting.page.glossary import GLOSSARY, axis_title
from bsharp.reporting.page.load import RunData, TrainingRun, finite
from bsharp.reporting.page.parts import Cell, Chart, DataTable, Paragraph, Part, Section, Verdict
from bsharp.reporting.page.sections.alarms import alarms
from bsharp.reporting.page.sections.basis import basis, too_few
from bsharp.reporting.page.sections.common import figure_text, percent_text, section_of

__all__ = ["REPORTED", "section", "sentence", "state"]

VALIDATION = "validation/accuracy"
SUMMARY = {
    "accuracy": "accuracy",
    "exact_match": "exact_match",
    "greedy_accuracy": "greedy",
    "pass_at_k": "pass_at_k",
    "maj_at_k": "maj_at_k",
    "reward": "reward",
    "reward_weighted_score": "reward_weighted_score",
    "length": "length",
    "truncated": "truncated",
    "unparseable": "unparseable",
    "ungraded": "ungraded",
    "distinct_answers": "distinct_answers",
    "entropy": "entropy",
    "kl_to_base": "kl",
    "corr_reward_base_logprob": "correlation",
}
"""Figures of an evaluation and their entries in the glossary."""
REPORTED: Mapping[str, tuple[float, str, str]] = {
    "llama-3.2-3b-instruct": (42.1, "+2.3 (unstable)", "+9.8 (stable)"),
    "qwen2.5-3b-instruct": (38.7, "+1.7 (high variance)", "+11.2"),
    "qwen3-4b-instruct-2507": (45.5, "+2.0 (occasional collapse)", "+12.5"),
}
"""Accuracy before training (%), change by sharpening and by task reward (points) as arXiv 2604.16259 reports them."""


def section(run: RunData, running: bool = False) -> Section:
    """The sentence that answers the run and the figures behind it; `running`: it goes on."""
    parts: list[Part] = [_verdict(run, running), *too_few(run), *_changes(run), *alarms(run, running)]
    if run.results is not None:
        parts += [_main_table(run.results), _stability(run.results), *_best_table(run.results), *_differences(run)]
    elif run.summary is not None:
        parts.append(_summary(run.summary))
    if run.runs:
        parts.append(_seeds(run, running))
    parts += _reported(run)
    return section_of("verdict", "Verdict", parts, "")


def _verdict(run: RunData, running: bool) -> Verdict:
    """The sentence; with the gain large and in plain words before it where the run has one."""
    told = (run.results or {}).get("verdict") or {}
    gain, rival = told.get("gain") or {}, told.get("chosen")
    value, low, high = (finite(gain.get(key)) for key in ("estimate", "low", "high"))
    if value is None or rival is None:
        return Verdict(sentence(run, running), basis=basis(run))
    interval = "" if low is None or high is None else f"[{_signed(low)}, {_signed(high)}]"
    return Verdict(
        sentence(run, running),
        _signed(value),
        "points",
        f"95 % interval {interval}" if interval else "",
        meaning(gain, str(rival)),
        basis(run),
    )


def meaning(gain: Mapping[str, Any], rival: str) -> str:
    """What the gain of the task reward over the rival (points of accuracy) says, in one plain sentence."""
    value, low, high = (finite(gain.get(key)) for key in ("estimate", "low", "high"))
    against = f"the best label-free regime ({plain_text(rival)}, chosen on validation)"
    if value is None:
        return f"The gain of the task reward over {against} could not be estimated."
    if low is None or high is None:
        more = "more" if value >= 0 else "less"
        return f"Task reward gains {abs(value):.1f} points {more} than {against}; there is no interval."
    if low <= 0 <= high:
        return (
            f"Task reward and {against} are not told apart: the difference is {_signed(value)} points "
            f"[{_signed(low)}, {_signed(high)}], and the interval includes 0."
        )
    more, ends = ("more", (low, high)) if value > 0 else ("less", (-high, -low))
    return f"Task reward gains {abs(value):.1f} points [{ends[0]:.1f}, {ends[1]:.1f}] {more} than {against}."


def _signed(value: float) -> str:
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def _changes(run: RunData) -> Iterator[Chart]:
    """The change of every regime against the base, the answer at a glance."""
    if run.results is None or not comparable(run.results):
        return  # a chart would show intervals around 0 as if they had been measured
    found = [Dot(name, name, plain_text(name), regime["delta"]) for name, regime in run.results["regimes"].items()]
    chart = dots(
        "deltas",
        "Change of accuracy against the base",
        "Same test problems and random streams, with 95 % intervals; at 0 nothing changed.",
        axis_title("delta"),
        "regime",
        found,
        scale=100,
        legend=False,
        wide=True,
        zero=True,
    )
    if chart:
        yield chart


def sentence(run: RunData, running: bool = False) -> str:
    """The answer of the run in one sentence; what can be said so far where it is unfinished (`running`: and goes on)."""
    if run.results is not None:
        said = plain_text(run.results["verdict"]["sentence"])
        return said[:1].upper() + said[1:]
    if run.kind == "comparison":
        begin = "No verdict yet" if running else "Unfinished, no verdict"
        return f"{begin}: {len(run.finished)} of {len(run.planned)} jobs are done."
    if run.kind == "training":
        return _training_sentence(run.runs[0], running)
    accuracy = (run.summary or {}).get("accuracy")
    model = plain_text(run.config.get("model", "the model"))
    return (
        f"{model}: accuracy {percent_text(accuracy)} %" if accuracy else f"{model}: evaluated, no summary written yet"
    )


def _training_sentence(run: TrainingRun, running: bool) -> str:
    steps, values = run.series(VALIDATION)
    planned = run.config.get("steps")
    text = f"{plain_text(run.regime)}: {run.last_step}{f' of {planned}' if planned else ''} steps"
    if not run.trained or run.stopped:
        text += f" ({'stopped' if run.stopped else 'running' if running else 'unfinished'})"
    if not values:
        return f"{text}; no validation check yet"
    best = max(range(len(values)), key=values.__getitem__)
    text += f", validation accuracy {100 * values[0]:.1f} % at step {steps[0]}, {100 * values[-1]:.1f} % at step {steps[-1]}"
    return text if best == len(values) - 1 else f"{text}, best {100 * values[best]:.1f} % at step {steps[best]}"


def _main_table(results: Mapping[str, Any]) -> DataTable:
    found = columns(results)
    # The word stands behind the change it qualifies, not at the far end of a wide table.
    order = {"accuracy": 0, "Δ to base": 1, "stability": 2}
    shown = sorted(found, key=lambda column: order.get(column.title, len(order)))
    headers = ["model", *(_header(column.title, column.unit) for column in shown)]
    numeric = [place for place, column in enumerate(shown, start=1) if column.title != "stability"]

    def cells(row: Row) -> list[Cell]:
        return [row.name, *(column.cell(row) for column in shown)]

    caption = (
        "Brackets are 95 % intervals. A change is clear where its interval lies on one side of 0. All models meet the "
        "same problems on the same random streams."
    )
    title = f"{problems_title(results).capitalize()}, last checkpoint"
    return DataTable("models", title, caption, headers, list(map(cells, rows(results))), numeric)


def _header(title: str, unit: str) -> str:
    unit = unit.removesuffix(" [95 %]")
    return f"{title} ({unit})" if unit else title


def _stability(results: Mapping[str, Any]) -> DataTable:
    return DataTable(
        "stability",
        "Stability, and the figures behind the word",
        "The word follows from a fixed rule on the figures behind it; one seed can show no spread.",
        ("regime", "stability", "the figures behind it"),
        [
            [name, plain_text(regime["stability"]["word"]), plain_text(regime["stability"]["why"])]
            for name, regime in results["regimes"].items()
        ],
        folded=True,
    )


def _best_table(results: Mapping[str, Any]) -> Iterator[DataTable]:
    found = best_rows(results)
    if not found:
        return
    shown = best_columns(results)
    yield DataTable(
        "models_best",
        f"{problems_title(results).capitalize()}, best checkpoint by validation",
        "Regimes whose best checkpoint by validation accuracy is not the last one. That choice used validation labels.",
        ["model", *(_header(column.title, column.unit) for column in shown)],
        [[row.name, *(column.cell(row) for column in shown)] for row in found],
        range(1, len(shown)),
        folded=True,
    )


def _differences(run: RunData) -> Iterator[DataTable]:
    results = run.results or {}
    decided = comparable(results)
    p_values = {
        name: finite(regime.get("p_value"))
        for name, regime in run.diagnostics.get("problems", {}).get("regimes", {}).items()
    }
    table: list[list[Cell]] = [
        [
            name,
            BASE,
            figure_text(regime["delta"], 100, 1, True),
            _clear(regime["delta"], decided),
            _p_text(p_values.get(name)),
        ]
        for name, regime in results["regimes"].items()
    ]
    for name, others in results["differences"].items():
        table += [
            [name, other, figure_text(figure, 100, 1, True), _clear(figure, decided), ""]
            for other, figure in others.items()
        ]
    yield DataTable(
        "paired_tests",
        "Paired tests",
        "Accuracy of the first model minus that of the second on the same problems and random streams, with the 95 % "
        "interval; not corrected for the number of comparisons. McNemar p: problems gained against problems lost.",
        ("model", "against", axis_title("difference"), "verdict", "McNemar p"),
        table,
        numeric=(2, 4),
        folded=True,
    )


def _clear(figure: Mapping[str, Any], decided: bool = True) -> str:
    if not decided:
        return "nothing to compare"
    low, high = finite(figure.get("low")), finite(figure.get("high"))
    if low is None or high is None:
        return "no interval"
    return "higher" if low > 0 else "lower" if high < 0 else "undecided"


def _p_text(p_value: float | None) -> str:
    if p_value is None:
        return MISSING
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def state(run: RunData, job: TrainingRun, running: bool = False) -> str:
    """`finished`, `stopped at step N: reason`, `unfinished at step N`, or `running` where the run goes on."""
    step = (job.complete or {}).get("last_step", job.last_step)
    if job.stopped:
        return f"stopped at step {step}: {job.stopped}"
    if job.complete is not None or (job.trained and run.kind == "training"):
        return "finished"
    if running:
        return "running"
    return "trained, not evaluated" if job.trained else f"unfinished at step {step}"


def _seeds(run: RunData, running: bool) -> DataTable:
    table: list[list[Cell]] = []
    for job in run.runs:
        steps, values = job.series(VALIDATION)
        best = max(range(len(values)), key=values.__getitem__) if values else None
        table.append(
            [
                job.regime,
                str(job.seed),
                str((job.complete or {}).get("last_step", job.last_step)),
                number(values[0] if values else None, 100),
                number(values[-1] if values else None, 100),
                MISSING if best is None else f"{number(values[best], 100)} at step {steps[best]}",
                str(len(job.alarms)),
                state(run, job, running),
            ]
        )
    return DataTable(
        "seeds",
        "Every training run by itself",
        "Validation accuracy, on the validation problems (fewer than the test problems; no interval per run). "
        "Runs of one regime differ in the seed only.",
        (
            "regime",
            "seed",
            "last step",
            axis_title("validation_accuracy", "before"),
            axis_title("validation_accuracy", "last"),
            axis_title("validation_accuracy", "best"),
            "alarms",
            "state",
        ),
        table,
        numeric=(1, 2, 3, 4, 5, 6),
        folded=run.kind == "comparison" and run.results is not None,
    )


def _summary(summary: Mapping[str, Any]) -> DataTable:
    return DataTable(
        "summary",
        "Figures",
        "Every figure of the evaluation with its 95 % interval, bootstrap over problems; shares in per cent.",
        ("figure", "estimate", "95 % interval", "unit"),
        [_figure_row(term, figure) for term, figure in _figures(summary)],
        numeric=(1, 2),
    )


def _figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every figure of a summary that has an estimate, under its term; those at k one by one."""
    for name, figure in summary.items():
        if name not in SUMMARY or not isinstance(figure, Mapping):
            continue
        for k, single in ({"": figure} if "estimate" in figure else figure).items():
            if finite(single.get("estimate")) is not None:
                yield GLOSSARY[SUMMARY[name]].term.replace("@k", f"@{k}"), single


def _figure_row(term: str, figure: Mapping[str, Any]) -> list[Cell]:
    share = figure.get("unit") == "fraction"
    value, _, interval = figure_text(figure, 100 if share else 1).partition(" ")
    return [
        term,
        value,
        interval or plain_text(figure.get("note", "")),
        "%" if share else plain_text(figure.get("unit", "")),
    ]


def _reported(run: RunData) -> Iterator[Part]:
    model = str(run.config.get("model", "")).rstrip("/").rpartition("/")[2].lower()
    if model not in REPORTED:
        return
    before, sharpening, task = REPORTED[model]
    yield DataTable(
        "reported",
        "For orientation: the same model in the paper",
        "As reported in arXiv 2604.16259, on other data; not measured here and without intervals.",
        ("model", "base (%)", "sharpening (points)", "task reward (points)"),
        [[plain_text(run.config.get("model")), f"{before:.1f}", sharpening, task]],
        numeric=(1, 2, 3),
    )
    yield Paragraph(
        "The paper's figures come from other problems, longer training and other samples: compare signs, not digits."
    )
