"""Whose a base model is: traced behind mirrors, and told by its name only as far as the name tells it."""

from pathlib import Path

import pytest

from deepdoctor.origins import llama_version, real_id

BASE = "unsloth/DeepSeek-R1-Distill-Llama-8B"
OWN = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


@pytest.mark.parametrize(
    ("base", "own"),
    [
        (BASE, OWN),
        ("unsloth/DeepSeek-R1-Distill-Llama-8B-unsloth-bnb-4bit", OWN),
        ("unsloth/DeepSeek-R1-Distill-Qwen-7B-bnb-4bit", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        ("unsloth/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("unsloth/Llama-3.2-1B-bnb-4bit", "meta-llama/Llama-3.2-1B"),
        ("unsloth/gemma-2b-bnb-4bit", "unsloth/gemma-2b"),
        ("owner/model", "owner/model"),
        ("nano", None),
        ("/models/my-llama", None),
        ("folder/with space", None),
    ],
)
def test_the_base_is_named_by_its_own_id(base: str, own: str | None) -> None:
    assert real_id(base) == own


def test_a_local_folder_is_no_id_even_if_it_looks_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert real_id("owner/model") is None


@pytest.mark.parametrize(
    ("base", "version"),
    [
        (BASE, "3.1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "3.3"),
        ("meta-llama/Llama-3.2-1B", "3.2"),
        ("meta-llama/Meta-Llama-3-8B", "3"),
        ("/models/my-llama", "3.1"),
        ("TinyLlama/TinyLlama-1.1B", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None),
        ("nano", None),
    ],
)
def test_which_llama_a_model_comes_from(base: str, version: str | None) -> None:
    assert llama_version(base) == version
