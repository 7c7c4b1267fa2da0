r"""Both graders on public problems: every answer against itself, and against wrong neighbours. Writes docs/grading.md's tables.

    BSHARP_DATA_DIR=… python benchmarks/grading.py

For each set: the reference solutions (or the right answers in a box) and the same answers written otherwise must be graded
correct; answers made wrong in a known way must not. What is wrong is decided here, without either grader: by exact
arithmetic for numbers and fractions, by construction for the rest. docs/grading.md is written again from the line that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from bsharp.rewards import MathVerifyReward, NormalisedReward, RewardFunction
from bsharp.rewards.agreement import Agreement, agreement_of
from bsharp.rewards.extract import ExtractionRule, extract_gold
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

DOCUMENT = Path(__file__).parents[1] / "docs" / "grading.md"
MARK = "<!-- written by benchmarks/grading.py from here on -->"
SETS: dict[str, tuple[str, str, ExtractionRule]] = {
    # name: (file, field with the answer, where the answer stands in a completion)
    "gsm8k": ("gsm8k/test.jsonl", "answer", "final_number"),
    "svamp": ("svamp/test.jsonl", "Answer", "final_number"),
    "math500": ("math500/test.json", "answer", "last_box"),
    "minerva": ("minerva_math/test.jsonl", "solution", "last_box"),
    "aime24": ("aime24/test.jsonl", "answer", "last_box"),
    "amc23": ("amc23/test.jsonl", "answer", "last_box"),
}

ALONE = ("math500", "aime24", "amc23")  # where math-verify alone is measured beside

_NUMBER = re.compile(r"([^\d.]*?)(-?)(\d[\d,]*(?:\.\d+)?|\.\d+)([^\d]*)")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_PAIR = re.compile(r"(\\left)?([(\[])(.*),(.*?)(\\right)?([)\]])")


@dataclass(frozen=True)
class Case:
    """A completion whose right grade is known."""

    problem: Problem
    text: str
    kind: str  # how it was made
    right: bool


def cases(name: str, folder: Path) -> list[Case]:
    """Every reference solution (or boxed answer) of a set, and the wrong neighbours of each answer."""
    file, field, rule = SETS[name]
    found = []
    for place, row in enumerate(_rows(folder / file)):
        value = row[field]
        written = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        gold = extract_gold(written, rule)
        problem = Problem(f"{name}/{place}", name, name, "", gold)
        solution = written if written != gold else f"So the answer is $\\boxed{{{gold}}}$."
        found.append(Case(problem, solution, "itself", True))
        found += [Case(problem, f"\\boxed{{{other}}}", kind, True) for kind, other in rewritings(gold)]
        if rule == "final_number":
            found += [Case(problem, line, kind, right) for kind, line, right in hash_lines(gold)]
        found += [Case(problem, f"\\boxed{{{wrong}}}", kind, False) for kind, wrong in neighbours(gold)]
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    yield from json.loads(text) if path.suffix == ".json" else map(json.loads, text.splitlines())


def neighbours(gold: str) -> Iterator[tuple[str, str]]:
    """Answers that are wrong though they look like `gold`, each with the way it was made."""
    number, fraction, pair = _NUMBER.fullmatch(gold), _FRACTION.fullmatch(gold), _PAIR.fullmatch(gold)
    if "\\pm" in gold:
        yield from _wrong_expressions(gold)
    elif number and (_THOUSANDS.fullmatch(number[3]) or "," not in number[3]):
        yield from _wrong_numbers(*number.groups())
    elif fraction:
        yield from _wrong_fractions(gold, *fraction.groups())
    elif pair:
        yield from _wrong_pairs(gold, pair)
    elif "," in gold and not re.search(r"\d,\\?!?\s?\d{3}(?!\d)", gold):
        yield from _wrong_lists(gold)
    else:
        yield from _wrong_expressions(gold)


def rewritings(gold: str) -> Iterator[tuple[str, str]]:
    """Other ways to write `gold` that both graders should know."""
    number, fraction, pair = _NUMBER.fullmatch(gold), _FRACTION.fullmatch(gold), _PAIR.fullmatch(gold)
    yield "a full stop", f"{gold}."
    yield "blanks", f" {gold} "
    if number and not (number[1] or number[4]) and (_THOUSANDS.fullmatch(number[3]) or "," not in number[3]):
        value = Fraction(number[2] + number[3].replace(",", ""))
        yield "decimals", f"{_decimal(value)}{'' if value.denominator > 1 else '.'}00"
        yield "thousands separators", f"{number[2]}{abs(int(value)):,}" if value.denominator == 1 else gold
        yield "a name before", f"x = {gold}"
        yield "a unit after", f"{gold}\\text{{ units}}"
        yield "dollars", f"\\${gold}"
        yield "math delimiters", f"\\({gold}\\)"
        yield "a unit after a blank in LaTeX", f"{gold}\\ \\text{{dollars}}"
        yield "a unit after a thin blank", f"{gold} \\, \\text{{dollars}}"
        yield "a unit after a tie", f"{gold}~\\mathrm{{dollars}}"
        yield "number and unit as text", f"\\text{{{gold} dollars}}" if "," not in gold and value >= 0 else gold
        yield "a label as text", f"\\text{{Total}} = {gold}"
        yield "a computation", f"{_decimal(value - 1)} + 1 = {gold}"
        yield "a fraction", f"\\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}"
    elif fraction:
        sign, above, below = fraction.groups()
        yield "a slash", f"{sign}{above}/{below}"
        yield "dfrac", f"{sign}\\dfrac{{{above}}}{{{below}}}"
        yield "not in lowest terms", f"{sign}\\frac{{{3 * int(above)}}}{{{3 * int(below)}}}"
    elif pair and "\\cup" not in gold:
        yield "sizes", f"\\left{pair[2]}{pair[3]} , {pair[4]}\\right{pair[6]}"
    elif gold.count(",") == 1 and not re.search(r"[(\[{]|\d,(?:\\!)?\s?\d{3}(?!\d)", gold):
        first, second = gold.split(",")
        yield "another order", f"{second},{first}"
        yield "as a set", f"\\{{{gold}\\}}"


def hash_lines(gold: str) -> Iterator[tuple[str, str, bool]]:
    """Last lines of a solution, with the way they are written and whether they give `gold`."""
    yield "hashes", f"#### {gold}", True
    yield "hashes on a line of their own", f"####\n{gold}", True
    yield "hashes, math delimiters", f"#### \\({gold}\\)", True
    yield "hashes, euros", f"#### €{gold}", True
    yield "hashes, a label", f"#### Answer: {gold}", True
    yield "hashes, a sentence", f"#### The answer is {gold}", True
    yield "hashes, code marks", f"#### `{gold}`", True
    yield "hashes, a computation", f"#### 17 + 1 = {gold}", True
    yield "hashes, a unit with a slash", f"#### {gold} dollars/day", True
    yield "hashes, two values", f"#### {gold} or 977", False
    yield "hashes, two numbers", f"#### {gold} 97", False
    yield "hashes, a factor", f"#### {gold} million", False


def _wrong_numbers(before: str, sign: str, digits: str, after: str) -> Iterator[tuple[str, str]]:
    plain = digits.replace(",", "")
    value = Fraction(sign + plain)
    last = Fraction(1, 10 ** len(plain.partition(".")[2]))
    changed = {
        "one more": _decimal(value + last),
        "one less": _decimal(value - last),
        "ten times": _decimal(value * 10),
        "a tenth": _decimal(value / 10),
        "sign": _decimal(-value),
        "nearly": _decimal(value + Fraction(1, 10**7)),
    }
    for place in range(len(plain) - 1):
        if plain[place] != plain[place + 1] and "." not in plain[place : place + 2]:
            changed["swapped digits"] = sign + plain[:place] + plain[place + 1] + plain[place] + plain[place + 2 :]
            break
    for kind, wrong in changed.items():
        if Fraction(wrong) != value:
            yield kind, before + wrong + after


def _decimal(value: Fraction) -> str:
    """A fraction whose denominator divides a power of ten, in decimals."""
    places = next(places for places in range(60) if (value * 10**places).denominator == 1)
    digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    shown = f"{digits[: len(digits) - places]}.{digits[len(digits) - places :]}" if places else digits
    return ("-" if value < 0 else "") + shown


def _wrong_fractions(gold: str, sign: str, above: str, below: str) -> Iterator[tuple[str, str]]:
    value = Fraction(int(sign + above), int(below))
    if value:
        yield "sign", gold.removeprefix("-") if sign else f"-{gold}"
        if abs(value) != 1:
            yield "upside down", f"{sign}\\frac{{{below}}}{{{above}}}"
    yield "one more", f"{sign}\\frac{{{int(above) + 1}}}{{{below}}}"
    rounded = f"{sign}{float(abs(value)):.4f}"
    if Fraction(rounded) != value:
        yield "rounded", rounded


def _wrong_pairs(gold: str, pair: re.Match[str]) -> Iterator[tuple[str, str]]:
    first, second = pair[3].strip(), pair[4].strip()
    other_end = {"(": "[", "[": "(", ")": "]", "]": ")"}
    yield "other left end", gold.replace(pair[2], other_end[pair[2]], 1)
    yield "other right end", gold[: gold.rindex(pair[6])] + other_end[pair[6]]
    yield "half", first
    if first != second:
        yield "swapped", f"{pair[2]}{second},{first}{pair[6]}"


def _wrong_lists(gold: str) -> Iterator[tuple[str, str]]:
    inner = gold.removeprefix("\\{").removesuffix("\\}")
    braces = ("\\{", "\\}") if inner != gold else ("", "")
    parts = inner.split(",")
    yield "half", braces[0] + ",".join(parts[1:]) + braces[1]
    yield "one too many", braces[0] + ",".join([*parts, "977"]) + braces[1]


def _wrong_expressions(gold: str) -> Iterator[tuple[str, str]]:
    word = re.fullmatch(r"\\text\{\(?([A-Za-z]+)\)?\}", gold)
    if word:
        yield "another word", f"\\text{{{'B' if len(word[1]) == 1 and word[1] != 'B' else 'north'}}}"
        return
    if "=" not in gold and "\\in" not in gold:
        if gold.count("\\pm") == 1:
            yield "half", gold.replace("\\pm", "+")
        else:
            yield "sign", f"-({gold})"
    digits = re.search(r"(?<![\d_{.])\d+(?![\d.])", re.sub(r"_\{?\d+\}?", lambda found: "_" * len(found[0]), gold))
    if digits:
        yield "one more", gold[: digits.start()] + str(int(digits[0]) + 1) + gold[digits.end() :]


class MathVerifyAlone:
    """math-verify as it comes, in this process: what the stricter grader is to be held against."""

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        from math_verify import parse, verify

        grades = []
        for problem, completion in zip(problems, completions, strict=True):
            correct = verify(parse(f"${problem.answer}$"), parse(completion.text))
            grades.append(Grade(GradeStatus.CORRECT if correct else GradeStatus.WRONG, float(correct)))
        return grades


def grade_all(reward: RewardFunction, found: Sequence[Case]) -> tuple[list[Grade], float]:
    """The grades of all cases and the processor seconds they took, those of ended worker processes included."""
    started = sum(os.times()[:4])
    completions = [Completion((), (), FinishReason.EOS, case.text) for case in found]
    grades = reward([case.problem for case in found], completions)
    if isinstance(reward, MathVerifyReward):
        reward.close()  # only then does the system count its processes
    return grades, sum(os.times()[:4]) - started


def mistakes(found: Sequence[Case], grades: Sequence[Grade]) -> list[tuple[Case, Grade]]:
    """Cases with a verdict that is known to be false: right ones not correct, wrong ones correct, and ungraded ones."""
    return [
        (case, grade)
        for case, grade in zip(found, grades, strict=True)
        if (grade.status is GradeStatus.CORRECT) is not case.right or grade.reward is None
    ]


def measure(folder: Path, workers: int = 1) -> tuple[str, int]:
    """The tables in Markdown, and the number of mistakes of both graders."""
    rows, listed, kinds = [], [], Counter[tuple[str, bool]]()
    examples: list[Case] = []
    whole: Agreement | None = None
    for name, (file, _, rule) in SETS.items():
        if not (folder / file).exists():
            rows.append(f"| {name} | not found | | | | | | |")
            continue
        found = cases(name, folder)
        kinds.update((case.kind, case.right) for case in found)
        with MathVerifyReward(time_limit=20.0, workers=workers, extraction=rule) as math_verify:
            graders = {"MathVerifyReward": math_verify, "NormalisedReward": NormalisedReward(rule)}
            outcomes = {grader: grade_all(reward, found) for grader, reward in graders.items()}
        if name in ALONE:
            alone = outcomes["math-verify alone"] = grade_all(MathVerifyAlone(), found)
            examples += [case for case, _ in mistakes(found, alone[0])]
        for grader, (grades, seconds) in outcomes.items():
            false = mistakes(found, grades)
            right = sum(case.right for case in found)
            rejects = sum(case.right for case, _ in false)
            accepts = sum(not case.right and grade.status is GradeStatus.CORRECT for case, grade in false)
            ungraded = sum(grade.reward is None for _, grade in false)
            counts = f"{right} | {rejects} | {len(found) - right} | {accepts} | {ungraded}"
            rows.append(f"| {name} | {grader} | {counts} | {seconds:.1f} |")
            if grader in graders:
                listed += [
                    f"| {name} | {grader} | `{case.problem.answer}` | `{case.text}` | {case.kind} | {grade.status} |"
                    for case, grade in false
                ]
        both = [outcomes[grader][0] for grader in graders]
        agreement = agreement_of(*graders, [case.problem for case in found], [case.text for case in found], *both)
        whole = agreement if whole is None else whole.joined(agreement)
    made = {
        right: ", ".join(f"{kind} {number}" for (kind, known), number in kinds.most_common() if known is right)
        for right in (True, False)
    }
    lines = [
        "| set | grader | right answers | false rejects | wrong neighbours | false accepts | ungraded | processor seconds |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Right answers, by the way they were written: {made[True]}.",
        "",
        f"Wrong neighbours, by the way they were made: {made[False]}.",
        "",
        "Mistakes, by name:" if listed else "No mistake of either grader on these cases.",
    ]
    if listed:
        lines += ["", "| set | grader | gold | completion | made | grade |", "|---|---|---|---|---|---|", *listed]
    if examples:
        by_kind = {(case.kind, case.right): case for case in reversed(examples)}
        lines += ["", "What math-verify alone gets wrong, with one example of each way it was made:", ""]
        lines += ["| made | mistakes | gold | completion |", "|---|---|---|---|"]
        for (kind, right), number in Counter((case.kind, case.right) for case in examples).most_common():
            case, verdict = by_kind[kind, right], "right, not accepted" if right else "wrong, accepted"
            lines.append(f"| {kind} ({verdict}) | {number} | `{case.problem.answer}` | `{case.text}` |")
    if whole is not None:
        lines += ["", "The two graders against each other:", "", whole.markdown()]
    return "\n".join(lines) + "\n", len(listed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure both graders on public problems and write docs/grading.md.")
    parser.add_argument("--data-dir", default=os.environ.get("BSHARP_DATA_DIR"), help="folder with one folder a set")
    parser.add_argument("--workers", type=int, default=1, help="processes of math-verify")
    parser.add_argument("--no-write", action="store_true", help="only print")
    chosen = parser.parse_args(arguments)
    if not chosen.data_dir or not Path(chosen.data_dir).is_dir():
        print("name a folder with public problems: --data-dir, or BSHARP_DATA_DIR", file=sys.stderr)
        return 2
    tables, number = measure(Path(chosen.data_dir), chosen.workers)
    print(tables)
    if not chosen.no_write:
        before = DOCUMENT.read_text(encoding="utf-8").partition(MARK)[0]
        DOCUMENT.write_text(f"{before}{MARK}\n\n{tables}", encoding="utf-8")
    return 1 if number else 0


if __name__ == "__main__":
    sys.exit(main())
