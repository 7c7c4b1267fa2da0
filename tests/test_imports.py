"""What is imported when: seconds are torch's and transformers', and not everything needs them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import bsharp
from bsharp import experiment, reporting

HEAVY = ("torch", "transformers", "datasets", "pandas", "scipy.stats", "scipy.optimize")


@pytest.mark.parametrize(
    "module",
    ["bsharp", "bsharp.cli", "bsharp.experiment.grading", "bsharp.reporting.table", "bsharp.statistics.samples"],
)
def test_grades_tables_and_figures_need_neither_torch_nor_anything_else_that_takes_seconds(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", [bsharp, experiment, reporting], ids=lambda package: package.__name__)
def test_every_name_of_a_package_is_found_and_others_are_refused_with_the_known_ones(package: ModuleType) -> None:
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match=f"has no attribute 'nothing'; it has {package.__all__[0]}"):
        _ = package.nothing


def test_a_function_keeps_its_name_when_the_module_of_that_name_is_imported() -> None:
    for name in ("diagnose", "tune"):
        module = importlib.import_module(f"bsharp.experiment.{name}")
        assert getattr(experiment, name) is getattr(module, name)


def test_a_name_of_the_package_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "diagnose", len)
    assert experiment.diagnose is len
