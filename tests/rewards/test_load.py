"""Rewards of your own from a file or a module: what can go wrong is told in one line, and the documented example runs."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from graded_elsewhere import grade_with_own_reward

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.rewards import FunctionReward, load_reward, reward_for
from bsharp.types import Completion, FinishReason, Problem

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_reward.py"


def rewards_of(reward: FunctionReward, *items: tuple[str, str, int]) -> list[float | None]:
    """Rewards of (gold, text, tokens)."""
    problems = [Problem("id", "task", "family", "question", gold) for gold, _, _ in items]
    completions = [Completion((0,) * n, (0.0,) * n, FinishReason.EOS, text) for _, text, n in items]
    return [grade.reward for grade in reward(problems, completions)]


def test_the_documented_example_grades_as_it_says() -> None:
    items = (("7", r"\boxed{7.0}", 200), ("7", "#### 7", 600), ("7", "#### 7", 5000), ("7", "#### 8", 9), ("", "x", 9))
    assert rewards_of(load_reward(f"{EXAMPLE}:right_and_short"), *items) == pytest.approx([1.0, 0.8, 0.6, 0.0, None])
    assert rewards_of(load_reward(f"{EXAMPLE}:right"), *items[:4]) == [1.0, 1.0, 1.0, 0.0]


def test_the_example_works_in_spawned_worker_processes() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        done = pool.submit(grade_with_own_reward, f"{EXAMPLE}:right_and_short", ["#### 7", "#### 8"]).result(60)
    assert done == [1.0, 0.0]


def test_settings_name_the_reward_for_every_kind_of_task(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def reward(completions, **columns):\n    return [0.25] * len(completions)\n")
    settings = ProblemsConfig(reward=f"{tmp_path}/mine.py:reward", grader_seconds=3.0)
    for kind in ("boxed", "math", "final_number", "reasoning_gym"):
        reward = reward_for(kind, settings)
        assert isinstance(reward, FunctionReward)
        assert (reward.time_limit, rewards_of(reward, ("1", "x", 1))) == (3.0, [0.25])


def test_a_module_serves_as_well_as_a_file_and_neighbours_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("WORTH = 0.5\n")
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('hides the standard library')\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (tmp_path / "my_worth.py").write_text(
        "import colorsys\nfrom neighbour_of_mine import WORTH\n\n\n"
        "def reward(completions):\n    return [WORTH] * len(completions)\n"
    )
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", list(path))
    assert rewards_of(load_reward(f"{tmp_path}/my_worth.py:reward"), ("1", "x", 1)) == [0.5]
    assert sys.path == [*path, str(tmp_path)]
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.syspath_prepend(str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert rewards_of(load_reward("my_worth:reward"), ("1", "x", 1)) == [0.5]


def test_a_function_may_import_a_neighbour_when_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "late_neighbour.py").write_text("WORTH = 0.75\n")
    for name in ("first", "second"):
        (tmp_path / f"{name}_late.py").write_text(
            "def reward(completions):\n    from late_neighbour import WORTH\n\n    return [WORTH] * len(completions)\n"
        )
        assert rewards_of(load_reward(f"{tmp_path}/{name}_late.py:reward"), ("1", "x", 1)) == [0.75]
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[-1] == str(tmp_path)


BROKEN = [
    # content of the file, name, message, reason
    ("def other(completions): ...\n", "reward", "has no function 'reward'; functions there: other", "no such function"),
    ("reward = 3\n", "reward", "reward is int and cannot be called; name a function", "not callable"),
    (
        "def reward(x): ...\n",
        "reward",
        r"reward\(x\) does not take completions by name; write def my_reward",
        "no completions",
    ),
    ("def reward(completions, /): ...\n", "reward", "does not take completions by name", "completions by place only"),
    (
        "\n\ndef broken():\n    return 1 / 0\n\n\nbroken()\n",
        "reward",
        r"mine.py, line 4: ZeroDivisionError: division by zero",
        "raises",
    ),
    (
        "import no_such_package\n",
        "reward",
        "mine.py, line 1: ModuleNotFoundError: No module named 'no_such_package'",
        "import",
    ),
    ("x = 1\ndef reward(:\n", "reward", "mine.py, line 2: SyntaxError", "syntax"),
    ("raise SystemExit(3)\n", "reward", "mine.py, line 1: SystemExit: 3", "ends the program"),
]


@pytest.mark.parametrize(("content", "name", "message", "reason"), BROKEN, ids=[row[-1] for row in BROKEN])
def test_a_reward_that_cannot_be_loaded_is_one_clear_line(
    tmp_path: Path, content: str, name: str, message: str, reason: str
) -> None:
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_reward(f"{tmp_path}/mine.py:{name}")
    assert "\n" not in str(caught.value), reason
    assert str(caught.value).startswith(f"reward = '{tmp_path}/mine.py:{name}'")


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=re.escape("there is no file nowhere.py; check the path")):
        load_reward("nowhere.py:reward")
    with pytest.raises(
        ConfigError, match="there is no module 'no_such_module'; install it, or give the path of a file"
    ):
        load_reward("no_such_module:reward")
    with pytest.raises(ConfigError, match=r"there is no module 'bsharp.no_such_module'"):
        load_reward("bsharp.no_such_module:reward")
    for spec in ("mine.py", "mine.py:", ":reward", "mine.py:not a name"):
        with pytest.raises(ConfigError, match=r"names no function; write my_reward|names no function; write my_module"):
            load_reward(spec)
