"""The tiny base: its tokenizer loses nothing, its folder is an ordinary one, and the shipped one is as described."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from bsharp.models.loading import load_language_model
from bsharp.models.tiny import (
    ARCHITECTURES,
    PIECE_PATTERN,
    build_model,
    build_tokenizer,
    embedded_folder,
    parameter_count,
    round_weights,
    save_folder,
)
from bsharp.tasks.corpus import documents, load_corpus_config, vocabulary

PIECES = ["Q:", " A:", " ", "+", "=", ";", " \\boxed{", "}", *"0123456789"]


def test_a_number_costs_one_token_per_digit_and_a_word_takes_its_space_with_it() -> None:
    tokenizer = build_tokenizer(PIECES)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("Q: 34+5= A: \\boxed{39}"))
    assert tokens == ["Q:", " ", "3", "4", "+", "5", "=", " A:", " \\boxed{", "3", "9", "}"]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_decoding_the_encoding_of_known_pieces_gives_the_text(text: str) -> None:
    known = all(piece in PIECES for piece in re.findall(PIECE_PATTERN, text))
    tokenizer = build_tokenizer(PIECES)
    ids = tokenizer.encode(text)
    assert (tokenizer.decode(ids) == text) == known
    assert (tokenizer.unk_token_id in ids) != known


def test_every_text_of_the_corpus_survives_the_tokenizer_of_the_corpus() -> None:
    corpus = load_corpus_config()
    tokenizer = build_tokenizer(vocabulary(corpus))
    stream = documents(corpus, seed=7)
    texts = [text for document in (next(stream) for _ in range(3000)) for text in (document.prompt, document.response)]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(encoded) == texts
    assert all(tokenizer.unk_token_id not in ids for ids in encoded)


def test_every_id_the_model_can_sample_has_a_token_and_reserved_ones_are_skipped_in_text() -> None:
    tokenizer = build_tokenizer(PIECES)
    model = build_model("tiny", tokenizer, seed=0)
    assert model.config.vocab_size == len(tokenizer) == 32
    assert tokenizer.decode(list(range(len(tokenizer))), skip_special_tokens=True) == "".join(sorted(PIECES))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize(("pieces", "message"), [([], "at least one piece"), (["12"], "can never be a token")])
def test_pieces_that_the_cut_cannot_produce_are_refused(pieces: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tokenizer(pieces)


def test_the_seed_alone_decides_the_initial_weights_and_the_global_random_state_is_untouched() -> None:
    tokenizer = build_tokenizer(PIECES)
    state = torch.random.get_rng_state()
    first, again, other = (build_model("tiny", tokenizer, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_the_larger_architecture_has_at_most_five_million_parameters() -> None:
    tokenizer = build_tokenizer(vocabulary(load_corpus_config()))
    assert parameter_count(build_model("small", tokenizer, seed=0)) <= 5_000_000
    with pytest.raises(ValueError, match="unknown architecture 'huge'; known: tiny, small"):
        build_model("huge", tokenizer, seed=0)


def test_a_saved_folder_gives_the_logits_of_the_weights_rounded_to_fp16(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(PIECES)
    model = build_model("tiny", tokenizer, seed=0)
    kept = copy.deepcopy(model.state_dict())
    folder = save_folder(model, tokenizer, tmp_path / "base", card="# a card\n")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    token_ids = torch.tensor([AutoTokenizer.from_pretrained(folder).encode("Q: 34+5= A: \\boxed{39}")])
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    with torch.inference_mode():
        exact = model(token_ids).logits
        round_weights(model)
        assert torch.equal(loaded(token_ids).logits, model(token_ids).logits)
        assert not torch.equal(loaded(token_ids).logits, exact)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert loaded.generation_config.pad_token_id == tokenizer.pad_token_id
    assert (folder / "README.md").read_text() == "# a card\n"
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_a_base_that_is_not_shipped_is_refused_with_the_ones_that_are() -> None:
    with pytest.raises(ValueError, match=r"no embedded model 'small'; shipped: tiny; `bsharp pretrain`"):
        embedded_folder("small")


def test_the_shipped_base_is_an_ordinary_folder_of_at_most_two_megabytes_that_knows_its_corpus() -> None:
    folder = embedded_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    base = load_language_model("embedded:tiny")
    assert base.eos_token_ids == (base.tokenizer.eos_token_id,)
    assert base.pad_token_id != base.tokenizer.eos_token_id
    assert set(vocabulary(load_corpus_config())) <= set(base.tokenizer.get_vocab())
    assert ARCHITECTURES["tiny"]["hidden_size"] == base.model.config.hidden_size


def test_the_card_of_the_shipped_base_states_its_parameter_count() -> None:
    folder = embedded_folder()
    base = load_language_model("embedded:tiny")
    record = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    assert record["parameters"] == parameter_count(base.model)
    assert f"{record['parameters']:,} parameters" in (folder / "README.md").read_text(encoding="utf-8")
