"""From a model to records, with the built-in decoder and a small random model."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bsharp.config import EvaluationConfig
from bsharp.evaluation import evaluate, problem_set, summarize
from bsharp.evaluation.evaluate import _shares
from bsharp.generation import Decoder
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import response_logprobs
from bsharp.tasks import Split
from bsharp.types import Completion, Grade, GradeStatus, Problem

EOS = 1
CONFIG = EvaluationConfig(problems=7, samples=3, max_new_tokens=5, seed=4, max_rows=6)


class DigitTokenizer:
    """One token per character: digit d is token 2 + d."""

    def encode(self, text: str) -> list[int]:
        return [2 + int(character) for character in text]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(str(token - 2) for token in token_ids if token > EOS)


class DigitTask:
    """Problem i asks for the digit i % 10; difficulties vary the prompt's length."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.families = {
            "odd": SimpleNamespace(role="rare", mode="right"),
            "even": SimpleNamespace(role="transfer", mode="wrong"),
        }

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        return [
            Problem(f"{self.name}/{split}/{seed}/{i}", self.name, ("even", "odd")[i % 2], str(i), str(i % 10), i % 3)
            for i in range(count)
        ]

    def size(self, split: Split) -> int:
        return 1000

    def prompt(self, problem: Problem) -> str:
        return problem.question * (1 + problem.difficulty)


class FirstDigitReward:
    """The first digit of the text is the answer; an empty text cannot be graded, nor can one that ends in 9."""

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        return [self.grade(*pair) for pair in zip(problems, completions, strict=True)]

    def grade(self, problem: Problem, completion: Completion) -> Grade:
        if not completion.text:
            return Grade(GradeStatus.UNPARSEABLE, 0.0)
        if completion.text[-1] == "9":
            return Grade(GradeStatus.TIMEOUT, None, detail="too slow")
        right = completion.text[0] == problem.answer
        return Grade(GradeStatus.CORRECT if right else GradeStatus.WRONG, float(right), completion.text[0], "", right)


def random_model(seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    tokenizer: Any = DigitTokenizer()
    return LanguageModel(LlamaForCausalLM(config).eval(), tokenizer, (EOS,), 0, "random")


TASKS: Any = [DigitTask("first"), DigitTask("second")]
REWARDS: Any = {"first": FirstDigitReward(), "second": FirstDigitReward()}


def run(
    policy: LanguageModel, base: LanguageModel | None, tasks: Any = None, is_base: bool = False, **changes: Any
) -> list[dict[str, Any]]:
    config = EvaluationConfig(**({key: getattr(CONFIG, key) for key in CONFIG.__dataclass_fields__} | changes))
    return evaluate(policy, Decoder(policy), base, tasks or TASKS, REWARDS, config, is_base=is_base)


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return random_model(0)


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    return random_model(1)


def test_problems_are_dealt_evenly_and_the_first_task_takes_the_remainder() -> None:
    assert [problem.task for problem in problem_set(TASKS, CONFIG)] == ["first"] * 4 + ["second"] * 3
    with pytest.raises(ValueError, match="at least one problem per task"):
        problem_set(TASKS, EvaluationConfig(problems=1))
    with pytest.raises(ValueError, match="ids must be unique"):
        problem_set([TASKS[0], TASKS[0]], CONFIG)


def test_every_problem_gets_n_samples_and_one_greedy_completion_in_order(policy: Any, base: Any) -> None:
    records = run(policy, base)
    expected = [
        (problem.problem_id, sample, greedy)
        for problem in problem_set(TASKS, CONFIG)
        for sample, greedy in [(0, False), (1, False), (2, False), (0, True)]
    ]
    assert [(record["problem_id"], record["sample"], record["greedy"]) for record in records] == expected
    shown = {(record["family"], record["role"], record["mode"]) for record in records}
    assert shown == {("odd", "rare", "none"), ("even", "transfer", "wrong")}  # what the base prefers matters elsewhere
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert summarize([records], run(base, None, is_base=True))["counts"]["samples_per_problem"] == 3
    assert not any(record["greedy"] for record in run(policy, base, greedy=False))


@pytest.mark.parametrize("fixed_length", [False, True])
def test_both_log_probabilities_are_those_of_the_sampled_tokens(policy: Any, base: Any, fixed_length: bool) -> None:
    records = run(policy, base, temperature=0.7, fixed_length=fixed_length)
    prompts = {problem.problem_id: TASKS[0].prompt(problem) for problem in problem_set(TASKS, CONFIG)}
    for record in records:
        temperature = 1.0 if record["greedy"] else 0.7
        assert record["temperature"] == (None if record["greedy"] else 0.7)
        response = torch.tensor([record["token_ids"]])
        prompt = [policy.encode(prompts[record["problem_id"]])]
        mask = torch.ones_like(response, dtype=torch.bool)
        for model, key in ((policy, "logprob"), (base, "base_logprob")):
            expected = float(response_logprobs(model, prompt, response, mask, temperature, fixed_length).sum())
            assert record[key] == pytest.approx(expected, abs=1e-4)
        assert record["length"] == len(record["token_ids"]) == (5 if fixed_length else record["length"])
        assert (record["finish_reason"] == "eos") == (record["token_ids"][-1] == EOS)
        assert record["text"] == policy.decode(record["token_ids"])


def test_the_base_is_its_own_base_and_without_a_base_nothing_is_said(policy: Any) -> None:
    records = run(policy, None, is_base=True)
    assert all(record["base_logprob"] == record["logprob"] for record in records)
    twin = run(policy, policy)
    for record, other in zip(records, twin, strict=True):
        assert other["base_logprob"] == pytest.approx(record["logprob"], abs=1e-4)
    assert {record["base_logprob"] for record in run(policy, None)} == {None}
    with pytest.raises(ValueError, match="another base is given"):
        run(policy, policy, is_base=True)


def test_records_say_which_weights_they_are_of(policy: Any) -> None:
    generator = Decoder(policy)
    generator.sync_weights(policy.model, 17)
    records = evaluate(policy, generator, None, TASKS, REWARDS, CONFIG, checkpoint="best")
    assert {(record["checkpoint"], record["policy_version"]) for record in records} == {("best", 17)}
    assert {record["checkpoint"] for record in run(policy, None)} == {"last"}


def test_a_task_without_families_has_neither_role_nor_mode(policy: Any) -> None:
    task: Any = DigitTask("first")
    task.families = {}
    records = run(policy, None, tasks=[task])
    assert {(record["role"], record["mode"]) for record in records} == {("none", "none")}


def test_grades_stand_beside_their_own_completions(policy: Any, base: Any) -> None:
    records = run(policy, base, samples=8)
    assert {record["status"] for record in records} >= {"correct", "wrong", "timeout"}
    for record in records:
        problem = Problem(record["problem_id"], record["task"], record["family"], record["question"], record["gold"])
        completion: Any = SimpleNamespace(text=record["text"])
        grade = REWARDS["first"].grade(problem, completion)
        assert (record["status"], record["reward"], record["answer"]) == (grade.status, grade.reward, grade.answer)
        assert record["exact_match"] == grade.exact_match


def test_equal_weights_give_equal_records_whatever_else_is_evaluated(policy: Any, base: Any) -> None:
    records = run(policy, base)
    twin = LanguageModel(copy.deepcopy(policy.model), policy.tokenizer, (EOS,), 0, "twin")
    assert run(twin, base) == records
    alone = run(policy, base, tasks=TASKS[:1], problems=4)
    for record, other in zip(alone, records[:16], strict=True):
        assert (record["problem_id"], record["token_ids"]) == (other["problem_id"], other["token_ids"])
    more = [record for record in run(policy, base, samples=5) if record["sample"] < 3]
    assert [record["token_ids"] for record in more] == [record["token_ids"] for record in records]


def test_another_seed_draws_other_samples_and_another_model_uses_the_same_streams(policy: Any, base: Any) -> None:
    def seeds_used(model: LanguageModel, seed: int) -> list[int]:
        seen: list[int] = []
        decoder = Decoder(model)

        class Watched:
            policy_version = 0

            def generate(self, requests: Any, params: Any) -> Any:
                seen.extend(request.seed for request in requests)
                return decoder.generate(requests, params)

        watched: Any = Watched()
        evaluate(
            model, watched, base, TASKS, REWARDS, EvaluationConfig(problems=7, samples=2, max_new_tokens=2, seed=seed)
        )
        return seen

    assert seeds_used(policy, 4) == seeds_used(base, 4)
    assert not set(seeds_used(policy, 4)) & set(seeds_used(policy, 5))


def test_progress_counts_completions_up_to_all_of_them(policy: Any, base: Any) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(policy, Decoder(policy), base, TASKS, REWARDS, CONFIG, on_progress=lambda *call: calls.append(call))
    assert calls[-1] == (28, 28)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert len(calls) > 2


def test_a_task_without_a_reward_function_is_refused_before_anything_is_generated(policy: Any) -> None:
    generator: Any = None
    with pytest.raises(ValueError, match="no reward function for the tasks second"):
        evaluate(policy, generator, None, TASKS, {"first": REWARDS["first"]}, CONFIG)


@pytest.mark.parametrize(
    ("wanted", "sizes", "shares"),
    [
        (7, [math.inf, math.inf], [4, 3]),
        (10, [2, math.inf, math.inf], [2, 4, 4]),
        (9, [1, 2, 100], [1, 2, 6]),
        (50, [30, 4], [30, 4]),
        (5, [0, 9], [0, 5]),
    ],
)
def test_what_a_small_task_cannot_take_goes_to_the_others(wanted: int, sizes: list[float], shares: list[int]) -> None:
    assert _shares(wanted, sizes) == shares
