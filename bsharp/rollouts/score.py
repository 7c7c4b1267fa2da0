"""Log-probabilities of whole completions under another model than the one that drew them."""

from __future__ import annotations

from collections.abc import Sequence

from bsharp.masking import pad_right
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import response_logprobs
from bsharp.types import Completion

__all__ = ["completion_logprobs"]


def completion_logprobs(
    language_model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[Sequence[Completion]],
    temperature: float,
    fixed_length: bool,
    microbatch_rows: int,
) -> list[list[float]]:
    """log π(y | x) of each whole response, nats, in the order of `completions`: those of one prompt per item.

    Under the distribution at `temperature`, with EOS masked out where `fixed_length`. A response that was drawn several times is
    scored once.
    """
    keys = [[(prompt, c.token_ids) for c in group] for prompt, group in zip(prompts, completions, strict=True)]
    distinct = list(dict.fromkeys(key for group in keys for key in group))
    token_ids, mask = pad_right([response for _, response in distinct], language_model.pad_token_id)
    token_logprobs = response_logprobs(
        language_model,
        [prompt for prompt, _ in distinct],
        token_ids,
        mask,
        temperature,
        fixed_length,
        microbatch_rows,
    )
    found = dict(zip(distinct, token_logprobs.double().sum(-1).tolist(), strict=True))
    return [[found[key] for key in group] for group in keys]
