"""config → objects: the base bound by its hash, tasks, graders, generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bsharp.algorithm import Objective, parse_objective
from bsharp.config import CompareConfig, ConfigError, EvaluationConfig, TrainConfig
from bsharp.generation import Decoder, Generator
from bsharp.models.loading import LanguageModel, load_language_model, weights_hash
from bsharp.rewards import RewardFunction, reward_for
from bsharp.tasks import TASK_NAMES, ProceduralTask, Split, Task, load_task
from bsharp.training import build_optimizer, check_trainable
from bsharp.types import Problem

__all__ = [
    "BASE",
    "Workbench",
    "build_workbench",
    "check_comparable",
    "check_evaluation",
    "check_runnable",
    "decoder_for",
    "load_tasks",
    "objective_of",
    "regime_of",
    "regimes_of",
    "set_threads",
]

BASE = "base"
"""Name of the untrained model beside the regimes."""


@dataclass(frozen=True)
class Workbench:
    """What every run of one comparison shares: the frozen base and what is asked of it."""

    base: LanguageModel
    base_hash: str
    tasks: Mapping[str, Task]
    rewards: Mapping[str, RewardFunction]


def build_workbench(
    model: str, task_names: Sequence[str], difficulties: Sequence[int] = (), device: str = "cpu"
) -> Workbench:
    """Load base, tasks and graders. Raises ConfigError for anything that cannot be loaded."""
    tasks = load_tasks(task_names, difficulties)
    base = load_language_model(model, device=device)
    base.model.requires_grad_(False)
    rewards = {name: reward_for(task) for name, task in tasks.items()}
    return Workbench(base, weights_hash(base.model), tasks, rewards)


def load_tasks(names: Sequence[str], difficulties: Sequence[int] = ()) -> dict[str, Task]:
    """Tasks by name, in order, at the given difficulties (all of them where none is named).

    Raises ConfigError for no task, an unknown one or one named twice.
    """
    if not names:
        raise ConfigError(f"tasks = () leaves nothing to ask; known tasks: {', '.join(TASK_NAMES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"tasks = {tuple(names)!r} names a task twice; name each once")
    try:
        tasks = {name: load_task(name) for name in names}
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not difficulties:
        return dict(tasks)
    return {name: _AtDifficulties(**vars(task), difficulties=tuple(difficulties)) for name, task in tasks.items()}


@dataclass(frozen=True, eq=False)
class _AtDifficulties(ProceduralTask):
    """A task of which only some difficulties are asked."""

    difficulties: tuple[int, ...] = ()

    def problems(
        self,
        split: Split | str,
        count: int,
        seed: int,
        families: Sequence[str] | None = None,
        difficulties: Sequence[int] | None = None,
    ) -> list[Problem]:
        return super().problems(split, count, seed, families, difficulties or self.difficulties)


def regime_of(spec: str) -> tuple[str, Objective]:
    """Name and objective of a regime spec; ConfigError where it cannot be read."""
    try:
        return parse_objective(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def regimes_of(config: CompareConfig) -> dict[str, Objective]:
    """Objectives by regime name, in order. Raises ConfigError for none, one that cannot be read, or a name twice."""
    if not config.regimes:
        raise ConfigError("regimes = () leaves nothing to compare; name at least one, e.g. task_reward")
    regimes: dict[str, Objective] = {}
    for spec in config.regimes:
        name, objective = regime_of(spec)
        if name in regimes or name == BASE:
            raise ConfigError(
                f"regimes: the name {name!r} is taken; write other_name={spec.partition('=')[0]}(…) for {spec!r}"
            )
        regimes[name] = objective
    unknown = sorted(set(config.learning_rates) - set(regimes))
    if unknown:
        raise ConfigError(
            f"learning_rates names {unknown[0]!r}, which is no regime of this run; regimes: {', '.join(regimes)}"
        )
    return regimes


def objective_of(spec: str) -> Objective:
    """The objective of a regime spec; ConfigError where it cannot be read."""
    return regime_of(spec)[1]


def check_runnable(config: TrainConfig, bench: Workbench) -> None:
    """Find out before anything is written what would stop a run later. Raises ConfigError with the remedy."""
    check_trainable(config)
    for spec in (config.objective, *config.watch.objectives):
        regime_of(spec)
    build_optimizer([torch.nn.Parameter(torch.zeros(2, 2))], config.optimizer)
    _check_evaluation(config.validation.problems, "validation.problems", bench)
    _check_length(config.sampling.max_new_tokens, "sampling.max_new_tokens", bench)


def check_comparable(config: CompareConfig, bench: Workbench) -> None:
    """What a comparison asks beyond its runs: evaluation on test problems, drawn as the policies were trained."""
    evaluation, sampling = config.evaluation, config.sampling
    if evaluation.split != "test":
        raise ConfigError(
            f"evaluation.split = {evaluation.split!r}: a comparison is judged on test problems, because validation chooses "
            "checkpoints and rivals; leave it at test (`bsharp evaluate` takes any split)"
        )
    if evaluation.fixed_length != sampling.fixed_length:
        raise ConfigError(
            f"evaluation.fixed_length = {evaluation.fixed_length} but sampling.fixed_length = {sampling.fixed_length}: "
            "policies would be evaluated under another distribution than they were trained on; set both alike"
        )
    if evaluation.max_new_tokens < sampling.max_new_tokens:
        raise ConfigError(
            f"evaluation.max_new_tokens = {evaluation.max_new_tokens} would cut responses that training allows "
            f"sampling.max_new_tokens = {sampling.max_new_tokens}; raise it"
        )
    _check_evaluation(evaluation.problems, "evaluation.problems", bench)
    _check_length(evaluation.max_new_tokens, "evaluation.max_new_tokens", bench)


def check_evaluation(config: EvaluationConfig, bench: Workbench) -> None:
    """Raises ConfigError for an evaluation that could not be carried out."""
    _check_evaluation(config.problems, "problems", bench)
    _check_length(config.max_new_tokens, "max_new_tokens", bench)


def _check_evaluation(problems: int, name: str, bench: Workbench) -> None:
    if problems < len(bench.tasks):
        raise ConfigError(f"{name} = {problems} for {len(bench.tasks)} tasks; ask for at least one problem per task")


def _check_length(tokens: int, name: str, bench: Workbench) -> None:
    context = getattr(bench.base.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens >= context:
        raise ConfigError(f"{name} = {tokens} leaves no room for a prompt in the model's {context} positions; lower it")


def decoder_for(language_model: LanguageModel, max_rows: int = 512, policy_version: int = 0) -> Generator:
    """The built-in generator on this very model: its weights are always the current ones."""
    generator = Decoder(language_model, max_rows)
    generator.sync_weights(language_model.model, policy_version)
    return generator


def set_threads(threads: int) -> None:
    """CPU threads of torch for everything that follows in this process."""
    torch.set_num_threads(threads)
