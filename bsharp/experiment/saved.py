"""Evaluations of policies on disk, dealt to worker processes piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bsharp.config import EvaluationConfig
from bsharp.evaluation.evaluate import Evaluation, Piece, joined
from bsharp.experiment.setup import set_threads
from bsharp.experiment.workbench import Workbench, build_workbench
from bsharp.experiment.workers import Workers
from bsharp.generation import generator_for
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.placement import release_cached_memory

__all__ = ["SavedEvaluation", "evaluate_among", "in_order", "keep_opened", "kept_workbench", "records_of_piece"]

Record = dict[str, Any]

ALIGNMENT = 64
"""Bytes, a multiple of which is the address of everything that torch allocates on the CPU."""


@dataclass(frozen=True)
class SavedEvaluation:
    """What a process must know to evaluate a policy that it does not have yet."""

    bench: Mapping[str, Any]  # arguments of build_workbench
    policy: str | None  # its folder or name; None: the base of the workbench
    base_logprobs: Literal[
        "scored", "own", "none"
    ]  # by the base, those of the policy, which is the base, or no such figures
    config: EvaluationConfig
    threads: int = 1
    microbatch_rows: int = 64
    step: int = 0
    checkpoint: str = "last"

    def load_policy(self, bench: Workbench) -> LanguageModel:
        """The policy, in the precision, on the device and with the prompts of the workbench."""
        if self.policy is None:
            return bench.base
        weights, device, chat = self.bench["weights"], self.bench["device"], self.bench["chat"]
        policy = load_language_model(self.policy, weights.dtype, device, chat)
        for parameter in policy.model.parameters():
            # Weights as a file holds them begin at any address. On the CPU the last bit of a product depends on that, so that
            # a policy that was loaded would differ from the same one that is still in memory.
            if parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()
        return policy

    def opened(self, bench: Workbench, policy: LanguageModel) -> Evaluation:
        """The evaluation, ready to be carried out in this process."""
        return Evaluation(
            policy,
            generator_for(policy, self.config.max_rows, self.config.backend, policy_version=self.step),
            bench.base if self.base_logprobs == "scored" else None,
            list((bench.evaluation_tasks if self.config.split == "test" else bench.tasks).values()),
            bench.rewards,
            self.config,
            self.microbatch_rows,
            is_base=self.base_logprobs == "own",
            checkpoint=self.checkpoint,
        )


_bench: tuple[Mapping[str, Any], Workbench] | None = None
_opened: tuple[SavedEvaluation, Evaluation] | None = None


def kept_workbench(arguments: Mapping[str, Any]) -> Workbench:
    """In a worker: the workbench of these arguments; all of its jobs and pieces that ask for the same one share it.

    Not where adapters train: they are part of the base's own model.
    """
    global _bench
    if arguments["weights"].lora_rank is not None:
        return build_workbench(**arguments)
    if _bench is None or _bench[0] != arguments:
        _bench = None  # there may be no memory for two
        release_cached_memory()
        _bench = (arguments, build_workbench(**arguments))
    return _bench[1]


def keep_opened(asked: SavedEvaluation, evaluation: Evaluation) -> None:
    """In a worker: have `asked` opened, for `records_of_piece`."""
    global _opened
    _opened = (asked, evaluation)


def records_of_piece(evaluation: SavedEvaluation, number: int) -> list[list[Record]]:
    """In a worker: the records of piece `number`; what the pieces of one evaluation share is made for the first."""
    global _opened
    if _opened is None or _opened[0] != evaluation:
        _opened = None
        release_cached_memory()
        set_threads(evaluation.threads)
        bench = kept_workbench(evaluation.bench)
        keep_opened(evaluation, evaluation.opened(bench, evaluation.load_policy(bench)))
    assert _opened is not None
    return _opened[1].records_of(_opened[1].pieces[number])


def in_order(pieces: Sequence[Piece]) -> list[int]:
    """The numbers of the pieces, in the order in which processes that share them begin them.

    Sampled pieces come sorted from short to long prompts, and the greedy ones after them: begun with the longest, no process is
    left to finish one alone.
    """
    return sorted(range(len(pieces)), key=lambda number: (pieces[number].greedy, -number))


def evaluate_among(
    workers: int,
    evaluation: SavedEvaluation,
    pieces: Sequence[Piece],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """The records of all `pieces` from that many processes: to the last bit those that one process gives."""
    with Workers(workers, str(evaluation.bench["device"])) as pool:
        order = in_order(pieces)
        found = pool.collect(
            records_of_piece,
            [(evaluation, number) for number in order],
            on_progress,
            [pieces[number].rows for number in order],
        )
    by_number = dict(zip(order, found, strict=True))
    return joined(pieces, [by_number[number] for number in range(len(pieces))])
