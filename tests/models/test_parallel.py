from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from bsharp.models import parallel
from bsharp.models.parallel import run_pieces, threads_for_pieces


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_pieces_whichever_is_done_first() -> None:
    def later_first(piece: int) -> int:
        time.sleep(0.02 * (3 - piece))
        return 10 * piece

    assert run_pieces(later_first, [0, 1, 2, 3]) == [0, 10, 20, 30]


def test_pieces_run_side_by_side() -> None:
    barrier = threading.Barrier(3, timeout=10)  # passed only when all three wait at the same time
    names = run_pieces(lambda _: (barrier.wait(), threading.get_ident())[1], [0, 1, 2])
    assert len(set(names)) == 3


@pytest.mark.usefixtures("two_threads")
def test_each_piece_has_one_thread_and_the_caller_keeps_its_own_number() -> None:
    assert run_pieces(lambda _: torch.get_num_threads(), [0, 1]) == [1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_single_piece_runs_where_it_is_called_with_all_threads() -> None:
    assert run_pieces(lambda _: (torch.get_num_threads(), threading.get_ident()), [0]) == [(2, threading.get_ident())]
    assert run_pieces(lambda _: 0, []) == []


def test_no_piece_of_several_records_gradients() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert not any(run_pieces(lambda piece: (piece * weight).requires_grad, [1, 2]))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("inference", [True, False])
def test_inference_mode_is_that_of_the_caller(inference: bool) -> None:
    with torch.inference_mode(inference):
        found = run_pieces(lambda _: torch.ones(1), [0, 1])
    assert [value.is_inference() for value in found] == [inference, inference]


@pytest.mark.parametrize("pieces", [[0], [0, 1, 2]])
def test_an_exception_of_a_piece_comes_through(pieces: list[int]) -> None:
    def fails(piece: int) -> int:
        if piece == len(pieces) - 1:
            raise LookupError(f"piece {piece}")
        return piece

    with pytest.raises(LookupError, match=f"piece {len(pieces) - 1}"):
        run_pieces(fails, pieces)


@pytest.mark.usefixtures("two_threads")
def test_work_is_cut_into_pieces_only_while_the_weights_stay_in_the_caches() -> None:
    assert threads_for_pieces(parallel.SMALL_WEIGHTS) == 2
    assert threads_for_pieces(parallel.SMALL_WEIGHTS + 1) == 1
