"""The composition root: config → objects → run."""

from bsharp.experiment.comparison import compare, write_results
from bsharp.experiment.diagnose import DIAGNOSTICS, Diagnostic, DiagnosticsFailed, diagnose
from bsharp.experiment.forecast import forecast_model, forecast_records
from bsharp.experiment.jobs import Event, Job, JobFailed
from bsharp.experiment.run import evaluate_model, train
from bsharp.experiment.setup import regimes_of
from bsharp.experiment.theory import check_theory, theory_page, world_of_problem
from bsharp.experiment.tune import LEARNING_RATE_GRID, tune
from bsharp.experiment.workbench import Workbench, build_workbench, load_tasks, own_problems_only, workbench_of

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
