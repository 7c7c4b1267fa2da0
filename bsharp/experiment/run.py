"""One training run and one evaluation, written into run directories: what `bsharp train` and `bsharp evaluate` do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from bsharp.evaluation import evaluate
from bsharp.experiment.monitors import alarms_for, probe_for
from bsharp.experiment.setup import (
    check_evaluation,
    check_runnable,
    objective_of,
    set_threads,
)
from bsharp.experiment.workbench import Workbench, build_workbench, told_left_out, workbench_of
from bsharp.generation import generator_for
from bsharp.models.adapters import make_policy
from bsharp.models.loading import LanguageModel, load_language_model, weights_hash
from bsharp.runlog import RunDirectory, differences
from bsharp.tasks import Split
from bsharp.training import Progress, Watcher, train_policy

__all__ = ["check_same_run", "evaluate_model", "train", "validation_config", "validation_metrics"]

Record = dict[str, Any]


def train(
    config: TrainConfig,
    out: str | Path,
    workbench: Workbench | None = None,
    watchers: Sequence[Watcher] = (),
    on_alarm: Callable[[str], None] | None = None,
) -> tuple[LanguageModel, Progress]:
    """Train one policy under one objective into the run directory `out`; returns the policy and where it ended.

    A directory that holds an unfinished run of the same config, base and code goes on from its last checkpoint; of a
    different one it is left alone, and ConfigError shows the difference. `on_alarm` is told the sentence of every alarm.
    """
    set_threads(config.threads)
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

    def validate(model: LanguageModel, step: int) -> Mapping[str, float]:
        check = validation_config(config, config.validation.samples)
        records = evaluate(
            model,
            generator,
            bench.base,
            list(bench.tasks.values()),
            bench.rewards,
            check,
            microbatch_rows=config.microbatch_rows,
        )
        return validation_metrics(records)

    progress = train_policy(
        config,
        policy,
        bench.base,
        objective,
        generator,
        bench.tasks,
        bench.rewards,
        run,
        validate,
        watchers,
        probe_for(config, bench.base),
        alarms_for(config, run, on_alarm),
    )
    return policy, progress


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
) -> list[Record]:
    """Records of `model` on `tasks`, also written to `out`/records.jsonl with config and manifest.

    With `base` given its log-probabilities stand beside the model's own, for KL and correlation. A directory that holds
    something else is refused; with `reuse` the records of an equal evaluation that lie there are returned. Raises
    ConfigError where the base has another vocabulary than the model.
    """
    set_threads(threads)
    weights = WeightsConfig(dtype=dtype)
    bench = build_workbench(
        base or model,
        tasks,
        difficulties,
        device,
        problems=problems,
        chat=chat,
        weights=weights,
        splits=(Split(config.split),),
    )
    check_evaluation(config, bench)
    policy = bench.base if base is None else load_language_model(model, dtype, device, chat)
    if policy.tokenizer.get_vocab() != bench.base.tokenizer.get_vocab():
        raise ConfigError(
            f"model = {model!r} and base = {base!r} have different vocabularies, so no log-probability can be compared; "
            "name the base the model was tuned from"
        )
    run = RunDirectory(out)
    settings: dict[str, Any] = {"model": model, "base": base, "tasks": list(tasks), "difficulties": list(difficulties)}
    settings |= {"problems": as_dict(problems), "chat": as_dict(chat), "dtype": dtype}
    ours = bench.manifest(policy_weights=weights_hash(policy.model))
    check_same_run(run, settings | {"evaluation": as_dict(config)}, ours)
    if reuse and (records := list(run.rows("records.jsonl"))):  # replaced in one step: there as a whole or not at all
        return records
    records = evaluate(
        policy,
        generator_for(policy, config.max_rows, config.backend),
        None if base is None else bench.base,
        list(bench.tasks.values()),
        bench.rewards,
        config,
        on_progress,
    )
    run.write_rows("records.jsonl", records)
    return records


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
