"""Loading and saving causal language models as ordinary Hugging Face folders."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bsharp.config import EMBEDDED_MODEL, ConfigError
from bsharp.models.tiny import embedded_folder

# A bar for every folder read or written would bury the progress of the run.
transformers_logging.disable_progress_bar()

__all__ = ["LanguageModel", "clone_model", "load_language_model", "save_language_model", "weights_hash"]


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM that transformers can load, and its tokenizer. The engine knows nothing more about a model."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]  # every id that ends a response; Llama and Qwen have several
    pad_token_id: int  # may equal an EOS id: masks come from lengths, never from this value
    name: str

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with a BOS token where the tokenizer itself adds one."""
        return list(self.tokenizer.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def load_language_model(name_or_path: str, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """A model from the hub or from a local folder, in eval mode; `embedded:tiny` is the one inside the package.

    Only safetensors are read and no code of the model's repository is run. Raises ConfigError where nothing can be
    loaded, saying what was tried.
    """
    path = str(embedded_folder()) if name_or_path == EMBEDDED_MODEL else os.path.expanduser(name_or_path)
    # A hub name is `name` or `owner/name`: anything else can only be a folder.
    if not Path(path).exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ConfigError(
            f"model = {name_or_path!r}: there is no such folder; check the path, or give a hub name owner/name"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # a folder from elsewhere may be broken in any way; it must cost one line
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        kind = "the local folder" if Path(path).exists() else "the Hugging Face hub or a local folder"
        raise ConfigError(
            f"model = {name_or_path!r} could not be loaded from {kind}: {reason} "
            f"Pass a folder with config.json, tokenizer and *.safetensors, a hub name you have access to "
            f"(gated models need a login), or {EMBEDDED_MODEL}"
        ) from None
    eos_token_ids = _eos_token_ids(model, tokenizer)
    if not eos_token_ids:
        raise ConfigError(
            f"model = {name_or_path!r} names no EOS token in generation_config, config or tokenizer; "
            "set eos_token_id in its generation_config.json, or no response could ever end"
        )
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_token_ids[0]
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"device = {device!r} cannot be used: {reason}; choose cpu, or a device torch sees") from None
    return LanguageModel(model.eval(), tokenizer, eos_token_ids, int(pad_token_id), name_or_path)


def save_language_model(language_model: LanguageModel, folder: str | Path) -> None:
    """Write model and tokenizer as an ordinary folder that `load_language_model` and transformers read back."""
    language_model.model.save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)


def clone_model(language_model: LanguageModel) -> LanguageModel:
    """An independent copy with its own weights, on the same device."""
    return LanguageModel(
        copy.deepcopy(language_model.model),
        language_model.tokenizer,
        language_model.eos_token_ids,
        language_model.pad_token_id,
        language_model.name,
    )


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all weights: what binds a run to its base (16 hex digits)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All EOS ids, from the generation config, the model config and the tokenizer, without repeats, in that order."""
    found: list[int] = []
    for ids in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        found += [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return tuple(dict.fromkeys(found))
