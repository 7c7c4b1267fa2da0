"""The command `bsharp`. Flags are the fields of the configs; a TOML file given with --config sets their defaults."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import tyro
from pydantic import ValidationError
from rich.console import Console

from bsharp.cli import actions
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
from bsharp.config import PRETRAIN_PRESETS, CompareConfig, ConfigError, build_config, load_config
from bsharp.version import __version__

__all__ = ["COMMANDS", "run"]


def run(argv: list[str]) -> None:
    """Read the command line, do what it says, and end the process where that fails, with a line that says why."""
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


def _one_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        return f"{key} = {first['input']!r} cannot be used: {first['msg'].removeprefix('Value error, ')}"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "compare": (CompareCommand, actions.compare),
    "train": (TrainCommand, actions.train),
    "evaluate": (EvaluateCommand, actions.evaluate),
    "grade": (GradeCommand, actions.grade),
    "regrade": (RegradeCommand, actions.regrade),
    "pretrain": (PretrainCommand, actions.pretrain),
    "table": (TableCommand, actions.table),
    "diagnose": (DiagnoseCommand, actions.diagnose),
    "report": (ReportCommand, actions.report),
    "forecast": (ForecastCommand, actions.forecast),
    "theory": (TheoryCommand, actions.theory),
}
