"""b♯: is a language model fine-tuned with rewards learning something, or only sharpening what it already preferred?

The public surface is what `__all__` names; everything is imported when first used, so that `import bsharp` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsharp.version import __version__

if TYPE_CHECKING:
    from bsharp.algorithm import Objective, parse_objective
    from bsharp.config import CompareConfig, ConfigError, EvaluationConfig, ForecastConfig, TrainConfig
    from bsharp.experiment import build_workbench, compare, evaluate_model, forecast_model, forecast_records, train
    from bsharp.models.loading import LanguageModel, load_language_model
    from bsharp.reporting import results_markdown
    from bsharp.tasks import load_task

_HOMES = {
    "CompareConfig": "bsharp.config",
    "ConfigError": "bsharp.config",
    "EvaluationConfig": "bsharp.config",
    "ForecastConfig": "bsharp.config",
    "LanguageModel": "bsharp.models.loading",
    "Objective": "bsharp.algorithm",
    "TrainConfig": "bsharp.config",
    "build_workbench": "bsharp.experiment",
    "compare": "bsharp.experiment",
    "evaluate_model": "bsharp.experiment",
    "forecast_model": "bsharp.experiment",
    "forecast_records": "bsharp.experiment",
    "load_language_model": "bsharp.models.loading",
    "load_task": "bsharp.tasks",
    "results_markdown": "bsharp.reporting",
    "parse_objective": "bsharp.algorithm",
    "train": "bsharp.experiment",
}

__all__ = [
    "CompareConfig",
    "ConfigError",
    "EvaluationConfig",
    "ForecastConfig",
    "LanguageModel",
    "Objective",
    "TrainConfig",
    "__version__",
    "build_workbench",
    "compare",
    "evaluate_model",
    "forecast_model",
    "forecast_records",
    "load_language_model",
    "load_task",
    "parse_objective",
    "results_markdown",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bsharp' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
