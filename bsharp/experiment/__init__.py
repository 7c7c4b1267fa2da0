"""The composition root: config → objects → run.

Everything is imported when first used: grading answers needs nothing of what trains a model.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsharp.experiment.comparison import compare, write_results
    from bsharp.experiment.diagnose import DIAGNOSTICS, Diagnostic, DiagnosticsFailed, diagnose
    from bsharp.experiment.forecast import forecast_model, forecast_records
    from bsharp.experiment.jobs import Event, Job, JobFailed
    from bsharp.experiment.run import evaluate_model, train
    from bsharp.experiment.setup import regimes_of
    from bsharp.experiment.theory import check_theory, theory_page, world_of_problem
    from bsharp.experiment.tune import LEARNING_RATE_GRID, tune
    from bsharp.experiment.workbench import Workbench, build_workbench, load_tasks, own_problems_only, workbench_of

_HOMES = {
    "DIAGNOSTICS": "diagnose",
    "LEARNING_RATE_GRID": "tune",
    "Diagnostic": "diagnose",
    "DiagnosticsFailed": "diagnose",
    "Event": "jobs",
    "Job": "jobs",
    "JobFailed": "jobs",
    "Workbench": "workbench",
    "build_workbench": "workbench",
    "check_theory": "theory",
    "compare": "comparison",
    "diagnose": "diagnose",
    "evaluate_model": "run",
    "forecast_model": "forecast",
    "forecast_records": "forecast",
    "load_tasks": "workbench",
    "own_problems_only": "workbench",
    "regimes_of": "setup",
    "theory_page": "theory",
    "train": "run",
    "tune": "tune",
    "workbench_of": "workbench",
    "world_of_problem": "theory",
    "write_results": "comparison",
}

__all__ = [
    "DIAGNOSTICS",
    "LEARNING_RATE_GRID",
    "Diagnostic",
    "DiagnosticsFailed",
    "Event",
    "Job",
    "JobFailed",
    "Workbench",
    "build_workbench",
    "check_theory",
    "compare",
    "diagnose",
    "evaluate_model",
    "forecast_model",
    "forecast_records",
    "load_tasks",
    "own_problems_only",
    "regimes_of",
    "theory_page",
    "train",
    "tune",
    "workbench_of",
    "world_of_problem",
    "write_results",
]


class _Package(ModuleType):
    """A package in which a name of `__all__` is never the submodule of that name: `diagnose` and `tune` are functions."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python puts every submodule that is imported into its package.
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bsharp.experiment' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"bsharp.experiment.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


sys.modules[__name__].__class__ = _Package
