"""Where the tests find public problems; a machine without them skips those tests and says why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["data_dir", "needs_public_data"]

REASON = (
    "set BSHARP_DATA_DIR to a folder with public problems (gsm8k/test.jsonl, math500/test.json, …) to run this test"
)


def data_dir() -> Path | None:
    """The folder that BSHARP_DATA_DIR names, or None where it names none that exists."""
    folder = os.environ.get("BSHARP_DATA_DIR")
    return Path(folder) if folder and Path(folder).is_dir() else None


needs_public_data = pytest.mark.skipif(data_dir() is None, reason=REASON)
