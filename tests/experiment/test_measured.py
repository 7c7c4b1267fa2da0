"""Settings that are chosen by measuring: measured once, recorded, obeyed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_model

from bsharp.config import (
    EMBEDDED_MODEL,
    ConfigError,
    SamplingConfig,
    TrainConfig,
    ValidationConfig,
    WeightsConfig,
)
from bsharp.experiment import measured
from bsharp.experiment.measured import faster_precision, settled
from bsharp.experiment.run import train
from bsharp.models import products
from bsharp.models.parallel import TINY_WEIGHTS
from bsharp.models.sources import Source

AUTO = WeightsConfig(dtype="auto", products="auto")


@pytest.fixture(autouse=True)
def restored_library() -> Iterator[None]:
    """What a test sets counts for no other one."""
    before = os.environ.get(products.VARIABLE)
    yield
    os.environ.pop(products.VARIABLE, None)
    if before is not None:
        os.environ[products.VARIABLE] = before


def measuring(monkeypatch: pytest.MonkeyPatch, library: str, dtype: str) -> list[str]:
    """Let measurements say this; what was measured."""
    asked: list[str] = []

    def say(name: str, answer: str) -> Any:
        return lambda *_: (asked.append(name), answer)[1]

    monkeypatch.setattr(measured, "product_library", say("products", library))
    monkeypatch.setattr(measured, "faster_precision", say("dtype", dtype))
    monkeypatch.setattr(products, "_is_exact", lambda: True)
    return asked


def record(folder: Path, **weights: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"weights": weights}), encoding="utf-8")
    return folder


def test_auto_becomes_what_a_measurement_says_and_the_library_is_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for library, dtype in itertools.product(("default", "onednn"), ("float32", "bfloat16")):
        asked = measuring(monkeypatch, library, dtype)
        found = settled(AUTO, EMBEDDED_MODEL, "cpu", tmp_path / "new")
        assert (found.products, found.dtype) == (library, dtype)
        assert sorted(asked) == ["dtype", "products"]
        assert os.environ[products.VARIABLE] == library
        assert products.product_library() == library


def test_what_a_run_recorded_stands_whatever_a_measurement_would_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for library, dtype in itertools.product(("default", "onednn"), ("float32", "bfloat16")):
        asked = measuring(monkeypatch, "default" if library == "onednn" else "onednn", "float32")
        folder = record(tmp_path / library / dtype, products=library, dtype=dtype)
        found = settled(AUTO, EMBEDDED_MODEL, "cpu", folder)
        assert (found.products, found.dtype) == (library, dtype)
        assert asked == []
        assert os.environ[products.VARIABLE] == library


def test_what_was_not_recorded_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = measuring(monkeypatch, "onednn", "bfloat16")
    found = settled(AUTO, EMBEDDED_MODEL, "cpu", record(tmp_path, dtype="float32"))
    assert (found.products, found.dtype) == ("onednn", "float32")
    assert asked == ["products"]
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert settled(AUTO, EMBEDDED_MODEL, "cpu", tmp_path).dtype == "bfloat16"


def test_what_was_named_is_neither_measured_nor_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = measuring(monkeypatch, "onednn", "float32")
    folder = record(tmp_path, products="onednn", dtype="float32")
    named = WeightsConfig(dtype="bfloat16", products="default", lora_rank=4)
    assert settled(named, EMBEDDED_MODEL, "cpu", folder) == named
    assert asked == []
    assert os.environ[products.VARIABLE] == "default"


def test_a_library_that_would_round_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(products, "_is_exact", lambda: False)
    with pytest.raises(ConfigError, match="round float32 products"):
        settled(WeightsConfig(products="onednn"), EMBEDDED_MODEL, "cpu", tmp_path)
    with pytest.raises(ConfigError, match="new directory"):
        settled(WeightsConfig(), EMBEDDED_MODEL, "cpu", record(tmp_path, products="onednn"))


def test_models_that_their_own_modules_run_stay_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("gpt2", dtype=torch.float32)
    monkeypatch.setattr(measured, "load_language_model", lambda *_: model)
    monkeypatch.setattr(measured, "_timed", lambda _: pytest.fail("there is nothing to measure"))
    assert faster_precision("some-gpt2", "cpu") == "float32"


def test_an_accelerator_gets_bfloat16_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "load_language_model", lambda *_: pytest.fail("no model is needed"))
    assert faster_precision(EMBEDDED_MODEL, "cuda") == "bfloat16"


@pytest.mark.parametrize(
    ("lower", "expected"), [(0.5, "bfloat16"), (0.75, "bfloat16"), (0.9, "float32"), (2.0, "float32")]
)
def test_bfloat16_is_taken_where_it_is_clearly_faster(
    lower: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.cycle([1.0, lower])  # in turn, single precision first

    def timed(work: Any) -> float:
        work()
        return next(seconds)

    monkeypatch.setattr(measured, "_timed", timed)
    assert faster_precision(EMBEDDED_MODEL, "cpu") == expected


def test_what_is_measured_is_one_block_in_either_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[tuple[int, torch.dtype]] = []
    monkeypatch.setattr(measured, "_run", lambda network: run.append((len(network.blocks), network.dtype)))
    faster_precision(EMBEDDED_MODEL, "cpu")
    assert set(run) == {(1, torch.float32), (1, torch.bfloat16)}
    assert len(run) >= 6


def test_a_run_records_what_was_chosen_and_goes_on_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = TrainConfig(
        steps=2,
        sampling=SamplingConfig(prompts_per_step=2, group_size=2, max_new_tokens=8),
        validation=ValidationConfig(problems=2, samples=1, every=2),
        checkpoint_every=1,
        weights=AUTO,
    )
    asked = measuring(monkeypatch, "default", "bfloat16")

    class Killed(Exception):
        pass

    def kill(step: int, metrics: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path, watchers=(kill,))
    assert sorted(asked) == ["dtype", "products"]
    recorded = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "auto" not in json.dumps(recorded["weights"])
    assert (recorded["weights"]["dtype"], recorded["weights"]["products"]) == ("bfloat16", "default")
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["precision"] == {"dtype": "bfloat16", "float32_products": "default"}

    asked = measuring(monkeypatch, "onednn", "float32")
    policy, progress = train(config, tmp_path)
    assert asked == []
    assert progress.step == 2
    assert policy.model.dtype == torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == recorded
    named = dataclasses.replace(config, weights=WeightsConfig(dtype="float32"))
    with pytest.raises(ConfigError):
        train(named, tmp_path)


def test_the_size_of_a_model_is_that_of_its_folder_and_what_has_none_is_not_tiny(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert 0 < measured._stored_bytes(EMBEDDED_MODEL) < TINY_WEIGHTS
    (tmp_path / "model.safetensors").write_bytes(bytes(3))
    (tmp_path / "more.safetensors").write_bytes(bytes(4))
    found = {"folder": (str(tmp_path), False), "hub": ("owner/name", False), "adapter": (str(tmp_path), True)}
    monkeypatch.setattr(measured, "find_source", lambda name: Source(name, found[name][0], "", found[name][1]))
    assert [measured._stored_bytes(name) for name in found] == [7, TINY_WEIGHTS, TINY_WEIGHTS]
