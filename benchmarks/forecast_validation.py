"""Is the forecast right? Sixteen bases, forecast first, then trained; predictions beside what training did.

    python benchmarks/forecast_validation.py bases      # the embedded base, fine-tuned for a minute each on other mixtures
    python benchmarks/forecast_validation.py forecast   # 32 samples of 256 training problems each, and the forecast from them
    python benchmarks/forecast_validation.py train      # every regime from every base, evaluated on 252 test problems x 16
    python benchmarks/forecast_validation.py target     # 64 samples of each base on the same test problems: the ideal again
    python benchmarks/forecast_validation.py table      # predictions against measurements, into docs/forecast.md

Without a word it does all five, in this order; `--bases NAME…` takes some of them. What is finished is used again. A base is
trained only after its forecast is written; the forecast never sees a test problem. Test problems of families that are
never rewarded (role transfer) are left out of every figure: the forecast is about the problems that are trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import forecast_tables as tables  # beside this script

from bsharp.config import CompareConfig, DiagnoseConfig, EvaluationConfig, PretrainConfig, ValidationConfig, WatchConfig

RUNS = Path("runs/forecast_validation")
DOCUMENT, PICTURE = Path("docs/forecast.md"), Path("docs/forecast_validation.svg")
START, END = "<!-- table validation -->", "<!-- end validation -->"

REGIMES = (
    "task_reward",
    "tilted(alpha=1,beta_inv=2)",
    "sharpening",
    "sharpening_mean=sharpening(normalisation=mean)",
    "tempered(alpha=2)",
)
# One rate and one length of training for all regimes: no choice that looked at a result.
COMPARISON = CompareConfig(
    regimes=REGIMES,
    seeds=(0,),
    steps=40,
    validation=ValidationConfig(problems=21, samples=1, every=40),
    final_validation_samples=1,
    evaluation=EvaluationConfig(problems=252, samples=16, greedy=False),
    watch=WatchConfig(every=40, snapshot_megabytes=0),
)
TARGET_SAMPLES = dataclasses.replace(COMPARISON.evaluation, samples=64, seed=0)
TUNING = PretrainConfig(steps=250, matrix_learning_rate=0.01, learning_rate=1.5e-3, warmup_steps=10, threads=1)

Mixture = dict[str, Any]  # {"correct": …, "mistakes": {…}, "guess": …, …} of one family


def shares(mixture: Mixture, correct: float, guess: float) -> Mixture:
    """The mixture with these shares; mistakes keep their proportions in what is left."""
    mistaken = sum(mixture["mistakes"].values())
    rest = 1.0 - correct - guess
    mistakes = {kind: share / mistaken * rest for kind, share in mixture["mistakes"].items()}
    return mixture | {"correct": correct, "guess": guess, "mistakes": mistakes}


def moved(shift: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda corpus: corpus | {"mistake_rate_shift": shift}


def families(
    change: Callable[[str, str, Mixture], Mixture], **settings: Any
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The corpus with `change(task, role and mode, mixture)` applied to every family."""

    def changed(corpus: dict[str, Any]) -> dict[str, Any]:
        from bsharp.config import EMBEDDED_TASKS
        from bsharp.tasks import Role, load_task

        kinds = {
            name: (task, "standard" if family.role is Role.TRANSFER else str(family.role), str(family.mode))
            for task in EMBEDDED_TASKS
            for name, family in load_task(task).families.items()
        }
        mixtures = {
            name: change(kinds[name][0], "/".join(kinds[name][1:]), mixture)
            for name, mixture in corpus["families"].items()
        }
        return corpus | {"families": mixtures} | settings

    return changed


def standard(correct: float, guess: float) -> Callable[[str, str, Mixture], Mixture]:
    return lambda task, kind, mixture: shares(mixture, correct, guess) if kind.startswith("standard") else mixture


def swapped(task: str, kind: str, mixture: Mixture) -> Mixture:
    if kind == "standard/right":
        return shares(mixture, 0.25, 0.20)
    return shares(mixture, 0.65, 0.20) if kind == "standard/wrong" else mixture


def easier(task: str, kind: str, mixture: Mixture) -> Mixture:
    return mixture if kind.startswith("standard") else shares(mixture, 0.35, 0.15)


def mostly_right(task: str, kind: str, mixture: Mixture) -> Mixture:
    return shares(mixture, 0.75, 0.10)


def never_right(task: str, kind: str, mixture: Mixture) -> Mixture:
    return shares(mixture, 0.0, 0.25) | {"guess_target": "mistake"}


def only(wanted: str) -> Callable[[str, str, Mixture], Mixture]:
    return lambda task, kind, mixture: shares(mixture, 0.8, 0.1) if task == wanted else shares(mixture, 0.1, 0.3)


BASES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]] | None]] = {
    "embedded": ("the embedded base as it is", None),
    "mistakes_-0.30": ("30 points fewer mistakes in every standard family", moved(-0.30)),
    "mistakes_-0.15": ("15 points fewer mistakes", moved(-0.15)),
    "mistakes_+0.10": ("10 points more mistakes", moved(0.10)),
    "mistakes_+0.20": ("20 points more mistakes", moved(0.20)),
    "mistakes_+0.30": ("30 points more mistakes", moved(0.30)),
    "near_tie": ("right and mistaken equally frequent, .40 and .40", families(standard(0.40, 0.20))),
    "guessing": ("45 % direct guesses, right in 30 %", families(standard(0.30, 0.45))),
    "guessing_most": ("70 % direct guesses, right in 30 %", families(standard(0.18, 0.70))),
    "good_guesses": (
        "45 % direct guesses, right in 70 %",
        families(standard(0.30, 0.45), guess={"hit_probability": 0.7, "offsets": [1, 2, 10, 20]}),
    ),
    "swapped": ("families of right mode made wrong, and the reverse", families(swapped)),
    "all_wrong": ("right in 15 % everywhere, mistaken in 65 %", families(standard(0.15, 0.20))),
    "easier": ("the rare and unsolved families solved in 35 %", families(easier)),
    "one_task": ("math_mini solved in 80 %, gsm8k_lite in 10 %", families(only("math_mini"))),
    "mostly_right": ("right in 75 % of every family, rare and unsolved ones too", families(mostly_right)),
    "never_right": ("never right, guesses aim at the usual mistake", families(never_right)),
}


def base_folder(name: str) -> Path:
    return RUNS / "bases" / name


def make_base(name: str) -> None:
    """Fine-tune the embedded base on the mixture, responses only, and keep it as an ordinary model folder."""
    folder = base_folder(name)
    if (folder / "model.safetensors").exists():
        return
    from bsharp.config import as_dict, build_config
    from bsharp.models import load_language_model
    from bsharp.models.tiny import round_weights, save_folder
    from bsharp.tasks.corpus import CorpusConfig, documents, load_corpus_config
    from bsharp.training.pretraining import train_on_documents

    description, change = BASES[name]
    language_model = load_language_model("embedded:tiny")
    if change is not None:
        corpus = build_config(CorpusConfig, change(as_dict(load_corpus_config(None))), source=f"mixture {name}")
        language_model.model.requires_grad_(True)
        stream = ((document.prompt, document.response) for document in documents(corpus, seed=1))
        train_on_documents(language_model, stream, TUNING)
        round_weights(language_model.model)  # the folder holds fp16: what is sampled below is what it holds
    save_folder(language_model.model, language_model.tokenizer, folder, f"# {name}\n\n{description}\n")
    print(f"base {name}: {description}", flush=True)


def make_forecast(name: str) -> None:
    """Sample the base on training problems and forecast every regime from the samples alone."""
    from bsharp.config import ForecastConfig
    from bsharp.experiment import forecast_model

    if not (RUNS / "forecasts" / name / "forecast.json").exists():
        settings = ForecastConfig(regimes=REGIMES, problems=256, samples=32, seed=1)
        found = forecast_model(str(base_folder(name)), ("math_mini", "gsm8k_lite"), settings, RUNS / "forecasts" / name)
        print(f"forecast {name}: {found['recommendation']['word']}", flush=True)


def train(name: str, workers: int) -> None:
    """Every regime from this base, after its forecast."""
    import bsharp

    if not (RUNS / "forecasts" / name / "forecast.json").exists():
        sys.exit(f"no forecast of {name} yet; first: python {sys.argv[0]} forecast")
    config = dataclasses.replace(COMPARISON, model=str(base_folder(name)), workers=workers)
    few = DiagnoseConfig(alignment_problems=16, mistake_problems=1)
    bsharp.compare(config, RUNS / "compare" / name, diagnose_settings=few)
    print(f"trained from {name}", flush=True)


def make_target(name: str) -> None:
    """The importance-weighted optimum on the test problems themselves, from samples the forecast has not seen."""
    from bsharp.diagnostics.forecast import forecast
    from bsharp.experiment import evaluate_model
    from bsharp.runlog import RunDirectory

    folder = RUNS / "targets" / name
    records = evaluate_model(
        str(base_folder(name)), COMPARISON.tasks, TARGET_SAMPLES, folder, on_progress=None, reuse=True
    )
    found = forecast([record for record in records if record["role"] != "transfer"], REGIMES)
    RunDirectory(folder).write_json("target.json", found)
    print(f"target {name}", flush=True)


def write_tables(names: Sequence[str]) -> None:
    """The tables of docs/forecast.md between their marks, and the scatter plot beside it."""
    rows = [row for name in names for row in tables.rows_of(name, RUNS, COMPARISON)]
    bases = [[name, BASES[name][0]] for name in names]
    text = "\n\n".join(
        [
            tables.markdown(("base", "mixture it was fine-tuned on"), bases),
            tables.markdown(
                (
                    "regime",
                    "figures",
                    "rank correlation",
                    "same sign",
                    "mean error",
                    "mean abs. error",
                    "inside (overlapping)",
                ),
                tables.comparison_rows(rows),
            ),
            tables.markdown(
                ("base", "recommended", "task reward, measured", "best label-free, measured", "better in measurement"),
                tables.recommendation_rows(rows, RUNS),
            ),
            tables.markdown(
                (
                    "base",
                    "accuracy",
                    "regime",
                    "forecast",
                    "target",
                    "measured",
                    "KL, forecast",
                    "KL reached",
                ),
                tables.detail_rows(rows),
            ),
        ]
    )
    document = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = document.partition(START)
    _, _, after = rest.partition(END)
    if not after:
        sys.exit(f"{DOCUMENT} has no {START} … {END}")
    DOCUMENT.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    tables.scatter(rows, PICTURE)
    print(f"{len(rows)} rows into {DOCUMENT} and {PICTURE}", flush=True)


def in_parallel(work: Callable[[str], None], names: Sequence[str], workers: int) -> None:
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(work, names))


def train_all(names: Sequence[str], workers: int) -> None:
    for name in names:  # a comparison has its own worker processes
        train(name, workers)


STAGES: dict[str, Callable[[Sequence[str], int], None]] = {
    "bases": lambda names, workers: in_parallel(make_base, names, workers),
    "forecast": lambda names, workers: in_parallel(make_forecast, names, workers),
    "train": train_all,
    "target": lambda names, workers: in_parallel(make_target, names, workers),
    "table": lambda names, workers: write_tables(names),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"any of {', '.join(STAGES)}; none means all")
    parser.add_argument("--bases", nargs="+", choices=list(BASES), default=list(BASES), metavar="NAME")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    for stage in arguments.stages or STAGES:
        if stage not in STAGES:
            parser.error(f"unknown stage {stage!r}; stages: {', '.join(STAGES)}")
        STAGES[stage](arguments.bases, arguments.workers)


if __name__ == "__main__":
    main()
