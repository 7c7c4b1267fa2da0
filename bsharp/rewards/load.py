"""A reward of your own from `file.py:function` or `module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from bsharp.config import ConfigError
from bsharp.rewards.function import FunctionReward
from bsharp.types import Problem

__all__ = ["load_reward"]


def load_reward(
    spec: str, time_limit: float = 60.0, prompt: Callable[[Problem], str] | None = None, **options: Any
) -> FunctionReward:
    """The function that `spec` names, as a reward function: `path/to/file.py:function` or `package.module:function`.

    The function has the signature of TRL's reward functions (see FunctionReward, which takes the `options`). A file's folder
    is added to the end of `sys.path`, so that it can import its neighbours, at once or when it is called. Python code runs when
    it is loaded: name only files that you trust. Raises ConfigError, one line, where the file or the module is missing or
    fails to import (with its own message and line), where there is no such function, or where it cannot be called with
    prompts and completions.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ConfigError(f"reward = {spec!r} names no function; write my_module.py:my_reward or module:function")
    module = _from_file(Path(place), spec) if place.endswith(".py") else _from_module(place, spec)
    functions = sorted(key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_")
    if not hasattr(module, name):
        there = ", ".join(functions) or "none"
        raise ConfigError(f"reward = {spec!r}: {place} has no function {name!r}; functions there: {there}")
    function = getattr(module, name)
    if not callable(function):
        raise ConfigError(
            f"reward = {spec!r}: {name} is {type(function).__name__} and cannot be called; name a function"
        )
    try:
        return FunctionReward(function, time_limit=time_limit, prompt=prompt, **options)
    except TypeError as error:
        raise ConfigError(f"reward = {spec!r}: {error}") from None


def _from_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"reward = {spec!r}: there is no file {path}; check the path (it starts at {Path.cwd()})")
    resolved = path.resolve()
    # The name is the path's, so that two files of one name are two modules and one file is loaded once.
    digest = hashlib.sha256(str(resolved).encode()).hexdigest()[:12]
    name = f"bsharp_reward_{resolved.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, resolved)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    if str(resolved.parent) not in sys.path:
        # At the end, where its neighbours hide nothing; it stays, because a function may import one when it is called.
        sys.path.append(str(resolved.parent))
    try:
        module_spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(f"reward = {spec!r}: {_where(error, resolved)}") from None
    return module


def _from_module(place: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            remedy = "install it, or give the path of a file that ends in .py"
            raise ConfigError(f"reward = {spec!r}: there is no module {place!r}; {remedy}") from None
        raise ConfigError(f"reward = {spec!r}: {_where(error, None)}") from None
    except Exception as error:
        raise ConfigError(f"reward = {spec!r}: {_where(error, None)}") from None


def _where(error: BaseException, path: Path | None) -> str:
    """One line: the exception in its own words, and where in the user's code it was raised."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or '?').name}, line {error.lineno}: SyntaxError: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if path is None or Path(frame.filename) == path]
    last = (theirs or frames)[-1]
    message = " ".join(str(error).split())
    return f"{Path(last.filename).name}, line {last.lineno}: {type(error).__name__}: {message}"
