"""Which generator decodes a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsharp.config import Backend, ConfigError
from bsharp.generation.decoder import Decoder
from bsharp.generation.interface import Generator
from bsharp.generation.local import transformers_model
from bsharp.generation.transformers_generate import TransformersGenerator, has_recurrent_state

if TYPE_CHECKING:
    from bsharp.models.loading import LanguageModel

__all__ = ["DECODER_FAMILIES", "generator_for"]

DECODER_FAMILIES = frozenset({"gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3"})
"""`model_type` of the configurations whose decoding is tested token for token against transformers' own."""


def generator_for(
    language_model: LanguageModel, max_rows: int = 512, backend: Backend = "auto", policy_version: int = 0
) -> Generator:
    """The generator of `backend` for this model, with `max_rows` completions at once, whose weights have `policy_version`.

    auto takes the built-in decoder for DECODER_FAMILIES, with or without an adapter, and transformers' own generate for
    every other architecture. Raises ConfigError where the decoder is asked for and cannot serve the model.
    """
    model = transformers_model(language_model.model)
    family = str(model.config.model_type)
    if backend == "transformers" or (backend == "auto" and family not in DECODER_FAMILIES):
        return TransformersGenerator(language_model, max_rows, policy_version)
    if has_recurrent_state(model) or model.config.is_encoder_decoder:
        raise ConfigError(
            f"backend = 'decoder' cannot decode a model of type {family!r}, which has no plain key/value cache; "
            "choose auto or transformers"
        )
    return Decoder(language_model, max_rows, policy_version)
