"""The exact KL at a check: the same figure in pieces that fit into memory as in one."""

from __future__ import annotations

import pytest
import torch
from small_models import small_model

from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.masking import pad_right
from bsharp.models.logprobs import forward_responses
from bsharp.rollouts import RolloutBatch
from bsharp.training import loop
from bsharp.training.step import Update

KEY = "kl(policy||base)/exact_nats_per_token"
LENGTHS = (5, 2, 9, 3, 1, 4)
VOCAB = 6


def make_batch() -> RolloutBatch:
    rows = [
        [1 + (3 * t + row * t * t + row) % (VOCAB - 1) for t in range(length)] for row, length in enumerate(LENGTHS)
    ]
    token_ids, mask = pad_right(rows, 0)
    return RolloutBatch(
        prompt_token_ids=((1, 2),) * 3 + ((3,),) * 3,
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=torch.zeros(mask.shape),
        rewards=torch.zeros(len(rows)),
        valid=torch.ones(len(rows), dtype=torch.bool),
        group_index=torch.tensor([0, 0, 0, 1, 1, 1]),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
    )


def plain_kl(policy, base, batch: RolloutBatch, rows: int) -> float:
    """From one forward pass per row and the definition."""
    total, tokens = 0.0, 0
    for row in range(rows):
        prompt, response = batch.prompt_token_ids[row], batch.response_token_ids[row][batch.mask[row]].tolist()
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            p, q = (m.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (policy, base))
        total += float((p.exp() * (p - q)).sum())
        tokens += len(response)
    return total / tokens


@pytest.mark.parametrize("tokens_at_once", [1, 2, 4, 6, 20, 10_000])
def test_the_exact_kl_does_not_depend_on_how_many_logits_are_held_at_once(
    tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, base, batch = small_model(seed=1), small_model(seed=2), make_batch()
    held: list[int] = []

    def spied(*arguments, **named):
        result = forward_responses(*arguments, **named)
        held.append(result.logits[..., 0].numel())
        assert torch.is_inference_mode_enabled()
        return result

    monkeypatch.setattr(loop, "EXACT_KL_BYTES", 4 * VOCAB * tokens_at_once)
    monkeypatch.setattr(loop, "forward_responses", spied)
    update = Update(AlgorithmConfig(), SamplingConfig(), 1.0)
    found = loop._exact_kl(policy, base, batch, update)[KEY]
    assert found == pytest.approx(plain_kl(policy, base, batch, len(LENGTHS)), rel=1e-6)
    assert max(held) <= tokens_at_once
    assert found > 0.01


def test_long_responses_are_counted_over_fewer_rows_and_never_none(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, base, batch = small_model(seed=1), small_model(seed=2), make_batch()
    update = Update(AlgorithmConfig(), SamplingConfig(), 1.0)
    # Two rows of 5 fit into 10 tokens, three of 9 do not; with no room at all it is the first row.
    for allowed, rows in ((10, 2), (26, 2), (27, 3), (1, 1)):
        monkeypatch.setattr(loop, "EXACT_KL_TOKENS", allowed)
        found = loop._exact_kl(policy, base, batch, update)[KEY]
        assert found == pytest.approx(plain_kl(policy, base, batch, rows), rel=1e-6)
