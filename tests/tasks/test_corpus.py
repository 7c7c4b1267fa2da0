"""Laws of the corpus: shares as configured, training problems only, known pieces, errors that teach."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from scipy.stats import binomtest, chisquare

from bsharp.config import EMBEDDED_TASKS, ConfigError, as_dict, build_config
from bsharp.rewards import BoxedAnswerReward, boxed_answers
from bsharp.tasks import Role, Split, content_key, load_task, split_of
from bsharp.tasks.corpus import (
    CorpusConfig,
    Document,
    documents,
    load_corpus_config,
    pieces,
    strategy_probabilities,
    vocabulary,
)
from bsharp.types import Completion, FinishReason, GradeStatus

DOCUMENTS = 60_000
MAX_RESPONSE_PIECES = 44


@cache
def corpus() -> list[Document]:
    return list(itertools.islice(documents(load_corpus_config(), seed=0), DOCUMENTS))


def with_values(**changes: object) -> CorpusConfig:
    return build_config(CorpusConfig, as_dict(load_corpus_config()) | changes)


def status_of(document: Document) -> GradeStatus:
    completion = Completion((0,), (0.0,), FinishReason.EOS, document.response)
    return BoxedAnswerReward()([document.problem], [completion])[0].status


def test_family_and_strategy_frequencies_are_the_configured_ones() -> None:
    """Chi-square at 1e-5 for each of 22 tests; a right sampler fails with probability 2e-4."""
    config = load_corpus_config()
    families = Counter(document.problem.family for document in corpus())
    weights = {name: mixture.weight for name, mixture in config.families.items()}
    expected = [DOCUMENTS * weight / sum(weights.values()) for weight in weights.values()]
    assert chisquare([families[name] for name in weights], expected).pvalue > 1e-5
    strategies = Counter((document.problem.family, document.strategy) for document in corpus())
    for name in config.families:
        shares = {kind: share for kind, share in strategy_probabilities(config, name).items() if share}
        observed = [strategies[name, kind] for kind in shares]
        assert sum(observed) == families[name]
        assert chisquare(observed, [families[name] * share for share in shares.values()]).pvalue > 1e-5


def test_style_frequencies_are_the_configured_ones_and_independent_of_the_strategy() -> None:
    """Chi-square at 1e-5 for each of 4 tests."""
    style = load_corpus_config().style
    for wanted in ("correct", "guess"):
        chosen = [document.response for document in corpus() if document.strategy == wanted]
        endings = Counter(response.rpartition("}")[2] for response in chosen)
        expected = [len(chosen) * share for share in style.ending_probabilities]
        assert chisquare([endings[ending] for ending in style.endings], expected).pvalue > 1e-5
    stepwise = [document.response for document in corpus() if document.strategy == "correct"]
    separators = Counter(response.partition(" \\boxed")[0][-1] for response in stepwise)
    expected = [len(stepwise) * share for share in style.separator_probabilities]
    assert chisquare([separators[text] for text in style.separators], expected).pvalue > 1e-5
    preludes = Counter(
        max((text for text in style.preludes if response.startswith(text)), key=len) for response in stepwise
    )
    expected = [len(stepwise) * share for share in style.prelude_probabilities]
    assert chisquare([preludes[text] for text in style.preludes], expected).pvalue > 1e-5


def test_documents_grade_as_their_strategy_says() -> None:
    for document in corpus()[:10_000]:
        status = status_of(document)
        if document.strategy == "correct":
            assert status is GradeStatus.CORRECT
        elif document.strategy != "guess":
            assert status is GradeStatus.WRONG


def test_guesses_hit_with_the_configured_probability_and_never_in_rare_and_unsolved_families() -> None:
    """A binomial test at 1e-5. Misses are off by exactly one of the offsets."""
    config = load_corpus_config()
    guesses = [document for document in corpus() if document.strategy == "guess"]
    hits = {True: [], False: []}
    for document in guesses:
        aims_at_answer = config.families[document.problem.family].guess_target == "answer"
        hits[aims_at_answer].append(status_of(document) is GradeStatus.CORRECT)
        if aims_at_answer:
            error = abs(int(next(boxed_answers(document.response))) - int(document.problem.answer))
            assert error in {0, *config.guess.offsets}
    assert binomtest(sum(hits[True]), len(hits[True]), config.guess.hit_probability).pvalue > 1e-5
    assert len(hits[False]) > 1000
    assert not any(hits[False])


def test_documents_hold_training_problems_only_but_transfer_families_too() -> None:
    assert {split_of(content_key(document.problem)) for document in corpus()} == {Split.TRAIN}
    families = {name: family for task in map(load_task, EMBEDDED_TASKS) for name, family in task.families.items()}
    assert {families[document.problem.family].role for document in corpus()} == set(Role)


def test_mode_and_role_of_every_family_agree_with_the_mixture() -> None:
    config = load_corpus_config()
    for task in map(load_task, EMBEDDED_TASKS):
        for name, family in task.families.items():
            shares = strategy_probabilities(config, name)
            likeliest = max(shares, key=shares.__getitem__)
            assert (likeliest == "correct") == (family.mode == "right"), name
            if family.role is Role.RARE:
                assert 0.01 <= shares["correct"] <= 0.05
            if family.role is Role.UNSOLVED:
                assert shares["correct"] == 0
            if family.role in (Role.RARE, Role.UNSOLVED):
                assert config.families[name].guess_target == "mistake"


def test_vocabulary_holds_every_piece_of_every_split_and_is_small() -> None:
    known = set(vocabulary(load_corpus_config()))
    assert len(known) <= 160
    frequency: Counter[str] = Counter()
    for document in corpus():
        found = [*pieces(document.prompt), *pieces(document.response)]
        assert known.issuperset(found)
        frequency.update(found)
    assert min(frequency[piece] for piece in known) >= 200  # none is rare enough to stay unlearned
    for task, split in itertools.product(map(load_task, EMBEDDED_TASKS), Split):
        for problem in task.problems(split, 400, seed=9):
            assert known.issuperset(pieces(task.prompt(problem) + task.oracle(problem)))


def test_prompt_and_response_are_cut_into_the_same_pieces_together_and_apart() -> None:
    for prompt, response in corpus()[:5000]:
        assert pieces(prompt + response) == pieces(prompt) + pieces(response)
        assert "".join(pieces(prompt + response)) == prompt + response
    with pytest.raises(ValueError, match="white space"):
        pieces("two  blanks\n")


def test_responses_fit_into_the_token_limit() -> None:
    lengths = [len(pieces(document.response)) for document in corpus()]
    assert max(lengths) <= MAX_RESPONSE_PIECES
    assert 8 <= sum(lengths) / len(lengths) <= 30


def test_equal_seeds_give_equal_corpora_and_other_seeds_others() -> None:
    config = load_corpus_config()
    first, again, other = (list(itertools.islice(documents(config, seed), 500)) for seed in (0, 0, 1))
    assert first == again == corpus()[:500]
    assert first != other


def test_documents_stream_faster_than_a_tiny_model_trains() -> None:
    start = time.process_time()
    count = sum(1 for _ in itertools.islice(documents(load_corpus_config(), seed=3), 5000))
    assert count / (time.process_time() - start) > 3000  # about 30,000 a second on a quiet core


def test_mistake_rate_shift_moves_right_shares_of_standard_and_transfer_families_only() -> None:
    config = load_corpus_config()
    for shift in (-1.0, -0.1, 0.0, 0.15, 1.0):
        shifted = dataclasses.replace(config, mistake_rate_shift=shift)
        for task in map(load_task, EMBEDDED_TASKS):
            for name, family in task.families.items():
                before, after = (strategy_probabilities(each, name) for each in (config, shifted))
                assert sum(after.values()) == pytest.approx(1)
                assert min(after.values()) >= 0
                assert after["guess"] == before["guess"]
                moved = before["correct"] - after["correct"]
                if family.role in (Role.RARE, Role.UNSOLVED):
                    assert after == before
                else:
                    wrong = 1 - before["correct"] - before["guess"]
                    assert moved == pytest.approx(min(max(shift, -wrong), before["correct"]))


def test_extreme_shift_shows_in_the_documents() -> None:
    config = dataclasses.replace(load_corpus_config(), mistake_rate_shift=1.0)
    strategies = {document.strategy for document in itertools.islice(documents(config, 0), 3000)}
    rare = {
        document.problem.family
        for document in itertools.islice(documents(config, 0), 3000)
        if document.strategy == "correct"
    }
    assert "dropped_carry" in strategies
    assert rare <= {"sum_times", "years"}


def test_a_family_of_weight_zero_is_left_out() -> None:
    families = as_dict(load_corpus_config())["families"]
    only_add = {name: mixture | {"weight": float(name == "add")} for name, mixture in families.items()}
    stream = documents(with_values(families=only_add), seed=0)
    assert {document.problem.family for document in itertools.islice(stream, 200)} == {"add"}


ADD = {"correct": 0.5, "mistakes": {"dropped_carry": 0.5}, "guess": 0.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"families": {"add": ADD | {"guess": 0.2}}}, r"correct \+ mistakes \+ guess = 1.2; make them sum to 1"),
        ({"families": {"ad": ADD}}, "unknown family 'ad'; choose from add, multiply"),
        ({"families": {"add": ADD | {"mistakes": {"typo": 0.5}}}}, "has no mistake 'typo'; choose from dropped_carry"),
        ({"families": {"add": ADD | {"weight": 0}}}, "every family has weight 0"),
        ({"families": {"add": ADD | {"correct": 1.5}}}, "less than or equal to 1"),
        ({"families": {"add": ADD}, "mistake_rate_shift": 2}, "mistake_rate_shift = 2 cannot be used"),
        ({"families": {"add": ADD}, "mistake_rate": 0.1}, "did you mean mistake_rate_shift"),
        ({"families": {"add": ADD}, "style": {"endings": [" 7"]}}, "ending ' 7' cannot be used"),
        ({"families": {"add": ADD}, "style": {"preludes": ["so"]}}, "prelude 'so' cannot be used"),
        ({"families": {"add": ADD}, "style": {"separators": [";", ","]}}, "must be 2 numbers that sum to 1"),
        ({"families": {}}, "at least 1 item"),
    ],
)
def test_unusable_configs_get_an_error_that_says_what_to_write(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(CorpusConfig, values)


def test_config_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text("[families.add]\ncorrect = 1.0\nmistakes = {}\nguess = 0.0\n", encoding="utf-8")
    stream = documents(load_corpus_config(path), seed=0)
    assert {document.strategy for document in itertools.islice(stream, 100)} == {"correct"}
