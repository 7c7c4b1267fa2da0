"""What each command does. Heavy imports stay inside the functions, so that `bsharp --help` answers at once."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bsharp.cli.commands import (
    CompareCommand,
    DiagnoseCommand,
    EvaluateCommand,
    ForecastCommand,
    GradeCommand,
    PretrainCommand,
    RegradeCommand,
    ReportCommand,
    TableCommand,
    TheoryCommand,
    TrainCommand,
)
from bsharp.config import DEFAULT_REGIMES, EMBEDDED_MODEL, ConfigError, DiagnoseConfig
from bsharp.processes import available_cores, import_to_stay, prepare_workers

QUICK_DIAGNOSTICS = DiagnoseConfig(alignment_problems=32, mistake_problems=4)


def compare(command: CompareCommand) -> None:
    _prepare_workers(command.settings.device)
    import_to_stay("bsharp.experiment.comparison")
    from bsharp import experiment
    from bsharp.experiment.display import ProgressDisplay
    from bsharp.reporting import print_results

    config = _with_own_problems(command.settings)
    if command.beta_inv and not command.alpha:
        raise ConfigError("--beta-inv belongs to --alpha; add e.g. --alpha 1 2, or write --regimes 'tilted(alpha=1,…)'")
    if command.alpha:
        if config.regimes != DEFAULT_REGIMES:
            raise ConfigError("--alpha writes the list of regimes itself; give either --alpha or --regimes")
        config = dataclasses.replace(config, regimes=regime_grid(command.alpha, command.beta_inv or (100.0,)))
    suffix = "-tune" if command.tune else "-quick" if command.quick else ""
    folder = Path(command.out) / f"{command.name}{suffix}"
    console = _console()
    if command.tune:
        with ProgressDisplay(console) as display:
            result = experiment.tune(config, folder, on_start=display.on_start, on_event=display.on_event)
        _print_tuning(console, result)
        return
    settings = QUICK_DIAGNOSTICS if command.quick else None

    def on_start(jobs: Sequence[Any], to_do: Sequence[Any]) -> None:  # when everything that could be refused has been
        line = f"a page follows the runs: {folder / 'report.html'}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        display.on_start(jobs, to_do)

    with ProgressDisplay(console) as display:
        results = experiment.compare(config, folder, on_start, display.on_event, display.on_diagnostic, settings)
    print_results(results, families=command.families)
    console.print(
        f"Written to {folder}: results.json, table.md, metrics and every sample",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if (folder / "report.html").exists():
        console.print(
            f"The page: {folder / 'report.html'}  (`bsharp diagnose {folder}` adds loss surface, input sensitivity and "
            "gradients after training)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def diagnose(command: DiagnoseCommand) -> None:
    _prepare_workers("cpu")  # the comparison will say; on another device nothing is lost but the preparation
    import_to_stay("bsharp.experiment.diagnose")
    from rich.progress import Progress

    from bsharp.experiment import DIAGNOSTICS, diagnose
    from bsharp.reporting import write_report

    console = _console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        bars: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = bar.add_task(name, total=total)
                if not console.is_terminal:
                    console.print(f"{name} …", highlight=False)
            bar.update(bars[name], completed=done, total=total)

        files = diagnose(command.run, command.settings, command.only or DIAGNOSTICS, show)
    page = write_report([Path(command.run)])
    console.print(f"Written: {', '.join(str(file) for file in files)}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"The page: {page}", highlight=False, markup=False, soft_wrap=True)


def report(command: ReportCommand) -> None:
    from bsharp.reporting import write_report

    page = write_report([Path(run) for run in command.runs], Path(command.out) if command.out else None)
    _console().print(f"The page: {page}", highlight=False, markup=False, soft_wrap=True)


def forecast(command: ForecastCommand) -> None:
    import_to_stay("bsharp.experiment.forecast")
    from rich.progress import Progress

    from bsharp.experiment import forecast_model, forecast_records, own_problems_only
    from bsharp.reporting import print_forecast

    console = _console()
    if command.records is not None:
        if command.model is not None:
            raise ConfigError("--records are samples of a model already; give either --records or --model")
        found = forecast_records(command.records, command.settings, command.out)
    else:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("base samples", total=None)
            found = forecast_model(
                command.model or EMBEDDED_MODEL,
                own_problems_only(command.tasks, command.problems),
                command.settings,
                command.out,
                command.difficulties,
                command.threads,
                command.device,
                lambda done, total: bar.update(task, completed=done, total=total),
                problems=command.problems,
                chat=command.chat,
                dtype=command.dtype,
            )
    print_forecast(found, families=command.families)
    console.print(f"Written to {command.out}: forecast.json, forecast.md", highlight=False, markup=False)
    console.print(f"The page: {Path(command.out) / 'forecast.html'}", highlight=False, markup=False, soft_wrap=True)


def theory(command: TheoryCommand) -> None:
    import_to_stay("bsharp.experiment.theory")
    from bsharp.experiment import theory_page

    console = _console()
    if command.check:
        from bsharp.experiment import check_theory
        from bsharp.reporting import print_checks

        rows = check_theory(command.seed)
        print_checks(rows, console, command.worlds)
        if failed := sum(not row["holds"] for row in rows):
            raise RuntimeError(f"{failed} of {len(rows)} checks do not hold; the rows marked ✗ say which")
        return
    path = theory_page(command.out)
    console.print(f"The page: {path}  (open it in a browser)", highlight=False, markup=False, soft_wrap=True)


def train(command: TrainCommand) -> None:
    import_to_stay("bsharp.experiment.run")
    from bsharp.experiment import train
    from bsharp.training import latest_checkpoint

    console = _console()
    settings = _with_own_problems(command.settings)
    done = latest_checkpoint(Path(command.out) / "checkpoints")
    if done:
        console.print(f"going on from {done.name} of {command.out}", highlight=False)

    def show(step: int, metrics: Any) -> None:
        kl = metrics.get("kl(policy||base)/k1_nats_per_sequence")
        checked = f"  validation {metrics['validation/accuracy']:.1%}" if "validation/accuracy" in metrics else ""
        console.print(
            f"step {step}/{settings.steps}  reward {metrics['reward']:.3f}  score {metrics['score/mean']:.3f}  "
            f"KL {'–' if kl is None else format(kl, '.2f')}  entropy {metrics['entropy/exact_nats_per_token']:.3f}  "
            f"length {metrics['completions/mean_length']:.1f}{checked}",
            highlight=False,
        )

    def warn(sentence: str) -> None:
        console.print(sentence, style="yellow", markup=False, highlight=False)

    _, progress = train(settings, command.out, watchers=[show], on_alarm=warn)
    best = (
        f"; the best by validation, of step {progress.best_step} ({progress.best_accuracy:.1%}), in {command.out}/best"
        if progress.best_step
        else ""
    )
    if progress.collapsed:
        console.print(
            f"stopped at step {progress.step}, as --stop-on-collapse asks; its policy is in {command.out}/last{best}",
            highlight=False,
        )
        return
    if progress.stopped:
        raise RuntimeError(f"stopped: {progress.stopped}; they are in {command.out}/last")
    console.print(f"{progress.step} steps done; the policy is in {command.out}/last{best}", highlight=False)


def evaluate(command: EvaluateCommand) -> None:
    from rich.progress import Progress

    from bsharp.reporting import print_summary

    settings = command.settings
    shared = command.workers != 1 and settings.problems * settings.samples > settings.max_rows
    if shared:
        _prepare_workers(command.device)
    console = _console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("completions", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        # A program that has torch already gains nothing from leaving the work to others as a whole.
        here = not shared or command.device != "cpu" or "torch" in sys.modules
        summary = _evaluated(command, show) if here else _evaluated_elsewhere(command, show)
    print_summary(summary, console, title=command.model)
    written = "records.jsonl, summary.json, config.json, manifest.json"
    console.print(f"Written to {command.out}: {written}", highlight=False, markup=False)


def _evaluated(command: EvaluateCommand, on_progress: Callable[[int, int], None]) -> Mapping[str, Any]:
    """The summary of the evaluation, which is carried out by this process or, from piece to piece, by its workers."""
    import_to_stay("bsharp.experiment.run")
    from bsharp.evaluation import summarize
    from bsharp.experiment import evaluate_model, own_problems_only
    from bsharp.runlog import RunDirectory

    records = evaluate_model(
        command.model,
        own_problems_only(command.tasks, command.problems),
        command.settings,
        command.out,
        command.base,
        command.difficulties,
        command.threads,
        command.device,
        on_progress,
        problems=command.problems,
        chat=command.chat,
        dtype=command.dtype,
        workers=command.workers,
    )
    summary = summarize([records])
    RunDirectory(command.out).write_json("summary.json", summary)
    return summary


def _evaluated_elsewhere(command: EvaluateCommand, on_progress: Callable[[int, int], None]) -> Mapping[str, Any]:
    """The same by workers alone; this process imports nothing of what they need."""
    from bsharp.experiment.hosted import evaluate_hosted

    request = {
        "config" if field.name == "settings" else field.name: getattr(command, field.name)
        for field in dataclasses.fields(command)
        if field.name != "config"
    }
    return evaluate_hosted(request, command.workers or available_cores(), on_progress)


def grade(command: GradeCommand) -> None:
    from rich.progress import Progress

    from bsharp.experiment.grading import grade_file

    console = _console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("lines", total=None)
        found = grade_file(
            command.file,
            command.out,
            command.task,
            command.problems,
            command.text_field,
            command.gold_field,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(found.text(), highlight=False, markup=False, soft_wrap=True)


def regrade(command: RegradeCommand) -> None:
    from rich.progress import Progress

    from bsharp.experiment.regrading import regrade

    console = _console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("files", total=None)
        found = regrade(
            command.run,
            command.problems,
            lambda name, done, total: bar.update(task, completed=done, total=total, description=name or "files"),
        )
    console.print(found.markdown(), highlight=False, markup=False, soft_wrap=True)
    console.print(f"Written to {found.folder}", highlight=False, markup=False, soft_wrap=True)


def pretrain(command: PretrainCommand) -> None:
    # One process has the cores to itself: waiting threads may spin. It must be set before torch is first imported;
    # with the passive policy, which several processes need, two threads are slower here than one.
    os.environ["OMP_WAIT_POLICY"] = "active"
    import_to_stay("bsharp.training.pretraining")
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from bsharp.training.pretraining import pretrain

    if (Path(command.out) / "config.json").exists():
        raise ConfigError(f"{command.out} holds a model already; choose another --out, or delete it")
    console = _console()
    columns = (TextColumn("pretraining"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
    loss_column = TextColumn("loss {task.fields[loss]:.2f} nats per document")
    with Progress(
        *columns, loss_column, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=command.settings.steps, loss=float("nan"))
        if not console.is_terminal:
            console.print(f"pretraining {command.settings.steps} steps, then measuring the model", highlight=False)

        def show(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, loss=loss)
            if not console.is_terminal and step % 100 == 0:
                console.print(f"step {step}/{steps}  loss {loss:.2f} nats per document", highlight=False)

        folder = pretrain(command.settings, command.out, show)
    console.print(f"Written to {folder}; its README.md says what it was made of and how right it is", highlight=False)


def table(command: TableCommand) -> None:
    from bsharp.reporting import print_results, require_results, table_svg
    from bsharp.runlog import RunDirectory

    path = Path(command.run)
    if not (path / "results.json").exists():
        others = sorted(found.parent.name for found in path.parent.glob(f"{path.name}*/results.json"))
        remedy = (
            f"did you mean {path.parent / others[0]}?"
            if others
            else "give the directory of a finished `bsharp compare`"
        )
        raise ConfigError(f"{path} holds no results.json; {remedy}")
    results = require_results(RunDirectory(path).read_json("results.json"))
    print_results(results, families=command.families)
    if command.svg:
        Path(command.svg).write_text(table_svg(results), encoding="utf-8")


def _prepare_workers(device: str) -> None:
    """While this process imports what it needs, another imports what its workers need."""
    if device == "cpu":
        prepare_workers()


def _with_own_problems(settings: Any) -> Any:
    from bsharp.experiment import own_problems_only

    return dataclasses.replace(settings, tasks=own_problems_only(settings.tasks, settings.problems))


def regime_grid(alphas: Sequence[float], beta_invs: Sequence[float]) -> tuple[str, ...]:
    """Task reward, sharpening, tilted at every (α, β⁻¹) and tempered at every α ≠ 1 (tempered at 1 is the base)."""
    regimes = ["task_reward", "sharpening"]
    for alpha in alphas:
        for beta_inv in beta_invs:
            name = "tilted" if not any("tilted" in regime for regime in regimes) else f"tilted_{alpha:g}_{beta_inv:g}"
            regimes.append(f"{name}=tilted(alpha={alpha:g},beta_inv={beta_inv:g})")
    for alpha in alphas:
        if alpha != 1:
            name = "tempered" if not any("tempered" in regime for regime in regimes) else f"tempered_{alpha:g}"
            regimes.append(f"{name}=tempered(alpha={alpha:g})")
    return tuple(regimes)


def _print_tuning(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="validation accuracy of the last checkpoint, mean over seeds (each seed); * a seed blew up")
    table.add_column("regime")
    for rate in result["grid"]:
        table.add_column(f"lr {rate:g}", justify="right")
    table.add_column("chosen", justify="right")
    for name, by_rate in result["accuracy"].items():
        cells = [
            f"{sum(seeds) / len(seeds):.1%} ({', '.join(f'{seed:.1%}' for seed in seeds)})"
            + "*" * bool(result["stopped"][name][rate])
            for rate, seeds in by_rate.items()
        ]
        chosen = result["chosen"][name]
        table.add_row(name, *cells, "none" if chosen is None else f"{chosen:g}")
    console.print(table)
    console.print("For a TOML file:", "[learning_rates]", sep="\n", markup=False, highlight=False)
    for name, rate in result["chosen"].items():
        if rate is not None:
            console.print(f'"{name}" = {rate:g}', markup=False, highlight=False)


def _console() -> Console:
    """The screen; where the output is no terminal, lines are left as long as they are."""
    console = Console()
    return console if console.is_terminal else Console(soft_wrap=True)
