"""An evaluation whose every step workers take, for a process that imports none of what they need."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from bsharp.config import EvaluationConfig
from bsharp.evaluation import summarize
from bsharp.experiment import evaluate_model
from bsharp.experiment.hosted import _Begun, _records

FEW = EvaluationConfig(problems=30, samples=4, max_new_tokens=12, max_rows=24)
FLAGS = ["--problems", "30", "--samples", "4", "--max-new-tokens", "12", "--max-rows", "24", "--workers", "2"]
COMMAND = """
import sys
from bsharp.cli import main
try:
    main(["evaluate", "--model", "nowhere/at-all", "--out", sys.argv[1] + "/not", *sys.argv[2:]])
except SystemExit as end:
    print("ended with", end.code)
main(["evaluate", "--out", sys.argv[1] + "/run", *sys.argv[2:]])
print("torch" in sys.modules, "transformers" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_the_command_imports_no_torch_and_its_records_are_those_of_one_process(tmp_path: Path) -> None:
    """A refusal of a worker is told in a line, and hinders nothing after it."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tmp_path), *FLAGS], capture_output=True, text=True, check=True, timeout=120
    )
    alone = evaluate_model("embedded:tiny", ("math_mini", "gsm8k_lite"), FEW, tmp_path / "alone")
    found = tmp_path / "run"
    assert (found / "records.jsonl").read_bytes() == (tmp_path / "alone" / "records.jsonl").read_bytes()
    assert json.loads((found / "summary.json").read_text()) == json.loads(json.dumps(summarize([alone])))
    for name in ("config.json", "manifest.json"):
        assert (found / name).exists()
    assert "False False" in done.stdout.splitlines()
    assert "ended with 2" in done.stdout
    assert done.stderr.count("bsharp: ") == 1
    assert "nowhere/at-all" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "not").exists()


class _Pool:
    """Pieces end one by one, the youngest first; some fail."""

    def __init__(self, failing: int | None = None) -> None:
        self.begun: list[int] = []
        self.most = 0
        self._running: list[tuple[int, Future[bytes]]] = []
        self._failing = failing

    def submit(self, _: Any, plan: bytes, number: int) -> Future[bytes]:
        future: Future[bytes] = Future()
        self.begun.append(number)
        self._running.append((number, future))
        self.most = max(self.most, len(self._running))
        return future

    def end_one(self) -> None:
        number, future = self._running.pop()
        if number == self._failing:
            future.set_exception(ValueError(f"piece {number}"))
        else:
            future.set_result(b"%d" % number)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_more_pieces_run_at_a_time_than_workers_and_each_is_begun_in_order(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, order = _Pool(), ((3, 10), (2, 20), (0, 5), (1, 7))
    wait = _waiting(pool, monkeypatch)
    seen: list[tuple[int, int]] = []
    found = _records(pool, _Begun(b"plan", order, workers), lambda *counts: seen.append(counts))  # type: ignore[arg-type]
    assert found == {number: b"%d" % number for number in range(4)}
    assert pool.begun == [3, 2, 0, 1]
    assert pool.most == min(workers, 4)
    assert seen[0] == (0, 42)
    assert seen[-1] == (42, 42)
    assert seen == sorted(seen)
    assert len(wait) == 4


def test_what_a_piece_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _Pool(failing=1)
    _waiting(pool, monkeypatch)
    with pytest.raises(ValueError, match="piece 1"):
        _records(pool, _Begun(b"", ((0, 1), (1, 1), (2, 1)), 1), lambda *_: None)  # type: ignore[arg-type]
    assert pool.begun == [0, 1]


def _waiting(pool: _Pool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whoever waits makes one piece end."""
    from concurrent.futures import wait

    calls: list[int] = []

    def end_and_wait(futures: Any, **named: Any) -> Any:
        pool.end_one()
        calls.append(len(futures))
        return wait(futures, **named)

    monkeypatch.setattr("bsharp.experiment.hosted.wait", end_and_wait)
    return calls
