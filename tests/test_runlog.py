from __future__ import annotations

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
