"""A made-up forecast, the same with hostile names, and a browser."""

from __future__ import annotations

from typing import Any

import pytest
from sample_forecast import hand_made_forecast

HOSTILE = (
    "<script>window.__pwned=1</script><img src=x onerror='window.__pwned=1'></script> [bold red]${1} `x` | {{7*7}} "
    "\" ' & &lt; \x00\x07\x1b[31m \u202egnp.exe \u2028 \ud800 end"
)


@pytest.fixture
def forecast() -> dict[str, Any]:
    return hand_made_forecast()


@pytest.fixture(scope="session")
def hostile() -> dict[str, Any]:
    """Every text that a file, a model or a user can choose is hostile."""
    content = hand_made_forecast(model=HOSTILE)
    content["source"] |= {"records": HOSTILE, "tasks": [HOSTILE], "split": HOSTILE}
    content["base"]["no_correct_ids"] = [HOSTILE, "years/1"]
    content["regimes"] = {HOSTILE: content["regimes"]["task_reward"] | {"objective": HOSTILE, "note": HOSTILE}}
    content["families"] = {HOSTILE: content["families"]["add"], "mean": content["families"]["mean"]}
    for problem in content["per_problem"][::2]:
        problem.update(problem_id=HOSTILE + problem["problem_id"], family=HOSTILE)
    for name in ("sum", "mean"):
        content["tempered"][name]["note"] = HOSTILE
        content["limit"][name] |= {"note": HOSTILE, "reliable": False}
    content["tilt"]["note"] = HOSTILE
    rule = {"rule": HOSTILE, "source": HOSTILE, "figures": HOSTILE, "holds": None}
    content["recommendation"] = {"word": HOSTILE, "sentence": HOSTILE, "rules": [rule], "cannot_know": [HOSTILE]}
    return content
