"""Regimes by name, and what would stop a run, found out before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bsharp.algorithm import Objective, parse_objective
from bsharp.config import CompareConfig, ConfigError, EvaluationConfig, OptimizerConfig, TrainConfig
from bsharp.evaluation import problem_set
from bsharp.experiment.workbench import Workbench
from bsharp.models.loading import LanguageModel
from bsharp.rewards import FunctionReward, RewardFunction
from bsharp.tasks import ProceduralTask, Split, Task
from bsharp.tasks.listed import ListedTask
from bsharp.training import build_optimizer, check_trainable
from bsharp.training.problems import ProblemStream
from bsharp.types import Completion, FinishReason, GradeStatus, Problem

__all__ = [
    "BASE",
    "check_comparable",
    "check_evaluation",
    "check_runnable",
    "objective_of",
    "regime_of",
    "regimes_of",
    "set_threads",
]

LARGE_MODEL = 10**8
"""Parameters beyond which the default learning rate is refused: it suits models a hundred times smaller."""

ANSWERS_LOOKED_AT = 32
"""Right answers of a file of one's own that are graded against themselves before a run."""

BASE = "base"
"""Name of the untrained model beside the regimes."""


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
    _check_evaluation(config.validation.problems, "validation.problems", list(bench.tasks.values()), Split.VALIDATION)
    _check_length(config.sampling.max_new_tokens, "sampling.max_new_tokens", bench)
    if written := _written(bench.tasks):
        stream = ProblemStream(bench.tasks, config)
        asked = [problem for step in range(1, config.steps + 1) for problem in stream.problems(step)]
        asked += problem_set(written, EvaluationConfig(problems=config.validation.problems, split="validation"))
        _check_answers(asked, bench.rewards)
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
    _check_evaluation(config.problems, f"{prefix}problems", list(tasks.values()), Split(config.split))
    _check_length(config.max_new_tokens, f"{prefix}max_new_tokens", bench)
    if written := _written(tasks):
        asked = problem_set(written, config)
        _check_answers(asked, bench.rewards)
        _check_prompts(asked, tasks, config.max_new_tokens, f"{prefix}max_new_tokens", bench.base)


def _check_evaluation(problems: int, name: str, tasks: Sequence[Task], split: Split) -> None:
    if problems < len(tasks):
        raise ConfigError(f"{name} = {problems} for {len(tasks)} tasks; ask for at least one problem per task")
    listed = [task for task in tasks if isinstance(task, ListedTask)]
    if len(listed) == len(tasks) and not any(task.size(split) for task in listed):
        reasons = "; ".join(f"{task.name}: {task.empty.get(split, 'none in the file')}" for task in listed)
        raise ConfigError(f"there are no {split} problems ({reasons}); a run needs some of every split it asks")


def _check_answers(problems: Sequence[Problem], rewards: Mapping[str, RewardFunction]) -> None:
    """Own files may hold answers that no grader can read: where it is so for all that are looked at, nothing can be learned."""
    mine = [problem for problem in problems if problem.task == "data" and problem.answer][:ANSWERS_LOOKED_AT]
    if not mine or isinstance(rewards["data"], FunctionReward):
        return
    texts = [f"\\boxed{{{problem.answer}}}" for problem in mine]
    grades = rewards["data"](mine, [Completion((), (), FinishReason.EOS, text) for text in texts])
    if all(grade.status is not GradeStatus.CORRECT for grade in grades):
        raise ConfigError(
            f"none of {len(mine)} right answers of data can be read by its grader, e.g. {mine[0].answer[:60]!r} of "
            f"{mine[0].problem_id} ({grades[0].status}); check problems.answer_field, or choose --grader or --reward"
        )


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
