"""Tasks whose problems are written down, not generated: public data sets and files of one's own.

Two problems are the same where their questions are, read without layout (`question_key`). On this rest the three laws of the
splits: no problem twice within one, none in two of them, and the same question falls into the same split in every data set
that is divided by hash.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bsharp.seeding import stream_seed
from bsharp.tasks.base import Family, Split, check_split, split_of
from bsharp.tasks.fields import last_box
from bsharp.tasks.formats import worded
from bsharp.types import Problem

__all__ = ["ListedTask", "Listing", "disjoint", "question_key", "train_or_validation"]

_LAYOUT = re.compile(
    r"\\(?:left|right|middle|displaystyle|limits|quad|qquad|[bB]igg?[lrm]?)(?![a-zA-Z])|\\[!,;:> ()\[\]]"
)
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dtc]?frac(?:\s*(\d)(\d))?")
_PIECE = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|\S")
_IGNORED = frozenset("$\\{}.,;:?\"'`~_’‘“”")


def question_key(question: str) -> str:
    r"""What makes a question that question: its words, numbers, operators and brackets in order, lower case, no layout.

    `Find $\dfrac12+x$.` and `find \( \frac{1}{2} + x \)` have one key. Some different questions share a key (`a_1` and
    `a 1`): they are then taken for one, which costs a problem but never lets a test problem into training.
    """
    text = unicodedata.normalize("NFKC", question)
    text = _FRACTION.sub(lambda match: rf"\frac {match[1]} {match[2]} " if match[1] else r"\frac ", text)
    text = _THOUSANDS.sub("", _LAYOUT.sub("", text)).casefold()
    return " ".join(piece for piece in _PIECE.findall(text) if piece not in _IGNORED)


def train_or_validation(problem: Problem) -> Split:
    """Where a problem of a published training set goes: 10 % validation, by the hash of its question alone."""
    # The test bucket of the hash stays in training: such sets have a test set of their own.
    return Split.VALIDATION if split_of(question_key(problem.question)) is Split.VALIDATION else Split.TRAIN


@dataclass(frozen=True)
class Listing:
    """The problems of one split, and how many rows were left out for which reason."""

    problems: tuple[Problem, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def disjoint(
    parts: Mapping[Split, Iterable[Problem]], dropped: Mapping[Split, Mapping[str, int]]
) -> dict[Split, Listing]:
    """Listings in which every question stands once: test problems leave validation and training, validation ones training.

    `dropped` counts what was left out before, by split; what is left out here is added.
    """
    found: dict[Split, Listing] = {}
    elsewhere: dict[str, Split] = {}
    for split in (Split.TEST, Split.VALIDATION, Split.TRAIN):
        counts = Counter(dropped.get(split, {}))
        kept: dict[str, Problem] = {}
        for problem in parts.get(split, ()):
            key = question_key(problem.question)
            if key in elsewhere:
                counts[f"also a {elsewhere[key]} problem"] += 1
            elif key not in kept:
                kept[key] = problem
            elif kept[key].answer == problem.answer:
                counts["the same question again"] += 1
            else:
                counts["the same question again, with another answer"] += 1
        elsewhere |= dict.fromkeys(kept, split)
        found[split] = Listing(tuple(kept.values()), dict(counts))
    return found


@dataclass(frozen=True, eq=False)
class ListedTask:
    """A task whose problems are read when a split is first asked for; reading raises ConfigError where it fails.

    `read` gives the listing of the split it is asked for, and of others where it came by them on the way. `reward_kind` says who
    grades, `template` how a question is worded, `empty` why a split has no problems.
    """

    name: str
    reward_kind: str
    template: str
    read: Callable[[Split], Mapping[Split, Listing]]
    empty: Mapping[Split, str] = field(default_factory=dict)
    families: Mapping[str, Family] = field(default_factory=dict, init=False)
    _listings: dict[Split, Listing] = field(default_factory=dict, init=False, repr=False)

    def listing(self, split: Split | str) -> Listing:
        """All problems of a split in the order of their source, with the counts of what was left out."""
        split = check_split(split)
        if split not in self._listings:
            self._listings.update(self.read(split))
        return self._listings[split]

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows were left out, by `split: reason`, of the splits read so far."""
        return {
            f"{split}: {reason}": count
            for split, listing in self._listings.items()
            for reason, count in listing.dropped.items()
        }

    def problems(
        self,
        split: Split | str,
        count: int,
        seed: int,
        families: Sequence[str] | None = None,
        difficulties: Sequence[int] | None = None,
    ) -> list[Problem]:
        """`count` problems of a split in an order that the seed draws, no two with the same question.

        A function of (split, seed, families, difficulties); a smaller count gives a prefix, and leaving problems out of
        the task leaves the order of the others as it is. Raises ValueError where fewer exist, and for a family or a
        difficulty that no problem of the split has.
        """
        split = check_split(split)
        if count < 0:
            raise ValueError(f"{self.name}: count = {count} is negative; ask for 0 or more problems")
        chosen = self.listing(split).problems
        if chosen:
            chosen = _having(chosen, self.name, "family", families)
            chosen = _having(chosen, self.name, "difficulty", difficulties)
        if count > len(chosen):
            raise ValueError(self._too_many(split, count, len(chosen)))
        keys = {problem.problem_id: stream_seed(seed, "problems", split, problem.problem_id) for problem in chosen}
        return sorted(chosen, key=lambda problem: keys[problem.problem_id])[:count]

    def size(self, split: Split | str) -> int:
        """How many problems a split has; 0 where the set is not published with such problems."""
        return len(self.listing(split).problems)

    def prompt(self, problem: Problem) -> str:
        """The text of the user's message."""
        return worded(self.template, problem.question)

    def oracle(self, problem: Problem) -> str:
        r"""The reference solution as a response; where none is known, or it does not end in the answer, a box with it."""
        solution = str(problem.metadata.get("solution") or "")
        if self.reward_kind == "final_number" and "####" in solution:
            return solution
        # Graders read \boxed{…} alone; solutions may end in \framebox{…} or \boxed 5.
        if last_box(solution) == problem.answer and f"\\boxed{{{problem.answer}}}" in solution:
            return solution
        return f"{solution}\n\n\\boxed{{{problem.answer}}}".lstrip()

    def without(self, keys: frozenset[str], reason: str) -> ListedTask:
        """The task without training and validation problems whose `question_key` is among `keys`, counted under `reason`."""

        def read(split: Split) -> dict[Split, Listing]:
            listing = self.listing(split)
            kept = tuple(p for p in listing.problems if split is Split.TEST or question_key(p.question) not in keys)
            left_out = len(listing.problems) - len(kept)
            dropped = {**listing.dropped, reason: left_out} if left_out else listing.dropped
            return {split: Listing(kept, dropped)}

        return dataclasses.replace(self, read=read)

    def at_difficulties(self, difficulties: Sequence[int]) -> ListedTask:
        """The task with the problems of some difficulties alone, for MATH its levels 1 to 5.

        Reading a split raises ValueError for a difficulty that none of its problems has.
        """

        def read(split: Split) -> dict[Split, Listing]:
            listing = self.listing(split)
            if not listing.problems:
                return {split: listing}
            return {split: Listing(_having(listing.problems, self.name, "difficulty", difficulties), listing.dropped)}

        return dataclasses.replace(self, read=read)

    def _too_many(self, split: Split, count: int, found: int) -> str:
        if found == 0 and split in self.empty:
            return f"{self.name} has no {split} problems: {self.empty[split]}"
        return f"{self.name}: {count} {split} problems asked for, but only {found} exist; ask for fewer"


def _having(
    problems: tuple[Problem, ...], name: str, attribute: str, wanted: Sequence[str] | Sequence[int] | None
) -> tuple[Problem, ...]:
    if wanted is None:
        return problems
    known = sorted({getattr(problem, attribute) for problem in problems})
    unknown = [value for value in wanted if value not in known]
    if unknown or not wanted:
        raise ValueError(f"{name} has no problem of {attribute} {unknown}; choose from {', '.join(map(str, known))}")
    return tuple(problem for problem in problems if getattr(problem, attribute) in wanted)
