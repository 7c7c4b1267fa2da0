"""How much a completion repeats itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

__all__ = ["repetition_rate"]


def repetition_rate(token_ids: Sequence[Hashable], n: int = 4) -> float:
    """Share of the n-grams of one completion that already occurred earlier in it: 1 - distinct n-grams / n-grams.

    This is seq-rep-n of arXiv 1908.04319 (section 6, rep-n in other papers), in [0, 1). `token_ids` (T,) is the whole response as
    sampled, EOS included. A loop of period p has T - n + 1 n-grams of which min(p, T - n + 1) are distinct, so the rate
    tends to 1. Fewer than n + 1 tokens hold at most one n-gram and cannot repeat one: 0. Raises ValueError where n < 1.
    """
    if n < 1:
        raise ValueError(f"repetition_rate needs n-grams of at least 1 token, got n={n}")
    total = len(token_ids) - n + 1
    if total < 2:
        return 0.0
    return 1.0 - len(set(zip(*(token_ids[start:] for start in range(n)), strict=False))) / total
