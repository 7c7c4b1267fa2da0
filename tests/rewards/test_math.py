"""The math-verify grader as a labelled table; it is as strict as it says, from any thread, and cannot be made to hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from graded_elsewhere import grade_numbers

from bsharp.rewards import MathVerifyReward, math_reading
from bsharp.rewards.math import BATCH
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

CORRECT, WRONG, UNPARSEABLE = GradeStatus.CORRECT, GradeStatus.WRONG, GradeStatus.UNPARSEABLE
ERROR, TIMEOUT = GradeStatus.ERROR, GradeStatus.TIMEOUT
ENDLESS = r"\boxed{\sum_{k=1}^{1000000000}\frac{1}{k}}"


def problem(gold: str) -> Problem:
    return Problem("id", "task", "family", "question", gold)


def completion(text: str) -> Completion:
    return Completion((0,), (0.0,), FinishReason.EOS, text)


@pytest.fixture(scope="module")
def reward() -> Iterator[MathVerifyReward]:
    with MathVerifyReward(time_limit=60) as reward:
        yield reward


def paired(golds: list[str], texts: list[str]) -> tuple[list[Problem], list[Completion]]:
    return [problem(gold) for gold in golds], [completion(text) for text in texts]


def grade(reward: MathVerifyReward, gold: str, text: str) -> Grade:
    (result,) = reward([problem(gold)], [completion(text)])
    return result


CASES = [
    # gold, content of the box, status, reason
    (r"\frac{1}{2}", r"\frac12", CORRECT, "two ways to write a fraction"),
    (r"\frac{1}{2}", "0.5", CORRECT, "a decimal that is exact"),
    ("0.5", "0.4999999", WRONG, "math-verify rounds to six places"),
    ("0.5", "0.49999999999999999999", WRONG, "more digits than a float has"),
    (r"\frac{1}{3}", "0.333333", WRONG, "a rounded decimal is another number"),
    (r"\{0.5\}", r"\{0.4999999\}", WRONG, "no rounding inside a set either"),
    ("1331 and 1728", "1728", WRONG, "one of two values"),
    ("1331 and 1728", "1728, 1331", CORRECT, "both, in any order"),
    ("$1331$ and $1728$", "1728", WRONG, "one of two values, each in dollars"),
    ("$1331$ and $1728$", "$1728$, $1331$", CORRECT, "both, each in dollars"),
    ("1728", "1331 and 1728", WRONG, "a value too many"),
    (r"\{1,2\}", r"\{2,1\}", CORRECT, "sets have no order"),
    ("(1,2)", "(2,1)", WRONG, "tuples have one"),
    ("[0,1)", "[0,1]", WRONG, "an endpoint"),
    (r"2\sqrt{3}", r"\sqrt{12}", CORRECT, "equal radicals"),
    (r"\sqrt{2}", "1.41421356", WRONG, "an approximation"),
    ("x^2+2x+1", "(x+1)^2", CORRECT, "equal polynomials"),
    ("3", "x=3", CORRECT, "an assignment"),
    ("Evelyn", r"\text{Evelyn}", CORRECT, "a word"),
    ("Evelyn", "yvlEen", WRONG, "an anagram, equal as a product of letters"),
    ("1331 and 1728", "1331, 1331", WRONG, "a repeated value is not the other one"),
    ("2,2,3", "2,3", WRONG, "repetitions in a list count"),
    (r"\{2,2,3\}", r"\{2,3\}", CORRECT, "repetitions in a set do not"),
    (r"\{1,2\}", r"\{1,2,3\}", WRONG, "a superset"),
    (r"\{1,2,3\}", r"\{1,2\}", WRONG, "a subset"),
    ("19, 46, \\text{ and } 82", "21, 36, and 82", WRONG, "one value of three (Math-Verify#14)"),
    ("n=2, 3, 4", "n=1, 2, 3", WRONG, "a named list (Math-Verify#14)"),
    ("n=2, 3, 4", "2, 3, 4", CORRECT, "a name left out"),
    ("x=5", "y=5", WRONG, "another name"),
    ("D = (0, 1)", "D = (0, 1.5)", WRONG, "a named interval (Math-Verify#14)"),
    (r"\pm 2021", "2021", WRONG, "one of both signs (Math-Verify#14)"),
    (r"\pm 2021", "-2021, 2021", CORRECT, "both signs"),
    (r"3 \pm 2\sqrt{2}", r"3-\sqrt{8}, 3+\sqrt{8}", CORRECT, "both values, written otherwise"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}", WRONG, "small numbers differ too (Math-Verify#14)"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", WRONG, "small powers differ too (Math-Verify#14)"),
    (r"\frac{\pi}{2^{200}}", r"\frac{\pi}{2^{199}}", WRONG, "small multiples of pi differ too"),
    ("0", "10^{-60}", WRONG, "small is not zero"),
    ("10^{100}", "10^{100}+1", WRONG, "large numbers differ too"),
    (r"1 - \frac{1}{\mathrm{e}}", r"1 + \frac{1}{\mathrm{e}}", WRONG, "a sign within (Math-Verify#14)"),
    (r"1 - \frac{1}{\mathrm{e}}", "1-e^{-1}", CORRECT, "the same, written otherwise"),
    ("12:00", "1:00", WRONG, "another time (Math-Verify#14)"),
    (r"1, 2, \ldots, n", r"1, 3, 5, \ldots, 2n-1", WRONG, "dots are compared as text (Math-Verify#14)"),
    ("4", r"4\sqrt(2)", WRONG, "a root in parentheses is a root (Math-Verify#41)"),
    (r"4\sqrt{2}", r"4\sqrt(2)", CORRECT, "a root in parentheses"),
    ("3x-y+13=0", "3x+4y+14=0", WRONG, "another line (Math-Verify#60)"),
    ("3x-y+13=0", "6x-2y+26=0", CORRECT, "a multiple of an equation"),
    ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}", CORRECT, "an equation solved for y (Math-Verify#26)"),
    ("-34x-45y+20z-100=0", "34x+45y-20z+100=0", CORRECT, "an equation with all signs changed (Math-Verify#2)"),
    ("y=2x+3", "2x+3", CORRECT, "a function without its name"),
    (r"\frac{100}{3}", "33.3", WRONG, "rounded (Math-Verify#2 asks for the contrary)"),
    (r"\tan^2(y)+1", r"\sec^2(y)", CORRECT, "an identity"),
    ("x", r"\sqrt{x^2}", WRONG, "equal for positive numbers only"),
    ("x^2", r"\sqrt{x^4}", CORRECT, "equal for all real numbers"),
    (
        r"\sqrt{2}",
        "1." + "4142135623730950488016887242096980785696718753769480731766797379907324784621",
        WRONG,
        "75 digits",
    ),
    ("4e33", "132e", WRONG, "e33 is a power of ten, not Euler's number"),
    ("4e33", r"4 \times 10^{33}", CORRECT, "a power of ten"),
    ("1e-5", "e-5", WRONG, "a small power of ten"),
    (r"\frac{1}{m} t", r"\frac{1}{m}", WRONG, "a symbol is not a unit"),
    (r"\frac{1}{\sqrt{2}}c", r"\frac{1}{\sqrt{2}}", WRONG, "a symbol at the end is not a unit"),
    ("3R^2", "3r^2", WRONG, "capital letters are other symbols"),
    ("6", "2 3", UNPARSEABLE, "two numbers side by side are no product"),
    ("10 000", "10000", CORRECT, "a blank as thousands separator"),
    (r"\frac{dx}{dt}=0.5x", "0=0.5x", WRONG, "a derivative beside a decimal"),
    ("10 000", "0", WRONG, "a blank between digits is no product"),
    (r"1\frac{4}{5}", r"\frac95", CORRECT, "a mixed number"),
    (r"1\frac{4}{5}", r"\frac45", WRONG, "and not a product"),
    ("52_8", "52_9", WRONG, "another base"),
    ("52_8", "52_{8}", CORRECT, "the same base"),
    ("(0,1]", "[0,1]", WRONG, "the left end"),
    (r"(6,31,-1)", "[6,31,-1)", WRONG, "mixed brackets are no vector"),
    ("(1,2)", "1,2", WRONG, "a pair without its brackets"),
    ("-2,1", "(-2,1)", WRONG, "an interval for two values"),
    (r"(2,3)", r"\langle 2,3 \rangle", CORRECT, "a vector"),
    (r"(2,12) \cup (12,102)", "(2,102)", WRONG, "a point is missing"),
    (r"(2,12) \cup (12,102)", r"(12,102)\cup(2,12)", CORRECT, "a union has no order"),
    ("x>5", r"(5,\infty)", CORRECT, "an inequality as an interval"),
    ("x>5", r"[5,\infty)", WRONG, "a strict inequality"),
    (r"-1 < x \le 2", "(-1,2]", CORRECT, "two inequalities as an interval"),
    (r"x \in [-2,7]", "[-2,7]", CORRECT, "membership left out"),
    (r"50\%", "50", CORRECT, "a percent sign left out"),
    (r"50\%", "0.5", CORRECT, "a percent sign counted"),
    (r"10\%", r"0.1\%", WRONG, "but not both"),
    ("5", r"5 \text{ cm}", CORRECT, "a unit"),
    (r"5 \text{ cm}", r"5 \text{ m}", WRONG, "another unit"),
    (r"5 \text{ cm}", "5 centimeters", CORRECT, "the same unit"),
    (
        r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
        r"\begin{pmatrix} -1 & 0 \\ 0 & 1 \end{pmatrix}",
        WRONG,
        "a matrix entry",
    ),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
        r"\begin{bmatrix} -\frac13 \\ \frac23 \end{bmatrix}",
        CORRECT,
        "a vector's way to write",
    ),
    (r"\frac{dx}{dt}=kx-a", "0=kx-a", WRONG, "a derivative is not 0"),
    (r"\text{(C)}", "C", CORRECT, "a choice"),
    (r"\text{(C)}", "(D)", WRONG, "another choice"),
    (r"\$32,\!348", "32348", CORRECT, "a price"),
    ("100,200", "100, 200", CORRECT, "commas may part values"),
    ("100,200", "100200", CORRECT, "or be thousands separators"),
    ("(100,200)", "100200", WRONG, "but not within brackets"),
    (
        r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}",
        r"\frac13 E_1 + \frac23 E_2",
        CORRECT,
        "a gold the parser cannot read, as text",
    ),
    (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\frac13 E_1 + \frac13 E_2", WRONG, "the same, and another text"),
    ("5", "x^2=5", WRONG, "an equation is no value"),
    ("5", "2+3=5", CORRECT, "a computation has one"),
    (r"\infty", r"-\infty", WRONG, "signs of infinity"),
    ("1,000", "1000", CORRECT, "thousands separator"),
    (r"0.\overline{3}", r"\frac{1}{3}", CORRECT, "a repeating decimal is an exact fraction"),
    (r"0.\overline{3}", "0", WRONG, "and no product with 0"),
    (r"0.\overline{3}", r"0.\overline{6}", WRONG, "another repeating decimal"),
    (r"2.\bar{3}", r"\frac73", CORRECT, "a bar over one digit"),
    (r"-0.3\overline{6}", r"-\frac{11}{30}", CORRECT, "digits before the bar"),
    (r"(1,0.\overline{3})", r"(1,\frac13)", CORRECT, "a repeating decimal behind a comma"),
    ("5", r"5 \text{ million}", WRONG, "a factor is no unit"),
    ("3", "3 fourths", WRONG, "a denominator is no unit"),
    ("4", "4 squared", WRONG, "a power is no unit"),
    ("5", r"5 \text{ factorial}", WRONG, "a factorial is no unit"),
    ("5", r"5 \text{ (base 8)}", WRONG, "a base is no unit"),
    (r"5 \text{ million}", "5 million", CORRECT, "the same factor in words"),
    (r"7 \text{ a.m.}", r"7 \text{ p.m.}", WRONG, "morning and evening"),
    (r"7 \text{ a.m.}", "7 AM", CORRECT, "ways to write the morning"),
    (r"5 \text{ cm}", r"5 \text{ cm}^2", WRONG, "a length and an area"),
    (r"5 \text{ cm}^2", r"5 \text{ cm}^3", WRONG, "an area and a volume"),
    (r"5 \text{ cm}^2", r"5 \text{ square centimeters}", CORRECT, "ways to write an area"),
    (r"5 \text{ square feet}", "5 feet", WRONG, "an area and a length in words"),
    (r"60 \text{ mph}", r"60 \text{ km/h}", WRONG, "two speeds"),
    (r"60 \text{ mph}", "60 miles per hour", CORRECT, "ways to write a speed"),
    (r"9 \text{ meters per second squared}", r"9 \text{ m/s}^2", CORRECT, "ways to write an acceleration"),
    (r"\$5", r"5 \text{ cents}", WRONG, "dollars and cents"),
    (r"\$5", "5 dollars", CORRECT, "ways to write dollars"),
    ("5", "5 dollars/day", CORRECT, "a unit left out"),
    (r"5 \text{ students}", r"5 \text{ people}", CORRECT, "words that the table of units has not are no difference"),
    ("18", r"\(18\)", CORRECT, "math delimiters in the box"),
    ("18", r"18\ \text{dollars}", CORRECT, "a blank in LaTeX before the unit"),
    ("18", r"18 \, \text{dollars}", CORRECT, "a thin blank before the unit"),
    ("18", r"18~\mathrm{dollars}", CORRECT, "a tie before the unit"),
    ("18", r"\text{18 dollars}", CORRECT, "number and unit as text"),
    ("18", r"\text{Total} = 18", CORRECT, "a label as text"),
    ("18", "17 + 1 = 18", CORRECT, "the last side of a computation"),
    ("18", "18 + 1 = 19", WRONG, "and no other side"),
    ("18", "18 or 19", WRONG, "two values"),
    ("18", "€18", CORRECT, "another currency"),
    ("x=2,y=3", "y=3, x=2", CORRECT, "named values in any order"),
    ("x=2,y=3", "x=3,y=2", WRONG, "names keep their values"),
    (r"\frac{1}{2}", r"\frac 1 2", CORRECT, "blanks between the digits of a fraction"),
    ("(2,3)", "x=3,y=2", WRONG, "named values are no pair"),
    (r"\text{Yes}", "Yes", CORRECT, "a short word"),
    (r"\text{Yes}", "yes", CORRECT, "a short word in any case"),
    (r"\text{Yes}", "No", WRONG, "another short word"),
    ("ABC", "BCA", WRONG, "letters of points are no product"),
    ("cat", "act", WRONG, "a short word is no product"),
    ("NO", "ON", WRONG, "nor are two capitals"),
    (r"\triangle ABC", r"\triangle ACB", WRONG, "triangles name their corners in order"),
    (r"\triangle ABC", r"\triangle ABC", CORRECT, "the same triangle"),
    ("xy", "yx", CORRECT, "two small letters are a product"),
    ("xyz", r"x \cdot z \cdot y", CORRECT, "and so are three beside an explicit product"),
    ("6abc", "6", WRONG, "letters at a number are no unit"),
    (r"1,234.\overline{5}", r"\frac{11111}{9}", WRONG, "a bar that is not understood is no product"),
    ("18", "1 8", UNPARSEABLE, "two numbers are not one"),
    ("12", "1 2", UNPARSEABLE, "digits apart"),
    ("12", r"1\ 2", UNPARSEABLE, "a blank in LaTeX"),
    ("12", r"1\quad 2", UNPARSEABLE, "a wide blank"),
    ("12", r"1\text{ }2", UNPARSEABLE, "a blank as text"),
    ("18", "18 19", UNPARSEABLE, "two numbers side by side"),
    ("3.5", "3. 5", UNPARSEABLE, "a blank behind the point"),
    ("5", "???", UNPARSEABLE, "no mathematics"),
    ("5", "", UNPARSEABLE, "empty box"),
    ("5", "1" * 3000, UNPARSEABLE, "too long to look at"),
    ("5", "(" * 100 + "5" + ")" * 100, CORRECT, "a hundred brackets"),
    ("5", r"\frac{5", UNPARSEABLE, "a formula that breaks off"),
    ("???", "???", ERROR, "a gold answer that cannot be read gives no reward to anyone"),
    ("", "5", ERROR, "no gold answer"),
]


@pytest.mark.parametrize(("gold", "answer", "status", "reason"), CASES, ids=[case[-1] for case in CASES])
def test_grader_table(reward: MathVerifyReward, gold: str, answer: str, status: GradeStatus, reason: str) -> None:
    result = grade(reward, gold, f"So the answer is \\boxed{{{answer}}}.")
    assert result.status is status, reason
    assert result.reward == {CORRECT: 1.0, WRONG: 0.0, UNPARSEABLE: 0.0, ERROR: None}[status]
    assert (result.answer is None) == (status not in (CORRECT, WRONG))
    assert result.exact_match == (gold == answer)


def test_last_complete_box_counts(reward: MathVerifyReward) -> None:
    assert grade(reward, "5", r"\boxed{4}, no, \boxed{5}").status is CORRECT
    assert grade(reward, "5", r"\boxed{5}, no, \boxed{4}").status is WRONG
    assert grade(reward, "5", r"\boxed{5}, no, \boxed{4").status is CORRECT
    missing = grade(reward, "5", "it is 5")
    assert (missing.status, missing.detail) == (UNPARSEABLE, "no complete box")
    assert grade(reward, "???", "it is 5").status is ERROR


def test_equal_answers_vote_together(reward: MathVerifyReward) -> None:
    written = [r"\frac12", "0.5", r"\frac{2}{4}", "1/2", "x=0.5"]
    assert {grade(reward, "1", f"\\boxed{{{answer}}}").answer for answer in written} == {"1/2"}


def test_words_that_change_the_value_keep_votes_apart(reward: MathVerifyReward) -> None:
    votes = [grade(reward, "1", f"\\boxed{{{answer}}}").answer for answer in ("5", "5 cm", "5 million", "ABC", "BCA")]
    assert votes == ["5", "5", "5 million", "abc", "bca"]


def test_an_endless_computation_times_out_and_shifts_nothing_from_any_thread() -> None:
    outcome: list[Grade] = []
    texts = [r"\boxed{1}", ENDLESS, "no box", r"\boxed{4}"]
    golds = ["1", "2", "3", "4"]

    def run() -> None:
        with MathVerifyReward(time_limit=1.0) as reward:
            outcome.extend(reward([problem(gold) for gold in golds], [completion(text) for text in texts]))

    thread = threading.Thread(target=run)
    start = time.monotonic()
    thread.start()
    thread.join(120)
    assert time.monotonic() - start < 120
    assert [result.status for result in outcome] == [CORRECT, TIMEOUT, UNPARSEABLE, CORRECT]
    assert [result.reward for result in outcome] == [1.0, None, 0.0, 1.0]
    assert outcome[1].answer is None


def test_several_workers_give_the_same_grades_in_order() -> None:
    golds = [str(number) for number in range(12)]
    texts = [f"\\boxed{{{number if number % 3 else number + 1}}}" for number in range(12)]
    with MathVerifyReward(time_limit=60, workers=2) as reward:
        grades = reward([problem(gold) for gold in golds], [completion(text) for text in texts])
    assert [result.status is CORRECT for result in grades] == [number % 3 != 0 for number in range(12)]


def test_a_dead_worker_is_an_error_for_one_item_and_is_replaced(reward: MathVerifyReward) -> None:
    assert grade(reward, "1", r"\boxed{1}").status is CORRECT
    worker = reward._idle.get()
    worker._process.kill()
    worker._process.wait()
    reward._idle.put(worker)
    assert grade(reward, "1", r"\boxed{1}").status is ERROR
    assert grade(reward, "1", r"\boxed{1}").status is CORRECT


def test_a_killed_worker_costs_its_own_item_and_no_other() -> None:
    golds = ["1", "2", "3", "4", "5"]
    texts = [ENDLESS if gold == "2" else f"\\boxed{{{gold}}}" for gold in golds]
    with MathVerifyReward(time_limit=100, workers=2) as reward:
        reward([problem("1"), problem("2")], [completion(r"\boxed{1}"), completion(r"\boxed{2}")])
        grades: list[Grade] = []
        thread = threading.Thread(target=lambda: grades.extend(reward(*paired(golds, texts))))
        thread.start()
        deadline = time.monotonic() + 60
        while reward._idle.qsize() != 1 and time.monotonic() < deadline:
            time.sleep(0.02)  # until the other worker has done everything else
        time.sleep(0.3)
        (busy,) = set(reward._workers) - set(reward._idle.queue)
        assert busy._process is not None
        busy._process.kill()
        thread.join(60)
    assert [result.status for result in grades] == [CORRECT, ERROR, CORRECT, CORRECT, CORRECT]
    assert grades[1].detail == "the math-verify worker died"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no way to keep a process waiting here")
def test_time_in_which_a_worker_waits_does_not_count() -> None:
    with MathVerifyReward(time_limit=0.4) as reward:
        assert grade(reward, "1", r"\boxed{1}").status is CORRECT
        process = reward._workers[0]._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        late = threading.Timer(1.2, lambda: process.send_signal(signal.SIGCONT))
        late.start()
        assert grade(reward, "7", r"\boxed{7}").status is CORRECT
        late.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes_of_a_pool_grade_with_workers_of_their_own(reward: MathVerifyReward, method: str) -> None:
    assert grade(reward, "1", r"\boxed{1}").status is CORRECT  # started before the fork
    with ProcessPoolExecutor(1, get_context(method)) as pool:
        outcomes = list(pool.map(grade_numbers, [reward, reward], [[0, 1, 2], [3, 4, 5]]))
    assert outcomes == [["correct", "wrong", "correct"], ["wrong", "correct", "wrong"]]
    assert grade(reward, "1", r"\boxed{1}").status is CORRECT  # the parent's worker lives on


def test_a_forked_copy_neither_uses_nor_ends_the_worker_of_its_parent() -> None:
    program = """
import os, sys
from bsharp.rewards import MathVerifyReward, math_reading
from bsharp.rewards.math import BATCH
sys.path.insert(0, sys.argv[1])
from graded_elsewhere import grade_numbers
reward = MathVerifyReward(time_limit=60)
assert grade_numbers(reward, [2]) == ["correct"]
worker = reward._workers[0]._process
child = os.fork()
if child == 0:
    assert grade_numbers(reward, [3]) == ["wrong"]
    assert reward._workers[0]._process.pid != worker.pid
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert worker.poll() is None
assert grade_numbers(reward, [4]) == ["correct"]
print(worker.pid)
"""
    folder = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):  # its worker ended with it
        os.kill(int(done.stdout), 0)


def test_equal_answers_are_judged_once_per_call(reward: MathVerifyReward, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    ask = reward._ask
    monkeypatch.setattr(reward, "_ask", lambda pairs: asked.extend(answer for _, answer in pairs) or ask(pairs))
    grades = reward(*paired(["1", "1", "2", "1"], [r"\boxed{1}", r"x \boxed{1}", r"\boxed{1}", "none"]))
    assert [result.status for result in grades] == [CORRECT, CORRECT, WRONG, UNPARSEABLE]
    assert asked == ["1", "1", None]


def test_an_endless_answer_within_a_batch_costs_no_other() -> None:
    golds = [str(number) for number in range(40)]
    endless = ["3", "9", "39"]
    texts = [ENDLESS if gold in endless else f"\\boxed{{{gold}}}" for gold in golds]
    with MathVerifyReward(time_limit=0.5) as reward:
        grades = reward(*paired(golds, texts))
    assert [gold for gold, result in zip(golds, grades, strict=True) if result.status is TIMEOUT] == endless
    assert sum(result.status is CORRECT for result in grades) == 37


def test_workers_are_asked_in_batches(reward: MathVerifyReward, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    ask = reward._ask
    monkeypatch.setattr(reward, "_ask", lambda pairs: sizes.append(len(pairs)) or ask(pairs))
    for number, expected in ((3, [1] * 3), (40, [10] * 4), (2 * BATCH * 4 + 1, [BATCH] * 8 + [1])):
        golds = [str(gold) for gold in range(number)]
        grades = reward(*paired(golds, [f"\\boxed{{{gold}}}" for gold in golds]))
        assert {result.status for result in grades} == {CORRECT}
        assert sizes == expected
        sizes.clear()


def test_plain_fractions_are_read_as_the_parser_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        written.format(above, below)
        for written in ("{}/{}", "-{}/{}", "\\frac{{{}}}{{{}}}", "-\\frac{{{}}}{{{}}}")
        for above, below in (
            ("3", "4"),
            ("6", "4"),
            ("0", "7"),
            ("007", "2"),
            ("8", "2"),
            (str(10**40), "3"),
            ("1", "0"),
        )
    ]
    ours = [math_reading._parse(text) for text in texts]
    monkeypatch.setattr(math_reading, "_PLAIN_FRACTION", re.compile("never"))
    for text, value, parsed in zip(texts, ours, map(math_reading._parse, texts), strict=True):
        assert (value, type(value)) == (parsed, type(parsed)), text


def test_it_is_symmetric_and_reflexive_on_the_answers_of_the_table(reward: MathVerifyReward) -> None:
    readable = [case for case in CASES if case[2] in (CORRECT, WRONG) and "%" not in case[0]]
    forward = reward(*paired([gold for gold, *_ in readable], [f"\\boxed{{{answer}}}" for _, answer, *_ in readable]))
    backward = reward(*paired([answer for _, answer, *_ in readable], [f"\\boxed{{{gold}}}" for gold, *_ in readable]))
    assert [result.status for result in backward if result.status in (CORRECT, WRONG)] == [
        result.status for result, back in zip(forward, backward, strict=True) if back.status in (CORRECT, WRONG)
    ]
    itself = reward(*paired([gold for gold, *_ in readable], [f"\\boxed{{{gold}}}" for gold, *_ in readable]))
    assert {result.status for result in itself} == {CORRECT}


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="time_limit = 0 must be positive"):
        MathVerifyReward(time_limit=0)
    with pytest.raises(ValueError, match="workers = 0 must be at least 1"):
        MathVerifyReward(workers=0)
    with pytest.raises(ValueError, match="1 completions but 0 problems"):
        MathVerifyReward()([], [completion("")])
