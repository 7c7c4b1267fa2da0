"""Laws of the public data sets: published rows become the problems they state, from whatever file or the hub."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from public_data import data_dir, needs_public_data

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.rewards import reward_for
from bsharp.tasks import ListedTask, Split, decontaminate, load_task
from bsharp.tasks.listed import question_key
from bsharp.tasks.public import PUBLIC
from bsharp.types import Completion, FinishReason, GradeStatus, Problem

Rows = Sequence[Mapping[str, Any]]
PUBLISHED: dict[str, dict[str, Any]] = {  # one row in the published form, and what it must become
    "gsm8k": {"question": "2 bags of 540 pens?", "answer": "#### Pens\n2*540=<<2*540=1080>>1080\n#### 1,080"},
    "math": {
        "problem": "Find $x$.",
        "level": "Level 4",
        "type": "Counting & Probability",
        "solution": "First \\boxed{2}, no: $\\boxed{\\frac{1}{2}}$.",
    },
    "math500": {
        "problem": "Find $y$.",
        "solution": "$\\boxed{p - q}$",
        "answer": "p - q",
        "subject": "Intermediate Algebra",
        "level": 5,
        "unique_id": "test/intermediate_algebra/1994.json",
    },
    "minerva": {"problem": "How far?", "solution": "It is $\\boxed{4.5e33}$ cm.", "type": "Astronomy", "idx": 0},
    "aime24": {"id": 60, "problem": "Find $m+n$.", "solution": "so \\framebox{25}", "answer": "025", "url": "u"},
    "aime25": {"problem": "Find $b$.", "answer": "70", "id": "0"},
    "amc23": {"id": 0, "question": "Find $c$.", "answer": 27.0, "url": "u"},
    "hmmt": {"problem_idx": 1, "problem": "Find $d$.", "answer": "\\sqrt{2}", "problem_type": ["Algebra"]},
    "svamp": {
        "Body": "Al has 3 cups .",
        "Question": "How many?",
        "Answer": 3.0,
        "Equation": "( 3.0 )",
        "Type": "Sum",
        "ID": "c-1",
    },
    "deepscaler": {"problem": "Find $e$.", "answer": "35", "solution": "\\boxed{035}"},
}
BECOMES: dict[str, tuple[str, str, str, int]] = {  # question, answer, family, difficulty
    "gsm8k": ("2 bags of 540 pens?", "1080", "gsm8k", 1),
    "math": ("Find $x$.", "\\frac{1}{2}", "counting_and_probability", 4),
    "math500": ("Find $y$.", "p - q", "intermediate_algebra", 5),
    "minerva": ("How far?", "4.5e33", "minerva", 1),
    "aime24": ("Find $m+n$.", "25", "aime24", 1),
    "aime25": ("Find $b$.", "70", "aime25", 1),
    "amc23": ("Find $c$.", "27", "amc23", 1),
    "hmmt": ("Find $d$.", "\\sqrt{2}", "hmmt", 1),
    "svamp": ("Al has 3 cups . How many?", "3", "svamp", 1),
    "deepscaler": ("Find $e$.", "35", "deepscaler", 1),
}


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(list(rows), indent=1), encoding="utf-8")


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Rows) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".parquet": write_parquet,
}


def stored(folder: Path, name: str, rows: Mapping[str, Rows], suffix: str = ".jsonl") -> ListedTask:
    """The task read from files of the given parts."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for part, content in rows.items():
        WRITERS[suffix](folder / name / f"{part}{suffix}", content)
    task = load_task(name, ProblemsConfig(data_dir=str(folder)))
    assert isinstance(task, ListedTask)
    return task


def all_of(task: ListedTask, split: Split | str) -> list[Problem]:
    return list(task.listing(split).problems)


def statuses(tasks: Mapping[str, ListedTask], problems: Sequence[Problem]) -> set[GradeStatus]:
    """What the grader of these tasks, which have one kind of reward, makes of their oracles."""
    texts = [tasks[problem.task].oracle(problem) for problem in problems]
    completions = [Completion((1,), (0.0,), FinishReason.EOS, text) for text in texts]
    reward = reward_for(next(iter(tasks.values())))
    return {grade.status for grade in reward(problems, completions)}


@pytest.mark.parametrize("suffix", list(WRITERS))
@pytest.mark.parametrize("name", list(PUBLIC))
def test_a_published_row_becomes_its_problem_from_every_kind_of_file(name: str, suffix: str, tmp_path: Path) -> None:
    row = PUBLISHED[name] if suffix != ".csv" else {key: str(value) for key, value in PUBLISHED[name].items()}
    part = "test" if "test" in PUBLIC[name].parts else "train"
    task = stored(tmp_path, name, {part: [row]}, suffix)
    found = [problem for split in Split if part == "train" or split is Split.TEST for problem in all_of(task, split)]
    (problem,) = found
    assert (problem.question, problem.answer, problem.family, problem.difficulty) == BECOMES[name]
    assert problem.problem_id == f"{name}/{part}/0"
    if "solution" in row:
        assert problem.metadata["solution"] == row["solution"]


def test_every_public_task_has_a_row_here_and_no_procedural_family() -> None:
    assert set(PUBLISHED) == set(BECOMES) == set(PUBLIC)
    assert not any(load_task(name).families for name in PUBLIC)


@pytest.mark.parametrize("name", list(PUBLIC))
def test_the_hub_gives_the_same_problems_as_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(repository: str, configuration: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((repository, configuration, split))
        return [PUBLISHED[name]]

    # Offline, so that no test asks a hub whether it is there.
    stand_in = SimpleNamespace(load_dataset=load_dataset, config=SimpleNamespace(HF_HUB_OFFLINE=True))
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    source = PUBLIC[name]
    part, split = ("test", Split.TEST) if "test" in source.parts else ("train", Split.TRAIN)
    from_hub = load_task(name)
    assert isinstance(from_hub, ListedTask)
    assert all_of(from_hub, split) == all_of(stored(tmp_path, name, {part: [PUBLISHED[name]]}), split)
    assert asked == [(source.repository, source.configuration, source.parts[part])]


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_way_around_it() -> None:
    """The tests run with HF_HUB_OFFLINE set."""
    with pytest.raises(ConfigError) as caught:
        load_task("gsm8k").size("test")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("gsm8k", "openai/gsm8k (test)", "--data-dir FOLDER", "gsm8k/test.jsonl"):
        assert part in message


def test_a_part_that_is_not_there_is_one_line_and_does_not_hide_the_other(tmp_path: Path) -> None:
    task = stored(tmp_path, "gsm8k", {"test": [PUBLISHED["gsm8k"]]})
    assert task.size("test") == 1
    with pytest.raises(ConfigError, match=r"holds no file of its train problems; put them into gsm8k/train\.jsonl"):
        task.problems("train", 1, 0)
    assert len(task.problems("test", 1, 0)) == 1


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gsm8k", "gsm8k/main/test-00000-of-00001.parquet"),
        ("gsm8k", "openai/gsm8k/main/test-00000-of-00001.parquet"),
        ("math", "MATH-lighteval/data/test-00000-of-00001.parquet"),
        ("math", "hendrycks_math/algebra/test-00000-of-00001.parquet"),
        ("aime24", "aime_2024/data/train-00000-of-00001.parquet"),
        ("amc23", "amc23/test-00000-of-00001.parquet"),
        ("minerva", "minerva_math/test.jsonl"),
        ("deepscaler", "DeepScaleR-Preview-Dataset/deepscaler.json"),
        ("math", "MATH/test/algebra/1.json"),
    ],
)
def test_the_layouts_of_the_hub_and_of_the_authors_are_found(name: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    WRITERS[path.suffix](path, [PUBLISHED[name]])
    task = load_task(name, ProblemsConfig(data_dir=str(tmp_path)))
    assert sum(task.size(split) for split in Split if split is Split.TEST or name == "deepscaler") == 1


def test_all_shards_of_a_part_are_read_and_numbered_through(tmp_path: Path) -> None:
    folder = tmp_path / "hendrycks_math"
    for subject in ("algebra", "geometry"):
        (folder / subject).mkdir(parents=True)
        row = PUBLISHED["math"] | {"problem": f"Of {subject}?", "type": subject.title()}
        write_parquet(folder / subject / "test-00000-of-00001.parquet", [row])
    task = load_task("math", ProblemsConfig(data_dir=str(tmp_path)))
    problems = sorted(task.problems("test", 2, 0), key=lambda problem: problem.problem_id)
    assert [(p.problem_id, p.family) for p in problems] == [("math/test/0", "algebra"), ("math/test/1", "geometry")]


def test_training_is_divided_by_hash_and_never_holds_a_test_question(tmp_path: Path) -> None:
    train = [{"question": f"How much is {n} and {n + 1}?", "answer": f"sum\n#### {2 * n + 1}"} for n in range(300)]
    test = [train[7] | {"question": train[7]["question"].upper()}, {"question": "Another one?", "answer": "#### 1"}]
    task = stored(tmp_path, "gsm8k", {"train": [*train, train[3]], "test": test})
    assert task.size("train") + task.size("validation") == 299
    assert (
        15 <= task.size("validation") <= 45
    )  # binomial(299, 0.1) leaves this range with probability 0.003; texts are fixed
    assert task.size("test") == 2
    assert sum(task.dropped.values()) == 2
    assert {reason.partition(": ")[2] for reason in task.dropped} == {"also a test problem", "the same question again"}
    keys = {split: {question_key(p.question) for p in all_of(task, split)} for split in Split}
    assert not keys[Split.TRAIN] & keys[Split.TEST]
    assert not keys[Split.TRAIN] & keys[Split.VALIDATION]
    ids = {p.question: p.problem_id for split in Split for p in all_of(task, split)}
    assert ids[train[12]["question"]] == "gsm8k/train/12"


def test_the_same_question_falls_into_the_same_split_in_every_training_set(tmp_path: Path) -> None:
    questions = [f"Find ${n}+{n * n}$." for n in range(60)]
    math = stored(
        tmp_path,
        "math",
        {
            "train": [{"problem": q, "solution": "\\boxed{1}", "type": "Algebra"} for q in questions],
            "test": [PUBLISHED["math"]],
        },
    )
    deepscaler = stored(tmp_path, "deepscaler", {"train": [{"problem": q.lower(), "answer": "1"} for q in questions]})
    for split in (Split.TRAIN, Split.VALIDATION):
        assert [question_key(p.question) for p in all_of(math, split)] == [
            question_key(p.question) for p in all_of(deepscaler, split)
        ]


def test_math_500_is_taken_out_of_math_by_content(tmp_path: Path) -> None:
    rows = [PUBLISHED["math"] | {"problem": f"Find ${n}$ of $x$."} for n in range(40)]
    math = stored(tmp_path, "math", {"train": rows, "test": [PUBLISHED["math"]]})
    subset = [PUBLISHED["math500"] | {"problem": f"Find $ {n} $ of $x$"} for n in (3, 17, 30, 99)]
    math500 = stored(tmp_path, "math500", {"test": subset})
    tasks, left_out = decontaminate([math], [math500])
    assert left_out == {"math": 3}
    assert sum(tasks["math"].size(split) for split in (Split.TRAIN, Split.VALIDATION)) == 37


@pytest.mark.parametrize("name", [name for name, source in PUBLIC.items() if "train" not in source.parts])
def test_sets_for_testing_have_nothing_to_train_on_and_say_what_to_do(name: str, tmp_path: Path) -> None:
    task = stored(tmp_path, name, {"test": [PUBLISHED[name]]})
    for split in ("train", "validation"):
        assert task.size(split) == 0
        assert task.problems(split, 0, 0) == []
        with pytest.raises(
            ValueError, match=f"{name} has no {split} problems: it is published for testing only; train on "
        ):
            task.problems(split, 1, 0)


def test_the_set_for_training_has_no_test_problems_and_says_what_to_evaluate(tmp_path: Path) -> None:
    task = stored(tmp_path, "deepscaler", {"train": [PUBLISHED["deepscaler"]]})
    with pytest.raises(
        ValueError, match="deepscaler has no test problems: it is published for training only; evaluate on math500"
    ):
        task.problems("test", 1, 0)


@pytest.mark.parametrize(
    ("name", "broken", "reason"),
    [
        ("gsm8k", {"answer": "It is 5."}, "no #### in the answer"),
        ("gsm8k", {"answer": "#### five"}, "the answer is not a number"),
        ("gsm8k", {"question": "  "}, "the question is empty"),
        ("math", {"solution": "It is 5."}, "no box in the solution"),
        ("math", {"solution": "\\boxed{5"}, "no box in the solution"),
        ("math", {"solution": "\\boxed{}"}, "the answer is empty"),
        ("math500", {"answer": ""}, "the answer is empty"),
        ("minerva", {"solution": None}, "no answer and no box in the solution"),
        ("aime25", {"answer": "x"}, "the answer is not a number"),
        ("amc23", {"answer": float("nan")}, "the answer is not a finite number"),
        ("amc23", {"answer": [1]}, "the answer is a list, not text or a number"),
        ("svamp", {"Body": None}, "no Body"),
        ("hmmt", {"problem": 5}, "the question is a int, not text"),
        ("hmmt", {"answer": True}, "the answer is a bool, not text or a number"),
    ],
)
def test_rows_that_cannot_be_used_are_counted_and_a_file_of_them_is_one_line(
    name: str, broken: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    bad = PUBLISHED[name] | broken
    mixed = stored(tmp_path / "mixed", name, {"test": [bad, PUBLISHED[name], bad]})
    assert [p.problem_id for p in all_of(mixed, "test")] == [f"{name}/test/1"]
    assert mixed.dropped == {f"test: {reason}": 2}
    with pytest.raises(ConfigError, match=re.escape(f"can be used: line 1 has {reason}; its fields are")) as caught:
        stored(tmp_path / "bad", name, {"test": [bad]}).size("test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["math", "final_number"])
def test_oracles_satisfy_the_grader_of_their_task(kind: str, tmp_path: Path) -> None:
    names = [name for name, source in PUBLIC.items() if source.reward_kind == kind and "test" in source.parts]
    tasks = {name: stored(tmp_path, name, {"test": [PUBLISHED[name]]}) for name in names}
    problems = [problem for task in tasks.values() for problem in all_of(task, "test")]
    assert len(problems) == len(names)
    assert statuses(tasks, problems) == {GradeStatus.CORRECT}


# What follows reads the published files themselves.

SIZES = {
    "gsm8k": (6720, 753, 1319),
    "math500": (0, 0, 500),
    "minerva": (0, 0, 272),
    "aime24": (0, 0, 30),
    "amc23": (0, 0, 40),
}


@cache
def published(name: str) -> ListedTask:
    task = load_task(name, ProblemsConfig(data_dir=str(data_dir())))
    assert isinstance(task, ListedTask)
    return task


@needs_public_data
@pytest.mark.parametrize("name", list(SIZES))
def test_published_files_are_read_whole(name: str) -> None:
    task = published(name)
    assert tuple(task.size(split) for split in Split) == SIZES[name]
    assert not task.dropped


@needs_public_data
def test_published_svamp_is_read_whole() -> None:
    task = published("svamp")  # passed on as one test set of 1000; the hub's copy has 700 + 300
    assert task.size("test") == 1000
    assert not task.dropped
    assert all(re.fullmatch(r"-?\d+", p.answer) for p in all_of(task, "test"))


@needs_public_data
def test_published_answers_are_what_their_solutions_end_in() -> None:
    gsm8k = published("gsm8k")
    for split in Split:
        for problem in all_of(gsm8k, split):
            solution = problem.metadata["solution"]
            assert problem.answer.replace("-", "").isdecimal()
            assert solution.replace(",", "").endswith(f"#### {problem.answer}")
    for problem in all_of(published("minerva"), "test"):
        _, _, box = problem.metadata["solution"].rpartition("\\boxed{")
        assert box.lstrip().startswith(problem.answer)
        assert box.lstrip().removeprefix(problem.answer).lstrip().startswith("}")
    assert all(
        0 <= int(p.answer) <= 999 and str(int(p.answer)) == p.answer for p in all_of(published("aime24"), "test")
    )
    subjects = {p.family for p in all_of(published("math500"), "test")}
    assert subjects == {
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    }


@needs_public_data
def test_published_gsm8k_oracles_grade_correct() -> None:
    task = published("gsm8k")
    assert statuses({"gsm8k": task}, task.problems("test", 200, seed=0)) == {GradeStatus.CORRECT}


@needs_public_data
def test_no_published_set_shares_a_question_with_another() -> None:
    names = ("gsm8k", "math500", "minerva", "aime24", "amc23", "svamp")
    keys = {name: {question_key(p.question) for p in all_of(published(name), "test")} for name in names}
    keys["gsm8k training"] = {question_key(p.question) for p in all_of(published("gsm8k"), "train")}
    assert sum(map(len, keys.values())) == len(set().union(*keys.values()))
