"""Pretraining: what the loss weighs, that it learns, and that it can be repeated bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path

import pytest
import torch

from bsharp.config import EMBEDDED_TASKS, build_config
from bsharp.models.loading import LanguageModel, clone_model, load_language_model, weights_hash
from bsharp.models.tiny import embedded_folder
from bsharp.tasks import load_task
from bsharp.tasks.corpus import CorpusConfig, documents, load_corpus_config, vocabulary
from bsharp.training.base_card import family_figures
from bsharp.training.pretraining import (
    PRESETS,
    PretrainConfig,
    document_loss,
    encode_documents,
    new_language_model,
    pretrain,
    train_on_documents,
)

MICRO = PretrainConfig(
    steps=2,
    documents_per_step=8,
    microbatch_documents=4,
    warmup_steps=0,
    figure_problems=1,
    figure_samples=1,
    figure_unsolved_samples=1,
    threads=1,
)
RAGGED = [
    ("Q: 1+2 = ? A:", " \\boxed{3}"),
    ("Q: 40+50 = ? A:", " 0+0=0;4+5=9; \\boxed{90} ok."),
    ("Q: 7*8 = ? A:", " \\boxed{56}"),
]


@pytest.fixture(scope="module")
def untrained() -> LanguageModel:
    return new_language_model(MICRO, vocabulary(load_corpus_config()))


def corpus_texts(count: int) -> list[tuple[str, str]]:
    stream = documents(load_corpus_config(), seed=5)
    return [(document.prompt, document.response) for document in (next(stream) for _ in range(count))]


def test_the_loss_is_the_sum_over_responses_with_eos_of_the_negative_log_likelihood(untrained: LanguageModel) -> None:
    batch = encode_documents(untrained, RAGGED)
    expected = 0.0
    with torch.no_grad():
        for prompt, response in batch:
            logprobs = untrained.model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            expected -= sum(float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(response))
        assert float(document_loss(untrained, batch)) == pytest.approx(expected, rel=1e-5)
    assert all(response[-1] == untrained.tokenizer.eos_token_id for _, response in batch)


def test_every_document_has_the_same_weight_in_a_ragged_batch(untrained: LanguageModel) -> None:
    """The gradient of a batch is the sum of the gradients of its documents, the long one counted like the short ones."""

    def gradient(batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        language_model = clone_model(untrained)
        document_loss(language_model, batch).backward()
        gradients = [parameter.grad for parameter in language_model.model.parameters()]
        return torch.cat([gradient.reshape(-1) for gradient in gradients if gradient is not None])

    batch = encode_documents(untrained, RAGGED)
    apart = torch.stack([gradient([document]) for document in batch]).sum(0)
    assert torch.allclose(gradient(batch), apart, atol=1e-4 * float(apart.abs().max()))


def test_the_size_of_micro_batches_does_not_change_the_gradient(untrained: LanguageModel) -> None:
    texts = corpus_texts(8)
    after = []
    for size in (1, 3, 8):
        language_model = clone_model(untrained)
        # A plain optimizer would show the gradient more directly; one small step of Muon and AdamW shows it well enough.
        config = replace(MICRO, steps=1, microbatch_documents=size, matrix_learning_rate=1e-3, learning_rate=1e-3)
        (loss,) = train_on_documents(language_model, iter(texts), config)
        after.append((loss, language_model.model.model.norm.weight.detach()))
    for loss, weight in after[1:]:
        assert loss == pytest.approx(after[0][0], rel=1e-5)
        assert torch.allclose(weight, after[0][1], atol=1e-5)


def test_cutting_into_pieces_gives_the_ids_of_the_tokenizer(untrained: LanguageModel) -> None:
    texts = corpus_texts(500)
    for (prompt, response), (prompt_ids, response_ids) in zip(texts, encode_documents(untrained, texts), strict=True):
        assert prompt_ids == untrained.encode(prompt)
        assert response_ids[:-1] == untrained.encode(response)


def test_a_few_steps_lower_the_loss_and_repeat_bit_for_bit(untrained: LanguageModel) -> None:
    config = replace(MICRO, steps=12, documents_per_step=16, microbatch_documents=16)

    def run() -> tuple[list[float], str]:
        language_model = clone_model(untrained)
        losses = train_on_documents(language_model, cycle(corpus_texts(16)), config)
        return losses, weights_hash(language_model.model)

    losses, weights = run()
    assert losses[-1] < 0.6 * losses[0]
    assert (losses, weights) == run()


def test_a_corpus_that_ends_early_and_a_piece_outside_the_vocabulary_are_refused(untrained: LanguageModel) -> None:
    short: Iterator[tuple[str, str]] = iter(corpus_texts(8))
    with pytest.raises(ValueError, match="the corpus ended in step 2 of 2"):
        train_on_documents(clone_model(untrained), short, MICRO)
    with pytest.raises(ValueError, match="piece ' zebra' is outside the vocabulary"):
        encode_documents(untrained, [("Q: 1 zebra A:", " \\boxed{1}")])


def test_pretraining_writes_an_ordinary_folder_with_its_card_and_its_whole_configuration(tmp_path: Path) -> None:
    seen: list[int] = []
    folder = pretrain(MICRO, tmp_path / "base", lambda step, steps, loss: seen.append(step))
    again = pretrain(MICRO, tmp_path / "again")
    base = load_language_model(str(folder))
    assert seen == [1, 2]
    assert weights_hash(base.model) == weights_hash(load_language_model(str(again)).model)
    assert (folder / "README.md").read_text() == (again / "README.md").read_text()
    record = json.loads((folder / "pretraining.json").read_text())
    assert build_config(PretrainConfig, record["pretraining"]) == MICRO
    measured = family_figures(base, problems=1, samples=1, unsolved_samples=1, seed=MICRO.seed)
    assert {family: asdict(row) for family, row in measured.items()} == record["figures"]
    assert (
        set(record["corpus"]["families"])
        == set(record["figures"])
        == {f for t in EMBEDDED_TASKS for f in load_task(t).families}
    )


def test_the_reduced_preset_is_the_tiny_model_with_less_training() -> None:
    assert PRESETS["reduced"].steps < PRESETS["tiny"].steps
    tiny = PRESETS["tiny"]
    coarse = {"figure_problems": tiny.figure_problems, "figure_unsolved_samples": tiny.figure_unsolved_samples}
    assert replace(PRESETS["reduced"], steps=tiny.steps, **coarse) == tiny


def test_the_shipped_base_was_made_from_the_shipped_corpus_with_the_tiny_preset() -> None:
    record = json.loads((embedded_folder() / "pretraining.json").read_text(encoding="utf-8"))
    assert build_config(PretrainConfig, record["pretraining"]) == PRESETS["tiny"]
    assert build_config(CorpusConfig, record["corpus"]) == load_corpus_config()
