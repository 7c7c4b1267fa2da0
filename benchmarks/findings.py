"""The experiments behind docs/findings.md. Each is a comparison in its own run directory; finished ones are used again.

    python benchmarks/findings.py list
    python benchmarks/findings.py run fixed_length hybrid     # or: run all (an hour and a half on 2 cores)
    python benchmarks/findings.py tables                      # writes the tables into docs/findings.md; or: tables NAME…

A table in docs/findings.md stands between `<!-- table NAME -->` and `<!-- end NAME -->` and is never edited by hand.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import bsharp
from bsharp.config import CompareConfig, EvaluationConfig, SamplingConfig, ValidationConfig

RUNS = Path("runs/findings")
DOCUMENT = Path("docs/findings.md")

LIGHT = EvaluationConfig(problems=256, samples=8)
HEADLINE = ("task_reward", "tilted(alpha=1,beta_inv=100)", "sharpening", "tempered(alpha=2)")
SHIFTS = (-0.25, 0.0, 0.2)


def base_folder(shift: float, seed: int) -> Path:
    return RUNS / "bases" / f"shift_{shift:+g}_seed_{seed}"


def pretrain_base(shift: float, seed: int) -> str:
    """A base of the reduced preset on the shipped mixture with its mistake rates moved by `shift`."""
    folder = base_folder(shift, seed)
    if not (folder / "model.safetensors").exists():
        shipped = (files("bsharp.tasks") / "corpus.toml").read_text(encoding="utf-8")
        line = re.compile(r"^mistake_rate_shift = .*$", re.MULTILINE)
        moved, count = line.subn(f"mistake_rate_shift = {shift}", shipped)
        assert count == 1, "corpus.toml no longer sets mistake_rate_shift on one line"
        corpus = folder.parent / f"{folder.name}.toml"
        corpus.parent.mkdir(parents=True, exist_ok=True)
        corpus.write_text(moved, encoding="utf-8")
        command = [
            "pretrain",
            "--preset",
            "reduced",
            "--corpus",
            str(corpus),
            "--seed",
            str(seed),
            "--out",
            str(folder),
        ]
        few = ["--threads", "1", "--figure-problems", "8", "--figure-unsolved-samples", "16"]
        subprocess.run([sys.executable, "-m", "bsharp", *command, *few], check=True, stdout=subprocess.DEVNULL)
    return str(folder)


def pretrain_bases() -> None:
    """All bases that the experiments below need, two at a time."""
    wanted = [(shift, 0) for shift in SHIFTS]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: pretrain_base(*item), wanted))


def compare(name: str, config: CompareConfig) -> dict[str, Any]:
    from rich.console import Console

    from bsharp.experiment.display import ProgressDisplay

    print(f"== {name}", flush=True)
    with ProgressDisplay(Console()) as display:
        return bsharp.compare(config, RUNS / name, display.on_start, display.on_event)


def default() -> None:
    compare("default", CompareConfig())


def diagnose() -> None:
    from bsharp.experiment import diagnose

    print("== diagnose", flush=True)
    diagnose(RUNS / "default", on_progress=lambda name, done, total: print(f"{name} {done}/{total}", flush=True))


def fixed_length() -> None:
    compare(
        "fixed_length",
        CompareConfig(
            regimes=(*HEADLINE, "sharpening_mean=sharpening(normalisation=mean)"),
            sampling=SamplingConfig(fixed_length=True),
            evaluation=EvaluationConfig(problems=256, samples=8, fixed_length=True),
        ),
    )


def tune() -> None:
    from rich.console import Console

    from bsharp.experiment import tune
    from bsharp.experiment.display import ProgressDisplay

    print("== tune", flush=True)
    with ProgressDisplay(Console()) as display:
        tune(CompareConfig(seeds=(0, 1)), RUNS / "tune", on_start=display.on_start, on_event=display.on_event)


def long_runs() -> None:
    regimes = ("task_reward", "sharpening", "sharpening_mean=sharpening(normalisation=mean)", "tempered(alpha=2)")
    compare(
        "long_runs",
        CompareConfig(
            regimes=regimes,
            seeds=(0, 1),
            steps=60,
            learning_rates={"sharpening": 1e-3, "tempered": 1e-3},
            validation=ValidationConfig(every=10),
            evaluation=LIGHT,
        ),
    )


def hybrid() -> None:
    regimes = (
        "task_reward",
        "bonus_0.003=hybrid(alpha=0.3,beta_inv=100)",
        "bonus_0.01=hybrid(alpha=1,beta_inv=100)",
        "bonus_0.03=hybrid(alpha=3,beta_inv=100)",
        "bonus_0.1=hybrid(alpha=10,beta_inv=100)",
    )
    compare("hybrid", CompareConfig(regimes=regimes, evaluation=LIGHT))


def mistake_rate() -> None:
    pretrain_bases()
    for shift in SHIFTS:
        model = pretrain_base(shift, 0)
        compare(
            f"mistake_rate_{shift:+g}",
            CompareConfig(model=model, regimes=HEADLINE, seeds=(0, 1), evaluation=LIGHT),
        )


EXPERIMENTS: dict[str, Callable[[], None]] = {
    "tune": tune,
    "pretrain_bases": pretrain_bases,
    "default": default,
    "diagnose": diagnose,
    "fixed_length": fixed_length,
    "long_runs": long_runs,
    "hybrid": hybrid,
    "mistake_rate": mistake_rate,
}


def results(name: str) -> dict[str, Any]:
    path = RUNS / name / "results.json"
    if not path.exists():
        sys.exit(f"{path} is missing; first: python benchmarks/findings.py run {name}")
    return json.loads(path.read_text(encoding="utf-8"))


def percent(figure: dict[str, Any]) -> str:
    return f"{100 * figure['estimate']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def points(figure: dict[str, Any]) -> str:
    return f"{100 * figure['estimate']:+.1f} [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]"


def largest_k(figures: dict[str, Any]) -> str:
    return f"{100 * figures[max(figures, key=int)]['estimate']:.1f}"


def headline_rows(label: str, found: dict[str, Any]) -> list[list[str]]:
    base = found["base"]
    rows = [
        [
            label,
            "base",
            percent(base["accuracy"]),
            "",
            largest_k(base["pass_at_k"]),
            length(base),
            "0.00",
            entropy(base),
            "",
        ]
    ]
    for name, regime in found["regimes"].items():
        rows.append(
            [
                label,
                name,
                percent(regime["accuracy"]),
                points(regime["delta"]),
                largest_k(regime["pass_at_k"]),
                length(regime),
                f"{regime['kl_to_base']['estimate']:.2f}",
                entropy(regime),
                regime["stability"]["word"],
            ]
        )
    return rows


def length(summary: dict[str, Any]) -> str:
    return f"{summary['length']['estimate']:.1f}"


def entropy(summary: dict[str, Any]) -> str:
    return f"{summary['entropy']['estimate']:.3f}"


HEADLINE_COLUMNS = ("setting", "regime", "accuracy %", "Δ points", "pass@n %", "length", "KL", "entropy", "stability")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def headline_table(*named: tuple[str, str]) -> str:
    return table(HEADLINE_COLUMNS, [row for label, name in named for row in headline_rows(label, results(name))])


def group_table(name: str, group: str) -> str:
    """Accuracy of the base and Δ of every regime by role or by family."""
    found = results(name)
    regimes = list(found["regimes"])
    rows = []
    for key, base in found["base"][group].items():
        role = f"{key} ({base['role']})" if "role" in base and group == "families" else key
        deltas = [points(found["regimes"][regime][group][key]["delta"]) for regime in regimes]
        rows.append([role, percent(base["accuracy"]), *deltas])
    return table([group, "base %", *(f"{regime} Δ" for regime in regimes)], rows)


def pass_table(name: str) -> str:
    """pass@n by role: what a model can still find."""
    found = results(name)
    rows = []
    for role in found["base"]["roles"]:
        summaries = [found["base"], *found["regimes"].values()]
        figures = [summary["roles"][role]["pass_at_k"] for summary in summaries]
        rows.append([role, *(percent(by_k[max(by_k, key=int)]) for by_k in figures)])
    return table(["role", "base pass@n %", *found["regimes"]], rows)


def gradient_table(name: str) -> str:
    """Norm, variance and signal-to-noise of the gradient by regime: a ratio of sums over the steps of each seed."""
    rows = []
    for regime in results(name)["regimes"]:
        traces = [
            [row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if row["step"] > 0]
            for path in sorted((RUNS / name / regime).glob("seed_*/metrics.jsonl"))
        ]
        figures = []
        for rows_of_seed in traces:
            variance = sum(row["gradient/variance_trace"] for row in rows_of_seed)
            signal = sum(row["gradient/signal_squared"] for row in rows_of_seed)
            norm = sum(row["grad_norm"] for row in rows_of_seed) / len(rows_of_seed)
            scores = sum(row["score/std"] for row in rows_of_seed) / len(rows_of_seed)
            figures.append((scores, norm, variance / len(rows_of_seed), signal / variance))
        rows.append([regime, *(", ".join(f"{seed[place]:.2f}" for seed in figures) for place in range(4))])
    columns = ("regime", "sd of the score", "gradient norm", "tr Cov(gradient)", "signal-to-noise")
    return table(columns, rows)


def diagnostic(name: str) -> dict[str, Any]:
    path = RUNS / "default" / "diagnostics" / f"{name}.json"
    if not path.exists():
        sys.exit(f"{path} is missing; first: python benchmarks/findings.py run default diagnose")
    return json.loads(path.read_text(encoding="utf-8"))


def number(figure: dict[str, Any] | None, digits: int = 2) -> str:
    if figure is None or figure["estimate"] is None:
        return "–"
    if figure["low"] is None:
        return f"{figure['estimate']:.{digits}f}"
    return f"{figure['estimate']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def alignment_table() -> str:
    """Cosines to the task gradient at the base, noise floor and signal-to-noise, all on one batch."""
    point = diagnostic("alignment")["points"][0]
    names = point["objectives"]
    task = names.index("task_reward")
    rows = [
        [
            name,
            number(point["euclidean"]["matrix"][task][place]),
            number(point["euclidean"]["debiased"][task][place]),
            number(point["euclidean"]["noise_floor"][place]),
            number(point["fisher"]["matrix"][task][place]),
            number(point["variance"][place]["signal_to_noise"], 1),
        ]
        for place, name in enumerate(names)
    ]
    return table(("objective", "cosine", "debiased", "half-batch floor", "Fisher cosine", "signal-to-noise"), rows)


def mistakes_table() -> str:
    """Types of mistakes whose margin rose or fell clearly, all of them and the usual ones of wrong-mode families."""
    found = diagnostic("mistakes")
    rows = []
    for stage, label in (("first_step", "first step"), ("trained", "trained")):
        for name, every in found["summary"][stage].items():
            usual = found["wrong_mode_summary"][stage][name]
            cosine = number(found["margin_cosine"][name]["all"]) if stage == "first_step" else ""
            counts = [f"{group['corrected']}, {group['amplified']} of {group['types']}" for group in (every, usual)]
            rows.append([label, name, *counts, cosine])
    columns = (
        "when",
        "objective",
        "all types: corrected, amplified",
        "wrong mode: corrected, amplified",
        "margin cosine",
    )
    return table(columns, rows)


def sensitivity_table() -> str:
    """Over the changes that keep the answer: how often the greedy answer changes, and what was right stays right."""
    rows = []
    for name, figures in diagnostic("sensitivity")["overall"].items():
        changed, kept = figures.get("answer_changed_delta"), figures.get("right_kept_delta")
        rows.append(
            [
                name,
                percent(figures["answer_changed"]),
                "" if changed is None else points(changed),
                percent(figures["right_kept"]),
                "" if kept is None else points(kept),
            ]
        )
    return table(("model", "answer changed %", "Δ points", "right stays right %", "Δ points"), rows)


def certainty_table() -> str:
    """Calibration, and what became of problems whose majority answer is wrong; gained and lost beside chance."""
    calibration, problems = diagnostic("calibration"), diagnostic("problems")
    rows = [["base", percent(calibration["models"]["base"]["ece"]), "", "", "", ""]]
    for name, change in calibration["changes"].items():
        regime = problems["regimes"][name]
        chance = regime["expected_by_chance"]
        rows.append(
            [
                name,
                percent(calibration["models"][name]["ece"]),
                points(change["ece_change"]),
                f"{percent(change['wrong_and_more_certain'])} / {percent(change['wrong_and_less_certain'])}",
                f"{len(regime['gained'])} ({chance['gained']['low']:.0f}–{chance['gained']['high']:.0f})",
                f"{len(regime['lost'])} ({chance['lost']['low']:.0f}–{chance['lost']['high']:.0f})",
            ]
        )
    columns = (
        "model",
        "ECE %",
        "Δ points",
        "wrong and more / less certain %",
        "gained (by chance)",
        "lost (by chance)",
    )
    return table(columns, rows)


def tuning_table() -> str:
    """Validation accuracy of the last and of the best check, KL and entropy at the end, by regime and rate."""
    found = json.loads((RUNS / "tune" / "tune.json").read_text(encoding="utf-8"))
    rows = []
    for name, by_rate in found["accuracy"].items():
        for rate, last in by_rate.items():
            traces = [
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                for path in sorted((RUNS / "tune" / f"rate_{rate}" / name).glob("seed_*/metrics.jsonl"))
            ]
            best = [max(row.get("validation/accuracy") or 0.0 for row in rows[1:]) for rows in traces]
            ends = [next(row for row in reversed(rows) if row.get("grad_norm") is not None) for rows in traces]
            chosen = " (chosen)" if float(rate) == found["chosen"][name] else ""
            rows.append(
                [
                    name,
                    rate + chosen,
                    by_seed(last),
                    by_seed(best),
                    ", ".join(f"{end['kl(policy||base)/k1_nats_per_sequence']:.2f}" for end in ends),
                    ", ".join(f"{end['entropy/exact_nats_per_token']:.3f}" for end in ends),
                ]
            )
    columns = ("regime", "learning rate", "last check %", "best check %", "KL at the end", "entropy at the end")
    return table(columns, rows)


def by_seed(shares: Sequence[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.1f} ({', '.join(f'{100 * share:.1f}' for share in shares)})"


TABLES: dict[str, Callable[[], str]] = {
    "default": lambda: headline_table(("default", "default")),
    "roles": lambda: group_table("default", "roles"),
    "modes": lambda: group_table("default", "modes"),
    "families": lambda: group_table("default", "families"),
    "gradients": lambda: gradient_table("default"),
    "alignment": alignment_table,
    "mistakes": mistakes_table,
    "sensitivity": sensitivity_table,
    "certainty": certainty_table,
    "fixed_length": lambda: headline_table(("48 tokens", "fixed_length")),
    "tune": lambda: tuning_table(),
    "long_runs": lambda: headline_table(("60 steps", "long_runs")),
    "hybrid": lambda: headline_table(("hybrid", "hybrid")),
    "hybrid_roles": lambda: group_table("hybrid", "roles"),
    "hybrid_pass": lambda: pass_table("hybrid"),
    "mistake_rate": lambda: headline_table(*((f"shift {shift:+g}", f"mistake_rate_{shift:+g}") for shift in SHIFTS)),
}


def write_tables(names: Sequence[str]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        sys.exit(f"unknown table {unknown[0]}; known: {', '.join(TABLES)}")
    for name, build in TABLES.items():
        if names and name not in names:
            continue
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"{DOCUMENT} has no place for the table {name}; add <!-- table {name} --> and <!-- end {name} -->")
        content = build()
        text = pattern.sub(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
    DOCUMENT.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    command, *names = arguments or ["list"]
    if command == "list":
        print("\n".join(EXPERIMENTS))
    elif command == "run":
        chosen = list(EXPERIMENTS) if names == ["all"] else names
        unknown = [name for name in chosen if name not in EXPERIMENTS]
        if unknown or not chosen:
            sys.exit(f"unknown experiment {unknown or names}; known: all, {', '.join(EXPERIMENTS)}")
        for name in chosen:
            EXPERIMENTS[name]()
    elif command == "tables":
        write_tables(names)
    else:
        sys.exit(f"unknown command {command!r}; use list, run NAME… or tables")


if __name__ == "__main__":
    main(sys.argv[1:])
