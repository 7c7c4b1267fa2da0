"""Laws of problems of one's own: fields are taken by name, splits are disjoint, and what is wrong is named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.tasks import ListedTask, Split, load_task, split_of
from bsharp.tasks.listed import question_key

ROWS = [{"prompt": f"What is {n} + {n}?", "answer": 2 * n, "topic": "sums", "content": n} for n in range(60)]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


WRITERS: dict[str, Callable[[Path, Sequence[Mapping[str, Any]]], object]] = {
    "jsonl": lambda path, rows: path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8-sig"),
    "json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "csv": write_csv,
    "parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path),
}


def own(folder: Path, rows: Sequence[Mapping[str, Any]], suffix: str = "jsonl", **settings: Any) -> ListedTask:
    path = folder / f"own.{suffix}"
    WRITERS[suffix](path, rows)
    task = load_task("data", ProblemsConfig(data=str(path), **settings))
    assert isinstance(task, ListedTask)
    return task


def refusal(folder: Path, rows: Sequence[Mapping[str, Any]], suffix: str = "jsonl", **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        own(folder, rows, suffix, **settings).size("train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_every_row_of_every_kind_of_file_is_a_problem_of_the_split_of_its_question(suffix: str, tmp_path: Path) -> None:
    task = own(tmp_path, ROWS, suffix)
    found = {split: task.listing(split).problems for split in Split}
    assert sum(map(len, found.values())) == 60
    assert all(split_of(question_key(p.question)) is split for split, problems in found.items() for p in problems)
    by_id = {p.problem_id: p for problems in found.values() for p in problems}
    problem = by_id["data/17"]
    assert (problem.question, problem.answer, problem.family, problem.task) == (
        "What is 17 + 17?",
        "34",
        "data",
        "data",
    )
    assert {key: str(value) for key, value in problem.metadata.items()} == {"topic": "sums", "content": "17"}


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    WRITERS["jsonl"](path, ROWS)
    assert sum(load_task("data", ProblemsConfig(data=str(path))).size(split) for split in Split) == 60


def test_fields_and_splits_are_taken_by_the_names_given(tmp_path: Path) -> None:
    words = {"train": "train", "validation": "Dev", "test": " test "}
    rows = [{"q": row["prompt"], "a": row["answer"], "part": words[list(words)[n % 3]]} for n, row in enumerate(ROWS)]
    task = own(tmp_path, rows, prompt_field="q", answer_field="a", split_field="part")
    assert [task.size(split) for split in Split] == [20, 20, 20]
    assert task.listing("validation").problems[0].question == "What is 1 + 1?"


def test_a_question_in_two_splits_stays_in_the_later_one(tmp_path: Path) -> None:
    rows = [{"prompt": "one?", "answer": "1", "s": s} for s in ("train", "validation", "test", "train")]
    task = own(tmp_path, [*rows, {"prompt": "two?", "answer": "2", "s": "train"}], split_field="s")
    assert [task.size(split) for split in Split] == [1, 0, 1]
    assert task.dropped == {"train: also a test problem": 2, "validation: also a test problem": 1}
    with pytest.raises(
        ValueError, match=r"data has no validation problems: none of the problems of .*own\.jsonl falls into it"
    ):
        task.problems("validation", 1, 0)


def test_rows_without_question_or_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    odd = [{"prompt": "x?"}, {"prompt": "", "answer": "1"}, {"answer": "1"}, {"prompt": "y?", "answer": {"value": 1}}]
    task = own(tmp_path, [*ROWS, *odd])
    assert sum(task.size(split) for split in Split) == 60
    assert task.dropped == {
        "train: the answer is missing": 1,
        "train: the question is empty": 1,
        "train: the question is missing": 1,
        "train: the answer is a dict, not text or a number": 1,
    }


def test_a_float_that_is_a_whole_number_is_asked_for_as_one(tmp_path: Path) -> None:
    wanted = {27.0: "27", -3.0: "-3", 0.5: "0.5", " \\frac{1}{2} ": "\\frac{1}{2}", 7: "7"}
    task = own(tmp_path, [{"prompt": f"Which is number {n}?", "answer": value} for n, value in enumerate(wanted)])
    found = {int(p.problem_id.rpartition("/")[2]): p.answer for split in Split for p in task.listing(split).problems}
    assert [found[n] for n in range(len(wanted))] == list(wanted.values())


def test_answers_may_be_left_out_only_where_a_reward_of_one_s_own_judges(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"]} for row in ROWS]
    task = own(tmp_path, rows, reward="my_reward.py:my_reward")
    assert {p.answer for split in Split for p in task.listing(split).problems} == {""}
    assert "no field 'answer'" in refusal(tmp_path, rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prompt_field": "promt"},
            "line 1: no field 'promt' (did you mean prompt?); its fields are prompt, answer, topic",
        ),
        (
            {"answer_field": "gold"},
            "no field 'gold'; its fields are prompt, answer, topic, content; pass --answer-field",
        ),
        ({"split_field": "split"}, "no field 'split'; its fields are"),
        ({"split_field": "topic"}, "line 1: topic = 'sums' is no split; write train, validation or test"),
    ],
)
def test_a_field_that_is_not_there_is_named_with_those_that_are(
    settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    assert message in refusal(tmp_path, ROWS, **settings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x?", "answer": "1"}\n{"prompt": ', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: a list, not an object with named fields"),
        ("a.jsonl", b"\n \n", "a.jsonl holds no rows"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl cannot be read"),
        ("a.json", b"[", "a.json: not JSON"),
        ("a.json", b"[" * 100_000, "a.json: nested too deeply"),
        ("a.csv", b"prompt,answer\nx?,1,2\n", "a.csv, line 2: more cells than the header has names"),
        ("a.csv", b'prompt,answer\n"x?"y,1\n', "a.csv: not CSV after line 1"),
        ("a.parquet", b"no", "a.parquet: not Parquet"),
        ("a.txt", b"x?", "a.txt: files that end in '.txt' cannot be read; use .jsonl, .json, .csv, .parquet"),
        (
            "a.jsonl",
            b'{"prompt": "x?", "answer": ""}\n',
            "none of its 1 rows can be used; the first, line 1: the answer is empty",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_its_place(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_task("data", ProblemsConfig(data=str(path))).size("test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_without_a_file_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the task data needs a file of problems; pass --data FILE"):
        load_task("data")
    with pytest.raises(ConfigError, match=r"own\.jsonl does not exist; check the path"):
        load_task("data", ProblemsConfig(data=str(tmp_path / "own.jsonl"))).size("test")
    (tmp_path / "own.jsonl").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_task("data", ProblemsConfig(data=str(tmp_path / "own.jsonl"))).size("test")
