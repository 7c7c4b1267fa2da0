r"""A reward of your own, in the signature of TRL's reward functions.

    bsharp compare --tasks gsm8k --data-dir data --reward examples/my_reward.py:right_and_short

It is called with one list per argument, each with one entry per completion, and returns one number in [0, 1] per completion,
or None where it cannot say. `completions` are texts; `answer` is the right answer; further columns are named in the
docstring of bsharp.rewards.FunctionReward, and the fields of your own data are columns too.
"""

from __future__ import annotations

from bsharp.rewards import canonical_answer, extract_answer


def right_and_short(
    prompts: list[str], completions: list[str], answer: list[str], completion_ids: list[list[int]], **columns: object
) -> list[float | None]:
    """1 for a right answer within 200 tokens, falling to 0.6 at 1,000 and more; 0 for a wrong one; None without a gold answer."""
    rewards: list[float | None] = []
    for text, gold, token_ids in zip(completions, answer, completion_ids, strict=True):
        if not gold:
            rewards.append(None)  # not graded: the completion leaves its group, which is not the same as 0
            continue
        given = extract_answer(text, "final_number")
        right = given is not None and canonical_answer(given) == canonical_answer(gold)
        over = min(max(len(token_ids) - 200, 0), 800) / 800
        rewards.append(1.0 - 0.4 * over if right else 0.0)
    return rewards


async def right(completions: list[list[dict[str, str]]], answer: list[str], **columns: object) -> list[float]:
    """The same without the length, asynchronous, and with completions as messages, because the annotation says so."""
    texts = [messages[-1]["content"] for messages in completions]
    given = [extract_answer(text, "final_number") or "" for text in texts]
    return [float(canonical_answer(found) == canonical_answer(gold)) for found, gold in zip(given, answer, strict=True)]
