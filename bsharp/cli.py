"""The command `bsharp`. Flags are the fields of the configs; a TOML file given with --config sets their defaults."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro
from pydantic import ValidationError
from rich.console import Console

from bsharp.config import (
    DEFAULT_REGIMES,
    EMBEDDED_MODEL,
    PRETRAIN_PRESETS,
    CompareConfig,
    ConfigError,
    DiagnoseConfig,
    EvaluationConfig,
    ForecastConfig,
    PretrainConfig,
    TrainConfig,
    build_config,
    load_config,
)
from bsharp.version import __version__

__all__ = ["main"]

Flat = tyro.conf.arg(name="")


@dataclasses.dataclass(frozen=True)
class CompareCommand:
    """Train one base under every regime and seed, evaluate before and after, print the table and the verdict."""

    settings: Annotated[CompareConfig, Flat]
    out: str = "runs"
    """Folder that holds run directories."""
    name: str = "compare"
    """Name of the run directory."""
    alpha: tuple[float, ...] = ()
    """Instead of --regimes: task reward, sharpening, and tilted and tempered sampling at each α."""
    beta_inv: tuple[float, ...] = ()
    """With --alpha: tilted sampling at each β⁻¹; 100 if none is named."""
    quick: bool = False
    """A look in about a minute: one seed, few steps, few problems, into NAME-quick. Too small to conclude from."""
    tune: bool = False
    """Instead of comparing, try one learning-rate grid for every regime on validation problems (into NAME-tune)."""
    families: bool = False
    """Print the table of every problem family as well."""
    config: str | None = None
    """TOML file with defaults for the settings below; its keys are the field names."""


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train one policy under one objective. A killed run goes on from its last checkpoint when called again."""

    settings: Annotated[TrainConfig, Flat]
    out: str = "runs/train"
    """Run directory."""
    config: str | None = None
    """TOML file with defaults for the other flags; its keys are the field names."""


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a model on test problems (or another split) and keep every sample."""

    settings: Annotated[EvaluationConfig, Flat]
    model: str = "embedded:tiny"
    """Hub name or local folder of a causal LM, or embedded:tiny."""
    tasks: tuple[str, ...] = ("math_mini", "gsm8k_lite")
    """Task names."""
    base: str | None = None
    """Model the evaluated one was tuned from: KL and correlation are measured to it."""
    difficulties: tuple[int, ...] = ()
    """Difficulties (1 to 3) of the embedded tasks' problems; none named means all."""
    out: str = "runs/evaluate"
    """Directory for records.jsonl and summary.json."""
    threads: int = 1
    """CPU threads of torch."""
    device: str = "cpu"
    """Torch device."""
    config: str | None = None
    """TOML file with defaults for the evaluation settings."""


@dataclasses.dataclass(frozen=True)
class PretrainCommand:
    """Rebuild the embedded base model from nothing, with its model card and measured figures."""

    settings: Annotated[PretrainConfig, Flat]
    preset: Literal["tiny", "reduced", "small"] = "tiny"
    """tiny is the model inside the package, reduced the same with less training, small a larger one."""
    out: str = "runs/pretrain"
    """Folder for the model; it must not hold another one."""
    config: str | None = None
    """TOML file with defaults for the other flags; its keys are the field names."""


@dataclasses.dataclass(frozen=True)
class TableCommand:
    """Print the table of a finished comparison again; reads results.json only."""

    run: tyro.conf.Positional[str] = "runs/compare"
    """Run directory of a comparison."""
    families: bool = False
    """Accuracy and change by problem family as well."""
    svg: str | None = None
    """Also write the table as an SVG picture to this file."""


@dataclasses.dataclass(frozen=True)
class DiagnoseCommand:
    """Explain a finished comparison: gradients, mistakes, input sensitivity, loss surface; then write its page again."""

    settings: Annotated[DiagnoseConfig, Flat]
    run: tyro.conf.Positional[str] = "runs/compare"
    """Run directory of a finished comparison."""
    only: tuple[
        Literal["drift", "calibration", "problems", "alignment", "mistakes", "sensitivity", "surface"], ...
    ] = ()
    """Diagnostics to make; none named means all."""
    config: str | None = None
    """TOML file with defaults for the other settings; its keys are the field names."""


@dataclasses.dataclass(frozen=True)
class ReportCommand:
    """Write one self-contained page about one or several run directories; reads them only, no model is needed."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ("runs/compare",)
    """Run directories of compare, train or evaluate; a comparison may still be running."""
    out: str | None = None
    """File to write; by default report.html in the run's directory. Needed for several runs."""


@dataclasses.dataclass(frozen=True)
class ForecastCommand:
    """Say from base samples alone, before any training, what each regime can gain, and what to do; minutes, not GPU weeks."""

    settings: Annotated[ForecastConfig, Flat]
    model: str | None = None
    """Hub name or local folder of the base, or embedded:tiny; the default where no --records are given."""
    tasks: tuple[str, ...] = ("math_mini", "gsm8k_lite")
    """Task names."""
    records: str | None = None
    """Instead of sampling: a JSONL file of base samples, one a line, from any sampler (docs/forecast.md says which keys)."""
    out: str = "runs/forecast"
    """Directory for the samples, forecast.json, forecast.md and the page forecast.html."""
    difficulties: tuple[int, ...] = ()
    """Difficulties (1 to 3) of the embedded tasks' problems; none named means all."""
    families: bool = False
    """Print the table of every problem family as well."""
    threads: int = 1
    """CPU threads of torch."""
    device: str = "cpu"
    """Torch device."""
    config: str | None = None
    """TOML file with defaults for the settings; its keys are the field names."""


@dataclasses.dataclass(frozen=True)
class TheoryCommand:
    """Write the page of the exact small world, in which nothing is estimated; with --check, verify its statements."""

    out: str = "runs/theory.html"
    """File of the page; it needs no server and no network."""
    check: bool = False
    """Instead of the page: print both sides of every statement that has two, and the error; exit status 1 on a mismatch."""
    worlds: bool = False
    """With --check: print both sides in every world, not only in the one that comes closest to its bound."""
    seed: int = 0
    """Seed of the random worlds that --check looks at."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit status 0: done; 1: failed; 2: the command line or a config is wrong; 130: interrupted."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    errors = Console(stderr=True)
    try:
        _dispatch(argv)
    except (ConfigError, ValidationError) as error:
        errors.print(f"bsharp: {_one_line(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print(
            "\nbsharp: interrupted; what is finished or checkpointed is kept, the same command goes on from there"
        )
        sys.exit(130)
    except (ValueError, RuntimeError, OSError) as error:
        errors.print(f"bsharp: {_one_line(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _dispatch(argv: list[str]) -> None:
    if argv[:1] == ["--version"]:
        print(f"bsharp {__version__}")
        return
    command = argv[0] if argv else ""
    if command and not command.startswith("-") and command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {command!r}; {remedy}")
    config = _value_of("--config", argv)
    defaults: dict[str, Any] = {
        name: kind(**_settings(kind, config if name == command else None, argv)) for name, (kind, _) in COMMANDS.items()
    }
    descriptions = {name: (kind.__doc__ or "").partition(".")[0] for name, (kind, _) in COMMANDS.items()}
    chosen = tyro.cli(
        tyro.extras.subcommand_type_from_defaults(defaults, descriptions, prefix_names=False),
        prog="bsharp",
        description=f"{__doc__} `bsharp --version` prints the version.",
        args=argv or ["--help"],
    )
    COMMANDS[command][1](chosen)


def _compare(command: CompareCommand) -> None:
    from bsharp import experiment
    from bsharp.experiment.display import ProgressDisplay
    from bsharp.reporting import print_results

    config = command.settings
    if command.beta_inv and not command.alpha:
        raise ConfigError("--beta-inv belongs to --alpha; add e.g. --alpha 1 2, or write --regimes 'tilted(alpha=1,…)'")
    if command.alpha:
        if config.regimes != DEFAULT_REGIMES:
            raise ConfigError("--alpha writes the list of regimes itself; give either --alpha or --regimes")
        config = dataclasses.replace(config, regimes=_regime_grid(command.alpha, command.beta_inv or (100.0,)))
    suffix = "-tune" if command.tune else "-quick" if command.quick else ""
    folder = Path(command.out) / f"{command.name}{suffix}"
    console = _console()
    if command.tune:
        with ProgressDisplay(console) as display:
            result = experiment.tune(config, folder, on_start=display.on_start, on_event=display.on_event)
        _print_tuning(console, result)
        return
    settings = QUICK_DIAGNOSTICS if command.quick else None
    console.print(f"a page follows the runs: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    with ProgressDisplay(console) as display:
        results = experiment.compare(
            config, folder, display.on_start, display.on_event, display.on_diagnostic, settings
        )
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


def _diagnose(command: DiagnoseCommand) -> None:
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


def _report(command: ReportCommand) -> None:
    from bsharp.reporting import write_report

    page = write_report([Path(run) for run in command.runs], Path(command.out) if command.out else None)
    _console().print(f"The page: {page}", highlight=False, markup=False, soft_wrap=True)


def _forecast(command: ForecastCommand) -> None:
    from rich.progress import Progress

    from bsharp.experiment import forecast_model, forecast_records
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
                command.tasks,
                command.settings,
                command.out,
                command.difficulties,
                command.threads,
                command.device,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
    print_forecast(found, families=command.families)
    console.print(f"Written to {command.out}: forecast.json, forecast.md", highlight=False, markup=False)
    console.print(f"The page: {Path(command.out) / 'forecast.html'}", highlight=False, markup=False, soft_wrap=True)


def _theory(command: TheoryCommand) -> None:
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


def _train(command: TrainCommand) -> None:
    from bsharp.experiment import train
    from bsharp.training import latest_checkpoint

    console = _console()
    done = latest_checkpoint(Path(command.out) / "checkpoints")
    if done:
        console.print(f"going on from {done.name} of {command.out}", highlight=False)

    def show(step: int, metrics: Any) -> None:
        checked = f"  validation {metrics['validation/accuracy']:.1%}" if "validation/accuracy" in metrics else ""
        console.print(
            f"step {step}/{command.settings.steps}  reward {metrics['reward']:.3f}  score {metrics['score/mean']:.3f}  "
            f"KL {metrics['kl(policy||base)/k1_nats_per_sequence']:.2f}  entropy {metrics['entropy/exact_nats_per_token']:.3f}  "
            f"length {metrics['completions/mean_length']:.1f}{checked}",
            highlight=False,
        )

    def warn(sentence: str) -> None:
        console.print(sentence, style="yellow", markup=False, highlight=False)

    _, progress = train(command.settings, command.out, watchers=[show], on_alarm=warn)
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


def _evaluate(command: EvaluateCommand) -> None:
    from rich.progress import Progress

    from bsharp.evaluation import summarize
    from bsharp.experiment import evaluate_model
    from bsharp.reporting import print_summary
    from bsharp.runlog import RunDirectory

    console = _console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("completions", total=None)
        records = evaluate_model(
            command.model,
            command.tasks,
            command.settings,
            command.out,
            command.base,
            command.difficulties,
            command.threads,
            command.device,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    summary = summarize([records])
    RunDirectory(command.out).write_json("summary.json", summary)
    print_summary(summary, console, title=command.model)
    console.print(f"Written to {command.out}: records.jsonl, summary.json", highlight=False, markup=False)


def _pretrain(command: PretrainCommand) -> None:
    # One process has the cores to itself: waiting threads may spin. It must be set before torch is first imported;
    # with the passive policy, which several processes need, two threads are slower here than one.
    os.environ["OMP_WAIT_POLICY"] = "active"
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


def _table(command: TableCommand) -> None:
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


QUICK_DIAGNOSTICS = DiagnoseConfig(alignment_problems=32, mistake_problems=4)


def _quick(settings: CompareConfig) -> CompareConfig:
    """One seed, 8 steps of 16 problems, 63 test problems × 8 samples: for a look, not for a conclusion."""
    return dataclasses.replace(
        settings,
        seeds=settings.seeds[:1],
        steps=8,
        sampling=dataclasses.replace(settings.sampling, prompts_per_step=16),
        validation=dataclasses.replace(settings.validation, problems=42, every=4),
        evaluation=dataclasses.replace(settings.evaluation, problems=63, samples=8),
    )


def _regime_grid(alphas: Sequence[float], beta_invs: Sequence[float]) -> tuple[str, ...]:
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


def _settings(kind: type, config: str | None, argv: Sequence[str]) -> dict[str, Any]:
    """The `settings` field of a command, from its TOML file if one is given; nothing for a command without settings."""
    hints = get_type_hints(kind)
    if "settings" not in hints:
        return {}
    if kind is PretrainCommand and config and _value_of("--preset", argv):
        raise ConfigError("--preset and --config both choose all settings; give one of them")
    if kind is PretrainCommand and not config:
        preset = _value_of("--preset", argv) or "tiny"
        return {"settings": PRETRAIN_PRESETS.get(preset, PRETRAIN_PRESETS["tiny"])}
    settings = load_config(hints["settings"], config) if config else build_config(hints["settings"], {})
    return {"settings": _quick(settings) if isinstance(settings, CompareConfig) and "--quick" in argv else settings}


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """What stands behind `flag`, needed before the other flags can be parsed; tyro reports a missing value."""
    for place, argument in enumerate(argv):
        if argument == flag and place + 1 < len(argv):
            return argv[place + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


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


def _one_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        return f"{key} = {first['input']!r} cannot be used: {first['msg'].removeprefix('Value error, ')}"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "compare": (CompareCommand, _compare),
    "train": (TrainCommand, _train),
    "evaluate": (EvaluateCommand, _evaluate),
    "pretrain": (PretrainCommand, _pretrain),
    "table": (TableCommand, _table),
    "diagnose": (DiagnoseCommand, _diagnose),
    "report": (ReportCommand, _report),
    "forecast": (ForecastCommand, _forecast),
    "theory": (TheoryCommand, _theory),
}
