"""What can be said on the command line: one dataclass per command, whose fields are its flags."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from bsharp.config import (
    EMBEDDED_TASKS,
    ChatConfig,
    CompareConfig,
    DiagnoseConfig,
    EvaluationConfig,
    ForecastConfig,
    PretrainConfig,
    ProblemsConfig,
    TrainConfig,
)

Flat = tyro.conf.arg(name="")
Tasks = Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--task",))]


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
    tasks: Tasks = EMBEDDED_TASKS
    """Task names."""
    problems: Annotated[ProblemsConfig, Flat] = dataclasses.field(default_factory=ProblemsConfig)
    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and activations; log-probabilities are in float32 in any case."""
    base: str | None = None
    """Model the evaluated one was tuned from: KL and correlation are measured to it."""
    difficulties: tuple[int, ...] = ()
    """Difficulties asked: 1 to 3 of the embedded tasks, levels 1 to 5 of MATH; none named means all."""
    out: str = "runs/evaluate"
    """Directory for records.jsonl and summary.json."""
    threads: int = 1
    """CPU threads of torch, in each process."""
    workers: int = 0
    """Processes that share the problems; 0 means as many as CPU cores and free memory allow, or one on another device. The
    records do not depend on it."""
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
class GradeCommand:
    """Grade completions from anywhere: one JSON line in, one grade out, in order; no model is loaded."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")] = tyro.MISSING
    """JSONL file with one completion (or a list of them) a line; blank lines are skipped. A reward of your own also gets the
    question, where a line has it in its --prompt-field."""
    task: str | None = None
    """Task whose way of finding and comparing answers is used, e.g. gsm8k or math; without one, name --grader or --reward."""
    text_field: str = "text"
    """Field of the completion, or of a list of them."""
    gold_field: str = "gold"
    """Field of the right answer, or of a reference solution that ends in it."""
    problems: Annotated[ProblemsConfig, Flat] = dataclasses.field(default_factory=ProblemsConfig)
    out: str = "grades.jsonl"
    """File for the grades, one a line, each with the number of its line."""


@dataclasses.dataclass(frozen=True)
class RegradeCommand:
    """Grade the samples of a finished run again with another grader, without sampling; the run itself is left as it is."""

    run: tyro.conf.Positional[str] = "runs/compare"
    """Run directory of compare or evaluate."""
    problems: Annotated[ProblemsConfig, Flat] = dataclasses.field(default_factory=ProblemsConfig)
    """--grader or --reward says with what."""


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
    tasks: Tasks = EMBEDDED_TASKS
    """Task names."""
    problems: Annotated[ProblemsConfig, Flat] = dataclasses.field(default_factory=ProblemsConfig)
    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and activations; log-probabilities are in float32 in any case."""
    records: str | None = None
    """Instead of sampling: a JSONL file of base samples, one a line, from any sampler (docs/forecast.md says which keys)."""
    out: str = "runs/forecast"
    """Directory for the samples, forecast.json, forecast.md and the page forecast.html."""
    difficulties: tuple[int, ...] = ()
    """Difficulties asked: 1 to 3 of the embedded tasks, levels 1 to 5 of MATH; none named means all."""
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
