from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from bsharp.reporting import print_checks


def row(statement: str, world: str, error: float, holds: bool = True, bound: float = 1e-10) -> dict[str, Any]:
    return {
        "statement": statement,
        "equation": "d/dα E[r] = Cov(r, ℓ_ref)",
        "world": world,
        "left": 0.25,
        "right": 0.25 + error,
        "error": error,
        "bound": bound,
        "kind": "equality",
        "holds": holds,
    }


def printed(rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], worlds: bool = False) -> str:
    print_checks(rows, Console(width=80), worlds)
    return capsys.readouterr().out


def test_a_statement_shows_the_world_whose_error_is_nearest_to_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("A1", "first", 1e-16), row("A1", "second", 1e-12), row("A1", "third", 1e-11, bound=1.0)]
    text = printed(rows, capsys)
    assert "second (1 of 3)" in text
    assert "0.25 = 0.25   1.0e-12 < 1e-10" in text
    assert "first" not in text
    assert text.splitlines()[-1] == "1 statements, 3 checks: all hold"


def test_every_world_is_shown_on_request_and_one_that_fails_always(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("A1", "first", 1e-16), row("A1", "second", 1e-12), row("A1", "third", 2e-12, holds=False)]
    assert all(world in printed(rows, capsys, worlds=True) for world in ("first", "second", "third"))
    rows[0] |= {"holds": False}
    text = printed(rows, capsys)
    assert text.count("✗") == 2
    assert "second" not in text
    assert text.splitlines()[-1] == "1 statements, 3 checks: 2 do not hold"
