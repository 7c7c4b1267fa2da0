"""A prompt as the model's own chat template words it: one user message, and the place where the answer begins."""

from __future__ import annotations

import functools
import inspect
from datetime import datetime
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from bsharp.config import ChatConfig, ConfigError

__all__ = ["check_chat", "encode_prompt", "uses_template"]

FIXED_DATE = datetime(2024, 7, 26)
"""What a template is told that asks for the time: with today's date equal settings would ask other prompts tomorrow."""

_TIME_CODES = [f"%{letter}" for letter in ("-d", "-m", "-H", "-I", *"aAbBdHIjmMpSuUwWxXcyYFT")]
_NOT_OF_THE_TEMPLATE = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {
    "self",
    "tools",
    "documents",
    "kwargs",
}


def uses_template(tokenizer: PreTrainedTokenizerBase, chat: ChatConfig) -> bool:
    """Whether prompts go through the tokenizer's chat template: with `auto` where it has one, with `always`, not with `never`."""
    return chat.template == "always" or (chat.template == "auto" and bool(_template(tokenizer)))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, chat: ChatConfig, text: str) -> list[int]:
    """Token ids of `text`, as one user message in the chat template or plain.

    With the template: the ids of (system message,) user message and generation prompt, exactly as `apply_chat_template`
    gives them; the template itself writes BOS where the model wants one, so none is added. A template that asks for the time
    is told FIXED_DATE; control tokens in `text` are ordinary text, and ConfigError is raised where transformers cannot see
    to that. Without: the ids of the text alone, with BOS where the tokenizer adds one.
    """
    if not uses_template(tokenizer, chat):
        return list(tokenizer.encode(text))
    _check_sanitizing(tokenizer)
    return list(_apply(tokenizer, chat, _messages(chat, text), tokenize=True))


def check_chat(tokenizer: PreTrainedTokenizerBase, chat: ChatConfig, name: str) -> None:
    """Find out before anything is sampled what would make prompts of `chat` wrong for the model called `name`.

    Raises ConfigError for a template that is asked for and not there, that cannot be rendered, that has no generation
    prompt, or that has no place for the system message; for a system message without a template; for arguments that are
    not the template's; and for a template with a transformers that cannot keep control tokens of a problem's text apart.
    """
    if chat.template == "always" and not _template(tokenizer):
        raise ConfigError(
            f"chat.template = 'always', but the tokenizer of {name!r} has no chat template; choose auto or never, or use "
            "the instruction-tuned model"
        )
    if not uses_template(tokenizer, chat):
        if chat.system is not None:
            why = (
                "chat.template is never"
                if chat.template == "never"
                else f"the tokenizer of {name!r} has no chat template"
            )
            raise ConfigError(f"chat.system is set, but {why}, so no one would read it; leave it out")
        return
    _check_sanitizing(tokenizer)
    taken = sorted(_NOT_OF_THE_TEMPLATE & set(chat.arguments))
    if taken:
        raise ConfigError(f"chat.arguments has {taken[0]!r}, which is no variable of a template; leave it out")
    ready = _rendered(tokenizer, chat, None, name)
    if ready == _rendered(tokenizer, chat, None, name, add_generation_prompt=False):
        raise ConfigError(
            f"the chat template of {name!r} has no generation prompt (add_generation_prompt changes nothing), so the model "
            "would not know that it is to answer; correct the template, or set chat.template = never"
        )
    if chat.system is not None and _rendered(tokenizer, chat, chat.system, name) == ready:
        raise ConfigError(
            f"the chat template of {name!r} has no place for chat.system; leave it out, or put it into the prompt"
        )


def _check_sanitizing(tokenizer: PreTrainedTokenizerBase) -> None:
    known = inspect.signature(tokenizer.apply_chat_template).parameters
    if (
        "sanitize_control_tokens" not in known
    ):  # an unknown argument would be taken for a variable of the template, in silence
        raise ConfigError(
            f"the chat template cannot be used: apply_chat_template of {type(tokenizer).__name__} in transformers "
            f"{transformers.__version__} does not know sanitize_control_tokens, so that a problem's text could end its own turn; "
            "install transformers 5.23 or later, or set chat.template = never"
        )


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatConfig,
    system: str | None,
    name: str,
    add_generation_prompt: bool = True,
) -> str:
    messages = _messages(ChatConfig(system=system), "1 + 1 = ?")
    try:
        return str(_apply(tokenizer, chat, messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except Exception as error:  # a template is a program from elsewhere: it may fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if system is not None:
            raise ConfigError(
                f"the chat template of {name!r} refuses chat.system ({reason}); leave it out, or put it into the prompt"
            ) from None
        raise ConfigError(
            f"the chat template of {name!r} cannot be rendered ({reason}); correct it, or set chat.template = never"
        ) from None


def _messages(chat: ChatConfig, text: str) -> list[dict[str, str]]:
    system = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    return [*system, {"role": "user", "content": text}]


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatConfig,
    messages: list[dict[str, str]],
    tokenize: bool,
    add_generation_prompt: bool = True,
) -> Any:
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _clock(FIXED_DATE) + template
    return tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        tokenize=tokenize,
        # A control token that stands in a problem's text is text: no data set can end its turn and begin another.
        sanitize_control_tokens=tokenize,
        return_dict=False,
        **chat.arguments,
    )


@functools.cache
def _clock(time: datetime) -> str:
    """A macro that stands before transformers' function of the same name. Variables of a template cannot be functions."""
    written = "".join(f"|replace({code!r}, {time.strftime(code)!r})" for code in _TIME_CODES)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{written} }}}}{{%- endmacro -%}}"


def _template(tokenizer: PreTrainedTokenizerBase) -> Any:
    return getattr(tokenizer, "chat_template", None)
