"""Where a part of a page stands, and what it may add to the page: data scripts, CSV files, ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from bsharp.reporting.page.embed import escape

__all__ = ["Files", "Place"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass
class Files:
    """The CSV files beside a page, and the data scripts inside it, gathered while a run is rendered."""

    data_folder: str
    csv: dict[str, str] = field(default_factory=dict)  # path relative to the page → content
    scripts: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def claim(self, run_id: str, part_id: str, kind: str = "part") -> str:
        """The element id of a part or section; ValueError where it is no id or taken."""
        for name in (run_id, part_id):
            if not _ID.fullmatch(name):
                raise ValueError(f"{name!r} is no id; use letters, digits, '_', '-' and '.', a letter or digit first")
        element = f"{run_id}--{kind}--{part_id}"
        if element in self.ids:
            raise ValueError(f"two {kind}s of run {run_id!r} have the id {part_id!r}; give each its own")
        self.ids.add(element)
        return element


@dataclass(frozen=True)
class Place:
    """Where a part stands: its run, the files it may add to, and the colour class of each regime."""

    run_id: str
    csv_folder: PurePosixPath
    files: Files
    regime_class: Mapping[str, str]
    terms: Sequence[tuple[str, str]] = ()  # glossary: term, element id; longer terms first

    def entry(self, text: str) -> str | None:
        """The element id of the glossary's entry that `text` (an axis title, a header) begins with."""
        bare = re.sub(r"@\d+", "@k", text.partition(" (")[0]).strip()
        for term, element in self.terms if bare else ():
            if bare == term or bare.startswith((f"{term} ", f"{term},")) or term.startswith(f"{bare}("):
                return element
        return None

    def chip(self, name: str) -> str:
        """A regime's name with its colour."""
        mark = (
            f'<span class="chip {self.regime_class[name]}" aria-hidden="true"></span>'
            if name in self.regime_class
            else ""
        )
        return f"{mark}<bdi>{escape(name)}</bdi>"

    def csv(self, part_id: str, text: str) -> str:
        """Put the part's CSV file beside the page; its path relative to the page."""
        path = str(self.csv_folder / f"{part_id}.csv")
        self.files.csv[path] = text
        return path
