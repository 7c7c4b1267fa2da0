"""Every response of a causal LM to one prompt, with its exact log-probability: a real model as a finite world."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import forward_responses

__all__ = ["MAX_RESPONSES", "EnumeratedResponses", "enumerate_responses", "number_of_responses"]

MAX_RESPONSES = 200_000


@dataclass(frozen=True)
class EnumeratedResponses:
    """All N responses, from short to long, padded on the right with the model's pad id to T tokens."""

    token_ids: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    token_logprobs: Float[Tensor, "N T"]  # nats, float64, 0 outside the mask
    ended: Bool[Tensor, " N"]  # False where the response was cut at the token limit

    @property
    def size(self) -> int:
        """Number of responses N."""
        return self.token_ids.shape[0]

    @property
    def sequence_logprobs(self) -> Float[Tensor, " N"]:
        """log π(y | x) of each response, nats; their exponentials sum to 1."""
        return self.token_logprobs.sum(-1)

    def responses(self) -> list[tuple[int, ...]]:
        """Token ids of each response without its padding."""
        lengths = self.mask.sum(-1).tolist()
        return [tuple(row[:length]) for row, length in zip(self.token_ids.tolist(), lengths, strict=True)]


def enumerate_responses(
    language_model: LanguageModel,
    prompt_token_ids: Sequence[int],
    max_new_tokens: int,
    allowed_token_ids: Collection[int] | None = None,
    end_token_ids: Collection[int] | None = None,
    must_end: bool = False,
    temperature: float = 1.0,
    fixed_length: bool = False,
    max_responses: int = MAX_RESPONSES,
    microbatch_rows: int = 256,
) -> EnumeratedResponses:
    """Every response y to the prompt x, and log π(y | x) = Σ_t log q(y_t | x, y_<t), by breadth-first search over prefixes.

    With logits z, q = softmax(z / temperature) restricted to `allowed_token_ids` (None: the whole vocabulary) and
    renormalised over them, that is constrained decoding. A response ends with one of `end_token_ids` (None: the model's
    EOS ids), which belongs to it, or at `max_new_tokens` tokens; with `must_end` the last place takes an ending token only, so
    that every response ends. `fixed_length` takes the EOS ids away from the allowed ones, as the sampler does. Where nothing is
    restricted these are the log-probabilities of `response_logprobs`; here they are normalised and summed in float64, so that
    the probabilities of all responses sum to 1 to rounding. A token whose logit is −∞ begins no branch.

    Raises ValueError for more than `max_responses` responses (before the model is run), for token ids outside the vocabulary,
    where no token is left at a place, for an empty prompt and for logits that are no distribution.
    """
    allowed = set(range(language_model.vocab_size)) if allowed_token_ids is None else set(allowed_token_ids)
    ends = set(language_model.eos_token_ids if end_token_ids is None else end_token_ids)
    outside = sorted(token for token in allowed | ends if not 0 <= token < language_model.vocab_size)
    if outside:
        raise ValueError(
            f"token id {outside[0]} is outside the model's vocabulary of {language_model.vocab_size}; "
            "encode allowed and ending tokens with the model's own tokenizer"
        )
    if fixed_length:
        allowed -= set(language_model.eos_token_ids)
    ends &= allowed
    _check(allowed, ends, max_new_tokens, must_end, max_responses, language_model.vocab_size)
    ending = torch.zeros(language_model.vocab_size, dtype=torch.bool)
    ending[list(ends)] = True
    prefixes, logprobs = torch.zeros((1, 0), dtype=torch.long), torch.zeros((1, 0), dtype=torch.float64)
    finished: list[tuple[Tensor, Tensor]] = []
    for place in range(max_new_tokens):
        last = place + 1 == max_new_tokens
        choices = torch.tensor(sorted(ends if must_end and last else allowed))
        following = _next_logprobs(language_model, prompt_token_ids, prefixes, choices, temperature, microbatch_rows)
        rows, columns = torch.nonzero(following > -torch.inf, as_tuple=True)
        prefixes = torch.cat([prefixes[rows], choices[columns][:, None]], dim=1)
        logprobs = torch.cat([logprobs[rows], following[rows, columns][:, None]], dim=1)
        done = ending[prefixes[:, -1]] | last
        finished.append((prefixes[done], logprobs[done]))
        prefixes, logprobs = prefixes[~done], logprobs[~done]
        if not len(prefixes):
            break
    return _gather(finished, ending, language_model.pad_token_id)


def number_of_responses(branches: int, endings: int, max_new_tokens: int, must_end: bool = False) -> int:
    """How many responses there are where each place has `branches` tokens, `endings` of which end the response.

    Σ_{t < T − 1} e (b − e)^t + (b − e)^(T − 1) · (b, or e with `must_end`), T = max_new_tokens.
    """
    ordinary = branches - endings
    counts: list[int] = [endings * ordinary**place for place in range(max_new_tokens - 1)]
    open_prefixes = int(ordinary ** (max_new_tokens - 1))
    return sum(counts) + open_prefixes * (endings if must_end else branches)


def _check(
    allowed: set[int], ends: set[int], max_new_tokens: int, must_end: bool, max_responses: int, vocab_size: int
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}; allow at least 1 token")
    if not allowed or (must_end and not ends):
        missing = "ending token is left, but must_end asks for one" if allowed else "token is left to choose from"
        raise ValueError(f"no {missing}; name more in allowed_token_ids, or an end_token_ids that is allowed")
    # Counted first: at the size of a real vocabulary the second level alone would take minutes.
    count = number_of_responses(len(allowed), len(ends), max_new_tokens, must_end)
    if count > max_responses:
        raise ValueError(
            f"{len(allowed)} of {vocab_size} tokens and max_new_tokens = {max_new_tokens} make {count:.6g} responses, more than "
            f"max_responses = {max_responses}; name fewer allowed_token_ids or lower max_new_tokens"
        )


@torch.no_grad()
def _next_logprobs(
    language_model: LanguageModel,
    prompt: Sequence[int],
    prefixes: Int[Tensor, "N t"],
    choices: Int[Tensor, " C"],
    temperature: float,
    microbatch_rows: int,
) -> Float[Tensor, "N C"]:
    """log q of every choice after every prefix, float64."""
    if len(choices) == 1:  # a single choice has probability 1 whatever the model says
        return torch.zeros((len(prefixes), 1), dtype=torch.float64)
    parts = []
    for start in range(0, len(prefixes), microbatch_rows):
        part = prefixes[start : start + microbatch_rows]
        # forward_responses predicts every token of a response: the one asked for stands behind the prefix, whatever it is.
        rows = torch.cat([part, choices[:1].expand(len(part), 1)], dim=1)
        result = forward_responses(
            language_model, [prompt] * len(part), rows, torch.ones_like(rows, dtype=torch.bool), with_logits=True
        )
        assert result.logits is not None
        chosen = result.logits[:, -1].index_select(-1, choices.to(result.logits.device))
        parts.append(chosen.cpu().double() / temperature)
    logprobs = torch.cat(parts).log_softmax(-1)
    if bool(logprobs.isnan().any()):
        raise ValueError(
            "the model's logits give no distribution over the allowed tokens (NaN, +inf, or −inf at all of them); "
            "check that its weights are finite"
        )
    return logprobs


def _gather(finished: list[tuple[Tensor, Tensor]], ending: Bool[Tensor, " V"], pad: int) -> EnumeratedResponses:
    """The responses of each length, as one padded table."""
    width = finished[-1][0].shape[1]
    shapes = [(token_ids, values, width - token_ids.shape[1]) for token_ids, values in finished]
    masks = [torch.ones_like(token_ids, dtype=torch.bool) for token_ids, _ in finished]
    pad_by = torch.nn.functional.pad
    return EnumeratedResponses(
        token_ids=torch.cat([pad_by(token_ids, (0, missing), value=pad) for token_ids, _, missing in shapes]),
        mask=torch.cat([pad_by(mask, (0, width - mask.shape[1])) for mask in masks]),
        token_logprobs=torch.cat([pad_by(values, (0, missing)) for _, values, missing in shapes]),
        ended=torch.cat([ending[token_ids[:, -1]] for token_ids, _ in finished]),
    )
