"""What the views read is what the forecast writes: the made-up content has the keys of a real one, and a real one is shown."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sample_forecast import hand_made_forecast

from bsharp.diagnostics.forecast import forecast
from bsharp.reporting.forecast import forecast_markdown, print_forecast, write_forecast_page
from bsharp.seeding import generator

NAMED = {"regimes", "families"}  # their keys are names


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    rng = generator(0, "records")
    records: list[dict[str, Any]] = []
    for problem in range(12):
        for sample in range(8):
            right = bool(rng.random() < problem / 11)
            length = int(rng.integers(4, 9))
            records.append(
                {
                    "problem_id": f"p{problem}",
                    "family": ["add", "mean"][problem % 2],
                    "task": "math_mini",
                    "split": "train",
                    "sample": sample,
                    "text": f"answer {sample} of {problem}",
                    "answer": str(problem + (not right)),
                    "reward": float(right),
                    "length": length,
                    "logprob": float(-length * rng.gamma(2.0, 0.3) - 2.5),
                }
            )
    regimes = ["task_reward", "tilted(alpha=1,beta_inv=100)", "sharpening", "tempered(alpha=2)", "entropy_minimisation"]
    return forecast(records, regimes, source={"model": "made up"})


def paths(content: Any, before: str = "") -> Iterator[str]:
    """Every key with the way to it; of named things and of lists the first."""
    if isinstance(content, list):
        content = {"0": content[0]} if content else {}
    if isinstance(content, Mapping):
        keys = list(content)[:1] if before.rpartition(".")[2] in NAMED else list(content)
        for key in keys:
            shown = "*" if before.rpartition(".")[2] in NAMED else key
            yield f"{before}.{shown}"
            yield from paths(content[key], f"{before}.{shown}")


def test_the_made_up_forecast_has_only_keys_that_a_real_one_has(real: dict[str, Any]) -> None:
    optional = {path for path in paths(hand_made_forecast()) if path.endswith(".note") or ".greedy_accuracy" in path}
    optional |= {".base.no_correct_ids.0", ".source.tasks.0"}
    assert set(paths(hand_made_forecast())) - optional <= set(paths(real))


def test_a_real_forecast_is_shown_in_every_way(real: dict[str, Any], tmp_path: Path) -> None:
    file = io.StringIO()
    print_forecast(real, Console(width=100, file=file), families=True)
    flat = "".join(file.getvalue().split())
    markdown = forecast_markdown(real)
    page = write_forecast_page(real, tmp_path).read_text(encoding="utf-8")
    for told in [real["recommendation"]["sentence"], *real["recommendation"]["cannot_know"]]:
        assert "".join(told.split()).replace("│", "") in flat.replace("│", "")
        assert told[:20] in markdown
        assert told.rpartition(": ")[2][:20] in page
    assert np.isclose(real["tempered"]["sum"]["delta"][0]["estimate"], 0.0)
    assert all(name in markdown.replace("\\", "") for name in real["regimes"])
