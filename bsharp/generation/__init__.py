"""Completions from a policy: the `Generator` interface and the built-in batched decoder."""

from bsharp.generation.decoder import Decoder
from bsharp.generation.interface import GenerationRequest, Generator, LogitsError, SamplingParams

__all__ = ["Decoder", "GenerationRequest", "Generator", "LogitsError", "SamplingParams"]
