"""GGUF of a merged model: what the converter is given, what lies in the export, and what is told when it cannot be done."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from deepdoctor.engine.export import export
from deepdoctor.engine.gguf import unsloth_converter
from deepdoctor.engine.protocol import GGUF_KINDS, Export
from deepdoctor.engine.session import Session
from deepdoctor.errors import RunError
from deepdoctor.runs import Run
from tests.engine import tiny

Trained = tuple[Session, Run]


class FakeConverter:
    """Unsloth's module as far as it is used. Notes what it was given; `missing` and `fails` are what it raises with."""

    def __init__(self, missing: str = "", fails: str = "", writes: bool = True) -> None:
        self.missing, self.fails, self.writes = missing, fails, writes
        self.loaded: list[Any] = []
        self.asked: list[tuple[str, str]] = []
        self.may_install: list[str | None] = []

    def check_llama_cpp(self) -> tuple[str, str]:
        if self.missing:
            raise RuntimeError(self.missing)
        return "/llama.cpp/llama-quantize", "/llama.cpp/convert_hf_to_gguf.py"

    def convert_to_gguf(self, model_name: str, input_folder: str, **options: Any) -> tuple[list[str], bool]:
        assert options["converter_location"] == "/llama.cpp/convert_hf_to_gguf.py"
        self.may_install.append(os.environ.get("UNSLOTH_AUTO_INSTALL"))
        self.asked.append(("convert", options["quantization_type"]))
        self.loaded.append(AutoModelForCausalLM.from_pretrained(input_folder))
        if self.writes:
            Path(model_name).write_bytes(b"GGUF" + options["quantization_type"].encode())
        if self.fails:
            raise RuntimeError(self.fails)
        return [model_name] if self.writes else [], False

    def quantize_gguf(self, input_gguf: str, output_gguf: str, quant_type: str, **options: Any) -> str:
        assert options["quantizer_location"] == "/llama.cpp/llama-quantize"
        self.asked.append(("quantize", quant_type))
        Path(output_gguf).write_bytes(Path(input_gguf).read_bytes() + quant_type.encode())
        return output_gguf


def exported(trained: Trained, target: Path, wanted: Export, converter: FakeConverter, said: list[str] | None = None) -> Path:
    return export(tiny.model_of(trained[0]), trained[1], wanted, target, (said if said is not None else []).append, converter)


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_the_merged_model_is_converted_and_the_file_lies_in_the_export(trained: Trained, tmp_path: Path, kind: str) -> None:
    converter, said, run = FakeConverter(), list[str](), trained[1]
    folder = exported(trained, tmp_path / "out", Export(run.id, gguf=kind), converter, said)
    small = kind == "q4_k_m"
    assert [file.name for file in (folder / "gguf").iterdir()] == [f"{run.id}-{kind}.gguf"]
    assert (folder / "gguf" / f"{run.id}-{kind}.gguf").read_bytes() == (b"GGUFbf16q4_k_m" if small else b"GGUF" + kind.encode())
    assert converter.asked == ([("convert", "bf16"), ("quantize", kind)] if small else [("convert", kind)])
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    given, kept = converter.loaded[0].state_dict(), merged.state_dict()
    assert given.keys() == kept.keys()
    assert all(given[name].equal(kept[name]) for name in kept)
    assert said[-1] == f"Converting the merged model to GGUF ({kind})"


def test_gguf_without_keeping_the_merged_model(trained: Trained, tmp_path: Path) -> None:
    folder = exported(trained, tmp_path / "out", Export(trained[1].id, merged=False, gguf="q8_0"), FakeConverter())
    assert sorted(each.name for each in folder.iterdir()) == ["adapter", "config.json", "gguf", "prompt_style.json", "tokenizer"]


def test_a_merged_model_that_lies_there_is_converted_and_a_file_that_lies_there_is_not_made_again(trained: Trained, tmp_path: Path) -> None:
    wanted, said = Export(trained[1].id, gguf="q8_0"), list[str]()
    exported(trained, tmp_path / "out", Export(trained[1].id), FakeConverter())
    first, second, other = FakeConverter(), FakeConverter(), FakeConverter()
    exported(trained, tmp_path / "out", wanted, first, said)
    assert first.asked == [("convert", "q8_0")]
    assert [line for line in said if "Merging" in line] == []
    folder = exported(trained, tmp_path / "out", wanted, second)
    assert second.asked == []
    exported(trained, tmp_path / "out", Export(trained[1].id, merged=False, gguf="f16"), other)
    assert sorted(file.name.rpartition("-")[2] for file in (folder / "gguf").iterdir()) == ["f16.gguf", "q8_0.gguf"]
    assert (folder / "merged" / "config.json").exists()


@pytest.mark.parametrize(
    ("kind", "missing", "words"),
    [
        (
            "q8_0",
            "Unsloth: No working quantizer found in /x\nFiles found: a",
            r"written here: No working quantizer found in /x\. GGUF",
        ),
        ("q5", "", "no GGUF q5 here. Choose among: bf16, f16, q8_0, q4_k_m"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    trained: Trained, tmp_path: Path, kind: str, missing: str, words: str
) -> None:
    said: list[str] = []
    with pytest.raises(RunError, match=words):
        exported(trained, tmp_path / "out", Export(trained[1].id, gguf=kind), FakeConverter(missing), said)
    assert said == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("converter", "words"),
    [
        (FakeConverter(fails="Unsloth: the tokenizer is unknown"), r"converted to GGUF: the tokenizer is unknown\. Export without GGUF"),
        (
            FakeConverter(fails="Unsloth: Failed with `x`: exit 1.\n-- stderr --\n File x\nKeyError: 'new kind'\n-- stdout --\nbye"),
            r"converted to GGUF: KeyError: 'new kind'\. Export without GGUF",
        ),
        (FakeConverter(writes=False), "it wrote nothing, but not .*q8_0.gguf"),
    ],
    ids=["fails", "fails in its script", "writes nothing"],
)
def test_a_conversion_that_fails_leaves_the_export_before(trained: Trained, tmp_path: Path, converter: FakeConverter, words: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "before").touch()
    with pytest.raises(RunError, match=words):
        exported(trained, tmp_path / "out", Export(trained[1].id, gguf="q8_0"), converter)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["before"]


@pytest.mark.parametrize("before", [None, "1"])
def test_the_converter_may_not_install_packages(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("UNSLOTH_AUTO_INSTALL", raising=False)
    if before:
        monkeypatch.setenv("UNSLOTH_AUTO_INSTALL", before)
    converter = FakeConverter()
    exported(trained, tmp_path / "out", Export(trained[1].id, gguf="q8_0"), converter)
    assert converter.may_install == ["0"]
    assert os.environ.get("UNSLOTH_AUTO_INSTALL") == before


def test_a_machine_without_unsloth_is_told_what_to_get() -> None:
    with pytest.raises(RunError, match=r"No module named 'unsloth_zoo_that.*pip install -r requirements\.txt.*UNSLOTH_LLAMA_CPP_PATH"):
        unsloth_converter("unsloth_zoo_that_is_not_there.llama_cpp")
    assert unsloth_converter("json") is sys.modules["json"]
