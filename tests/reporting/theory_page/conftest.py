"""A browser, the page's data and the page itself, once for all its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bsharp.reporting.theory_page import write_theory_page
from bsharp.theory.illustration import page_data


@pytest.fixture(scope="package")
def theory_data() -> dict[str, Any]:
    return page_data()


@pytest.fixture(scope="package")
def theory_file(theory_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_theory_page(theory_data, tmp_path_factory.mktemp("theory") / "theory.html")
