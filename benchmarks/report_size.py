"""Size of the report page, and how soon it is usable, for a run of 500 steps × 4 regimes × 5 seeds.

    python benchmarks/report_size.py [--completions 10000] [--tokens 300] [--out FOLDER]

The page has nine learning curves (mean, band and every seed; at most 400 points a line), and completions whose lengths
are log-normal with the given median of tokens. Their words are drawn by Zipf's law from 20,000 made-up words, at
random and without repetition of sentences, so they compress no better than prose does (printed, bytes per token).
Usable: from the start of loading until the first chart is drawn and the completions browser has answered a filter,
in headless Chromium; the median of five loads. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bsharp.reporting.page.completions import completions_part
from bsharp.reporting.page.parts import Chart, Completions, Legend, Page, RunPage, Section, Verdict
from bsharp.reporting.page.render import render_page

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from chromium import launched

REGIMES = ("task_reward", "sharpening", "tempered", "tilted")
SEEDS, STEPS, POINTS = 5, 500, 400
METRICS = ("accuracy", "reward", "score", "kl", "entropy", "length", "gradient_norm", "variance", "snr")


def words(rng: np.random.Generator, count: int = 20_000) -> np.ndarray:
    """Made-up words, the frequent ones short."""
    letters = np.array(list("etaoinshrdlucmfwygpbvk"))
    weights = np.arange(len(letters), 0, -1) / np.arange(len(letters), 0, -1).sum()
    lengths = np.clip(rng.poisson(1.5 + np.log1p(np.arange(count)) / 1.8), 1, 14)
    return np.array(["".join(rng.choice(letters, size, p=weights)) for size in lengths])


def texts(rng: np.random.Generator, count: int, median_tokens: int) -> list[str]:
    """`count` texts; a token is 4 characters."""
    vocabulary = words(rng)
    zipf = 1 / np.arange(1, len(vocabulary) + 1)
    lengths = median_tokens * 4 * np.exp(0.5 * rng.standard_normal(count))
    stock = rng.choice(vocabulary, int(lengths.sum() / 4), p=zipf / zipf.sum())
    found, at = [], 0
    for length in lengths:
        size = 0
        start = at
        while size < length and at < len(stock):
            size += len(stock[at]) + 1
            at += 1
        found.append(" ".join(stock[start:at]))
    return found


def records(rng: np.random.Generator, count: int, median_tokens: int) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """`count` completions over base and regimes × seeds, four samples of each problem."""
    sources = [("base", 0), *((regime, seed) for regime in REGIMES for seed in range(SEEDS))]
    problems = max(1, round(count / len(sources) / 4))
    drawn = iter(texts(rng, problems * len(sources) * 4, median_tokens))
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for model, seed in sources:
        found.setdefault(model, {})[seed] = [
            {
                "problem_id": f"math/{problem}",
                "family": f"family {problem % 12}",
                "role": "standard",
                "question": f"{problem} + {sample} = ?",
                "gold": str(problem),
                "greedy": False,
                "text": text,
                "length": len(text) // 4,
                "finish_reason": "eos",
                "logprob": float(-rng.gamma(20, 4)),
                "base_logprob": float(-rng.gamma(20, 5)),
                "status": ("correct", "wrong")[int(rng.integers(2))],
                "answer": str(int(rng.integers(100))),
                "reward": float(rng.integers(2)),
            }
            for problem in range(problems)
            for sample in range(4)
            for text in (next(drawn),)
        ]
    return found


def curve(rng: np.random.Generator, metric: str) -> Chart:
    steps = np.unique(np.linspace(0, STEPS, POINTS).round().astype(int))
    traces: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {"regime": [], "seed": [], "step": [], metric: []}
    for regime in REGIMES:
        values = np.cumsum(rng.standard_normal((SEEDS, STEPS + 1)), axis=1)
        for seed in range(SEEDS):
            columns["regime"] += [regime] * (STEPS + 1)
            columns["seed"] += [seed] * (STEPS + 1)
            columns["step"] += list(range(STEPS + 1))
            columns[metric] += values[seed].tolist()
        shown = values[:, steps].round(5)
        x = steps.tolist()
        # As the learning curves of a real page: all seeds in one trace, with gaps.
        single = [[*row, None] for row in shown.tolist()]
        traces.append(
            {
                "x": [*x, None] * SEEDS,
                "y": [y for row in single for y in row],
                "meta": {"regime": regime, "role": "seed"},
            }
        )
        around = shown.max(0).tolist() + shown.min(0)[::-1].tolist()
        traces.append({"x": x + x[::-1], "y": around, "fill": "toself", "meta": {"regime": regime, "role": "band"}})
        mean = shown.mean(0).round(5).tolist()
        traces.append({"x": x, "y": mean, "name": regime, "mode": "lines", "meta": {"regime": regime, "role": "line"}})
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": f"{metric} (made up)"}}}
    return Chart(metric, metric, "Random walks.", traces, layout, columns, 270, legend=False)


def usable(page: Any, address: str) -> tuple[float, float]:
    """Until the first chart is drawn and the completions browser has answered a filter: seconds, and CPU seconds.

    The CPU time is that of the page's main thread; on a busy machine it says more than the clock.
    """
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector("figure.chart .cartesianlayer .subplot", state="attached")
    page.evaluate("document.querySelector('.completions').scrollIntoView()")
    page.click("button[data-show=collapsed]")
    page.wait_for_selector("button[data-show=collapsed][aria-pressed=true]")
    seconds = time.perf_counter() - start
    figures = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return seconds, figures["TaskDuration"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=300, help="median tokens of a completion")
    parser.add_argument("--out", type=Path, default=None, help="folder of the page; default: a temporary one")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    given = records(rng, options.completions, options.tokens)
    tokens = sum(row["length"] for by_seed in given.values() for rows in by_seed.values() for row in rows)
    start = time.perf_counter()
    part: Completions = completions_part(given, None)
    sections = [
        Section("verdict", "Verdict", [Verdict("A made-up run.")]),
        Section("curves", "Learning curves", [Legend(REGIMES), *(curve(rng, metric) for metric in METRICS)]),
        Section("completions", "Completions", [part]),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        path = render_page(Page("Report size", [RunPage("run", "run", sections)]), folder)
        print(f"written in {time.perf_counter() - start:.1f} s")
        print(f"page: {path.stat().st_size / 1e6:.2f} MB")
        size = sum(map(len, part.chunks))
        left_out = f"; {part.left_out} of {part.problems} problems left out"
        print(f"completions: {size / 1e6:.2f} MB compressed, {size / tokens:.2f} bytes per token{left_out}")
        with launched() as browser:
            times = []
            for _ in range(5):
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                times.append(usable(context.new_page(), path.resolve().as_uri()))
                context.close()
        for name, values in zip(("usable after", "CPU of the main thread"), zip(*times, strict=True), strict=True):
            listed = ", ".join(f"{value:.2f}" for value in sorted(values))
            print(f"{name}: {statistics.median(values):.2f} s (median of 5: {listed})")


if __name__ == "__main__":
    main()
