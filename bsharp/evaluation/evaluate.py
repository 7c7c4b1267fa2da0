"""Policy × problems → records: every sample with all that is needed to recompute any figure without the model.

A record is a plain JSON object, one per completion. Version 1 of its schema:

| key | value |
|---|---|
| schema | 1 |
| checkpoint | which weights of a run these are, e.g. `last` or `best` |
| problem_id, task, family, difficulty | which problem |
| role | the family's: standard, rare, unsolved or transfer; none where the task has no families |
| mode | of standard and transfer families: whether the strategy the base prefers is, by construction, right or wrong; else none |
| question, gold | what was asked and the right answer |
| sample | index of the sample, 0 … n − 1; 0 for the greedy completion |
| greedy | true for the one greedy completion of a problem, false for the n samples |
| policy_version, temperature, fixed_length | how it was drawn; a greedy completion has temperature null |
| token_ids, text, finish_reason | the response as sampled (EOS included), decoded, and `eos` or `length` (truncated) |
| length | response tokens, EOS included |
| logprob | log-probability of the whole response under the evaluated policy, nats, at the sampling temperature |
| base_logprob | the same under the base; equals logprob where the policy is the base; null where no base was given |
| status, detail | the grade: correct, wrong, unparseable, timeout or error, and why |
| answer | the extracted answer in canonical form, or null |
| reward | in [0, 1], or null where the grader could say nothing (timeout, error) |
| exact_match | the extracted answer equals the gold answer as a string |
| grader | class of the reward function |

Log-probabilities of greedy completions are at temperature 1. Under fixed_length both log-probabilities are of the
distribution in which EOS is masked out and the rest renormalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bsharp.config import EvaluationConfig
from bsharp.generation.interface import GenerationRequest, Generator, SamplingParams
from bsharp.models.loading import LanguageModel
from bsharp.rewards import RewardFunction
from bsharp.rollouts import completion_logprobs, grade_completions
from bsharp.seeding import stream_seed
from bsharp.tasks import Role, Split, Task
from bsharp.types import Completion, Grade, Problem

__all__ = ["RECORD_SCHEMA", "evaluate", "problem_set"]

RECORD_SCHEMA = 1

Record = dict[str, Any]


def problem_set(tasks: Sequence[Task], config: EvaluationConfig) -> list[Problem]:
    """The `config.problems` problems of `config.split`: dealt evenly to the tasks, and by each task to its families.

    Where the number does not divide, the first tasks get one more. A public data set with fewer problems than its share gives
    all it has and the others take the rest, so that there are fewer where all tasks together have fewer. The set depends on
    the tasks, the split, the number and config.seed alone, so every model meets the same problems. Raises ValueError where
    there are fewer problems than tasks, or no task.
    """
    if not tasks:
        raise ValueError("no task to evaluate on; give at least one")
    if config.problems < len(tasks):
        raise ValueError(f"{config.problems} problems for {len(tasks)} tasks; ask for at least one problem per task")
    split = Split(config.split)
    # Procedural families hold thousands; counting them takes a second in every process.
    sizes = [math.inf if task.families else task.size(split) for task in tasks]
    problems = [
        problem
        for task, count in zip(tasks, _shares(config.problems, sizes), strict=True)
        for problem in task.problems(split, count, config.seed)
    ]
    if len({problem.problem_id for problem in problems}) < len(problems):
        raise ValueError("two problems have the same problem_id; ids must be unique across the evaluated tasks")
    return problems


def _shares(wanted: int, sizes: Sequence[float]) -> list[int]:
    """`wanted` dealt evenly, no share beyond its size; what one cannot take goes to the others."""
    shares = [0] * len(sizes)
    while wanted and (takers := [task for task, size in enumerate(sizes) if shares[task] < size]):
        even, rest = divmod(wanted, len(takers))
        for turn, task in enumerate(takers):
            given = int(min(even + (turn < rest), sizes[task] - shares[task]))
            shares[task] += given
            wanted -= given
    return shares


def evaluate(
    language_model: LanguageModel,
    generator: Generator,
    base: LanguageModel | None,
    tasks: Sequence[Task],
    rewards: Mapping[str, RewardFunction],
    config: EvaluationConfig,
    on_progress: Callable[[int, int], None] | None = None,
    microbatch_rows: int = 64,
    *,
    is_base: bool = False,
    checkpoint: str = "last",
) -> list[Record]:
    """Records of n samples, and of one greedy completion where config.greedy, for every problem of the set.

    `generator` must already hold the weights of `language_model`. `base` scores the samples a second time; where it
    is None, base_logprob is null, or logprob where `is_base` says that the policy is the base. The random stream of a
    problem is named by config.seed and problem_id alone: models evaluated with an equal config meet the same problems on
    the same streams, so their differences are paired.

    `on_progress(done, total)` counts completions. Records come in the order of the problems, samples first, then
    greedy. `checkpoint` names the evaluated weights in the records. Raises ValueError where a task has no reward function,
    or where both `base` and `is_base` are given.
    """
    if is_base and base is not None:
        raise ValueError(
            "is_base says that the policy is the base itself, but another base is given; give one of the two"
        )
    by_name = {task.name: task for task in tasks}
    missing = sorted(set(by_name) - set(rewards))
    if missing:
        raise ValueError(f"no reward function for the tasks {', '.join(missing)}; known: {', '.join(sorted(rewards))}")
    problems = problem_set(tasks, config)
    prompts = [tuple(language_model.encode(by_name[problem.task].prompt(problem))) for problem in problems]
    total = len(problems) * (config.samples + config.greedy)
    done = 0
    records: dict[int, list[Record]] = {place: [] for place in range(len(problems))}
    passes = [(False, config.samples), (True, 1)] if config.greedy else [(False, config.samples)]
    for greedy, count in passes:
        params = SamplingParams(
            config.max_new_tokens,
            temperature=1.0 if greedy else config.temperature,
            greedy=greedy,
            fixed_length=config.fixed_length,
        )
        for places in _chunks(prompts, max(1, config.max_rows // count)):
            requests = [
                GenerationRequest(prompts[p], count, stream_seed(config.seed, "evaluation", problems[p].problem_id))
                for p in places
            ]
            completions = generator.generate(requests, params)
            here = [problems[p] for p in places]
            grades = grade_completions(rewards, here, completions)
            base_logprobs: Sequence[Sequence[float | None]] = [[None] * count for _ in places]
            if is_base:
                base_logprobs = [[math.fsum(completion.logprobs) for completion in group] for group in completions]
            elif base is not None:
                base_logprobs = completion_logprobs(
                    base,
                    [prompts[p] for p in places],
                    completions,
                    params.temperature,
                    params.fixed_length,
                    microbatch_rows,
                )
            for i, place in enumerate(places):
                problem = problems[place]
                context = _problem_fields(problem, by_name[problem.task], type(rewards[problem.task]).__name__)
                context |= {"checkpoint": checkpoint, "policy_version": generator.policy_version}
                for sample, (completion, grade) in enumerate(zip(completions[i], grades[i], strict=True)):
                    drawn = _sample_fields(sample, completion, grade, base_logprobs[i][sample], params)
                    records[place].append(context | drawn)
            done += len(places) * count
            if on_progress is not None:
                on_progress(done, total)
    return [record for place in range(len(problems)) for record in records[place]]


def _chunks(prompts: Sequence[tuple[int, ...]], size: int) -> list[list[int]]:
    """Places of the problems, `size` at a time, sorted by prompt length to save padding."""
    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _problem_fields(problem: Problem, task: Task, grader: str) -> Record:
    family = task.families.get(problem.family)  # a task may have no families of its own
    return {
        "schema": RECORD_SCHEMA,
        "problem_id": problem.problem_id,
        "task": problem.task,
        "family": problem.family,
        "role": "none" if family is None else str(family.role),
        "mode": "none" if family is None or family.role not in (Role.STANDARD, Role.TRANSFER) else str(family.mode),
        "difficulty": problem.difficulty,
        "question": problem.question,
        "gold": problem.answer,
        "grader": grader,
    }


def _sample_fields(
    sample: int, completion: Completion, grade: Grade, base_logprob: float | None, params: SamplingParams
) -> Record:
    return {
        "sample": sample,
        "greedy": params.greedy,
        "temperature": None if params.greedy else params.temperature,
        "fixed_length": params.fixed_length,
        "token_ids": list(completion.token_ids),
        "text": completion.text,
        "finish_reason": str(completion.finish_reason),
        "length": len(completion.token_ids),
        "logprob": math.fsum(completion.logprobs),
        "base_logprob": base_logprob,
        "status": str(grade.status),
        "detail": grade.detail,
        "answer": grade.answer,
        "reward": None if grade.reward is None else float(grade.reward),
        "exact_match": grade.exact_match,
    }
