"""Laws of reasoning-gym tasks: splits that share no question, items that come again from their id, its own grader."""

from __future__ import annotations

import itertools
import sys

import pytest

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.rewards import reward_for
from bsharp.tasks import GymTask, Split, content_key, load_task, split_of
from bsharp.types import Completion, FinishReason, GradeStatus, Problem

pytest.importorskip("reasoning_gym", reason="needs reasoning-gym")

NAMES = ("leg_counting", "chain_sum", "tower_of_hanoi", "word_sorting")
SMALL = "tower_of_hanoi"  # 89 questions in all


def gym(name: str) -> GymTask:
    task = load_task(f"reasoning_gym:{name}")
    assert isinstance(task, GymTask)
    return task


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_question_whatever_the_seeds(name: str) -> None:
    task = gym(name)
    contents: dict[Split, set[str]] = {split: set() for split in Split}
    for split, seed in itertools.product(Split, range(3)):
        contents[split].update(map(content_key, task.problems(split, min(60, task.size(split)), seed)))
    for left, right in itertools.combinations(Split, 2):
        assert not contents[left] & contents[right]
    assert all(split_of(key) is split for split, keys in contents.items() for key in keys)


@pytest.mark.parametrize("name", NAMES)
def test_items_are_distinct_deterministic_prefixes(name: str) -> None:
    count = min(50, gym(name).size("train"))
    drawn = gym(name).problems("train", count, seed=2)
    assert len({content_key(p) for p in drawn}) == len({p.problem_id for p in drawn}) == count
    assert drawn == gym(name).problems(Split.TRAIN, count, seed=2)
    assert drawn[:20] == gym(name).problems("train", 20, seed=2)
    assert drawn != gym(name).problems("train", count, seed=3)


@pytest.mark.parametrize("name", NAMES)
def test_an_item_comes_again_from_its_id(name: str) -> None:
    for problem in gym(name).problems("test", 5, seed=1):
        assert gym(name).problem(problem.problem_id) == problem
    with pytest.raises(ValueError, match="is no problem of reasoning_gym:"):
        gym(name).problem("gsm8k/test/1")


@pytest.mark.parametrize("name", [SMALL, "prime_factorization", "coin_flip"])
def test_as_many_problems_come_as_size_says_for_any_seed(name: str) -> None:
    task = gym(name)
    for split, seed in itertools.product((Split.VALIDATION, Split.TEST), (0, 1)):
        assert len(task.problems(split, task.size(split), seed)) == task.size(split)


def test_a_data_set_with_few_questions_ends_in_a_line_with_their_number() -> None:
    task = gym(SMALL)
    assert sum(task.size(split) for split in Split) == 89
    size = task.size("test")
    with pytest.raises(
        ValueError, match=rf"tower_of_hanoi: 500 test problems asked for, but only {size} different ones"
    ):
        task.problems("test", 500, 0)


def test_size_grows_with_the_number_of_questions_and_says_nothing_beyond_its_evidence() -> None:
    assert (
        gym(SMALL).size("train")
        < gym("prime_factorization").size("train")
        < gym("leg_counting").size("train")
        <= 20_000
    )


@pytest.mark.parametrize("name", NAMES)
def test_oracles_satisfy_the_grader_and_other_answers_do_not(name: str) -> None:
    task = gym(name)
    problems = task.problems("test", 5, 0)
    texts = [text for p in problems for text in (task.oracle(p), "<answer>nonsense</answer>")]
    completions = [Completion((1,), (0.0,), FinishReason.EOS, text) for text in texts]
    grades = reward_for(task)([p for p in problems for _ in range(2)], completions)
    assert [grade.status for grade in grades] == [GradeStatus.CORRECT, GradeStatus.WRONG] * 5


def test_an_item_without_reference_answer_has_no_oracle_but_is_scored() -> None:
    task = gym("rush_hour")
    (problem,) = task.problems("test", 1, 0)
    assert problem.answer == ""
    assert 0.0 <= task.score("nonsense", problem) < 1.0
    with pytest.raises(ValueError, match="has no reference answer"):
        task.oracle(problem)


def test_items_that_their_data_set_fails_to_make_are_passed_over_and_many_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = gym("leg_counting")
    made = GymTask._made

    def sometimes(self: GymTask, seed: int, index: int) -> Problem:
        if index % 2:
            raise RuntimeError("no solution")
        return made(self, seed, index)

    monkeypatch.setattr(GymTask, "_made", sometimes)
    drawn = task.problems("train", 20, 0)
    assert len(drawn) == 20
    assert all(int(p.problem_id.rpartition(".")[2]) % 2 == 0 for p in drawn)

    def never(self: GymTask, seed: int, index: int) -> Problem:
        raise RuntimeError("no solution")

    monkeypatch.setattr(GymTask, "_made", never)
    with pytest.raises(ConfigError, match="leg_counting cannot make its items: RuntimeError: no solution"):
        task.problems("train", 1, 0)


def test_unknown_and_unusable_data_sets_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no data set 'leg_countin' \(did you mean leg_counting\?\); known: ab, "):
        load_task("reasoning_gym:leg_countin")
    with pytest.raises(ConfigError, match="composite cannot be made with its default settings: Must specify"):
        load_task("reasoning_gym:composite")
    with pytest.raises(ValueError, match="has no families and no difficulties"):
        gym("chain_sum").problems("test", 1, 0, difficulties=[3])
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r'pip install "bsharp-rl\[reasoning-gym\]"'):
        load_task("reasoning_gym:chain_sum", ProblemsConfig())
