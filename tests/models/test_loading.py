"""What can be loaded is loaded completely; what cannot costs one line that says what was tried, at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from model_families import make_folder, special_token_ids
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from bsharp.config import EMBEDDED_MODEL, ChatConfig, ConfigError, WeightsConfig
from bsharp.models import sources
from bsharp.models.adapters import make_policy, prepare_base
from bsharp.models.loading import clone_model, load_language_model, save_language_model, weights_hash

NAME = "acme/model-of-ours"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("qwen2_5", tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def refusal(name: str | Path, **settings: str) -> str:
    """The one line that loading ends with."""
    with pytest.raises(ConfigError) as raised:
        load_language_model(str(name), **settings)
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_a_saved_model_comes_back_with_its_weights_tokens_and_settings(folder: Path, tmp_path: Path) -> None:
    loaded = load_language_model(str(folder), chat=ChatConfig(system="Be brief."))
    save_language_model(loaded, tmp_path / "again")
    again = load_language_model(str(tmp_path / "again"), chat=loaded.chat)
    assert weights_hash(again.model) == weights_hash(loaded.model)
    assert (again.eos_token_ids, again.pad_token_id) == (loaded.eos_token_ids, loaded.pad_token_id)
    assert again.encode("2 + 2") == loaded.encode("2 + 2") != load_language_model(str(folder)).encode("2 + 2")
    copy = clone_model(loaded)
    assert (copy.chat, copy.name) == (loaded.chat, loaded.name)
    with torch.no_grad():
        next(copy.model.parameters()).add_(1.0)
    assert weights_hash(copy.model) != weights_hash(loaded.model) == weights_hash(again.model)


def test_weights_of_any_size_are_saved_in_the_one_file_that_a_resumed_run_reads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With transformers' own limit lowered from 50 GB to 10 KB it would write several files."""
    loaded, save = load_language_model(str(folder)), PreTrainedModel.save_pretrained
    assert save.__defaults__.count("50GB") == 1
    lowered = tuple("10KB" if default == "50GB" else default for default in save.__defaults__)
    monkeypatch.setattr(save, "__defaults__", lowered)
    loaded.model.save_pretrained(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    save_language_model(loaded, tmp_path / "whole")
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors*")] == ["model.safetensors"]
    assert weights_hash(load_language_model(str(tmp_path / "whole")).model) == weights_hash(loaded.model)


def test_eos_ids_come_from_generation_config_config_and_tokenizer_together(folder: Path) -> None:
    ids = special_token_ids("qwen2_5")
    (folder / "generation_config.json").unlink()
    # Now config.json names <|im_end|> only, as Qwen's does.
    assert load_language_model(str(folder)).eos_token_ids == (ids["<|im_end|>"],)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"eos_token_id": None}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"eos_token": "<|endoftext|>"}))
    assert load_language_model(str(folder)).eos_token_ids == (ids["<|endoftext|>"],)


def test_an_eos_id_that_can_never_be_sampled_is_left_out(folder: Path) -> None:
    known = load_language_model(str(folder)).eos_token_ids
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [*known, 512]}))
    assert load_language_model(str(folder)).eos_token_ids == known


def test_a_pad_id_without_an_embedding_is_not_taken(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = settings | {"pad_token": "<|added_pad|>"}  # gets id 507: a row no token has; then one behind the last row
    (folder / "tokenizer_config.json").write_text(json.dumps(added))
    assert load_language_model(str(folder)).pad_token_id == 507
    smaller = make_folder("llama3_2", folder / "llama")
    settings = json.loads((smaller / "tokenizer_config.json").read_text())
    (smaller / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<|added_pad|>"}))
    loaded = load_language_model(str(smaller))
    assert loaded.tokenizer.pad_token_id == loaded.vocab_size == 512
    assert loaded.pad_token_id == special_token_ids("llama3_2")["<|finetune_right_pad_id|>"]


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        (["config.json"], "no config.json"),
        (["model.safetensors"], "no *.safetensors;"),
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer (tokenizer.json"),
    ],
)
def test_a_folder_that_lacks_something_says_what(folder: Path, remove: list[str], says: str) -> None:
    for file in remove:
        (folder / file).unlink()
    line = refusal(folder)
    assert says in line
    assert "pass one with config.json, tokenizer and *.safetensors" in line


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only *.bin, which is not read" in refusal(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_broken_file_costs_one_line(folder: Path, file: str) -> None:
    (folder / file).write_text("{ this is no such file")
    assert "could not be loaded from the local folder" in refusal(folder)


def test_code_of_a_repository_is_not_run(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    removed = weights.pop("model.layers.1.mlp.down_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert removed.ndim == 2
    assert "lacks weights, e.g. model.layers.1.mlp.down_proj.weight (1 in all)" in refusal(folder)


def test_names_types_and_devices_that_cannot_be_are_refused(folder: Path) -> None:
    assert "there is no such folder" in refusal("./nowhere")
    assert "there is no such folder" in refusal("one/two/three")
    assert "is a file" in refusal(folder / "config.json")
    assert "neither a folder that exists nor a hub name" in refusal("no name at all!")
    assert "dtype = 'float31' is no floating-point type" in refusal(folder, dtype="float31")
    assert "dtype = 'int64' is no floating-point type" in refusal(folder, dtype="int64")
    assert "device = 'abacus' cannot be used" in refusal(folder, device="abacus")
    for file in ("generation_config.json", "config.json", "tokenizer_config.json"):
        settings = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(settings | {"eos_token_id": None, "eos_token": None}))
    assert "names no EOS token" in refusal(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A hub that answers as the test says, and an empty cache."""
    stub = SimpleNamespace(answer=ConnectionError("Name or service not known"), asked=[], cached={})

    def model_info(_: HfApi, name: str, timeout: float) -> object:
        stub.asked.append((name, timeout))
        if isinstance(stub.answer, Exception):
            raise stub.answer
        return stub.answer

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda name, file: stub.cached.get((name, file)))
    return stub


def test_a_hub_that_does_not_answer_is_asked_once_and_for_ten_seconds_at_most(hub: SimpleNamespace) -> None:
    line = refusal(NAME)
    assert hub.asked == [(NAME, 10.0)]
    for part in ("no such folder", "not in the Hugging Face cache", "cannot be reached (Name or service not known)"):
        assert part in line
    for help_given in ("pass a local folder", "gated", "hf auth login", EMBEDDED_MODEL):
        assert help_given in line


def test_offline_the_hub_is_not_asked(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(NAME)
    assert hub.asked == []


@pytest.mark.parametrize("kind", [RepositoryNotFoundError, GatedRepoError])
def test_a_model_that_the_hub_does_not_give_says_that_it_may_be_gated(
    hub: SimpleNamespace, kind: type[RepositoryNotFoundError]
) -> None:
    hub.answer = kind(
        "401 Client Error.\nRepository Not Found for url", response=SimpleNamespace(headers={}, request=None)
    )
    line = refusal(NAME)
    assert "private or gated" in line
    assert "(401 Client Error)" in line
    assert "pass a local folder" in line


def test_what_is_in_the_cache_is_taken_where_the_hub_does_not_answer(hub: SimpleNamespace, folder: Path) -> None:
    hub.cached[NAME, "config.json"] = str(folder / "config.json")
    loaded = load_language_model(NAME)
    assert loaded.name == NAME
    assert weights_hash(loaded.model) == weights_hash(load_language_model(str(folder)).model)


def test_a_folder_of_that_name_comes_before_the_hub(
    hub: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert load_language_model("model").name == "model"
    assert hub.asked == []


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    """The folder of an adapter whose B is not 0."""
    weights = WeightsConfig(lora_rank=2)
    policy = make_policy(prepare_base(load_language_model(str(folder)), weights), weights, seed=0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    save_language_model(policy, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_folder_is_its_base_plus_scaled_b_times_a(adapter: Path, folder: Path) -> None:
    loaded = load_language_model(str(adapter))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([loaded.encode("2 + 2")])
    with torch.no_grad(), loaded.ready():
        before, after = plain(input_ids=ids).logits, loaded.model(input_ids=ids).logits
        assert not torch.allclose(before, after, atol=0.1)
        saved = load_file(adapter / "adapter_model.safetensors")
        for name, parameter in plain.named_parameters():
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            if key + "A.weight" in saved:  # alpha is twice the rank where none is given
                parameter += 2.0 * saved[key + "B.weight"] @ saved[key + "A.weight"]
        torch.testing.assert_close(plain(input_ids=ids).logits, after, atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.eos_token_ids == load_language_model(str(folder)).eos_token_ids


def test_an_adapter_is_in_float32_whatever_its_base_is(adapter: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        parameters = dict(load_language_model(str(adapter), dtype).model.named_parameters())
        assert {p.dtype for name, p in parameters.items() if "lora_" in name} == {torch.float32}
        assert {p.dtype for name, p in parameters.items() if "lora_" not in name} == {getattr(torch, dtype)}


def test_the_tokenizer_beside_an_adapter_is_the_one_that_counts(adapter: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} A:{% endif %}"
    (adapter / "chat_template.jinja").write_text(template)
    loaded = load_language_model(str(adapter))
    assert loaded.tokenizer.decode(loaded.encode("2 + 2")) == "2 + 2 A:"


def test_an_adapter_that_cannot_be_used_costs_one_line(adapter: Path, folder: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def with_settings(**changes: object) -> str:
        (adapter / "adapter_config.json").write_text(json.dumps(settings | changes))
        return refusal(adapter)

    assert settings["base_model_name_or_path"] == str(folder)
    line = with_settings(base_model_name_or_path="/no/such/base")
    assert "is an adapter whose base cannot be had: model = '/no/such/base': there is no such folder" in line
    assert "names no base" in with_settings(base_model_name_or_path=None)
    assert "is an adapter itself" in with_settings(base_model_name_or_path=str(adapter))
    prefix = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2, "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(prefix))
    assert "only LoRA is read" in refusal(adapter)
    with_settings(peft_type="NO_SUCH_TYPE")
    (adapter / "adapter_config.json").write_text("{")
    refusal(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "adapter without adapter_model.safetensors" in refusal(adapter)
