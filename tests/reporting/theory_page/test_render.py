"""One small file, complete in itself; formulas are MathML; what is given to it stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bsharp.reporting.theory_page import render, write_theory_page
from bsharp.reporting.theory_page.content import FIRST_LINES, FORMULAS, INTRODUCTION, LEASHED, SECTIONS
from bsharp.reporting.theory_page.render import mathml

WORLD = {"id": "w", "name": "W", "text": ["a", "b"], "logprob": [-0.5, -0.9], "length": [1, 1], "reward": [1.0, 0.0]}
DATA = {"worlds": [WORLD], "simplex": [WORLD], "reference": [], "nudges": [], "flows": []}


class Elements(HTMLParser):
    """The elements and their attributes, as a browser's parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def formulas() -> list[str]:
    steps = [step for section in SECTIONS for step in section.steps] + list(FIRST_LINES)
    inline = [piece for text in [INTRODUCTION, *(step.text for step in steps)] for piece in text.split("$")[1::2]]
    return [*FORMULAS.values(), *LEASHED.values(), *inline, *(step.latex for step in steps if step.latex)]


def test_the_page_is_small_refers_to_nothing_outside_and_forbids_every_request(theory_file: Path) -> None:
    text = theory_file.read_text(encoding="utf-8")
    assert len(text.encode()) < 500_000
    elements = Elements(text).found
    assert not {tag for tag, _ in elements} & {"img", "iframe", "object", "embed", "base", "form", "video", "link rel"}
    assert not [attributes for _, attributes in elements if any(name.startswith("on") for name in attributes)]
    assert not [attributes for _, attributes in elements if "src" in attributes]
    links = [attributes["href"] or "" for _, attributes in elements if "href" in attributes]
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'")
    assert "connect-src" not in (policy or "")


@pytest.mark.parametrize("latex", sorted(set(formulas())))
def test_every_formula_becomes_mathml_without_a_rest_of_latex(latex: str) -> None:
    found = mathml(latex, display=True)
    assert found.startswith("<math ")
    assert "\\" not in found
    text = re.sub(r"<[^>]+>", "", found)
    assert not re.search(r"mathrm|frac|left|right|amp;|\$|\^|_", text)


def test_every_section_has_a_story_things_to_try_and_a_derivation(theory_file: Path) -> None:
    elements = Elements(theory_file.read_text(encoding="utf-8")).found
    classes = [attributes.get("class") for _, attributes in elements]
    assert classes.count("derivation") == classes.count("tries") == classes.count("beside") == len(SECTIONS) == 6
    assert all(len(section.tries) >= 3 and any(step.latex for step in section.steps) for section in SECTIONS)


def test_ids_are_unique_and_every_label_has_its_control(theory_file: Path) -> None:
    elements = Elements(theory_file.read_text(encoding="utf-8")).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["for"] for _, attributes in elements if "for" in attributes} <= set(ids)


def test_the_same_data_gives_the_same_bytes() -> None:
    assert render(DATA) == render(DATA)


def test_a_page_without_worlds_is_refused_and_the_old_page_stays(tmp_path: Path) -> None:
    path = write_theory_page(DATA, tmp_path / "deep" / "theory.html")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="at least one world"):
        write_theory_page(DATA | {"worlds": []}, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["theory.html"]


def test_names_are_escaped(theory_data: dict[str, Any]) -> None:
    hostile = WORLD | {"name": "</script><script>alert(1)</script>"}
    text = render(DATA | {"worlds": [hostile], "simplex": [hostile]})
    assert "<script>alert" not in text
