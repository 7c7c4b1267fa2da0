"""What each regime would make of a base, forecast from the base's own samples before any training."""

from __future__ import annotations

from bsharp.diagnostics.forecast.assemble import ALPHAS, BETA_INVS, FORECAST_SCHEMA, forecast, forecast_samples
from bsharp.diagnostics.forecast.prediction import Prediction, best_of_k, optimum_weights, predict
from bsharp.diagnostics.forecast.records import NumberedRecord
from bsharp.diagnostics.forecast.samples import BaseSamples, ProblemSamples, read_samples

__all__ = [
    "ALPHAS",
    "BETA_INVS",
    "FORECAST_SCHEMA",
    "BaseSamples",
    "NumberedRecord",
    "Prediction",
    "ProblemSamples",
    "best_of_k",
    "forecast",
    "forecast_samples",
    "optimum_weights",
    "predict",
    "read_samples",
]
