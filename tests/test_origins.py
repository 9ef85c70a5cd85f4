"""Whose a base model is: traced behind mirrors, and told by its name only as far as the name tells it."""

import json
from pathlib import Path

import pytest

from deepdoctor.origins import is_copy, licence_of, llama_version, must_be_named_llama, real_id, said_by

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
        ("unsloth/deepseek-r1-distill-llama-8b-unsloth-bnb-4bit", OWN),
        ("unsloth/deepseek-r1-distill-qwen-1.5b-bnb-4bit", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        ("unsloth/qwen3-30b-a3b-instruct-2507", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
        ("unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit", "Qwen/Qwen2.5-7B-Instruct"),
        ("unsloth/llama-3-8b-Instruct-bnb-4bit", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("unsloth/llama-2-7b-chat-bnb-4bit", "meta-llama/Llama-2-7b-chat-hf"),
        ("unsloth/Llama-3.1-Nemotron-70B-Instruct-bnb-4bit", "unsloth/Llama-3.1-Nemotron-70B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("someone/Foo-7B-bnb-4bit", "someone/Foo-7B-bnb-4bit"),
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
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "4"),
        ("meta-llama/Llama-3.3-70B-Instruct", "3.3"),
        ("meta-llama/Llama-2-7b-hf", "2"),
        ("codellama/CodeLlama-7b-hf", "2"),
        ("unsloth/llama-3-8b-Instruct-bnb-4bit", "3"),
        ("someone/Hermes-Llama3.1-8B", "3.1"),
        ("nvidia/Llama-3_1-Nemotron-51B-Instruct", "3.1"),
        ("/models/Llama-3.1-8B", "3.1"),
        ("/models/my-llama", None),
        ("deepcogito/cogito-v1-preview-llama-8B", None),
        ("deepcogito/cogito-v1-preview-llama-3B", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-3B", None),
        ("huggyllama/llama-7b", None),
        ("openlm-research/open_llama_3b_v2", None),
        ("someone/my-llama-4bit", None),
        ("someone/llama-3.5-8B", None),
        ("someone/llama-3-2-1B", None),
        ("TinyLlama/TinyLlama-1.1B", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None),
        ("nano", None),
    ],
)
def test_which_llama_a_model_comes_from(base: str, version: str | None) -> None:
    assert llama_version(base) == version


@pytest.mark.parametrize(
    ("base", "license_id"),
    [
        ("nano", "apache-2.0"),
        (OWN, "llama3.1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "mit"),
        ("deepseek-ai/deepseek-r1-distill-qwen-1.5b", "mit"),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "mit"),
        ("Qwen/Qwen2.5-7B-Instruct", "apache-2.0"),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", "apache-2.0"),
        ("Qwen/Qwen2.5-Math-7B", "apache-2.0"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "apache-2.0"),
        ("Qwen/QwQ-32B", "apache-2.0"),
        ("Qwen/Qwen2.5-3B", "other"),
        ("Qwen/Qwen2.5-Coder-3B-Instruct", "other"),
        ("Qwen/Qwen2.5-72B-Instruct", "other"),
        ("Qwen/Qwen1.5-72B", "other"),
        ("someone/my-qwen-thing", "other"),
        ("someone/Qwen2.5-7B", "other"),
        ("someone/DeepSeek-R1-Distill-Qwen-7B", "other"),
        ("deepcogito/cogito-v1-preview-llama-8B", "other"),
        ("huggyllama/llama-7b", "other"),
        ("/models/any", "other"),
    ],
)
def test_a_licence_is_claimed_only_where_it_is_known(base: str, license_id: str) -> None:
    found = licence_of(base)
    assert found.id == license_id
    told = " ".join(found.told)
    assert ("look it up" in told) == (license_id == "other")
    assert ("Community License" in told) == license_id.startswith("llama")


def test_distilled_weights_are_under_two_licences() -> None:
    assert "MIT" in licence_of(OWN).told[0]
    assert "Llama 3.1 Community License" in licence_of(OWN).told[1]
    qwen = " ".join(licence_of("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B").told)
    assert "MIT" in qwen
    assert "Apache-2.0" in qwen


@pytest.mark.parametrize(
    ("base", "named"),
    [
        (OWN, True),
        ("meta-llama/Meta-Llama-3-8B", True),
        ("meta-llama/Llama-2-7b-hf", False),
        ("huggyllama/llama-7b", False),
        ("nano", False),
    ],
)
def test_from_llama_3_on_the_name_must_begin_with_it(base: str, named: bool) -> None:
    assert must_be_named_llama(base) == named


@pytest.mark.parametrize(
    ("said", "own"),
    [
        ("acme/Foo-7B", "acme/Foo-7B"),
        ("acme/foo-7b", "acme/foo-7b"),
        ("unsloth/Foo-7B", "unsloth/Foo-7B"),
        ("/home/jane/Foo-7B", None),
        ("out/checkpoint-20", None),
        ("acme/Bar-7B", None),
        ("acme/Foo-7B-awq", None),
        ("Foo-7B", None),
        ("", None),
    ],
)
def test_a_copy_s_original_is_what_its_files_say_if_that_is_its_name(said: str, own: str | None) -> None:
    for copy in ("someone/Foo-7B-bnb-4bit", "someone/Foo-7B-AWQ"):
        assert real_id(copy, [said]) == (own or copy)
    assert real_id("someone/Foo-7B", [said]) == "someone/Foo-7B", "no copy"


def test_what_a_model_s_files_say_of_where_they_come_from(tmp_path: Path) -> None:
    assert said_by(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "acme/Foo-7B"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"name_or_path": 7}))
    assert said_by(tmp_path) == ["acme/Foo-7B"]
    (tmp_path / "config.json").write_text("no JSON")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"name_or_path": "acme/Foo-7B"}))
    assert said_by(tmp_path) == ["acme/Foo-7B"]


@pytest.mark.parametrize("name", ["a/Foo-bnb-4bit", "a/Foo-awq", "a/Foo.GPTQ-Int4", "a/Foo-FP8-dynamic", "a/Foo-8bit", "a/Foo-w4a16"])
def test_copies_in_fewer_bits_are_known_by_their_names(name: str) -> None:
    assert is_copy(name)
    assert not is_copy("a/Foo")
    assert not is_copy("a/Foo-dynamic")
