"""Checkpoints from which a killed run goes on bit for bit. Safetensors and JSON only; the base is never in them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file

from bsharp.models.loading import LanguageModel, save_language_model
from bsharp.models.placement import has_adapter
from bsharp.training.optimizer import load_optimizer, save_optimizer
from bsharp.training.step import Critic

__all__ = ["Progress", "latest_checkpoint", "load_checkpoint", "save_checkpoint", "save_policy"]


@dataclass
class Progress:
    """What a run knows besides weights: it is saved with each checkpoint."""

    step: int = 0
    best_step: int | None = None
    best_accuracy: float = -1.0
    stopped: str | None = None  # why the run ended before its last step
    collapsed: bool = False  # it ended because the collapse alarm was to end it; its weights are those of that step
    stopped_at: int | None = None  # the step that could not be kept, where weights had to be put back


def save_policy(policy: LanguageModel, folder: Path) -> None:
    """Write the policy as an ordinary Hugging Face folder, of its adapters where it has some, in one step."""
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    save_language_model(policy, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def save_checkpoint(
    folder: Path, policy: LanguageModel, optimizer: torch.optim.Optimizer, progress: Progress, critic: Critic | None
) -> None:
    """Write `folder`/step_000040 and remove the older ones; half-written checkpoints keep another name."""
    target = folder / f"step_{progress.step:06d}"
    temporary = folder / f"{target.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    save_language_model(policy, temporary)
    save_optimizer(optimizer, temporary / "optimizer")
    if critic:
        save_file(critic.head.state_dict(), temporary / "value_head.safetensors")
        save_optimizer(critic.optimizer, temporary / "value_optimizer")
    (temporary / "progress.json").write_text(json.dumps(vars(progress)), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for old in folder.glob("step_*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    complete = [path for path in folder.glob("step_*") if not path.name.endswith(".part")]
    return max(complete, default=None)


def load_checkpoint(
    path: Path, policy: LanguageModel, optimizer: torch.optim.Optimizer, critic: Critic | None
) -> Progress:
    """Restore policy, optimizer and critic in place, bit for bit; the base is not touched. Returns the run's progress."""
    _load_weights(policy, path)
    load_optimizer(optimizer, path / "optimizer")
    if critic:
        critic.head.load_state_dict(load_file(path / "value_head.safetensors"))
        load_optimizer(critic.optimizer, path / "value_optimizer")
    return Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))


def _load_weights(policy: LanguageModel, path: Path) -> None:
    if has_adapter(policy.model):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(policy.model, load_file(path / "adapter_model.safetensors"))
        return
    # load_model knows about tied weights, of which safetensors keeps one copy.
    load_model(policy.model, path / "model.safetensors")
