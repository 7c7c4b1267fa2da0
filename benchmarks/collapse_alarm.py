"""False alarms and misses of the collapse alarm, on training runs that collapse and on healthy ones: docs/collapse_alarm.md.

    python benchmarks/collapse_alarm.py            # trains what is missing (25 minutes on one idle core), writes the document
    python benchmarks/collapse_alarm.py replay     # writes the document from the finished runs: seconds, no training

**Ground truth**, fixed before any held-out run was looked at, from the validation accuracy alone (84 problems × 4 samples,
the check before training included):

    collapsed  the last check is below half of the larger of the base's check and the best one so far, a fall beyond noise;
    healthy    the last check is not below the base's beyond noise, and not more than 5 points below the run's own best;
    between    everything else: reported, not counted.

*Beyond noise* is the rule of bsharp.statistics.judge_stability: a difference of two checks of N = 336 samples exceeds
z √(2 p (1 - p) / N), p their mean, z the normal quantile of 1 %. A run that ends early because its weights or logits are not
finite has collapsed. A *false alarm* is an alarm that would stop a healthy run, a *miss* a collapsed run without one.

**Two parts.** Thresholds were chosen on the runs of the development seed only; the rates that count are those of the held-out
seeds, whose weights, rollouts and problems the rule had not seen. Conditions are shared between the two.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from bsharp.algorithm import parse_objective
from bsharp.config import AlgorithmConfig, OptimizerConfig, SamplingConfig, TrainConfig, ValidationConfig
from bsharp.diagnostics.alarm import Alarm, AlarmKind, AlarmThresholds, CollapseAlarm
from bsharp.runlog import RunDirectory

RUNS = Path("runs/collapse_alarm")
DOCUMENT = Path("docs/collapse_alarm.md")
DEVELOPMENT_SEEDS = (0,)
HELD_OUT_SEEDS = (1, 2)
STEPS = 24
VALIDATION = ValidationConfig(problems=84, samples=4, every=4)

MEAN = "sharpening(normalisation=mean)"
TILTED = "tilted(alpha=1,beta_inv=100)"
TILTED_2 = "tilted(alpha=2,beta_inv=100)"
UNLIKELY = "hybrid(alpha=-30,beta_inv=100)"
CONDITIONS: dict[str, tuple[str, float, str]] = {
    "task_reward at 1e-3": ("task_reward", 1e-3, "leave_one_out"),
    "sharpening at 1e-2": ("sharpening", 1e-2, "leave_one_out"),
    "sharpening at 3e-4": ("sharpening", 3e-4, "leave_one_out"),
    "sharpening_mean at 1e-2": (MEAN, 1e-2, "leave_one_out"),
    "sharpening_mean at 1e-3": (MEAN, 1e-3, "leave_one_out"),
    "tempered at 1e-2": ("tempered(alpha=2)", 1e-2, "leave_one_out"),
    "tempered at 3e-4": ("tempered(alpha=2)", 3e-4, "leave_one_out"),
    "task_reward at 1e-2": ("task_reward", 1e-2, "leave_one_out"),
    "tilted at 1e-3": (TILTED, 1e-3, "leave_one_out"),
    "sharpening at 6e-3": ("sharpening", 6e-3, "leave_one_out"),
    "tilted_alpha_2 at 1e-3": (TILTED_2, 1e-3, "leave_one_out"),
    "sharpening_mean at 6e-3": (MEAN, 6e-3, "leave_one_out"),
    "sharpening_mean at 3e-4": (MEAN, 3e-4, "leave_one_out"),
    "tempered at 6e-3": ("tempered(alpha=2)", 6e-3, "leave_one_out"),
    "task_reward at 3e-4": ("task_reward", 3e-4, "leave_one_out"),
    "likelihood penalty at 3e-3": (UNLIKELY, 3e-3, "leave_one_out"),
    "sharpening at 1e-3": ("sharpening", 1e-3, "leave_one_out"),
    "tilted at 1e-2": (TILTED, 1e-2, "leave_one_out"),
    "task_reward (GRPO) at 1e-3": ("task_reward", 1e-3, "group_z_score"),
    "entropy_minimisation at 1e-2": ("entropy_minimisation", 1e-2, "leave_one_out"),
    "sharpening at 3e-3": ("sharpening", 3e-3, "leave_one_out"),
    "sharpening_mean at 3e-3": (MEAN, 3e-3, "leave_one_out"),
    "tempered at 3e-3": ("tempered(alpha=2)", 3e-3, "leave_one_out"),
    "task_reward at 3e-3": ("task_reward", 3e-3, "leave_one_out"),
}
"""name → (objective, learning rate, advantage), in an order in which kinds alternate."""


def folder(condition: str, seed: int) -> Path:
    name = condition.replace(" at ", "_").replace(" ", "_").replace("(", "").replace(")", "")
    return RUNS / name / f"seed_{seed}"


def train_all() -> None:
    """Every condition × seed that is not finished yet; only metrics.jsonl, config and manifest are kept."""
    from bsharp.experiment import build_workbench, train

    benches = {}
    for seed in (*DEVELOPMENT_SEEDS, *HELD_OUT_SEEDS):
        for condition, (objective, rate, advantage) in CONDITIONS.items():
            out = folder(condition, seed)
            if (out / "complete.json").exists():
                continue
            config = TrainConfig(
                objective=objective,
                seed=seed,
                steps=STEPS,
                sampling=SamplingConfig(prompts_per_step=16),
                algorithm=AlgorithmConfig(advantage=advantage),
                optimizer=OptimizerConfig(learning_rate=rate),
                validation=VALIDATION,
                checkpoint_every=STEPS,
            )
            key = (config.model, config.tasks)
            benches[key] = benches.get(key) or build_workbench(config.model, config.tasks, config.difficulties, "cpu")
            _, progress = train(config, out, benches[key])
            (out / "complete.json").write_text(json.dumps({"stopped": progress.stopped}), encoding="utf-8")
            for models in ("best", "last", "checkpoints"):
                shutil.rmtree(out / models, ignore_errors=True)
            print(f"{condition}, seed {seed}: {progress.stopped or 'done'}", flush=True)


# ------------------------------------------------------------------------------------------------------- ground truth


def beyond_noise(high: float, low: float) -> bool:
    """The rule of judge_stability for one comparison of two checks on the same problems."""
    count = VALIDATION.problems * VALIDATION.samples
    p = (high + low) / 2
    return high - low > stats.norm.isf(0.01) * math.sqrt(2 * max(p * (1 - p), 1 / count) / count)


def fallen(checks: Sequence[float]) -> bool:
    """Whether the last check is below half of the larger of the base's and the best so far, a fall beyond noise."""
    return checks[-1] < max(checks) / 2 and beyond_noise(max(checks), checks[-1])


@dataclass(frozen=True)
class Run:
    """A finished run, what is true of it, and what the alarm said."""

    condition: str
    seed: int
    steps: list[int]  # of the checks
    checks: list[float]  # validation accuracy
    stopped: str | None
    alarms: list[Alarm]

    @property
    def truth(self) -> str:
        if self.stopped or fallen(self.checks):
            return "collapsed"
        base, last = self.checks[0], self.checks[-1]
        below_base = last < base and beyond_noise(base, last)
        return "between" if below_base or max(self.checks) - last > 0.05 else "healthy"

    @property
    def fall(self) -> int:
        """The first check that had fallen."""
        places = [place for place in range(len(self.checks)) if fallen(self.checks[: place + 1])]
        return self.steps[places[0]] if places else self.steps[-1]

    @property
    def stop(self) -> Alarm | None:
        """The alarm at which --stop-on-collapse would have ended the run."""
        return next((alarm for alarm in self.alarms if alarm.stops), None)


def replay(condition: str, seed: int, thresholds: AlarmThresholds | None = None) -> Run:
    directory = folder(condition, seed)
    if not (directory / "complete.json").exists():
        sys.exit(f"{directory} is not finished; run without replay first")
    objective, rate, _ = CONDITIONS[condition]
    alarm = CollapseAlarm(
        thresholds,
        objective=parse_objective(objective)[1],
        learning_rate=rate,
        warmup_steps=OptimizerConfig().warmup_steps,
    )
    run = RunDirectory(directory)
    rows: list[dict[str, Any]] = list(run.rows("metrics.jsonl"))
    alarms = [raised for row in rows for raised in alarm.observe(row["step"], row)]
    checked = [row for row in rows if row.get("validation/accuracy") is not None]
    accuracies = [row["validation/accuracy"] for row in checked]
    stopped = run.read_json("complete.json")["stopped"]
    return Run(condition, seed, [row["step"] for row in checked], accuracies, stopped, alarms)


# ------------------------------------------------------------------------------------------------------- the document


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def error_rate(wrong: int, runs: int) -> str:
    """`1 of 30: 3.3 % [0.1, 17.2]`, Clopper–Pearson."""
    if not runs:
        return "no runs"
    low, high = stats.binomtest(wrong, runs).proportion_ci(0.95, method="exact")
    return f"{wrong} of {runs}: {100 * wrong / runs:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def errors(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Misses and false alarms."""
    misses = [run for run in runs if run.truth == "collapsed" and not run.stop]
    return misses, [run for run in runs if run.truth == "healthy" and run.stop]


def count(runs: Sequence[Run], truth: str) -> int:
    return sum(run.truth == truth for run in runs)


def rates_table(parts: dict[str, list[Run]]) -> str:
    rows = []
    for name, runs in parts.items():
        misses, false_alarms = errors(runs)
        between = [run for run in runs if run.truth == "between"]
        rows.append(
            [
                name,
                error_rate(len(misses), count(runs, "collapsed")),
                error_rate(len(false_alarms), count(runs, "healthy")),
                f"{sum(run.stop is not None for run in between)} of {len(between)}",
            ]
        )
    return table(("runs", "missed collapses", "false alarms", "between: stopped"), rows)


def condition_table(runs: Sequence[Run]) -> str:
    rows = []
    for condition in CONDITIONS:
        own = [run for run in runs if run.condition == condition]
        truths = ", ".join(run.truth for run in own)  # by seed, as the columns beside it
        stops = [str(run.stop.step) if run.stop else "–" for run in own]
        accuracy = [f"{100 * max(run.checks):.0f} → {100 * run.checks[-1]:.0f}" for run in own]
        kinds = sorted({str(run.stop.kind) for run in own if run.stop})
        rows.append([condition, truths, ", ".join(accuracy), ", ".join(stops), ", ".join(kinds) or "–"])
    return table(("condition", "ground truth", "accuracy %, best → last", "stopped at step", "by"), rows)


def described(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        checks = ", ".join(f"{100 * check:.0f}" for check in run.checks)
        said = f"step {run.stop.step}: {run.stop.sentence}" if run.stop else "no stopping alarm"
        lines.append(f"- {run.condition}, seed {run.seed} (accuracy {checks} %): {said}")
    return "\n".join(lines) or "None."


def timing(runs: Sequence[Run]) -> str:
    lags = [run.stop.step - run.fall for run in runs if run.truth == "collapsed" and run.stop]
    if not lags:
        return "No collapse was seen."
    early, same = sum(lag < 0 for lag in lags), sum(lag == 0 for lag in lags)
    return (
        f"Of the {len(lags)} collapses that the alarm saw, it came before the first check that shows the fall in {early},\n"
        f"at the step of that check in {same} and later in {len(lags) - early - same}: median {statistics.median(lags):+g} "
        f"steps, from {min(lags):+d} to {max(lags):+d}.\nA check comes every {VALIDATION.every} steps, so accuracy may have "
        f"fallen up to {VALIDATION.every - 1} steps before the one that shows it."
    )


def notices(runs: Sequence[Run]) -> str:
    healthy = [run for run in runs if run.truth == "healthy"]
    noticed = [run for run in healthy if any(not alarm.stops for alarm in run.alarms)]
    kinds = [str(kind) for kind in AlarmKind if any(kind == alarm.kind for run in noticed for alarm in run.alarms)]
    by_kind = f" ({', '.join(kinds)})" if kinds else ""
    return f"Notices, which stop nothing, were given in {len(noticed)} of the {len(healthy)} healthy runs{by_kind}."


def sensitivity_table() -> str:
    default = AlarmThresholds()
    changes: list[tuple[str, AlarmThresholds]] = [("as shipped", default)]
    for name, values in {
        "score_drop": (0.25, 0.5, 1.0, 2.0),
        "kl_over_base_surprise": (0.5, 2.0),
        "surprise_ratio": (1.0, 1.25, 2.0, 3.0),
        "window": (1, 5),
        "reference_steps": (1, 5),
    }.items():
        changes += [(f"{name} = {value:g}", dataclasses.replace(default, **{name: value})) for value in values]
    # What is seen without the kinds that nearly always come first.
    without = {"kl": {"kl_over_base_surprise": math.inf}, "score": {"score_drop": math.inf}}
    changes += [(f"without {kind}", dataclasses.replace(default, **limit)) for kind, limit in without.items()]
    changes.append(("without kl and score", dataclasses.replace(default, **without["kl"], **without["score"])))
    rows = []
    for name, thresholds in changes:
        row = [name]
        for seeds in (DEVELOPMENT_SEEDS, HELD_OUT_SEEDS):
            runs = [replay(condition, seed, thresholds) for condition in CONDITIONS for seed in seeds]
            misses, false_alarms = errors(runs)
            row += [f"{len(misses)} of {count(runs, 'collapsed')}", f"{len(false_alarms)} of {count(runs, 'healthy')}"]
        rows.append(row)
    columns = ("thresholds", "development: missed", "false alarms", "held out: missed", "false alarms")
    return table(columns, rows)


def rule_table() -> str:
    limits = AlarmThresholds()
    points = f"risen by {100 * limits.truncation_rise:.0f} points"
    stranger = f"a token surprises the base {limits.surprise_ratio:g} times as much as at the start"
    no_answer = f"fewer than {limits.min_answers:g} distinct answers per problem"
    no_reward = f"a reward, where the objective has one, below {100 * limits.reward_lost:.0f} % of the start's"
    cut = "; a notice if half of the start's were cut off"
    rows = [
        (
            "kl",
            f"KL > {limits.kl_over_base_surprise:g} × H₀ (and {limits.min_kl:g} nats) **and** {stranger}",
            "KL alone",
        ),
        ("score", f"mean {limits.score_drop:g} standard deviations of a completion below the start", ""),
        (
            "length",
            f"mean < {limits.short_length_ratio:.2f} × start{cut}",
            f"mean > {limits.long_length_ratio:g} × start",
        ),
        ("truncation", f"share cut off {points}", ""),
        ("repetition", f"share of repeated 4-grams risen by {100 * limits.repetition_rise:.0f} points", ""),
        (
            "entropy",
            f"> {limits.entropy_rise_ratio:g} × start (and {limits.min_risen_entropy:g} nats per token)",
            f"< {limits.sharp_entropy_ratio:g} × start: sharp",
        ),
        (
            "zero_variance",
            f"{100 * limits.zero_variance_share:.0f} % of the groups **and** ({no_answer}, or {no_reward})",
            "the share alone",
        ),
        ("not_finite", "gradient norm or loss, on a single step", ""),
    ]
    return table(("kind", "stops: degenerate output", "a notice only"), rows)


def write_document() -> None:
    """Replace what stands between `<!-- table NAME -->` and `<!-- end NAME -->`."""
    development = [replay(condition, seed) for condition in CONDITIONS for seed in DEVELOPMENT_SEEDS]
    held_out = [replay(condition, seed) for condition in CONDITIONS for seed in HELD_OUT_SEEDS]
    misses, false_alarms = errors([*development, *held_out])
    contents = {
        "rule": rule_table(),
        "rates": rates_table({"development": development, "**held out**": held_out}),
        "timing": f"{timing(held_out)}\n\n{notices(held_out)}",
        "conditions": condition_table(held_out),
        "misses": described(misses),
        "false_alarms": described(false_alarms),
        "between": described([run for run in held_out if run.truth == "between"]),
        "thresholds": sensitivity_table(),
    }
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, content in contents.items():
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"{DOCUMENT} has no place for {name}; add <!-- table {name} --> and <!-- end {name} -->")
        text = pattern.sub(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
    DOCUMENT.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    if list(arguments) not in ([], ["replay"]):
        sys.exit(f"unknown arguments {list(arguments)}; use nothing, or replay")
    if not arguments:
        train_all()
    write_document()


if __name__ == "__main__":
    main(sys.argv[1:])
