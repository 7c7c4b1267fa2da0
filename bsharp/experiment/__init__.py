"""The composition root: config → objects → run."""

from bsharp.experiment.comparison import compare, regimes_of, write_results
from bsharp.experiment.jobs import Event, Job, JobFailed
from bsharp.experiment.run import evaluate_model, train
from bsharp.experiment.setup import Workbench, build_workbench, decoder_for, load_tasks
from bsharp.experiment.tune import LEARNING_RATE_GRID, tune

__all__ = [
    "LEARNING_RATE_GRID",
    "Event",
    "Job",
    "JobFailed",
    "Workbench",
    "build_workbench",
    "compare",
    "decoder_for",
    "evaluate_model",
    "load_tasks",
    "regimes_of",
    "train",
    "tune",
    "write_results",
]
