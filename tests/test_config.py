"""Settings: the recipes as published, every bound kept, every complaint in words that name the field."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deepdoctor.config import PRESETS, Config, DatasetConfig, FinetuneConfig, ModelConfig, SamplingConfig, Settings, preset
from deepdoctor.errors import ConfigError

CONFIGS = [ModelConfig, DatasetConfig, SamplingConfig, FinetuneConfig, Settings]


def test_a_home_in_the_data_folder_is_taken_as_one() -> None:
    assert Settings.from_environment({"data_dir": "~/kept"}).data_dir == Path.home() / "kept"


def test_the_article_preset_is_the_source_recipe() -> None:
    values = preset("article").model_dump()
    recipe = {
        "max_steps": 60,
        "learning_rate": 2e-4,
        "batch_size": 2,
        "accumulation": 4,
        "batching": "as_set",
        "base_precision": "4bit",
        "gradient_checkpointing": "on",
        "warmup_steps": 5,
        "lora_rank": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "max_seq_length": 2048,
        "optimizer": "adamw_8bit",
        "weight_decay": 0.01,
        "scheduler": "linear",
        "seed": 3407,
        "logging_steps": 10,
        "supervision": "whole_text",
        "prompt_style": "article",
    }
    assert {name: values[name] for name in recipe} == recipe


def test_the_source_samples_at_most_1200_tokens() -> None:
    assert (SamplingConfig().temperature, SamplingConfig().top_p, SamplingConfig().max_new_tokens) == (0.6, 0.95, 1200)


def test_presets_know_their_own_name() -> None:
    assert {name: config.preset for name, config in PRESETS.items()} == {name: name for name in PRESETS}


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="article, quick, full_epoch") as caught:
        preset("fast")
    assert caught.value.field == "preset"


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_is_explained_once(config: type[Config]) -> None:
    for name, field in config.model_fields.items():
        assert field.title, name
        assert field.description, name
    titles = [field.title for field in config.model_fields.values()]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("config", CONFIGS)
def test_saved_configurations_read_back_equal(config: type[Config], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(config().to_json(), encoding="utf-8")
    assert config.read(file) == config()


def test_unknown_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"no setting called 'learning_rte'.*learning_rate") as caught:
        FinetuneConfig.of({"learning_rte": 1e-3})
    assert caught.value.field == "learning_rte"


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (SamplingConfig, "temperature", -0.1),
        (SamplingConfig, "temperature", 2.1),
        (SamplingConfig, "temperature", math.nan),
        (SamplingConfig, "top_p", 0),
        (SamplingConfig, "top_p", math.inf),
        (SamplingConfig, "max_new_tokens", 0),
        (SamplingConfig, "seed", 2**31),
        (FinetuneConfig, "learning_rate", 0),
        (FinetuneConfig, "learning_rate", math.nan),
        (FinetuneConfig, "learning_rate", "fast"),
        (FinetuneConfig, "lora_dropout", 1),
        (FinetuneConfig, "batch_size", 1.5),
        (FinetuneConfig, "prompt_style", "poem"),
        (FinetuneConfig, "scheduler", "cosine "),
        (FinetuneConfig, "probe_questions", ["one", "two", "three"]),
        (DatasetConfig, "first_rows", 0),
        (DatasetConfig, "source", "web"),
        (ModelConfig, "name", ""),
        (Settings, "port", 65536),
    ],
)
def test_values_out_of_bounds_name_the_field_and_what_was_given(config: type[Config], name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config.of({name: value})
    assert caught.value.field == name
    assert str(caught.value).startswith(f"{config.model_fields[name].title}: ")
    assert f"(given: {value!r})" in str(caught.value) or (value == "" and "(given: nothing)" in str(caught.value))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("lora_rank", None, "LoRA rank: needs a whole number (given: nothing)."),
        ("batch_size", 2.5, "Batch size: needs a whole number (given: 2.5)."),
        ("learning_rate", None, "Learning rate: needs a number (given: nothing)."),
        ("learning_rate", 0, "Learning rate: must be above 0 (given: 0)."),
        ("max_steps", -3, "Steps: must be at least 0 (given: -3)."),
        ("max_steps", 2_000_000, "Steps: must be at most 1,000,000 (given: 2000000)."),
        ("lora_dropout", 1, "LoRA dropout: must be below 1 (given: 1)."),
        ("wandb_project", "", "W&B project: must not be empty (given: nothing)."),
        ("scheduler", None, "Schedule: must be 'linear', 'cosine' or 'constant_with_warmup' (given: nothing)."),
        ("probe_questions", ["a", "b", "c"], "Probe questions: at most 2 can be given (given: ['a', 'b', 'c'])."),
    ],
)
def test_what_is_wrong_is_told_in_plain_words(name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig.of({name: value})
    assert str(caught.value) == says


@pytest.mark.parametrize(("before", "now"), [(True, "on"), (False, "off")])
def test_a_recipe_from_before_the_planner_means_what_it_meant(before: bool, now: str) -> None:
    newer = {"batching", "attention", "padded_to", "loader_workers"}
    old = {name: value for name, value in PRESETS["quick"].model_dump().items() if name not in newer}
    read = FinetuneConfig.of({**old, "batch_size": 2, "gradient_checkpointing": before})
    assert (read.gradient_checkpointing, read.batching, read.batch_size) == (now, "as_set", 2)


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Warm-up steps \(5\) must not exceed the steps \(3\)\.$"):
        FinetuneConfig.of({"max_steps": 3})
    assert FinetuneConfig.of({"max_steps": 0}).warmup_steps == 5


def test_a_changed_copy_is_checked_and_the_original_stays() -> None:
    original = preset("quick")
    assert original.changed(max_steps=10).max_steps == 10
    assert original.max_steps == 30
    with pytest.raises(ConfigError):
        original.changed(max_steps=-1)
    with pytest.raises(Exception, match="frozen"):
        original.max_steps = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"{", "is not a configuration file"), (b"[1]", "expected names and values"), (b"\xff\xfe", "is not a configuration file")],
)
def test_files_that_are_no_configuration_are_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "mine.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"mine.json.*{complaint}"):
        FinetuneConfig.read(file)


def test_a_configuration_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.json"):
        FinetuneConfig.read(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("steps", "epochs", "rows", "expected"),
    [(60, 1.0, 500, 60), (0, 1.0, 500, 63), (0, 2.0, 500, 126), (0, 0.5, 16, 1), (0, 0.01, 8, 1), (0, 1.0, 1, 1)],
)
def test_steps_follow_from_rows_and_epochs(steps: int, epochs: float, rows: int, expected: int) -> None:
    config = FinetuneConfig.of({"max_steps": steps, "epochs": epochs})
    assert config.rows_per_step == 8
    assert config.steps_for(rows) == expected


def test_gpus_share_the_rows_of_a_step_or_have_as_many_each() -> None:
    assert preset("article").devices == 1
    assert preset("article").changed(devices=4).rows_per_step == 8
    assert preset("article").changed(devices=3, rows_per_device=True).rows_per_step == 24
    assert preset("article").changed(devices=4, rows_per_device=True, max_steps=0).steps_for(500) == 16
    with pytest.raises(ConfigError, match=r"^GPUs \(3\) must divide the 8 rows of a step"):
        preset("article").changed(devices=3)


def test_a_recipe_from_before_several_gpus_is_read() -> None:
    older = {name: value for name, value in preset("article").model_dump().items() if name not in ("devices", "rows_per_device")}
    assert FinetuneConfig.of(older) == preset("article")


def test_flags_win_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "8000")
    monkeypatch.setenv("MODEL", "some/model")
    monkeypatch.setenv("HOST", "")
    settings = Settings.from_environment({"port": 9000, "model": None, "data_dir": "elsewhere"})
    assert settings == Settings(host="127.0.0.1", port=9000, model="some/model", data_dir=Path("elsewhere"))


def test_a_wrong_environment_is_named_as_the_user_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(ConfigError, match=r"^PORT: .*'http'"):
        Settings.from_environment()


def test_json_carries_every_setting() -> None:
    assert set(json.loads(preset("full_epoch").to_json())) == set(FinetuneConfig.model_fields)


@pytest.mark.parametrize("mounted", [True, False])
def test_a_space_keeps_its_data_in_the_mounted_storage_if_that_can_hold_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mounted: bool
) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: mounted and Path(path) == storage)
    monkeypatch.setattr("deepdoctor.config.SPACE_STORAGE", storage)
    monkeypatch.delenv("DATA_DIR", raising=False)
    assert Settings.from_environment().data_dir != storage
    monkeypatch.setenv("SPACE_ID", "owner/deepdoctor")
    assert (Settings.from_environment().data_dir == storage) == mounted
    assert Settings.from_environment({"data_dir": "elsewhere"}).data_dir == Path("elsewhere")
