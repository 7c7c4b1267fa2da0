"""Causal language models: loading, adapters, chat templates, teacher-forced log-probabilities, the value head, the tiny base."""

from bsharp.models.adapters import make_policy, prepare_base
from bsharp.models.loading import (
    LanguageModel,
    clone_model,
    load_language_model,
    save_language_model,
    weights_hash,
)
from bsharp.models.logprobs import ForwardResult, forward_responses, response_logprobs
from bsharp.models.value_head import ValueHead

__all__ = [
    "ForwardResult",
    "LanguageModel",
    "ValueHead",
    "clone_model",
    "forward_responses",
    "load_language_model",
    "make_policy",
    "prepare_base",
    "response_logprobs",
    "save_language_model",
    "weights_hash",
]
