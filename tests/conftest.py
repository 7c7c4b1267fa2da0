"""Shape annotations are checked while the tests run, torch keeps to one thread so that figures repeat, no hub is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
def small_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches are cut as asked for, however few tokens they hold."""
    monkeypatch.setattr("bsharp.models.packing.TINY_WEIGHTS", 0)
    monkeypatch.setattr("bsharp.models.packing.LEAST_BUNDLE", 1)
