"""Where a model comes from: the package, a local folder, the Hugging Face hub or its cache; and why it cannot be had."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not in its __all__

from bsharp.config import EMBEDDED_MODEL, ConfigError
from bsharp.models.tiny import embedded_folder

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "Source", "cannot_be_had", "find_source", "first_line", "lasting_name"]

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_SECONDS = 10.0  # to find out whether the hub answers: its own retries would take most of a minute
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
WHAT_HELPS = (
    "pass a local folder with config.json, tokenizer and *.safetensors, or a hub name you have access to (a gated model needs "
    "its licence accepted and a login: hf auth login, or HF_TOKEN), or " + EMBEDDED_MODEL
)


@dataclass(frozen=True)
class Source:
    """A place a model can be read from."""

    name: str  # as the user wrote it
    path: str  # what transformers is given
    where: str  # in words
    is_adapter: bool = False


def find_source(name: str) -> Source:
    """The folder, or the model of the hub, that `name` means. Existing folders come first.

    The hub is asked once, for HUB_SECONDS at most; where it does not answer, what lies in the cache is taken. Raises
    ConfigError, in one line that says what was tried, where there is no such folder, where the folder lacks config,
    tokenizer or safetensors, and where the hub does not have or does not give the model.
    """
    if name == EMBEDDED_MODEL:
        return Source(name, str(embedded_folder()), "the package")
    path = Path(os.path.expanduser(name))
    if path.exists():
        return _folder(name, path)
    # A hub name is `name` or `owner/name`: anything else can only be a folder.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"model = {name!r}: there is no such folder; check the path, or give a hub name owner/name")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ConfigError(f"model = {name!r} is neither a folder that exists nor a hub name; {WHAT_HELPS}") from None
    return _of_hub(name)


def lasting_name(name: str) -> str:
    """What an adapter remembers its base by: an absolute path for a folder, also for that of the package; else `name`."""
    if name == EMBEDDED_MODEL:
        return str(embedded_folder())
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.isdir(path) else name


def cannot_be_had(source: Source, error: Exception) -> ConfigError:
    """The one line for a model that was found but could not be loaded."""
    return ConfigError(
        f"model = {source.name!r} could not be loaded from {source.where}: {first_line(error)}; {WHAT_HELPS}"
    )


def first_line(error: Exception) -> str:
    """What an exception says, in one line of at most 300 characters; its type where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:300].rstrip(".:; ")


def _folder(name: str, path: Path) -> Source:
    if not path.is_dir():
        raise ConfigError(
            f"model = {name!r} is a file; pass the folder that holds config.json, tokenizer and *.safetensors"
        )
    if (path / ADAPTER_CONFIG).is_file():
        if not (path / ADAPTER_WEIGHTS).is_file():
            raise ConfigError(f"model = {name!r} is the folder of an adapter without {ADAPTER_WEIGHTS}; save it again")
        return Source(name, str(path), "the local folder", is_adapter=True)
    found = [kind for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") if any(path.glob(kind))]
    if not (path / "config.json").is_file():
        lacks = "no config.json"
    elif not any(path.glob("*.safetensors")):
        lacks = f"no *.safetensors{f', only {found[0]}, which is not read: convert it' if found else ''}"
    elif not any((path / file).is_file() for file in TOKENIZER_FILES):
        lacks = "no tokenizer (tokenizer.json, tokenizer_config.json or the like)"
    else:
        return Source(name, str(path), "the local folder")
    raise ConfigError(
        f"model = {name!r}: the folder has {lacks}; pass one with config.json, tokenizer and *.safetensors"
    )


def _of_hub(name: str) -> Source:
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        info = HfApi().model_info(name, timeout=HUB_SECONDS)
    except RepositoryNotFoundError as error:
        # Of a gated or private model the hub says no more to those who may not see it.
        raise ConfigError(
            f"model = {name!r}: there is no such folder, and the Hugging Face hub has no such model or it is private or gated "
            f"and you have no access ({first_line(error)}); {WHAT_HELPS}"
        ) from None
    except Exception as error:  # no network, no answer in time, a proxy that refuses: what is in the cache may do
        reason = first_line(error)
    else:
        files = {file.rfilename for file in info.siblings or ()}
        return Source(name, name, "the Hugging Face hub", is_adapter=ADAPTER_CONFIG in files)
    for file in (ADAPTER_CONFIG, "config.json"):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):  # its folder is read as one: by the hub name every file would be asked for again
            source = _folder(name, Path(found).parent)
            return replace(source, where=f"the Hugging Face cache (the hub cannot be reached: {reason})")
    raise ConfigError(
        f"model = {name!r} cannot be had: there is no such folder, it is not in the Hugging Face cache, and the hub cannot "
        f"be reached ({reason}); {WHAT_HELPS}"
    )
