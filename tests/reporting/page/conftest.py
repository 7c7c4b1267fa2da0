"""A browser for the session, and pages that use every part, hostile text included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bsharp.reporting.page.completions import completions_part
from bsharp.reporting.page.gained_lost import gained_lost_parts
from bsharp.reporting.page.parts import (
    Callout,
    Chart,
    DataTable,
    Definitions,
    FileLinks,
    Page,
    Paragraph,
    Preformatted,
    ProblemLink,
    RunPage,
    Section,
    Verdict,
)
from bsharp.reporting.page.render import render_page

HOSTILE = (
    "<script>window.__pwned=1</script><img src=x onerror='window.__pwned=1'></script><!-- ${window.__pwned=1} "
    "{{7*7}} `${1}` ]]> \" ' & &lt; \x00\x07\x1b[31m \u202egnp.exe \u2028 \ud800 end"
)


def _record(problem: int, sample: int, model: str, **changes: Any) -> dict[str, Any]:
    right = (problem + sample + len(model)) % 3 != 0
    return {
        "problem_id": f"add/{problem}",
        "task": "math_mini",
        "family": ["add", "order"][problem % 2],
        "role": ["standard", "transfer"][problem // 10 % 2],
        "mode": "right",
        "difficulty": problem % 4,
        "question": f"{problem} + 7 = ?",
        "gold": str(problem + 7),
        "sample": sample,
        "greedy": False,
        "text": f"sample {sample} of {model}: \\boxed{{{problem + 7 + (not right)}}}",
        "finish_reason": "eos",
        "length": 12,
        "logprob": -1.25,
        "base_logprob": -2.5,
        "status": "correct" if right else "wrong",
        "answer": str(problem + 7 + (not right)),
        "reward": float(right),
        **changes,
    }


@pytest.fixture(scope="session")
def make_records() -> Any:
    """records_by_model of 40 problems × 3 models; problem 0 holds hostile text, problem 1 is collapsed under tilted."""

    def build(problems: int = 40) -> dict[str, dict[int, list[dict[str, Any]]]]:
        records = {
            model: {
                seed: [_record(problem, sample, model) for problem in range(problems) for sample in range(4)]
                for seed in seeds
            }
            for model, seeds in (("base", (0,)), ("task_reward", (0, 1)), ("tilted", (0, 1)))
        }
        for rows in records["tilted"].values():
            for row in rows:
                if row["problem_id"] == "add/1":
                    row.update(status="wrong", answer="9", reward=0.0, text="9")
        records["tilted"][0][0].update(text=HOSTILE, question=HOSTILE, answer=HOSTILE, status=HOSTILE)
        records["task_reward"][0][0].update(text="x" * 2_000_000, greedy=True)
        records["base"][0][0].update(question=HOSTILE, finish_reason="length", gold=HOSTILE, family=HOSTILE)
        return records

    return build


@pytest.fixture(scope="session")
def problems_json() -> dict[str, Any]:
    counts = {"kept": 3, "gained": 2, "lost": 1, "never": 4}

    def regime(gained: list[str], lost: list[str]) -> dict[str, Any]:
        return {
            "kept": [f"add/{at}" for at in range(10, 20)],
            "gained": gained,
            "lost": lost,
            "never": [],
            "p_value": 0.04,
            "by_family": {"add": counts, HOSTILE: counts},
            "by_base": {"0": counts, "0–25 %": counts},
            "by_difficulty": {"1": counts},
        }

    return {
        "threshold": 0.5,
        "definition": "right: in at least half of the samples",
        "regimes": {"tilted": regime(["add/0", "add/2", "add/3"], ["add/4"]), "task_reward": regime(["add/5"], [])},
    }


def _chart(chart_id: str, title: str = "Accuracy") -> Chart:
    steps = [0, 1, 2, 3]
    traces: list[dict[str, Any]] = []
    for at, regime in enumerate(("base", "task_reward", "tilted", HOSTILE)):
        values = [0.1 * at + 0.05 * step for step in steps]
        traces += [
            {
                "x": steps + steps[::-1],
                "y": [value + 0.03 for value in values] + [value - 0.03 for value in values[::-1]],
                "fill": "toself",
                "meta": {"regime": regime, "role": "band"},
            },
            {"x": steps, "y": values, "name": regime, "meta": {"regime": regime, "role": "line"}},
        ]
    return Chart(
        chart_id,
        title,
        "Higher is better. " + HOSTILE,
        traces,
        {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "accuracy (share right)"}}},
        {"step": steps, "tilted": [0.2, 0.25, float("nan"), None]},
    )


def _heatmap() -> Chart:
    names = ["task_reward", "sharpening"]
    return Chart(
        "cosine",
        "Cosine of the gradients",
        "One on the diagonal.",
        [{"type": "heatmap", "x": names, "y": names, "z": [[1, -0.2], [-0.2, 1]], "meta": {"scale": "diverging"}}],
        {"xaxis": {"title": {"text": "objective"}}, "yaxis": {"title": {"text": "objective"}}},
        {"objective": names, "task_reward": [1, -0.2], "sharpening": [-0.2, 1]},
    )


@pytest.fixture(scope="session")
def make_page(make_records: Any, problems_json: dict[str, Any]) -> Any:
    """make_page(status=None, runs=1): a Page with every kind of part."""

    def run(run_id: str, status: str | None) -> RunPage:
        table = DataTable(
            "main",
            "Results",
            "Share right, with 95 % intervals.",
            ("model", "accuracy", "changed"),
            [
                ("base", "50.0 [40, 60]", "–"),
                ("tilted", "60.0 [50, 70]", ProblemLink("3", ["add/2", "add/3"], "tilted")),
                (HOSTILE, HOSTILE, HOSTILE),
            ],
            numeric=(1, 2),
        )
        everything = [Verdict("Sharpening only: " + HOSTILE), Callout("warning", HOSTILE), Callout("ok", "x"), table]
        more = [
            Paragraph(HOSTILE),
            Definitions([("KL", HOSTILE)]),
            FileLinks([(HOSTILE, HOSTILE), ("config", "javascript:window.__pwned=1")]),
            Preformatted("Config", "a = 1\n" + HOSTILE),
        ]
        records = make_records()
        browser_part = completions_part(records, problems_json, [("base records", "base/records_last.jsonl")])
        sections = [
            Section("verdict", "Verdict", everything),
            Section("curves", "Learning curves", [_chart("accuracy"), _chart("reward", HOSTILE), _heatmap()]),
            Section("gained", "Problems gained and lost", gained_lost_parts(problems_json)),
            Section("surface", "Loss surface", absent="Not computed; run: bsharp diagnose RUN --surface " + HOSTILE),
            Section("completions", "Completions", [browser_part]),
            Section("manifest", "Manifest", more),
        ]
        return RunPage(run_id, "Run " + run_id + HOSTILE, sections, status)

    def build(status: str | None = None, runs: int = 1) -> Page:
        return Page("b♯ report " + HOSTILE, [run(f"run-{at}", status if at == 0 else None) for at in range(runs)])

    return build


@pytest.fixture(scope="session")
def page_file(make_page: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one finished run."""
    return render_page(make_page(), tmp_path_factory.mktemp("page"))
