"""config → objects: the base bound by its hash, tasks, graders, generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bsharp.config import ConfigError
from bsharp.generation import Decoder, Generator
from bsharp.models.loading import LanguageModel, load_language_model, weights_hash
from bsharp.rewards import RewardFunction, reward_for
from bsharp.tasks import TASK_NAMES, Task, load_task

__all__ = ["Workbench", "build_workbench", "decoder_for", "load_tasks", "set_threads"]


@dataclass(frozen=True)
class Workbench:
    """What every run of one comparison shares: the frozen base and what is asked of it."""

    base: LanguageModel
    base_hash: str
    tasks: Mapping[str, Task]
    rewards: Mapping[str, RewardFunction]


def build_workbench(model: str, task_names: Sequence[str], dtype: str = "float32", device: str = "cpu") -> Workbench:
    """Load base, tasks and graders. Raises ConfigError for anything that cannot be loaded."""
    tasks = load_tasks(task_names)
    base = load_language_model(model, dtype, device)
    base.model.requires_grad_(False)
    rewards = {name: reward_for(task) for name, task in tasks.items()}
    return Workbench(base, weights_hash(base.model), tasks, rewards)


def load_tasks(names: Sequence[str]) -> dict[str, Task]:
    """Tasks by name, in order. Raises ConfigError for none, an unknown one or one named twice."""
    if not names:
        raise ConfigError(f"tasks = () leaves nothing to ask; known tasks: {', '.join(TASK_NAMES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"tasks = {tuple(names)!r} names a task twice; name each once")
    try:
        return {name: load_task(name) for name in names}
    except ValueError as error:
        raise ConfigError(str(error)) from None


def decoder_for(language_model: LanguageModel, max_rows: int = 512) -> Generator:
    """The built-in generator on this very model: its weights are always the current ones."""
    return Decoder(language_model, max_rows)


def set_threads(threads: int) -> None:
    """CPU threads of torch for everything that follows in this process."""
    torch.set_num_threads(threads)
