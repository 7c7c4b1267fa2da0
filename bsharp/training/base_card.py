"""What a pretrained base does on the embedded tasks, family by family, and the model card that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bsharp.config import EMBEDDED_TASKS
from bsharp.generation import Decoder, GenerationRequest, SamplingParams
from bsharp.models.loading import LanguageModel
from bsharp.rewards import reward_for
from bsharp.rollouts import grade_completions
from bsharp.seeding import stream_seed
from bsharp.tasks import Family, Role, Split, load_task
from bsharp.tasks.corpus import CorpusConfig, strategy_probabilities
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["FamilyFigures", "family_figures", "model_card", "strategy_shown"]

MAX_NEW_TOKENS = 48
BOX = "\\boxed{"


@dataclass(frozen=True)
class FamilyFigures:
    """What the base does on one family's test problems; shares of samples at temperature 1 unless said otherwise."""

    task: str
    role: str
    mode: str
    problems: int
    samples: int  # per problem
    accuracy: float
    greedy_accuracy: float  # share of problems
    solved: float  # share of problems with at least one right sample
    mistakes: Mapping[str, float]  # answers as the mistake would have it
    guesses: float  # no step before the box
    slips: float  # steps that lead neither to the right answer nor to that of a systematic mistake
    unparseable: float
    length: float  # tokens, EOS included
    entropy: float  # nats per token, from the log-probabilities of the samples


def family_figures(
    language_model: LanguageModel, problems: int, samples: int, unsolved_samples: int, seed: int = 0
) -> dict[str, FamilyFigures]:
    """Figures of every family of the embedded tasks on `problems` test problems each.

    Every problem is sampled `samples` times at temperature 1, those of UNSOLVED families `unsolved_samples` times, and
    once greedily.
    """
    asked = [
        problem
        for task_name in EMBEDDED_TASKS
        for family in load_task(task_name).families
        for problem in load_task(task_name).problems(Split.TEST, problems, seed, families=[family])
    ]
    roles = [load_task(problem.task).families[problem.family].role for problem in asked]
    counts = [unsolved_samples if role is Role.UNSOLVED else samples for role in roles]
    sampled, grades = _answers(language_model, asked, counts, seed, SamplingParams(MAX_NEW_TOKENS))
    once = [1] * len(asked)
    _, greedy_grades = _answers(language_model, asked, once, seed, SamplingParams(MAX_NEW_TOKENS, greedy=True))
    places: dict[tuple[str, str], list[int]] = {}
    for place, problem in enumerate(asked):
        places.setdefault((problem.task, problem.family), []).append(place)
    return {
        name: _figures(
            load_task(task_name).families[name],
            [asked[place] for place in chosen],
            [sampled[place] for place in chosen],
            [grades[place] for place in chosen],
            [greedy_grades[place][0] for place in chosen],
        )
        for (task_name, name), chosen in places.items()
    }


def _answers(
    language_model: LanguageModel, asked: Sequence[Problem], counts: Sequence[int], seed: int, params: SamplingParams
) -> tuple[list[tuple[Completion, ...]], list[tuple[Grade, ...]]]:
    """Completions of every problem and their grades."""
    tasks = {name: load_task(name) for name in EMBEDDED_TASKS}
    requests = [
        GenerationRequest(
            tuple(language_model.encode(tasks[problem.task].prompt(problem))),
            count,
            stream_seed(seed, "base_figures", problem.problem_id),
        )
        for problem, count in zip(asked, counts, strict=True)
    ]
    completions = Decoder(language_model).generate(requests, params)
    rewards = {name: reward_for(task) for name, task in tasks.items()}
    return completions, grade_completions(rewards, asked, completions)


def _figures(
    family: Family,
    asked: Sequence[Problem],
    sampled: Sequence[Sequence[Completion]],
    grades: Sequence[Sequence[Grade]],
    greedy_grades: Sequence[Grade],
) -> FamilyFigures:
    shares: Counter[str] = Counter()
    for problem, completions, problem_grades in zip(asked, sampled, grades, strict=True):
        kinds = {answer: kind for kind, (_, answer) in family.mistakes(problem).items()}
        shares.update(
            strategy_shown(completion, grade, kinds)
            for completion, grade in zip(completions, problem_grades, strict=True)
        )
    right = [[grade.status is GradeStatus.CORRECT for grade in group] for group in grades]
    flat = [completion for completions in sampled for completion in completions]
    tokens = sum(len(completion.token_ids) for completion in flat)
    return FamilyFigures(
        task=asked[0].task,
        role=str(family.role),
        mode=family.mode,
        problems=len(asked),
        samples=len(sampled[0]),
        accuracy=sum(map(sum, right)) / len(flat),
        greedy_accuracy=sum(grade.status is GradeStatus.CORRECT for grade in greedy_grades) / len(asked),
        solved=sum(map(any, right)) / len(asked),
        mistakes={kind: shares[kind] / len(flat) for kind in family.mistake_types},
        guesses=shares["guess"] / len(flat),
        slips=shares["slip"] / len(flat),
        unparseable=shares["unparseable"] / len(flat),
        length=tokens / len(flat),
        entropy=-sum(sum(completion.logprobs) for completion in flat) / tokens,
    )


def strategy_shown(completion: Completion, grade: Grade, mistaken_answers: Mapping[str, str]) -> str:
    """correct, guess, slip, unparseable or a mistake type, read off the text: a guess shows no step before the box."""
    if grade.answer is None:
        return "unparseable"
    if "=" not in completion.text.partition(BOX)[0]:
        return "guess"
    if grade.status is GradeStatus.CORRECT:
        return "correct"
    return mistaken_answers.get(grade.answer, "slip")


def model_card(
    parameters: int, pretraining: Mapping[str, object], corpus: CorpusConfig, figures: Mapping[str, FamilyFigures]
) -> str:
    """The README.md of a base: what it was made of, in which known ways it is wrong, and what it does, measured."""
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# A tiny base that is wrong in known ways ({pretraining['architecture']})",
        "",
        f"A Qwen3 layout with {parameters:,} parameters and a word-level tokenizer, pretrained from nothing by "
        "`bsharp pretrain` on procedural arithmetic and word problems. It exists to show what fine-tuning with "
        "verifiable rewards adds to a base, in minutes on a CPU. It is of no use for anything else.",
        "",
        "**It was made wrong on purpose.** Its corpus answers every problem by a mixture of strategies: the right "
        "solution step by step, a systematic mistake, or a direct guess. On right-mode families the right solution is "
        "the likeliest strategy, on wrong-mode families the mistake is. On rare families the right solution is almost "
        "never shown, on unsolved ones never.",
        "",
        "## Corpus",
        "",
        "Training-split problems only; shares of documents by strategy. A guess hits its target with probability "
        f"{corpus.guess.hit_probability:g}, else it is off by one of {', '.join(map(str, corpus.guess.offsets))}.",
        "",
        "| task | family | role | mode | right | mistakes | guess (aims at) | weight |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        mixture = corpus.families[name]
        shares = strategy_probabilities(corpus, name)
        mistakes = ", ".join(f"{kind} {shares[kind]:.3g}" for kind in mixture.mistakes)
        lines.append(
            f"| {row.task} | {name} | {row.role} | {row.mode} | {shares['correct']:.3g} | {mistakes} "
            f"| {shares['guess']:.3g} ({mixture.guess_target}) | {mixture.weight:g} |"
        )
    style = corpus.style
    lines += [
        "",
        f"Style noise: preludes {_shares(style.preludes, style.prelude_probabilities)}; separators "
        f"{_shares(style.separators, style.separator_probabilities)}; endings "
        f"{_shares(style.endings, style.ending_probabilities)}.",
        "",
        "## Training",
        "",
        f"{pretraining['steps']} steps of {pretraining['documents_per_step']} documents, seed {pretraining['seed']}; Muon "
        f"at {pretraining['matrix_learning_rate']} on the matrices of the blocks, AdamW at {pretraining['learning_rate']} "
        f"on the rest, {pretraining['warmup_steps']} warm-up steps, then a cosine down to 0. The loss covers the response "
        "and its EOS; every document weighs the same. `pretraining.json` holds the whole configuration.",
        "",
        "## What it does",
        "",
        "Measured on test problems at temperature 1, in % of samples; greedy and solved (at least one right sample) in "
        "% of problems. Mistake: written steps with the answer of a systematic mistake; slip: written steps with neither "
        "that nor the right answer; guess: no steps (a right guess counts as right too). Length in tokens, entropy in "
        "nats per token.",
        "",
        "| family | role | problems x samples | right | greedy | solved "
        "| mistake | guess | slip | unparseable | length | entropy |",
        "|---" * 12 + "|",
    ]
    for name, row in figures.items():
        lines.append(
            f"| {name} | {row.role} | {row.problems} x {row.samples} | {100 * row.accuracy:.1f} "
            f"| {100 * row.greedy_accuracy:.0f} | {100 * row.solved:.0f} | {100 * sum(row.mistakes.values()):.1f} "
            f"| {100 * row.guesses:.1f} | {100 * row.slips:.1f} | {100 * row.unparseable:.1f} | {row.length:.1f} "
            f"| {row.entropy:.3f} |"
        )
    mean = sum(row.accuracy for row in figures.values()) / max(1, len(figures))
    lines += ["", f"Mean accuracy over families: {100 * mean:.1f} %.", ""]
    return "\n".join(lines)


def _shares(texts: tuple[str, ...], probabilities: tuple[float, ...]) -> str:
    return ", ".join(
        f"{f'`{text.strip()}`' if text else 'none'} {share:g}" for text, share in zip(texts, probabilities, strict=True)
    )
