"""Completions from a policy: the `Generator` interface, the built-in decoder and transformers' own generate behind it."""

from bsharp.generation.choose import DECODER_FAMILIES, generator_for
from bsharp.generation.decoder import Decoder
from bsharp.generation.interface import GenerationRequest, Generator, LogitsError, SamplingParams
from bsharp.generation.transformers_generate import TransformersGenerator

__all__ = [
    "DECODER_FAMILIES",
    "Decoder",
    "GenerationRequest",
    "Generator",
    "LogitsError",
    "SamplingParams",
    "TransformersGenerator",
    "generator_for",
]
