"""Shape annotations are checked while the tests run, torch keeps to one thread so that figures repeat, no hub is asked."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from chromium import launched
from jaxtyping import install_import_hook

install_import_hook(["bsharp.algorithm", "bsharp.theory", "bsharp.masking"], "beartype.beartype")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for all tests of a process: playwright allows no second one at the same time."""
    try:
        context = launched()
        browser = context.__enter__()
    except LookupError as problem:
        pytest.skip(str(problem))
    yield browser
    context.__exit__(None, None, None)


@pytest.fixture
def cancelled_here(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The futures that the test's own thread cancels; a pool's thread may cancel those of its own."""
    cancelled: list[object] = []
    here, cancel = threading.get_ident(), Future.cancel

    def noted(future: Future[Any]) -> bool:
        if threading.get_ident() == here:
            cancelled.append(future)
        return cancel(future)

    monkeypatch.setattr(Future, "cancel", noted)
    return cancelled


@pytest.fixture
def small_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches are cut as asked for, however few tokens they hold."""
    monkeypatch.setattr("bsharp.models.packing.TINY_WEIGHTS", 0)
    monkeypatch.setattr("bsharp.models.packing.LEAST_BUNDLE", 1)
