"""Loading and saving causal language models as ordinary Hugging Face folders."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from bsharp.config import ChatConfig, ConfigError
from bsharp.models.chat import check_chat, encode_prompt
from bsharp.models.placement import adapters_switched, brought_to, has_adapter, peft_without_warnings
from bsharp.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Source, cannot_be_had, find_source, first_line

# A bar for every folder read or written would bury the progress of the run.
transformers_logging.disable_progress_bar()

__all__ = ["LanguageModel", "clone_model", "load_language_model", "save_language_model", "weights_hash"]

MAX_ENCODED = 65_536
"""Prompts whose token ids are kept: rollouts and evaluations ask for the same ones again and again."""
ONE_FILE = 2**62
"""Bytes up to which weights are saved in one file; transformers would begin a second one after 50 GB."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal LM that transformers can load, and its tokenizer. The engine knows nothing more about a model.

    It is run inside `ready()` only. With an adapter, base and policy are two of these around one and the same model.
    """

    model: PreTrainedModel  # with an adapter: PEFT's wrapper around it
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]  # every id that ends a response; Llama and Qwen have several
    pad_token_id: int  # may equal an EOS id: masks come from lengths, never from this value
    name: str
    chat: ChatConfig = ChatConfig()
    adapter_disabled: bool = False  # this is the base behind the adapter
    compute_device: str | None = None  # where the model is brought to be run; None: it is run where it rests
    policy_device: str | None = None  # where a policy made from this base trains; None: where it rests
    _encoded: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the model is run, and where its inputs belong."""
        return torch.device(self.compute_device or self.model.device)

    @property
    def vocab_size(self) -> int:
        """Rows of the output layer; a tokenizer may have fewer tokens."""
        return int(self.model.config.get_text_config().vocab_size)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """What every forward pass happens inside: the adapter on or off, as this model asks for, offloaded weights brought.

        Afterwards all is as before. May be entered within itself, and within that of another model around the same weights.
        """
        with ExitStack() as stack:
            if self.compute_device is not None:
                stack.enter_context(brought_to(self.model, torch.device(self.compute_device)))
            if has_adapter(self.model):
                stack.enter_context(adapters_switched(self.model, not self.adapter_disabled))
            yield

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, in the chat template as `chat` says; plain, with BOS where the tokenizer adds one."""
        if text not in self._encoded:
            if len(self._encoded) >= MAX_ENCODED:
                self._encoded.clear()
            self._encoded[text] = tuple(encode_prompt(self.tokenizer, self.chat, text))
        return list(self._encoded[text])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids without special tokens; ids behind the tokenizer's last one have none."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def load_language_model(
    name_or_path: str, dtype: str = "float32", device: str = "cpu", chat: ChatConfig = ChatConfig()
) -> LanguageModel:
    """A model from the hub or from a local folder, in eval mode; `embedded:tiny` is the one inside the package.

    `dtype` is that of the weights, `chat` says how prompts are worded. A folder with adapter_config.json is an adapter: its
    base is loaded from where that file says, and the adapter, in float32 whatever `dtype` is, is switched on. Only safetensors
    are read and no code of the model's repository is run. Where neither tokenizer nor model names a pad token, one of the
    vocabulary that is called …pad… is taken (Llama 3 has <|finetune_right_pad_id|>), else the first EOS id: masks come from
    lengths, so any will do. Raises ConfigError where nothing can be loaded, in one line that says what was tried.
    """
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise ConfigError(f"dtype = {dtype!r} is no floating-point type of torch; choose float32 or bfloat16")
    source = find_source(name_or_path)
    if source.is_adapter:
        return _load_adapter(source, dtype, device, chat)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
        model, loading = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=torch_dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # a folder from elsewhere may be broken in any way; it must cost one line
        raise cannot_be_had(source, error) from None
    if loading["missing_keys"]:  # transformers would fill them with random numbers
        missing = sorted(loading["missing_keys"])
        raise ConfigError(
            f"model = {name_or_path!r} lacks weights, e.g. {missing[0]} ({len(missing)} in all); pass a complete folder"
        )
    check_chat(tokenizer, chat, name_or_path)
    eos_token_ids = _eos_token_ids(model, tokenizer)
    if not eos_token_ids:
        raise ConfigError(
            f"model = {name_or_path!r} names no EOS token in generation_config, config or tokenizer; "
            "set eos_token_id in its generation_config.json, or no response could ever end"
        )
    pad_token_id = _pad_token_id(model, tokenizer, eos_token_ids)
    language_model = LanguageModel(model.eval(), tokenizer, eos_token_ids, pad_token_id, name_or_path, chat)
    return moved_to(language_model, device, "device")


def moved_to(language_model: LanguageModel, device: str, setting: str) -> LanguageModel:
    """The model on another device, its weights in place; ConfigError, naming the setting, where torch cannot use it."""
    try:
        return replace(language_model, model=language_model.model.to(device))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{setting} = {device!r} cannot be used: {first_line(error)}; choose cpu, or a device torch sees"
        ) from None


def save_language_model(language_model: LanguageModel, folder: str | Path) -> None:
    """Write model and tokenizer as an ordinary folder that `load_language_model` and transformers read back.

    All weights are in one file whatever their size: checkpoints are read from model.safetensors.
    Of a model with an adapter only the adapter is written, as PEFT does, with the hub name or absolute path of its base.
    """
    model: Any = language_model.model
    if has_adapter(model):
        # Embeddings do not train; to find out whether they did PEFT would ask the hub.
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder, max_shard_size=ONE_FILE)
    language_model.tokenizer.save_pretrained(folder)


def clone_model(language_model: LanguageModel) -> LanguageModel:
    """An independent copy with its own weights, on the same device."""
    return replace(language_model, model=copy.deepcopy(language_model.model))


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all weights: what binds a run to its base (16 hex digits).

    Attaching an adapter renames the weights of the base: take the hash before `prepare_base`. Of a model with an adapter the
    adapter is part of it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All EOS ids, from the generation config, the model config and the tokenizer, without repeats, in that order."""
    named = (model.generation_config.eos_token_id, getattr(model.config, "eos_token_id", None), tokenizer.eos_token_id)
    rows = int(model.config.get_text_config().vocab_size)  # an id behind them can never be sampled
    return tuple(dict.fromkeys(token_id for ids in named for token_id in _ids(ids) if token_id < rows))


def _ids(ids: int | Sequence[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _pad_token_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Sequence[int]) -> int:
    """The tokenizer's pad id or the model's; else a token made for it; else an EOS id. All must have an embedding."""
    config = model.config.get_text_config()
    named = [tokenizer.pad_token_id, model.generation_config.pad_token_id, getattr(config, "pad_token_id", None)]
    special = [
        token_id
        for token_id, token in sorted(getattr(tokenizer, "added_tokens_decoder", {}).items())
        if token.special and "pad" in str(token).lower() and token_id not in eos_token_ids
    ]
    found = [token_id for token_id in (*named, *special, *eos_token_ids) if token_id is not None]
    return next((int(token_id) for token_id in found if 0 <= token_id < config.vocab_size), 0)


def _load_adapter(source: Source, dtype: str, device: str, chat: ChatConfig) -> LanguageModel:
    """The base that the adapter names, with the adapter around it; its own tokenizer where it brings one."""
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(source.path)
        base_name = str(config.base_model_name_or_path or "")
        if config.peft_type != "LORA":
            raise ValueError(f"it is of type {config.peft_type}; only LoRA is read")
        if not base_name:
            raise ValueError(f"{ADAPTER_CONFIG} names no base (base_model_name_or_path)")
        cached_file(source.path, ADAPTER_WEIGHTS)  # PEFT would also unpickle a *.bin
    except Exception as error:  # as for a model
        raise cannot_be_had(source, error) from None
    try:
        base_source = find_source(base_name)
        if base_source.is_adapter:
            raise ConfigError(f"{base_name!r} is an adapter itself; merge it into its base first")
        base = load_language_model(base_name, dtype, "cpu", chat)
    except ConfigError as error:
        raise ConfigError(
            f"model = {source.name!r} is an adapter whose base cannot be had: {error}; put the base where "
            f"base_model_name_or_path in its {ADAPTER_CONFIG} says, or correct that"
        ) from None
    try:
        with peft_without_warnings():
            model = PeftModel.from_pretrained(base.model, source.path, torch_device="cpu")
    except Exception as error:
        raise cannot_be_had(source, error) from None
    adapted = replace(base, model=model.eval(), name=source.name)
    return moved_to(_with_own_tokenizer(adapted, source), device, "device")


def _with_own_tokenizer(adapted: LanguageModel, source: Source) -> LanguageModel:
    """Training an adapter may have brought another chat template or EOS token along."""
    if not (Path(source.path) / "tokenizer_config.json").is_file():
        return adapted
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    except Exception as error:  # as for a model
        raise cannot_be_had(source, error) from None
    check_chat(tokenizer, adapted.chat, source.name)
    eos_token_ids = tuple(dict.fromkeys((*adapted.eos_token_ids, *_ids(tokenizer.eos_token_id))))
    return replace(adapted, tokenizer=tokenizer, eos_token_ids=eos_token_ids)
