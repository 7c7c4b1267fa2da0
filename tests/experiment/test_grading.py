"""Grading again without sampling, and grading completions from anywhere: originals stay, lines keep their order."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from public_data import data_dir, needs_public_data
from sample_runs import make_comparison, make_evaluation

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.evaluation import validate_results
from bsharp.experiment import grading, regrading
from bsharp.experiment.comparison import comparable_config, write_results
from bsharp.experiment.finished import open_comparison
from bsharp.experiment.grading import grade_file
from bsharp.experiment.regrading import regrade
from bsharp.experiment.setup import regimes_of
from bsharp.runlog import RunDirectory
from bsharp.types import GradeStatus

NORMALISED = ProblemsConfig(grader="normalised")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but those graded again."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith("regraded")}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison whose records were not made by a model."""
    folder = make_comparison(tmp_path_factory.mktemp("runs") / "comparison", diagnostics=False)
    for records in folder.rglob("records_last.jsonl"):
        samples = [row for row in rows(records) if not row["greedy"]]
        RunDirectory(records.parent).write_rows("validation_last.jsonl", samples)
    config = open_comparison(folder).config
    write_results(config, RunDirectory(folder), regimes_of(config))
    return folder


def test_a_comparison_is_graded_again_beside_the_original_which_stays_as_it_was(finished: Path) -> None:
    before = contents(finished)
    done = regrade(finished, NORMALISED)
    assert contents(finished) == before
    assert done.folder == finished / "regraded" / "normalised"
    original = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    again = json.loads((done.folder / "results.json").read_text(encoding="utf-8"))
    validate_results(again)
    assert list(again["regimes"]) == list(original["regimes"])
    assert again["manifest"]["regraded"]["grader"] == "normalised"
    assert again["config"]["problems"]["grader"] == "normalised"
    assert "the original run's grader" in again["choices_using_labels"][-1]
    assert (done.folder / "table.md").read_text(encoding="utf-8").startswith("**")
    assert list(done.accuracy) == ["base", "task_reward", "sharpening", "tilted"]
    for name, summary in (("base", again["base"]), *again["regimes"].items()):
        assert done.accuracy[name][1].estimate == pytest.approx(summary["accuracy"]["estimate"])
    for name, summary in (("base", original["base"]), *original["regimes"].items()):
        assert done.accuracy[name][0].estimate == pytest.approx(summary["accuracy"]["estimate"])


def test_regraded_records_differ_in_their_grades_only(finished: Path) -> None:
    regrade(finished, NORMALISED)
    graded = {"status", "detail", "answer", "reward", "exact_match", "grader"}
    for name in (
        "base/records_last.jsonl",
        "task_reward/seed_0/records_last.jsonl",
        "sharpening/seed_0/validation_last.jsonl",
    ):
        old, new = rows(finished / name), rows(finished / "regraded" / "normalised" / name)
        assert len(old) == len(new) > 0
        for one, other in zip(old, new, strict=True):
            assert {key: one[key] for key in one.keys() - graded} == {key: other[key] for key in other.keys() - graded}
        assert {row["grader"] for row in new} == {"NormalisedReward"}


def test_the_own_grader_gives_the_same_results_again(finished: Path) -> None:
    done = regrade(finished, ProblemsConfig())
    assert done.folder.name == "default"
    assert (done.agreement.differing, done.agreement.total > 0) == (0, True)
    original, again = (json.loads((place / "results.json").read_text()) for place in (finished, done.folder))
    for part in ("base", "regimes", "differences", "verdict"):
        assert again[part] == original[part]


def test_a_reward_of_your_own_grades_again_under_its_files_and_its_own_name(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def nothing(completions):\n    return [0.0] * len(completions)\n")
    done = regrade(finished, ProblemsConfig(reward=f"{tmp_path}/mine.py:nothing"))
    digest = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()[:8]
    assert done.folder.name == f"mine-nothing-{digest}"
    assert {after.estimate for _, after in done.accuracy.values()} == {0.0}
    counts = done.agreement.counts
    assert done.agreement.contradicting == sum(n for (old, _), n in counts.items() if old is GradeStatus.CORRECT) > 0


def test_rewards_of_one_name_have_folders_of_their_own_and_none_has_a_graders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_evaluation(tmp_path / "evaluation")
    for name, reward in (("one", 0.0), ("other", 1.0)):
        (tmp_path / name).mkdir()
        text = f"def math(completions):\n    return [{reward}] * len(completions)\n"
        (tmp_path / name / "mine.py").write_text(text)
    of_files = [
        regrade(folder, ProblemsConfig(reward=f"{tmp_path / name}/mine.py:math")).folder for name in ("one", "other")
    ]
    of_grader = regrade(folder, ProblemsConfig(grader="math")).folder
    assert len({*of_files, of_grader}) == 3
    shares = [json.loads((place / "summary.json").read_text())["accuracy"]["estimate"] for place in of_files]
    assert shares == [0.0, 1.0]
    module = tmp_path / "one" / "a_module_with_a_reward.py"
    (tmp_path / "one" / "mine.py").rename(module)
    monkeypatch.syspath_prepend(str(tmp_path / "one"))
    of_module = regrade(folder, ProblemsConfig(reward="a_module_with_a_reward:math")).folder
    digest = hashlib.sha256(module.read_bytes()).hexdigest()[:8]
    assert of_module.name == f"a_module_with_a_reward-math-{digest}"


def test_a_regraded_comparison_is_bound_to_its_config_as_comparisons_are_and_opens_again(finished: Path) -> None:
    done = regrade(finished, NORMALISED)
    config = json.loads((done.folder / "config.json").read_text(encoding="utf-8"))
    assert config["workers"] == "any"
    assert comparable_config(open_comparison(done.folder).config) == config


def test_what_was_regraded_is_not_regraded_and_the_original_is_named(finished: Path, tmp_path: Path) -> None:
    for original in (finished, make_evaluation(tmp_path / "evaluation")):
        done = regrade(original, NORMALISED)
        with pytest.raises(ConfigError, match=f"name the original run, {original}$"):
            regrade(done.folder, ProblemsConfig())
        assert not (done.folder / "regraded").exists()


def test_a_part_of_a_comparison_is_refused_and_left_as_it_was(finished: Path) -> None:
    before = contents(finished / "base")
    with pytest.raises(ConfigError, match="holds no records; give the directory of a"):
        regrade(finished / "base", NORMALISED)
    assert contents(finished / "base") == before
    assert not (finished / "base" / "regraded").exists()


def test_an_evaluation_is_graded_again_with_disagreements_told(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "evaluation")
    records = rows(folder / "records.jsonl")
    wrong = [row for row in records if row["status"] == "wrong"]
    for row in wrong[:3]:  # a second box, which the task's rule ignores, and one that is right
        row["text"] = row["text"].replace(f"\\boxed{{{row['answer']}}}", f"\\boxed{{x = {row['gold']}}}")
    RunDirectory(folder).write_rows("records.jsonl", records)
    seen: list[tuple[str, int, int]] = []
    done = regrade(folder, NORMALISED, lambda *progress: seen.append(progress))
    assert seen == [("records.jsonl", 0, 1), ("", 1, 1)]
    assert done.agreement.counts[GradeStatus.WRONG, GradeStatus.CORRECT] == 3
    assert done.agreement.contradicting == 3
    samples = [row for row in wrong[:3] if not row["greedy"]]
    before, after = done.accuracy["model"]
    drawn = [row for row in records if not row["greedy"]]
    assert after.estimate - before.estimate == pytest.approx(len(samples) / len(drawn))
    summary = json.loads((done.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["accuracy"]["estimate"] == pytest.approx(after.estimate)
    shown = (done.folder / "agreement.md").read_text(encoding="utf-8")
    assert shown == done.markdown() + "\n"
    assert "3 of 60 completions are correct for one grader only" in shown
    assert json.loads((done.folder / "agreement.json").read_text(encoding="utf-8"))["contradicting"] == 3


def test_what_cannot_be_graded_again_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run directory"):
        regrade(tmp_path / "nowhere", NORMALISED)
    with pytest.raises(ConfigError, match="holds no records; give the directory of a"):
        regrade(tmp_path, NORMALISED)
    unfinished = make_comparison(tmp_path / "unfinished", finished=False, diagnostics=False)
    with pytest.raises(ConfigError, match="holds an unfinished comparison"):
        regrade(unfinished, NORMALISED)
    assert not (unfinished / "regraded").exists()
    folder = make_evaluation(tmp_path / "evaluation")
    records = rows(folder / "records.jsonl")
    RunDirectory(folder).write_rows("records.jsonl", [row | {"task": "no_such_task"} for row in records])
    with pytest.raises(ConfigError, match="no_such_task"):
        regrade(folder, NORMALISED)
    shutil.rmtree(folder)


class Counted(dict[str, Any]):
    """A record that knows how many of its kind there are at once."""

    alive = most = 0

    def __init__(self, *content: Any) -> None:
        super().__init__(*content)
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


def test_records_are_regraded_piece_by_piece_with_the_grades_and_the_agreement_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = rows(make_evaluation(tmp_path / "evaluation") / "records.jsonl")
    records = [row | {"problem_id": f"{row['problem_id']}/{copy}"} for copy in range(20) for row in records]
    found = []
    for at_once in (10**9, 7):
        monkeypatch.setattr(regrading, "AT_ONCE", at_once)
        Counted.alive = Counted.most = 0
        again = regrading._Again(regrading._Graders(NORMALISED))
        sizes, regraded = [], again._regraded
        monkeypatch.setattr(
            again, "_regraded", lambda chunk, do=regraded, sizes=sizes: sizes.append(len(chunk)) or do(chunk)
        )
        graded = [dict(row) for row in again.rows(Counted(record) for record in records)]
        found.append((graded, again.agreement()))
    assert found[0] == found[1]
    assert sizes == [10] * (len(records) // 10)  # whole problems: four samples and a greedy one each
    assert Counted.most <= 2 * 10 + 1


def test_a_grader_that_fails_midway_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regrading, "AT_ONCE", 1)
    folder = make_evaluation(tmp_path / "evaluation")
    records = rows(folder / "records.jsonl")
    RunDirectory(folder).write_rows("records.jsonl", [*records, records[-1] | {"problem_id": "z", "task": "gym:lcm"}])
    with pytest.raises(ConfigError):
        regrade(folder, ProblemsConfig())
    assert [path for path in (folder / "regraded").rglob("*") if path.is_file()] == []


def lines(path: Path, *items: Any) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def test_one_grade_a_line_in_order(tmp_path: Path) -> None:
    source = lines(
        tmp_path / "samples.jsonl",
        {"text": r"\boxed{5}", "gold": 5},
        {"text": "no answer", "gold": "5"},
        {"text": ["#### 4", "#### 5.0", "no"], "gold": 5.0},
        {"text": "#### 4", "gold": "2 + 3 = <<2+3=5>>5\n#### 5"},
        {"text": "#### 4", "gold": "???"},
    )
    seen: list[tuple[int, int]] = []
    done = grade_file(source, tmp_path / "deep" / "grades.jsonl", "gsm8k", on_progress=lambda *p: seen.append(p))
    found = rows(tmp_path / "deep" / "grades.jsonl")
    assert [row["line"] for row in found] == [1, 2, 3, 4, 5]
    assert [row.get("status") for row in found] == ["correct", "unparseable", None, "wrong", "error"]
    assert found[0] == {"line": 1, "gold": "5", "status": "correct", "detail": "", "answer": "5", "reward": 1.0}
    assert [grade["status"] for grade in found[2]["grades"]] == ["wrong", "correct", "unparseable"]
    assert [grade["reward"] for grade in found[2]["grades"]] == [0.0, 1.0, 0.0]
    assert (found[3]["gold"], found[4]["reward"]) == ("5", None)
    assert done.counts == {"correct": 2, "unparseable": 2, "wrong": 2, "error": 1}
    assert done.accuracy.estimate == pytest.approx((1 + 0 + 1 / 3 + 0) / 4)  # over the lines that could be graded
    assert (done.accuracy.n, done.lines) == (4, 5)
    assert done.accuracy.low < done.accuracy.estimate < done.accuracy.high
    assert "7 completions of 5 lines: 2 correct, 2 wrong, 2 unparseable, 0 timeout, 1 error" in done.text()
    assert "1 of 5 problems left out: not graded" in done.text()
    assert seen == [(5, 5)]


def test_lines_are_graded_piece_by_piece_and_come_out_as_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"text": [f"\\boxed{{{n}}}", "none"][: 1 + n % 2], "gold": n - n % 3} for n in range(30)]
    source, outcomes = lines(tmp_path / "samples.jsonl", *items), []
    for at_once in (4, 256):
        monkeypatch.setattr(grading, "_AT_ONCE", at_once)
        seen: list[tuple[int, int]] = []
        sizes: list[int] = []
        grade = grading._grade_lines
        monkeypatch.setattr(
            grading, "_grade_lines", lambda r, batch, s=sizes, g=grade: s.append(len(batch)) or g(r, batch)
        )
        done = grade_file(source, tmp_path / "out.jsonl", "gsm8k", on_progress=lambda *p, s=seen: s.append(p))
        outcomes.append((rows(done.out), done.counts, done.accuracy))
        assert seen == [(min(end, 30), 30) for end in range(at_once, 30 + at_once, at_once)]
        assert max(sizes) <= at_once
        monkeypatch.setattr(grading, "_grade_lines", grade)
    assert outcomes[0] == outcomes[1]


def test_a_carriage_return_ends_a_line_and_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    text = json.dumps(GOOD) + "\r" + json.dumps(GOOD | {"gold": "6"}) + "\r\n\r" + json.dumps(GOOD)
    source, pipe = tmp_path / "samples.jsonl", tmp_path / "pipe"
    source.write_bytes(text.encode())
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(text.encode()))
    writer.start()
    found = [rows(grade_file(path, tmp_path / "grades.jsonl", "gsm8k").out) for path in (pipe, source)]
    writer.join()
    assert [(row["line"], row["status"]) for row in found[1]] == [(1, "correct"), (2, "wrong"), (4, "correct")]
    assert found[0] == found[1]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "samples.jsonl"
    good = json.dumps(GOOD)
    source.write_text(f"\n{good}\n  \n\r\n{good}\n\n", encoding="utf-8")
    done = grade_file(source, tmp_path / "grades.jsonl", "gsm8k")
    assert [row["line"] for row in rows(done.out)] == [2, 5]
    assert (done.lines, done.counts) == (2, {"correct": 2})
    source.write_text(f"{good}\n\n[]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 3 is list"):
        grade_file(source, tmp_path / "other.jsonl", "gsm8k")
    source.write_text("\n \n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is empty"):
        grade_file(source, tmp_path / "other.jsonl", "gsm8k")


def test_a_reward_of_your_own_gets_the_question_as_its_prompt(tmp_path: Path) -> None:
    told = {"text": "x", "gold": "5"}
    talk = [{"role": "user", "content": "2 + 3 = ?"}]
    source = lines(
        tmp_path / "samples.jsonl", told | {"question": "2 + 3 = ?"}, told, told | {"question": talk}, told | {"n": 1}
    )
    (tmp_path / "mine.py").write_text(
        "def mine(prompts, completions, question, n):\n"
        "    seen = zip(prompts, question, n, strict=True)\n"
        "    return [{'2 + 3 = ?None': 1.0, 'None': 0.5}.get(f'{p}{q}', 0.0) for p, q, _ in seen]\n"
    )
    own = ProblemsConfig(reward=f"{tmp_path}/mine.py:mine", prompt_field="question")
    done = grade_file(source, tmp_path / "grades.jsonl", settings=own)
    assert [row["reward"] for row in rows(done.out)] == [1.0, 0.5, 0.0, 0.5]


def test_a_place_that_cannot_be_written_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    source = lines(tmp_path / "samples.jsonl", GOOD)
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "folder", source / "grades.jsonl"):
        with pytest.raises(ConfigError, match=r"cannot write .*; choose another place"):
            grade_file(source, out, "gsm8k")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", source]


def test_fields_and_graders_can_be_chosen_and_other_fields_are_columns(tmp_path: Path) -> None:
    source = lines(tmp_path / "samples.jsonl", {"out": r"\boxed{\sqrt{12}}", "right": r"2\sqrt{3}", "bonus": 0.5})
    out = tmp_path / "grades.jsonl"
    statuses = {}
    for grader in ("math", "normalised"):
        grade_file(source, out, settings=ProblemsConfig(grader=grader), text_field="out", gold_field="right")
        statuses[grader] = rows(out)[0]["status"]
    assert statuses == {"math": "correct", "normalised": "wrong"}
    (tmp_path / "mine.py").write_text("def mine(completions, answer, bonus):\n    return bonus\n")
    own = ProblemsConfig(reward=f"{tmp_path}/mine.py:mine")
    grade_file(source, out, settings=own, text_field="out", gold_field="right")
    assert rows(out)[0]["reward"] == 0.5


def test_what_cannot_be_graded_leaves_the_mean_of_its_line(tmp_path: Path) -> None:
    source = lines(tmp_path / "samples.jsonl", {"text": ["a", "b"], "gold": "5"})
    (tmp_path / "mine.py").write_text(
        "def mine(completions):\n    return [1.0 if c == 'a' else None for c in completions]\n"
    )
    done = grade_file(source, tmp_path / "grades.jsonl", settings=ProblemsConfig(reward=f"{tmp_path}/mine.py:mine"))
    assert done.counts == {"correct": 1, "error": 1}
    assert done.accuracy.estimate == 1.0


GOOD = {"text": r"\boxed{5}", "gold": "5"}
BAD = [
    ([GOOD, {"text": "x"}], "line 2 has no field 'gold'; set --gold-field to one of text", "no gold field"),
    (
        [GOOD, {"gold": "5", "output": "x"}],
        "line 2 has no field 'text'; set --text-field to one of gold, output",
        "no text",
    ),
    ([GOOD, [1]], "line 2 is list, not a JSON object", "no object"),
    ([GOOD, {"text": 5, "gold": "5"}], "line 2: text = 5 is no completion; give a text or a list of texts", "a number"),
    ([GOOD, {"text": [], "gold": "5"}], r"line 2: text = \[\] is no completion", "an empty list"),
    ([GOOD, {"text": "x", "gold": None}], "line 2: gold = null is no answer; give a text or a number", "no answer"),
    ([GOOD, {"text": "x", "gold": True}], "line 2: gold = true is no answer", "a truth value"),
    ([GOOD, {"text": "x", "gold": "  "}], "line 2: gold = .* is no answer", "a blank answer"),
]


@pytest.mark.parametrize(("items", "message", "reason"), BAD, ids=[row[-1] for row in BAD])
def test_a_line_that_cannot_be_used_is_named_and_nothing_is_written(
    tmp_path: Path, items: list[Any], message: str, reason: str
) -> None:
    source = lines(tmp_path / "samples.jsonl", *items)
    with pytest.raises(ConfigError, match=message) as caught:
        grade_file(source, tmp_path / "grades.jsonl", "math500")
    assert "\n" not in str(caught.value), reason
    assert list(tmp_path.iterdir()) == [source]


def test_files_and_settings_that_cannot_be_used_are_one_clear_line(tmp_path: Path) -> None:
    source, out = lines(tmp_path / "samples.jsonl", GOOD), tmp_path / "grades.jsonl"
    (tmp_path / "broken.jsonl").write_text('{"text": "x", "gold": "5"}\n{"text": \n', encoding="utf-8")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match=r"broken.jsonl, line 2 is not JSON"):
        grade_file(tmp_path / "broken.jsonl", out, "gsm8k")
    with pytest.raises(ConfigError, match="is empty; give a file with one JSON object per line"):
        grade_file(tmp_path / "empty.jsonl", out, "gsm8k")
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.jsonl: No such file or directory; check the path"):
        grade_file(tmp_path / "nowhere.jsonl", out, "gsm8k")
    with pytest.raises(ConfigError, match="nothing says how to grade; name a task"):
        grade_file(source, out)
    with pytest.raises(ConfigError, match="is the file that is graded; choose another name"):
        grade_file(source, source, "gsm8k")
    with pytest.raises(ConfigError, match=r"unknown task 'gsm8'.*gsm8k"):
        grade_file(source, out, "gsm8")
    assert not out.exists()


@needs_public_data
def test_gsm8k_test_file_grades_its_own_reference_solutions_correct(tmp_path: Path) -> None:
    folder = data_dir()
    assert folder is not None
    source = folder / "gsm8k" / "test.jsonl"
    done = grade_file(source, tmp_path / "grades.jsonl", "gsm8k", text_field="answer", gold_field="answer")
    assert done.counts == {"correct": 1319}
    assert (done.accuracy.estimate, done.accuracy.high) == (1.0, 1.0)
    assert done.accuracy.low < 1.0
