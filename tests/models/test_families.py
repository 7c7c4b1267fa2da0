"""Four families, with their own architecture code: real configurations on the meta device, reduced ones as real folders."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import jinja2
import pytest
import torch
from model_families import FAMILIES, chat_template, full_config, make_folder, reduced_config, special_token_ids
from transformers import AutoModelForCausalLM

from bsharp.config import ChatConfig
from bsharp.models.loading import LanguageModel, load_language_model

PUBLISHED = {
    "llama3_2": (3_212_749_824, 28, 3072, 128_256, "LlamaForCausalLM"),
    "qwen2_5": (3_085_938_688, 36, 2048, 151_936, "Qwen2ForCausalLM"),
    "qwen3": (4_022_468_096, 36, 2560, 151_936, "Qwen3ForCausalLM"),
    "gemma3": (999_885_952, 26, 1152, 262_144, "Gemma3ForCausalLM"),
}
QUERIES = {"llama3_2": (24 * 128, 8 * 128), "qwen2_5": (16 * 128, 2 * 128), "qwen3": (32 * 128, 8 * 128)} | {
    "gemma3": (4 * 256, 256)
}
TEXTS = (
    "Janet's ducks lay 16 eggs per day. How much is 3 × $2.50?",
    "  two  spaces,\n\ta tab,\n\nand a trailing blank ",
    "naïve Ωμέγα 12345 → ∞ 🙂",
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LanguageModel:
    return load_language_model(str(folder))


def test_the_full_size_model_has_the_published_parameters_names_and_shapes(family: str) -> None:
    count, layers, width, vocabulary, architecture = PUBLISHED[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(full_config(family))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert type(model).__name__ == architecture
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shapes["model.embed_tokens.weight"] == (vocabulary, width)
    assert len({name.split(".")[2] for name in shapes if name.startswith("model.layers.")}) == layers
    queries, keys = QUERIES[family]
    attention = "model.layers.0.self_attn."
    assert shapes[attention + "q_proj.weight"] == (queries, width)
    assert shapes[attention + "k_proj.weight"] == shapes[attention + "v_proj.weight"] == (keys, width)
    assert (attention + "q_proj.bias" in shapes) == (family == "qwen2_5")
    assert (attention + "q_norm.weight" in shapes) == (family in ("qwen3", "gemma3"))


def test_the_reduced_configuration_differs_from_the_real_one_in_sizes_and_token_ids_only(family: str) -> None:
    full, reduced = full_config(family).to_dict(), reduced_config(family).to_dict()
    sizes = {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "head_dim"}
    sizes |= {"num_key_value_heads", "query_pre_attn_scalar", "layer_types", "dtype"}
    sizes |= {"sliding_window"} if family == "gemma3" else set()
    ids = {"bos_token_id", "eos_token_id", "pad_token_id"}
    differing = {name for name in full | reduced if full.get(name) != reduced.get(name)}
    assert differing <= sizes | ids
    assert set(full["layer_types"] or []) == set(reduced["layer_types"] or []) if "layer_types" in full else True
    assert reduced["num_attention_heads"] > reduced["num_key_value_heads"]
    # The families that name several EOS ids in config.json do so here.
    assert isinstance(full["eos_token_id"], list) == isinstance(reduced["eos_token_id"], list)


def test_every_eos_id_is_found_and_the_pad_id_has_an_embedding(family: str, loaded: LanguageModel) -> None:
    ids = special_token_ids(family)
    expected = {
        "llama3_2": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        "qwen2_5": ("<|im_end|>", "<|endoftext|>"),
        "qwen3": ("<|im_end|>", "<|endoftext|>"),
        "gemma3": ("<eos>", "<end_of_turn>"),
    }[family]
    assert set(loaded.eos_token_ids) == {ids[token] for token in expected}
    assert len(loaded.eos_token_ids) == len(expected)
    pad = {"llama3_2": "<|finetune_right_pad_id|>", "gemma3": "<pad>"}.get(family, "<|endoftext|>")
    assert loaded.pad_token_id == ids[pad]
    # Qwen pads with a token that also ends a response; Llama names none, and gets one that does not.
    assert (loaded.pad_token_id in loaded.eos_token_ids) == family.startswith("qwen")


def test_a_prompt_is_the_template_rendered_by_jinja_and_tokenised_once(family: str, loaded: LanguageModel) -> None:
    bos = {"llama3_2": "<|begin_of_text|>", "gemma3": "<bos>"}.get(family)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = lambda message: (_ for _ in ()).throw(ValueError(message))
    template = environment.from_string(chat_template(family))
    for text in TEXTS:
        written = template.render(
            messages=[{"role": "user", "content": text}],
            add_generation_prompt=True,
            bos_token=bos or "",
            date_string="26 Jul 2024",
        )
        ids = loaded.encode(text)
        assert ids == loaded.tokenizer.encode(written, add_special_tokens=False)
        assert loaded.tokenizer.decode(ids) == written
        assert text.strip() in written  # a template may strip the text, and loses nothing else
        if bos is not None:
            beginning = special_token_ids(family)[bos]
            assert ids[0] == beginning
            assert ids.count(beginning) == 1


def test_a_control_token_in_a_problem_is_text_and_ends_no_turn(family: str, loaded: LanguageModel) -> None:
    control = set(special_token_ids(family).values())
    counts = []
    for token in ("", *special_token_ids(family)):
        ids = loaded.encode(f"What is {token} 2 + 2?")
        counts.append(sum(token_id in control for token_id in ids))
        assert f"What is {token} 2 + 2?" in loaded.tokenizer.decode(ids)
    assert set(counts) == {counts[0]}


def test_decoding_the_encoding_of_plain_text_gives_the_text(family: str, folder: Path) -> None:
    plain = load_language_model(str(folder), chat=ChatConfig(template="never"))
    for text in TEXTS:
        ids = plain.encode(text)
        assert plain.decode(ids) == text
        begins = family in ("llama3_2", "gemma3")
        assert len(set(ids[:1]) & set(special_token_ids(family).values())) == begins


def test_every_id_that_can_be_sampled_decodes(loaded: LanguageModel) -> None:
    # Qwen's output layer has more rows than its tokenizer has tokens.
    assert loaded.decode(range(loaded.vocab_size))
    for token_id in loaded.eos_token_ids:
        assert loaded.decode([token_id]) == ""


def test_the_prompt_does_not_change_with_the_date(family: str, loaded: LanguageModel) -> None:
    today = datetime.now().strftime("%d %b %Y")
    templates = (ChatConfig(), ChatConfig(arguments={}))
    for written in (loaded.tokenizer.decode(replace(loaded, chat=chat).encode("1 + 1 = ?")) for chat in templates):
        assert today not in written
        assert ("Today Date: 26 Jul 2024" in written) == (family == "llama3_2")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_type_asked_for_whatever_the_file_has(
    family: str, folder: Path, dtype: str, tmp_path: Path
) -> None:
    stored = make_folder(family, tmp_path, dtype="bfloat16")
    for source in (folder, stored):
        model = load_language_model(str(source), dtype).model
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    first, second = load_language_model(str(folder), dtype).model, load_language_model(str(stored), dtype).model
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other.to(torch.bfloat16))


def test_the_distribution_of_a_reduced_model_is_neither_uniform_nor_certain(loaded: LanguageModel) -> None:
    with torch.no_grad(), loaded.ready():
        logprobs = loaded.model(input_ids=torch.tensor([loaded.encode(TEXTS[0])])).logits[0].log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
    assert 1.0 < float(entropy) < 5.5  # uniform would be log 512 = 6.2 nats
