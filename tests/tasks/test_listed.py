"""Laws of listed problems: what makes two questions one, splits that share none, orders that survive omissions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from bsharp.config import ConfigError
from bsharp.tasks import Split, content_key, decontaminate, load_task
from bsharp.tasks.listed import ListedTask, Listing, disjoint, question_key, train_or_validation
from bsharp.types import Problem


def problem(number: int, question: str, answer: str = "1", **more: object) -> Problem:
    values: dict[str, object] = {"family": "hand", "difficulty": 1, **more}
    return Problem(f"hand/test/{number}", "hand", question=question, answer=answer, **values)  # type: ignore[arg-type]


def task_of(listings: Mapping[Split, Listing], name: str = "hand", kind: str = "math") -> ListedTask:
    return ListedTask(name, kind, "{question}", lambda split: {split: listings.get(split, Listing())})


POOL = tuple(
    problem(
        n, f"What is {n} plus {n * n}?", str(n + n * n), family="even" if n % 2 == 0 else "odd", difficulty=n % 5 + 1
    )
    for n in range(200)
)
HAND = task_of({split: Listing(POOL) for split in Split})


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Find $x + 1$.", "find \\( x+1 \\)", True),
        ("Find  $\\dfrac12$", "Find $\\frac{1}{2}$", True),
        ("Find $\\tfrac{a}{b}$", "Find $\\frac ab$", False),  # a two-letter word is one piece: read on, they differ
        ("What is $1,234 + 10{,}000$?", "What is 1234+10000?", True),
        ("Is $\\left(0,1\\right]$ open", "Is $(0,\\,1]$ open?", True),
        ("John’s 3 hats", "John's 3 hats", True),
        ("A set {1, 2}", "A set $\\{1,2\\}$", True),
        ("Compute ½ + x²", "Compute 1⁄2 + x2", True),  # NFKC
        ("Is [0,1) open?", "Is (0,1] open?", False),
        ("Compute 3-(4-5)", "Compute 3-4-5", False),
        ("Compute 1.5 + 2", "Compute 15 + 2", False),
        ("Compute 12 3", "Compute 1 23", False),
        ("Round 1.5", "Round 1, 5", False),
        ("Compute x + 1", "Compute x - 1", False),
        ("Find $a \\leftarrow b$", "Find $a arrow b$", False),
    ],
)
def test_layout_does_not_make_another_question_but_numbers_operators_and_brackets_do(
    left: str, right: str, same: bool
) -> None:
    assert (question_key(left) == question_key(right)) is same


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.lists(st.text("ab3.$é-(", min_size=1, max_size=6), max_size=8))
def test_how_many_blanks_stand_between_words_does_not_count(words: list[str]) -> None:
    key = question_key(" ".join(words))
    assert question_key("\n " + " \t ".join(words) + "  ") == key
    assert question_key(" ".join(words).upper()) == key


def test_the_content_of_a_listed_problem_is_its_question_and_of_an_embedded_one_its_arithmetic() -> None:
    assert content_key(problem(0, "Find $x$.", metadata={"content": "a field of the user's"})) == "find x"
    embedded = load_task("math_mini").problems("test", 1, 0)[0]
    assert content_key(embedded) == embedded.metadata["content"]


def test_every_question_stands_in_one_split_once_and_the_rest_is_counted() -> None:
    parts = {
        Split.TRAIN: [problem(0, "a?"), problem(1, "b?"), problem(2, "c?"), problem(3, "C"), problem(4, "c", "2")],
        Split.VALIDATION: [problem(5, "b"), problem(6, "d"), problem(7, "e")],
        Split.TEST: [problem(8, "a"), problem(9, "e."), problem(10, "E")],
    }
    found = disjoint(parts, {Split.TRAIN: {"no answer": 2}})
    ids = {split: [p.problem_id.rpartition("/")[2] for p in found[split].problems] for split in Split}
    assert ids == {Split.TRAIN: ["2"], Split.VALIDATION: ["5", "6"], Split.TEST: ["8", "9"]}
    again = "the same question again"
    assert found[Split.TRAIN].dropped == {
        "no answer": 2,
        "also a test problem": 1,
        "also a validation problem": 1,
        again: 1,
        f"{again}, with another answer": 1,
    }
    assert found[Split.VALIDATION].dropped == {"also a test problem": 1}
    assert found[Split.TEST].dropped == {again: 1}


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Split)), st.text("abc", min_size=1, max_size=2)), max_size=40))
def test_whatever_the_parts_no_question_is_lost_or_stands_twice(rows: list[tuple[Split, str]]) -> None:
    parts: dict[Split, list[Problem]] = {split: [] for split in Split}
    for number, (split, text) in enumerate(rows):
        parts[split].append(problem(number, text))
    found = disjoint(parts, {})
    keys = [question_key(p.question) for listing in found.values() for p in listing.problems]
    assert sorted(keys) == sorted({question_key(text) for _, text in rows})
    assert len(keys) + sum(sum(listing.dropped.values()) for listing in found.values()) == len(rows)


def test_a_tenth_of_published_training_problems_validates_and_layout_does_not_move_a_problem() -> None:
    """Binomial test on fixed texts; a hash without bias fails with probability 1e-4."""
    texts = [f"How many legs have {n} cows?" for n in range(4000)]
    counts = Counter(train_or_validation(problem(0, text)) for text in texts)
    assert set(counts) == {Split.TRAIN, Split.VALIDATION}
    assert binomtest(counts[Split.VALIDATION], len(texts), 0.1).pvalue > 1e-4
    assert all(
        train_or_validation(problem(0, t)) is train_or_validation(problem(1, f" {t.upper()}")) for t in texts[:200]
    )


def test_problems_are_distinct_deterministic_prefixes_in_an_order_of_the_seed_and_the_split() -> None:
    drawn = HAND.problems("test", 200, seed=3)
    assert sorted(p.problem_id for p in drawn) == sorted(p.problem_id for p in POOL)
    assert drawn == HAND.problems(Split.TEST, 200, seed=3)
    assert drawn[:30] == HAND.problems("test", 30, seed=3)
    assert drawn != HAND.problems("test", 200, seed=4)
    assert drawn != HAND.problems("train", 200, seed=3)
    assert drawn != list(POOL)


def test_leaving_problems_out_leaves_the_order_of_the_others() -> None:
    some = {p.problem_id for p in POOL[::3]}
    thinner = task_of({Split.TEST: Listing(tuple(p for p in POOL if p.problem_id not in some))})
    expected = [p for p in HAND.problems("test", 200, 7) if p.problem_id not in some]
    assert thinner.problems("test", thinner.size("test"), 7) == expected
    assert HAND.problems("test", 40, 7, difficulties=[2]) == [
        p for p in HAND.problems("test", 200, 7) if p.difficulty == 2
    ]


def test_families_and_difficulties_choose_problems_and_unknown_ones_are_named() -> None:
    chosen = HAND.problems("test", 40, 0, families=["odd"], difficulties=[1, 3])
    assert {p.family for p in chosen} == {"odd"}
    assert {p.difficulty for p in chosen} == {1, 3}
    with pytest.raises(ValueError, match=r"hand has no problem of family \['geometry'\]; choose from even, odd"):
        HAND.problems("test", 1, 0, families=["geometry"])
    with pytest.raises(ValueError, match=r"hand has no problem of difficulty \[6\]; choose from 1, 2, 3, 4, 5"):
        HAND.problems("test", 1, 0, difficulties=[6])


def test_a_task_at_some_difficulties_is_the_task_without_the_others() -> None:
    harder = HAND.at_difficulties([4, 5])
    assert harder.size("train") == 80
    assert harder.problems("test", 80, 1) == HAND.problems("test", 80, 1, difficulties=[5, 4])
    assert task_of({}).at_difficulties([4]).size("train") == 0
    with pytest.raises(ValueError, match=r"hand has no problem of difficulty \[6\]"):
        HAND.at_difficulties([1, 6]).size("train")


def test_more_problems_than_exist_are_refused_with_their_number() -> None:
    with pytest.raises(ValueError, match="hand: 201 test problems asked for, but only 200 exist; ask for fewer"):
        HAND.problems("test", 201, 0)
    with pytest.raises(ValueError, match="only 100 exist"):
        HAND.problems("test", 101, 0, families=["odd"])
    with pytest.raises(ValueError, match="negative"):
        HAND.problems("test", -1, 0)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        HAND.problems("dev", 1, 0)


def test_oracle_is_the_solution_where_it_ends_in_the_answer_and_else_gets_a_box() -> None:
    boxed = problem(0, "q", "5", metadata={"solution": "So \\boxed{5}."})
    other = problem(0, "q", "5", metadata={"solution": "So \\boxed{5}, or \\boxed{4}."})
    hashed = problem(0, "q", "5", metadata={"solution": "2+3\n#### 5"})
    assert HAND.oracle(boxed) == "So \\boxed{5}."
    assert HAND.oracle(other) == "So \\boxed{5}, or \\boxed{4}.\n\n\\boxed{5}"
    framed = problem(0, "q", "5", metadata={"solution": "So \\framebox{5}."})  # no grader reads frames
    assert HAND.oracle(framed) == "So \\framebox{5}.\n\n\\boxed{5}"
    assert HAND.oracle(problem(0, "q", "5")) == "\\boxed{5}"
    assert task_of({}, kind="final_number").oracle(hashed) == "2+3\n#### 5"


def test_decontamination_takes_evaluated_test_questions_out_of_training_and_validation_only() -> None:
    train = task_of(
        {Split.TRAIN: Listing(POOL[:50]), Split.VALIDATION: Listing(POOL[50:60]), Split.TEST: Listing(POOL[60:70])}
    )
    shouted = tuple(
        problem(900 + n, p.question.upper()) for n, p in enumerate((*POOL[:5], POOL[55], POOL[65], POOL[150]))
    )
    evaluated = task_of({Split.TEST: Listing(shouted), Split.TRAIN: Listing(POOL)}, "other")
    embedded = load_task("math_mini")
    tasks, left_out = decontaminate([train, embedded], [evaluated, embedded])
    assert left_out == {"hand": 6, "math_mini": 0}
    assert tasks["math_mini"] is embedded
    kept = tasks["hand"]
    assert [kept.size(split) for split in Split] == [45, 9, 10]
    assert isinstance(kept, ListedTask)
    assert kept.dropped == {"train: an evaluated test problem": 5, "validation: an evaluated test problem": 1}
    keys = {question_key(p.question) for p in shouted}
    for split, seed in itertools.product((Split.TRAIN, Split.VALIDATION), range(2)):
        assert not keys & {question_key(p.question) for p in kept.problems(split, kept.size(split), seed)}


def test_decontamination_that_leaves_nothing_is_an_error_and_one_that_finds_nothing_changes_nothing() -> None:
    train = task_of({Split.TRAIN: Listing(POOL[:3])})
    with pytest.raises(
        ConfigError, match="hand: all 3 training problems are also test problems of the evaluated tasks"
    ):
        decontaminate([train], [task_of({Split.TEST: Listing(POOL)}, "other")])
    tasks, left_out = decontaminate([train], [task_of({Split.TEST: Listing(POOL[10:])}, "other")])
    assert tasks["hand"] is train
    assert left_out == {"hand": 0}
