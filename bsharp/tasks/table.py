"""Markdown of the tasks: the families of the embedded ones with their numbers of distinct problems, and the public data sets."""

from __future__ import annotations

from bsharp.config import EMBEDDED_TASKS
from bsharp.tasks import distinct_problems, embedded_task
from bsharp.tasks.base import ENUMERATION_CAP, ProceduralTask, Split
from bsharp.tasks.corpus import CorpusConfig, load_corpus_config, strategy_probabilities
from bsharp.tasks.public import PUBLIC

__all__ = ["public_table", "tasks_document"]

_INTRODUCTION = f"""# The embedded tasks

Every problem is made from a few whole numbers. Its *content* is the arithmetic it asks for, with commuting operands sorted
and without the wording: `12+3*8` is one content, asked bare or as a story. The hash of the content decides the split (train
80 %, validation 10 %, test 10 %), so that no validation or test problem has been seen in any wording, neither in
pretraining nor in reinforcement learning.

- **role**: `standard` families are solved often by the base; `rare` ones in 1-5 % of samples; `unsolved` ones not at all in
  256 samples on most problems; `transfer` families are in the pretraining corpus but never rewarded.
- **mode**: whether the strategy the base prefers is the right one, by construction of its corpus.
- **right**: the share of right solutions in the corpus; direct guesses come on top.
- **train, validation, test**: distinct contents by enumeration, which stops at {ENUMERATION_CAP:,} contents of a family; the
  three numbers are then lower bounds, marked ≥.

Difficulties 1, 2 and 3 differ in the size of the numbers and are equally frequent by default. This page is the output of
`python -m bsharp.tasks.table`.
"""


def tasks_document(config: CorpusConfig | None = None) -> str:
    """The document, as of a corpus config (by default the shipped one)."""
    config = load_corpus_config() if config is None else config
    sections = (_task_section(embedded_task(name), config) for name in EMBEDDED_TASKS)
    return "\n".join([_INTRODUCTION, *sections])


def _task_section(task: ProceduralTask, config: CorpusConfig) -> str:
    lines = [
        f"## {task.name}\n",
        "| family | what | role | mode | right | mistakes | train | validation | test |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, counts in distinct_problems(task).items():
        family = task.families[name]
        shares = strategy_probabilities(config, name) if name in config.families else {"correct": 0.0}
        mark = "≥ " if sum(counts.values()) == ENUMERATION_CAP else ""
        cells = [f"`{name}`", family.description, family.role, family.mode, f"{shares['correct']:.3g}"]
        cells += [", ".join(family.mistake_types), *(f"{mark}{counts[split]:,}" for split in Split)]
        lines.append(f"| {' | '.join(cells)} |")
    problems = task.problems(Split.TEST, len(task.families), seed=0)
    examples = [f"- `{problem.family}`: `{task.prompt(problem)}{task.oracle(problem)}`" for problem in problems]
    return "\n".join([*lines, "\nRight solutions, one a family:\n", *examples, ""])


def public_table() -> str:
    """The public data sets as the table of docs/problems.md."""
    lines = [
        "| task | Hugging Face hub | published | fields used | format | graded as | licence |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in PUBLIC.values():
        repository = source.repository + (f" ({source.configuration})" if source.configuration else "")
        cells = (
            repository,
            ", ".join(source.parts),
            source.fields,
            source.prompt_format,
            source.reward_kind,
            source.licence,
        )
        lines.append(f"| `{source.name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tasks_document(), end="")
