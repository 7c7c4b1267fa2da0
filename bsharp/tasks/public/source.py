"""A public data set: where it is published, how its rows become problems, and how they are divided.

Problems come from local files in the published formats or from the Hugging Face hub. The published training set is divided
into training and validation by the hash of the question; the published test set is the test split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.tasks.base import Split
from bsharp.tasks.fields import UnusableRow
from bsharp.tasks.files import SUFFIXES, PlacedRow, read_rows
from bsharp.tasks.formats import template_of
from bsharp.tasks.listed import ListedTask, Listing, disjoint, train_or_validation
from bsharp.types import Problem

__all__ = ["Asked", "Source", "public_task"]

HUB_SECONDS = 10.0  # to find out whether the hub answers


@dataclass(frozen=True)
class Asked:
    """What a row asks: everything of a problem but its name and number."""

    question: str
    answer: str
    family: str | None = None  # the subject, where the set has subjects
    difficulty: int = 1
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One public data set."""

    name: str
    repository: str  # on the Hugging Face hub
    parts: Mapping[str, str]  # "train" and "test", as far as they are published → the hub's name of that split
    ask: Callable[[Mapping[str, Any]], Asked]  # raises UnusableRow
    fields: str  # the published ones that are used, for the documentation
    licence: str
    reward_kind: str = "math"
    prompt_format: str = "boxed"
    configuration: str | None = None
    folders: tuple[str, ...] = ()  # further names of its folder under data_dir
    files: tuple[str, ...] = ()  # further names of its files, without suffix
    instead: str = "math"  # what to train or evaluate on where a part is not published


def public_task(source: Source, settings: ProblemsConfig) -> ListedTask:
    """The task of a public data set, read when its problems are first asked for."""

    def read(split: Split) -> dict[Split, Listing]:
        parts: dict[Split, list[Problem]] = {part: [] for part in Split}
        dropped: dict[Split, Mapping[str, int]] = {}
        # Training problems are read beside test problems, because none of these may be among them.
        needed = ("test",) if split is Split.TEST else ("train", "test") if "train" in source.parts else ()
        for part in (part for part in needed if part in source.parts):
            problems, dropped[Split(part)] = _problems(source, part, settings.data_dir)
            for problem in problems:
                parts[Split.TEST if part == "test" else train_or_validation(problem)].append(problem)
        found = disjoint(parts, dropped)
        known = (Split.TEST,) if split is Split.TEST else (Split.TRAIN, Split.VALIDATION)
        return {part: found[part] for part in known}

    empty = {}
    if "train" not in source.parts:
        reason = f"it is published for testing only; train on {source.instead}, evaluate on {source.name}"
        empty = {Split.TRAIN: reason, Split.VALIDATION: reason}
    if "test" not in source.parts:
        empty[Split.TEST] = f"it is published for training only; evaluate on {source.instead}"
    template = template_of(settings.prompt_format, source.prompt_format)
    return ListedTask(source.name, source.reward_kind, template, read, empty)


def _problems(source: Source, part: str, data_dir: str | None) -> tuple[list[Problem], Mapping[str, int]]:
    """The problems of a published part in its order, and the rows that make none, counted by reason."""
    if data_dir is None:
        where, rows = f"{source.repository} ({source.parts[part]})", _hub_rows(source, part)
    else:
        paths = _local_files(source, part, Path(data_dir))
        where, rows = str(paths[0]), [row for path in paths for row in read_rows(path)]
    problems: list[Problem] = []
    unusable: Counter[str] = Counter()
    first = ""
    for number, (place, row) in enumerate(rows):
        try:
            asked = source.ask(row)
        except UnusableRow as reason:
            first = first or f"{place} has {reason}; its fields are {', '.join(map(str, row))}"
            unusable[str(reason)] += 1
            continue
        identity = f"{source.name}/{part}/{number}"
        family = asked.family or source.name
        problems.append(
            Problem(identity, source.name, family, asked.question, asked.answer, asked.difficulty, asked.metadata)
        )
    if not problems:
        raise ConfigError(f"{source.name}: no row of {where} can be used: {first or 'it has none'}")
    return problems, dict(unusable)


def _hub_rows(source: Source, part: str) -> list[PlacedRow]:
    try:
        import datasets

        with _offline_where_the_hub_is_silent(source.repository):
            table = datasets.load_dataset(source.repository, source.configuration, split=source.parts[part])
        return [(f"row {number}", dict(row)) for number, row in enumerate(table, 1)]
    except Exception as error:  # no network, a gated or vanished repository: the hub's errors have no common base
        reason = (str(error).strip() or "no message").splitlines()[0][:200]
        raise ConfigError(
            f"{source.name}: the Hugging Face hub did not give {source.repository} ({source.parts[part]}), "
            f"{type(error).__name__}: {reason}; download it where there is a network and pass --data-dir FOLDER, which holds "
            f"{source.name}/{part}.jsonl (or .json, .csv, .parquet)"
        ) from None


@contextmanager
def _offline_where_the_hub_is_silent(repository: str) -> Iterator[None]:
    """Asks the hub once; where it does not answer, what lies in the cache is used without asking for every file again.

    The library's own retries take half a minute and print a line each.
    """
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    try:
        if not any(before):
            HfApi().dataset_info(repository, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        pass  # it answers: what it has to say, load_dataset will say
    except Exception:  # no network, no answer in time, a proxy that refuses
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _local_files(source: Source, part: str, data_dir: Path) -> list[Path]:
    """The files of a part: `<set>/<part>.<suffix>`, or the layouts in which the hub and the authors publish it."""
    repository = source.repository.rpartition("/")[2]
    folders = [data_dir / name for name in (source.name, *source.folders, repository, source.repository)]
    stems = dict.fromkeys((part, source.parts[part], *source.files))
    for folder in folders:
        for stem in stems:
            for suffix in SUFFIXES:
                if (folder / f"{stem}{suffix}").is_file():
                    return [folder / f"{stem}{suffix}"]
            inner = source.configuration or "*"
            for pattern in (f"{stem}-*.parquet", f"{inner}/{stem}-*.parquet", f"{stem}/*/*.json"):
                if found := sorted(folder.glob(pattern)):
                    return found
    raise ConfigError(
        f"{source.name}: {data_dir} holds no file of its {part} problems; put them into {source.name}/{part}.jsonl (or .json, "
        f".csv, .parquet) there, or leave out --data-dir to fetch {source.repository} from the Hugging Face hub"
    )
