"""docs/problems.md says what the code does: its tables are the code's, its examples run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from public_data import data_dir, needs_public_data

from bsharp.config import ProblemsConfig
from bsharp.tasks import FORMATS, TASK_NAMES, Split, load_task
from bsharp.tasks.public import PUBLIC
from bsharp.tasks.table import public_table

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "problems.md").read_text(encoding="utf-8")


def test_the_table_of_public_sets_is_the_code_s() -> None:
    remedy = "docs/problems.md is out of date; put the output of bsharp.tasks.table.public_table() into it"
    assert f"\n{public_table()}\n" in TEXT, remedy
    assert all(f"`{name}`" in TEXT for name in TASK_NAMES)


def test_the_table_of_formats_is_the_code_s() -> None:
    found = dict(re.findall(r"^\| `(\w+)` \| `(.*\{question\}.*)` \|$", TEXT, re.MULTILINE))
    assert found == {name: template.replace("\n", "⏎") for name, template in FORMATS.items()}


@needs_public_data
def test_the_sizes_are_those_of_the_published_files() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \|", TEXT, re.MULTILINE)
    assert len(rows) >= 5
    settings = ProblemsConfig(data_dir=str(data_dir()))
    for name, *sizes in rows:
        task = load_task(name, settings)
        assert [task.size(split) for split in Split] == list(map(int, sizes)), name


def test_the_example_of_own_problems_runs_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(ROOT)
    exec(compile(code[1], "docs/problems.md", "exec"), {})  # the document is ours
    first, *asked = capsys.readouterr().out.splitlines()
    assert first == "{'train': 24, 'validation': 8, 'test': 8}"
    assert len(asked) == 3


def test_the_documented_command_names_a_file_and_fields_that_are_there() -> None:
    command = re.search(r"^bsharp compare (--data .*)$", TEXT, re.MULTILINE)
    assert command is not None
    words = shlex.split(command[1])
    options = {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)
    }
    options["data"] = str(ROOT / options["data"])
    task = load_task("data", ProblemsConfig(**options))  # type: ignore[arg-type]
    assert [task.size(split) for split in Split] == [24, 8, 8]
    example = re.search(r"```json\n(.*?)\n```", TEXT, re.DOTALL)
    assert example is not None
    assert example[1] in (ROOT / "examples" / "data" / "problems.jsonl").read_text(encoding="utf-8").splitlines()


def test_the_documented_default_formats_are_the_code_s() -> None:
    (problem,) = load_task("math_mini").problems("test", 1, 0)
    default = {name: FORMATS[source.prompt_format] for name, source in PUBLIC.items()}
    own = ProblemsConfig(data=str(ROOT / "examples" / "data" / "problems.jsonl"))
    assert load_task("data", own).prompt(problem) == FORMATS["boxed"].replace("{question}", problem.question)
    for name, template in default.items():
        assert load_task(name).prompt(problem) == template.replace("{question}", problem.question)
