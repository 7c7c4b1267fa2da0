"""Any data set of reasoning-gym (arXiv 2505.24760) by name: `reasoning_gym:leg_counting`.

Items are generated from named random streams. The split of an item is the hash of its question, so train, validation and test
share no question whatever the seeds; an item whose question has come up before is passed over.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.seeding import stream_seed
from bsharp.tasks.base import Family, Split, check_split, split_of
from bsharp.tasks.fields import did_you_mean
from bsharp.tasks.formats import template_of, worded
from bsharp.tasks.listed import question_key
from bsharp.types import Problem

__all__ = ["PREFIX", "GymTask", "gym_task"]

PREFIX = "reasoning_gym:"
_CHUNK = 500  # items of one reasoning-gym data set; the next ones come from another seed
_STALE = 300  # items in a row without a new question, after which a data set counts as used up
_PROBE = 500  # items looked at to tell how many different questions there are
_PROBE_SMALL = 4_000  # the same, where repetitions show that there are few
_FEW_PAIRS = 10  # repetitions among the first items that are few enough to stop there
_SHARES = {Split.TRAIN: 0.8, Split.VALIDATION: 0.1, Split.TEST: 0.1}
_MOST = 20_000  # a size beyond this is not claimed


def gym_task(name: str, settings: ProblemsConfig) -> GymTask:
    """The task `reasoning_gym:<data set>`, with the data set's own default settings.

    Raises ConfigError where reasoning-gym is not installed, has no such data set, or cannot make it without settings.
    """
    task = GymTask(name, template_of(settings.prompt_format, "tags"))
    task.dataset(0)
    return task


@dataclass(frozen=True, eq=False)
class GymTask:
    """A data set of reasoning-gym. Its own function grades: `score`."""

    name: str
    template: str
    reward_kind: str = "reasoning_gym"
    families: Mapping[str, Family] = field(default_factory=dict, init=False)
    _known: dict[str, Problem] = field(
        default_factory=dict, init=False, repr=False
    )  # what the probe found, by question
    _bound: list[int] = field(default_factory=list, init=False, repr=False)
    _datasets: dict[int, Any] = field(default_factory=dict, init=False, repr=False)

    def problems(
        self,
        split: Split | str,
        count: int,
        seed: int,
        families: Sequence[str] | None = None,
        difficulties: Sequence[int] | None = None,
    ) -> list[Problem]:
        """`count` problems of a split, no two with the same question; a function of (split, seed), a smaller count a prefix.

        Raises ValueError where fewer different ones come up, and for a family or a difficulty: there are none.
        """
        split = check_split(split)
        if count < 0:
            raise ValueError(f"{self.name}: count = {count} is negative; ask for 0 or more problems")
        if families not in (None, [self.name]) or difficulties not in (None, [1]):
            raise ValueError(f"{self.name} has no families and no difficulties to choose from; leave them out")
        found: list[Problem] = []
        seen: set[str] = set()
        stale = draws = 0
        items = self._items(stream_seed(seed, "problems", self.name))
        while len(found) < count and stale < _STALE and draws < 2_000 + 100 * count:
            problem = next(items)
            key = question_key(problem.question)
            draws, stale = draws + 1, stale + 1
            if key not in seen:
                seen.add(key)
                stale = 0
                if split_of(key) is split:
                    found.append(problem)
        if len(found) < count:  # what these draws did not find, the probe may have
            self.size(split)
            found += [p for key, p in self._known.items() if key not in seen and split_of(key) is split]
        if len(found) < count:
            raise ValueError(
                f"{self.name}: {count} {split} problems asked for, but only {len(found)} different ones came up in {draws:,} "
                "draws; ask for fewer"
            )
        return found[:count]

    def size(self, split: Split | str) -> int:
        """How many different problems a split has at least: as many as 500 to 4,000 trial items showed, or the bound below.

        Of a data set whose questions repeat, trial items are drawn until 300 in a row bring nothing new; the size is then
        close to exact. The bound is a quarter of n²/(2(c + 3)), where c pairs among n items ask the same question: were there
        fewer than n²/(2(c + 3)) equally likely questions, more such pairs would be expected. It is 20,000 at most.
        """
        split = check_split(split)
        if not self._bound:
            self._probe()
        shown = sum(split_of(key) is split for key in self._known)
        return max(shown, min(_MOST, int(_SHARES[split] * self._bound[0])))

    def prompt(self, problem: Problem) -> str:
        """The text of the user's message."""
        return worded(self.template, problem.question)

    def oracle(self, problem: Problem) -> str:
        """The reference answer between tags. Raises ValueError for data sets whose items have none, only a way to score."""
        if not problem.answer:
            raise ValueError(f"{problem.problem_id} has no reference answer; reasoning-gym only scores its answers")
        return f"<answer>{problem.answer}</answer>"

    def score(self, answer: str | None, problem: Problem) -> float:
        """What reasoning-gym gives for an answer, in [0, 1]. It runs the data set's own code on the answer: limit its time."""
        return float(self.dataset(0).score_answer(answer, problem.metadata["entry"]))

    def problem(self, problem_id: str) -> Problem:
        """The problem of that id, generated again; ValueError for an id of another task."""
        name, _, item = problem_id.rpartition("/")
        dataset_seed, _, index = item.partition(".")
        if name != self.name or not (dataset_seed.isdecimal() and index.isdecimal()):
            raise ValueError(f"{problem_id!r} is no problem of {self.name}; its ids are like {self.name}/12.3")
        return self._made(int(dataset_seed), int(index))

    def dataset(self, dataset_seed: int) -> Any:
        """reasoning-gym's data set under a seed; ConfigError where it cannot be made."""
        if dataset_seed not in self._datasets:
            if len(self._datasets) > 1:  # seed 0, which scores, and the latest
                self._datasets.pop(next(key for key in self._datasets if key))
            self._datasets[dataset_seed] = _create(self.name.removeprefix(PREFIX), dataset_seed)
        return self._datasets[dataset_seed]

    def _items(self, seed: int) -> Iterator[Problem]:
        """Items without end. One that its data set fails to make is passed over; many in a row are an error."""
        failures, chunk = 0, 0
        while True:
            dataset_seed = stream_seed(seed, "reasoning_gym", chunk) % 2**31
            for index in range(_CHUNK):
                try:
                    problem = self._made(dataset_seed, index)
                except Exception as error:  # the data set's own code
                    failures += 1
                    if failures >= 20:
                        raise ConfigError(
                            f"{self.name} cannot make its items: {type(error).__name__}: {error}"
                        ) from None
                    continue
                failures = 0
                yield problem
            chunk += 1

    def _made(self, dataset_seed: int, index: int) -> Problem:
        with _silenced():
            entry = self.dataset(dataset_seed)[index]
        answer = entry.get("answer")
        return Problem(
            f"{self.name}/{dataset_seed}.{index}",
            self.name,
            self.name,
            str(entry["question"]),
            "" if answer is None else str(answer),
            metadata={"entry": entry},
        )

    def _probe(self) -> None:
        draws = pairs = stale = 0
        counts: Counter[str] = Counter()
        for problem in self._items(stream_seed(0, "probe", self.name)):
            key = question_key(problem.question)
            self._known.setdefault(key, problem)
            pairs += counts[key]
            stale = stale + 1 if counts[key] else 0
            counts[key] += 1
            draws += 1
            if stale == _STALE or draws == _PROBE_SMALL or (draws == _PROBE and pairs <= _FEW_PAIRS):
                break
        self._bound.append(0 if stale == _STALE else draws * draws // (8 * (pairs + 3)))


def _create(name: str, seed: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ConfigError(
            f'{PREFIX}{name} needs the package reasoning-gym; run pip install "bsharp-rl[reasoning-gym]"'
        ) from None
    if name not in DATASETS:
        raise ConfigError(
            f"reasoning-gym has no data set {name!r}{did_you_mean(name, DATASETS)}; known: {', '.join(sorted(DATASETS))}"
        )
    try:
        with _silenced():
            return reasoning_gym.create_dataset(name, seed=seed, size=_CHUNK)
    except Exception as error:  # the data set's own checks, assertions among them
        raise ConfigError(f"{PREFIX}{name} cannot be made with its default settings: {error}; choose another") from None


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Some data sets print while they make or score an item."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
