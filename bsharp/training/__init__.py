"""The training step, the loop around it, and checkpoints."""

from bsharp.training.checkpoints import Progress, latest_checkpoint, load_checkpoint, save_checkpoint
from bsharp.training.loop import Alarms, Probe, Validate, Watcher, check_trainable, train_policy
from bsharp.training.optimizer import build_optimizer
from bsharp.training.step import Update, accumulate_gradient, training_step, update_policy

__all__ = [
    "Alarms",
    "Probe",
    "Progress",
    "Update",
    "Validate",
    "Watcher",
    "accumulate_gradient",
    "build_optimizer",
    "check_trainable",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "train_policy",
    "training_step",
    "update_policy",
]
