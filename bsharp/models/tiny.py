"""The tiny base: a word-level tokenizer, a small Qwen3 in three sizes, and an ordinary Hugging Face folder around them.

Nothing here is special to the engine: `AutoModelForCausalLM` and `AutoTokenizer` read the folder back like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

__all__ = [
    "ARCHITECTURES",
    "EOS_TOKEN",
    "PAD_TOKEN",
    "UNKNOWN_TOKEN",
    "build_model",
    "build_tokenizer",
    "embedded_folder",
    "parameter_count",
    "round_weights",
    "save_folder",
]

PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN = "<pad>", "<eos>", "<unk>"
PIECE_PATTERN = r" ?[^\s\d]+|\d| "
"""A word or run of symbols with the space before it, one digit, or a lone space."""
VOCABULARY_MULTIPLE = 16
CONTEXT_TOKENS = 256

ARCHITECTURES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "tiny": {
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 256,
        },
        "small": {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "intermediate_size": 512,
        },
    }
)
"""Sizes by name: tiny has about 0.45 million parameters, small about 2.4 million."""


def build_tokenizer(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `pieces` for which decode(encode(text)) == text wherever every piece is known.

    Text is cut by PIECE_PATTERN, so a number costs one token per digit and a space before a word costs nothing. Ids:
    <pad> = 0, <eos> = 1, <unk> = 2, then the pieces in sorted order, then reserved ids up to a multiple of 16. An
    unknown piece becomes <unk>. No BOS, and encode adds no EOS. Raises ValueError for an empty or impossible list.
    """
    distinct = sorted(set(pieces))
    if not distinct:
        raise ValueError("build_tokenizer needs at least one piece, got none; pass the corpus vocabulary")
    splitter = pre_tokenizers.Split(Regex(PIECE_PATTERN), behavior="isolated")
    for piece in distinct:
        if [part for part, _ in splitter.pre_tokenize_str(piece)] != [piece]:
            raise ValueError(f"{piece!r} can never be a token: text is cut by {PIECE_PATTERN!r}; cut pieces likewise")
    special = [PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN]
    missing = -(len(special) + len(distinct)) % VOCABULARY_MULTIPLE
    # Reserved names keep len(tokenizer) equal to the model's padded vocabulary: every id that can be sampled decodes.
    reserved = [f"<reserved_{index}>" for index in range(missing)]
    vocabulary = {token: index for index, token in enumerate([*special, *distinct, *reserved])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        extra_special_tokens=reserved,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
        padding_side="left",
    )


def build_model(architecture: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3ForCausalLM with tied embeddings, in fp32 and eval mode.

    `architecture` is a key of ARCHITECTURES. The same seed gives the same weights; the global random state of torch is
    left as it was.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **ARCHITECTURES[architecture],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return model.float().eval()


def parameter_count(model: torch.nn.Module) -> int:
    """Number of distinct parameters; tied embeddings count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def round_weights(model: torch.nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Round the parameters in place to what `dtype` can hold; their own type stays, so this is what a folder gives back.

    Not `model.to(dtype)` and back: that would round the rotary frequencies too, which no folder holds.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))


def save_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    path: str | Path,
    card: str,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write an ordinary Hugging Face folder: config, safetensors in `dtype`, generation config, tokenizer, README.md.

    The model handed in keeps its own type; only what is written is rounded.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    rounded = copy.deepcopy(model).to(dtype)
    rounded.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
    )
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes files that other users of a shared installation could not read
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def embedded_folder(preset: str = "tiny") -> Path:
    """The folder of a base that is shipped inside the package. Raises ValueError for one that is not."""
    shipped = Path(str(files("bsharp.models") / "data"))
    folder = shipped / preset
    if not (folder / "config.json").is_file():
        known = sorted(entry.parent.name for entry in shipped.glob("*/config.json"))
        raise ValueError(f"no embedded model {preset!r}; shipped: {', '.join(known)}; `bsharp pretrain` makes others")
    return folder
