"""Every setting of a run: frozen dataclasses, one per concern, each field with its unit and range.

`load_config` reads a TOML file into one of them, `as_dict` gives the resolved values back. Unknown keys, wrong types and
values out of range raise `ConfigError`, one line that says what to write instead.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

__all__ = [
    "PRETRAIN_PRESETS",
    "AlgorithmConfig",
    "ChatConfig",
    "CompareConfig",
    "ConfigError",
    "DiagnoseConfig",
    "EvaluationConfig",
    "ForecastConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "ProblemsConfig",
    "SamplingConfig",
    "TrainConfig",
    "ValidationConfig",
    "WatchConfig",
    "WeightsConfig",
    "as_dict",
    "build_config",
    "load_config",
]

EMBEDDED_MODEL = "embedded:tiny"
EMBEDDED_TASKS = ("math_mini", "gsm8k_lite")
DEFAULT_REGIMES = (
    "task_reward",
    "tilted(alpha=1,beta_inv=100)",
    "tilted_alpha_2=tilted(alpha=2,beta_inv=100)",
    "sharpening",
    "sharpening_mean=sharpening(normalisation=mean)",
    "tempered(alpha=2)",
)

SHIPPED_LEARNING_RATES = MappingProxyType({"sharpening": 3e-4, "tempered(alpha=2)": 3e-4})
"""What `bsharp compare --tune` chose on the embedded base where it is not the common rate (docs/findings.md)."""

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitFloat = Annotated[float, Field(ge=0, le=1)]

_strict = ConfigDict(extra="forbid", validate_default=True)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, the value seen and what to write instead."""


Backend = Literal["auto", "decoder", "transformers"]


@dataclass(frozen=True, config=_strict)
class ProblemsConfig:
    """Where problems come from, how they are asked and how answers are judged."""

    data: str | None = None
    """A file of your own problems (.jsonl, .json, .csv or .parquet), asked as the task named data."""
    prompt_field: str = "prompt"
    """The field of a file of your own that holds the question."""
    answer_field: str = "answer"
    """data: the field that holds the right answer."""
    split_field: str | None = None
    """data: a field that says train, validation or test; without one the splits follow from a hash of the question."""
    data_dir: str | None = None
    """Folder with public data sets in their published files, one folder a set; otherwise they come from the Hugging Face hub."""
    prompt_format: str = "default"
    """How a problem is worded, e.g. paper, boxed or plain; default is the usual one of each task."""
    reward: str | None = None
    """Your own reward, file.py:function or module:function with the signature of TRL's reward functions, for all tasks."""
    grader: Literal["default", "boxed", "math", "normalised"] = "default"
    """default is each task's own; boxed compares numbers exactly, math mathematical values, normalised
    numbers and strings."""
    grader_workers: PositiveInt = 1
    """Processes that grade at once, where answers are compared mathematically."""
    grader_seconds: PositiveFloat = 10.0
    """Time limit of one answer (of one call of a reward of your own); beyond it the grade is timeout."""


@dataclass(frozen=True, config=_strict)
class ChatConfig:
    """Whether and how a prompt is wrapped into the model's chat template, as one user message."""

    template: Literal["auto", "always", "never"] = "auto"
    """auto uses the tokenizer's template where it has one; always refuses a tokenizer without; never gives plain text."""
    system: str | None = None
    """A system message before it."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"date_string": "26 Jul 2024"})
    """Further arguments of the template. Llama 3's would put today's date into every prompt: its own default is fixed here."""


@dataclass(frozen=True, config=_strict)
class WeightsConfig:
    """In which precision weights are held, which of them train, and where the frozen base lives."""

    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of weights and activations. Log-probabilities, adapters and the optimizer's weights stay in float32. auto takes
    the faster one, measured at the start and recorded: bfloat16 on a GPU, and on processors that have a unit for it."""
    products: Literal["auto", "default", "onednn"] = "auto"
    """Library of float32 matrix products on the CPU, exact either way. auto measures at the start which one this processor is
    faster with, and the choice is recorded: the last bits of a run depend on it."""
    gradient_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass: less memory, about a third more time."""
    lora_rank: PositiveInt | None = None
    """Train low-rank adapters of this rank instead of the weights; the base is then the same model without them."""
    lora_alpha: PositiveFloat | None = None
    """Adapters are scaled by lora_alpha / lora_rank; twice the rank where none is given."""
    lora_targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, e.g. q_proj; none named means all but the head."""
    base_device: str | None = None
    """Torch device of the frozen base where it differs from the policy's (full fine-tuning only)."""
    offload_base: bool = False
    """Keep the frozen base in main memory and bring it to its device only to score (full fine-tuning only)."""


@dataclass(frozen=True, config=_strict)
class SamplingConfig:
    """How training rollouts are drawn. They are scored at the same temperature and with the full vocabulary."""

    prompts_per_step: PositiveInt = 24
    """Problems per training step (P)."""
    group_size: PositiveInt = 8
    """Completions per problem (G)."""
    max_new_tokens: PositiveInt = 48
    """Token limit of a completion; one that reaches it without EOS is truncated."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of sampling and of scoring alike."""
    top_p: UnitFloat = 1.0
    """Must stay 1 in training: a truncated sampler would be scored under another distribution than it drew from."""
    fixed_length: bool = False
    """Mask EOS out and renormalise, in sampling and in scoring, so that every response has max_new_tokens tokens."""
    max_rows: PositiveInt = 512
    """Completions decoded at once; a matter of memory and speed only."""
    backend: Backend = "auto"
    """Who decodes: the built-in decoder or transformers' own generate; auto takes the built-in one for the families it serves."""


@dataclass(frozen=True, config=_strict)
class AlgorithmConfig:
    """The policy-gradient engine: how scores become advantages and advantages become a loss."""

    advantage: Literal["leave_one_out", "group_z_score", "batch_normalised", "gae", "none"] = "leave_one_out"
    """leave_one_out is RLOO, group_z_score GRPO, batch_normalised REINFORCE++, gae classic PPO with a value head."""
    loss: Literal["reinforce", "ppo_clip"] = "reinforce"
    """reinforce is exact on-policy; ppo_clip bounds the importance ratio."""
    reduction: Literal["sequence_sum", "sequence_mean", "token_mean", "constant_length"] = "sequence_sum"
    """sequence_sum is the unbiased policy gradient; sequence_mean GRPO; token_mean DAPO; constant_length Dr. GRPO."""
    epochs: PositiveInt = 1
    """Passes over each batch of rollouts."""
    minibatches: PositiveInt = 1
    """Optimizer updates per pass; whole problems are dealt to minibatches."""
    clip_low: PositiveFloat = 0.2
    """ppo_clip: lower bound of the ratio is 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """ppo_clip: upper bound of the ratio is 1 + clip_high; larger than clip_low is DAPO's clip-higher."""
    gae_gamma: UnitFloat = 1.0
    """gae: discount per token."""
    gae_lambda: UnitFloat = 1.0
    """gae: trace decay per token."""
    value_learning_rate: PositiveFloat = 1e-3
    """gae: learning rate of the value head."""
    value_clip: PositiveFloat = 0.2
    """gae: clip range of the value loss."""
    importance_cap: PositiveFloat | None = None
    """Weigh each token by min(cap, trainer's / sampler's probability), for samplers whose probabilities differ from the
    trainer's; 20 in the paper. None means no correction: the sampler's log-probabilities are taken as the policy's."""
    variance_subbatches: Annotated[int, Field(ge=2)] | None = None
    """Disjoint sub-batches of problems whose gradients give the variance and the signal-to-noise ratio of every step; none
    named means that every problem is one of its own."""


@dataclass(frozen=True, config=_strict)
class OptimizerConfig:
    """Any optimizer of torch.optim, gradient clipping and the schedule of its learning rate."""

    name: str = "AdamW"
    """Class name in torch.optim."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"betas": [0.9, 0.95], "weight_decay": 0.0})
    """Further keyword arguments of the torch optimizer."""
    warmup_steps: NonNegativeInt = 2
    """Steps over which the rate rises linearly from warmup_start × peak to the peak."""
    warmup_start: UnitFloat = 0.1
    """Share of the peak rate at step 0 where there is a warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up; linear and cosine fall and would reach 0 one step after the last."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients with a larger Euclidean norm are scaled down to it."""


@dataclass(frozen=True, config=_strict)
class ValidationConfig:
    """Validation during training; the best checkpoint is chosen on it, never on test problems."""

    problems: PositiveInt = 128
    """Validation problems, the same at every check; fewer where the tasks have fewer."""
    samples: PositiveInt = 4
    """Completions per validation problem at the sampling temperature."""
    every: PositiveInt = 10
    """Steps between checks; the last step is always checked."""


@dataclass(frozen=True, config=_strict)
class WatchConfig:
    """What is measured and kept while a policy trains, beside the figures of every step."""

    objectives: tuple[str, ...] = ()
    """Regimes whose gradients on the run's own rollouts are compared; a comparison names all of its own."""
    every: PositiveInt = 10
    """Steps between these probes; the first step is always probed."""
    base_every: PositiveInt = 1
    """Steps between scorings of the rollouts by the base where the objective does not read them; steps that are checked, the
    first and the last are always scored. The KL to the base is logged at these steps only."""
    snapshot_every: PositiveInt = 5
    """Steps between snapshots of the weights, from which the path on the loss surface is drawn."""
    snapshot_megabytes: NonNegativeFloat = 64.0
    """Megabytes of disk for the snapshots of one run, 2 bytes a weight; a run whose snapshots need more keeps none."""
    gradient_megabytes: PositiveFloat = 1024.0
    """Megabytes of memory for the gradients of a probe; with less, fewer blocks and wider intervals, or no figures."""


@dataclass(frozen=True, config=_strict)
class DiagnoseConfig:
    """How much `bsharp diagnose` measures; more costs time and narrows the intervals."""

    alignment_problems: Annotated[int, Field(ge=16)] = 96
    """Training problems on whose rollouts the gradients of all regimes are compared."""
    alignment_samples: Annotated[int, Field(ge=2)] = 8
    """Completions per problem of that batch."""
    mistake_problems: PositiveInt = 12
    """Test problems per family whose right and mistaken solutions are scored."""
    sensitivity_problems: PositiveInt = 126
    """Test problems of which harmlessly changed versions are asked."""
    sensitivity_samples: PositiveInt = 4
    """Completions per problem and version, beside the greedy one."""
    surface_problems: PositiveInt = 64
    """Validation problems sampled at every point of the loss surface."""
    surface_samples: PositiveInt = 4
    """Completions per problem and point."""
    surface_grid: Annotated[int, Field(ge=3)] = 11
    """Points along each axis of a plane; an even number is raised by one, so that the base is a point."""
    gradient_megabytes: PositiveFloat = 2048.0
    """Megabytes of memory for the gradients that are compared, in each process."""
    seed: NonNegativeInt = 0
    """Seed of problems and samples."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Parallel processes of one thread each; 0 means one per CPU core, or one on another device."""


@dataclass(frozen=True, config=_strict)
class EvaluationConfig:
    """Evaluation of one checkpoint."""

    problems: PositiveInt = 512
    """Problems in all, dealt evenly to the tasks and within a task to its families; fewer where there are fewer."""
    samples: PositiveInt = 16
    """Completions per problem (n of pass@k and maj@k)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature."""
    max_new_tokens: PositiveInt = 48
    """Token limit of a completion."""
    fixed_length: bool = False
    """Mask EOS out and renormalise, as in training at a fixed length."""
    greedy: bool = True
    """One greedy completion per problem as well."""
    split: Literal["train", "validation", "test"] = "test"
    """Which problems."""
    seed: NonNegativeInt = 0
    """Seed of the problem set and of the sampling streams: equal seeds compare models on the same random streams."""
    max_rows: PositiveInt = 1024
    """Completions decoded at once; a matter of memory and speed only."""
    backend: Backend = "auto"
    """Who decodes: the built-in decoder or transformers' own generate; auto takes the built-in one for the families it serves."""


@dataclass(frozen=True, config=_strict)
class ForecastConfig:
    """What a forecast asks of the base before any training, and which regimes it is about."""

    regimes: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_REGIMES
    """Regimes to forecast, each `constructor`, `constructor(argument=value)` or `name=constructor(argument=value)`."""
    alphas: Annotated[tuple[Annotated[float, Field(ge=1, allow_inf_nan=False)], ...], Field(min_length=1)] = (
        1.0,
        1.25,
        1.5,
        2.0,
        2.5,
        3.0,
        3.5,
        4.0,
    )
    """Exponents α of the curve of tempered sampling, π ∝ π_ref^α."""
    beta_invs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 10000.0)
    """Inverse temperatures β⁻¹ of the curve of the tilt, π ∝ π_ref · exp(β⁻¹ r); the paper uses 100 and 10000."""
    problems: PositiveInt = 256
    """Problems in all, dealt evenly to the tasks and within a task to its families; fewer where there are fewer."""
    samples: Annotated[int, Field(ge=2)] = 32
    """Completions per problem, at temperature 1; more of them carry the forecast to larger α."""
    max_new_tokens: PositiveInt = 48
    """Token limit of a completion, as in the training that is forecast."""
    fixed_length: bool = False
    """Mask EOS out and renormalise, as in training at a fixed length."""
    split: Literal["train", "validation", "test"] = "train"
    """Which problems; those that training would draw from by default."""
    seed: NonNegativeInt = 0
    """Seed of the problem set and of the sampling streams."""
    max_rows: PositiveInt = 1024
    """Completions decoded at once; a matter of memory and speed only."""


@dataclass(frozen=True, config=_strict)
class TrainConfig:
    """One training run: one model, one objective, one seed."""

    model: str = EMBEDDED_MODEL
    """Hub name or local folder of a causal LM, or embedded:tiny."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--task",))] = EMBEDDED_TASKS
    """Task names; problems are dealt evenly."""
    problems: Annotated[ProblemsConfig, tyro.conf.arg(name="")] = ProblemsConfig()
    chat: ChatConfig = ChatConfig()
    weights: WeightsConfig = WeightsConfig()
    objective: str = "task_reward"
    """Regime: a constructor of bsharp.algorithm.objectives with its arguments, e.g. tilted(alpha=2,beta_inv=100)."""
    difficulties: tuple[Annotated[int, Field(ge=1, le=5)], ...] = ()
    """Difficulties asked: 1 to 3 of the embedded tasks (the size of the numbers), levels 1 to 5 of MATH; none named means all."""
    seed: NonNegativeInt = 0
    """Run seed; every random stream is derived from it."""
    steps: PositiveInt = 30
    """Training steps."""
    sampling: SamplingConfig = SamplingConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    watch: WatchConfig = WatchConfig()
    stop_on_collapse: bool = False
    """End the run at the first alarm that its output has degenerated; otherwise alarms only warn."""
    microbatch_rows: PositiveInt = 32
    """Rows per forward and backward pass, and more of short responses (tiny models count tokens alone); changes speed and memory,
    not the gradient."""
    checkpoint_every: PositiveInt = 10
    """Steps between checkpoints from which a killed run resumes."""
    threads: PositiveInt = 1
    """CPU threads of torch; part of the config because sums depend on it in the last bit."""
    device: str = "cpu"
    """Torch device."""


@dataclass(frozen=True, config=_strict)
class CompareConfig:
    """One base, several regimes, several seeds, evaluated before and after."""

    model: str = EMBEDDED_MODEL
    """Hub name or local folder of a causal LM, or embedded:tiny."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--task",))] = EMBEDDED_TASKS
    """Task names; problems are dealt evenly."""
    evaluation_tasks: tuple[str, ...] = ()
    """Tasks whose test problems are asked before and after; none named means those trained on."""
    problems: Annotated[ProblemsConfig, tyro.conf.arg(name="")] = ProblemsConfig()
    chat: ChatConfig = ChatConfig()
    weights: WeightsConfig = WeightsConfig()
    difficulties: tuple[Annotated[int, Field(ge=1, le=5)], ...] = ()
    """Difficulties asked: 1 to 3 of the embedded tasks (the size of the numbers), levels 1 to 5 of MATH; none named means all."""
    regimes: tuple[str, ...] = DEFAULT_REGIMES
    """Regimes, each `constructor`, `constructor(argument=value)` or `name=constructor(argument=value)`."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Run seeds; every regime is trained once per seed."""
    steps: PositiveInt = 30
    """Training steps, the same for every regime."""
    learning_rates: Mapping[str, PositiveFloat] = dataclasses.field(default_factory=dict)
    """Learning rate by regime name where it differs from optimizer.learning_rate. Left empty with the embedded model and
    an unchanged optimizer, the rates that --tune chose for its regimes are used, and recorded."""
    sampling: SamplingConfig = SamplingConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    final_validation_samples: PositiveInt = 8
    """Completions per validation problem of the last checkpoint; the verdict's choice among regimes rests on them."""
    evaluation: EvaluationConfig = EvaluationConfig()
    watch: WatchConfig = WatchConfig()
    stop_on_collapse: bool = False
    """End a run at the first alarm that its output has degenerated; otherwise alarms only warn."""
    microbatch_rows: PositiveInt = 32
    """Rows per forward and backward pass, and more of short responses."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Parallel training processes of one thread each; 0 means one per CPU core (one on another device), and the number used
    is recorded."""
    device: str = "cpu"
    """Torch device."""


@dataclass(frozen=True, config=_strict)
class PretrainConfig:
    """How a base is made. The corpus has its own file: what it is made of is data, not code."""

    architecture: Literal["tiny", "small"] = "tiny"
    """Size of the model: about 0.45 or 2.4 million parameters."""
    corpus: str | None = None
    """TOML file of the corpus mixture; none means the one inside the package."""
    steps: PositiveInt = 4000
    """Optimizer steps."""
    documents_per_step: PositiveInt = 64
    """Documents (prompt and response) per step."""
    microbatch_documents: PositiveInt = 32
    """Documents per forward and backward pass; changes speed and memory, not the gradient."""
    matrix_learning_rate: PositiveFloat = 0.02
    """Peak rate of Muon, for the matrices inside the blocks."""
    learning_rate: PositiveFloat = 3e-3
    """Peak rate of AdamW (betas 0.9 and 0.95), for embeddings and norms."""
    warmup_steps: NonNegativeInt = 50
    """Steps of linear warm-up from a tenth of the peak; a cosine down to 0 follows."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients with a larger Euclidean norm are scaled down to it."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights and of the stream of documents."""
    figure_problems: PositiveInt = 64
    """Test problems per family for the figures on the model card."""
    figure_samples: PositiveInt = 16
    """Samples per problem for the figures on the model card."""
    figure_unsolved_samples: PositiveInt = 256
    """The same for families that the base is not to solve at all."""
    threads: PositiveInt = 2
    """CPU threads of torch; sums depend on it in the last bit."""


PRETRAIN_PRESETS: Mapping[str, PretrainConfig] = MappingProxyType(
    {
        "tiny": PretrainConfig(),
        "reduced": PretrainConfig(steps=1500, figure_problems=16, figure_unsolved_samples=64),
        "small": PretrainConfig(architecture="small", matrix_learning_rate=0.015, learning_rate=2e-3),
    }
)
"""tiny is the base inside the package, reduced the same model with less training and coarser figures, small the larger one."""


C = TypeVar("C")


def as_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values."""
    values: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return values


def build_config(kind: type[C], values: Mapping[str, Any], source: str = "the configuration") -> C:
    """`kind` from nested plain values; raises ConfigError naming the key, the value and the remedy."""
    _reject_unknown_keys(kind, values, source, prefix="")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{source}: {key} = {first['input']!r} cannot be used: {message}") from None


def load_config(kind: type[C], path: str | Path) -> C:
    """`kind` from a TOML file whose keys are the field names; what is left out keeps its default."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}; check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return build_config(kind, values, source=str(path))


def _reject_unknown_keys(kind: Any, values: Mapping[str, Any], source: str, prefix: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            remedy = f"did you mean {prefix}{close[0]}?" if close else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key} = {value!r}; {remedy}")
        default = fields[key].default
        if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
            _reject_unknown_keys(type(default), value, source, prefix=f"{prefix}{key}.")
