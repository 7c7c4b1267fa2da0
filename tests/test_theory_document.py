"""docs/theory.md against the code: every equation has a function and a test that exist, every checked statement an equation."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from bsharp.theory.numbered import EXAMPLES, STATEMENTS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "theory.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
ROWS = {
    cells[0]: cells[1:]
    for line in TEXT.splitlines()
    if len(cells := [cell.strip() for cell in line.split("|")[1:-1]]) == 4
}
TAGS = re.findall(r"\\tag\{(\w+)\}", TEXT)
LINKS = re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", TEXT)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes and methods (`Class.method`) of a Python file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return frozenset(found)


def test_every_equation_is_numbered_once_and_has_a_row() -> None:
    displayed = re.findall(r"^\$\$.*\$\$$", TEXT, flags=re.MULTILINE)
    assert len(displayed) == len(TAGS) == len(set(TAGS))
    assert [tag for tag in TAGS if tag not in ROWS] == []


def test_every_row_names_an_equation_a_function_and_a_test() -> None:
    numbered = {name: cells for name, cells in ROWS.items() if re.fullmatch(r"[A-Z]\d+", name)}
    assert set(numbered) == set(TAGS)
    for name, (says, function, test) in numbered.items():
        assert says, name
        assert re.fullmatch(r"\[`[\w.]+`\]\(\.\./bsharp/[\w/]+\.py\)", function), name
        assert re.fullmatch(r"\[`test_\w+`\]\(\.\./tests/[\w/]+\.py\)", test), name


@pytest.mark.parametrize(("label", "target"), sorted({link for link in LINKS if not link[1].startswith("http")}))
def test_every_link_leads_to_a_file_that_has_what_it_names(label: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = (DOCUMENT.parent / file).resolve() if file else DOCUMENT
    assert path.is_file(), target
    if anchor:
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs
    name = label.strip("`")
    if path.suffix == ".py" and not name.endswith(".py") and "/" not in name:
        assert name in names_in(path), f"{name} is not in {path.name}"


def test_every_checked_statement_is_an_equation_of_the_document() -> None:
    checked = {statement.name for statement in STATEMENTS} | {example.name for example in EXAMPLES}
    assert checked - set(TAGS) == set()
    unchecked = set(TAGS) - checked
    # Definitions, and statements about samples and flows that other tests hold.
    assert unchecked == {"N1", "N2", "N3", "P0", "E6", "E11", "F6", "S2", "S4", "S5"}


def test_references_to_equations_are_to_equations() -> None:
    prose = re.sub(r"\$[^$]*\$", "", TEXT)
    assert set(re.findall(r"\(([A-Z]\d+)\)", prose)) <= set(TAGS)


def test_mathematics_survives_markdown() -> None:
    """A backslash before punctuation, or a bare * or < inside a formula, may be eaten before the formula is set."""
    for formula in re.findall(r"\$\$.*?\$\$|\$[^$\n]+\$", TEXT):
        assert not re.search(r"\\[^A-Za-z]|[*<>]", formula), formula
        assert formula.count("{") == formula.count("}"), formula
        assert formula.count(r"\left") == formula.count(r"\right"), formula
    assert not re.search(r"(?<!\$)\$(?!\$)[^$\n]*$", "\n".join(re.sub(r"\$\$?[^$\n]+\$\$?", "", TEXT).splitlines()))
