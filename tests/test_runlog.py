from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsharp.runlog import RunDirectory, code_hash, differences, manifest


def test_a_line_cut_off_by_a_crash_is_left_out_and_the_rest_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append("metrics.jsonl", {"step": 1})
    run.append("metrics.jsonl", {"step": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [1, 2]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        list(RunDirectory(tmp_path).rows("metrics.jsonl"))


SAMPLES = [
    {"problem_id": "a", "token_ids": [1, 23, 456], "text": 'says "token_ids": [7] and ends \\'},
    {"text": '\\"token_ids": [8]', "token_ids": [], "answer": "]"},
    {"token_ids": [5], "logprob": -1.5e-7, "nested": {"token_ids": [6]}},
    {"nested": {"token_ids": [6, 7]}, "token_ids": [5]},
    {"text": "no ids", "answer": None},
    {"token_ids": None},
    {"token_ids": [[1, 2], [3]]},
    {"token_ids": ["a", "b"]},
]


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_samples_are_the_rows_with_the_text_of_their_ids_read_anew_each_time(
    tmp_path: Path, separators: tuple[str, str]
) -> None:
    lines = [json.dumps(row, separators=separators, ensure_ascii=False) for row in SAMPLES]
    (tmp_path / "records.jsonl").write_text(
        "".join(f"{line}\n" for line in lines) + '{"token_ids": [1', encoding="utf-8"
    )
    samples = RunDirectory(tmp_path).samples("records.jsonl")
    for _ in range(2):
        found = list(samples)
        assert [row.get("token_ids") for row in found] == [
            ", ".join(map(str, row["token_ids"])) if isinstance(row.get("token_ids"), list) else row.get("token_ids")
            for row in SAMPLES
        ]
        for ours, row in zip(found, SAMPLES, strict=True):
            others = {key: value for key, value in row.items() if key not in ("token_ids", "nested")}
            assert {key: value for key, value in ours.items() if key not in ("token_ids", "nested")} == others
    assert list(RunDirectory(tmp_path).samples("absent.jsonl")) == []
    (tmp_path / "records.jsonl").write_text('{"token_ids": [1]}\n{"token_ids": [1]\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        list(samples)


def test_lines_beyond_the_last_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(5):
        run.append("metrics.jsonl", {"step": step})
    run.truncate_after("metrics.jsonl", 2)
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [0, 1, 2]


def test_replacing_a_file_leaves_no_part_behind(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("a.json", {"β": 1})
    run.write_json("a.json", {"β": 2})
    run.write_rows("b.jsonl", [{"x": 1}])
    assert run.read_json("a.json") == {"β": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.jsonl"]
    assert run.read_json("absent.json") is None
    assert list(run.rows("absent.jsonl")) == []


def test_differences_name_every_key_with_both_values() -> None:
    lines = differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4})
    assert lines == ["a.c: 5 there, 2 asked for", "d: 'absent' there, 3 asked for", "e: 4 there, 'absent' asked for"]
    assert differences({"a": [1]}, {"a": [1]}) == []


def test_the_manifest_binds_base_and_code() -> None:
    ours = manifest("abc")
    assert ours["identity"]["base_weights"] == "abc"
    assert ours["identity"]["code"] == code_hash()
    assert {"python", "torch", "transformers"} <= set(ours["versions"])


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    place = tmp_path / "notes.txt"
    place.write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt is a file; name a directory"):
        RunDirectory(place)
    assert place.read_text() == "mine"
