"""config → objects: the base bound by its hash, tasks, graders, generator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bsharp.algorithm import Objective, parse_objective
from bsharp.config import (
    EMBEDDED_TASKS,
    ChatConfig,
    CompareConfig,
    ConfigError,
    EvaluationConfig,
    OptimizerConfig,
    ProblemsConfig,
    TrainConfig,
    WeightsConfig,
)
from bsharp.evaluation import problem_set
from bsharp.models.adapters import check_weights, prepare_base
from bsharp.models.loading import LanguageModel, load_language_model, weights_hash
from bsharp.rewards import RewardFunction, reward_for
from bsharp.runlog import manifest
from bsharp.tasks import DIFFICULTIES, TASK_NAMES, ProceduralTask, Split, Task, load_task
from bsharp.tasks.decontamination import decontaminate
from bsharp.tasks.listed import ListedTask
from bsharp.training import build_optimizer, check_trainable
from bsharp.training.problems import ProblemStream
from bsharp.types import Problem

__all__ = [
    "BASE",
    "Workbench",
    "build_workbench",
    "check_comparable",
    "check_evaluation",
    "check_runnable",
    "load_tasks",
    "objective_of",
    "own_problems_only",
    "regime_of",
    "regimes_of",
    "set_threads",
    "workbench_of",
]

LARGE_MODEL = 10**8
"""Parameters beyond which the default learning rate is refused: it suits models a hundred times smaller."""

BASE = "base"
"""Name of the untrained model beside the regimes."""


@dataclass(frozen=True)
class Workbench:
    """What every run of one comparison shares: the frozen base and what is asked of it."""

    base: LanguageModel
    base_hash: str
    tasks: Mapping[str, Task]  # trained and validated on
    rewards: Mapping[str, RewardFunction]  # of all tasks, those of the evaluation included
    evaluation_tasks: Mapping[str, Task]  # asked before and after
    left_out: Mapping[
        str, int
    ]  # training and validation problems, by task, that stand among the evaluated test problems

    def manifest(self, **extra: Any) -> dict[str, Any]:
        """What a run of this workbench ran on, the problems that were read from files included."""
        parts = [(self.tasks, split) for split in (Split.TRAIN, Split.VALIDATION)] + [
            (self.evaluation_tasks, Split.TEST)
        ]
        read = {
            f"{task.name} {split}": task.listing(split).problems
            for tasks, split in parts
            for task in tasks.values()
            if isinstance(task, ListedTask)
        }
        found = manifest(self.base_hash, **extra)
        if read:
            # Another version of a data set is another run, though its settings are equal.
            found["identity"]["problems"] = {name: _problems_hash(problems) for name, problems in read.items()}
            found["problems"] = {name: len(problems) for name, problems in read.items()} | {
                f"{name}, left out as test problems": count for name, count in self.left_out.items() if count
            }
        return found


def build_workbench(
    model: str,
    task_names: Sequence[str],
    difficulties: Sequence[int] = (),
    device: str = "cpu",
    *,
    problems: ProblemsConfig = ProblemsConfig(),
    chat: ChatConfig = ChatConfig(),
    weights: WeightsConfig = WeightsConfig(),
    evaluation_tasks: Sequence[str] = (),
) -> Workbench:
    """Load base, tasks and graders. Raises ConfigError for anything that cannot be loaded.

    Training and validation problems that stand among the evaluated test problems, of whatever task, are left out.
    """
    check_weights(weights)
    if problems.data is not None and "data" not in (*task_names, *evaluation_tasks):
        raise ConfigError(f"problems.data = {problems.data!r} is asked as the task data; name it among the tasks")
    tasks = load_tasks(task_names, difficulties, problems)
    evaluated = load_tasks(evaluation_tasks, difficulties, problems) if evaluation_tasks else tasks
    tasks, left_out = decontaminate(tasks.values(), evaluated.values())
    rewards = {name: _reward(task, problems) for name, task in (tasks | evaluated).items()}
    base = load_language_model(model, weights.dtype, device, chat)
    base.model.requires_grad_(False)
    base_hash = weights_hash(base.model)
    return Workbench(prepare_base(base, weights), base_hash, tasks, rewards, evaluated, left_out)


def workbench_of(config: TrainConfig | CompareConfig, evaluation_tasks: Sequence[str] = ()) -> Workbench:
    """The workbench that a config asks for; a comparison names its evaluation tasks itself."""
    named = config.evaluation_tasks if isinstance(config, CompareConfig) else evaluation_tasks
    return build_workbench(
        config.model,
        config.tasks,
        config.difficulties,
        config.device,
        problems=config.problems,
        chat=config.chat,
        weights=config.weights,
        evaluation_tasks=named,
    )


def load_tasks(
    names: Sequence[str], difficulties: Sequence[int] = (), problems: ProblemsConfig = ProblemsConfig()
) -> dict[str, Task]:
    """Tasks by name, in order, at the given difficulties (all of them where none is named).

    Raises ConfigError for no task, an unknown one, one named twice or one that cannot be read.
    """
    if not names:
        raise ConfigError(f"tasks = () leaves nothing to ask; known tasks: {', '.join(TASK_NAMES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"tasks = {tuple(names)!r} names a task twice; name each once")
    try:
        tasks = {name: load_task(name, problems) for name in names}
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not difficulties:
        return dict(tasks)
    try:
        return {name: _at_difficulties(task, tuple(difficulties)) for name, task in tasks.items()}
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _at_difficulties(task: Task, difficulties: tuple[int, ...]) -> Task:
    if isinstance(task, ListedTask):
        return task.at_difficulties(difficulties)
    if not isinstance(task, ProceduralTask):
        raise ConfigError(f"difficulties = {difficulties} do not apply to {task.name}; leave them out")
    if beyond := [level for level in difficulties if level not in DIFFICULTIES]:
        raise ConfigError(f"difficulties: {task.name} has no difficulty {beyond[0]}; choose from {list(DIFFICULTIES)}")
    return _AtDifficulties(**vars(task), difficulties=difficulties)


def own_problems_only(names: Sequence[str], problems: ProblemsConfig) -> tuple[str, ...]:
    """The tasks meant where none was named but a file of own problems was given: that file alone."""
    return ("data",) if problems.data is not None and tuple(names) == EMBEDDED_TASKS else tuple(names)


def _problems_hash(problems: Sequence[Problem]) -> str:
    """SHA-256 over what is asked and what is right (16 hex digits)."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(f"{problem.problem_id}\0{problem.question}\0{problem.answer}\n".encode())
    return digest.hexdigest()[:16]


def _reward(task: Task, problems: ProblemsConfig) -> RewardFunction:
    try:
        return reward_for(task, problems)
    except ValueError as error:
        raise ConfigError(str(error)) from None


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
    _check_learning_rate(config, bench)
    _check_evaluation(config.validation.problems, "validation.problems", list(bench.tasks.values()))
    _check_length(config.sampling.max_new_tokens, "sampling.max_new_tokens", bench)
    if written := _written(bench.tasks):
        stream = ProblemStream(bench.tasks, config)
        asked = [problem for step in range(1, config.steps + 1) for problem in stream.problems(step)]
        asked += problem_set(written, EvaluationConfig(problems=config.validation.problems, split="validation"))
        _check_prompts(asked, bench.tasks, config.sampling.max_new_tokens, "sampling.max_new_tokens", bench.base)


def _check_learning_rate(config: TrainConfig, bench: Workbench) -> None:
    """The default rate is the embedded model's. A large model would be ruined by it within a step or two."""
    parameters = sum(parameter.numel() for parameter in bench.base.model.parameters())
    by_default = config.optimizer.learning_rate == OptimizerConfig().learning_rate and config.weights.lora_rank is None
    if by_default and parameters > LARGE_MODEL:
        raise ConfigError(
            f"optimizer.learning_rate = {config.optimizer.learning_rate:g} is the embedded model's rate; {config.model!r} has "
            f"{parameters / 1e9:.1f} billion parameters: set e.g. optimizer.learning_rate = 1e-6, the paper's, or start from a "
            "file of configs/paper"
        )


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
    check_evaluation(evaluation, bench, "evaluation.")


def check_evaluation(config: EvaluationConfig, bench: Workbench, prefix: str = "") -> None:
    """Raises ConfigError for an evaluation that could not be carried out."""
    tasks = bench.evaluation_tasks
    _check_evaluation(config.problems, f"{prefix}problems", list(tasks.values()))
    _check_length(config.max_new_tokens, f"{prefix}max_new_tokens", bench)
    if written := _written(tasks):
        asked = problem_set(written, config)
        _check_prompts(asked, tasks, config.max_new_tokens, f"{prefix}max_new_tokens", bench.base)


def _check_evaluation(problems: int, name: str, tasks: Sequence[Task]) -> None:
    if problems < len(tasks):
        raise ConfigError(f"{name} = {problems} for {len(tasks)} tasks; ask for at least one problem per task")


def _written(tasks: Mapping[str, Task]) -> list[Task]:
    """The tasks whose problems come from files; the embedded ones have thousands, short by construction."""
    return [task for task in tasks.values() if not isinstance(task, ProceduralTask)]


def _check_prompts(
    problems: Sequence[Problem], tasks: Mapping[str, Task], max_new_tokens: int, name: str, base: LanguageModel
) -> None:
    """Every prompt must leave room for its response: found out before the first step, not in the middle of a run."""
    context = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    distinct = {problem.problem_id: problem for problem in problems}
    for problem in distinct.values():
        length = len(base.encode(tasks[problem.task].prompt(problem)))
        if context is not None and length + max_new_tokens > context:
            raise ConfigError(
                f"the prompt of {problem.problem_id} has {length} tokens, which with {name} = {max_new_tokens} exceed the "
                f"model's {context} positions; lower {name}, or leave the problem out"
            )


def _check_length(tokens: int, name: str, bench: Workbench) -> None:
    context = getattr(bench.base.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens >= context:
        raise ConfigError(f"{name} = {tokens} leaves no room for a prompt in the model's {context} positions; lower it")


def set_threads(threads: int) -> None:
    """CPU threads of torch for everything that follows in this process."""
    torch.set_num_threads(threads)
