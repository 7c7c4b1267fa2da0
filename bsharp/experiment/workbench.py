"""What the runs of one comparison share: the frozen base, the tasks, the graders; and what it is known by."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from bsharp.config import (
    EMBEDDED_TASKS,
    ChatConfig,
    CompareConfig,
    ConfigError,
    ProblemsConfig,
    TrainConfig,
    WeightsConfig,
)
from bsharp.models.adapters import check_weights, prepare_base
from bsharp.models.loading import LanguageModel, load_language_model, weights_hash
from bsharp.models.network import network_of
from bsharp.models.products import product_library
from bsharp.rewards import RewardFunction, reward_for
from bsharp.runlog import manifest
from bsharp.tasks import DIFFICULTIES, TASK_NAMES, ProceduralTask, Split, Task, load_task
from bsharp.tasks.decontamination import decontaminate
from bsharp.tasks.gym import GymTask
from bsharp.tasks.listed import ListedTask, Listing
from bsharp.types import Problem

__all__ = [
    "Workbench",
    "build_workbench",
    "load_tasks",
    "own_problems_only",
    "told_left_out",
    "workbench_arguments",
    "workbench_of",
]


@dataclass(frozen=True)
class Workbench:
    """What every run of one comparison shares: the frozen base and what is asked of it."""

    base: LanguageModel
    base_hash: str
    tasks: Mapping[str, Task]  # trained and validated on
    rewards: Mapping[str, RewardFunction]  # of all tasks, those of the evaluation included
    evaluation_tasks: Mapping[str, Task]  # asked before and after
    left_out: Mapping[str, int]  # by task: training and validation problems that are also evaluated test problems
    splits: tuple[Split, ...] = tuple(Split)  # those that will be asked
    judge: str | None = None  # hash of the file of a reward of one's own
    # What a validation said of the base, by its settings: every run of whole weights begins with the same one.
    at_start: dict[str, Mapping[str, float]] = field(default_factory=dict, compare=False, repr=False)

    def manifest(self, **extra: Any) -> dict[str, Any]:
        """What a run of this workbench ran on; its identity holds how problems are read, asked and judged."""
        read = {
            f"{task.name} {split}": task.listing(split)
            for split in self.splits
            for task in (self.evaluation_tasks if split is Split.TEST else self.tasks).values()
            if isinstance(task, ListedTask)
        }
        network = network_of(self.base.model)
        library = product_library(0 if network is None else network.weight_bytes)
        chosen = {"dtype": str(self.base.model.dtype).removeprefix("torch."), "float32_products": library}
        found = manifest(self.base_hash, precision=chosen, **extra)
        identity = found["identity"]
        identity["prompts"] = _hash(_prompt_parts(self.base))
        if self.judge is not None:
            identity["reward"] = self.judge
        if any(isinstance(task, GymTask) for task in (*self.tasks.values(), *self.evaluation_tasks.values())):
            identity["reasoning_gym"] = metadata.version("reasoning-gym")
        if read:
            # Another version of a data set is another run, though its settings are equal.
            identity["problems"] = {name: _problems_hash(listing.problems) for name, listing in read.items()}
            found["problems"] = {name: len(listing.problems) for name, listing in read.items()}
            found["problems_left_out"] = self.dropped(read)
        return found

    def dropped(self, read: Mapping[str, Listing]) -> dict[str, int]:
        """How many rows were left out, by `task split: reason`."""
        return {
            f"{name}: {reason}": count for name, listing in read.items() for reason, count in listing.dropped.items()
        }


def build_workbench(
    model: str,
    task_names: Sequence[str],
    difficulties: Sequence[int] = (),
    device: str = "cpu",
    *,
    problems: ProblemsConfig = ProblemsConfig(),
    chat: ChatConfig = ChatConfig(),
    weights: WeightsConfig = WeightsConfig(),
    evaluation_tasks: Sequence[str] = (),
    splits: Sequence[Split] = tuple(Split),
) -> Workbench:
    """Load base, tasks and graders. Raises ConfigError for anything that cannot be loaded.

    Training and validation problems that stand among the evaluated test problems, of whatever task, are left out. An
    evaluation names the `splits` it asks: nothing of the others is read then.
    """
    check_weights(weights)
    if problems.data is not None and "data" not in (*task_names, *evaluation_tasks):
        raise ConfigError(
            f"--data {problems.data} is asked as a task named data: put data among --tasks, or leave --tasks out"
        )
    tasks = load_tasks(task_names, difficulties, problems)
    evaluated = load_tasks(evaluation_tasks, difficulties, problems) if evaluation_tasks else tasks
    left_out: Mapping[str, int] = {}
    if set(splits) == set(Split):
        tasks, left_out = decontaminate(tasks.values(), evaluated.values())
    rewards = {name: _reward(task, problems) for name, task in (tasks | evaluated).items()}
    base = load_language_model(model, weights.dtype, device, chat)
    base.model.requires_grad_(False)
    base_hash = weights_hash(base.model)
    judge = None if problems.reward is None else _reward_hash(problems.reward)
    frozen = prepare_base(base, weights)
    return Workbench(frozen, base_hash, tasks, rewards, evaluated, left_out, tuple(splits), judge)


def workbench_of(config: TrainConfig | CompareConfig, evaluation_tasks: Sequence[str] = ()) -> Workbench:
    """The workbench that a config asks for; a comparison names its evaluation tasks itself."""
    return build_workbench(**workbench_arguments(config, evaluation_tasks))


def workbench_arguments(config: TrainConfig | CompareConfig, evaluation_tasks: Sequence[str] = ()) -> dict[str, Any]:
    """What `workbench_of` hands to `build_workbench`."""
    return {
        "model": config.model,
        "task_names": config.tasks,
        "difficulties": config.difficulties,
        "device": config.device,
        "problems": config.problems,
        "chat": config.chat,
        "weights": config.weights,
        "evaluation_tasks": config.evaluation_tasks if isinstance(config, CompareConfig) else tuple(evaluation_tasks),
    }


def load_tasks(
    names: Sequence[str], difficulties: Sequence[int] = (), problems: ProblemsConfig = ProblemsConfig()
) -> dict[str, Task]:
    """Tasks by name, in order, at the given difficulties (all of them where none is named).

    Raises ConfigError for no task, an unknown one, one named twice or one that cannot be read.
    """
    if not names:
        raise ConfigError(f"tasks = () leaves nothing to ask; known tasks: {', '.join(TASK_NAMES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"tasks = {tuple(names)!r} names a task twice; name each once")
    try:
        tasks = {name: load_task(name, problems) for name in names}
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not difficulties:
        return dict(tasks)
    try:
        return {name: _at_difficulties(task, tuple(difficulties)) for name, task in tasks.items()}
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _at_difficulties(task: Task, difficulties: tuple[int, ...]) -> Task:
    if isinstance(task, ListedTask):
        return task.at_difficulties(difficulties)
    if not isinstance(task, ProceduralTask):
        raise ConfigError(f"difficulties = {difficulties} do not apply to {task.name}; leave them out")
    if beyond := [level for level in difficulties if level not in DIFFICULTIES]:
        raise ConfigError(f"difficulties: {task.name} has no difficulty {beyond[0]}; choose from {list(DIFFICULTIES)}")
    return _AtDifficulties(**vars(task), difficulties=difficulties)


def own_problems_only(names: Sequence[str], problems: ProblemsConfig) -> tuple[str, ...]:
    """The tasks meant where none was named but a file of own problems was given: that file alone."""
    return ("data",) if problems.data is not None and tuple(names) == EMBEDDED_TASKS else tuple(names)


def told_left_out(left_out: Mapping[str, int]) -> str:
    """One line about the rows of data sets that are not asked."""
    return "left out: " + "; ".join(f"{count} of {reason}" for reason, count in left_out.items())


def _hash(parts: Iterable[str]) -> str:
    """SHA-256 over texts (16 hex digits)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:16]


def _reward_hash(spec: str) -> str:
    """Of the file that holds a reward of one's own: a run under another version of it is another run."""
    place = spec.rpartition(":")[0]
    found = None if place.endswith(".py") else importlib.util.find_spec(place)
    file = Path(place) if found is None else Path(found.origin or place)
    return _hash([file.read_text(encoding="utf-8", errors="replace")]) if file.is_file() else spec


def _problems_hash(problems: Sequence[Problem]) -> str:
    """What is asked, what is right, and what else a reward is told."""
    parts = (
        (p.problem_id, p.question, p.answer, json.dumps(dict(p.metadata), sort_keys=True, default=str))
        for p in problems
    )
    return _hash(itertools.chain.from_iterable(parts))


def _prompt_parts(base: LanguageModel) -> list[str]:
    """How a text becomes token ids: vocabulary and chat template."""
    tokenizer = base.tokenizer
    return [repr(sorted(tokenizer.get_vocab().items())), str(getattr(tokenizer, "chat_template", None))]


def _reward(task: Task, problems: ProblemsConfig) -> RewardFunction:
    try:
        return reward_for(task, problems)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True, eq=False)
class _AtDifficulties(ProceduralTask):
    """A task of which only some difficulties are asked."""

    difficulties: tuple[int, ...] = ()

    def problems(
        self,
        split: Split | str,
        count: int,
        seed: int,
        families: Sequence[str] | None = None,
        difficulties: Sequence[int] | None = None,
    ) -> list[Problem]:
        return super().problems(split, count, seed, families, difficulties or self.difficulties)
