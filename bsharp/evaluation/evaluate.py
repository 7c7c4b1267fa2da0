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
from dataclasses import dataclass
from typing import Any

from bsharp.config import EvaluationConfig
from bsharp.generation.interface import GenerationRequest, Generator, SamplingParams
from bsharp.models.loading import LanguageModel
from bsharp.rewards import RewardFunction
from bsharp.rollouts import completion_logprobs, grade_completions
from bsharp.seeding import stream_seed
from bsharp.tasks import Role, Split, Task
from bsharp.types import Completion, Grade, Problem

__all__ = ["RECORD_SCHEMA", "Evaluation", "Piece", "evaluate", "joined", "problem_set"]

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
    evaluation = Evaluation(
        language_model,
        generator,
        base,
        tasks,
        rewards,
        config,
        microbatch_rows,
        is_base=is_base,
        checkpoint=checkpoint,
    )
    return evaluation.records(on_progress)


@dataclass(frozen=True)
class Piece:
    """Completions that are drawn, graded and scored together: `count` each for the problems at `places` of the set."""

    places: tuple[int, ...]
    count: int
    greedy: bool

    @property
    def rows(self) -> int:
        return len(self.places) * self.count


class Evaluation:
    """`evaluate` with its parts at hand, to be carried out several times, as the policy trains, or piece by piece elsewhere.

    The problems are made and their prompts encoded once; `problems` hands in those of `problem_set(tasks, config)` where
    they are there already. `pieces` follow from the problems and the config alone, and the records of a piece from nothing
    but the piece and the weights: processes that share them out give the very records that one process gives.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        generator: Generator,
        base: LanguageModel | None,
        tasks: Sequence[Task],
        rewards: Mapping[str, RewardFunction],
        config: EvaluationConfig,
        microbatch_rows: int = 64,
        *,
        is_base: bool = False,
        checkpoint: str = "last",
        problems: Sequence[Problem] | None = None,
    ) -> None:
        if is_base and base is not None:
            raise ValueError(
                "is_base says that the policy is the base itself, but another base is given; give one of the two"
            )
        by_name = {task.name: task for task in tasks}
        missing = sorted(set(by_name) - set(rewards))
        if missing:
            raise ValueError(
                f"no reward function for the tasks {', '.join(missing)}; known: {', '.join(sorted(rewards))}"
            )
        self.problems = problem_set(tasks, config) if problems is None else list(problems)
        self._generator, self._base, self._is_base = generator, base, is_base
        self._rewards, self._config, self._microbatch_rows = rewards, config, microbatch_rows
        self._prompts = [
            tuple(language_model.encode(by_name[problem.task].prompt(problem))) for problem in self.problems
        ]
        self._seeds = [stream_seed(config.seed, "evaluation", problem.problem_id) for problem in self.problems]
        self._contexts = [
            _problem_fields(problem, by_name[problem.task], type(rewards[problem.task]).__name__)
            | {"checkpoint": checkpoint}
            for problem in self.problems
        ]
        self.pieces = _pieces(self._prompts, config)

    def records(self, on_progress: Callable[[int, int], None] | None = None) -> list[Record]:
        """The records of all pieces, with the weights that the generator and the language model hold now."""
        total, done, parts = sum(piece.rows for piece in self.pieces), 0, []
        for piece in self.pieces:
            parts.append(self.records_of(piece))
            done += piece.rows
            if on_progress is not None:
                on_progress(done, total)
        return joined(self.pieces, parts)

    def records_of(self, piece: Piece) -> list[list[Record]]:
        """The records of one piece: those of each of its problems, in the order of `piece.places`."""
        config, problems = self._config, [self.problems[place] for place in piece.places]
        prompts = [self._prompts[place] for place in piece.places]
        params = SamplingParams(
            config.max_new_tokens,
            temperature=1.0 if piece.greedy else config.temperature,
            greedy=piece.greedy,
            fixed_length=config.fixed_length,
        )
        requests = [
            GenerationRequest(prompt, piece.count, self._seeds[place])
            for prompt, place in zip(prompts, piece.places, strict=True)
        ]
        completions = self._generator.generate(requests, params)
        grades = grade_completions(self._rewards, problems, completions)
        base_logprobs = self._base_logprobs(prompts, completions, params)
        found = []
        for i, place in enumerate(piece.places):
            context = self._contexts[place] | {"policy_version": self._generator.policy_version}
            drawn = zip(completions[i], grades[i], base_logprobs[i], strict=True)
            found.append([context | _sample_fields(sample, *parts, params) for sample, parts in enumerate(drawn)])
        return found

    def _base_logprobs(
        self, prompts: Sequence[tuple[int, ...]], completions: Sequence[Sequence[Completion]], params: SamplingParams
    ) -> Sequence[Sequence[float | None]]:
        if self._is_base:
            return [[math.fsum(completion.logprobs) for completion in group] for group in completions]
        if self._base is None:
            return [[None] * len(group) for group in completions]
        return completion_logprobs(
            self._base, prompts, completions, params.temperature, params.fixed_length, self._microbatch_rows
        )


def joined(pieces: Sequence[Piece], parts: Sequence[Sequence[Sequence[Record]]]) -> list[Record]:
    """Records of all pieces in the order of the problems, samples first, then greedy; `parts[i]` are those of `pieces[i]`."""
    by_place: dict[int, list[Record]] = {}
    for piece, part in zip(pieces, parts, strict=True):
        for place, records in zip(piece.places, part, strict=True):
            by_place.setdefault(place, []).extend(records)
    return [record for place in sorted(by_place) for record in by_place[place]]


def _pieces(prompts: Sequence[tuple[int, ...]], config: EvaluationConfig) -> tuple[Piece, ...]:
    """At most config.max_rows completions each, of one problem at least; sorted by prompt length to save padding."""
    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    kinds = [(False, config.samples), (True, 1)] if config.greedy else [(False, config.samples)]
    sizes = {greedy: max(1, config.max_rows // count) for greedy, count in kinds}
    return tuple(
        Piece(tuple(order[start : start + sizes[greedy]]), count, greedy)
        for greedy, count in kinds
        for start in range(0, len(order), sizes[greedy])
    )


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
