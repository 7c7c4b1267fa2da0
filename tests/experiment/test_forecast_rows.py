"""A file of records as people write it: byte-order mark, blank lines, arrays, and what breaks, named by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsharp.config import ConfigError, ForecastConfig
from bsharp.experiment import forecast_records

SETTINGS = ForecastConfig(regimes=("task_reward",), alphas=(1.0, 2.0), beta_invs=(1.0,))
ROWS = [{"problem_id": p, "logprob": -5.0 - s, "length": 4, "reward": s} for p in "ab" for s in (0, 1)]
LINES = [json.dumps(row) for row in ROWS]


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        forecast_records(path, SETTINGS, tmp_path / "out")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_byte_order_mark_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text("\n".join(LINES), encoding="utf-8")
    (tmp_path / "marked.jsonl").write_text("\n" + "\n\n".join(LINES) + "\n\n", encoding="utf-8-sig")
    plain, marked = (
        forecast_records(tmp_path / f"{name}.jsonl", SETTINGS, tmp_path / name) for name in ("plain", "marked")
    )
    assert plain["regimes"] == marked["regimes"]
    assert marked["source"]["problems"] == 2


def test_lines_are_those_of_the_file_with_its_blank_ones(tmp_path: Path) -> None:
    bad = json.dumps(ROWS[0] | {"length": 0})
    assert "line 5 (problem a): length 0" in refused(tmp_path, f"{LINES[0]}\n\n\n\n{bad}\n")
    assert "line 3 is not JSON" in refused(tmp_path, f"{LINES[0]}\n\nnonsense\n")


@pytest.mark.parametrize("text", [json.dumps(ROWS, indent=2), json.dumps(ROWS), "[" + ",\n".join(LINES) + "]"])
def test_one_json_array_is_recognised(tmp_path: Path, text: str) -> None:
    message = refused(tmp_path, text)
    assert "line 1" in message
    assert "is this one JSON array? Write one object a line" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"problem_id": "\\ud800", "logprob": -1, "length": 2, "reward": 1}',
            "line 1: problem_id '\\ud800' is not valid",
        ),
        (
            LINES[0].replace("-5.0", "-" + "9" * 400),
            "line 1 (problem a): logprob of more than 38 digits is not a finite",
        ),
        (LINES[0].replace("-5.0", "-" + "9" * 5000), "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_what_would_crash_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    assert message in refused(tmp_path, line + "\n")


def test_one_word_of_help_fits_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1 holds '3', not an object; write"):
        forecast_records(path, SETTINGS, tmp_path / "out")
