"""What requests and sampling settings refuse, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from bsharp.generation import GenerationRequest, SamplingParams


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_token_ids": ()}, "prompt_token_ids is empty"),
        ({"num_samples": 0}, "num_samples = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        GenerationRequest(**{"prompt_token_ids": (1,), "num_samples": 1, "seed": 0, **values})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": 0.0}, r"temperature = 0\.0.*greedy=True"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_p": 0.0}, r"top_p = 0\.0"),
        ({"top_p": 1.1}, r"top_p = 1\.1"),
        ({"top_k": 0}, "top_k = 0"),
    ],
)
def test_settings_that_describe_no_distribution_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        SamplingParams(**{"max_new_tokens": 1, **values})
    assert "\n" not in str(error.value)
