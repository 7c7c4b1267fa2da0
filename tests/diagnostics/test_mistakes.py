"""Laws of the mistake table: margins against closed forms and autograd, cosines against brute force."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import NumberTokenizer, plain_logprob, small_model
from torch import Tensor

from bsharp.diagnostics.mistakes import mistake_table
from bsharp.diagnostics.response_gradients import (
    ResponseRows,
    ResponseScorer,
    cosine_over_blocks,
    directional_derivatives,
)
from bsharp.masking import pad_right
from bsharp.models.loading import LanguageModel, clone_model, load_language_model
from bsharp.seeding import generator
from bsharp.tasks import Family, Role, Split, Task, load_task
from bsharp.types import Problem

EOS = 0
PROMPTS = ("1 2", "3 2 4", "4 4", "5 1 3 2")
ORACLES = ("3 4", "1", "2 2 5", "4 1")
MISTAKES = ("3 5", "2 2", "2 1", "1")


class Tokenizer(NumberTokenizer):
    """Adds a first token 1 unless told not to, as tokenizers with a BOS token do."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [*([1] if add_special_tokens else []), *super().encode(text)]


class ToyFamily(Family):
    """Fixed problems whose right and mistaken solutions are given."""

    role, mode, mistake_types = Role.STANDARD, "wrong", ("slip",)

    def __init__(self, name: str, chosen: tuple[int, ...]) -> None:
        self.name, self.chosen = name, chosen  # type: ignore[misc]

    def mistakes(self, problem: Problem) -> dict[str, tuple[str, str]]:
        return {"slip": (MISTAKES[problem.metadata["place"]], "")}


class ToyTask:
    name, reward_kind = "toy", "boxed"

    def __init__(self, **families: tuple[int, ...]) -> None:
        self.families = {name: ToyFamily(name, chosen) for name, chosen in families.items()}

    def problems(self, split: Split, count: int, seed: int, families: list[str]) -> list[Problem]:
        assert split is Split.TEST
        (name,) = families
        return [
            Problem(f"toy/{place}", "toy", name, PROMPTS[place], "0", metadata={"place": place})
            for place in self.families[name].chosen[:count]
        ]

    def prompt(self, problem: Problem) -> str:
        return problem.question

    def oracle(self, problem: Problem) -> str:
        return ORACLES[problem.metadata["place"]]


def model(seed: int = 0, family: str = "qwen3") -> LanguageModel:
    return replace(small_model(family, seed=seed, eos_token_ids=(5, EOS)), tokenizer=Tokenizer())


def sequence_logprob(language_model: LanguageModel, prompt: str, response: str) -> Tensor:
    """log π by hand: the prompt with its first token, the response without it, then the model's first EOS."""
    tokenizer = NumberTokenizer()
    return plain_logprob(language_model, [1, *tokenizer.encode(prompt)], [*tokenizer.encode(response), 5])


def flat_gradient(language_model: LanguageModel, value: Tensor) -> Tensor:
    gradients = torch.autograd.grad(value, list(language_model.model.parameters()))
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def margin_gradients(language_model: LanguageModel) -> list[Tensor]:
    return [
        flat_gradient(
            language_model, sequence_logprob(language_model, p, y) - sequence_logprob(language_model, p, z)
        ).detach()
        for p, y, z in zip(PROMPTS, ORACLES, MISTAKES, strict=True)
    ]


def moved(language_model: LanguageModel, direction: Tensor, step: float) -> LanguageModel:
    other = clone_model(language_model)
    offset = 0
    with torch.no_grad():
        for parameter in other.model.parameters():
            part = direction[offset : offset + parameter.numel()]
            parameter += step * part.reshape(parameter.shape)
            offset += parameter.numel()
    return other


def table(
    base: LanguageModel,
    gradients: Mapping[str, Tensor] | None = None,
    policies: Mapping[str, list[Callable[[], LanguageModel]]] | None = None,
    task: Task | None = None,
    microbatch_rows: int = 3,
) -> dict:
    task = task or ToyTask(all=(0, 1, 2, 3))
    made = mistake_table(
        base,
        policies or {},
        {task.name: task},
        gradients or {},
        problems_per_family=4,
        seed=0,
        microbatch_rows=microbatch_rows,
    )
    json.dumps(made, allow_nan=False)
    return made


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("frozen", [False, True])
def test_directional_derivative_is_the_inner_product_with_each_rows_own_gradient(family: str, frozen: bool) -> None:
    language_model = model(1, family)
    prompts = [[1, 2, 3], [1, 2, 3], [4, 1], [2]]
    responses = [[3, 4, 5], [2], [2, 2, 1, 5], [5]]
    size = sum(parameter.numel() for parameter in language_model.model.parameters())
    draw = torch.Generator().manual_seed(0)
    directions = {name: torch.randn(size, generator=draw, dtype=torch.float64) * 7 for name in "ab"}
    expected = {
        name: [
            float(flat_gradient(language_model, plain_logprob(language_model, *pair)) @ g / g.norm())
            for pair in zip(prompts, responses, strict=True)
        ]
        for name, g in directions.items()
    }
    language_model.model.requires_grad_(not frozen)
    rows = ResponseRows(prompts, *pad_right(responses, 0))
    found = directional_derivatives(language_model, rows, directions | {"zero": torch.zeros(size)}, microbatch_rows=3)
    for name in directions:
        # Norm layers compute in float32, whatever the model's own precision.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    assert np.isnan(found["zero"]).all()
    assert all(parameter.grad is None for parameter in language_model.model.parameters())


def test_base_figures_are_sequence_log_probabilities_with_the_eos() -> None:
    base = model()
    (kind,) = table(base)["types"]
    right = [sequence_logprob(base, p, y).item() for p, y in zip(PROMPTS, ORACLES, strict=True)]
    mistake = [sequence_logprob(base, p, z).item() for p, z in zip(PROMPTS, MISTAKES, strict=True)]
    for key, values in (("right", right), ("mistake", mistake), ("margin", np.subtract(right, mistake))):
        assert kind["base"][key]["estimate"] == pytest.approx(np.mean(values), rel=1e-9)
        assert kind["base"][key]["low"] < np.mean(values) < kind["base"][key]["high"]
    assert kind["problems"] == 4
    assert (kind["mode"], kind["role"], kind["usual"]) == ("wrong", "standard", True)


def generated_logprob(
    language_model: LanguageModel, prompt: list[int], response: list[int], temperature: float, fixed_length: bool
) -> Tensor:
    """log π by hand at a temperature; with `fixed_length` of the distribution over what is not an EOS."""
    logits = language_model.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0] / temperature
    if fixed_length:
        logits = logits.clone()
        logits[:, list(language_model.eos_token_ids)] = -math.inf
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return sum((logits.log_softmax(-1)[at, token] for at, token in zip(places, response, strict=True)), torch.zeros(()))


WAYS = [(0.7, False), (1.0, True), (1.6, True)]


@pytest.mark.parametrize(("temperature", "fixed_length"), WAYS)
def test_solutions_are_scored_under_the_distribution_that_is_trained(temperature: float, fixed_length: bool) -> None:
    base, policy = model(), model(1)
    tokenizer = NumberTokenizer()

    def logprob(language_model: LanguageModel, prompt: str, response: str) -> Tensor:
        tokens = tokenizer.encode(response) + ([] if fixed_length else [5])
        return generated_logprob(language_model, [1, *tokenizer.encode(prompt)], tokens, temperature, fixed_length)

    # Token 5, an EOS, has no place in a solution of fixed length.
    places = [place for place in range(4) if not fixed_length or "5" not in ORACLES[place] + MISTAKES[place]]
    assert len(places) >= 2
    pairs = [(PROMPTS[place], ORACLES[place], MISTAKES[place]) for place in places]
    margins = [logprob(base, p, y) - logprob(base, p, z) for p, y, z in pairs]
    rights = [logprob(base, p, y) for p, y, _ in pairs]
    gradient = flat_gradient(base, torch.stack(margins).mean())
    of_right = torch.stack([flat_gradient(base, logprob(base, p, y)) for p, y, _ in pairs])
    after = [(logprob(policy, p, y) - logprob(policy, p, z)).item() for p, y, z in pairs]
    task = ToyTask(all=tuple(places))
    made = mistake_table(
        base, {"ours": [lambda: policy]}, {task.name: task}, {"up": gradient.detach()},
        problems_per_family=len(places), seed=0, temperature=temperature, fixed_length=fixed_length,
    )  # fmt: skip
    (kind,) = made["types"]
    margins_before = [margin.item() for margin in margins]
    assert (made["temperature"], made["fixed_length"]) == (temperature, fixed_length)
    assert kind["base"]["right"]["estimate"] == pytest.approx(np.mean([x.item() for x in rights]), rel=1e-5)
    assert kind["base"]["margin"]["estimate"] == pytest.approx(np.mean(margins_before), rel=1e-5)
    assert kind["first_step"]["up"]["margin"]["estimate"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert kind["trained"]["ours"]["margin"]["estimate"] == pytest.approx(
        np.mean(np.subtract(after, margins_before)), rel=1e-5
    )
    cell = made["oracle_cosine"]["up"]["all"]
    products = of_right @ of_right.T
    square = float(products.sum() - products.trace()) / (len(places) * (len(places) - 1))
    if square > 0:
        expected = float(of_right.mean(0) @ gradient / gradient.norm()) / math.sqrt(square)
        assert cell["estimate"] == pytest.approx(min(max(expected, -1.0), 1.0), abs=1e-5)
    else:
        assert cell["estimate"] is None


@pytest.mark.parametrize(("temperature", "fixed_length"), WAYS)
def test_derivatives_and_block_gradients_are_those_of_the_distribution_that_is_trained(
    temperature: float, fixed_length: bool
) -> None:
    language_model = model(1)
    prompts, responses = [[1, 2, 3], [4, 1], [2]], [[3, 4], [2], [2, 2, 1]]
    expected = [
        flat_gradient(language_model, generated_logprob(language_model, p, y, temperature, fixed_length))
        for p, y in zip(prompts, responses, strict=True)
    ]
    direction = torch.randn(len(expected[0]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = ResponseRows(prompts, *pad_right(responses, 0))
    found = directional_derivatives(
        language_model, rows, {"d": direction}, microbatch_rows=2, temperature=temperature, fixed_length=fixed_length
    )
    np.testing.assert_allclose(
        found["d"], [float(g @ direction / direction.norm()) for g in expected], rtol=1e-5, atol=1e-6
    )
    scorer = ResponseScorer(language_model, temperature, fixed_length)
    torch.testing.assert_close(scorer.gradient(rows, [0, 2], 2), expected[0] + expected[2], rtol=1e-4, atol=1e-5)


def test_along_the_gradient_of_the_margins_the_mean_margin_rises_by_its_norm_and_against_it_falls() -> None:
    base = model()
    gradient = torch.stack(margin_gradients(base)).mean(0)
    made = table(base, {"corrects": gradient * 3, "amplifies": -gradient, "nothing": 0 * gradient})
    (kind,) = made["types"]
    margins = {name: figures["margin"] for name, figures in kind["first_step"].items()}
    assert margins["corrects"]["estimate"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert margins["amplifies"]["estimate"] == pytest.approx(-float(gradient.norm()), rel=1e-5)
    assert margins["nothing"]["estimate"] is None
    assert "gradient of 0" in margins["nothing"]["note"]
    for figures in kind["first_step"].values():
        if figures["margin"]["estimate"] is not None:
            difference = figures["right"]["estimate"] - figures["mistake"]["estimate"]
            assert figures["margin"]["estimate"] == pytest.approx(difference, rel=1e-9)


def test_a_type_counts_as_corrected_or_amplified_where_its_interval_lies_on_one_side_of_zero() -> None:
    base = model()
    each = margin_gradients(base)
    # The direction of which every problem's margin has the same component 1: least squares.
    direction = torch.linalg.lstsq(torch.stack(each), torch.ones(len(each), dtype=torch.float64)[:, None]).solution[
        :, 0
    ]
    made = table(base, {"corrects": direction, "amplifies": -direction, "one_problem": each[0], "none": 0 * direction})
    counts = made["summary"]["first_step"]
    assert counts["corrects"] == {"corrected": 1, "amplified": 0, "undecided": 0, "types": 1}
    assert counts["amplifies"] == {"corrected": 0, "amplified": 1, "undecided": 0, "types": 1}
    assert counts["none"] == {"corrected": 0, "amplified": 0, "undecided": 1, "types": 1}
    assert made["wrong_mode_summary"] == made["summary"]


def test_training_is_the_change_of_log_probability_against_the_base_per_seed_and_problem() -> None:
    base = model()
    policies = [model(seed) for seed in (1, 2)]
    made = table(base, policies={"ours": [lambda: policies[0], lambda: policies[1]]})
    (kind,) = made["types"]

    def margin(language_model: LanguageModel, place: int) -> float:
        texts = PROMPTS[place], ORACLES[place], MISTAKES[place]
        right, mistake = (sequence_logprob(language_model, texts[0], text).item() for text in texts[1:])
        return right - mistake

    changes = [[margin(policy, place) - margin(base, place) for place in range(4)] for policy in policies]
    assert kind["trained"]["ours"]["margin"]["estimate"] == pytest.approx(np.mean(changes), rel=1e-9)


def test_a_step_along_the_margins_corrects_the_trained_policy_and_a_step_against_them_amplifies() -> None:
    base = model()
    gradient = torch.stack(margin_gradients(base)).mean(0)
    unit = gradient / gradient.norm()
    steps = {"up": 1e-4, "down": -1e-4}
    made = table(base, policies={name: [lambda step=step: moved(base, unit, step)] for name, step in steps.items()})
    (kind,) = made["types"]
    for name, step in steps.items():
        assert kind["trained"][name]["margin"]["estimate"] == pytest.approx(step * float(gradient.norm()), rel=1e-2)


def test_only_one_policy_is_in_memory_at_a_time() -> None:
    alive: list[weakref.ref] = []

    def load(seed: int) -> LanguageModel:
        gc.collect()
        assert all(reference() is None for reference in alive)
        policy = model(seed)
        alive.append(weakref.ref(policy.model))
        return policy

    table(model(), policies={name: [lambda s=s: load(s) for s in (1, 2)] for name in ("a", "b")})
    assert len(alive) == 4


def test_a_policy_that_broke_down_gives_null_with_a_reason() -> None:
    broken = model()
    with torch.no_grad():
        next(broken.model.parameters()).fill_(math.nan)
    made = table(model(), policies={"broken": [lambda: broken]})
    margin = made["types"][0]["trained"]["broken"]["margin"]
    assert margin["estimate"] is None
    assert "broke down" in margin["note"]
    assert made["summary"]["trained"]["broken"]["undecided"] == 1


def test_cosines_are_those_of_products_of_different_problems() -> None:
    base = model()
    draw = torch.Generator().manual_seed(1)
    right = [flat_gradient(base, sequence_logprob(base, p, y)) for p, y in zip(PROMPTS, ORACLES, strict=True)]
    margins = margin_gradients(base)
    gradient = sum(right) + sum(margins) + 30 * torch.randn(len(right[0]), generator=draw, dtype=torch.float64)
    unit = gradient / gradient.norm()
    made = table(base, {"ours": gradient}, task=ToyTask(first=(0, 1), second=(2, 3)))
    defined = 0
    for key, own in (("oracle_cosine", right), ("margin_cosine", margins)):
        found = made[key]["ours"]
        # The blocks of all families together: the b-th of one with the b-th of the other, in the order dealt.
        pairings = [(own[0] + own[2], own[1] + own[3]), (own[0] + own[3], own[1] + own[2])]
        for name, candidates in {"first": [own[:2]], "second": [own[2:]], "all": pairings}.items():
            cell = found["all"] if name == "all" else found["families"][name]
            products = [(float(a @ b), float(unit @ (a + b)) / 2) for a, b in candidates]
            expected = [min(1.0, along / math.sqrt(square)) for square, along in products if square > 0]
            if cell["estimate"] is None:
                assert len(expected) < len(products)
            else:
                defined += 1
                assert min(abs(cell["estimate"] - value) for value in expected) < 1e-6
        assert (found["families"]["first"]["n"], found["all"]["n"]) == (2, 4)
    assert defined >= 3


def test_cosine_over_equal_blocks_is_the_cosine_and_has_no_width() -> None:
    g, block = np.array([1.0, 0.0]), np.array([3.0, 4.0])
    blocks = np.stack([block] * 4)
    found = cosine_over_blocks(blocks @ blocks.T, blocks @ g)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.6, 0.6, 0.6))


def test_cosine_over_blocks_is_unbiased_by_noise_and_covers() -> None:
    # 200 draws of 8 blocks whose noise has twice the squared norm of the gradient. At 95 % coverage fewer than 180 hits
    # have probability 3e-4; the mean error lies within 5 standard errors but with probability 6e-7.
    rng, truth, size = generator(0, "coverage"), 0.6, 500
    mean = np.zeros(size)
    mean[:2] = truth, math.sqrt(1 - truth**2)
    errors, hits = [], 0
    for _ in range(200):
        blocks = mean + rng.standard_normal((8, size)) * math.sqrt(2 / size)
        found = cosine_over_blocks(blocks @ blocks.T, blocks[:, 0])
        errors.append(found.estimate - truth)
        hits += found.low <= truth <= found.high
    assert abs(np.mean(errors)) < 5 * np.std(errors) / math.sqrt(200)
    assert np.std(errors) < 0.05
    assert hits >= 180


@pytest.mark.parametrize(
    ("gram", "along", "note"),
    [
        (np.eye(3), np.full(3, np.nan), "0 or not finite"),
        (np.eye(1), np.ones(1), "one block"),
        (np.eye(3) - 0.1, np.ones(3), "lost in noise"),
    ],
)
def test_a_cosine_that_cannot_be_known_is_undefined_with_a_reason(
    gram: np.ndarray, along: np.ndarray, note: str
) -> None:
    found = cosine_over_blocks(gram, along)
    assert math.isnan(found.estimate)
    assert note in found.note


def test_tasks_without_families_leave_an_empty_table_with_a_note() -> None:
    base = model()
    size = sum(parameter.numel() for parameter in base.model.parameters())
    made = table(base, {"ours": torch.ones(size)}, {"regime": [lambda: base]}, task=ToyTask())
    assert made["types"] == []
    assert made["notes"] == ["no task has families with typed mistakes: there is nothing to compare"]
    assert made["summary"]["first_step"]["ours"]["types"] == made["summary"]["trained"]["regime"]["types"] == 0


def test_the_embedded_base_prefers_the_right_solution_where_its_corpus_does_and_the_mistake_elsewhere() -> None:
    base = load_language_model("embedded:tiny")
    base.model.requires_grad_(False)
    task = load_task("math_mini")
    made = mistake_table(base, {}, {task.name: task}, {}, problems_per_family=4, seed=0)
    assert {(kind["family"], kind["type"]) for kind in made["types"]} == {
        (name, kind) for name, family in task.families.items() for kind in family.mistake_types
    }
    for kind in made["types"]:
        prefers_right = kind["base"]["margin"]["estimate"] > 0
        assert prefers_right == (kind["mode"] == "right"), kind["family"]


def test_wrong_arguments_are_refused_with_what_to_give() -> None:
    base = model()
    with pytest.raises(ValueError, match=r"gradient of 'ours' has shape \(3,\), but the base has \d+ trainable"):
        table(base, {"ours": torch.ones(3)})
    with pytest.raises(ValueError, match="regime 'ours' has no policy"):
        table(base, policies={"ours": []})
    with pytest.raises(ValueError, match="problems_per_family = 0"):
        mistake_table(base, {}, {"toy": ToyTask(all=(0,))}, {}, problems_per_family=0, seed=0)
