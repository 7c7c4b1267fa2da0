"""Which words a prompt gets around it, and the one line for each template that cannot work."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from model_families import make_folder
from small_models import small_model

from bsharp.config import ChatConfig, ConfigError
from bsharp.models import chat as chat_module
from bsharp.models.chat import check_chat, encode_prompt, uses_template
from bsharp.models.loading import load_language_model

PLAIN = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
GOOD = PLAIN + "{% if add_generation_prompt %}[assistant:{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("llama3_2", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    return load_language_model(str(folder)).tokenizer


def test_auto_uses_the_template_where_there_is_one_and_never_does_not(tokenizer: Any) -> None:
    templated = encode_prompt(tokenizer, ChatConfig(), "2 + 2")
    plain = encode_prompt(tokenizer, ChatConfig(template="never"), "2 + 2")
    assert plain == tokenizer.encode("2 + 2")
    assert len(templated) > len(plain)
    assert templated == encode_prompt(tokenizer, ChatConfig(template="always"), "2 + 2")
    tokenizer.chat_template = None
    assert encode_prompt(tokenizer, ChatConfig(), "2 + 2") == plain
    assert not uses_template(tokenizer, ChatConfig())


def test_a_tokenizer_that_knows_nothing_of_templates_gives_plain_ids() -> None:
    small = small_model()
    assert small.encode("1 2 3") == [1, 2, 3]
    check_chat(small.tokenizer, ChatConfig(), "small")
    with pytest.raises(
        ConfigError, match=r"^chat.template = 'always', but the tokenizer of 'small' has no chat template;"
    ):
        check_chat(small.tokenizer, ChatConfig(template="always"), "small")


def test_a_system_message_stands_before_the_prompt_and_needs_a_template(tokenizer: Any) -> None:
    tokenizer.chat_template = GOOD
    chat = ChatConfig(system="Be brief.")
    check_chat(tokenizer, chat, "m")
    text = tokenizer.decode(encode_prompt(tokenizer, chat, "2 + 2"))
    assert text == "[system:Be brief.][user:2 + 2][assistant:"
    with pytest.raises(ConfigError, match=r"chat.system is set, but chat.template is never"):
        check_chat(tokenizer, dataclasses.replace(chat, template="never"), "m")
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"chat.system is set, but the tokenizer of 'm' has no chat template"):
        check_chat(tokenizer, chat, "m")


def test_arguments_reach_the_template_and_unknown_ones_are_harmless(tokenizer: Any) -> None:
    tokenizer.chat_template = GOOD + "{% if not thinking | default(true) %}[no thoughts]{% endif %}"
    ends = [
        tokenizer.decode(encode_prompt(tokenizer, ChatConfig(arguments=arguments), "x")).endswith("[no thoughts]")
        for arguments in ({}, {"thinking": False}, {"never_heard_of": 3})
    ]
    assert ends == [False, True, False]


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (PLAIN, {}, r"has no generation prompt \(add_generation_prompt changes nothing\)"),
        ("{% for m in messages %}{{ m.role", {}, r"cannot be rendered \(.*\); correct it"),
        ("{{ raise_exception('no users here') }}", {}, r"cannot be rendered \(no users here\)"),
        ("{{ messages[7].content }}" + GOOD, {}, r"cannot be rendered"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + GOOD,
            {"system": "Be brief."},
            r"refuses chat.system \(System role not supported\)",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            {"system": "Be brief."},
            r"has no place for chat.system",
        ),
        (GOOD, {"arguments": {"tokenize": False}}, r"chat.arguments has 'tokenize'"),
        (GOOD, {"arguments": {"add_generation_prompt": False}}, r"chat.arguments has 'add_generation_prompt'"),
    ],
)
def test_a_template_that_cannot_work_costs_one_line(
    tokenizer: Any, template: str, settings: dict[str, Any], message: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=message) as raised:
        check_chat(tokenizer, ChatConfig(**settings), "m")
    assert "\n" not in str(raised.value)
    # Without a template nothing of this matters.
    check_chat(tokenizer, ChatConfig(template="never"), "m")


def test_a_template_that_asks_for_the_time_is_told_a_fixed_one(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.chat_template = "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d, %-d %b') }}{% endif %}" + GOOD
    assert tokenizer.decode(encode_prompt(tokenizer, ChatConfig(), "x")).startswith("2024-07-26, 26 Jul[user")
    monkeypatch.setattr(chat_module, "FIXED_DATE", datetime(1999, 12, 1))
    assert tokenizer.decode(encode_prompt(tokenizer, ChatConfig(), "x")).startswith("1999-12-01, 1 Dec[user")


def test_a_template_is_refused_where_control_tokens_in_a_problem_would_stay_control_tokens(tokenizer: Any) -> None:
    class Older(type(tokenizer)):  # type: ignore[misc]
        def apply_chat_template(self, conversation: Any, tools: Any = None, **kwargs: Any) -> Any:
            return [1, 2, 3]

    tokenizer.__class__ = Older
    for refused in (
        lambda: check_chat(tokenizer, ChatConfig(), "m"),
        lambda: encode_prompt(tokenizer, ChatConfig(), "x"),
    ):
        with pytest.raises(
            ConfigError, match=r"Older in transformers .* install transformers 5.23 or later, or set "
        ) as e:
            refused()
        assert "\n" not in str(e.value)
    never = ChatConfig(template="never")
    check_chat(tokenizer, never, "m")
    assert encode_prompt(tokenizer, never, "x") == tokenizer.encode("x")


def test_a_template_of_the_model_that_cannot_work_is_found_when_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    broken = make_folder("llama3_2", tmp_path)
    (broken / "chat_template.jinja").write_text(PLAIN, encoding="utf-8")
    with pytest.raises(ConfigError, match="has no generation prompt"):
        load_language_model(str(broken))
    assert load_language_model(str(broken), chat=ChatConfig(template="never")).encode("x")


def test_encoding_again_gives_the_same_ids_and_a_list_of_ones_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_language_model(str(folder))
    first = loaded.encode("2 + 2")
    first.append(-1)
    monkeypatch.setattr("bsharp.models.loading.encode_prompt", lambda *_: pytest.fail("encoded a second time"))
    assert loaded.encode("2 + 2") == first[:-1]
    # Another way of asking is not answered from memory.
    with pytest.raises(pytest.fail.Exception):
        dataclasses.replace(loaded, chat=ChatConfig(template="never")).encode("2 + 2")
