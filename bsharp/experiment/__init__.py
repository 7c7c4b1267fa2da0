"""The composition root: config → objects → run."""

from bsharp.experiment.comparison import compare, write_results
from bsharp.experiment.diagnose import DIAGNOSTICS, Diagnostic, DiagnosticsFailed, diagnose
from bsharp.experiment.jobs import Event, Job, JobFailed
from bsharp.experiment.run import evaluate_model, train
from bsharp.experiment.setup import Workbench, build_workbench, decoder_for, load_tasks, regimes_of
from bsharp.experiment.tune import LEARNING_RATE_GRID, tune

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
    "compare",
    "decoder_for",
    "diagnose",
    "evaluate_model",
    "load_tasks",
    "regimes_of",
    "train",
    "tune",
    "write_results",
]
