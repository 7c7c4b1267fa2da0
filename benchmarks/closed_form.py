"""Does the engine reach the optimum that theory writes down? Exact distances behind docs/closed_form.md.

    python benchmarks/closed_form.py              # trains every regime on three bases and writes the tables: minutes on two cores
    python benchmarks/closed_form.py --only "sharpening, mean"   # trains one regime again, the figures of the others stay
    python benchmarks/closed_form.py --tables     # writes the tables again, from the figures of the last training

A transformer over four tokens (`<eos>`, 0, 1, 2) answers four prompts `a b` with at most four tokens: 121 responses each,
all enumerated. A response is right where its last digit is (a + b) mod 3. Base, sampler, grader, scores, advantages,
micro-batches and optimizer are those of every other run (`bsharp.training.train_policy`). What is reported is no estimate:

    distance = min over optima π* of J of  TV(π, π*) = ½ Σ_y |π(y | x) − π*(y | x)|,   by enumeration of the trained network.

Where the policy's entropy has positive weight in J the optimum is unique and known in closed form. Where J is linear every
policy on the best responses is optimal, and the distance is the mass elsewhere. Where J asks for nothing but less entropy
(entropy_minimisation) every point mass is optimal, and the distance is the mass outside the likeliest response.

No prompt repeats a token: attention over equal tokens returns the same at every length, so that a transformer without
absolute positions cannot tell the prompt `2 2` from `2 2` followed by 2, and some optima would be out of its reach.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from bsharp.algorithm import Objective, parse_objective
from bsharp.config import AlgorithmConfig, OptimizerConfig, SamplingConfig, TrainConfig, WatchConfig
from bsharp.generation import Decoder
from bsharp.models.enumerate import enumerate_responses
from bsharp.models.loading import LanguageModel, clone_model
from bsharp.rewards import FunctionReward
from bsharp.runlog import RunDirectory
from bsharp.seeding import generator
from bsharp.tasks.base import Family, Split
from bsharp.theory.targets import optimum
from bsharp.theory.world import FiniteWorld, from_arrays
from bsharp.training import train_policy
from bsharp.types import Problem

DOCUMENT = Path("docs/closed_form.md")
FIGURES = Path("runs/closed_form.json")
EOS, DIGITS = "<eos>", 3
PROMPTS = ("0 1", "1 2", "2 0", "1 0")
MAX_LENGTH = 4
SEEDS = (0, 1, 2)
TRACED = 6  # enumerations along a run, beside the one before it


RLOO = AlgorithmConfig(variance_subbatches=2)
PPO = AlgorithmConfig(
    advantage="gae", loss="ppo_clip", epochs=2, minibatches=1, value_learning_rate=1e-2, variance_subbatches=2
)


@dataclass(frozen=True)
class Condition:
    """How one regime is trained; the learning rate falls to 0 along a cosine."""

    regime: str
    steps: int
    learning_rate: float = 3e-3
    group_size: int = 64
    algorithm: AlgorithmConfig = RLOO


CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "tilted, α = 1, β⁻¹ = 2": Condition("tilted(alpha=1,beta_inv=2)", 400, group_size=128),
        "tilted, α = 2, β⁻¹ = 2": Condition("tilted(alpha=2,beta_inv=2)", 200, group_size=128),
        "tempered, α = 2": Condition("tempered(alpha=2)", 100),
        "tempered, α = 2, mean": Condition("tempered(alpha=2,normalisation=mean)", 100),
        "tempered, α = 2, by PPO": Condition("tempered(alpha=2)", 100, algorithm=PPO),
        "task reward": Condition("task_reward", 60),
        "sharpening": Condition("sharpening", 60, 1e-3),
        "sharpening, mean": Condition("sharpening(normalisation=mean)", 100, 1e-3),
        "entropy minimisation": Condition("entropy_minimisation", 60, 1e-3),
    }
)


class LastDigit:
    """`a b` → (a + b) mod 3. The response may say anything before its last digit, which is its answer."""

    name = "last_digit"
    families: Mapping[str, Family] = MappingProxyType({})
    reward_kind: Literal["boxed"] = "boxed"

    def problems(
        self,
        split: Split | str,
        count: int,
        seed: int,
        families: Sequence[str] | None = None,
        difficulties: Sequence[int] | None = None,
    ) -> list[Problem]:
        return [Problem(f"{self.name}/{text}", self.name, self.name, text, self.gold(text)) for text in PROMPTS[:count]]

    def size(self, split: Split | str) -> int:
        return len(PROMPTS)

    def prompt(self, problem: Problem) -> str:
        return problem.question

    def oracle(self, problem: Problem) -> str:
        return problem.answer

    @staticmethod
    def gold(text: str) -> str:
        return str(sum(map(int, text.split())) % DIGITS)


def last_digit_is_right(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """1 where the last digit of a completion is the gold answer, else 0; a completion without a digit is wrong."""
    return [float(text.split()[-1:] == [gold]) for text, gold in zip(completions, answer, strict=True)]


def random_transformer(seed: int) -> LanguageModel:
    """A two-layer Qwen3 over `<eos>` and the digits, its matrices normal with standard deviation 0.3: far from uniform."""
    backend = Tokenizer(models.WordLevel({EOS: 0} | {str(digit): digit + 1 for digit in range(DIGITS)}, unk_token=EOS))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, unk_token=EOS, pad_token=EOS)
    config = Qwen3Config(
        vocab_size=DIGITS + 1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config).float().eval()
    rng = generator(seed, "random_transformer")
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                parameter.copy_(torch.from_numpy(rng.normal(0.0, 0.3, tuple(parameter.shape))))
    return LanguageModel(model, tokenizer, (0,), 0, f"random-{seed}")


def enumerate_worlds(language_model: LanguageModel) -> list[FiniteWorld]:
    """Every response to every prompt under this model, graded."""
    task, worlds = LastDigit(), []
    for problem in task.problems(Split.TRAIN, len(PROMPTS), 0):
        found = enumerate_responses(language_model, language_model.encode(task.prompt(problem)), MAX_LENGTH)
        texts = [language_model.decode(response) for response in found.responses()]
        rewards = last_digit_is_right(texts, [problem.answer] * found.size)
        answers = [int(text.split()[-1]) if text else -1 for text in texts]
        worlds.append(from_arrays(found.token_ids, found.mask, found.token_logprobs, rewards, answers=answers))
    return worlds


def distance_to_optima(policy: Float[Tensor, " N"], world: FiniteWorld, objective: Objective) -> float:
    """Total variation between a policy and the nearest maximiser of J on the world, in [0, 1]."""
    target = optimum(world, objective).policy
    if objective.entropy_weight > 0:
        return float((policy - target).abs().sum() / 2)
    if objective.entropy_weight < 0 and not (objective.task or objective.base_loglikelihood or objective.kl_to_base):
        return 1.0 - float(policy.max())  # J = o E[l]: 0 at every point mass, negative elsewhere
    return 1.0 - float(policy[target > 0].sum())


@dataclass(frozen=True)
class Outcome:
    """One trained policy, exactly; one entry per prompt."""

    label: str
    seed: int
    base_distances: tuple[float, ...]
    distances: tuple[float, ...]
    trace: tuple[tuple[int, float], ...]  # (step, mean distance over the prompts)
    likeliest: tuple[int, ...]  # the policy's likeliest response
    likeliest_mass: tuple[float, ...]
    target_mode: tuple[int, ...]  # that of the optimum
    base_mass: tuple[tuple[float, float], ...]  # base probability of the optimum's mode, and of the policy's
    policies: tuple[tuple[float, ...], ...]  # probabilities of all responses
    seconds: float  # CPU time


def train_condition(label: str, condition: Condition, seed: int) -> Outcome:
    """Train the base `seed` on the condition through `train_policy`, and enumerate what came out."""
    torch.set_num_threads(1)
    started = time.process_time()
    base = random_transformer(seed)
    base.model.requires_grad_(False)
    _, objective = parse_objective(condition.regime)
    worlds = enumerate_worlds(base)
    policy = clone_model(base)
    policy.model.requires_grad_(True)
    trace: list[tuple[int, float]] = []

    def distances() -> list[float]:
        enumerated = [world.base_logprob.exp() for world in enumerate_worlds(policy)]
        return [distance_to_optima(found, world, objective) for found, world in zip(enumerated, worlds, strict=True)]

    def watch(step: int, metrics: Mapping[str, float]) -> None:
        if step * TRACED % condition.steps < TRACED:
            trace.append((step, statistics.mean(distances())))

    base_distances = distances()
    trace.append((0, statistics.mean(base_distances)))
    task = LastDigit()
    with tempfile.TemporaryDirectory() as folder:
        progress = train_policy(
            config_of(condition, seed),
            policy,
            base,
            objective,
            Decoder(policy, max_rows=len(PROMPTS) * condition.group_size),
            {task.name: task},
            {task.name: FunctionReward(last_digit_is_right)},
            RunDirectory(folder),
            watchers=[watch],
        )
    if progress.stopped:
        raise RuntimeError(f"{label}, seed {seed}: {progress.stopped}")
    trained = [world.base_logprob.exp() for world in enumerate_worlds(policy)]
    modes = [int(optimum(world, objective).policy.argmax()) for world in worlds]
    return Outcome(
        label=label,
        seed=seed,
        base_distances=tuple(base_distances),
        distances=tuple(distances()),
        trace=tuple(trace),
        likeliest=tuple(int(found.argmax()) for found in trained),
        likeliest_mass=tuple(float(found.max()) for found in trained),
        target_mode=tuple(modes),
        base_mass=tuple(
            (math.exp(world.base_logprob[mode]), math.exp(world.base_logprob[found.argmax()]))
            for world, mode, found in zip(worlds, modes, trained, strict=True)
        ),
        policies=tuple(tuple(found.tolist()) for found in trained),
        seconds=time.process_time() - started,
    )


def config_of(condition: Condition, seed: int) -> TrainConfig:
    return TrainConfig(
        tasks=(LastDigit.name,),
        objective=condition.regime,
        seed=seed,
        steps=condition.steps,
        sampling=SamplingConfig(
            prompts_per_step=len(PROMPTS), group_size=condition.group_size, max_new_tokens=MAX_LENGTH
        ),
        algorithm=condition.algorithm,
        optimizer=OptimizerConfig(learning_rate=condition.learning_rate, schedule="cosine", warmup_steps=0),
        watch=WatchConfig(snapshot_megabytes=0),
        microbatch_rows=len(PROMPTS) * condition.group_size,
        checkpoint_every=condition.steps,
    )


# --------------------------------------------------------------------------------------------------- the document


def distances_table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| regime | steps | base | after training | worst prompt | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for label, runs in _by_label(outcomes).items():
        base = statistics.mean(value for run in runs for value in run.base_distances)
        mean = statistics.mean(value for run in runs for value in run.distances)
        worst = max(value for run in runs for value in run.distances)
        seeds = ", ".join(f"{statistics.mean(run.distances):.3f}" for run in runs)
        lines.append(f"| {label} | {CONDITIONS[label].steps} | {base:.3f} | {mean:.3f} | {worst:.3f} | {seeds} |")
    return "\n".join(lines)


def trace_table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| regime | " + " | ".join(f"{share}/{TRACED}" for share in range(TRACED + 1)) + " |",
        "|---|" + "---|" * (TRACED + 1),
    ]
    for label, runs in _by_label(outcomes).items():
        means = [statistics.mean(values) for values in zip(*([d for _, d in run.trace] for run in runs), strict=True)]
        lines.append(f"| {label} | " + " | ".join(f"{value:.3f}" for value in means) + " |")
    return "\n".join(lines)


def collapse_table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| regime | on the optimum's | least mass there | on another: base probability of the optimum's and of the other |",
        "|---|---|---|---|",
    ]
    for label, runs in _by_label(outcomes).items():
        if "sharpening" not in label and "minimisation" not in label:
            continue
        rows = [
            row
            for run in runs
            for row in zip(run.likeliest, run.target_mode, run.likeliest_mass, run.base_mass, strict=True)
        ]
        there = [mass for found, mode, mass, _ in rows if found == mode]
        other = [pair for found, mode, _, pair in rows if found != mode]
        pairs = "; ".join(f"{mode:.3f} and {found:.3f}" for mode, found in other) or "none"
        lines.append(f"| {label} | {len(there)} of {len(rows)} | {min(there, default=0):.3f} | {pairs} |")
    return "\n".join(lines)


def _by_label(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    return {label: [run for run in outcomes if run.label == label] for label in CONDITIONS}


TABLES: Mapping[str, Callable[[Sequence[Outcome]], str]] = MappingProxyType(
    {"distances": distances_table, "trace": trace_table, "collapse": collapse_table}
)


def write_document(outcomes: Sequence[Outcome]) -> None:
    """Replace each table of the document between its `<!-- table NAME -->` and `<!-- end NAME -->`."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        place = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        found = place.findall(text)
        if len(found) != 1:
            raise SystemExit(f"{DOCUMENT} has {len(found)} places for the table {name}; mark exactly one")
        text = place.sub("\n".join([found[0][0], table(outcomes), "", found[0][1]]), text)
    DOCUMENT.write_text(text, encoding="utf-8")


def read_figures() -> list[Outcome]:
    return [Outcome(**figures) for figures in json.loads(FIGURES.read_text(encoding="utf-8"))]


def train_all(workers: int, labels: Sequence[str]) -> None:
    """These conditions on every seed, in place of their earlier figures; in how many processes changes no figure."""
    kept = [run for run in read_figures() if run.label not in labels] if set(labels) < set(CONDITIONS) else []
    jobs = [(label, CONDITIONS[label], seed) for label in labels for seed in SEEDS]
    outcomes = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for run in pool.map(train_condition, *zip(*jobs, strict=True)):
            each = " ".join(f"{value:.4f}" for value in run.distances)
            print(f"{run.label}, seed {run.seed}: {each} ({run.seconds:.0f} s)", flush=True)
            outcomes.append(run)
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps([dataclasses.asdict(run) for run in [*kept, *outcomes]]), encoding="utf-8")


def main(workers: int, only: Sequence[str] | None, tables: bool) -> None:
    if not tables:
        train_all(workers, only or list(CONDITIONS))
    outcomes = read_figures()
    for name, table in TABLES.items():
        print(f"\n{name}\n{table(outcomes)}")
    write_document(outcomes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--only", action="append", choices=CONDITIONS, metavar="REGIME", help="train only this one")
    parser.add_argument("--tables", action="store_true", help="train nothing, write the tables again")
    main(**vars(parser.parse_args()))
