"""Time and memory as the records grow: evaluation, and all that follows it: grading, files, figures, diagnostics, page.

    python benchmarks/growth.py [--largest 1000000] [--largest-math 10000] [--stages read summary …] [--out growth.md]
                                [--json growth.json] [--inputs FOLDER]

The stage `evaluation` samples from the embedded base, in as many processes as there are cores; the memory is that of the
process that collects the records. All others read records that are made up by the schema of `bsharp.evaluation.evaluate`:
problems of four families with 16 samples and one greedy completion each, responses of a log-normal length (median 100 tokens
of a vocabulary of 150,000, 4 characters a token), a tenth of them repeated word for word, answers (whole numbers and
fractions) right by a chance that differs between problems. A size is a number of sampled and greedy records; those of a
comparison (results, diagnostics, page) are divided over seven policies: the base, and two regimes × three seeds, with a small
validation set beside.

Every measurement is a process of its own that runs one stage once, on files that another process made: seconds on the clock,
and the highest resident memory less that before the stage (Linux), imports made before. `growth` is the time per record over
that of the size before. math-verify takes milliseconds per formula: its answers are numbers, fractions, roots and polynomials in
equal parts, and it has a largest size of its own. The page is made from the results and diagnostics that the stages before it
left in the comparison's folder.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 16
SIZES = (1_000, 10_000, 100_000, 1_000_000)
REGIMES = ("task_reward", "sharpening")
SEEDS = (0, 1, 2)
POLICIES = 1 + len(REGIMES) * len(SEEDS)
# Families, and how the answers of each are written: as numbers, or as formulas for math-verify alone.
NUMBERS = {"add": "{}", "mix": "{}", "word": "{}", "lin": "{}/12"}
FORMULAS = {"add": "{}", "mix": r"\frac{{{}}}{{12}}", "word": r"{}\sqrt{{3}}", "lin": "x^2+{}x"}
MEDIAN_TOKENS = 100
VALIDATION_PROBLEMS = 42
MOST_PROBLEMS = 6_000
"""Of both tasks together; the smaller one has 3,282 test problems."""
BLOCK = 512
"""Problems whose random numbers are drawn at once."""

Record = dict[str, Any]


# ------------------------------------------------------------------------------------------------ records made up


def made_up(model: str, seed: int, problems: int, written: Mapping[str, str] = NUMBERS) -> Iterator[Record]:
    """The records of one policy, problem by problem: 16 samples, then the greedy completion."""
    rng = np.random.default_rng([len(model), seed, problems])
    words = np.array(["".join(rng.choice(list("etaoinshrdlu"), size)) for size in 2 + rng.poisson(2, 4096)])
    stock = " ".join(rng.choice(words, 50_000))
    tokens = (150_000 ** rng.random(60_000)).astype(np.int64).tolist()  # as by Zipf's law
    skill = {"base": 0.0, "task_reward": 1.5}.get(model, 0.4)
    for start in range(0, problems, BLOCK):
        shape = (min(BLOCK, problems - start), SAMPLES + 1)
        places = np.arange(start, start + shape[0])
        lengths = np.clip(MEDIAN_TOKENS * np.exp(0.5 * rng.standard_normal(shape)), 4, 512).astype(int)
        chances = 1 / (1 + np.exp(-(4 * ((places * 0.6180339887) % 1) - 2 + skill)))
        draws = {
            "length": lengths,
            "at": rng.integers(0, 40_000, shape),
            "right": rng.random(shape) < chances[:, None],
            "wrong": rng.geometric(0.4, shape),
            "unread": rng.random(shape) < 0.02,
            "again": rng.random(shape) < 0.1,
            "logprob": -rng.gamma(20.0, 1.0, shape),
            "gap": rng.exponential(1.0, shape) * (model != "base"),
        }
        table = {name: values.tolist() for name, values in draws.items()}
        for row, place in enumerate(places.tolist()):
            drawn = {name: values[row] for name, values in table.items()}
            yield from _of_problem(place, drawn, stock, tokens, written)


def _of_problem(
    place: int, drawn: dict[str, list[Any]], stock: str, tokens: list[int], forms: Mapping[str, str]
) -> Iterator[Record]:
    family = list(forms)[place % len(forms)]
    number = 7 + place % 977
    written = forms[family]
    gold = written.format(number)
    problem = {
        "schema": 1,
        "problem_id": f"math_mini/{family}/{place},{gold}",
        "task": "math_mini",
        "family": family,
        "role": "standard",
        "mode": ("right", "wrong")[place % 4 >= 2],
        "difficulty": 1 + place % 3,
        "question": f"{place} apples are shared by {place % 97 + 2} children in {place % 89 + 2} towns; how many are left over? "
        * 2,
        "gold": gold,
        "grader": "BoxedAnswerReward",
        "checkpoint": "last",
        "policy_version": 0,
    }
    previous = 0
    for sample in range(SAMPLES + 1):
        # A response that repeats an earlier one is equal to it in everything that is drawn.
        source = previous if drawn["again"][sample] else sample
        previous = source
        right, unread, length = drawn["right"][source], drawn["unread"][source], drawn["length"][source]
        answer = None if unread else gold if right else written.format(number + drawn["wrong"][source])
        at = drawn["at"][source]
        logprob = drawn["logprob"][source]
        yield problem | {
            "sample": 0 if sample == SAMPLES else sample,
            "greedy": sample == SAMPLES,
            "temperature": None if sample == SAMPLES else 1.0,
            "fixed_length": False,
            "token_ids": tokens[at : at + length],
            "text": stock[at : at + 4 * length] + (" no end" if answer is None else f" \\boxed{{{answer}}}"),
            "finish_reason": "length" if length == 512 else "eos",
            "length": length,
            "logprob": logprob,
            "base_logprob": logprob - drawn["gap"][source],
            "status": "unparseable" if answer is None else "correct" if right else "wrong",
            "detail": "no complete box" if answer is None else "",
            "answer": answer,
            "reward": float(right and not unread),
            "exact_match": bool(right and not unread),
        }


def make_records(path: Path, model: str, seed: int, problems: int, written: Mapping[str, str] = NUMBERS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with path.open("w", encoding="utf-8") as file:
        file.writelines(encode(record) + "\n" for record in made_up(model, seed, problems, written))


def make_comparison(folder: Path, size: int) -> None:
    """A finished comparison of seven policies, but without weights and results, and with metrics of a few steps."""
    from bsharp.config import CompareConfig
    from bsharp.experiment.comparison import comparable_config

    config = CompareConfig(regimes=REGIMES, seeds=SEEDS)
    manifest = {"identity": {"base_weights": "0" * 16, "code": "0" * 16, "bsharp": "0"}, "versions": {}, "machine": {}}
    problems = max(2, size // POLICIES // (SAMPLES + 1))
    jobs = [("base", 0, folder / "base"), *((r, s, folder / r / f"seed_{s}") for r in REGIMES for s in SEEDS)]
    for model, seed, place in jobs:
        make_records(place / "records_last.jsonl", model, seed, problems)
        make_records(place / "validation_last.jsonl", model, seed + 100, VALIDATION_PROBLEMS)
        done = {"last_step": 8, "best_step": 8, "stopped": None, "seconds": 1.0}
        rows = [{"step": step, "validation/accuracy": 0.4 + 0.01 * step, "reward": 0.4} for step in range(9)]
        (place / "complete.json").write_text(json.dumps(done))
        (place / "config.json").write_text(json.dumps({"steps": 8}))
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps(comparable_config(config)))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "results.json").write_text("{}")  # its presence says that the comparison is finished


def make_input(kind: str, size: int, folder: Path) -> None:
    """Records of one policy, or a comparison, in `folder`; there as a whole or not at all."""
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if kind == "comparison":
        make_comparison(unfinished, size)
    elif kind in ("records", "formulas"):
        written = FORMULAS if kind == "formulas" else NUMBERS
        make_records(unfinished / "records.jsonl", "task_reward", 0, size // (SAMPLES + 1), written)
    unfinished.rename(folder)


# --------------------------------------------------------------------------------------------------------- stages

Stage = Callable[[], object]


def evaluation(folder: Path, size: int) -> Stage:
    """The embedded base on ever more problems, 16 samples and a greedy completion each; more samples once they run out."""
    from bsharp.processes import prepare_workers

    prepare_workers()  # workers are forked from a process that imports what this one does
    from bsharp.config import EvaluationConfig, TrainConfig
    from bsharp.experiment import evaluate_model

    problems = max(2, min(MOST_PROBLEMS, size // (SAMPLES + 1)))
    config = EvaluationConfig(problems=problems, samples=max(1, size // problems - 1))
    out = folder / f"evaluation-{size}"
    shutil.rmtree(out, ignore_errors=True)
    return lambda: evaluate_model("embedded:tiny", TrainConfig().tasks, config, out, workers=0)


def grading(grader: str, workers: int) -> Callable[[Path, int], Stage]:
    def prepare(folder: Path, size: int) -> Stage:
        from bsharp.config import ProblemsConfig
        from bsharp.experiment.grading import grade_file

        settings = ProblemsConfig(grader=grader, grader_workers=workers)  # type: ignore[arg-type]
        return lambda: grade_file(folder / "records.jsonl", folder / f"{grader}.jsonl", settings=settings)

    return prepare


def write(folder: Path, size: int) -> Stage:
    from bsharp.runlog import RunDirectory

    known = list(made_up("base", 0, 64))
    return lambda: RunDirectory(folder).write_rows(
        "written.jsonl", (known[place % len(known)] for place in range(size))
    )


def read(folder: Path, size: int) -> Stage:
    from bsharp.runlog import RunDirectory

    return lambda: sum(1 for _ in RunDirectory(folder).rows("records.jsonl"))


def summary(folder: Path, size: int) -> Stage:
    from bsharp.evaluation import summarize
    from bsharp.runlog import RunDirectory

    return lambda: summarize([RunDirectory(folder).samples("records.jsonl")])


def results(folder: Path, size: int) -> Stage:
    from bsharp.experiment.comparison import write_results
    from bsharp.experiment.finished import open_comparison
    from bsharp.experiment.setup import regimes_of

    found = open_comparison(folder)
    return lambda: write_results(found.config, found.run, regimes_of(found.config))


def diagnostic(name: str) -> Callable[[Path, int], Stage]:
    def prepare(folder: Path, size: int) -> Stage:
        from bsharp.experiment import diagnose
        from bsharp.runlog import RunDirectory

        make = sys.modules[diagnose.__module__]._records_piece  # what `compare` runs in a process of its own
        kept = RunDirectory(folder / "diagnostics")
        return lambda: kept.write_json(f"{name}.json", make(name, str(folder)))

    return prepare


def report(folder: Path, size: int) -> Stage:
    from bsharp.reporting import write_report

    return lambda: write_report([folder])


STAGES: dict[str, tuple[str, str, Callable[[Path, int], Stage]]] = {
    # name: (title, input, what makes the stage ready)
    "evaluation": ("evaluation, sampled", "nothing", evaluation),
    "boxed": ("grade, boxed", "records", grading("boxed", 1)),
    "boxed-2": ("grade, boxed, 2 workers", "records", grading("boxed", 2)),
    "normalised": ("grade, normalised", "records", grading("normalised", 1)),
    "normalised-2": ("grade, normalised, 2 workers", "records", grading("normalised", 2)),
    "math": ("grade, math-verify", "formulas", grading("math", 1)),
    "math-2": ("grade, math-verify, 2 workers", "formulas", grading("math", 2)),
    "write": ("records written", "nothing", write),
    "read": ("records read", "records", read),
    "summary": ("summary of one policy", "records", summary),
    "results": ("results of a comparison", "comparison", results),
    "drift": ("drift", "comparison", diagnostic("drift")),
    "calibration": ("calibration", "comparison", diagnostic("calibration")),
    "problems": ("gained and lost", "comparison", diagnostic("problems")),
    "report": ("page", "comparison", report),
}


# ------------------------------------------------------------------------------------------------------ measuring


def resident(what: str) -> int:
    """Bytes of this process in memory now (VmRSS) or at most since they were last reset (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


def measure(stage: str, size: int, folder: Path) -> dict[str, Any]:
    """In a process of its own: one stage at one size."""
    run = STAGES[stage][2](folder, size)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    return {"stage": stage, "size": size, "seconds": seconds, "bytes": resident("VmHWM") - before}


def in_a_process(action: str, what: str, size: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, action, what, str(size), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"stage": what, "size": size, "failure": reason}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| stage | records | seconds | µs a record | growth | peak memory, MB | bytes a record |",
        "|---|---|---|---|---|---|---|",
    ]
    before: dict[str, float] = {}
    for row in rows:
        name, size = STAGES[row["stage"]][0], row["size"]
        if "failure" in row:
            lines.append(f"| {name} | {size:,} | {row['failure']} | | | | |")
            continue
        each = 1e6 * row["seconds"] / size
        growth = f"{each / before[name]:.2f}" if name in before else ""
        before[name] = each
        memory = f"{row['bytes'] / 1e6:,.0f} | {row['bytes'] / size:,.0f}"
        lines.append(f"| {name} | {size:,} | {row['seconds']:.2f} | {each:.1f} | {growth} | {memory} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="largest number of records")
    parser.add_argument("--largest-math", type=int, default=SIZES[1], help="the same for math-verify")
    parser.add_argument("--smallest", type=int, default=SIZES[0], help="smallest number of records")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES), help="what is measured")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file")
    parser.add_argument(
        "--json", type=Path, default=None, help="figures; those of other stages and sizes in it are kept"
    )
    parser.add_argument("--inputs", type=Path, default=None, help="folder for the made-up files, which are then kept")
    options = parser.parse_args()
    known = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    found = {(row["stage"], row["size"]): row for row in known}
    with tempfile.TemporaryDirectory(prefix="growth-") as temporary:
        folder = options.inputs or Path(temporary)
        for stage in options.stages:
            largest = options.largest_math if stage.startswith("math") else options.largest
            for size in (size for size in SIZES if options.smallest <= size <= largest):
                place = folder / f"{STAGES[stage][1]}-{size}"
                if not place.exists():
                    in_a_process("--make", STAGES[stage][1], size, place)
                found[stage, size] = in_a_process("--measure", stage, size, place)
                print(found[stage, size], file=sys.stderr, flush=True)
    order = list(STAGES)
    rows = sorted(found.values(), key=lambda row: (order.index(row["stage"]), row["size"]))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(table := markdown(rows))
    if options.out:
        options.out.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_input(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
        print("{}")
    elif sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()
