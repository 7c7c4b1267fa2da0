from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bsharp.config import CompareConfig, ConfigError, EvaluationConfig, TrainConfig, as_dict, build_config, load_config


@pytest.mark.parametrize("kind", [TrainConfig, CompareConfig, EvaluationConfig])
def test_a_resolved_config_reads_back_equal(kind: type) -> None:
    config = kind()
    assert build_config(kind, as_dict(config)) == config


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"sampling": {"group_sise": 3}}, ["sampling.group_sise = 3", "did you mean sampling.group_size?"]),
        ({"stpes": 3}, ["stpes = 3", "did you mean steps?"]),
        ({"zzz": 3}, ["unknown key zzz = 3", "known keys: model"]),
        ({"steps": 0}, ["steps = 0", "greater than or equal to 1"]),
        ({"sampling": {"temperature": "warm"}}, ["sampling.temperature = 'warm'", "valid number"]),
        ({"sampling": {"temperature": float("nan")}}, ["sampling.temperature"]),
        ({"algorithm": {"advantage": "rloo"}}, ["algorithm.advantage = 'rloo'", "'leave_one_out'"]),
        ({"seeds": []}, ["seeds = []", "at least 1"]),
    ],
)
def test_a_wrong_setting_is_one_line_with_key_value_and_remedy(values: dict, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build_config(CompareConfig, values)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_toml_keys_are_the_field_names(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("steps = 7\nseeds = [4, 5]\n[sampling]\ngroup_size = 3\n[learning_rates]\nsharpening = 3e-4\n")
    config = load_config(CompareConfig, path)
    assert (config.steps, config.seeds, config.sampling.group_size) == (7, (4, 5), 3)
    assert config.learning_rates == {"sharpening": 3e-4}
    assert config.sampling.prompts_per_step == CompareConfig().sampling.prompts_per_step


@pytest.mark.parametrize("content", ["steps = ", "\xff"])
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML") as error:
        load_config(CompareConfig, path)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot read config"):
        load_config(CompareConfig, tmp_path / "absent.toml")


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.toml")), ids=lambda path: path.name)
def test_every_shipped_config_is_read(path: Path) -> None:
    kind = TrainConfig if "objective" in path.read_text(encoding="utf-8") else CompareConfig
    assert dataclasses.is_dataclass(load_config(kind, path))


def test_every_field_says_what_it_is() -> None:
    # A field without its own sentence would be a flag without help.
    source = (Path(__file__).parents[1] / "bsharp" / "config.py").read_text(encoding="utf-8")
    for kind in (TrainConfig, CompareConfig, EvaluationConfig):
        block = source[source.index(f"class {kind.__name__}:") :].split("\n@dataclass")[0].splitlines()
        for field in dataclasses.fields(kind):
            line = next(i for i, text in enumerate(block) if text.startswith(f"    {field.name}:"))
            nested = dataclasses.is_dataclass(field.default)
            assert nested or block[line + 1].strip().startswith('"""'), f"{kind.__name__}.{field.name} has no docstring"
