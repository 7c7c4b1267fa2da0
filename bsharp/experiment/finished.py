"""A finished comparison on disk, opened again in worker processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bsharp.config import CompareConfig, ConfigError, DiagnoseConfig, EvaluationConfig, build_config
from bsharp.diagnostics.objective_gradients import ObjectiveGradients, objective_gradients
from bsharp.evaluation import problem_set
from bsharp.experiment.setup import BASE, regimes_of, set_threads
from bsharp.experiment.workbench import Workbench, workbench_of
from bsharp.generation import SamplingParams, generator_for
from bsharp.models.adapters import make_policy
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.rollouts import RolloutBatch, build_batch, collect_rollouts
from bsharp.runlog import RunDirectory
from bsharp.seeding import stream_seed

__all__ = ["Comparison", "base_gradients", "in_worker", "open_comparison", "start_of", "training_rollouts"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A finished comparison on disk."""

    run: RunDirectory
    config: CompareConfig

    def folder(self, regime: str, seed: int) -> Path:
        return self.run.path / regime / f"seed_{seed}"

    def records(self) -> dict[str, list[list[dict[str, Any]]]]:
        """Evaluation records of the last checkpoints, by model and seed."""
        base = {BASE: [list(RunDirectory(self.run.path / BASE).rows("records_last.jsonl"))]}
        return base | {
            name: [list(RunDirectory(self.folder(name, seed)).rows("records_last.jsonl")) for seed in self.config.seeds]
            for name in regimes_of(self.config)
        }

    def load_policy(self, folder: Path) -> LanguageModel:
        """The last checkpoint of the run in `folder`, in the precision it was trained in."""
        config = self.config
        return load_language_model(str(folder / "last"), config.weights.dtype, config.device, config.chat)

    def policies(self) -> dict[str, list[Callable[[], LanguageModel]]]:
        """Loaders of the last checkpoints, by regime and seed."""
        return {
            name: [partial(self.load_policy, self.folder(name, seed)) for seed in self.config.seeds]
            for name in regimes_of(self.config)
        }


def open_comparison(path: str | Path) -> Comparison:
    """The finished comparison at `path`. Raises ConfigError, saying what to do, where there is none."""
    folder = Path(path)
    if not (folder / "results.json").exists():
        other = "an unfinished comparison: run the same `bsharp compare` again to finish it"
        if not (folder / BASE).exists():
            other = "no comparison; give the directory of a finished `bsharp compare`"
        raise ConfigError(f"{path} holds {other}")
    run = RunDirectory(folder)
    # The number of workers is not bound to the directory: config.json says "any".
    config = build_config(CompareConfig, run.read_json("config.json") | {"workers": 0}, f"{path}/config.json")
    return Comparison(run, config)


def in_worker(path: str) -> tuple[Comparison, Workbench]:
    """In a worker: the comparison and its workbench. Raises ConfigError where the base is not the comparison's."""
    set_threads(1)
    comparison = open_comparison(path)
    config = comparison.config
    bench = workbench_of(config)
    bound = comparison.run.read_json("manifest.json")["identity"]["base_weights"]
    if bench.base_hash != bound:
        raise ConfigError(
            f"{path} was made from a base with the weights {bound}, {config.model} now has {bench.base_hash}; restore that base"
        )
    return comparison, bench


def training_rollouts(
    comparison: Comparison, bench: Workbench, settings: DiagnoseConfig, policy: LanguageModel
) -> RolloutBatch:
    """Rollouts of `policy` on training problems, drawn as in training; the same problems and streams for every policy."""
    sampling = comparison.config.sampling
    wanted = EvaluationConfig(problems=settings.alignment_problems, split="train", seed=settings.seed)
    groups = collect_rollouts(
        generator_for(policy, sampling.max_rows, sampling.backend),
        policy,
        bench.tasks,
        bench.rewards,
        problem_set(list(bench.tasks.values()), wanted),
        settings.alignment_samples,
        SamplingParams(sampling.max_new_tokens, sampling.temperature, fixed_length=sampling.fixed_length),
        stream_seed(settings.seed, "alignment"),
        step=0,
    )
    return build_batch(groups, policy.pad_token_id)


def start_of(comparison: Comparison, bench: Workbench) -> LanguageModel:
    """The policy as training starts it, equal to the base: what gradients at the base are over.

    The base itself, all of whose weights train; where it is not that model (adapters, a base on another device), a policy made
    from it.
    """
    weights = comparison.config.weights
    if weights.lora_rank is not None or weights.base_device is not None or weights.offload_base:
        return make_policy(bench.base, weights, comparison.config.seeds[0])
    bench.base.model.requires_grad_(True)
    return bench.base


def base_gradients(comparison: Comparison, bench: Workbench, settings: DiagnoseConfig) -> ObjectiveGradients:
    """The gradients of all regimes at the base, on the batch of the alignment."""
    start = start_of(comparison, bench)
    return objective_gradients(
        start,
        bench.base,
        training_rollouts(comparison, bench, settings, start),
        regimes_of(comparison.config),
        comparison.config.algorithm,
        comparison.config.sampling,
        microbatch_rows=comparison.config.microbatch_rows,
        seed=settings.seed,
        megabytes=settings.gradient_megabytes,
    )
