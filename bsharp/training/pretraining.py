"""Pretraining of the tiny base from nothing: documents in, an ordinary Hugging Face folder out.

Where this departs from the textbook: the loss covers responses only (EOS included), since the numbers of a prompt
cannot be predicted; every document weighs the same whatever its length; matrices are trained by Muon, the rest by AdamW; and
there is no second epoch, because the corpus is an endless stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bsharp.config import PRETRAIN_PRESETS as PRESETS
from bsharp.config import OptimizerConfig, PretrainConfig, as_dict
from bsharp.masking import pad_right
from bsharp.models.loading import LanguageModel
from bsharp.models.tiny import build_model, build_tokenizer, parameter_count, round_weights, save_folder
from bsharp.seeding import stream_seed
from bsharp.tasks.corpus import documents, load_corpus_config, pieces, vocabulary
from bsharp.training.base_card import family_figures, model_card
from bsharp.training.optimizer import learning_rate_factor

__all__ = [
    "PRESETS",
    "PretrainConfig",
    "document_loss",
    "encode_documents",
    "new_language_model",
    "pretrain",
    "train_on_documents",
]

EncodedDocument = tuple[list[int], list[int]]
"""Token ids of a prompt and of its response with EOS."""
Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, mean loss of the batch in nats per document)."""


LOSS_SCALE = 20.0  # tokens; a constant, about the mean response length, so that the clip norm has its usual meaning


def pretrain(config: PretrainConfig, out: str | Path, on_progress: Progress | None = None) -> Path:
    """Make a base model from nothing and write it to the folder `out`; returns the folder.

    Deterministic: the same config gives the same weights bit for bit on one machine. Writes the ordinary Hugging Face
    files, README.md as a model card, and `pretraining.json`: the resolved config, the corpus mixture and the figures.
    """
    corpus = load_corpus_config(config.corpus)
    language_model = new_language_model(config, vocabulary(corpus))
    stream = ((document.prompt, document.response) for document in documents(corpus, config.seed))
    train_on_documents(language_model, stream, config, on_progress)
    round_weights(language_model.model)  # what is measured below is what the fp16 folder holds
    with _threads(config.threads):
        figures = family_figures(
            language_model, config.figure_problems, config.figure_samples, config.figure_unsolved_samples, config.seed
        )
    parameters = parameter_count(language_model.model)
    settings = as_dict(config)
    card = model_card(parameters, settings, corpus, figures)
    folder = save_folder(language_model.model, language_model.tokenizer, out, card)
    record = {
        "parameters": parameters,
        "pretraining": settings,
        "corpus": as_dict(corpus),
        "figures": {family: asdict(row) for family, row in figures.items()},
    }
    (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return folder


def new_language_model(config: PretrainConfig, vocabulary: Sequence[str]) -> LanguageModel:
    """An untrained model with a tokenizer over `vocabulary`; its weights follow from `config.seed` alone."""
    tokenizer = build_tokenizer(vocabulary)
    model = build_model(config.architecture, tokenizer, stream_seed(config.seed, "pretraining/weights"))
    return LanguageModel(model, tokenizer, (tokenizer.eos_token_id,), tokenizer.pad_token_id, config.architecture)


def train_on_documents(
    language_model: LanguageModel,
    stream: Iterator[tuple[str, str]],
    config: PretrainConfig,
    on_progress: Progress | None = None,
) -> list[float]:
    """Train the model in place on `config.steps` batches of (prompt, response) texts; returns the loss of every step.

    The loss of a step is the mean over its documents of the summed negative log-likelihood of the response, in nats.
    Raises ValueError where the stream ends early.
    """
    schedule = OptimizerConfig(warmup_steps=config.warmup_steps, schedule="cosine")
    optimizers = _optimizers(language_model, config)
    losses: list[float] = []
    batches = _batches(language_model, stream, config)
    model = language_model.model
    with _threads(config.threads):
        model.train()
        for step in range(1, config.steps + 1):
            factor = learning_rate_factor(step, config.steps, schedule)
            for optimizer, peak in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = peak * factor
            losses.append(_step(language_model, next(batches), config))
            for optimizer, _ in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if on_progress is not None:
                on_progress(step, config.steps, losses[-1])
        model.eval()
    return losses


def document_loss(language_model: LanguageModel, batch: Sequence[EncodedDocument]) -> Tensor:
    """Sum over documents of -log p(response, EOS | prompt), in nats; a scalar.

    A token sum, never a token mean: divided by a constant and the number of documents it gives every document the same
    weight, where a token mean over batches of equal length would weigh a document by 1 / length.
    """
    # Causal attention never looks right, so padding on the right needs no attention mask.
    token_ids, _ = pad_right([prompt + response for prompt, response in batch], 0)
    positions = torch.arange(token_ids.shape[1] - 1)
    starts = torch.tensor([len(prompt) - 1 for prompt, _ in batch])
    ends = torch.tensor([len(prompt) + len(response) - 1 for prompt, response in batch])
    predicts_response = (positions >= starts[:, None]) & (positions < ends[:, None])
    model = language_model.model
    hidden = model.get_decoder()(input_ids=token_ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[predicts_response])
    return cross_entropy(logits, token_ids[:, 1:][predicts_response], reduction="sum")


def encode_documents(language_model: LanguageModel, texts: Sequence[tuple[str, str]]) -> list[EncodedDocument]:
    """Token ids of (prompt, response) texts, cut separately as in sampling, with EOS after each response.

    The same ids as the tokenizer's, looked up piece by piece because a call of it costs eight times as much. Raises
    ValueError for a piece outside the vocabulary.
    """
    ids = language_model.tokenizer.get_vocab()
    (eos,) = language_model.eos_token_ids
    try:
        return [
            ([ids[piece] for piece in pieces(prompt)], [*(ids[piece] for piece in pieces(response)), eos])
            for prompt, response in texts
        ]
    except KeyError as error:
        raise ValueError(f"piece {error} is outside the vocabulary; build the tokenizer from this corpus") from None


def _step(language_model: LanguageModel, batch: Sequence[EncodedDocument], config: PretrainConfig) -> float:
    """One accumulated and clipped gradient; returns the mean loss in nats per document."""
    # Sorting inside the step saves padding and biases nothing: the gradient is the same sum in another order.
    ordered = sorted(batch, key=lambda document: len(document[0]) + len(document[1]))
    total = 0.0
    for start in range(0, len(ordered), config.microbatch_documents):
        loss = document_loss(language_model, ordered[start : start + config.microbatch_documents])
        torch.autograd.backward(loss / (len(ordered) * LOSS_SCALE))
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(language_model.model.parameters(), config.max_grad_norm)
    return total / len(ordered)


def _batches(
    language_model: LanguageModel, stream: Iterator[tuple[str, str]], config: PretrainConfig
) -> Iterator[list[EncodedDocument]]:
    """The batches of the steps."""
    for step in range(config.steps):
        texts = list(islice(stream, config.documents_per_step))
        if len(texts) < config.documents_per_step:
            raise ValueError(f"the corpus ended in step {step + 1} of {config.steps}; give more or train less")
        yield encode_documents(language_model, texts)


def _optimizers(language_model: LanguageModel, config: PretrainConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms, each with its peak rate."""
    model = language_model.model
    embedding = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embedding]
    others = [p for p in model.parameters() if p.ndim != 2 or id(p) in embedding]
    return [
        (torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=0.0), config.matrix_learning_rate),
        (
            torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
            config.learning_rate,
        ),
    ]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """`count` torch threads inside, what it was before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
