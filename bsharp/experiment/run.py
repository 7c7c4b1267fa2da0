"""One training run and one evaluation, written into run directories: what `bsharp train` and `bsharp evaluate` do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bsharp.config import (
    ChatConfig,
    ConfigError,
    EvaluationConfig,
    ProblemsConfig,
    TrainConfig,
    WeightsConfig,
    as_dict,
)
from bsharp.evaluation.evaluate import Evaluation, Piece
from bsharp.experiment.measured import settled
from bsharp.experiment.monitors import alarms_for, probe_for
from bsharp.experiment.saved import SavedEvaluation, evaluate_among
from bsharp.experiment.setup import (
    check_evaluation,
    check_runnable,
    objective_of,
    set_threads,
)
from bsharp.experiment.workbench import Workbench, build_workbench, told_left_out, workbench_of
from bsharp.experiment.workers import evaluation_workers
from bsharp.generation import Generator, generator_for
from bsharp.models.adapters import make_policy
from bsharp.models.loading import LanguageModel, weights_hash
from bsharp.models.placement import release_cached_memory
from bsharp.models.products import ProductLibrary, set_product_library
from bsharp.runlog import RunDirectory, differences
from bsharp.tasks import Split
from bsharp.training import Progress, Watcher, train_policy

__all__ = [
    "EvaluationPlan",
    "EvaluationRequest",
    "LastCheck",
    "check_same_run",
    "evaluate_model",
    "plan_evaluation",
    "train",
    "validation_config",
    "validation_metrics",
]

Record = dict[str, Any]


def train(
    config: TrainConfig,
    out: str | Path,
    workbench: Workbench | None = None,
    watchers: Sequence[Watcher] = (),
    on_alarm: Callable[[str], None] | None = None,
    last_check: LastCheck | None = None,
) -> tuple[LanguageModel, Progress]:
    """Train one policy under one objective into the run directory `out`; returns the policy and where it ended.

    A directory that holds an unfinished run of the same config, base and code goes on from its last checkpoint; of a
    different one it is left alone, and ConfigError shows the difference. `on_alarm` is told the sentence of every alarm.
    `last_check` asks for more completions of the validation after the last step, and is given its records.
    """
    set_threads(config.threads)
    config = replace(config, weights=settled(config.weights, config.model, config.device, out))
    bench = workbench or workbench_of(config)
    check_runnable(config, bench)
    objective = objective_of(config.objective)
    run = RunDirectory(out)
    ours = bench.manifest()
    check_same_run(run, as_dict(config), ours)
    if workbench is None and on_alarm and (left_out := ours.get("problems_left_out")):
        on_alarm(told_left_out(left_out))
    policy = make_policy(bench.base, config.weights, config.seed)
    generator = generator_for(policy, config.sampling.max_rows, config.sampling.backend)
    progress = train_policy(
        config,
        policy,
        bench.base,
        objective,
        generator,
        bench.tasks,
        bench.rewards,
        run,
        _Validation(config, bench, policy, generator, last_check),
        watchers,
        probe_for(config, bench.base),
        alarms_for(config, run, on_alarm),
    )
    return policy, progress


@dataclass
class LastCheck:
    """The validation after a run's last step: `samples` completions per problem, and what came of them.

    Where the run ended before that step, or had ended when it was called again, `records` stays None.
    """

    samples: int
    records: list[Record] | None = None


class _Validation:
    """(policy, step) → validation metrics of a run: the same problems and random streams at every check."""

    def __init__(
        self,
        config: TrainConfig,
        bench: Workbench,
        policy: LanguageModel,
        generator: Generator,
        last_check: LastCheck | None,
    ) -> None:
        self._config, self._bench, self._policy, self._generator = config, bench, policy, generator
        self._last_check = last_check
        self._evaluations: dict[int, Evaluation] = {}

    def __call__(self, model: LanguageModel, step: int) -> Mapping[str, float]:
        config, samples = self._config, self._config.validation.samples
        if step == 0:
            # Whole weights start as the base's, whatever the objective and the seed.
            key = repr((validation_config(config, samples), config.microbatch_rows, config.threads, config.weights))
            if config.weights.lora_rank is not None or key not in self._bench.at_start:
                self._bench.at_start[key] = validation_metrics(self._records(samples))
            return self._bench.at_start[key]
        if step < config.steps or self._last_check is None:
            return validation_metrics(self._records(samples))
        # The first samples are the same whatever the number: a random stream belongs to each problem.
        records = self._records(max(samples, self._last_check.samples))
        self._last_check.records = [record for record in records if record["sample"] < self._last_check.samples]
        return validation_metrics([record for record in records if record["sample"] < samples])

    def _records(self, samples: int) -> list[Record]:
        if samples not in self._evaluations:
            made = [evaluation.problems for evaluation in self._evaluations.values()]
            self._evaluations[samples] = Evaluation(
                self._policy,
                self._generator,
                self._bench.base,
                list(self._bench.tasks.values()),
                self._bench.rewards,
                validation_config(self._config, samples),
                self._config.microbatch_rows,
                problems=made[0] if made else None,
            )
        return self._evaluations[samples].records()


def evaluate_model(
    model: str,
    tasks: Sequence[str],
    config: EvaluationConfig,
    out: str | Path,
    base: str | None = None,
    difficulties: Sequence[int] = (),
    threads: int = 1,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
    reuse: bool = False,
    *,
    problems: ProblemsConfig = ProblemsConfig(),
    chat: ChatConfig = ChatConfig(),
    dtype: Literal["float32", "bfloat16"] = "float32",
    workers: int = 1,
) -> list[Record]:
    """Records of `model` on `tasks`, also written to `out`/records.jsonl with config and manifest.

    With `base` given its log-probabilities stand beside the model's own, for KL and correlation. A directory that holds
    something else is refused; with `reuse` the records of an equal evaluation that lie there are returned. `workers`
    processes of `threads` threads share the work, 0 as many as the CPU's cores and the memory allow; the records do not depend
    on it. Raises ConfigError where the base has another vocabulary than the model.
    """
    request = EvaluationRequest(
        model,
        tuple(tasks),
        config,
        str(out),
        base,
        tuple(difficulties),
        threads,
        device,
        problems,
        chat,
        dtype,
        workers,
    )
    bound = _bound(request, lambda arguments: build_workbench(**arguments))
    run = RunDirectory(out)
    if reuse and (records := list(run.rows("records.jsonl"))):  # replaced in one step: there as a whole or not at all
        return records
    plan, evaluation = _planned(request, bound)
    if plan.workers == 1:
        records = evaluation.records(on_progress)
    else:
        set_product_library(plan.library)  # each would choose its own, and last bits with it
        del evaluation, bound  # the workers may need the memory
        release_cached_memory()
        records = evaluate_among(plan.workers, plan.evaluation, plan.pieces, on_progress)
    run.write_rows("records.jsonl", records)
    return records


@dataclass(frozen=True)
class EvaluationRequest:
    """What `evaluate_model` is asked for."""

    model: str
    tasks: tuple[str, ...]
    config: EvaluationConfig
    out: str
    base: str | None
    difficulties: tuple[int, ...]
    threads: int
    device: str
    problems: ProblemsConfig
    chat: ChatConfig
    dtype: Literal["float32", "bfloat16"]
    workers: int


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation that can be carried out and has its directory: what processes that share it must know."""

    evaluation: SavedEvaluation
    pieces: tuple[Piece, ...]
    workers: int  # processes that are to share the pieces
    library: ProductLibrary
    out: str


def plan_evaluation(
    request: EvaluationRequest, build: Callable[[Mapping[str, Any]], Workbench]
) -> tuple[EvaluationPlan, Evaluation]:
    """All that comes before anything is drawn, with the workbench that `build` gives; the evaluation, opened."""
    return _planned(request, _bound(request, build))


@dataclass(frozen=True)
class _Bound:
    """An evaluation with its models, after it has been found possible and its directory bound to it."""

    asked: SavedEvaluation
    bench: Workbench
    policy: LanguageModel
    library: ProductLibrary


def _bound(request: EvaluationRequest, build: Callable[[Mapping[str, Any]], Workbench]) -> _Bound:
    set_threads(request.threads)
    model, base, config = request.model, request.base, request.config
    arguments: dict[str, Any] = {
        "model": base or model,
        "task_names": request.tasks,
        "difficulties": request.difficulties,
        "device": request.device,
        "problems": request.problems,
        "chat": request.chat,
        "weights": WeightsConfig(dtype=request.dtype),
        "splits": (Split(config.split),),
    }
    asked = SavedEvaluation(
        arguments, None if base is None else model, "none" if base is None else "scored", config, request.threads
    )
    bench = build(arguments)
    check_evaluation(config, bench)
    policy = asked.load_policy(bench)
    if policy.tokenizer.get_vocab() != bench.base.tokenizer.get_vocab():
        raise ConfigError(
            f"model = {model!r} and base = {base!r} have different vocabularies, so no log-probability can be compared; "
            "name the base the model was tuned from"
        )
    settings: dict[str, Any] = {"model": model, "base": base, "tasks": list(request.tasks)}
    settings |= {"difficulties": list(request.difficulties), "problems": as_dict(request.problems)}
    settings |= {"chat": as_dict(request.chat), "dtype": request.dtype, "evaluation": as_dict(config)}
    ours = bench.manifest(policy_weights=weights_hash(policy.model))
    check_same_run(RunDirectory(request.out), settings, ours)
    return _Bound(asked, bench, policy, ours["precision"]["float32_products"])


def _planned(request: EvaluationRequest, bound: _Bound) -> tuple[EvaluationPlan, Evaluation]:
    """How the pieces of the evaluation are to be shared; the evaluation, opened."""
    asked = bound.asked
    evaluation = asked.opened(bound.bench, bound.policy)
    models = {id(model): model for model in (bound.policy.model, bound.bench.base.model)}
    count = evaluation_workers(
        request.workers,
        request.device,
        request.threads,
        sum(not piece.greedy for piece in evaluation.pieces),
        sum(map(_megabytes, models.values())),
    )
    return EvaluationPlan(asked, evaluation.pieces, count, bound.library, request.out), evaluation


def _megabytes(model: Any) -> float:
    return float(sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6)


def check_same_run(run: RunDirectory, config: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Bind a new directory to config and manifest; refuse one that is bound to others, showing what differs."""
    there = run.read_json("config.json")
    if there is None:
        if any(path.suffix == ".jsonl" for path in run.path.iterdir()):
            raise ConfigError(f"{run.path} holds records but no config.json; choose another directory")
        run.write_json("manifest.json", ours)
        run.write_json("config.json", config)
        return
    lines = differences(config, there)
    lines += differences(ours["identity"], run.read_json("manifest.json")["identity"], "manifest.")
    if lines:
        shown = "; ".join(lines[:6]) + (f"; and {len(lines) - 6} more" if len(lines) > 6 else "")
        raise ConfigError(
            f"{run.path} belongs to another run ({shown}); name another directory with --out (or --name), or delete this one"
        )


def validation_metrics(records: Sequence[Record]) -> dict[str, float]:
    """Share of the graded completions that are correct (NaN where none could be graded) and KL to the base, on validation
    problems. Correct is what the evaluation counts too; of a reward with values in between, what lies above one half."""
    rewards = [record["status"] == "correct" for record in records if record["reward"] is not None]
    kl = [record["logprob"] - record["base_logprob"] for record in records]
    return {
        "validation/accuracy": sum(rewards) / len(rewards) if rewards else math.nan,
        "validation/kl(policy||base)/k1_nats_per_sequence": sum(kl) / len(kl),
    }


def validation_config(config: TrainConfig, samples: int) -> EvaluationConfig:
    """The run's validation problems with `samples` completions each, drawn as in training."""
    return EvaluationConfig(
        problems=config.validation.problems,
        samples=samples,
        temperature=config.sampling.temperature,
        max_new_tokens=config.sampling.max_new_tokens,
        fixed_length=config.sampling.fixed_length,
        greedy=False,
        split="validation",
        max_rows=config.sampling.max_rows,
        backend=config.sampling.backend,
    )
