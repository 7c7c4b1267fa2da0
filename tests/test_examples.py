"""The examples and the README's code run as they stand, or with smaller numbers where they would take minutes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bsharp

ROOT = Path(__file__).parents[1]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_flat_training_loop_runs_and_starts_at_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    rewards = load("training_loop").main(steps=2)
    assert len(rewards) == 2
    assert all(0.0 <= reward <= 1.0 for reward in rewards)
    first = re.search(r"KL to base (-?[\d.]+)", capsys.readouterr().out)
    assert first is not None
    assert abs(float(first[1])) < 0.01


def test_the_readme_code_runs_line_by_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    asked: list[Any] = []

    def compare(config: bsharp.CompareConfig, out: str) -> dict[str, Any]:
        asked.append(config)
        return {"verdict": {"sentence": "gain"}, "regimes": {"task_reward": {"delta": {"estimate": 0.5}}}}

    monkeypatch.setattr(bsharp, "compare", compare, raising=False)
    exec(compile(code[1], "README.md", "exec"), {"__name__": "__main__"})  # the README is ours
    assert asked[0].regimes == ("task_reward", "sharpening")
    assert "gain" in capsys.readouterr().out


def test_every_file_the_readme_links_to_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_tree_in_the_readme_names_every_package() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The house")[2]
    for folder in (ROOT / "bsharp").iterdir():
        if (folder / "__init__.py").exists():
            assert f"{folder.name}/" in tree, folder.name
