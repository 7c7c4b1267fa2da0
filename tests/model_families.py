"""Folders as the hub would serve them, for four families: the real configuration with less width and depth, random
weights, a byte-level BPE trained here, the family's special tokens, EOS ids, generation settings and chat template.

What differs from the real ones, beside size: the BPE has a few hundred pieces, and Gemma's own is not byte-level.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from public_data import data_dir
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

__all__ = [
    "FAMILIES",
    "chat_template",
    "full_config",
    "make_folder",
    "reduced_config",
    "special_token_ids",
]


@dataclass(frozen=True)
class Family:
    """One family: its real figures, and what of them is made smaller."""

    template: str  # file of trl/chat_templates
    config_class: type[PretrainedConfig]
    full: dict[str, Any]
    reduced: dict[str, Any]
    specials: tuple[str, ...]  # special tokens, in order of their ids
    eos: tuple[str, ...]  # every token that ends a response, in the order of the real generation_config.json
    tokenizer_eos: str  # the one that the tokenizer names
    generation: dict[str, Any]  # sampling settings that the real folder ships
    bos: str | None = None
    pad: str | None = None
    specials_first: bool = False  # Gemma: ids 0, 1, …; the others: behind the vocabulary
    unused: int = 0  # rows of the embedding that belong to no token, as Qwen's have
    full_ids: dict[str, Any] = field(default_factory=dict)


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_IDS = {"bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": 151643}

_FAMILIES = {
    "llama3_2": Family(
        template="llama3_2",
        config_class=LlamaConfig,
        full={
            "vocab_size": 128_256,
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "intermediate_size": 8192,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _LLAMA3_ROPE,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
        },
        reduced={
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
        specials=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ),
        eos=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        tokenizer_eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        full_ids={"bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009], "pad_token_id": None},
    ),
    "qwen2_5": Family(
        template="qwen2_5",
        config_class=Qwen2Config,
        full={
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "intermediate_size": 11_008,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "use_sliding_window": False,
            "sliding_window": 32_768,
            "max_window_layers": 70,
            "tie_word_embeddings": True,
        },
        reduced={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
        },
        specials=_QWEN_SPECIALS,
        eos=("<|im_end|>", "<|endoftext|>"),
        tokenizer_eos="<|im_end|>",
        pad="<|endoftext|>",
        unused=5,
        generation={"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
        full_ids=_QWEN_IDS,
    ),
    "qwen3": Family(
        template="qwen3_instruct_2507",
        config_class=Qwen3Config,
        full={
            "vocab_size": 151_936,
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "intermediate_size": 9728,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262_144,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0},
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 36,
            "tie_word_embeddings": True,
        },
        reduced={
            "hidden_size": 40,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
        specials=_QWEN_SPECIALS,
        eos=("<|im_end|>", "<|endoftext|>"),
        tokenizer_eos="<|im_end|>",
        pad="<|endoftext|>",
        unused=5,
        generation={"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        full_ids=_QWEN_IDS,
    ),
    "gemma3": Family(
        template="gemma3",
        config_class=Gemma3TextConfig,
        full={
            "vocab_size": 262_144,
            "hidden_size": 1152,
            "num_hidden_layers": 26,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "sliding_window": 512,
            "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(26)],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            },
            "tie_word_embeddings": True,
        },
        reduced={
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,  # shorter than the tests' prompts, so that the window closes
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        specials=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        specials_first=True,
        eos=("<eos>", "<end_of_turn>"),
        tokenizer_eos="<eos>",
        bos="<bos>",
        pad="<pad>",
        generation={"do_sample": True, "top_k": 64, "top_p": 0.95},
        full_ids={"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0},
    ),
}

FAMILIES = tuple(_FAMILIES)


def full_config(name: str) -> PretrainedConfig:
    """The configuration of Llama-3.2-3B-Instruct, Qwen2.5-3B-Instruct, Qwen3-4B-Instruct-2507 or gemma-3-1b-it."""
    family = _FAMILIES[name]
    return family.config_class(**family.full, **family.full_ids, dtype="bfloat16")


def reduced_config(name: str, vocab_size: int = 512, **changes: Any) -> PretrainedConfig:
    """The same architecture with two or three narrow layers; the token ids are those of `make_folder`'s tokenizer."""
    family, ids = _FAMILIES[name], special_token_ids(name, vocab_size)
    eos = [ids[token] for token in family.eos]
    return family.config_class(
        **family.full
        | family.reduced
        | {
            "vocab_size": vocab_size,
            "bos_token_id": None if family.bos is None else ids[family.bos],
            # Qwen's config names one EOS id, its generation_config both.
            "eos_token_id": eos[0] if family.unused else eos,
            "pad_token_id": None if family.pad is None else ids[family.pad],
        }
        | changes
    )


def special_token_ids(name: str, vocab_size: int = 512) -> dict[str, int]:
    """Ids of the special tokens in a folder of `make_folder`."""
    family = _FAMILIES[name]
    start = 0 if family.specials_first else vocab_size - family.unused - len(family.specials)
    return {token: start + index for index, token in enumerate(family.specials)}


def chat_template(name: str) -> str:
    """The family's chat template. trl is only looked up, not imported: that takes seconds."""
    package = importlib.util.find_spec("trl")
    assert package is not None, "install trl: it has the chat templates"
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{_FAMILIES[name].template}.jinja").read_text(encoding="utf-8")


def make_folder(
    name: str, path: str | Path, vocab_size: int = 512, seed: int = 0, dtype: str = "float32", **changes: Any
) -> Path:
    """An ordinary Hugging Face folder of the family at `path`; `changes` go into the configuration.

    Weights are random, the same for the same seed, and spread so that the distribution of the next token is far from
    uniform and from certain; norms and biases too differ from their initial values.
    """
    folder, family = Path(path), _FAMILIES[name]
    config = reduced_config(name, vocab_size, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                noise = torch.randn_like(parameter)
                if parameter.ndim == 1:
                    # Gemma multiplies embeddings by √width: without louder blocks it would only repeat its last token.
                    parameter += 0.2 * noise + (3.0 if name == "gemma3" and ".post_" in parameter_name else 0.0)
                elif "embed" in parameter_name:
                    parameter.copy_(0.35 * noise)
                else:
                    parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)
    ids = special_token_ids(name, vocab_size)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[ids[token] for token in family.eos],
        pad_token_id=config.pad_token_id,
        **family.generation,
    )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    _tokenizer(name, vocab_size).save_pretrained(folder)
    return folder


def _tokenizer(name: str, vocab_size: int) -> PreTrainedTokenizerFast | Qwen2Tokenizer:
    family, ids = _FAMILIES[name], special_token_ids(name, vocab_size)
    pieces, merges = _bpe(vocab_size - family.unused - len(family.specials), digits=1 if family.unused else 3)
    shift = len(family.specials) if family.specials_first else 0
    vocabulary = {piece: index + shift for index, piece in enumerate(pieces)} | ids
    names = {"eos_token": family.tokenizer_eos, "pad_token": family.pad, "bos_token": family.bos}
    names = {role: token for role, token in names.items() if token is not None}
    others = [token for token in family.specials if token not in names.values()]
    common: dict[str, Any] = names | {
        "extra_special_tokens": others,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(name),
        "model_max_length": 131_072,
    }
    if family.config_class in (Qwen2Config, Qwen3Config):
        return Qwen2Tokenizer(vocab=vocabulary, merges=merges, **common)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = _splitter(3)
    backend.decoder = decoders.ByteLevel()
    assert family.bos is not None
    backend.post_processor = processors.TemplateProcessing(
        single=f"{family.bos} $A", special_tokens=[(family.bos, ids[family.bos])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **common)


def _splitter(digits: int) -> pre_tokenizers.PreTokenizer:
    """Words with the space before them, runs of up to `digits` digits, runs of other signs."""
    pattern = Regex(rf" ?\p{{L}}+|\p{{N}}{{1,{digits}}}| ?[^\s\p{{L}}\p{{N}}]+|\s+")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@functools.cache
def _bpe(size: int, digits: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces in the order of their ids and merges of a byte-level BPE trained on `_corpus`."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _splitter(digits)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(_corpus(), trainer)
    learned = json.loads(backend.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    assert len(pieces) == size, f"the corpus gives {len(pieces)} pieces, fewer than {size}"
    return pieces, [tuple(merge) for merge in learned["merges"]]


@functools.cache
def _corpus() -> tuple[str, ...]:
    """Questions and answers of GSM8K where it is there, else bsharp's own problems and this file: they have few words."""
    folder = data_dir()
    file = folder / "gsm8k" / "train.jsonl" if folder else None
    if file is not None and file.is_file():
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(400), strict=False)]
        return tuple(f"{row['question']}\n{row['answer']}" for row in rows)
    from bsharp.tasks import load_task  # only where it is needed

    tasks = [load_task(name) for name in ("math_mini", "gsm8k_lite")]
    prompts = (task.prompt(problem) for task in tasks for problem in task.problems("train", 400, seed=0))
    return (*prompts, Path(__file__).read_text(encoding="utf-8"))
